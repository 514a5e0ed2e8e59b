//! Plain types that every module shares. No I/O but reading the clock and text files, no aya, no cedar, no procfs.

pub mod cidr;
pub mod clock;
pub mod decision;
pub mod duration;
pub mod label;
pub mod process;
pub mod resource;
pub mod task;
pub mod text_file;
pub mod toml_text;

pub use decision::{Decision, Lifetime, PolicyRef, Shadow};
pub use label::{Label, LabelSet};
pub use process::Ancestor;
pub use resource::{Endpoint, Hosts, Protocol};
pub use task::{AgentFacts, IntentFacts, TaskFacts, TaskId, UserFacts};

pub use agent_common::{Action, Effect, Mode, Reason, Source};

/// Milliseconds since 1970-01-01 UTC: Cedar's `datetime`.
pub type UnixMillis = i64;
