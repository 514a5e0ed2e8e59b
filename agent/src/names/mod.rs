//! Names: the daemon's own resolver for marked processes, and what each task came to know by it.
//!
//! It asks nobody but the host's own resolvers, and knows neither policy nor catalogue: the daemon tells it what a task may
//! ask for.

mod table;

pub use table::{Deciding, Known, Names, TaskMark};
