//! Requests while the engine runs, in slirp4netns's words: one JSON object with `execute` and `arguments`, answered by
//! `return` or `error`. An API connection carries one request; the control channel carries any number, one a line.
//!
//!   add_hostfwd {proto, host_addr, host_port, guest_addr, guest_port} -> {id}
//!   list_hostfwd -> {entries}      remove_hostfwd {id} -> {}      counters -> {...}      facts -> {...}

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::table::{Key, Table};
use super::{Engine, Room};
use crate::config::{Protocol, Published};
use crate::ports;
use crate::sys::{socket, stream};

/// A request longer than this is none.
const LONGEST: usize = 64 << 10;
const CONNECTIONS: usize = 32;

pub(crate) struct Control {
    api: Option<OwnedFd>,
    first: Option<OwnedFd>,
    connections: Table<Connection>,
    last_id: u64,
}

struct Connection {
    socket: OwnedFd,
    inbox: Vec<u8>,
    /// Whether more requests may follow.
    lasting: bool,
}

impl Control {
    pub(crate) fn new(api: Option<OwnedFd>, control: Option<OwnedFd>) -> Self {
        Self { api, first: control, connections: Table::new(), last_id: 0 }
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

#[derive(Deserialize)]
struct Request {
    execute: String,
    #[serde(default)]
    arguments: Value,
}

#[derive(Deserialize)]
struct AddPort {
    proto: String,
    /// Podman sends an empty text for "every address".
    #[serde(default)]
    host_addr: String,
    host_port: u16,
    #[serde(default)]
    guest_addr: String,
    guest_port: u16,
}

#[derive(Deserialize)]
struct RemovePort {
    id: u64,
}

impl Engine {
    pub(super) fn register_control(&mut self) -> Result<()> {
        if let Some(api) = &self.control.api {
            self.epoll.add(api, libc::EPOLLIN, Room::Api.alone())?;
        }
        if let Some(first) = self.control.first.take() {
            self.add_connection(first, true)?;
        }
        Ok(())
    }

    pub(super) fn accept_request(&mut self) {
        let Some(Ok(Some((accepted, _)))) = self.control.api.as_ref().map(socket::accept) else { return };
        if self.control.connections.len() < CONNECTIONS {
            let _ = self.add_connection(accepted, false);
        }
    }

    fn add_connection(&mut self, socket: OwnedFd, lasting: bool) -> Result<()> {
        let key = self.control.connections.insert(Connection { socket, inbox: Vec::new(), lasting });
        if let Some(connection) = self.control.connections.get(key) {
            self.epoll.add(&connection.socket, libc::EPOLLIN, Room::Request.number(key))?;
        }
        Ok(())
    }

    pub(super) fn request_event(&mut self, key: Key) {
        let Some(connection) = self.control.connections.entry(key) else { return };
        let mut buffer = [0; 4096];
        let ended = match stream::recv(&connection.socket, &mut buffer, 0) {
            Ok(None) => return,
            Ok(Some(length @ 1..)) => {
                connection.inbox.extend_from_slice(buffer.get(..length).unwrap_or(&[]));
                false
            }
            Ok(Some(0)) | Err(_) => true,
        };
        while let Some(outcome) = self.next_request(key, ended) {
            let reply = match outcome {
                Ok(value) => json!({ "return": value }),
                Err(error) => json!({ "error": { "desc": format!("{error:#}") } }),
            };
            if !self.reply(key, &reply) {
                self.control.connections.remove(key);
                return;
            }
        }
        if ended {
            self.control.connections.remove(key);
        }
    }

    /// Carries out the next whole request of a connection, if there is one.
    fn next_request(&mut self, key: Key, ended: bool) -> Option<Result<Value>> {
        let connection = self.control.connections.entry(key)?;
        let request = take_request(&mut connection.inbox, ended)?;
        Some(request.and_then(|request| self.execute(request)))
    }

    /// Sends a reply; false if the connection is to end.
    fn reply(&mut self, key: Key, reply: &Value) -> bool {
        let Some(connection) = self.control.connections.get(key) else { return false };
        let line = if connection.lasting { format!("{reply}\n") } else { reply.to_string() };
        let sent = stream::send(&connection.socket, line.as_bytes());
        connection.lasting && matches!(sent, Ok(Some(count)) if count == line.len())
    }

    fn execute(&mut self, request: Request) -> Result<Value> {
        match request.execute.as_str() {
            "add_hostfwd" => self.add_port(
                serde_json::from_value(request.arguments).context("bad request: arguments of add_hostfwd")?,
            ),
            "remove_hostfwd" => {
                let arguments: RemovePort = serde_json::from_value(request.arguments)
                    .context("bad request: arguments.id not found")?;
                let found = self.ports.iter().find(|(_, port)| port.id == arguments.id).map(|(key, _)| key);
                self.unpublish(
                    found.with_context(|| format!("bad request: there is no port {}", arguments.id))?,
                )?;
                Ok(json!({}))
            }
            "list_hostfwd" => Ok(json!({ "entries": self.entries() })),
            "facts" => Ok(serde_json::to_value(&self.facts)?),
            "counters" => Ok(serde_json::to_value(&self.counters)?),
            other => bail!("bad request: {other:?} is not known"),
        }
    }

    fn add_port(&mut self, add: AddPort) -> Result<Value> {
        let protocol = match add.proto.as_str() {
            "tcp" | "tcp4" | "tcp6" => Protocol::Tcp,
            "udp" | "udp4" | "udp6" => Protocol::Udp,
            other => bail!("bad request: the protocol {other:?} is not tcp or udp"),
        };
        let any: IpAddr = if add.proto.ends_with('6') { [0_u16; 8].into() } else { [0, 0, 0, 0].into() };
        let host = Some(address(&add.host_addr)?.unwrap_or(any));
        if let Some(guest) = address(&add.guest_addr)?.filter(|guest| !guest.is_unspecified())
            && self.config.address(&guest) != Some(guest)
        {
            bail!("bad request: the container has no address {guest}");
        }
        let wanted =
            Published { protocol, host, host_port: add.host_port, container_port: add.guest_port, count: 1 };
        let ids = self.publish(ports::bind_within_limit(&[wanted])?)?;
        Ok(json!({ "id": ids.first().context("no port was bound")? }))
    }

    fn entries(&self) -> Vec<Value> {
        let entry = |(id, protocol, host, port): (u64, Protocol, std::net::SocketAddr, u16)| {
            json!({
                "id": id,
                "proto": protocol,
                "host_addr": host.ip(),
                "host_port": host.port(),
                "guest_addr": self.config.address(&host.ip()),
                "guest_port": port,
            })
        };
        self.published().into_iter().map(entry).collect()
    }
}

/// Takes the next request from what has arrived; `None` if it may still become one.
fn take_request(inbox: &mut Vec<u8>, ended: bool) -> Option<Result<Request>> {
    if inbox.iter().all(u8::is_ascii_whitespace) {
        return None;
    }
    let mut requests = serde_json::Deserializer::from_slice(inbox).into_iter::<Value>();
    let parsed = requests.next()?;
    let taken = requests.byte_offset();
    match parsed {
        Ok(value) => {
            inbox.drain(..taken);
            Some(serde_json::from_value(value).context("bad request"))
        }
        Err(error) if error.is_eof() && !ended && inbox.len() < LONGEST => None,
        Err(error) => {
            inbox.clear();
            Some(Err(error).context("bad request: it is no JSON"))
        }
    }
}

fn address(text: &str) -> Result<Option<IpAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).with_context(|| format!("bad request: {text:?} is no address"))
}

