//! The engine: one thread, one epoll, every flow of one container. This file holds the state and the loop, and knows which
//! room an event belongs to; what a room does with it is in the room's file.
//!
//!   frame on the device --> device --> streams (SYNs, mirrored TCP)   --> policy --> host socket
//!                                 \--> datagrams (UDP, echo)         --> policy --> host socket
//!                                  \-> names (DNS)
//!   client on the host  --> published --> socket in the container's namespace
//!
//! A panic in a room ends the event, not the engine.

pub(crate) mod control;
mod counters;
mod datagrams;
mod device;
pub(crate) mod mirror;
mod names;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod ordeal;
mod pcap;
mod published;
mod pump;
mod rate;
mod streams;
mod table;
mod timers;
mod vigil;

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::attach::{Attached, Facts};
use crate::broker::Broker;
use crate::config::Config;
use crate::confine::{Role, confine};
use crate::policy;
use crate::ports::Bound;
use crate::sys::process;
use crate::sys::stream::{Epoll, Event};
use crate::wire::frame::Ends;
use crate::wire::reassembly::Reassembly;
use control::Control;
pub use counters::Counters;
use datagrams::{Flow, FlowName};
use mirror::Mirrors;
use names::Names;
use pcap::Pcap;
use published::{Port, Run};
use pump::Pipes;
use rate::Bucket;
use streams::Stream;
use table::{Key, Table};
use timers::Timers;
use vigil::Vigil;

/// What the engine is told by while it runs.
#[derive(Debug, Default)]
pub struct Channels {
    /// The engine ends when this descriptor hangs up or becomes readable.
    pub stop: Option<OwnedFd>,
    /// A listening Unix socket that takes slirp4netns's requests: one JSON object a connection.
    pub api: Option<OwnedFd>,
    /// A connected Unix stream socket that takes the same requests, one a line, for as long as it is open.
    pub control: Option<OwnedFd>,
    /// Gets the byte `1` when the network is up.
    pub ready: Option<OwnedFd>,
    /// Called once, when the engine has nothing to do for the first time.
    pub settled: Option<fn()>,
}

/// The rooms an event's number leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Room {
    Device,
    Listener4,
    Listener6,
    Stop,
    StreamHost,
    StreamContainer,
    Flow,
    Port,
    Query,
    NameClient,
    Api,
    Request,
}

const ROOMS: [Room; 12] = [
    Room::Device,
    Room::Listener4,
    Room::Listener6,
    Room::Stop,
    Room::StreamHost,
    Room::StreamContainer,
    Room::Flow,
    Room::Port,
    Room::Query,
    Room::NameClient,
    Room::Api,
    Room::Request,
];

impl Room {
    fn number(self, key: Key) -> u64 {
        (self as u64) << 56 | key.pack()
    }

    fn alone(self) -> u64 {
        (self as u64) << 56
    }
}

struct Engine {
    config: Config,
    facts: Facts,
    epoll: Epoll,
    timers: Timers,
    now: Instant,
    device: OwnedFd,
    pcap: Option<Pcap>,
    fragments: Reassembly,
    /// ICMP errors that are said a second time, and when.
    again: VecDeque<(Instant, Vec<u8>)>,
    listener4: Option<OwnedFd>,
    listener6: Option<OwnedFd>,
    broker: Broker,
    streams: Table<Stream>,
    stream_by_ends: HashMap<Ends, Key>,
    mirrors: Mirrors,
    /// Streams that had their turn and have more.
    ready: Vec<(Key, bool)>,
    pipes: Pipes,
    flows: Table<Flow>,
    flow_by_name: HashMap<FlowName, Key>,
    ports: Table<Port>,
    port_rules: HashSet<Run>,
    /// How many descriptors flows and ports may have.
    descriptors: usize,
    names: Names,
    control: Control,
    up: Bucket,
    down: Bucket,
    counters: Counters,
    /// The frame or datagram of the event; taken out while it is worked on.
    scratch: Vec<u8>,
    /// What is copied between the two sockets of a stream; a stream may move while a frame is worked on.
    messages: Vec<u8>,
    stop: Option<OwnedFd>,
    vigil: Vigil,
}

/// Room for the largest frame: vnet header, Ethernet, 64 KiB.
const SCRATCH: usize = 10 + 14 + 65536;

