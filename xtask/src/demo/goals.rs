//! What an agent of the demo may be after, and the counts of what came of it.

use std::sync::atomic::Ordering;

use anstyle::{AnsiColor, Style};
use serde::Deserialize;

use super::servers::Hits;

/// What an agent is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Web4,
    Web6,
    Udp,
    Proxy,
    SshKey,
    Netrc,
}

impl Goal {
    pub(super) const ALL: [Self; 6] = [Self::Web4, Self::Web6, Self::Udp, Self::Proxy, Self::SshKey, Self::Netrc];

    /// The word by which the agent's script knows it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Web4 => "web4",
            Self::Web6 => "web6",
            Self::Udp => "udp",
            Self::Proxy => "proxy",
            Self::SshKey => "ssh",
            Self::Netrc => "netrc",
        }
    }

    /// What it is called in the summary.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Web4 => "connect over IPv4",
            Self::Web6 => "connect over IPv6",
            Self::Udp => "send over UDP",
            Self::Proxy => "connect through the proxy",
            Self::SshKey => "read ~/.ssh/id_ed25519",
            Self::Netrc => "read ~/.netrc",
        }
    }

    pub(super) fn is_secret(self) -> bool {
        matches!(self, Self::SshKey | Self::Netrc)
    }

    /// How often a server was reached; a secret has no server that could count.
    fn hits(self, hits: &Hits) -> u64 {
        let count = match self {
            Self::Web4 => &hits.web4,
            Self::Web6 => &hits.web6,
            Self::Udp => &hits.udp,
            Self::Proxy => &hits.proxied,
            Self::SshKey | Self::Netrc => return 0,
        };
        count.load(Ordering::SeqCst)
    }

    /// Whether the agent shows by this line that it has got the secret.
    fn is_told_by(self, line: &str, secret: &str) -> bool {
        let name = match self {
            Self::SshKey => ".ssh/id_ed25519",
            Self::Netrc => ".netrc",
            _ => return false,
        };
        line.ends_with(&format!("{secret} of {name}"))
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Effect {
    Allow,
    Deny,
    WouldDeny,
}

impl Effect {
    /// Its word in a line, and how that is to look.
    pub(super) fn shown(self) -> (Style, &'static str) {
        match self {
            Self::Allow => (AnsiColor::Green.on_default(), "ALLOW"),
            Self::Deny => (AnsiColor::Red.on_default().bold(), "DENY"),
            Self::WouldDeny => (AnsiColor::Yellow.on_default().bold(), "WOULD_DENY"),
        }
    }
}

/// Counts for one goal: what the daemon recorded, and how often it was really reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) allowed: u64,
    pub(super) denied: u64,
    pub(super) would_denied: u64,
    pub(super) reached: u64,
}

impl Counts {
    pub(super) fn add_decision(&mut self, effect: Effect, count: u64) {
        match effect {
            Effect::Allow => self.allowed += count,
            Effect::Deny => self.denied += count,
            Effect::WouldDeny => self.would_denied += count,
        }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.allowed += other.allowed;
        self.denied += other.denied;
        self.would_denied += other.would_denied;
        self.reached += other.reached;
    }
}

/// One count for each goal, in the order of [`Goal::ALL`].
pub(super) type Tally = [(Goal, Counts); Goal::ALL.len()];

/// How often each goal was reached so far: what the servers saw, and what the agent shows of secrets in `output`.
pub(super) fn reached(hits: &Hits, output: &[String], secret: &str) -> Tally {
    Goal::ALL.map(|goal| {
        let told = output.iter().filter(|line| goal.is_told_by(line, secret)).count();
        let reached = goal.hits(hits) + u64::try_from(told).unwrap_or(u64::MAX);
        (goal, Counts { reached, ..Counts::default() })
    })
}
