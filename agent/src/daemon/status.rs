//! What the API shows of tasks and of the daemon itself.

use std::fs;
use std::time::{Duration, Instant};

use agent_common::{Counter, TaskStatus};

use super::state::Daemon;
use crate::api::types::{
    CountsView, LabelsView, PoliciesView, RatesView, RecordsView, ReloadView, StatusView, TaskTotals, TaskView,
    TasksView,
};
use crate::domain::{Effect, Label, LabelSet};
use crate::record::{Cause, Tier};
use crate::task::Task;

/// How long rates are measured over.
const PERIOD: Duration = Duration::from_secs(5);

/// Decisions and denials per second, over the last full period.
#[derive(Default)]
pub(super) struct Rates {
    since: Option<(Instant, u64, u64)>,
    decisions: f64,
    denies: f64,
}

impl Rates {
    fn update(&mut self, now: Instant, decisions: u64, denies: u64) {
        let Some((since, decisions_then, denies_then)) = self.since else {
            self.since = Some((now, decisions, denies));
            return;
        };
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        if seconds >= PERIOD.as_secs_f64() {
            self.decisions = per_second(decisions.saturating_sub(decisions_then), seconds);
            self.denies = per_second(denies.saturating_sub(denies_then), seconds);
            self.since = Some((now, decisions, denies));
        }
    }
}

fn per_second(count: u64, seconds: f64) -> f64 {
    // Tenths are enough, and a count per period fits.
    let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    (count / seconds * 10.0).round() / 10.0
}

impl Daemon {
    /// To be called once in a while.
    pub(super) fn measure(&mut self) {
        let count = |counter| self.counter(counter);
        let denies = count(Counter::Denied);
        let decisions = denies + count(Counter::Allowed) + count(Counter::WouldDenied);
        self.rates.update(Instant::now(), decisions, denies);
    }

    /// A kernel counter since this daemon's start, with what was decided out here.
    fn counter(&self, counter: Counter) -> u64 {
        let noted = match counter {
            Counter::Allowed => self.noted.get(&Effect::Allow),
            Counter::Denied => self.noted.get(&Effect::Deny),
            Counter::WouldDenied => self.noted.get(&Effect::WouldDeny),
            _ => None,
        };
        let before = self.baseline.get(&counter).copied().unwrap_or(0);
        self.maps.counter(counter).saturating_sub(before).saturating_add(noted.copied().unwrap_or(0))
    }

    /// Writes the records that wait, and says in the log when that begins to fail and when it works again.
    pub(super) fn write_records(&mut self) {
        let failed = self.recorder.failing().is_some();
        let writing = self.recorder.tick(Instant::now());
        if writing.lost > 0 {
            // The loss record follows when it can be written; until then only `writ status` can tell.
            *self.losses.entry(Cause::WriteFailed.as_str().to_owned()).or_default() += writing.lost;
        }
        match (failed, writing.failing) {
            (false, Some(error)) => {
                tracing::warn!(error, "records are not written; they wait, and are lost beyond 4 MiB")
            }
            (true, None) => tracing::warn!("records are written again"),
            _ => {}
        }
    }

    pub(super) fn status(&self) -> StatusView {
        let snapshot = self.shared.snapshot.load();
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            tier: tier_word(self.coverage.tier).to_owned(),
            generation: self.generation,
            policies: PoliciesView {
                count: snapshot.policies.number_of_policies(),
                loaded_at: self.policies_loaded,
                last_error: self.policies_error.clone(),
            },
            coverage: self.coverage.rows.clone(),
            tasks: TaskTotals {
                active: u64::try_from(self.table.active().count()).unwrap_or(u64::MAX),
                total: self.table.opened(),
            },
            processes: self.table.held().map(|task| self.processes(task)).sum(),
            rates: RatesView { decisions_per_s: self.rates.decisions, denies_per_s: self.rates.denies },
            counters: Counter::ALL.iter().map(|c| (c.as_str().to_owned(), self.counter(*c))).collect(),
            losses: self.losses.clone(),
            records: RecordsView {
                path: self.config.records.to_string_lossy().into_owned(),
                failing: self.recorder.failing().map(str::to_owned),
            },
            memory_kib: resident_kib(),
        }
    }

    pub(super) fn tasks(&self) -> TasksView {
        let (active, over): (Vec<&Task>, Vec<&Task>) =
            self.table.all().partition(|task| task.status == TaskStatus::Active);
        TasksView { tasks: active.into_iter().chain(over).map(|task| self.task(task)).collect() }
    }

    pub(super) fn task(&self, task: &Task) -> TaskView {
        let facts = &task.facts;
        TaskView {
            id: facts.id.to_string(),
            agent: facts.agent.id.to_string(),
            intent: facts.intent.id.to_string(),
            goal: facts.goal.as_ref().map(ToString::to_string),
            on_behalf_of: facts.on_behalf_of.as_ref().map(|user| user.id.to_string()),
            chain: facts.chain().skip(1).map(|above| above.id.to_string()).collect(),
            argv: task.argv.to_vec(),
            grant_read: words(&facts.may_read),
            grant_connect: words(&facts.may_connect),
            status: task.status,
            mode: task.mode,
            on_daemon_loss: task.on_daemon_loss,
            started_at: task.started,
            expires_at: facts.expires_at,
            ended_at: task.ended,
            processes: self.processes(task),
            socket_mark: task.socket_mark,
            counts: CountsView {
                allowed: task.counts.allowed,
                denied: task.counts.denied,
                would_denied: task.counts.would_denied,
            },
            slot: task.slot,
            epoch: task.epoch,
        }
    }

    /// Marked processes alive; none once the slot is another's.
    fn processes(&self, task: &Task) -> u64 {
        let current = self.maps.tasks.get(task.slot).epoch == task.epoch;
        if current { u64::try_from(self.maps.usage.get(task.slot).processes).unwrap_or(0) } else { 0 }
    }

    pub(super) fn labels(&self) -> LabelsView {
        let snapshot = self.shared.snapshot.load();
        LabelsView { read: words(&self.secrets.labels()), connect: words(&snapshot.connect_labels()) }
    }

    pub(super) fn reloaded(&self) -> ReloadView {
        let policies = self.shared.snapshot.load().policies.number_of_policies();
        ReloadView { generation: self.generation, policies }
    }
}

fn words(labels: &LabelSet) -> Vec<String> {
    labels.iter().map(Label::to_string).collect()
}

pub(super) fn tier_word(tier: Tier) -> &'static str {
    match tier {
        Tier::Full => "full",
        Tier::Reduced => "reduced",
    }
}

/// `VmRSS` of `/proc/self/status`, KiB.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