/// Reads everything that a connection sent and then ended, at once and in two pieces, for those who break it: garbage ends in
/// an error, the bytes are used up, and the pieces change nothing.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn read_requests(bytes: &[u8]) {
    let (mut inbox, mut whole) = (bytes.to_vec(), Vec::new());
    while let Some(request) = take_request(&mut inbox, true) {
        if let Ok(request) = &request {
            let add = serde_json::from_value::<AddPort>(request.arguments.clone());
            let _ = add.map(|add| (address(&add.host_addr).is_ok(), address(&add.guest_addr).is_ok()));
            let _ = serde_json::from_value::<RemovePort>(request.arguments.clone());
        }
        whole.push(request.map(|request| request.execute).ok());
    }
    assert!(inbox.iter().all(u8::is_ascii_whitespace));
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let (mut inbox, mut pieces) = (first.to_vec(), Vec::new());
    while let Some(request) = take_request(&mut inbox, false) {
        pieces.push(request.map(|request| request.execute).ok());
    }
    inbox.extend_from_slice(second);
    while let Some(request) = take_request(&mut inbox, true) {
        pieces.push(request.map(|request| request.execute).ok());
    }
    assert!(inbox.iter().all(u8::is_ascii_whitespace));
    // An error takes along what has arrived, so that only good requests can be compared.
    if bytes.len() < LONGEST && whole.iter().all(Option::is_some) {
        assert_eq!(whole, pieces);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_arrive_in_pieces_and_the_next_one_stays() {
        let mut inbox = br#"{"execute":"cou"#.to_vec();
        assert!(take_request(&mut inbox, false).is_none());
        inbox.extend(br#"nters"} {"execute":"facts"}"#);
        assert_eq!(take_request(&mut inbox, false).unwrap().unwrap().execute, "counters");
        assert_eq!(take_request(&mut inbox, false).unwrap().unwrap().execute, "facts");
        assert!(take_request(&mut inbox, true).is_none());
    }
}
