//! What travels as JSON. Requests refuse unknown fields; answers may gain fields.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use agent_common::{DaemonLoss, Mode, TaskStatus};
use serde::{Deserialize, Serialize};

use super::words;
use crate::domain::{Protocol, UnixMillis};

/// `POST /v1/tasks`: open a task whose first process is the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenTask {
    /// Id of a registered agent.
    pub agent: String,
    /// Id of a registered intent.
    pub intent: String,
    /// What the task is to achieve, in free words: logged, never matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// Id of the registered user on whose behalf it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<String>,
    /// Labels that it may read.
    #[serde(default)]
    pub grant_read: Vec<String>,
    /// Labels that it may connect to.
    #[serde(default)]
    pub grant_connect: Vec<String>,
    /// How long it may run, such as `30m`; absent for the daemon's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Absent for the daemon's default.
    #[serde(default, with = "words::option", skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// What a first contact gets while the daemon is lost; absent for the daemon's default.
    #[serde(default, with = "words::option", skip_serializing_if = "Option::is_none")]
    pub on_daemon_loss: Option<DaemonLoss>,
    /// The command that the caller is about to become: logged, never matched.
    pub argv: Vec<String>,
    /// Which process is marked.
    pub mark: MarkTarget,
}

/// Whom the daemon marks when it opens a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkTarget {
    /// The process at the other end of the connection, as the kernel names it.
    Caller,
}

/// A task as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// `t-...`.
    pub id: String,
    /// Agent id.
    pub agent: String,
    /// Intent id.
    pub intent: String,
    /// Free text.
    pub goal: Option<String>,
    /// User id.
    pub on_behalf_of: Option<String>,
    /// Ids of the tasks above it, nearest first.
    pub chain: Vec<String>,
    /// The command it was opened for.
    pub argv: Vec<String>,
    /// Labels that it may read.
    pub grant_read: Vec<String>,
    /// Labels that it may connect to.
    pub grant_connect: Vec<String>,
    /// Where it stands.
    #[serde(with = "words")]
    pub status: TaskStatus,
    /// Whether denials block.
    #[serde(with = "words")]
    pub mode: Mode,
    /// What a first contact gets while the daemon is lost.
    #[serde(with = "words")]
    pub on_daemon_loss: DaemonLoss,
    /// When it began.
    pub started_at: UnixMillis,
    /// When it ends at the latest.
    pub expires_at: UnixMillis,
    /// When it was over, if it is.
    pub ended_at: Option<UnixMillis>,
    /// Marked processes alive.
    pub processes: u64,
    /// What is set of its sockets' SO_MARK; 0 for nothing.
    #[serde(default)]
    pub socket_mark: u32,
    /// What was decided for it.
    pub counts: CountsView,
    /// Slot in the kernel's task map.
    pub slot: u32,
    /// Epoch of that slot.
    pub epoch: u32,
}

/// Decisions of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountsView {
    /// Went through.
    pub allowed: u64,
    /// Refused.
    pub denied: u64,
    /// Went through, and would have been refused but for audit mode.
    pub would_denied: u64,
}

/// `GET /v1/tasks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TasksView {
    /// Alive first, then those that ended lately.
    pub tasks: Vec<TaskView>,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// The daemon's version.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// Seconds since it was ready.
    pub uptime_s: u64,
    /// `full` or `reduced`.
    pub tier: String,
    /// Number of the policy set in force.
    pub generation: u32,
    /// The policy set in force.
    pub policies: PoliciesView,
    /// What is enforced, per path.
    pub coverage: Vec<CoverageView>,
    /// How many tasks there are.
    pub tasks: TaskTotals,
    /// Marked processes alive.
    pub processes: u64,
    /// Per second, of late.
    pub rates: RatesView,
    /// Kernel and daemon counters by name.
    pub counters: BTreeMap<String, u64>,
    /// What was lost, by cause.
    pub losses: BTreeMap<String, u64>,
    /// Whether records are written.
    pub records: RecordsView,
    /// Resident memory, KiB.
    pub memory_kib: u64,
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordsView {
    /// The file.
    pub path: String,
    /// Where and why writing them fails, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
}

