//! Tasks: who may have one (the registry) and which there are (the table). Pure: no clock, no file, no kernel.

mod hierarchy;
mod kept;
pub mod open;
pub mod registry;
pub mod table;

pub use kept::Kept;
pub use open::{KnownLabels, Limits, OpenError, TaskRequest};
pub use registry::{Registry, RegistryError};
pub use table::{Counts, FindError, Now, Task, TaskTable};