const MESSAGES: usize = 64 << 10;

/// Descriptors kept for questions to name servers, requests, sockets in stock and the engine itself.
const RESERVE: u64 = 768;

/// Connections taken from a listener in one go.
const ARRIVALS: usize = 64;

/// How long an engine that is told to stop goes on carrying what is on its way, at most, and the milliseconds of silence
/// that end it.
const LAST_WORDS: Duration = Duration::from_millis(500);
const SILENCE: i32 = 10;

/// An engine that has waited for so many milliseconds has nothing to do.
const SETTLING: i32 = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Busy,
    Quiet,
    Stopped,
}

/// Runs the engine until it is told to stop.
///
/// The caller must have one thread and be in the host's network namespace, outside the container's pid namespace; which
/// user namespace it is in does not matter. It gives up every privilege before the first frame is read.
pub fn run(attached: Attached, bound: Vec<Bound>, mut config: Config, mut channels: Channels) -> Result<()> {
    let descriptors = process::raise_descriptor_limit().context("cannot raise the limit of descriptors")?;
    let descriptors = usize::try_from(descriptors - RESERVE.min(descriptors / 2)).unwrap_or(usize::MAX);
    if config.policy.host_addresses.is_empty() {
        config.policy.host_addresses = host_addresses()?;
    }
    let ready = channels.ready.take();
    let settled = channels.settled.take();
    let mut engine = Engine::new(attached, config, channels, descriptors)?;
    engine.facts.notes.extend(confine(Role::Engine)?);
    engine.register()?;
    engine.publish(bound)?;
    if let Some(ready) = ready {
        crate::sys::stream::write(&ready, b"1").context("cannot say that the network is up")?;
    }
    engine.turn_until_stopped(settled)
}

/// The addresses of the host's own interfaces, which no container may reach unless it is told so.
fn host_addresses() -> Result<Vec<std::net::IpAddr>> {
    Ok(crate::netlink::Netlink::route()?.addresses()?)
}

impl Engine {
    fn new(attached: Attached, config: Config, channels: Channels, descriptors: usize) -> Result<Self> {
        process::ignore_broken_pipes();
        let names = Names::open(&config.resolver)?;
        let pcap = config.pcap.as_deref().map(Pcap::create).transpose()?;
        Ok(Self {
            epoll: Epoll::new()?,
            timers: Timers::default(),
            now: Instant::now(),
            device: attached.device,
            pcap,
            fragments: Reassembly::default(),
            again: VecDeque::new(),
            listener4: attached.listener4,
            listener6: attached.listener6,
            broker: Broker::new(attached.broker),
            streams: Table::new(),
            stream_by_ends: HashMap::new(),
            mirrors: Mirrors::default(),
            ready: Vec::new(),
            pipes: Pipes::default(),
            flows: Table::new(),
            flow_by_name: HashMap::new(),
            ports: Table::new(),
            port_rules: HashSet::new(),
            descriptors,
            names,
            control: Control::new(channels.api, channels.control),
            up: Bucket::new(config.rate.up),
            down: Bucket::new(config.rate.down),
            counters: Counters::default(),
            scratch: vec![0; SCRATCH],
            messages: vec![0; MESSAGES],
            stop: channels.stop,
            vigil: Vigil::new(std::thread::available_parallelism().map_or(1, usize::from)),
            facts: attached.facts,
            config,
        })
    }

    fn register(&mut self) -> Result<()> {
        let edge = libc::EPOLLIN;
        self.epoll.add(&self.device, edge, Room::Device.alone())?;
        for (listener, room) in [(&self.listener4, Room::Listener4), (&self.listener6, Room::Listener6)] {
            if let Some(listener) = listener {
                self.epoll.add(listener, edge, room.alone())?;
            }
        }
        if let Some(stop) = &self.stop {
            self.epoll.add(stop, libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET, Room::Stop.alone())?;
        }
        self.register_control()
    }

    fn turn_until_stopped(&mut self, mut settled: Option<fn()>) -> Result<()> {
        let mut events = [Event { events: 0, u64: 0 }; 256];
        loop {
            let wait = match (self.timers.wait(Instant::now()), settled) {
                (wait, Some(_)) if !(0..SETTLING).contains(&wait) => SETTLING,
                (wait, _) => wait,
            };
            match self.turn(&mut events, wait)? {
                Turn::Stopped => return self.carry_last_words(&mut events),
                Turn::Quiet if wait == SETTLING => {
                    settled.take().into_iter().for_each(|settled| settled());
                }
                Turn::Quiet | Turn::Busy => {}
            }
        }
    }

