//! The name server of the container. Queries are parsed, never relayed raw: what is not one plain question goes nowhere, so
//! that a resolver on the host's loopback is reached by questions only. UDP questions go out by UDP and TCP ones by TCP, to
//! the servers of resolv.conf in turn; answers are kept as long as they say. The host's own names are answered here.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::device::PAYLOAD;
use super::table::{Key, Table};
use super::{Engine, Room};
use crate::config::Resolver;
use crate::sys::{process, socket, stream};
use crate::wire::frame::Ends;
use crate::wire::{build, dns};

/// How long a server may take before the next is asked.
const PATIENCE: Duration = Duration::from_millis(1600);
/// How long a client's connection may be silent.
const IDLE: Duration = Duration::from_secs(20);
const ATTEMPTS: usize = 4;
const QUERIES: usize = 512;
const CLIENTS: usize = 64;
const KEPT: usize = 2048;
const LONGEST: u32 = 3600;

pub(crate) struct Names {
    servers: Vec<SocketAddr>,
    file: Option<Followed>,
    queries: Table<Query>,
    clients: Table<Client>,
    expected: HashMap<Ends, Instant>,
    kept: HashMap<Vec<u8>, Kept>,
}

/// resolv.conf, by the directory that it is really in, which stays open when the root is gone. It is read again for each
/// question, which costs two microseconds: to close an inotify descriptor takes the kernel tens of milliseconds, which the
/// end of every container would wait for, and a network file system reports nothing.
struct Followed {
    directory: OwnedFd,
    name: CString,
}

/// A question on its way.
struct Query {
    asker: Asker,
    /// As the asker sent it.
    message: Vec<u8>,
    id: [u8; 2],
    socket: OwnedFd,
    attempt: usize,
    since: Instant,
    /// What TCP has brought so far, and has yet to take.
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Datagram(Ends),
    Client(Key),
}

/// A connection to the name server.
struct Client {
    ends: Ends,
    socket: OwnedFd,
    inbox: Vec<u8>,
    touched: Instant,
}

struct Kept {
    message: Vec<u8>,
    places: Vec<usize>,
    since: Instant,
    seconds: u32,
}

impl Names {
    pub(crate) fn open(resolver: &Resolver) -> Result<Self> {
        let mut names = Self {
            servers: Vec::new(),
            file: None,
            queries: Table::new(),
            clients: Table::new(),
            expected: HashMap::new(),
            kept: HashMap::new(),
        };
        match resolver {
            Resolver::Servers(servers) => names.servers = servers.clone(),
            Resolver::File(path) => {
                // A host without resolv.conf has a network all the same.
                if let Ok(real) = path.canonicalize() {
                    names.file =
                        Some(follow(&real).with_context(|| format!("cannot follow {}", real.display()))?);
                }
            }
        }
        Ok(names)
    }

    /// Reads resolv.conf again. A file that can't be read leaves the servers as they were.
    fn reload(&mut self) {
        let Some(file) = &self.file else { return };
        let mut buffer = [0; 16384];
        let Ok(opened) = process::open_at(&file.directory, &file.name) else { return };
        let Ok(Some(length)) = stream::read(&opened, &mut buffer) else { return };
        let servers = parse_servers(&String::from_utf8_lossy(buffer.get(..length).unwrap_or(&[])));
        if servers != self.servers {
            self.servers = servers;
            self.kept.clear();
        }
    }

    fn recall(&self, stream: bool, message: &[u8], now: Instant) -> Option<Vec<u8>> {
        let kept = self.kept.get(&memory_key(stream, message)?)?;
        let age = u32::try_from(now.saturating_duration_since(kept.since).as_secs()).unwrap_or(u32::MAX);
        if age >= kept.seconds {
            return None;
        }
        let mut answer = kept.message.clone();
        answer.get_mut(..2)?.copy_from_slice(message.get(..2)?);
        dns::age(&mut answer, &kept.places, age);
        Some(answer)
    }

