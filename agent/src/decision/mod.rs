//! From a question to a verdict: class, row, and how long the row holds on the kernel's clock.
//!
//! Pure: what decides is a [`Judge`] that the daemon makes of policies, catalogues and tasks; where questions come from and
//! verdicts go is the daemon's too. Nothing here does I/O, so that a process is never held for longer than it takes to
//! think.

mod details;
mod rows;

pub use details::{Detail, Details, MAX_DETAILS};
pub use rows::{Answer, Instant, Judge, Rows, TaskKey};
