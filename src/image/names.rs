//! Host names to addresses without glibc's `getaddrinfo`, which a static program can only use where shared
//! objects of the very same glibc are installed: `/etc/hosts`, then the servers of `/etc/resolv.conf` over
//! UDP, and TCP where an answer is cut (RFC 1035). Answers are taken from the asked server only, with the
//! asked question and a random number.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const PATIENCE: Duration = Duration::from_secs(3);
const ROUNDS: usize = 2;

/// The addresses of `host`, IPv4 first.
pub fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![address]);
    }
    if host == "localhost" || host.ends_with(".localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let known = in_hosts(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), host);
    if !known.is_empty() {
        return Ok(known);
    }
    let (servers, domains) = servers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    let mut names = vec![host.to_owned()];
    if !host.contains('.') {
        names.splice(0..0, domains.iter().map(|domain| format!("{host}.{domain}")));
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("no address for {host}"));
    for name in names {
        match ask_all(&servers, name.trim_end_matches('.')) {
            Ok(found) if !found.is_empty() => return Ok(found),
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or(line));
    let found = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(host)).then_some(address)
    });
    let mut found: Vec<IpAddr> = found.collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

fn servers(text: &str) -> (Vec<IpAddr>, Vec<String>) {
    let (mut servers, mut domains) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok())),
            Some("search" | "domain") => domains = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    if servers.is_empty() {
        servers.push(Ipv4Addr::LOCALHOST.into());
    }
    (servers, domains)
}

fn ask_all(servers: &[IpAddr], name: &str) -> io::Result<Vec<IpAddr>> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
        let both = ask(*server, name, TYPE_A).and_then(|mut four| {
            // A server without IPv6 answers is no reason to fail when there is an address.
            match ask(*server, name, TYPE_AAAA) {
                Ok(six) => four.extend(six),
                Err(error) if four.is_empty() => return Err(error),
                Err(_) => {}
            }
            Ok(four)
        });
        match both {
            Ok(found) => return Ok(found),
            Err(error) => last = error,
        }
    }
    Err(io::Error::new(last.kind(), format!("cannot ask for the address of {name}: {last}")))
}

fn ask(server: IpAddr, name: &str, kind: u16) -> io::Result<Vec<IpAddr>> {
    let mut number = [0; 2];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut number)?;
    let question = question(name, kind).ok_or(io::ErrorKind::InvalidInput)?;
    let query = [&number[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &question].concat();
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((server, 53))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&query)?;
    let mut answer = [0; 1500];
    loop {
        let length = socket.recv(&mut answer)?;
        let answer = &answer[..length];
        if answer.len() < 12 || answer[..2] != number || answer[2] & 0x80 == 0 {
            continue;
        }
        let cut = answer[2] & 2 != 0;
        return if cut { ask_by_tcp(server, &query, &question, kind) } else { read(answer, &question, kind) };
    }
}

fn ask_by_tcp(server: IpAddr, query: &[u8], question: &[u8], kind: u16) -> io::Result<Vec<IpAddr>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(server, 53), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?.to_be_bytes();
    stream.write_all(&[&length, query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    if answer.get(..2) != query.get(..2) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    read(&answer, question, kind)
}

fn question(name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    (bytes.len() < 260).then_some(bytes)
}

/// The addresses in an answer. A name that does not exist has none; other refusals are errors.
fn read(answer: &[u8], question: &[u8], kind: u16) -> io::Result<Vec<IpAddr>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the name server's answer is malformed");
    match answer.get(3).map(|flags| flags & 15) {
        Some(0 | 3) => {}
        Some(code) => return Err(io::Error::other(format!("the name server refuses (code {code})"))),
        None => return Err(malformed()),
    }
    let asked = answer.get(12..12 + question.len()).ok_or_else(malformed)?;
    if !asked.eq_ignore_ascii_case(question) {
        return Err(malformed());
    }
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    let (mut at, mut found) = (12 + question.len(), Vec::new());
    for _ in 0..count {
        at = after_name(answer, at).ok_or_else(malformed)?;
        let head = answer.get(at..at + 10).ok_or_else(malformed)?;
        let length = usize::from(u16::from_be_bytes([head[8], head[9]]));
        let value = answer.get(at + 10..at + 10 + length).ok_or_else(malformed)?;
        if u16::from_be_bytes([head[0], head[1]]) == kind {
            match *value {
                [a, b, c, d] => found.push(Ipv4Addr::new(a, b, c, d).into()),
                _ => found
                    .extend(<[u8; 16]>::try_from(value).ok().map(|six| IpAddr::from(Ipv6Addr::from(six)))),
            }
        }
        at += 10 + length;
    }
    Ok(found)
}

fn after_name(answer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *answer.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += usize::from(length) + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_resolv_conf_are_read() {
        let hosts = "127.0.0.1 localhost\n::1 box\n10.0.0.9 a.example Box # box2\n";
        assert_eq!(in_hosts(hosts, "box"), ["10.0.0.9".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert!(in_hosts(hosts, "box2").is_empty());
        let (found, domains) = servers("search a.org b.org\nnameserver 9.9.9.9\nnameserver x\n");
        assert_eq!((found.len(), domains.len()), (1, 2));
    }

    #[test]
    fn an_answer_is_read_and_a_forged_one_is_not() {
        let asked = question("a.org", TYPE_A).unwrap();
        let head = [0, 7, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0];
        let alias = [0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12];
        let address = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1];
        let answer = [&head[..], &asked, &alias, &address].concat();
        assert_eq!(read(&answer, &asked, TYPE_A).unwrap(), [IpAddr::from([192, 0, 2, 1])]);
        assert!(read(&answer, &question("b.org", TYPE_A).unwrap(), TYPE_A).is_err());
        for length in 0..answer.len() {
            assert!(read(&answer[..length], &asked, TYPE_A).is_err(), "{length}");
        }
    }
}
