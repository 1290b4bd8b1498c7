//! How a container is watched: restart policy, health check, log driver, as docker words them. Plain data with
//! its grammar; the monitor acts on it.

use std::ffi::OsString;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::units::Bytes;

/// One of the three streams of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Stdin,
    Stdout,
    Stderr,
}

impl FromStr for Stream {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "stdin" => Ok(Self::Stdin),
            "stdout" => Ok(Self::Stdout),
            "stderr" => Ok(Self::Stderr),
            _ => {
                Err(Error::usage(format!("--attach {text}: valid streams are STDIN, STDOUT and STDERR"))
                    .into())
            }
        }
    }
}

/// The interval of a health check that nobody but the user begins: docker's longest (nanoseconds in 63 bits).
pub const NEVER: Duration = Duration::from_nanos(i64::MAX as u64);

/// `--restart`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    #[default]
    No,
    /// After an exit status other than 0, at most so often; 0 is without limit.
    OnFailure(u32),
    Always,
    /// Always, but not after a `stop`, also not after a reboot.
    UnlessStopped,
}

impl Restart {
    /// Whether a container that ended with `status` is started again, having been so `count` times.
    pub fn after(self, status: i32, count: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => status != 0 && (most == 0 || count < most),
            Self::Always | Self::UnlessStopped => true,
        }
    }
}

impl Restart {
    /// Whether a container that has run is started again when the machine has come up: `status` is what it ended with,
    /// and `stopped` says that a user has ended it.
    pub fn after_boot(self, status: i32, stopped: bool) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(_) => status != 0 && !stopped,
            Self::Always => true,
            Self::UnlessStopped => !stopped,
        }
    }

    /// Docker's word, without a count.
    pub fn word(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure(_) => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }
}

impl FromStr for Restart {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: &str| Err(Error::usage(format!("--restart {text}: {why}")).into());
        match text.split_once(':').unwrap_or((text, "")) {
            ("no" | "", "") => Ok(Self::No),
            ("always", "") => Ok(Self::Always),
            ("unless-stopped", "") => Ok(Self::UnlessStopped),
            ("on-failure", "") => Ok(Self::OnFailure(0)),
            ("on-failure", count) => match count.parse() {
                Ok(count) => Ok(Self::OnFailure(count)),
                Err(_) => refused("the maximum retry count must be a number"),
            },
            _ => refused("no, on-failure[:COUNT], always or unless-stopped is expected"),
        }
    }
}

/// The wait before a container is started for the `count`th time again: docker's, from 100 ms to a minute.
pub fn back_off(count: u32) -> Duration {
    let doubled = Duration::from_millis(100).saturating_mul(1u32 << count.min(10));
    doubled.min(Duration::from_secs(60))
}

/// A container that ran this long starts its back-off anew.
pub const STEADY: Duration = Duration::from_secs(10);

/// `--health-*`: what is said, over what the image says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthChoice {
    pub test: Option<HealthTest>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub start_period: Option<Duration>,
    pub start_interval: Option<Duration>,
    pub retries: Option<u32>,
}

impl HealthChoice {
    /// The check that comes out; none without a test.
    pub fn over(&self, image: Option<&Health>) -> Option<Health> {
        let test = self.test.clone().or(image.map(|image| image.test.clone()))?;
        let of_image = image.cloned().unwrap_or_default();
        (test != HealthTest::None).then(|| Health {
            test,
            interval: self.interval.unwrap_or(of_image.interval),
            timeout: self.timeout.unwrap_or(of_image.timeout),
            start_period: self.start_period.unwrap_or(of_image.start_period),
            start_interval: self.start_interval.unwrap_or(of_image.start_interval),
            retries: self.retries.unwrap_or(of_image.retries),
        })
    }
}

/// `--health-on-failure`: what is done with a container that has become unhealthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnFailure {
    #[default]
    None,
    Kill,
    Restart,
    Stop,
}

impl FromStr for OnFailure {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Self::None),
            "kill" => Ok(Self::Kill),
            "restart" => Ok(Self::Restart),
            "stop" => Ok(Self::Stop),
            _ => Err(Error::usage(format!("--health-on-failure {text}: it is not known"))
                .hint("none, kill, restart and stop are")
                .into()),
        }
    }
}

