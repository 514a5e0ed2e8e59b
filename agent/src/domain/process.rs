//! Processes as records see them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A process above another, as it was when it started the one below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ancestor {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// When it started: boot clock, nanoseconds; rounded down to a clock tick where procfs said so.
    pub start: u64,
    /// Its program, if known: the path given to execve(2), which may be relative, or procfs's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<Arc<str>>,
    /// Its command name. The process chooses it.
    pub comm: Arc<str>,
}
