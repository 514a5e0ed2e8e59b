//! Processes: what procfs says of them, who started whom, and how to end one for certain.
//!
//! Only this module reads procfs. It knows nothing of tasks beyond the kernel's slot and epoch, and nothing of aya,
//! policy or records. Nothing here is on the decision path.

mod cgroup;
mod kill;
mod lineage;
mod namespace;
mod network;
mod snapshot;
mod sockets;
mod unix;
mod version;

pub use cgroup::CgroupPaths;
pub use kill::{KillError, Killed, kill_verified};
pub use lineage::{Known, Lineage};
pub use namespace::net_namespaces;
pub use network::{network_namespace, network_namespace_id};
pub use snapshot::{ProcessFacts, SnapshotError, ancestors, is_process, snapshot};
pub use sockets::{HeldSocket, held_sockets};
pub use unix::listening_paths;
pub use version::kernel_is_at_least;