/// A health check; the defaults are docker's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub test: HealthTest,
    pub interval: Duration,
    pub timeout: Duration,
    pub start_period: Duration,
    pub start_interval: Duration,
    pub retries: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthTest {
    /// `--no-healthcheck`: not even the image's.
    None,
    /// Words as they are.
    Exec(Vec<String>),
    /// Given to `/bin/sh -c`.
    Shell(String),
}

impl HealthTest {
    /// Docker's list: `NONE`, `CMD` and words, `CMD-SHELL` and a text; words alone are podman's. `None` is nothing said.
    pub fn of(words: &[String]) -> Option<Self> {
        match words.split_first()? {
            (head, _) if head == "NONE" => Some(Self::None),
            (head, rest) if head == "CMD" => Some(Self::Exec(rest.to_vec())),
            (head, rest) if head == "CMD-SHELL" => Some(Self::Shell(rest.join(" "))),
            _ => Some(Self::Exec(words.to_vec())),
        }
    }

    /// The same list.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::None => vec!["NONE".to_owned()],
            Self::Exec(words) => [&["CMD".to_owned()], words.as_slice()].concat(),
            Self::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
        }
    }
}

impl Health {
    /// What is run.
    pub fn command(&self) -> Vec<OsString> {
        match &self.test {
            HealthTest::None => Vec::new(),
            HealthTest::Exec(words) => words.iter().map(OsString::from).collect(),
            HealthTest::Shell(text) => ["/bin/sh", "-c", text].map(OsString::from).to_vec(),
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            test: HealthTest::None,
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            start_period: Duration::ZERO,
            start_interval: Duration::from_secs(5),
            retries: 3,
        }
    }
}

/// `--log-driver` and `--log-opt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDriver {
    pub format: LogFormat,
    /// A file that has grown to this is put aside; no limit if there is none.
    pub max_size: Option<Bytes>,
    /// How many files there are at most, the present one included.
    pub max_file: u32,
}

impl Default for LogDriver {
    fn default() -> Self {
        Self { format: LogFormat::JsonFile, max_size: None, max_file: 1 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    JsonFile,
    K8sFile,
    None,
    /// The caller's own streams go inside.
    Passthrough,
}

impl FromStr for LogFormat {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "json-file" | "local" | "" => Ok(Self::JsonFile),
            "k8s-file" => Ok(Self::K8sFile),
            "none" => Ok(Self::None),
            "passthrough" => Ok(Self::Passthrough),
            _ => Err(Error::usage(format!("--log-driver {text}: it is not known"))
                .hint("json-file, k8s-file, none and passthrough are")
                .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies_are_dockers() {
        assert_eq!("on-failure:3".parse::<Restart>().unwrap(), Restart::OnFailure(3));
        assert!("on-failure:x".parse::<Restart>().is_err() && "never".parse::<Restart>().is_err());
        assert!(Restart::OnFailure(2).after(1, 1) && !Restart::OnFailure(2).after(1, 2));
        assert!(!Restart::OnFailure(0).after(0, 0) && Restart::Always.after(0, 9));
        assert!(Restart::Always.after_boot(0, true) && !Restart::UnlessStopped.after_boot(255, true));
        assert!(Restart::OnFailure(3).after_boot(255, false) && !Restart::OnFailure(3).after_boot(0, false));
    }

    #[test]
    fn a_health_check_is_the_images_but_for_what_is_said() {
        let image = Health { test: HealthTest::Shell("true".to_owned()), retries: 9, ..Health::default() };
        let said = HealthChoice { interval: Some(Duration::from_secs(1)), ..HealthChoice::default() };
        let both = said.over(Some(&image)).unwrap();
        assert_eq!((both.retries, both.interval, &both.test), (9, Duration::from_secs(1), &image.test));
        assert_eq!(said.over(None), None);
        let off = HealthChoice { test: Some(HealthTest::None), ..HealthChoice::default() };
        assert_eq!(off.over(Some(&image)), None);
        let list =
            |words: &[&str]| HealthTest::of(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(list(&["CMD", "a", "b"]).unwrap().words(), ["CMD", "a", "b"]);
        assert_eq!((list(&[]), list(&["NONE"])), (None, Some(HealthTest::None)));
    }

    #[test]
    fn the_back_off_doubles_up_to_a_minute() {
        let waits: Vec<u128> = (0..4).map(|count| back_off(count).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800]);
        assert_eq!(back_off(40), Duration::from_secs(60));
    }
}
