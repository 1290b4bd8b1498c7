//! Sockets: making, binding and connecting them, their options, datagrams with addresses and control messages, and
//! descriptors passed over Unix sockets. Addresses are `std::net::SocketAddr` on this side of the wall.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::{check, check_len};

pub(crate) fn socket_raw(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: socket succeeded, so the descriptor is open and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A non-blocking internet socket of the family of `address`; `kind` is SOCK_STREAM or SOCK_DGRAM.
pub(crate) fn socket(address: &IpAddr, kind: i32) -> io::Result<OwnedFd> {
    let domain = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    socket_raw(domain, kind | libc::SOCK_NONBLOCK, 0)
}

/// A connected pair of Unix sockets.
pub(crate) fn pair(kind: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: socketpair writes two descriptors into the array.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) })?;
    // SAFETY: socketpair succeeded, so both are open and ours alone.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

fn encode(address: &SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: sockaddr_storage is large enough and aligned for every sockaddr.
            let inner = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in>() };
            inner.sin_family = libc::AF_INET as u16;
            inner.sin_port = v4.port().to_be();
            inner.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            (storage, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let inner = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in6>() };
            inner.sin6_family = libc::AF_INET6 as u16;
            inner.sin6_port = v6.port().to_be();
            inner.sin6_addr.s6_addr = v6.ip().octets();
            inner.sin6_scope_id = v6.scope_id();
            (storage, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
    }
}

fn decode(storage: &libc::sockaddr_storage) -> io::Result<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the kernel stored a sockaddr_in.
            let inner = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(inner.sin_addr.s_addr.to_ne_bytes());
            Ok(SocketAddr::new(ip.into(), u16::from_be(inner.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the kernel stored a sockaddr_in6.
            let inner = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(inner.sin6_addr.s6_addr);
            Ok(SocketAddrV6::new(ip, u16::from_be(inner.sin6_port), 0, inner.sin6_scope_id).into())
        }
        _ => Err(io::Error::from(io::ErrorKind::AddrNotAvailable)),
    }
}

pub(crate) fn bind(fd: impl AsFd, address: &SocketAddr) -> io::Result<()> {
    let (storage, length) = encode(address);
    // SAFETY: `storage` holds an address of `length` bytes.
    check(unsafe { libc::bind(fd.as_fd().as_raw_fd(), (&raw const storage).cast(), length) })?;
    Ok(())
}

/// Starts a connection. A stream socket that is still connecting is no error; epoll tells how it ends.
pub(crate) fn connect(fd: impl AsFd, address: &SocketAddr) -> io::Result<()> {
    let (storage, length) = encode(address);
    // SAFETY: `storage` holds an address of `length` bytes.
    match check(unsafe { libc::connect(fd.as_fd().as_raw_fd(), (&raw const storage).cast(), length) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

/// Joins the multicast groups (a bit set) of a netlink socket, and bounds how long a read of it may wait.
pub(crate) fn bind_netlink(fd: impl AsFd, groups: u32, seconds: i64) -> io::Result<()> {
    // SAFETY: all-zero is a valid sockaddr_nl.
    let mut address: libc::sockaddr_nl = unsafe { zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_groups = groups;
    let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the address is a full sockaddr_nl and `length` is its size.
    check(unsafe { libc::bind(raw, (&raw const address).cast(), length) })?;
    let wait = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let length = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: the pointer is to one struct timeval and `length` is its size.
    check(unsafe {
        libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const wait).cast(), length)
    })?;
    Ok(())
}

pub(crate) fn listen(fd: impl AsFd, backlog: i32) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::listen(fd.as_fd().as_raw_fd(), backlog) })?;
    Ok(())
}

/// The next waiting connection and its peer (unspecified for Unix sockets), or `None` if none waits.
pub(crate) fn accept(fd: impl AsFd) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: `storage` has `length` bytes to write to.
    match check(unsafe { libc::accept4(raw, (&raw mut storage).cast(), &mut length, flags) }) {
        Ok(fd) => {
            // SAFETY: accept4 succeeded, so the descriptor is open and ours alone.
            let accepted = unsafe { OwnedFd::from_raw_fd(fd) };
            Ok(Some((accepted, decode(&storage).unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into()))))
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ECONNABORTED | libc::EINTR) => Ok(None),
            _ => Err(error),
        },
    }
}

pub(crate) fn local_address(fd: impl AsFd) -> io::Result<SocketAddr> {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: `storage` has `length` bytes to write to.
    check(unsafe { libc::getsockname(fd.as_fd().as_raw_fd(), (&raw mut storage).cast(), &mut length) })?;
    decode(&storage)
}

pub(crate) fn set_int(fd: impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the pointer is to one int and `length` is its size.
    check(unsafe { libc::setsockopt(raw, level, option, (&raw const value).cast(), length) })?;
    Ok(())
}