/// The policy set in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoliciesView {
    /// How many policies.
    pub count: usize,
    /// When they were loaded.
    pub loaded_at: UnixMillis,
    /// Why the last reload was refused, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// One path and what this host does about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageView {
    /// The path, such as `connect tcp4`.
    pub path: String,
    /// What guards it, such as `cgroup connect4`.
    pub guard: String,
    /// How far.
    pub state: CoverageState,
    /// Why it is so, in one sentence.
    pub detail: String,
    /// The host cannot do it at all, so that nothing is missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
    /// What to do to have it enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `POST /v1/doctor`: the coverage table, measured for this answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoctorView {
    /// Whether everything that the tier promises is enforced.
    pub sound: bool,
    /// What is not, one sentence each.
    pub faults: Vec<String>,
    /// `full` or `reduced`.
    pub tier: String,
    /// The tier when the daemon started.
    pub promised: String,
    /// The daemon's version.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// Milliseconds since the threads that decide gave their last sign of life.
    pub heartbeat_ms: u64,
    /// How long a first contact is held, milliseconds.
    pub hold_budget_ms: u64,
    /// The canary.
    pub canary: CanaryView,
    /// The host as the daemon sees it.
    pub host: HostView,
    /// What was measured.
    pub coverage: Vec<CoverageView>,
}

/// The process that tries each path every second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryView {
    /// Rounds since the daemon started.
    pub rounds: u64,
    /// How often it was silent or gone, and another took its place.
    pub restarts: u64,
    /// How long the last round took, microseconds.
    pub took_us: u64,
    /// How long ago it ended, milliseconds.
    pub age_ms: u64,
}

/// What a host offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// The kernel's release.
    pub kernel: String,
    /// Its list of security modules, if it can be read.
    pub lsm: Option<String>,
    /// Whether `kernel.ftrace_enabled` is on: BPF LSM does not run without it.
    pub ftrace: Option<bool>,
    /// Whether the kernel's type information is there.
    pub btf: bool,
    /// Where cgroup v2 is mounted.
    pub cgroup2: Option<String>,
    /// Where the file system for pinned programs is mounted.
    pub bpffs: Option<String>,
    /// Whether there are permission events on files; absent where only root can tell.
    pub fanotify: Option<bool>,
    /// CPUs that the daemon may use.
    pub cpus: u64,
}

/// How far a path is covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CoverageState {
    /// Denials block; a canary was really refused.
    Enforced,
    /// Seen and recorded, not blocked.
    Observed,
    /// Neither.
    NotCovered,
}

impl CoverageState {
    /// The word that JSON and the command line use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Observed => "observed",
            Self::NotCovered => "not_covered",
        }
    }
}

/// How many tasks there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTotals {
    /// Alive.
    pub active: u64,
    /// Opened since the daemon started.
    pub total: u64,
}

/// Per second, of late.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RatesView {
    /// Decisions.
    pub decisions_per_s: f64,
    /// Denials among them.
    pub denies_per_s: f64,
}

/// `GET /v1/labels`: the labels that a grant may name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelsView {
    /// For `grant_read`.
    pub read: Vec<String>,
    /// For `grant_connect`.
    pub connect: Vec<String>,
}

/// `POST /v1/reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadView {
    /// Number of the policy set now in force.
    pub generation: u32,
    /// How many policies it has.
    pub policies: usize,
}

/// `GET /v1/whois`: a live connection. Whoever asks may see its two ends in the other order than the agent does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhoisQuery {
    /// The end that is near to who asks; without it the other end must name one agent's connection only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// The far end.
    pub remote: SocketAddr,
    /// `tcp` or `udp`; absent for `tcp`.
    #[serde(default = "tcp")]
    pub protocol: Protocol,
}

