//! The operations that are measured, and what measuring one gives.

use anyhow::{Context, Result};
use serde::Serialize;

use super::load::Load;
use super::site::Site;
use super::stats::best;

/// Something that a process does to the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Operation {
    OpenOrdinary,
    /// In a directory that is watched for what takes a secret's place.
    OpenBeside,
    OpenSecret,
    ReadOrdinary,
    ReadSecret,
    Tcp,
    Udp,
    Sendto,
    /// One byte there and one back on an established connection.
    Request,
    /// A block of [`BLOCK`] bytes on an established connection.
    Stream,
}

/// Large enough that what is per block hardly counts.
const BLOCK: u32 = 1 << 20;

impl Operation {
    /// For tables.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::OpenOrdinary => "open+close, ordinary file",
            Self::OpenBeside => "open+close, beside a secret",
            Self::OpenSecret => "open+close, secret",
            Self::ReadOrdinary => "read, ordinary file",
            Self::ReadSecret => "read, secret",
            Self::Tcp => "connect+close, TCP",
            Self::Udp => "connect, UDP",
            Self::Sendto => "sendto, UDP",
            Self::Request => "request and answer, TCP",
            Self::Stream => "stream of 1 MiB, TCP",
        }
    }

    fn command(self, site: &Site, server: &Server, effort: Effort) -> String {
        let (count, batches) = (effort.count(self), effort.batches);
        let Server { port, peer, .. } = server;
        let words = match self {
            Self::OpenOrdinary => format!("open {}", site.ordinary().display()),
            Self::OpenBeside => format!("open {}", site.beside().display()),
            Self::OpenSecret => format!("open {}", site.secret().display()),
            Self::ReadOrdinary => format!("read {}", site.ordinary().display()),
            Self::ReadSecret => format!("read {}", site.secret().display()),
            Self::Tcp => format!("tcp 127.0.0.1:{port}"),
            Self::Udp => format!("udp 127.0.0.1:{port}"),
            Self::Sendto => "sendto".to_owned(),
            Self::Request => format!("blocks 127.0.0.1:{peer} 1"),
            Self::Stream => format!("blocks 127.0.0.1:{peer} {BLOCK}"),
        };
        format!("{words} {count} {batches}")
    }
}

/// How often an operation is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Operations in a batch; half of them where each takes long.
    pub(super) count: u32,
    pub(super) batches: u32,
}

impl Effort {
    fn count(self, operation: Operation) -> u32 {
        match operation {
            Operation::Tcp | Operation::Sendto | Operation::Request => self.count / 4,
            Operation::Stream => self.count / 50,
            _ => self.count,
        }
    }
}

/// A TCP server that lives in an unmarked load and takes connections in between the measurements only.
pub(super) struct Server {
    load: Load,
    port: u16,
    /// The port of one that answers blocks.
    peer: u16,
}

impl Server {
    /// Opens it.
    pub(super) fn open(mut load: Load) -> Result<Self> {
        let mut port = |command| {
            let answer = load.ask(command)?;
            answer.first().and_then(|port| u16::try_from(*port).ok()).context("the server has no port")
        };
        let (port, peer) = (port("listen")?, port("peer")?);
        Ok(Self { load, port, peer })
    }

    /// Where it listens, on every address.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Has the process in which it lives do something else.
    pub(super) fn ask(&mut self, command: &str) -> Result<Vec<u64>> {
        self.load.ask(command)
    }

    /// Takes in what has come, so that there is room for more.
    pub(super) fn drain(&mut self) -> Result<()> {
        self.load.ask("drain").map(drop)
    }
}

/// What one operation takes at best, in nanoseconds (in a counting guest: instructions).
pub(super) fn measure(
    load: &mut Load,
    operation: Operation,
    site: &Site,
    server: &mut Server,
    effort: Effort,
) -> Result<f64> {
    let batches = load.ask(&operation.command(site, server, effort))?;
    server.drain()?;
    best(&batches, effort.count(operation)).with_context(|| format!("`{}` was not measured", operation.name()))
}