fn int_option(fd: impl AsFd, level: i32, option: i32) -> io::Result<i32> {
    let mut value = 0;
    let mut length = size_of::<i32>() as libc::socklen_t;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the pointer is to one int and `length` is its size.
    check(unsafe { libc::getsockopt(raw, level, option, (&raw mut value).cast(), &mut length) })?;
    Ok(value)
}

/// The error that is pending on a socket, which this clears.
pub(crate) fn pending_error(fd: impl AsFd) -> io::Result<()> {
    match int_option(fd, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// Makes the coming close send a reset instead of an orderly end.
pub(crate) fn reset_on_close(fd: impl AsFd) -> io::Result<()> {
    linger(fd, libc::linger { l_onoff: 1, l_linger: 0 })
}

/// Makes the coming close an orderly end again: what was sent is delivered.
pub(crate) fn end_on_close(fd: impl AsFd) -> io::Result<()> {
    linger(fd, libc::linger { l_onoff: 0, l_linger: 0 })
}

fn linger(fd: impl AsFd, linger: libc::linger) -> io::Result<()> {
    let length = size_of::<libc::linger>() as libc::socklen_t;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the pointer is to one struct linger and `length` is its size.
    check(unsafe {
        libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), length)
    })?;
    Ok(())
}

/// Whether a stream socket has finished connecting, without waiting; an error if it failed. That it is writable and nothing
/// else says that it has, in one call.
pub(crate) fn is_connected(fd: impl AsFd) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: the pointer is to one pollfd.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) == 1 };
    if poll.revents & (libc::POLLERR | libc::POLLHUP) != 0 {
        pending_error(fd)?;
    }
    Ok(ready)
}

/// What every connection that is carried wants: messages go out at once, and a close that was not prepared is a reset.
/// Connections that a listener accepts have what it has.
pub(crate) fn carry(fd: impl AsFd) -> io::Result<()> {
    set_int(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    reset_on_close(&fd)
}

/// Uses another congestion control than the host's.
pub(crate) fn set_congestion_control(fd: impl AsFd, name: &str) -> io::Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    let length = name.len() as libc::socklen_t;
    // SAFETY: the pointer and length are those of one live string.
    check(unsafe {
        libc::setsockopt(raw, libc::IPPROTO_TCP, libc::TCP_CONGESTION, name.as_ptr().cast(), length)
    })?;
    Ok(())
}

pub(crate) fn shutdown_write(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::shutdown(fd.as_fd().as_raw_fd(), libc::SHUT_WR) })?;
    Ok(())
}

/// A datagram with its sender and the local address that it was sent to.
pub(crate) struct Datagram {
    pub(crate) length: usize,
    pub(crate) peer: SocketAddr,
    pub(crate) local: IpAddr,
}

const CONTROL: usize = 256;

#[repr(C, align(8))]
struct Control([u8; CONTROL]);

fn header(storage: *mut libc::sockaddr_storage, io: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = storage.cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = io;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL;
    message
}

/// Calls `visit` with level, kind and bytes of each control message that the kernel stored in `message`.
fn for_each_control(message: &libc::msghdr, mut visit: impl FnMut(i32, i32, &[u8])) {
    // SAFETY: the kernel filled `message`, whose control buffer outlives this call; the macros stay inside it and
    // each cmsg_len was checked by the kernel when it wrote it.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(message);
        while !at.is_null() {
            let length = (*at).cmsg_len - libc::CMSG_LEN(0) as usize;
            visit((*at).cmsg_level, (*at).cmsg_type, std::slice::from_raw_parts(libc::CMSG_DATA(at), length));
            at = libc::CMSG_NXTHDR(message, at);
        }
    }
}

/// Receives one datagram on a socket that has IP_PKTINFO or IPV6_RECVPKTINFO set.
pub(crate) fn recv_datagram(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let mut io = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; CONTROL]);
    let mut message = header(&raw mut storage, &mut io, &mut control);
    // SAFETY: every pointer in `message` is to a live local or to `buffer`.
    let length =
        match check_len(unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &mut message, libc::MSG_DONTWAIT) }) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
    let mut local = None;
    for_each_control(&message, |level, kind, bytes| {
        if level == libc::IPPROTO_IP && kind == libc::IP_PKTINFO {
            local = bytes.get(4..8).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(IpAddr::from);
        } else if level == libc::IPPROTO_IPV6 && kind == libc::IPV6_PKTINFO {
            local = bytes.get(..16).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(IpAddr::from);
        }
    });
    let peer = decode(&storage)?;
    let local = local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    Ok(Some(Datagram { length, peer, local }))
}

