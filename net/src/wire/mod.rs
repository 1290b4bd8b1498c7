//! The bytes on the device: frames are taken apart and put together here and nowhere else. Nothing in this folder panics
//! on any input, allocates by a length that a packet claims, or knows a socket. A frame is a 10-byte `virtio_net_hdr`,
//! an Ethernet header, then ARP, IPv4 or IPv6.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub(crate) mod build;
pub(crate) mod dhcp;
pub(crate) mod dns;
pub(crate) mod frame;
pub(crate) mod reassembly;
pub(crate) mod rewrite;

/// `virtio_net_hdr` as TAP devices and packet sockets use it: flags, gso type, header length, gso size, checksum start
/// and offset, in the host's byte order.
pub(crate) const VNET: usize = 10;
pub(crate) const ETHERNET: usize = 14;
/// The flag that says that the transport checksum covers only the pseudo header so far.
pub(crate) const NEEDS_CSUM: u8 = 1;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP6: u8 = 58;

/// The engine's own hardware address: locally administered, the same in each namespace.
pub(crate) const ENGINE_MAC: [u8; 6] = [0x02, 0x6b, 0x65, 0x6c, 0x70, 0x01];

/// The ones' complement sum of 16-bit words, not folded.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let mut total = 0_u64;
    let mut pairs = bytes.chunks_exact(2);
    for pair in &mut pairs {
        if let [a, b] = pair {
            total = total.wrapping_add(u64::from(u16::from_be_bytes([*a, *b])));
        }
    }
    if let [last] = pairs.remainder() {
        total = total.wrapping_add(u64::from(*last) << 8);
    }
    total
}

/// Folds a sum into 16 bits. The complement of the result is a checksum.
pub(crate) fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff).wrapping_add(total >> 16);
    }
    total as u16
}
