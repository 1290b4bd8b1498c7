//! DHCP (RFC 2131), the server's half for the one client that there is: every lease is the container's own address, for ever.
//! A message is read for its kind, its transaction and what it asks for; everything else in it is passed over.

use std::net::Ipv4Addr;

const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The fixed part of a message in front of the cookie.
const FIXED: usize = 236;
/// What old clients take for the shortest message.
const SHORTEST: usize = 300;

const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const NAME_SERVER: u8 = 6;
const MTU: u8 = 26;
const ASKED_ADDRESS: u8 = 50;
const LEASE: u8 = 51;
const KIND: u8 = 53;
const SERVER: u8 = 54;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Discover,
    Request,
    Inform,
}

/// A client's message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    transaction: [u8; 4],
    flags: [u8; 2],
    client: Ipv4Addr,
    hardware: [u8; 6],
    asked: Option<Ipv4Addr>,
}

/// What the answer tells the client.
pub(crate) struct Lease {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) dns: Ipv4Addr,
    pub(crate) mtu: u16,
}

/// Reads a client's message; `None` is for anything that deserves no answer.
pub(crate) fn parse(bytes: &[u8]) -> Option<Message> {
    // A request, Ethernet, addresses of six bytes.
    if bytes.first_chunk::<3>() != Some(&[1, 1, 6]) || bytes.get(FIXED..)?.first_chunk() != Some(&COOKIE) {
        return None;
    }
    let field = |at: usize| bytes.get(at..)?.first_chunk::<4>().copied();
    let (mut kind, mut asked) = (None, None);
    let mut options = bytes.get(FIXED.checked_add(4)?..)?;
    while let [code, rest @ ..] = options {
        match code {
            0 => options = rest,
            255 => break,
            _ => {
                let (length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                match (*code, value) {
                    (KIND, [1]) => kind = Some(Kind::Discover),
                    (KIND, [3]) => kind = Some(Kind::Request),
                    (KIND, [8]) => kind = Some(Kind::Inform),
                    (ASKED_ADDRESS, _) => asked = value.first_chunk::<4>().map(|ip| Ipv4Addr::from(*ip)),
                    _ => {}
                }
                options = rest;
            }
        }
    }
    Some(Message {
        kind: kind?,
        transaction: field(4)?,
        flags: *bytes.get(10..)?.first_chunk()?,
        client: field(12)?.into(),
        hardware: *bytes.get(28..)?.first_chunk()?,
        asked,
    })
}

impl Message {
    /// The answer: an offer, an acknowledgement, or the refusal of an address that is not the container's.
    pub(crate) fn answer(&self, lease: &Lease) -> Vec<u8> {
        let wanted = self.asked.unwrap_or(self.client);
        let (kind, address) = match self.kind {
            Kind::Discover => (2, lease.address),
            Kind::Request if wanted == lease.address => (5, lease.address),
            Kind::Request => (6, Ipv4Addr::UNSPECIFIED),
            Kind::Inform => (5, Ipv4Addr::UNSPECIFIED),
        };
        let mut bytes = vec![2, 1, 6, 0];
        bytes.extend_from_slice(&self.transaction);
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&self.flags);
        let client = if self.kind == Kind::Inform { self.client } else { Ipv4Addr::UNSPECIFIED };
        for ip in [client, address, lease.gateway, Ipv4Addr::UNSPECIFIED] {
            bytes.extend_from_slice(&ip.octets());
        }
        bytes.extend_from_slice(&self.hardware);
        bytes.resize(FIXED, 0);
        bytes.extend_from_slice(&COOKIE);
        let mut put = |code: u8, value: &[u8]| {
            bytes.push(code);
            bytes.push(value.len() as u8);
            bytes.extend_from_slice(value);
        };
        put(KIND, &[kind]);
        put(SERVER, &lease.gateway.octets());
        if kind != 6 {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(lease.prefix))).unwrap_or(0);
            if self.kind != Kind::Inform {
                put(LEASE, &u32::MAX.to_be_bytes());
            }
            put(SUBNET_MASK, &mask.to_be_bytes());
            put(ROUTER, &lease.gateway.octets());
            put(NAME_SERVER, &lease.dns.octets());
            put(MTU, &lease.mtu.to_be_bytes());
        }
        bytes.push(255);
        bytes.resize(bytes.len().max(SHORTEST), 0);
        bytes
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn message(kind: u8, asked: Option<Ipv4Addr>) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[4..8].copy_from_slice(&[9, 8, 7, 6]);
        bytes[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        bytes.extend_from_slice(&COOKIE);
        bytes.extend_from_slice(&[KIND, 1, kind]);
        if let Some(ip) = asked {
            bytes.extend_from_slice(&[ASKED_ADDRESS, 4]);
            bytes.extend_from_slice(&ip.octets());
        }
        bytes.push(255);
        bytes
    }

    pub(crate) fn lease() -> Lease {
        let ip = |last| Ipv4Addr::new(10, 0, 2, last);
        Lease { address: ip(100), prefix: 24, gateway: ip(2), dns: ip(3), mtu: 1500 }
    }

    #[test]
    fn the_containers_own_address_is_offered_and_granted_and_no_other_is() {
        let other = Ipv4Addr::new(10, 0, 2, 9);
        for (kind, asked, answer, address) in [
            (1, None, 2, [10, 0, 2, 100]),
            (3, Some(lease().address), 5, [10, 0, 2, 100]),
            (3, Some(other), 6, [0; 4]),
            (8, None, 5, [0; 4]),
        ] {
            let bytes = parse(&message(kind, asked)).unwrap().answer(&lease());
            assert_eq!(
                (bytes[0], &bytes[4..8], &bytes[28..34]),
                (2, &[9, 8, 7, 6][..], &[2, 0, 0, 0, 0, 1][..])
            );
            assert_eq!(bytes[16..20], address);
            assert_eq!(bytes[FIXED + 4..FIXED + 7], [KIND, 1, answer]);
            assert!(bytes.len() >= SHORTEST);
        }
        let text = parse(&message(1, None)).unwrap().answer(&lease());
        assert!(text.windows(6).any(|six| six == [SUBNET_MASK, 4, 255, 255, 255, 0]));
    }

    #[test]
    fn what_is_no_clients_message_has_no_answer() {
        assert_eq!(parse(&message(2, None)), None);
        let whole = message(3, Some(lease().address));
        for length in 0..whole.len() - 1 {
            let _ = parse(&whole[..length]);
        }
        let mut server = whole.clone();
        server[0] = 2;
        assert_eq!(parse(&server), None);
        assert_eq!(parse(&whole[..FIXED + 4]), None);
    }
}
