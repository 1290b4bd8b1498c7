//! A confined process tries each thing that the engine must never be able to do, and the few that it must. It has no test
//! harness, because confinement is for a process with one thread and can't be undone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, ExitCode};

use kelp_net::confine::{Role, confine};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

type Attempt = (&'static str, fn() -> io::Result<()>);

const FORBIDDEN: &[Attempt] = &[
    ("read a file of the host", || File::open("/etc/passwd").map(drop)),
    ("read its own state", || File::open("/proc/self/status").map(drop)),
    ("list the root", || std::fs::read_dir("/").map(drop)),
    ("make a file", || OpenOptions::new().write(true).create_new(true).open("/engine-was-here").map(drop)),
    ("make a folder", || std::fs::create_dir("/engine-was-here")),
    ("remove a file", || std::fs::remove_file("/etc/passwd")),
    ("run a program", || Command::new("/bin/true").status().map(drop)),
    ("start a thread", || std::thread::Builder::new().spawn(|| ()).map(drop)),
    ("connect to a Unix socket", || UnixStream::connect("/run/dbus/system_bus_socket").map(drop)),
    ("listen on a Unix socket", || UnixListener::bind("/engine").map(drop)),
    ("make a Unix socket without a name", || UnixDatagram::unbound().map(drop)),
    ("open a netlink socket", || open_socket(AddressFamily::Netlink, SockType::Raw)),
    ("open a packet socket", || open_socket(AddressFamily::Packet, SockType::Raw)),
    ("open a raw socket", || open_socket(AddressFamily::Inet, SockType::Raw)),
    ("open a VM socket", || open_socket(AddressFamily::Vsock, SockType::Stream)),
    ("take new namespaces", || Ok(unshare(CloneFlags::CLONE_NEWUSER)?)),
    ("mount", || {
        Ok(nix::mount::mount(None::<&str>, "/", Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)?)
    }),
    ("change its root", || Ok(nix::unistd::chroot("/")?)),
    ("change its user", || Ok(nix::unistd::setuid(nix::unistd::Uid::from_raw(0))?)),
    ("signal its parent", || Ok(nix::sys::signal::kill(nix::unistd::getppid(), None)?)),
    ("become dumpable", || Ok(nix::sys::prctl::set_dumpable(true)?)),
    ("raise its limits", || {
        Ok(nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 1, 1)?)
    }),
    ("bind a reserved port", || TcpListener::bind("127.0.0.1:1").map(drop)),
];

fn open_socket(family: AddressFamily, kind: SockType) -> io::Result<()> {
    Ok(socket(family, kind, SockFlag::empty(), None).map(drop)?)
}

const ALLOWED: &[Attempt] = &[
    ("exchange bytes over TCP", || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        client.write_all(b"hello")?;
        let mut heard = [0; 5];
        server.read_exact(&mut heard)
    }),
    ("send a datagram", || {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(socket.local_addr()?)?;
        socket.send(b"hello").map(drop)
    }),
    ("grow its memory", || {
        let grown = vec![7_u8; 64 << 20];
        if grown.iter().all(|byte| *byte == 7) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::OutOfMemory))
        }
    }),
];

fn main() -> ExitCode {
    let asked = |word: &str| std::env::args().any(|argument| argument == word);
    if asked("--list") {
        // nextest leaves out what is listed among the ignored ones too.
        if !asked("--ignored") {
            println!("a_confined_engine_can_do_nothing_but_carry_bytes: test");
        }
        return ExitCode::SUCCESS;
    }
    let weaker = confine(Role::Engine).expect("confinement succeeds on a host that has user namespaces");
    let mut failed = weaker.is_some();
    println!("weaker than it should be: {weaker:?}");
    for (what, attempt) in FORBIDDEN {
        if attempt().is_ok() {
            println!("a confined engine could {what}");
            failed = true;
        }
    }
    for (what, attempt) in ALLOWED {
        if let Err(error) = attempt() {
            println!("a confined engine could not {what}: {error}");
            failed = true;
        }
    }
    println!("{} things refused, {} allowed", FORBIDDEN.len(), ALLOWED.len());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