fn tcp() -> Protocol {
    Protocol::Tcp
}

impl fmt::Display for WhoisQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.local {
            Some(local) => write!(f, "{local} - {}/{}", self.remote, self.protocol.as_str()),
            None => write!(f, "with the end {}/{}", self.remote, self.protocol.as_str()),
        }
    }
}

/// The agent behind a live connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoisView {
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// Which of the two ends that were asked for is the agent's.
    pub side: Side,
    /// The agent's end.
    pub address: SocketAddr,
    /// The other end, as the agent sees it.
    pub peer: SocketAddr,
    /// SO_MARK of the agent's socket.
    pub mark: u32,
    /// The process that made the socket, if it is known still.
    pub process: Option<ProcessView>,
    /// For which task it works.
    pub task: TaskView,
}

/// One of two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// `local` of the query.
    Local,
    /// `remote` of the query.
    Remote,
}

/// A process of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessView {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Its program, if known.
    pub exe: Option<String>,
    /// Its command name.
    pub comm: String,
    /// Real uid.
    pub uid: u32,
}

/// Any answer but success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}; {next}")]
pub struct ErrorBody {
    /// Which kind, for programs.
    pub error: ErrorCode,
    /// What went wrong, for people.
    pub message: String,
    /// The next thing to do.
    pub next: String,
}

impl ErrorBody {
    /// One error.
    pub fn new(error: ErrorCode, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self { error, message: message.into(), next: next.into() }
    }

    /// For who works for a task.
    pub fn inside_task() -> Self {
        let message = "the caller works for a task, and tasks may not use the API";
        Self::new(ErrorCode::InsideTask, message, "use it from outside of tasks")
    }

    /// From an error of our own, whose text ends with the next step after its last `; `.
    pub fn from_error(error: ErrorCode, source: &dyn std::error::Error) -> Self {
        let text = source.to_string();
        let (message, next) = text.rsplit_once("; ").unwrap_or((&text, "see the daemon's log"));
        Self::new(error, message, next)
    }
}

/// The kinds of error that the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not what its route takes.
    BadRequest,
    /// No such route.
    NoRoute,
    /// The route does not know this method.
    BadMethod,
    /// The request's body is too large or came too slowly.
    BadBody,
    /// The caller is not uid 0.
    NotRoot,
    /// The caller works for a task.
    InsideTask,
    /// The registry does not have the agent, intent or user, or the catalogues not the label.
    Unknown,
    /// The registry does not let this agent have this intent.
    IntentNotAllowed,
    /// The time to live is malformed or out of bounds.
    BadTtl,
    /// No such task.
    NoTask,
    /// The text names more than one task.
    AmbiguousTask,
    /// The task is over already.
    TaskOver,
    /// No slot is free.
    TasksFull,
    /// The caller could not be marked.
    MarkFailed,
    /// The new policies or catalogues were refused; the old ones are in force.
    ReloadRefused,
    /// This host has no such connection.
    NoConnection,
    /// The connection belongs to no agent.
    NoAgent,
    /// More than one connection is as asked for.
    AmbiguousConnection,
    /// Connections cannot be listed.
    NoListing,
    /// Too much is asked for at once.
    Busy,
    /// The daemon's loop did not answer in time.
    Timeout,
    /// The daemon is going down.
    ShuttingDown,
}

impl ErrorCode {
    /// The HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest | Self::BadTtl | Self::Unknown => 400,
            Self::NotRoot | Self::InsideTask | Self::IntentNotAllowed => 403,
            Self::NoRoute | Self::NoTask | Self::NoConnection | Self::NoAgent => 404,
            Self::BadMethod => 405,
            Self::AmbiguousTask | Self::AmbiguousConnection | Self::TaskOver => 409,
            Self::BadBody => 413,
            Self::ReloadRefused => 422,
            Self::MarkFailed | Self::NoListing => 500,
            Self::TasksFull | Self::Busy | Self::ShuttingDown => 503,
            Self::Timeout => 504,
        }
    }
}
