//! An ordeal for the whole engine: segments and frames in any order, programs at both ends that write, end and break off when
//! they like, and time that passes. The kernel's sockets are true ones, on loopback addresses of which one plays the
//! container and one its gateway; nothing goes beyond 127.0.0.0/8. Built for the fuzzers and the tests only.
//!
//! Promised after each step: no fault, tables that agree with each other, frames that are whole, and of each stream no byte
//! that is not the next one written, nor an end that nobody has said. At last, when everybody is gone: nothing is kept.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::mirror::LINGER;
use super::streams::Stage;
use super::{Channels, Engine, Event, Turn};
use crate::attach::{Attached, Facts};
use crate::config::{Config, Resolver, Subnet};
use crate::policy::{Egress, HostLoopback, Policy};
use crate::sys::{socket, stream};
use crate::wire::frame::{self, ACK, Ends, Frame, SYN};
use crate::wire::{ETHERNET, TCP, VNET};

const CONTAINER: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 2);
const DNS: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 3);
/// The port that the engine's rewriting takes for its listener's.
const LISTENER: u16 = 61111;
const STREAMS: usize = 4;

/// What all ordeals share: a server of the host's, and the listener in the "container" at the same port of the gateway's.
struct World {
    server: TcpListener,
    inside: TcpListener,
    port: u16,
    /// Ports of earlier ordeals may still be closing, so each takes others.
    ordeals: u16,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

impl World {
    fn open() -> Option<Self> {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        let port = server.local_addr().ok()?.port();
        let inside = TcpListener::bind((GATEWAY, port)).ok()?;
        socket::carry(&inside).ok()?;
        server.set_nonblocking(true).ok()?;
        inside.set_nonblocking(true).ok()?;
        Some(Self { server, inside, port, ordeals: 0 })
    }
}

/// One direction of a connection, as the programs at its ends see it.
#[derive(Default)]
struct Track {
    written: usize,
    read: usize,
    ended: bool,
}

/// A connection of the container's: the program inside, and the server that it reaches.
struct Pair {
    ends: Ends,
    inner: Option<TcpStream>,
    /// The program inside has come, though it may have gone since.
    arrived: bool,
    outer: Option<TcpStream>,
    up: Track,
    down: Track,
}

struct Ordeal<'a> {
    world: MutexGuard<'a, Option<World>>,
    engine: Engine,
    /// The other end of the engine's device.
    device: OwnedFd,
    mirrored: bool,
    /// Where SYNs that the engine has let through come from, as the listener sees them, and whose they are.
    announced: Vec<(SocketAddr, Ends)>,
    pairs: Vec<Pair>,
}

/// Puts an engine through what `bytes` say.
pub(crate) fn endure(bytes: &[u8]) {
    let Some((first, mut steps)) = bytes.split_first() else { return };
    let Some(mut ordeal) = Ordeal::begin(first & 1 != 0) else { return };
    while let Some(rest) = ordeal.step(steps) {
        steps = rest;
        ordeal.settle();
    }
    ordeal.end();
}

