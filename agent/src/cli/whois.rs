//! `writ whois`.

use std::net::SocketAddr;

use super::table::{list, pairs, plain};
use crate::api::types::{WhoisQuery, WhoisView};
use crate::domain::Protocol;

/// Which connection.
#[derive(Debug, clap::Args)]
pub(super) struct WhoisArgs {
    /// One end, ADDRESS:PORT, as you see it; an IPv6 address in brackets
    #[arg(value_name = "LOCAL")]
    first: SocketAddr,
    /// The other end. Without it, the first must be an end of one agent's connection only
    #[arg(value_name = "REMOTE")]
    second: Option<SocketAddr>,
    /// The connection is a UDP socket's
    #[arg(long)]
    udp: bool,
}

impl WhoisArgs {
    pub(super) fn query(&self) -> WhoisQuery {
        let protocol = if self.udp { Protocol::Udp } else { Protocol::Tcp };
        match self.second {
            Some(remote) => WhoisQuery { local: Some(self.first), remote, protocol },
            None => WhoisQuery { local: None, remote: self.first, protocol },
        }
    }
}

pub(super) fn text(found: &WhoisView) -> String {
    let task = &found.task;
    let or_dash = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), plain);
    let process = found.process.as_ref().map_or_else(
        || "not known any more".to_owned(),
        |process| {
            let exe = process.exe.as_deref().unwrap_or(&process.comm);
            format!("{} (pid {}, uid {})", plain(exe), process.pid, process.uid)
        },
    );
    pairs(&[
        ("agent", plain(&task.agent)),
        ("task", format!("{} ({})", plain(&task.id), task.status.as_str())),
        ("intent", plain(&task.intent)),
        ("on behalf of", or_dash(&task.on_behalf_of)),
        ("chain", list(&task.chain)),
        ("process", process),
        ("connection", format!("{} > {}/{}", found.address, found.peer, found.protocol.as_str())),
        ("socket mark", format!("{:#x}", found.mark)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::whois;

    #[test]
    fn the_agent_comes_first() {
        let expected = "\
agent:        coder
task:         t-0000000000001 (active)
intent:       fix-bug
on behalf of: alice
chain:        -
process:      /usr/bin/curl (pid 42, uid 1000)
connection:   10.0.0.9:40412 > 10.0.0.5:443/tcp
socket mark:  0x20000
";
        assert_eq!(text(&whois()), expected);
        let gone = text(&WhoisView { process: None, ..whois() });
        assert!(gone.contains("process:      not known any more\n"), "{gone}");
    }

    #[test]
    fn one_address_is_the_far_end() {
        let args = |second: Option<&str>| WhoisArgs {
            first: "10.0.0.1:1".parse().unwrap(),
            second: second.map(|second| second.parse().unwrap()),
            udp: true,
        };
        let one = args(None).query();
        assert_eq!((one.local, one.remote, one.protocol), (None, "10.0.0.1:1".parse().unwrap(), Protocol::Udp));
        let two = args(Some("10.0.0.2:2")).query();
        assert_eq!((two.local, two.remote), (Some(one.remote), "10.0.0.2:2".parse().unwrap()));
    }
}
