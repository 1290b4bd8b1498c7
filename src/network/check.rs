//! The checks of this room: each path that the engine knows, tried in a throw-away network namespace. It knows what a
//! refusal means to whoever reads it, not how a path works.

use kelp_net::trial::{self, Rungs};

use crate::check::Check;
use crate::userns::maps::IdMaps;
use crate::userns::within;

const TUN: &str = "modprobe tun; and `chmod 0666 /dev/net/tun`, or pass the device into the outer container";
const NFT: &str =
    "modprobe nf_tables nft_tproxy; without it TCP is mirrored, which is slower and the same otherwise";

/// All checks of this room.
pub fn checks(maps: &IdMaps) -> Vec<Check> {
    let tried = within::ask(maps, libc::CLONE_NEWNET as u64, || Ok(serde_json::to_string(&trial::rungs())?));
    let rungs =
        tried.and_then(|words| Ok(serde_json::from_str::<Rungs>(&words.map_err(anyhow::Error::msg)?)?));
    let rungs = match rungs {
        Ok(rungs) => rungs,
        Err(error) => {
            let refused = Check::from_error("network device", "a network namespace to try them in", &error);
            let mend = refused.mend.clone().unwrap_or_else(|| "--network host goes without".to_owned());
            return vec![refused.mend(mend)];
        }
    };
    let row = |facility, rung, outcome: &Result<String, String>, mend: &str| match outcome {
        Ok(seen) => Check::works(facility, rung, seen.clone()),
        Err(why) => Check::refused(facility, rung, why.clone()).mend(mend),
    };
    vec![
        row("network device", "TAP", &rungs.tap, TUN),
        row(
            "network device",
            "packet socket on a veth pair (AF_PACKET)",
            &rungs.packet,
            "modprobe veth af_packet",
        ),
        row("outbound TCP", "P1: only the SYN crosses the device", &rungs.divert, NFT),
        row(
            "outbound TCP",
            "P2: mirrored over the device",
            &rungs.mirror,
            "a network device is needed: see above",
        ),
        row(
            "published ports",
            "P0: the client's address is kept",
            &rungs.source,
            "a kernel with CONFIG_IP_MULTIPLE_TABLES=y is needed",
        ),
        row(
            "ping",
            "ping sockets of the host",
            &trial::ping(),
            "sysctl net.ipv4.ping_group_range=\"0 2147483647\"",
        ),
    ]
}
