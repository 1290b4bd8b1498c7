//! `--network user`: the engine of kelp-net in a helper of the monitor's. It is started while the container's
//! child waits for its maps and works while the child makes the root; before the program starts, it has said
//! that the network is up. It ends with the monitor or with the container.

use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};
use kelp_net::attach::{Target, attach};
use kelp_net::config::{Config, Published};
use kelp_net::engine::{Channels, run};
use kelp_net::ports;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::network::peer::{self, Ends};
use crate::spec::request::Backend;
use crate::stage::{self, Number};
use crate::sys::{memory, process};

/// `argv[0]` of the helper.
pub const NAME: &str = "kelp-network";

/// How many threads the helper and its own helper have.
pub const THREADS: u64 = 2;

/// How long an engine that is told to stop may carry what is on its way.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    config: Config,
    backend: Backend,
    user: Number,
    network: Number,
    stop: Number,
    word: Number,
    /// Where it says which ports the kernel chose, if that is wanted.
    ports: Option<Number>,
}

/// A started engine; it is ended with the value.
#[derive(Debug)]
pub struct Engine {
    helper: Child,
    /// Closed by either side, it tells the other.
    stop: UnixStream,
    word: Option<OwnedFd>,
    ports: Option<OwnedFd>,
}

impl Engine {
    /// Starts the engine for the namespaces of the process `pid`, which can still be looked at.
    pub fn start(config: &Config, backend: Backend, pid: i32) -> Result<Self> {
        peer::installed(backend)?;
        let open = |name: &str| {
            File::open(format!("/proc/{pid}/ns/{name}")).with_context(|| format!("open the {name} namespace"))
        };
        let (user, network) = (open("user")?, open("net")?);
        let (hear, word) = pipe()?;
        let (stop, told) = UnixStream::pair()?;
        let left_open = config.published.iter().any(|one| one.host_port == 0);
        let (ports, tell_ports) =
            if left_open { pipe().map(|(hear, tell)| (Some(hear), Some(tell)))? } else { (None, None) };
        let request = Request {
            config: config.clone(),
            backend,
            user: user.as_raw_fd(),
            network: network.as_raw_fd(),
            stop: told.as_raw_fd(),
            word: word.as_raw_fd(),
            ports: tell_ports.as_ref().map(AsRawFd::as_raw_fd),
        };
        let mut kept = vec![user.as_fd(), network.as_fd(), told.as_fd(), word.as_fd()];
        kept.extend(tell_ports.as_ref().map(AsFd::as_fd));
        let helper = stage::start(NAME, &request, &kept)?;
        Ok(Self { helper, stop, word: Some(hear), ports })
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.helper.id()
    }

    /// Waits until the network is up; the published ports, if the choice of any was left to the kernel.
    pub fn wait(&mut self) -> Result<Option<Vec<Published>>> {
        let Some(word) = self.word.take() else { return Ok(None) };
        let mut ports = Vec::new();
        if let Some(from) = self.ports.take() {
            File::from(from).read_to_end(&mut ports)?;
        }
        let up: Result<()> = stage::hear(word).map_err(|error| {
            Error::host(format!("cannot bring the network up: {error:#}"))
                .hint("--network none or --network host goes without; see `kelp doctor`")
                .into()
        });
        up?;
        if ports.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&ports)?)) }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

impl Drop for Engine {
    /// It is given a second for what the container wrote last.
    fn drop(&mut self) {
        let _ = self.stop.shutdown(Shutdown::Write);
        let _ = self.stop.set_read_timeout(Some(LAST_WORDS));
        let _ = self.stop.read(&mut [0]);
        let _ = self.helper.kill();
        let _ = self.helper.wait();
    }
}

/// Only memory is at stake.
fn release_code() {
    let _ = memory::release_code();
}

/// The helper.
pub fn serve() -> Result<()> {
    let request: Request = stage::request()?;
    let word = stage::take(request.word)?;
    let stop = stage::take(request.stop)?;
    let tell_ports = request.ports.map(stage::take).transpose()?;
    let target = Target { user: Some(stage::take(request.user)?), network: stage::take(request.network)? };
    if request.backend != Backend::Kelp {
        return peer::serve(request.backend, &request.config, target, Ends { word, stop, ports: tell_ports });
    }
    process::parent_death_signal(libc::SIGKILL)?;
    let made = ports::bind(&request.config.published).and_then(|bound| {
        tell_ports.map_or(Ok(()), |to| tell(to, &ports::given(&request.config.published, &bound)))?;
        Ok((attach(&target, &request.config, Some(release_code))?, bound))
    });
    drop(target);
    match made {
        Ok((attached, bound)) => {
            let (stop, ready) = (Some(stop), Some(word));
            let channels = Channels { stop, ready, settled: Some(release_code), ..Channels::default() };
            run(attached, bound, request.config, channels)
        }
        Err(error) => {
            stage::tell(word, &Err(error));
            Ok(())
        }
    }
}

/// Says which ports the kernel chose.
pub(super) fn tell(to: OwnedFd, ports: &[Published]) -> Result<()> {
    Ok(serde_json::to_writer(File::from(to), ports)?)
}
