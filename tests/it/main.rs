//! kelp through its real binary, as the user who runs the suite. What stands where:
//! `life` containers in the background; `attach` who sits down before one; `exec` further programs in one; `health`; `events`;
//! `ps` what is listed; `run` the main job and its options;
//! `ids` who is who; `mounts` what is where; `process` exit codes, signals, terminals; `network` none and host; `engine` kelp's own, `backend` a peer's, `neighbour` another container's; `security` attacks that must fail; `failure` sentences; `faults` kill -9
//! and crowds; `doctor` and `explain` what kelp says of itself; `real` a Debian root; `unshare` the founding texts;
//! `volume` folders that outlive containers; `anonymous` those that do not; `cdi` devices by name; `limits`, `update` and `disk` what holds under load;
//! `secret`; `login` the password at a terminal; `words` flags about the container itself; `surroundings` of the caller; `docs` what is made from the tables of flags.
//! The rest is the bench: `dir` folders and roots, `kelp` commands, `needs` facilities, `host` what is outside,
//! `nested` hosts that refuse something, `pty`, `sys`.
#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected must fail there")]

mod dir;
mod host;
mod kelp;
mod needs;
mod nested;
mod pty;
mod sys;

mod anonymous;
mod attach;
mod backend;
mod cdi;
mod disk;
mod docs;
mod doctor;
mod engine;
mod events;
mod exec;
mod explain;
mod failure;
mod faults;
mod health;
mod ids;
mod life;
mod limits;
mod login;
mod mounts;
mod neighbour;
mod network;
mod perils;
mod process;
mod ps;
mod real;
mod run;
mod secret;
mod security;
mod stacked;
mod surroundings;
mod unshare;
mod update;
mod volume;
mod words;
