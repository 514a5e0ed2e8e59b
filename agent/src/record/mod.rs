//! Records: one JSON object per line, one schema for file, standard output and stream.
//!
//! Every line has `time` (RFC 3339, UTC, microseconds), `sequence` (counts up from 1 since the daemon started; a gap is a
//! loss) and `kind`. The other fields depend on the kind:
//!
//! | kind | fields |
//! |---|---|
//! | `decision` | [`Decision`] |
//! | `task_started` | [`TaskStarted`] |
//! | `task_ended`, `task_revoked`, `task_expired` | [`TaskOver`] |
//! | `process_forked`, `process_exec`, `process_exit` | [`ProcessEvent`] |
//! | `flow_cut` | [`FlowCut`] |
//! | `loss` | [`Loss`] |
//! | `daemon_started` | [`DaemonStarted`] |
//! | `daemon_adopted` | [`DaemonAdopted`] |
//! | `daemon_ready` | [`Coverage`] |
//! | `coverage_changed` | [`CoverageChanged`] |
//! | `daemon_stopping` | [`DaemonStopping`] |
//! | `detached` | [`Detached`] |
//! | `policy_loaded` | [`PolicyLoaded`] |
//! | `catalogue_changed` | [`CatalogueChanged`] |
//! | `policy_rejected`, `catalogue_rejected` | [`Rejected`] |
//!
//! Words are snake_case. A field that does not apply is left out, a list that is empty is written. Readers ignore fields
//! that they do not know.
//!
//! This module knows nothing of where records come from: not of aya, Cedar, procfs or the API.

mod coalesce;
mod decision;
mod hub;
mod lifecycle;
mod recorder;
mod sink;
mod words;

pub use coalesce::Coalescer;
pub use decision::{Decision, PolicyNote, Process, Resource, Shadow, TaskRef, Tier, UNKNOWN_UID};
pub use hub::{Hub, Writing, missed_line};
pub use lifecycle::{
    CatalogueChanged, Cause, Coverage, CoverageChanged, DaemonAdopted, DaemonStarted, DaemonStopping, Detached,
    FlowCut, Loss, PathChange, PathCoverage, PolicyLoaded, ProcessEvent, Rejected, TaskOver, TaskStarted,
};

pub use recorder::Recorder;
pub use sink::{OpenError, Sink};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it happened, not when it was written.
    #[serde(with = "words::time")]
    pub time: Timestamp,
    /// Its number in the order of writing.
    pub sequence: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// A task was allowed or refused something.
    Decision(Box<Decision>),
    /// A task began.
    TaskStarted(Box<TaskStarted>),
    /// A task's last process has gone, or it was closed.
    TaskEnded(Box<TaskOver>),
    /// An operator took a task back.
    TaskRevoked(Box<TaskOver>),
    /// A task's deadline passed.
    TaskExpired(Box<TaskOver>),
    /// A process of a task made another; written only when the daemon is told to.
    ProcessForked(Box<ProcessEvent>),
    /// A process of a task became another program.
    ProcessExec(Box<ProcessEvent>),
    /// A process of a task has gone.
    ProcessExit(Box<ProcessEvent>),
    /// A connection of a task was cut, since the task is over or policy does not allow it any more.
    FlowCut(Box<FlowCut>),
    /// Something was lost.
    Loss(Loss),
    /// The daemon began to run.
    DaemonStarted(DaemonStarted),
    /// The daemon took over from one that had gone.
    DaemonAdopted(DaemonAdopted),
    /// The daemon enforces, and has proven it.
    DaemonReady(Coverage),
    /// The host enforces less than before, or more.
    CoverageChanged(CoverageChanged),
    /// The daemon stops.
    DaemonStopping(DaemonStopping),
    /// Enforcement was ended without a daemon.
    Detached(Detached),
    /// A policy set came into force.
    PolicyLoaded(PolicyLoaded),
    /// A policy set was refused; the last good one stays.
    PolicyRejected(Rejected),
    /// Secrets came or went.
    CatalogueChanged(CatalogueChanged),
    /// A catalogue was refused; the last good one stays.
    CatalogueRejected(Rejected),
}

impl Event {
    /// The task that it belongs to, if it belongs to one.
    pub fn task(&self) -> Option<&TaskRef> {
        match self {
            Self::Decision(decision) => Some(&decision.task),
            Self::TaskStarted(started) => Some(&started.task),
            Self::TaskEnded(over) | Self::TaskRevoked(over) | Self::TaskExpired(over) => Some(&over.task),
            Self::FlowCut(cut) => Some(&cut.task),
            Self::ProcessForked(event) | Self::ProcessExec(event) | Self::ProcessExit(event) => Some(&event.task),
            _ => None,
        }
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
pub(crate) mod testing;