impl Ordeal<'_> {
    fn begin(mirrored: bool) -> Option<Self> {
        let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
        if world.is_none() {
            *world = World::open();
        }
        let known = world.as_mut()?;
        known.ordeals = (known.ordeals + 1) % 1000;
        let (port, inside) = (known.port, known.inside.try_clone().ok()?);
        let (device, theirs) = socket::pair(libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK).ok()?;
        let (broker, _) = socket::pair(libc::SOCK_SEQPACKET).ok()?;
        let facts = Facts { mac: [2; 6], port: LISTENER, divert4: !mirrored, ..Facts::default() };
        let attached =
            Attached { device: theirs, listener4: Some(inside.into()), listener6: None, broker, facts };
        let nowhere = Egress { network: Ipv4Addr::new(127, 0, 7, 9).into(), prefix: 32, first: 0, last: 0 };
        let config = Config {
            v4: Some(Subnet { address: CONTAINER, prefix: 24, gateway: GATEWAY, dns: DNS }),
            v6: None,
            resolver: Resolver::Servers(vec![(Ipv4Addr::LOCALHOST, port).into()]),
            policy: Policy {
                host_loopback: HostLoopback::Ports(vec![port]),
                allow: vec![nowhere],
                ..Policy::default()
            },
            max_flows: STREAMS,
            ..Config::default()
        };
        let mut engine = Engine::new(attached, config, Channels::default(), 64).ok()?;
        engine.mirrors.begin_at(30000 + known.ordeals * 30);
        engine.register().ok()?;
        Some(Self { world, engine, device, mirrored, announced: Vec::new(), pairs: Vec::new() })
    }

    fn known(&self) -> &World {
        self.world.as_ref().expect("it was opened when the ordeal began")
    }

    /// Does the first step of `steps` and returns the others.
    fn step<'b>(&mut self, steps: &'b [u8]) -> Option<&'b [u8]> {
        let [what, which, rest @ ..] = steps else { return None };
        let (which, at) = (*which, usize::from(*which & 7));
        match what % 14 {
            0..=2 => {
                let (flags, rest) = rest.split_first()?;
                let _ = stream::write(&self.device, &self.segment(which, *flags));
                return Some(rest);
            }
            3 => {
                let (frame, rest) = rest.split_at_checked(usize::from(which))?;
                let _ = stream::write(&self.device, frame);
                return Some(rest);
            }
            4 => self.arrive(at),
            5 => self.write(at, usize::from(which >> 3) << 10, true),
            6 => self.write(at, usize::from(which >> 3) << 10, false),
            7 => self.finish(at, true),
            8 => self.finish(at, false),
            9 => self.break_off(at, true),
            10 => self.break_off(at, false),
            11 => self.read(at),
            12 => self.engine.pass(Instant::now() + Duration::from_secs(which.into())),
            _ => self.intrude(),
        }
        Some(rest)
    }

    /// A segment of one of the container's ports, or of the engine's listener, to one of the places that matter.
    fn segment(&self, which: u8, flags: u8) -> Vec<u8> {
        let port = self.known().port;
        let source = if which & 4 == 0 { self.source(which & 3) } else { LISTENER };
        let mirrored = self.announced.first().map_or(1, |(from, _)| from.port());
        let (to, destination) = match (which >> 3) % 8 {
            0..=2 => (GATEWAY, port),
            3 => (GATEWAY, mirrored),
            4 => (GATEWAY, 1),
            5 => (DNS, 53),
            6 => (CONTAINER, LISTENER),
            _ => (Ipv4Addr::new(203, 0, 113, 7), 80),
        };
        let mut frame = vec![0; VNET + ETHERNET];
        frame[VNET + 12] = 8;
        frame.extend([0x45, 0, 0, 40, 0, 7, 0, 0, 64, TCP, 0, 0]);
        frame.extend(CONTAINER.octets().into_iter().chain(to.octets()));
        frame.extend(source.to_be_bytes().into_iter().chain(destination.to_be_bytes()));
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame
    }

    fn source(&self, which: u8) -> u16 {
        20000 + self.known().ordeals * 4 + u16::from(which)
    }

    /// The container's kernel hands a SYN that came back to the listener.
    fn arrive(&mut self, at: usize) {
        if self.announced.is_empty() {
            return;
        }
        let (from, ends) = self.announced.remove(at % self.announced.len());
        let Ok(inner) = self.connect(from) else { return };
        // Of several with these ends it belongs to the last one; whom the engine does not expect it resets.
        if let Some(pair) = self.pairs.iter_mut().rev().find(|pair| pair.ends == ends)
            && !pair.arrived
        {
            (pair.inner, pair.arrived) = (Some(inner), true);
        }
    }

    /// Somebody in the container connects to the listener without having been announced.
    fn intrude(&mut self) {
        let (from, before) =
            (self.source(3), self.engine.streams.iter().filter(|(_, s)| s.stage == Stage::Open).count());
        let known = |(at, ends): &(SocketAddr, Ends)| at.port() == from || ends.source.port() == from;
        if self.announced.iter().any(known)
            || self.engine.stream_by_ends.keys().any(|ends| ends.source.port() == from)
        {
            return;
        }
        let Ok(_intruder) = self.connect((CONTAINER, from).into()) else { return };
        self.turn();
        let after = self.engine.streams.iter().filter(|(_, s)| s.stage == Stage::Open).count();
        assert!(after <= before, "carried without a SYN");
    }

    fn connect(&self, from: SocketAddr) -> io::Result<TcpStream> {
        let made = socket::socket(&from.ip(), libc::SOCK_STREAM)?;
        socket::set_int(&made, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        socket::carry(&made)?;
        socket::bind(&made, &from)?;
        socket::connect(&made, &(GATEWAY, self.known().port).into())?;
        Ok(made.into())
    }

    fn write(&mut self, at: usize, length: usize, up: bool) {
        let Some(pair) = self.pairs.get_mut(at) else { return };
        let (end, track) = pair.side(up);
        let Some(writer) = end.as_mut().filter(|_| !track.ended) else { return };
        let bytes: Vec<u8> =
            (track.written..track.written + length).map(|place| pattern(place, up)).collect();
        match writer.write(&bytes) {
            Ok(count) => track.written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // A reset is told once; what follows would read as an end.
            Err(_) => *end = None,
        }
    }

    fn finish(&mut self, at: usize, up: bool) {
        let Some(pair) = self.pairs.get_mut(at) else { return };
        let (end, track) = pair.side(up);
        if let Some(end) = end {
            track.ended |= end.shutdown(Shutdown::Write).is_ok();
        }
    }

    fn break_off(&mut self, at: usize, up: bool) {
        let Some(pair) = self.pairs.get_mut(at) else { return };
        let (end, _) = pair.side(up);
        if let Some(end) = end.take() {
            let _ = socket::reset_on_close(&end);
        }
    }

    fn read(&mut self, at: usize) {
        let mut buffer = vec![0; 64 << 10];
        let Some(pair) = self.pairs.get_mut(at) else { return };
        for (end, track, up) in
            [(&mut pair.inner, &mut pair.down, false), (&mut pair.outer, &mut pair.up, true)]
        {
            let Some(reader) = end else { continue };
            match reader.read(&mut buffer) {
                Ok(0) => assert!(track.ended && track.read == track.written, "an end that nobody has said"),
                Ok(count) => {
                    assert!(track.read + count <= track.written, "more than was written");
                    let expected = |(place, byte): (usize, &u8)| *byte == pattern(track.read + place, up);
                    assert!(buffer[..count].iter().enumerate().all(expected), "another byte");
                    track.read += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => *end = None,
            }
        }
    }

    fn turn(&mut self) {
        let mut events = [Event { events: 0, u64: 0 }; 64];
        for _ in 0..8 {
            if !matches!(self.engine.turn(&mut events, 0), Ok(Turn::Busy)) {
                break;
            }
        }
    }

    /// Lets the engine do what there is to do, and looks at what it has done.
    fn settle(&mut self) {
        self.turn();
        while let Ok((outer, peer)) = self.known().server.accept() {
            let mut streams = self.engine.streams.iter().map(|(_, stream)| stream);
            let ends = streams
                .find(|s| socket::local_address(&s.host).is_ok_and(|at| at == peer))
                .and_then(|s| s.ends);
            let _ = outer.set_nonblocking(true);
            let Some(ends) = ends else { continue };
            let (up, down) = Default::default();
            self.pairs.push(Pair { ends, inner: None, arrived: false, outer: Some(outer), up, down });
        }
        self.take_frames();
        self.check();
    }

    fn take_frames(&mut self) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(Some(length @ 1..)) = stream::read(&self.device, &mut buffer) {
            let Some(parsed) = frame::parse(&buffer[..length]) else { panic!("a broken frame was written") };
            let Frame::Packet(packet) = parsed else { continue };
            let Some(tcp) = frame::tcp(packet.payload).filter(|_| packet.protocol == TCP) else { continue };
            let from = SocketAddr::new(packet.source, tcp.source_port);
            let destination = SocketAddr::new(packet.destination, tcp.destination_port);
            let ends = match self.mirrored {
                true => self.engine.mirrors.ends(from.port()).filter(|_| destination.port() == LISTENER),
                false => Some(Ends { source: from, destination }),
            };
            let Some(ends) = ends.filter(|_| tcp.flags & (SYN | ACK) == SYN) else { continue };
            self.announced.retain(|(_, known)| *known != ends);
            self.announced.push((from, ends));
        }
    }

    fn check(&self) {
        let engine = &self.engine;
        assert_eq!(engine.counters.faults, 0);
        engine.mirrors.check_pairs();
        let named = engine.streams.iter().filter_map(|(key, stream)| Some((stream.ends?, key, stream)));
        let mut count = 0;
        for (ends, key, stream) in named {
            count += 1;
            assert_eq!(engine.stream_by_ends.get(&ends), Some(&key));
            assert_eq!(stream.container.is_some(), stream.stage == Stage::Open);
            let has_port = engine.mirrors.port(&ends).is_some();
            assert!(!self.mirrored || has_port || matches!(stream.stage, Stage::HostConnecting { .. }));
        }
        assert_eq!((engine.stream_by_ends.len(), engine.streams.len()), (count, count));
        assert!(count <= STREAMS);
    }

    /// Everybody goes, and time passes.
    fn end(mut self) {
        for at in 0..self.pairs.len() {
            self.read(at);
            self.break_off(at, true);
            self.break_off(at, false);
        }
        let patience = Instant::now() + Duration::from_secs(5);
        while self.engine.streams.len() > 0 && Instant::now() < patience {
            self.settle();
            self.pairs.clear();
            self.engine.pass(Instant::now() + LINGER * 2);
        }
        assert_eq!(self.engine.streams.len(), 0, "a stream is kept for ever");
        // Those who were awaited at the name server lapse first.
        for times in [4, 6] {
            self.engine.pass(Instant::now() + LINGER * times);
        }
        self.check();
        assert!(self.engine.mirrors.is_empty(), "a mirror is kept for ever");
    }
}

impl Pair {
    /// The end that writes in a direction.
    fn side(&mut self, up: bool) -> (&mut Option<TcpStream>, &mut Track) {
        if up { (&mut self.inner, &mut self.up) } else { (&mut self.outer, &mut self.down) }
    }
}

/// The byte at a place of a direction.
fn pattern(place: usize, up: bool) -> u8 {
    (place % if up { 251 } else { 241 }) as u8
}
