//! What every test stands on: the machine, a daemon with servers and secrets around it, tasks and their records.

pub(crate) mod daemon;
pub(crate) mod dns;
pub(crate) mod ear;
pub(crate) mod machine;
pub(crate) mod meeting;
pub(crate) mod netns;
pub(crate) mod options;
pub(crate) mod pins;
pub(crate) mod record;
pub(crate) mod run;
pub(crate) mod server;
pub(crate) mod wait;
pub(crate) mod world;

use std::fmt;

/// A test that this machine cannot run, and why.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Ends a test as skipped.
pub(crate) fn skip(reason: impl Into<String>) -> anyhow::Error {
    Skip(reason.into()).into()
}