    /// What the container's programs wrote before they ended is still on its way: their sockets are closed, not gone.
    fn carry_last_words(&mut self, events: &mut [Event]) -> Result<()> {
        (self.listener4, self.listener6, self.ports) = (None, None, Table::new());
        let end = Instant::now() + LAST_WORDS;
        while self.streams.len() > 0 && self.now < end && self.turn(events, SILENCE)? != Turn::Quiet {}
        Ok(())
    }

    /// Waits for events, for at most so many milliseconds, and does what they and the deadlines ask for.
    fn turn(&mut self, events: &mut [Event], wait: i32) -> Result<Turn> {
        let wait = if self.ready.is_empty() { wait } else { 0 };
        let count = self.vigil.wait(&self.epoll, events, wait).context("cannot wait for events")?;
        self.now = Instant::now();
        let mut outcome = if count == 0 && self.ready.is_empty() { Turn::Quiet } else { Turn::Busy };
        for event in events.iter().take(count) {
            let (number, flags) = (event.u64, event.events as i32);
            let Some(room) = ROOMS.get((number >> 56) as usize) else { continue };
            if *room == Room::Stop {
                outcome = Turn::Stopped;
            }
            self.shielded(|engine| engine.event(*room, Key::unpack(number), flags));
        }
        for (key, hung_up) in std::mem::take(&mut self.ready) {
            self.shielded(|engine| engine.pump(key, hung_up));
        }
        self.pass(self.now);
        Ok(outcome)
    }

    /// Does what is due when it is `now`.
    fn pass(&mut self, now: Instant) {
        self.now = now;
        while let Some(number) = self.timers.due(now) {
            let Some(room) = ROOMS.get((number >> 56) as usize) else { continue };
            self.shielded(|engine| engine.deadline(*room, Key::unpack(number)));
        }
    }

    /// Runs one event. A panic is a fault of ours; it costs the event and is counted.
    fn shielded(&mut self, event: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| event(self))).is_err() {
            self.counters.faults += 1;
            self.scratch.resize(SCRATCH, 0);
        }
    }

    fn event(&mut self, room: Room, key: Key, flags: i32) {
        match room {
            Room::Device => self.read_device(),
            Room::Listener4 | Room::Listener6 => {
                self.accept_container(room == Room::Listener4, ARRIVALS);
            }
            Room::StreamHost | Room::StreamContainer => {
                self.stream_event(key, room == Room::StreamHost, flags)
            }
            Room::Flow => self.flow_event(key, flags),
            Room::Port => self.port_event(key),
            Room::Query => self.query_event(key),
            Room::NameClient => self.name_client_event(key),
            Room::Api => self.accept_request(),
            Room::Request => self.request_event(key),
            Room::Stop => {}
        }
    }

    fn deadline(&mut self, room: Room, key: Key) {
        match room {
            Room::StreamHost => self.stream_deadline(key),
            Room::StreamContainer => self.pump(key, true),
            Room::Flow => self.flow_deadline(key),
            Room::Query => self.query_deadline(key),
            Room::NameClient => self.name_client_deadline(key),
            Room::Device => {
                self.repeat_due();
                self.forget_lapsed_name_clients();
                self.mirrors.forget_closed(self.now);
            }
            _ => {}
        }
    }

    /// Whether one more flow may be made, with so many descriptors of its own.
    fn has_room(&mut self, descriptors: usize) -> bool {
        let (streams, flows, ports) = (self.streams.len(), self.flows.len(), self.ports.len());
        let most = if descriptors == 1 { flows } else { streams };
        let room =
            most < self.config.max_flows && streams * 2 + flows + ports + descriptors <= self.descriptors;
        if !room {
            self.counters.overflowed += 1;
        }
        room
    }

    fn host_target(
        &mut self,
        destination: std::net::SocketAddr,
    ) -> Result<std::net::SocketAddr, policy::Refusal> {
        let target = self.config.policy.target(&self.config, destination);
        if target.is_err() {
            self.counters.refused += 1;
        }
        target
    }
}