    fn keep(&mut self, stream: bool, question: &[u8], answer: &[u8], now: Instant) {
        let Some((seconds, places)) = dns::lifetimes(answer).filter(|(seconds, _)| *seconds > 0) else {
            return;
        };
        let Some(key) = memory_key(stream, question) else { return };
        if self.kept.len() >= KEPT {
            self.kept.retain(|_, kept| kept.since + Duration::from_secs(kept.seconds.into()) > now);
        }
        if self.kept.len() < KEPT {
            let message = answer.to_vec();
            self.kept.insert(key, Kept { message, places, since: now, seconds: seconds.min(LONGEST) });
        }
    }
}

/// Two queries that differ in nothing but their id have the same answer.
fn memory_key(stream: bool, message: &[u8]) -> Option<Vec<u8>> {
    Some([&[u8::from(stream)], message.get(2..)?].concat())
}

fn follow(path: &std::path::Path) -> Result<Followed> {
    let directory = path.parent().context("it is no file")?;
    let name = CString::new(path.file_name().context("it has no name")?.as_bytes())?;
    Ok(Followed { directory: std::fs::File::open(directory)?.into(), name })
}

fn parse_servers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| -> Option<SocketAddr> {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        let address = address.split('%').next()?.parse::<IpAddr>().ok()?;
        Some(SocketAddr::new(address, 53))
    };
    text.lines().filter_map(address).take(3).collect()
}

impl Engine {
    /// A datagram to the name server's port.
    pub(super) fn name_datagram(&mut self, ends: Ends, message: &[u8]) {
        self.ask(Asker::Datagram(ends), message);
    }

    fn ask(&mut self, asker: Asker, message: &[u8]) {
        let Some(question) = dns::question(message) else {
            self.counters.malformed += 1;
            return;
        };
        self.counters.queries += 1;
        self.names.reload();
        let stream = matches!(asker, Asker::Client(_));
        if matches!(question.name.as_str(), "host.docker.internal" | "host.containers.internal") {
            let v4 = self.config.v4.map(|net| net.gateway.into());
            let v6 = self.config.v6.map(|net| net.gateway.into());
            let addresses: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
            if let Some(answer) = dns::answer(message, &question, &addresses) {
                self.tell(asker, &answer);
            }
        } else if let Some(answer) = self.names.recall(stream, message, self.now) {
            self.tell(asker, &answer);
        } else if self.names.queries.len() >= QUERIES || self.send_query(asker, message, 0).is_none() {
            self.tell_failure(asker, message);
        }
    }

