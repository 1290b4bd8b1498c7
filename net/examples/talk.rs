//! The load that the benches measure with: short exchanges over TCP, and many connections that do nothing. It knows nothing
//! of what carries them.
//!
//!   talk serve ADDRESS           echoes what it gets, one thread a connection
//!   talk connect ADDRESS COUNT   connect, 64 bytes there and back, close: connections a second
//!   talk turns ADDRESS COUNT     64 bytes there and back on one connection: microseconds a turn
//!   talk hold ADDRESS COUNT      opens connections that each talk twice, prints `held`, and keeps them until its input ends

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

const MESSAGE: usize = 64;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", address] => serve(address),
        ["connect", address, count] => connect(address, parse(count)),
        ["turns", address, count] => turns(address, parse(count)),
        ["hold", address, count] => hold(address, parse(count)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "usage: talk serve|connect|turns|hold ADDRESS [COUNT]",
        )),
    }
}

fn parse(count: &str) -> u32 {
    count.parse().expect("COUNT is a number")
}

fn serve(address: &str) -> io::Result<()> {
    let server = TcpListener::bind(address)?;
    for stream in server.incoming() {
        let mut stream = stream?;
        std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
            let mut buffer = [0; 4096];
            stream.set_nodelay(true).ok();
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
        })?;
    }
    Ok(())
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [7; MESSAGE];
    stream.write_all(&buffer)?;
    stream.read_exact(&mut buffer)
}

fn open(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn connect(address: &str, count: u32) -> io::Result<()> {
    let start = Instant::now();
    for _ in 0..count {
        exchange(&mut open(address)?)?;
    }
    println!("{:.0}", f64::from(count) / start.elapsed().as_secs_f64());
    Ok(())
}

fn turns(address: &str, count: u32) -> io::Result<()> {
    let mut stream = open(address)?;
    let start = Instant::now();
    for _ in 0..count {
        exchange(&mut stream)?;
    }
    println!("{:.1}", start.elapsed().as_secs_f64() * 1e6 / f64::from(count));
    Ok(())
}

fn hold(address: &str, count: u32) -> io::Result<()> {
    let mut kept = Vec::new();
    for _ in 0..count {
        let mut stream = open(address)?;
        exchange(&mut stream)?;
        kept.push(stream);
    }
    for stream in &mut kept {
        exchange(stream)?;
    }
    println!("held");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