/// Sends one datagram to `peer` from the local address `local`.
pub(crate) fn send_datagram(
    fd: impl AsFd,
    bytes: &[u8],
    peer: &SocketAddr,
    local: &IpAddr,
) -> io::Result<usize> {
    let (mut storage, length) = encode(peer);
    let mut io = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL]);
    let mut message = header(&raw mut storage, &mut io, &mut control);
    message.msg_namelen = length;
    let (level, kind, payload) = packet_address(local);
    // SAFETY: the control buffer is zeroed, aligned for cmsghdr and larger than CMSG_SPACE of either payload.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(payload.len() as u32) as usize;
        let at = libc::CMSG_FIRSTHDR(&message);
        (*at).cmsg_level = level;
        (*at).cmsg_type = kind;
        (*at).cmsg_len = libc::CMSG_LEN(payload.len() as u32) as usize;
        std::ptr::copy_nonoverlapping(payload.as_ptr(), libc::CMSG_DATA(at), payload.len());
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: every pointer in `message` is to a live local or to `bytes`, which sendmsg only reads.
    check_len(unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &message, flags) })
}

/// The bytes of `in_pktinfo` (interface, source, ignored) or `in6_pktinfo` (source, interface).
fn packet_address(local: &IpAddr) -> (i32, i32, Vec<u8>) {
    match local {
        IpAddr::V4(ip) => (libc::IPPROTO_IP, libc::IP_PKTINFO, [[0; 4], ip.octets(), [0; 4]].concat()),
        IpAddr::V6(ip) => {
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, [ip.octets().as_slice(), &[0; 4]].concat())
        }
    }
}

/// An error that the network reported for a datagram socket with IP_RECVERR: errno, and ICMP type and code if it was one.
pub(crate) struct Reported {
    pub(crate) errno: i32,
    pub(crate) icmp: Option<(u8, u8)>,
    pub(crate) extra: u32,
}

/// Takes the next report off the error queue.
pub(crate) fn recv_error(fd: impl AsFd) -> Option<Reported> {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let mut byte = [0_u8; 1];
    let mut io = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = Control([0; CONTROL]);
    let mut message = header(&raw mut storage, &mut io, &mut control);
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: every pointer in `message` is to a live local.
    check_len(unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &mut message, flags) }).ok()?;
    let mut reported = None;
    for_each_control(&message, |level, kind, bytes| {
        let v4 = level == libc::IPPROTO_IP && kind == libc::IP_RECVERR;
        let v6 = level == libc::IPPROTO_IPV6 && kind == libc::IPV6_RECVERR;
        if let ([a, b, c, d, origin, icmp, code, _, e, f, g, h, ..], true) = (bytes, v4 || v6) {
            reported = Some(Reported {
                errno: i32::from_ne_bytes([*a, *b, *c, *d]),
                icmp: (*origin == 2 || *origin == 3).then_some((*icmp, *code)),
                extra: u32::from_ne_bytes([*e, *f, *g, *h]),
            });
        }
    });
    reported
}

/// Sends `bytes` with descriptors over a Unix socket.
pub(crate) fn send_descriptors(fd: impl AsFd, bytes: &[u8], passed: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = passed.iter().map(AsRawFd::as_raw_fd).collect();
    let size = (raw.len() * size_of::<RawFd>()) as u32;
    let mut io = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL]);
    let mut message = header(std::ptr::null_mut(), &mut io, &mut control);
    message.msg_namelen = 0;
    message.msg_controllen = 0;
    // SAFETY: CMSG_SPACE computes a size only.
    let space = unsafe { libc::CMSG_SPACE(size) } as usize;
    assert!(space <= CONTROL, "at most 60 descriptors are passed at a time");
    if !raw.is_empty() {
        message.msg_controllen = space;
        // SAFETY: the control buffer is zeroed, aligned and holds CMSG_SPACE(size), as asserted above.
        unsafe {
            let at = libc::CMSG_FIRSTHDR(&message);
            (*at).cmsg_level = libc::SOL_SOCKET;
            (*at).cmsg_type = libc::SCM_RIGHTS;
            (*at).cmsg_len = libc::CMSG_LEN(size) as usize;
            std::ptr::copy_nonoverlapping(raw.as_ptr().cast(), libc::CMSG_DATA(at), size as usize);
        }
    }
    // SAFETY: every pointer in `message` is to a live local or to `bytes`, which sendmsg only reads.
    check_len(unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &message, libc::MSG_NOSIGNAL) })?;
    Ok(())
}

/// Receives bytes and the descriptors that came with them. A count of 0 is the end of the stream; `None` would block.
pub(crate) fn recv_descriptors(
    fd: impl AsFd,
    buffer: &mut [u8],
    flags: i32,
) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut io = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; CONTROL]);
    let mut message = header(std::ptr::null_mut(), &mut io, &mut control);
    message.msg_namelen = 0;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let length = loop {
        // SAFETY: every pointer in `message` is to a live local or to `buffer`.
        match check_len(unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &mut message, flags) }) {
            Ok(length) => break length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    };
    let mut received = Vec::new();
    for_each_control(&message, |level, kind, bytes| {
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            for raw in bytes.chunks_exact(size_of::<RawFd>()) {
                let raw = RawFd::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]]);
                // SAFETY: the kernel has just installed this descriptor for us alone.
                received.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
    });
    Ok(Some((length, received)))
}
