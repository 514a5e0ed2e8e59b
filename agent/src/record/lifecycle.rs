//! Records of what came and went: tasks, processes, the daemon, its policies and catalogues, and losses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use agent_common::Counter;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::decision::{PolicyNote, Process, TaskRef, Tier};
use super::words;
use crate::domain::{Effect, LabelSet, Mode, Protocol, Reason};

/// A task began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStarted {
    /// Which.
    #[serde(flatten)]
    pub task: Arc<TaskRef>,
    /// `enforce` or `audit`.
    #[serde(with = "words::mode")]
    pub mode: Mode,
    /// Labels that it may read.
    pub grant_read: LabelSet,
    /// Labels that it may connect to.
    pub grant_connect: LabelSet,
    /// When the kernel ends it.
    #[serde(with = "words::time")]
    pub expires_at: Timestamp,
    /// What is set of its sockets' SO_MARK, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_mark: Option<u32>,
    /// Its first process, if it was started with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The command, cut to a bounded length; of the starter's choosing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
}

/// A task is over: for the kinds `task_ended`, `task_revoked` and `task_expired`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOver {
    /// Which.
    #[serde(flatten)]
    pub task: Arc<TaskRef>,
    /// Why, in a person's words: `its last process has gone`, or what the operator gave as the reason.
    pub why: String,
    /// Decisions that ended in `allow`.
    pub allowed: u64,
    /// Decisions that ended in `deny`.
    pub denied: u64,
    /// Decisions that ended in `would_deny`.
    pub would_denied: u64,
}

/// A connection that a task had and may not have any more. The kernel lets nothing more out on it from the moment at which that
/// was so; this record comes when the daemon has destroyed it, so that the program sees an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCut {
    /// Whose.
    #[serde(flatten)]
    pub task: Arc<TaskRef>,
    /// The process that made the socket, as far as it is known still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// The task's end: address and port. Not there where the line stands for many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// The other end. Not there for a socket that listens or is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// `deny`, or `would_deny` in audit mode, in which nothing is destroyed.
    #[serde(with = "words::effect")]
    pub effect: Effect,
    /// `revoked`, `expired` or `ended`; or why policy does not allow the destination any more: as for decisions.
    #[serde(with = "words::reason")]
    pub reason: Reason,
    /// The policies that determined it, if policy did.
    pub policies: Arc<[PolicyNote]>,
    /// Whether the socket was destroyed.
    pub destroyed: bool,
    /// Why it could not be destroyed, if it was to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Arc<str>>,
    /// Bytes that the peer had acknowledged (TCP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_acked: Option<u64>,
    /// How many connections this line stands for: 1, but for the last line of a task that had very many.
    pub count: u64,
}

/// A process of a task came, became another program, or went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEvent {
    /// For which task it works.
    #[serde(flatten)]
    pub task: Arc<TaskRef>,
    /// The process itself; for `process_forked` the new one.
    pub process: Process,
    /// `process_exit`: marked processes of the task that are left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<i64>,
}

/// Something was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// What and where.
    pub cause: Cause,
    /// How often since the last loss record of this cause.
    pub count: u64,
}

/// Where something was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// `undecodable`: a ring item that the daemon could not read.
    Undecodable,
    /// `write_failed`: a record that a file or the standard output could not take.
    WriteFailed,
    /// `watcher_lagged`: a record that a watcher was too slow to take; it is in the file.
    WatcherLagged,
    /// `fanotify_overflow`: file events that the kernel dropped; the opens were decided by default.
    FanotifyOverflow,
    /// `queue_full`: a note from the decision thread for which the main loop had no room.
    QueueFull,
    /// `lineage_full`: a process that the lineage table had no room for; its records lack ancestors.
    LineageFull,
    /// `details_full`: a decision whose policies, hop and shadow there was no room for; its record lacks them, and one that
    /// audit mode let through is shown as `allow`.
    DetailsFull,
    /// The kernel's own, by the counter's word.
    Kernel(Counter),
}

impl Cause {
    const OURS: [Self; 7] = [
        Self::Undecodable,
        Self::WriteFailed,
        Self::WatcherLagged,
        Self::FanotifyOverflow,
        Self::QueueFull,
        Self::LineageFull,
        Self::DetailsFull,
    ];

    /// The word in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::WriteFailed => "write_failed",
            Self::WatcherLagged => "watcher_lagged",
            Self::FanotifyOverflow => "fanotify_overflow",
            Self::QueueFull => "queue_full",
            Self::LineageFull => "lineage_full",
            Self::DetailsFull => "details_full",
            Self::Kernel(counter) => counter.as_str(),
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        let counters = Counter::ALL.iter().copied().map(Self::Kernel);
        Self::OURS.into_iter().chain(counters).find(|cause| cause.as_str() == word)
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let word = String::deserialize(from)?;
        Self::from_word(&word).ok_or_else(|| de::Error::custom(format_args!("`{word}` is no known cause of loss")))
    }
}

/// The daemon began to run; it does not enforce new tasks before `daemon_ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStarted {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The kernel's release.
    pub kernel: String,
}

/// The daemon took over what the one before had left in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonAdopted {
    /// How long nobody was there, in milliseconds: since the last sign of life of the daemon before.
    pub away_ms: u64,
    /// Tasks that go on, or whose processes have not all gone.
    pub tasks: u64,
    /// Tasks that could not go on.
    pub revoked: u64,
    /// Processes of tasks.
    pub processes: u64,
    /// What the kernel decided meanwhile by itself: how often, by effect and reason, such as `deny daemon_lost`. Each of
    /// these decisions has its own record too.
    pub decisions: BTreeMap<String, u64>,
}

/// What the host enforces: for the kind `daemon_ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// `full` or `reduced`.
    pub tier: Tier,
    /// Each path that a task could take.
    pub paths: Vec<PathCoverage>,
    /// The policy set in force.
    pub generation: u32,
}

/// One path's coverage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathCoverage {
    /// The path, such as `tcp_connect`.
    pub path: String,
    /// Its state, such as `enforced`.
    pub state: String,
    /// What it rests on, or why it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What the host enforces is not what it was: for the kind `coverage_changed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageChanged {
    /// The tier before.
    pub from: Tier,
    /// The tier now.
    pub to: Tier,
    /// The paths that changed.
    pub paths: Vec<PathChange>,
}

/// One path's change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathChange {
    /// The path, as in `daemon_ready`.
    pub path: String,
    /// Its state before, such as `enforced`.
    pub from: String,
    /// Its state now, such as `not_covered`.
    pub to: String,
    /// What the canary met with.
    pub detail: String,
}

/// The daemon is about to stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStopping {
    /// The signal or the failure.
    pub why: String,
    /// Whether the kernel goes on enforcing without it.
    #[serde(default)]
    pub stays_enforced: bool,
}

/// What was pinned was taken down: nothing is enforced any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// Processes of tasks that were killed before.
    pub killed: u64,
    /// Processes of tasks that go on, unenforced.
    pub left_running: u64,
}

/// A policy set came into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyLoaded {
    /// Its number.
    pub generation: u32,
    /// Policies in it.
    pub policies: u64,
    /// Those among them in audit mode.
    pub audited: u64,
}

/// Something on disk was refused, and what was in force stays: for the kinds `policy_rejected` and `catalogue_rejected`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The whole message, with file and line.
    pub error: String,
    /// The policy set that stays in force.
    pub generation: u32,
}

/// The catalogue of secrets changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueChanged {
    /// Secret files known now.
    pub secrets: u64,
    /// Directories watched now.
    pub directories: u64,
}
