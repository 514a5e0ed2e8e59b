//! The record of a decision: who wanted what, what came of it and why.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::words;
use crate::domain::{
    self, Action, Ancestor, Effect, Hosts, LabelSet, PolicyRef, Protocol, Reason, Source, TaskFacts, TaskId,
};

/// What every record that belongs to a task says of it. Made once a task and shared by its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRef {
    /// The task's id.
    pub task: TaskId,
    /// The agent's id.
    pub agent: Arc<str>,
    /// The intent's id.
    pub intent: Arc<str>,
    /// The free text that came with the intent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Arc<str>>,
    /// Task ids from the root to this one.
    pub chain: Vec<TaskId>,
    /// The user on whose behalf the task runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<Arc<str>>,
}

impl From<&TaskFacts> for TaskRef {
    fn from(facts: &TaskFacts) -> Self {
        let mut chain: Vec<TaskId> = facts.chain().map(|task| task.id.clone()).collect();
        chain.reverse();
        Self {
            task: facts.id.clone(),
            agent: facts.agent.id.clone(),
            intent: facts.intent.id.clone(),
            goal: facts.goal.clone(),
            chain,
            on_behalf_of: facts.on_behalf_of.as_ref().map(|user| user.id.clone()),
        }
    }
}

/// One decision, or several that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// For which task.
    #[serde(flatten)]
    pub task: Arc<TaskRef>,
    /// Which process asked.
    pub process: Process,
    /// Such as `connect`, `read` or `listen`: see [`Action`].
    #[serde(with = "words::action")]
    pub action: Action,
    /// What it asked for.
    pub resource: Resource,
    /// `allow`, `deny` or `would_deny`.
    #[serde(with = "words::effect")]
    pub effect: Effect,
    /// The class of reasons.
    #[serde(with = "words::reason")]
    pub reason: Reason,
    /// The policies that determined it; for `error` those that failed.
    pub policies: Arc<[PolicyNote]>,
    /// For a deny, how many tasks up the chain it came from: 0 is the task itself.
    pub hop: usize,
    /// The audited policies' answer where it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Arc<Shadow>>,
    /// Which policy set answered.
    pub generation: u32,
    /// `cache`, `upcall`, `structural` or `after`.
    #[serde(with = "words::source")]
    pub source: Source,
    /// From the question to the verdict, microseconds; the longest where the line stands for several decisions.
    pub latency_us: u32,
    /// How the host enforced when this was decided.
    pub tier: Tier,
    /// How many decisions this line stands for.
    pub count: u64,
    /// Repeats only: the sequence of the line that shows the first of them, which `count` does not include.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_of: Option<u64>,
    /// Repeats only: the first of those counted here.
    #[serde(with = "words::optional_time", default, skip_serializing_if = "Option::is_none")]
    pub first_time: Option<Timestamp>,
    /// Repeats only: the last of those counted here.
    #[serde(with = "words::optional_time", default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Timestamp>,
}

/// [`Process::uid`] of a process of which nothing is known: the kernel's own `(uid_t) -1`, which no process can have.
pub const UNKNOWN_UID: u32 = u32::MAX;

/// A process. `comm`, `exe` and `argv` are of its own choosing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// When the process started: boot clock, nanoseconds; rounded down to a clock tick where procfs said so. 0 if unknown.
    pub start: u64,
    /// Its program, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<Arc<str>>,
    /// Command name of the calling thread.
    pub comm: Arc<str>,
    /// Real uid in the initial user namespace; 4294967295, which is no user's, if it could not be told.
    pub uid: u32,
    /// Path below the cgroup v2 root, if it could be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Arc<str>>,
    /// cgroup v2 id; 0 if it could not be told.
    pub cgroup_id: u64,
    /// The processes above it, nearest first.
    pub lineage: Arc<[Ancestor]>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Resource {
    /// A destination.
    Endpoint {
        /// IPv4 or IPv6, never IPv4-mapped.
        address: IpAddr,
        /// Port.
        port: u16,
        /// `tcp` or `udp`.
        protocol: Protocol,
        /// The names under which the task came to know the address.
        #[serde(default, skip_serializing_if = "none")]
        hosts: Arc<Hosts>,
        /// The catalogue's labels.
        labels: Arc<LabelSet>,
        /// The destination that was decided, where the packet's own is another: a translation, or an attempt to get around.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        decided: Option<SocketAddr>,
    },
    /// A protected file.
    Secret {
        /// Where the catalogue found it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<Arc<str>>,
        /// `super_block.s_dev`.
        device: u64,
        /// Inode number.
        inode: u64,
        /// The catalogue's labels.
        labels: Arc<LabelSet>,
    },
    /// A kind of socket, as socket(2) takes it.
    Socket {
        /// Address family.
        family: u16,
        /// Type, such as 3 for `SOCK_RAW`.
        socket_type: u8,
        /// Protocol.
        protocol: u32,
    },
    /// Where somebody listens on a unix socket.
    Unix {
        /// The name that the listener bound, with a leading `@` where it is abstract; nothing if it has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<Arc<str>>,
        /// The catalogue's labels.
        labels: Arc<LabelSet>,
    },
    /// A facility of the kernel.
    Facility {
        /// Such as `io_uring` or `cap_net_admin`.
        name: Arc<str>,
        /// What of it, such as the name of a setting.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<Arc<str>>,
    },
    /// A name whose addresses were asked for.
    Name {
        /// The name, in lower case, without the final dot.
        name: Arc<str>,
        /// Such as `AAAA`.
        record_type: Arc<str>,
        /// The catalogue's labels.
        labels: Arc<LabelSet>,
    },
}

/// Takes what serde passes.
fn none(hosts: &Arc<Hosts>) -> bool {
    hosts.is_empty()
}

impl From<&domain::Endpoint> for Resource {
    fn from(endpoint: &domain::Endpoint) -> Self {
        Self::Endpoint {
            address: endpoint.address,
            port: endpoint.port,
            protocol: endpoint.protocol,
            hosts: Arc::clone(&endpoint.hosts),
            labels: endpoint.labels.clone(),
            decided: None,
        }
    }
}

/// A policy that took part in a decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PolicyNote {
    /// Its `@id`.
    pub id: Arc<str>,
    /// Its `@reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
    /// Its `@advice`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<Arc<str>>,
}

impl From<&PolicyRef> for PolicyNote {
    fn from(policy: &PolicyRef) -> Self {
        Self { id: policy.id.clone(), reason: policy.reason.clone(), advice: policy.advice.clone() }
    }
}

/// What the policies in audit mode would have changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shadow {
    /// `allow` or `deny`.
    #[serde(with = "words::effect")]
    pub effect: Effect,
    /// Its class of reasons.
    #[serde(with = "words::reason")]
    pub reason: Reason,
    /// The policies that determine it.
    pub policies: Arc<[PolicyNote]>,
}

impl From<&domain::Shadow> for Shadow {
    fn from(shadow: &domain::Shadow) -> Self {
        let policies = shadow.policies.iter().map(PolicyNote::from).collect();
        Self { effect: shadow.effect, reason: shadow.reason, policies }
    }
}

/// How much the host can enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// BPF LSM active and proven.
    Full,
    /// cgroup programs, tracepoints and fanotify.
    Reduced,
}
