//! The kernel side as the daemon sees it: loading, attaching, maps, rings, fanotify. The only module that knows aya.
//!
//! It knows nothing of policy, tasks or records: numbers and bytes in, numbers and bytes out.

pub mod abi;
pub mod attach;
pub mod btf;
pub mod cgroup;
pub mod fanotify;
pub mod learn;
mod link;
pub mod load;
mod log;
pub mod lsm;
pub mod maps;
pub mod offsets;
pub mod pin;
pub mod ring;
mod translate;

pub use attach::{AttachError, Guard, Guards};
pub use fanotify::{Fanotify, Opened};
pub use load::{Kernel, Layout, LoadError, Loaded, Setup};
pub use maps::{MapError, Maps};
pub use pin::{PinError, Pins};
pub use ring::Ring;
