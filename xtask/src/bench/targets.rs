//! What the project promises, and whether this run kept it. Nothing here fails a run: a busy machine is no broken one.

use serde::Serialize;

use super::capacity::Capacity;
use super::host::{Cost, Host, Process};
use super::revoke::Revoked;
use super::work::Operation;

/// A promise and what was measured.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) limit: f64,
    pub(super) measured: f64,
    pub(super) unit: &'static str,
    pub(super) met: bool,
}

impl Target {
    fn below(name: impl Into<String>, limit: f64, measured: f64, unit: &'static str) -> Self {
        Self { name: name.into(), limit, measured, unit, met: measured < limit }
    }
}

/// The promise about revocations.
pub(super) fn revoked(revoked: &[Revoked]) -> Target {
    let hundred = revoked.iter().find(|of| of.flows == 100).map_or(f64::NAN, |of| of.last_byte.p99);
    Target::below("last byte after a revocation, p99 at 100 connections", 5.0, hundred, "ms")
}

/// Every promise that can be measured on a host.
pub(super) fn of(host: &Host, capacity: &Capacity) -> Vec<Target> {
    // A catalogued secret is none of the files whose opens are to cost nothing.
    let counts = |cost: &&Cost| cost.process == Process::Unmarked && cost.operation != Operation::OpenSecret.name();
    let unmarked = host.costs.iter().filter(counts);
    let mut targets: Vec<Target> = unmarked
        .map(|cost| {
            let name = format!("unmarked {}, median ratio to daemon off", cost.operation);
            Target::below(name, 1.03, cost.ratio.median, "")
        })
        .collect();
    targets.extend([
        // What the daemon adds: from the question to the verdict. The table has the whole connect() as well.
        Target::below("first contact, p50 of the hold", 60.0, host.contacts.held.p50, "us"),
        Target::below("first contact, p99 of the hold", 1000.0, host.contacts.held.p99, "us"),
        Target::below("ready with 1,000 policies, median", 1000.0, capacity.ready.median, "ms"),
        Target::below(
            "memory with 1,000 policies, greatest",
            60.0,
            capacity.memory.max.max(capacity.memory_later.max),
            "MiB",
        ),
    ]);
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_itself_misses() {
        assert!(Target::below("x", 60.0, 59.9, "us").met);
        assert!(!Target::below("x", 60.0, 60.0, "us").met);
        assert!(!Target::below("x", 60.0, f64::NAN, "us").met);
    }
}
