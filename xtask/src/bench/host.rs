//! What the daemon costs on this host: whole operations, with the daemon and without it, in rounds that alternate.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::daemon::{Daemon, Programs};
use super::load::Load;
use super::site::Site;
use super::stats::{Distribution, Summary, as_f64};
use super::work::{Effort, Operation, Server, measure};
use crate::command::progress;

const OPERATIONS: [Operation; 6] = [
    Operation::OpenOrdinary,
    Operation::OpenBeside,
    Operation::OpenSecret,
    Operation::Tcp,
    Operation::Request,
    Operation::Stream,
];
const EFFORT: Effort = Effort { count: 1000, batches: 16 };
/// First contacts in a round.
const CONTACTS: u32 = 100;
/// Microseconds between two of them: they are rare on a host that is not under attack.
const GAP: u32 = 500;

/// One operation of one kind of process.
#[derive(Debug, Serialize)]
pub(super) struct Cost {
    pub(super) operation: &'static str,
    pub(super) process: Process,
    /// Nanoseconds without the daemon.
    pub(super) off: Summary,
    /// Nanoseconds with it.
    pub(super) on: Summary,
    /// Of the two in the same round.
    pub(super) ratio: Summary,
}

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Process {
    Unmarked,
    /// Marked, its verdict known.
    Marked,
    /// Marked, the daemon asked each time.
    FirstContact,
}

impl Process {
    /// For tables.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Unmarked => "unmarked",
            Self::Marked => "marked",
            Self::FirstContact => "first contact",
        }
    }
}

/// What first contacts were like.
#[derive(Debug, Serialize)]
pub(super) struct Contacts {
    /// Those that were not answered in time.
    pub(super) refused: u64,
    /// Microseconds of the whole `connect()`.
    pub(super) connect: Distribution,
    /// Microseconds that the kernel held the caller, as records tell.
    pub(super) held: Distribution,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Host {
    pub(super) tier: String,
    pub(super) costs: Vec<Cost>,
    pub(super) contacts: Contacts,
}

/// Runs the rounds.
pub(super) fn run(programs: &Programs, rounds: u32) -> Result<Host> {
    let site = Site::new(0)?;
    let mut bench = Bench {
        server: Server::open(programs.unmarked()?)?,
        unmarked: programs.unmarked()?,
        programs,
        site: &site,
        refused: 0,
        contacts: Vec::new(),
        held: Vec::new(),
        tier: String::new(),
    };
    let mut all = Vec::new();
    for number in 1..=rounds {
        progress(format!("round {number} of {rounds}"));
        all.push(bench.round()?);
    }
    bench.found(&all)
}

/// One operation with and without the daemon, in one round.
struct Pair {
    operation: &'static str,
    process: Process,
    off: f64,
    on: f64,
}

struct Bench<'a> {
    programs: &'a Programs,
    site: &'a Site,
    server: Server,
    /// The same process in all rounds, so that how it lies in memory makes no difference.
    unmarked: Load,
    refused: u64,
    contacts: Vec<f64>,
    held: Vec<f64>,
    tier: String,
}

impl Bench<'_> {
    fn round(&mut self) -> Result<Vec<Pair>> {
        let off = measure_all(&mut self.unmarked, self.site, &mut self.server)?;
        let (_, contacts_off) = contacts(&mut self.unmarked, &mut self.server)?;
        let daemon = Daemon::start(self.programs, self.site)?;
        self.tier.clone_from(&daemon.status.tier);
        let unmarked = measure_all(&mut self.unmarked, self.site, &mut self.server)?;
        let mut load = daemon.marked()?;
        let marked = measure_all(&mut load, self.site, &mut self.server)?;
        drop(load);
        // A task of its own, for which every destination is new.
        let (refused, contacts) = contacts(&mut daemon.marked()?, &mut self.server)?;
        drop(daemon);
        self.refused += refused;
        self.held.extend(held(&fs::read_to_string(self.site.records())?)?);
        fs::remove_file(self.site.records())?;
        let mut pairs = paired(Process::Unmarked, &off, &unmarked);
        pairs.extend(paired(Process::Marked, &off, &marked));
        let (off, on) = (median(&contacts_off)?, median(&contacts)?);
        pairs.push(Pair { operation: "connect, TCP", process: Process::FirstContact, off, on });
        self.contacts.extend(contacts);
        Ok(pairs)
    }

    fn found(self, rounds: &[Vec<Pair>]) -> Result<Host> {
        let kinds = rounds.first().map_or(0, Vec::len);
        let costs = (0..kinds).map(|kind| cost(rounds.iter().filter_map(|round| round.get(kind))));
        let contacts = Contacts {
            refused: self.refused,
            connect: Distribution::of(self.contacts.iter().map(|time| time / 1000.0))
                .context("there was no contact")?,
            held: Distribution::of(self.held).context("there is no record of a first contact")?,
        };
        Ok(Host { tier: self.tier, costs: costs.collect::<Option<_>>().context("there was no round")?, contacts })
    }
}

