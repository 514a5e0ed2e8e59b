//! How long after a revocation a peer still receives: from the API call to the last byte of each live connection.
//!
//! The peer and the call are in one process, so that both are seen by one clock; the connections send as fast as they can.

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::daemon::{Daemon, Programs};
use super::site::Site;
use super::stats::{Distribution, as_f64};
use super::work::Server;
use crate::command::progress;

/// Live connections of the task.
const FLOWS: [u32; 3] = [1, 100, 1000];
/// Fewer rounds where each gives more.
const ROUNDS: [u32; 3] = [100, 20, 10];

/// What was found for so many connections.
#[derive(Debug, Serialize)]
pub(super) struct Revoked {
    pub(super) flows: u32,
    pub(super) rounds: u32,
    /// Milliseconds from the call to the last byte that a peer received, of each connection of each round; 0 where none came
    /// after the call.
    pub(super) last_byte: Distribution,
    /// Milliseconds from the call to its answer.
    pub(super) answered: Distribution,
}

/// Runs the rounds.
pub(super) fn run(programs: &Programs) -> Result<Vec<Revoked>> {
    let site = Site::new(0)?;
    let daemon = Daemon::start(programs, &site)?;
    FLOWS.into_iter().zip(ROUNDS).map(|(flows, rounds)| revoked(programs, &site, &daemon, flows, rounds)).collect()
}

fn revoked(programs: &Programs, site: &Site, daemon: &Daemon<'_>, flows: u32, rounds: u32) -> Result<Revoked> {
    progress(format!("revoking a task with {flows} live connections, {rounds} rounds"));
    let (mut last, mut answered) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut peer = Server::open(programs.unmarked()?)?;
        let mut load = daemon.marked()?;
        load.ask(&format!("flows 127.0.0.1:{} {flows}", peer.port()))?;
        let task = daemon.active_task()?;
        let times = peer.ask(&format!("revoke {} {task} {flows}", site.socket().display()))?;
        let (answer, bytes) = times.split_first().context("the peer has nothing to say")?;
        ensure!(bytes.len() == usize::try_from(flows)?, "the peer tells of {} connections", bytes.len());
        answered.push(as_f64(*answer) / 1e6);
        last.extend(bytes.iter().map(|time| as_f64(*time) / 1e6));
    }
    let of = |values: Vec<f64>| Distribution::of(values).context("there was no round");
    Ok(Revoked { flows, rounds, last_byte: of(last)?, answered: of(answered)? })
}
