//! The command line, one file per verb.

pub mod render;
pub mod watch;
