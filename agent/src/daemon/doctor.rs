//! What the canary's news change, and what `writ doctor` is told.

use std::sync::atomic::Ordering;

use jiff::Timestamp;

use super::state::Daemon;
use super::status::tier_word;
use super::watch::{Asker, Round};
use crate::api::types::{CanaryView, DoctorView, HostView};
use crate::api::{ErrorBody, ErrorCode};
use crate::domain::clock::boot_now_ns;
use crate::kernel::host::{Host, host};
use crate::record::{CoverageChanged, Event};

impl Daemon {
    /// Takes in what the canary has seen.
    pub(super) fn proven(&mut self, round: Round) {
        if let Some(change) = self.coverage.update(round.outcomes) {
            tell(&change);
            self.recorder.record(Timestamp::now(), Event::CoverageChanged(change));
        }
        if let Some(asker) = round.asker {
            drop(asker.send(Ok(self.doctor())));
        }
    }

    /// Lets the canary try everything; the answer comes with its news.
    pub(super) fn examine(&self, asker: Asker) {
        if let Err(refused) = self.watch.asks.send(asker) {
            let next = "restart writd and see its log";
            drop(refused.0.send(Err(ErrorBody::new(ErrorCode::ShuttingDown, "the canary's thread has ended", next))));
        }
    }

    fn doctor(&self) -> DoctorView {
        let faults = self.coverage.faults();
        let settings = self.maps.settings.get(0);
        DoctorView {
            sound: faults.is_empty(),
            faults,
            tier: tier_word(self.coverage.tier).to_owned(),
            promised: tier_word(self.coverage.promised).to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            heartbeat_ms: age(settings.heartbeat),
            hold_budget_ms: settings.hold_budget / 1_000_000,
            canary: self.canary(),
            host: host().into(),
            coverage: self.coverage.rows.clone(),
        }
    }

    fn canary(&self) -> CanaryView {
        let counts = &self.watch.counts;
        CanaryView {
            rounds: counts.rounds.load(Ordering::Relaxed),
            restarts: counts.restarts.load(Ordering::Relaxed),
            took_us: counts.took.load(Ordering::Relaxed),
            age_ms: age(counts.last.load(Ordering::Relaxed)),
        }
    }
}

fn age(then: u64) -> u64 {
    boot_now_ns().saturating_sub(then) / 1_000_000
}

fn tell(change: &CoverageChanged) {
    let (from, to) = (tier_word(change.from), tier_word(change.to));
    for path in &change.paths {
        let (path, was, now, why) = (&path.path, &path.from, &path.to, &path.detail);
        tracing::warn!(path, was, now, why, "coverage changed");
    }
    if from != to {
        tracing::warn!(from, to, "the tier changed; see `writ doctor`");
    }
}

impl From<Host> for HostView {
    fn from(host: Host) -> Self {
        Self {
            kernel: host.kernel,
            lsm: host.lsm,
            ftrace: host.ftrace,
            btf: host.btf,
            cgroup2: host.cgroup2.map(|path| path.to_string_lossy().into_owned()),
            bpffs: host.bpffs.map(|path| path.to_string_lossy().into_owned()),
            fanotify: host.fanotify,
            cpus: u64::try_from(host.cpus).unwrap_or(u64::MAX),
        }
    }
}