fn measure_all(load: &mut Load, site: &Site, server: &mut Server) -> Result<Vec<f64>> {
    OPERATIONS.into_iter().map(|operation| measure(load, operation, site, server, EFFORT)).collect()
}

/// How many were refused, and the time of each in nanoseconds.
fn contacts(load: &mut Load, server: &mut Server) -> Result<(u64, Vec<f64>)> {
    let answer = load.ask(&format!("first 127.1.0.1:{} {CONTACTS} {GAP}", server.port()))?;
    server.drain()?;
    let (refused, times) = answer.split_first().context("the load has nothing to say of first contacts")?;
    Ok((*refused, times.iter().map(|time| as_f64(*time)).collect()))
}

fn paired(process: Process, off: &[f64], on: &[f64]) -> Vec<Pair> {
    let times = off.iter().zip(on);
    let pair = |(operation, (off, on)): (Operation, (&f64, &f64))| Pair {
        operation: operation.name(),
        process,
        off: *off,
        on: *on,
    };
    OPERATIONS.into_iter().zip(times).map(pair).collect()
}

fn median(values: &[f64]) -> Result<f64> {
    Summary::of(values.iter().copied()).map(|summary| summary.median).context("nothing was measured")
}

/// One kind of pair over all rounds.
fn cost<'a>(pairs: impl Iterator<Item = &'a Pair> + Clone) -> Option<Cost> {
    let first = pairs.clone().next()?;
    Some(Cost {
        operation: first.operation,
        process: first.process,
        off: Summary::of(pairs.clone().map(|pair| pair.off))?,
        on: Summary::of(pairs.clone().map(|pair| pair.on))?,
        ratio: Summary::of(pairs.map(|pair| pair.on / pair.off))?,
    })
}

/// As much of a record as is of interest here.
#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    action: String,
    #[serde(default)]
    source: String,
    latency_us: Option<f64>,
}

/// How long each first contact of a connection was held, in microseconds.
fn held(records: &str) -> Result<Vec<f64>> {
    let mut held = Vec::new();
    for line in records.lines() {
        let record: Record = serde_json::from_str(line).with_context(|| format!("`{line}` is no record"))?;
        if record.action == "connect" && record.source == "upcall" {
            held.extend(record.latency_us);
        }
    }
    ensure!(!held.is_empty(), "the records tell of no first contact");
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_first_contacts_were_held() {
        let records = r#"{"kind":"daemon_ready","tier":"full"}
{"kind":"decision","action":"connect","source":"upcall","latency_us":27}
{"kind":"decision","action":"connect","source":"cache","latency_us":0}
{"kind":"decision","action":"read","source":"upcall","latency_us":9}
{"kind":"decision","action":"connect","source":"upcall","latency_us":31}
"#;
        assert_eq!(held(records).unwrap(), [27.0, 31.0]);
        assert!(held("").is_err());
        assert!(held("{").is_err());
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let pair = |off, on| Pair { operation: "x", process: Process::Marked, off, on };
        let cost = cost([pair(100.0, 110.0), pair(200.0, 210.0), pair(50.0, 60.0)].iter()).unwrap();
        assert_eq!(cost.off, Summary { median: 100.0, min: 50.0, max: 200.0 });
        assert_eq!(cost.ratio, Summary { median: 1.1, min: 1.05, max: 1.2 });
        assert!(super::cost([].iter()).is_none());
    }
}