    /// Asks the server whose turn it is. `None` if no server could be asked.
    fn send_query(&mut self, asker: Asker, message: &[u8], first: usize) -> Option<()> {
        for attempt in first..ATTEMPTS {
            let server = *self.names.servers.get(attempt % self.names.servers.len().max(1))?;
            let Ok(query) = open_query(asker, message, &server, attempt, self.now) else { continue };
            let key = self.names.queries.insert(query);
            let query = self.names.queries.get(key)?;
            let (events, number) = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLET, Room::Query.number(key));
            let events = if query.outbox.is_empty() { libc::EPOLLIN } else { events };
            if self.epoll.add(&query.socket, events, number).is_err() {
                self.names.queries.remove(key);
                return None;
            }
            self.timers.add(self.now + PATIENCE, number);
            return Some(());
        }
        None
    }

    pub(super) fn query_event(&mut self, key: Key) {
        let Some(query) = self.names.queries.entry(key) else { return };
        match query.answer() {
            Ok(None) => {}
            Err(_) => self.next_server(key),
            Ok(Some(mut answer)) => {
                let Some(query) = self.names.queries.remove(key) else { return };
                if let (Some(to), Some(from)) = (answer.get_mut(..2), query.message.get(..2)) {
                    to.copy_from_slice(from);
                }
                let stream = matches!(query.asker, Asker::Client(_));
                self.names.keep(stream, &query.message, &answer, self.now);
                self.tell(query.asker, &answer);
            }
        }
    }

    pub(super) fn query_deadline(&mut self, key: Key) {
        if self.names.queries.get(key).is_some_and(|query| self.now - query.since >= PATIENCE) {
            self.next_server(key);
        }
    }

    fn next_server(&mut self, key: Key) {
        let Some(query) = self.names.queries.remove(key) else { return };
        if self.send_query(query.asker, &query.message, query.attempt + 1).is_none() {
            self.tell_failure(query.asker, &query.message);
        }
    }

    fn tell_failure(&mut self, asker: Asker, message: &[u8]) {
        if let Some(failure) = dns::failure(message) {
            self.tell(asker, &failure);
        }
    }

    fn tell(&mut self, asker: Asker, answer: &[u8]) {
        match asker {
            Asker::Datagram(ends) => {
                let head = build::udp_head(self.facts.mac, ends.destination, ends.source, answer.len());
                if let Some(head) = head.filter(|head| head.len() <= PAYLOAD) {
                    self.write_device(&[head.as_slice(), answer].concat());
                }
            }
            Asker::Client(key) => {
                let Some(client) = self.names.clients.get(key) else { return };
                let length = u16::try_from(answer.len()).unwrap_or(0).to_be_bytes();
                let whole = [length.as_slice(), answer].concat();
                // A client that does not read its answers is let go.
                if !matches!(stream::send(&client.socket, &whole), Ok(Some(sent)) if sent == whole.len()) {
                    self.end_name_client(key);
                }
            }
        }
    }

    /// A SYN to the name server. False if it has too many clients.
    pub(super) fn expect_name_client(&mut self, ends: Ends) -> bool {
        if self.names.clients.len() + self.names.expected.len() >= CLIENTS {
            self.counters.overflowed += 1;
            return false;
        }
        self.names.expected.insert(ends, self.now);
        self.timers.add(self.now + IDLE, Room::Device.alone());
        true
    }

    /// Forgets clients that were announced and did not come.
    pub(super) fn forget_lapsed_name_clients(&mut self) {
        let now = self.now;
        let lapsed = |since: &Instant| now.saturating_duration_since(*since) >= IDLE;
        for (ends, _) in self.names.expected.extract_if(|_, since| lapsed(since)).collect::<Vec<_>>() {
            self.close_mirror(&ends);
        }
    }

    pub(super) fn is_expected_name_client(&self, ends: &Ends) -> bool {
        self.names.expected.contains_key(ends)
    }

    pub(super) fn name_client(&mut self, ends: Ends, accepted: OwnedFd) {
        self.names.expected.remove(&ends);
        // What was answered is to arrive, whoever closes first.
        let _ = socket::end_on_close(&accepted);
        let client = Client { ends, socket: accepted, inbox: Vec::new(), touched: self.now };
        let key = self.names.clients.insert(client);
        let number = Room::NameClient.number(key);
        if let Some(client) = self.names.clients.get(key)
            && self.epoll.add(&client.socket, libc::EPOLLIN, number).is_err()
        {
            self.end_name_client(key);
        }
        self.timers.add(self.now + IDLE, number);
    }

    fn end_name_client(&mut self, key: Key) {
        if let Some(client) = self.names.clients.remove(key) {
            self.close_mirror(&client.ends);
        }
    }

    pub(super) fn name_client_event(&mut self, key: Key) {
        let Some(client) = self.names.clients.entry(key) else { return };
        client.touched = self.now;
        let mut buffer = [0; 4096];
        match stream::recv(&client.socket, &mut buffer, 0) {
            Ok(None) => return,
            Ok(Some(length @ 1..)) => client.inbox.extend_from_slice(buffer.get(..length).unwrap_or(&[])),
            Ok(Some(0)) | Err(_) => {
                self.end_name_client(key);
                return;
            }
        }
        let mut questions = Vec::new();
        while let Some(message) = take_message(&mut client.inbox) {
            questions.push(message);
        }
        for message in questions {
            self.ask(Asker::Client(key), &message);
        }
    }

    pub(super) fn name_client_deadline(&mut self, key: Key) {
        let Some(client) = self.names.clients.get(key) else { return };
        let deadline = client.touched + IDLE;
        if deadline > self.now {
            return self.timers.add(deadline, Room::NameClient.number(key));
        }
        self.end_name_client(key);
    }
}

