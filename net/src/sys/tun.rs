//! Opening a TAP device with a vnet header, and the packet socket that stands in for it where `/dev/net/tun` is missing.
//! Both ends speak the same frames: a 10-byte `virtio_net_hdr`, then Ethernet.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::check;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETSNDBUF: libc::c_ulong = 0x4004_54d4;
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;

#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    padding: [u8; 22],
}

/// A TAP device called `name` in the caller's network namespace. Offloads are asked for best first; a kernel that has
/// none of them still gets frames, only smaller ones.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = InterfaceRequest {
        name: interface_name(name)?,
        flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        padding: [0; 22],
    };
    // SAFETY: TUNSETIFF reads and writes a struct ifreq, whose 40 bytes `InterfaceRequest` has on 64-bit Linux.
    check(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &mut request) })?;
    offload(&device);
    // Its last descriptor does not take the device along: the kernel waits tens of milliseconds for that, and whoever waits
    // for the engine would wait too. The broker removes it.
    // SAFETY: TUNSETPERSIST takes a number by value.
    check(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETPERSIST, 1) })?;
    Ok(device.into())
}

fn offload(device: &File) {
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    for features in [tcp | TUN_F_TSO_ECN | TUN_F_USO, tcp | TUN_F_TSO_ECN, tcp, TUN_F_CSUM] {
        // SAFETY: TUNSETOFFLOAD takes the feature bits by value.
        if unsafe { libc::ioctl(device.as_raw_fd(), TUNSETOFFLOAD, features) } == 0 {
            break;
        }
    }
    let bytes: libc::c_int = 4 << 20;
    // SAFETY: TUNSETSNDBUF reads one int. A refusal leaves the default, which only bounds what may be queued.
    unsafe { libc::ioctl(device.as_raw_fd(), TUNSETSNDBUF, &bytes) };
}

fn interface_name(name: &str) -> io::Result<[u8; libc::IFNAMSIZ]> {
    let mut bytes = [0; libc::IFNAMSIZ];
    if name.is_empty() || name.len() >= bytes.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no interface name")));
    }
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}

/// A packet socket on interface `index`, with vnet headers, blind to what it sends itself.
pub(crate) fn open_packet(index: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let socket = super::socket::socket_raw(libc::AF_PACKET, kind, 0)?;
    super::socket::set_int(&socket, libc::SOL_PACKET, 15 /* PACKET_VNET_HDR */, 1)?;
    super::socket::set_int(&socket, libc::SOL_PACKET, 23 /* PACKET_IGNORE_OUTGOING */, 1)?;
    super::socket::set_int(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)
        .or_else(|_| super::socket::set_int(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 4 << 20))?;
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is a full sockaddr_ll and `length` is its size.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}
