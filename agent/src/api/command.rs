//! What the API asks of the daemon's loop.

use tokio::sync::oneshot;

use super::types::{
    DoctorView, ErrorBody, LabelsView, OpenTask, ReloadView, StatusView, TaskView, TasksView, WhoisQuery, WhoisView,
};

/// Where the loop puts its answer.
///
/// A receiver that has gone means that the client has, or that it was told that the answer came too late: what a command
/// has done for it alone, such as opening a task, is then to be undone.
pub type Reply<T> = oneshot::Sender<Result<T, ErrorBody>>;

/// Who is at the other end of a connection, as the kernel says (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Thread group id in the daemon's pid namespace, when it connected. 0 if it lives outside that namespace.
    pub pid: u32,
    /// Effective uid when it connected.
    pub uid: u32,
}

/// One request. The loop answers each exactly once.
#[derive(Debug)]
pub enum Command {
    /// Open a task, mark the peer, read the mark back, and only then answer.
    OpenTask {
        /// What was asked for; only its shape has been checked.
        request: OpenTask,
        /// The process to mark.
        peer: Peer,
        /// The new task.
        reply: Reply<TaskView>,
    },
    /// Take a task back.
    RevokeTask {
        /// Its id or a unique beginning of it.
        id: String,
        /// The task, revoked.
        reply: Reply<TaskView>,
    },
    /// All tasks.
    ListTasks {
        /// Alive first.
        reply: Reply<TasksView>,
    },
    /// One task.
    GetTask {
        /// Its id or a unique beginning of it.
        id: String,
        /// The task.
        reply: Reply<TaskView>,
    },
    /// How the daemon is.
    Status {
        /// The answer.
        reply: Reply<StatusView>,
    },
    /// Let the canary try everything now, and say what came of it.
    Doctor {
        /// The answer.
        reply: Reply<DoctorView>,
    },
    /// Which labels a grant may name.
    Labels {
        /// The answer.
        reply: Reply<LabelsView>,
    },
    /// Who has a connection.
    Whois {
        /// Which connection.
        query: WhoisQuery,
        /// The agent and what it is about.
        reply: Reply<WhoisView>,
    },
    /// Read policies, registry and catalogues again.
    Reload {
        /// What is in force now.
        reply: Reply<ReloadView>,
    },
}