/// Takes one message with its length in front off the stream, if it is all there.
fn take_message(inbox: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes(*inbox.first_chunk()?));
    let message = inbox.get(2..2 + length)?.to_vec();
    inbox.drain(..2 + length);
    Some(message)
}

fn open_query(
    asker: Asker,
    message: &[u8],
    server: &SocketAddr,
    attempt: usize,
    now: Instant,
) -> io::Result<Query> {
    let mut id = [0; 2];
    process::random(&mut id);
    let mut sent = message.to_vec();
    if let Some(place) = sent.first_chunk_mut() {
        *place = id;
    }
    let over_tcp = matches!(asker, Asker::Client(_));
    let made = socket::socket(&server.ip(), if over_tcp { libc::SOCK_STREAM } else { libc::SOCK_DGRAM })?;
    socket::connect(&made, server)?;
    let mut outbox = Vec::new();
    if over_tcp {
        let length = u16::try_from(sent.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        outbox = [length.to_be_bytes().as_slice(), &sent].concat();
    } else {
        stream::send(&made, &sent)?;
    }
    let message = message.to_vec();
    Ok(Query { asker, message, id, socket: made, attempt, since: now, inbox: Vec::new(), outbox })
}

impl Query {
    /// Carries the exchange on; the answer once it is there. Strays are passed over, for they may be forged.
    fn answer(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = [0; 65536];
        if matches!(self.asker, Asker::Datagram(_)) {
            while let Some(length) = stream::recv(&self.socket, &mut buffer, 0)? {
                let answer = buffer.get(..length).unwrap_or(&[]);
                if self.is_answered_by(answer) {
                    return Ok(Some(answer.to_vec()));
                }
            }
            return Ok(None);
        }
        while !self.outbox.is_empty() {
            match stream::send(&self.socket, &self.outbox) {
                Ok(Some(sent)) => drop(self.outbox.drain(..sent)),
                Ok(None) => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        while let Some(length) = stream::recv(&self.socket, &mut buffer, 0)? {
            self.inbox.extend_from_slice(buffer.get(..length).unwrap_or(&[]));
            if let Some(answer) = take_message(&mut self.inbox) {
                return Ok(Some(answer).filter(|answer| self.is_answered_by(answer)));
            }
            if length == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
        Ok(None)
    }

    fn is_answered_by(&self, answer: &[u8]) -> bool {
        let end = dns::question(&self.message).map_or(0, |question| question.end);
        answer.get(..2) == Some(&self.id)
            && answer.get(2).is_some_and(|flags| flags & 0x80 != 0)
            && answer.get(12..end).is_some_and(|asked| Some(asked) == self.message.get(12..end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_servers_of_resolv_conf_are_used() {
        let text = "# mine\nsearch example\nnameserver 127.0.0.53\n nameserver fe80::1%eth0\nnameserver bad\n\
                    nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions edns0\n";
        let servers: Vec<String> = parse_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["127.0.0.53:53", "[fe80::1]:53", "192.0.2.1:53"]);
    }

    #[test]
    fn messages_of_a_stream_are_taken_whole_or_not_at_all() {
        let mut inbox = vec![0, 2, 7];
        assert_eq!(take_message(&mut inbox), None);
        inbox.extend([8, 0, 0, 0]);
        assert_eq!(take_message(&mut inbox), Some(vec![7, 8]));
        assert_eq!(take_message(&mut inbox), Some(vec![]));
        assert_eq!(inbox, [0]);
    }
}
