//! What a large site asks of the daemon: time to be ready, memory, and the processor while nothing happens.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::daemon::{Daemon, Programs};
use super::site::Site;
use super::stats::{Summary, as_f64};
use crate::command::progress;

/// Policies of a large site.
pub(super) const POLICIES: usize = 1000;
const STARTS: u32 = 5;
const IDLE: Duration = Duration::from_secs(5);

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Capacity {
    /// The shipped ones included.
    pub(super) policies: usize,
    /// Milliseconds from the start of the process to its first answer.
    pub(super) ready: Summary,
    /// Resident memory at the first answer, MiB.
    pub(super) memory: Summary,
    /// The same after a while.
    pub(super) memory_later: Summary,
    /// Percent of one processor while nothing happens.
    pub(super) idle: Summary,
}

struct Start {
    policies: usize,
    ready: f64,
    memory: f64,
    memory_later: f64,
    idle: f64,
}

/// Starts the daemon a few times.
pub(super) fn run(programs: &Programs) -> Result<Capacity> {
    let site = Site::new(POLICIES)?;
    let mut starts = Vec::new();
    for number in 1..=STARTS {
        progress(format!("start {number} of {STARTS} with {POLICIES} policies"));
        starts.push(start(programs, &site)?);
    }
    let summary =
        |of: fn(&Start) -> f64| Summary::of(starts.iter().map(of)).context("the daemon was not started at all");
    Ok(Capacity {
        policies: starts.first().map_or(0, |start| start.policies),
        ready: summary(|start| start.ready)?,
        memory: summary(|start| start.memory)?,
        memory_later: summary(|start| start.memory_later)?,
        idle: summary(|start| start.idle)?,
    })
}

fn start(programs: &Programs, site: &Site) -> Result<Start> {
    let daemon = Daemon::start(programs, site)?;
    let policies = daemon.status.policies.count;
    ensure!(policies >= POLICIES, "the daemon has {policies} policies, not {POLICIES}");
    let (since, before) = (Instant::now(), daemon.processor_time()?);
    sleep(IDLE);
    let used = as_f64(daemon.processor_time()? - before) / 1e9;
    Ok(Start {
        policies,
        ready: daemon.ready_after.as_secs_f64() * 1000.0,
        memory: mebibytes(daemon.status.memory_kib),
        idle: used / since.elapsed().as_secs_f64() * 100.0,
        memory_later: mebibytes(daemon.status()?.memory_kib),
    })
}

fn mebibytes(kibibytes: u64) -> f64 {
    as_f64(kibibytes) / 1024.0
}
