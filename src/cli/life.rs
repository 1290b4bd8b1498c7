//! The flags of `run` and `create` that say how a container is watched: restart policy, log, labels, and the keys
//! and times of its end.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::cli::attach::ProxyArgs;
use crate::cli::health::HealthArgs;
use crate::error::Error;
use crate::spec::life::{LogDriver, OnFailure, Restart, Stream};
use crate::spec::request::Life;
use crate::supervise::keys::Keys;

#[derive(Debug, Default, Args)]
pub struct LifeArgs {
    /// When to start the container again: no, on-failure[:COUNT], always, unless-stopped [default: no]
    #[arg(long, value_name = "POLICY", help_heading = "Container")]
    restart: Option<String>,
    /// Seconds that `stop` waits before it kills
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, help_heading = "Container")]
    stop_timeout: Option<i64>,
    /// Set a label: KEY[=VALUE]
    #[arg(short = 'l', long, value_name = "LABEL", help_heading = "Container")]
    label: Vec<String>,
    /// Read labels from a file, one a line
    #[arg(long, value_name = "FILE", help_heading = "Container")]
    label_file: Vec<PathBuf>,
    /// Set an annotation: KEY=VALUE
    #[arg(long, value_name = "ANNOTATION", help_heading = "Container")]
    annotation: Vec<String>,
    /// Write the container's id to a file, which must not be there
    #[arg(long, value_name = "FILE", help_heading = "Container")]
    pub cidfile: Option<PathBuf>,
    /// Write the program's process number to a file at each start
    #[arg(long, value_name = "FILE", help_heading = "Container")]
    pidfile: Option<PathBuf>,
    /// Remove a container of the same name first
    #[arg(long, requires = "name", help_heading = "Container")]
    pub replace: bool,
    /// Remove the image with the container, unless another is made from it; implies --rm
    #[arg(long, help_heading = "Container")]
    pub rmi: bool,
    /// What is kept of the output: json-file, k8s-file, none, passthrough [default: json-file]
    #[arg(long, value_name = "DRIVER", help_heading = "Container")]
    log_driver: Option<String>,
    /// max-size=BYTES, max-file=COUNT
    #[arg(long, value_name = "OPTION", help_heading = "Container")]
    log_opt: Vec<String>,
    /// The keys that leave the container running [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", help_heading = "Container")]
    detach_keys: Option<String>,
    /// Attach to stdin, stdout or stderr only
    #[arg(short = 'a', long, value_name = "STREAM", help_heading = "Container")]
    attach: Vec<String>,
    #[command(flatten, next_help_heading = "Container")]
    pub proxy: ProxyArgs,
    #[command(flatten, next_help_heading = "Health")]
    pub health: HealthArgs,
}

impl LifeArgs {
    /// What the command attaches: nothing in the background, the choice of `-a`, or all.
    pub fn attached(&self, detach: bool, interactive: bool) -> Result<Vec<Stream>> {
        if detach && !self.attach.is_empty() {
            let sentence = "conflicting options: cannot specify both --attach and --detach";
            return Err(Error::usage(sentence).into());
        }
        let chosen = self.attach.iter().map(|word| word.parse()).collect::<Result<Vec<Stream>>>()?;
        Ok(match (detach, chosen.is_empty(), interactive) {
            (true, ..) => Vec::new(),
            (_, false, _) => chosen,
            (_, true, true) => vec![Stream::Stdin, Stream::Stdout, Stream::Stderr],
            (_, true, false) => vec![Stream::Stdout, Stream::Stderr],
        })
    }

    /// Whether the streams were chosen.
    pub fn is_choosy(&self) -> bool {
        !self.attach.is_empty()
    }

    /// With `remove`, the container goes when it ends, so that nothing can start it again.
    pub fn life(&self, remove: bool) -> Result<Life> {
        let restart: Restart = self.restart.as_deref().unwrap_or("no").parse()?;
        if remove && restart != Restart::No {
            return Err(Error::usage("conflicting options: cannot specify both --restart and --rm").into());
        }
        if let Some(keys) = &self.detach_keys {
            Keys::parse(keys)?;
        }
        let mut labels = BTreeMap::new();
        for file in &self.label_file {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Error::usage(error.to_string()))
                .with_context(|| format!("cannot read the label file {}", file.display()))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            labels.extend(lines.map(pair));
        }
        labels.extend(self.label.iter().map(|word| pair(word)));
        Ok(Life {
            restart,
            stop_timeout: self.stop_timeout,
            labels,
            annotations: self.annotation.iter().map(|word| pair(word)).collect(),
            log: self.log()?,
            health: None,
            on_failure: OnFailure::None,
            attached: Vec::new(),
            detach_keys: self.detach_keys.clone(),
            pidfile: self.pidfile.as_ref().map(std::path::absolute).transpose()?,
        })
    }

    fn log(&self) -> Result<LogDriver> {
        let mut log = LogDriver {
            format: self.log_driver.as_deref().unwrap_or("json-file").parse()?,
            ..LogDriver::default()
        };
        for option in &self.log_opt {
            match option.split_once('=') {
                Some(("max-size", size)) if size != "-1" => log.max_size = Some(size.parse()?),
                Some(("max-size", _)) => log.max_size = None,
                Some(("max-file", count)) => {
                    let count = count.parse().ok().filter(|count| *count > 0);
                    log.max_file = count.ok_or_else(|| {
                        Error::usage(format!("--log-opt {option}: a number above 0 is expected"))
                    })?;
                }
                _ => {
                    let sentence =
                        format!("--log-opt {option}: max-size=BYTES or max-file=COUNT is expected");
                    return Err(Error::usage(sentence).into());
                }
            }
        }
        Ok(log)
    }
}

fn pair(word: &str) -> (String, String) {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    (key.to_owned(), value.to_owned())
}
