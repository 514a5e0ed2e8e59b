//! How `writ` ends: every error has its exit code.

use std::io;
use std::path::PathBuf;

use crate::api::ClientError;

/// What `--help` says of exit codes.
pub const HELP: &str = "\
Exit codes:
    0  done
    1  the daemon refused, or the answer could not be had or printed
    2  the command line is not understood
    3  no daemon, or no permission to speak to it
    4  doctor: something that the tier promises is not enforced
  125  run: the task was not opened, the command did not start
  126  run: the command was found and could not be executed
  127  run: the command was not found
  `writ run` becomes the command: otherwise its exit code is the command's own.";

/// Why `writ` did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The daemon refused, or is not there.
    #[error(transparent)]
    Daemon(#[from] ClientError),
    /// `doctor`: less is enforced than the tier promises; what, has been printed.
    #[error("{0} of what the tier promises is not enforced; the column NEXT says what to do")]
    Unsound(usize),
    /// `run`: there is no task, so the command was not started.
    #[error("`{command}` was not started: {cause}")]
    NotStarted {
        /// The command.
        command: String,
        /// Why.
        cause: Box<Failure>,
    },
    /// `run`: this process has threads, of which a mark could not cover what they did before.
    #[error(
        "this process has {0} threads where one is needed; start `writ run` without preloaded libraries \
         (see LD_PRELOAD)"
    )]
    Threads(usize),
    /// `run`: the command does not exist.
    #[error("`{0}` was not found; check its name and PATH")]
    NotFound(String),
    /// `run`: the command exists and cannot be executed.
    #[error("`{command}` cannot be executed: {cause}; check its permissions and format")]
    NotExecutable {
        /// The command.
        command: String,
        /// What the system said.
        cause: io::Error,
    },
    /// `run`: the command exists, and what it is to be interpreted by does not.
    #[error("`{0}` cannot be executed: its interpreter was not found; see its first line (of a binary: `readelf -l`)")]
    NoInterpreter(String),
    /// A file of /proc that every process has.
    #[error("cannot read `{}`: {cause}; mount procfs on /proc", path.display())]
    Proc {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Open descriptors could not be kept from the command.
    #[error("cannot close descriptors on exec: {0}; a kernel of 5.11 or later is needed")]
    Descriptors(io::Error),
    /// The event loop could not be made.
    #[error("cannot set up the connection to the daemon: {0}; check the limit on open files (`ulimit -n`)")]
    Runtime(io::Error),
    /// Standard output could not be written.
    #[error("cannot write to standard output: {0}; check where it leads")]
    Output(io::Error),
    /// The answer has no JSON form.
    #[error("cannot write the answer as JSON: {0}; use `--output text`")]
    Json(serde_json::Error),
}

impl Failure {
    /// The exit code, as [`HELP`] lists them.
    pub fn code(&self) -> u8 {
        match self {
            Self::Daemon(ClientError::NoDaemon { .. } | ClientError::Permission(_)) => 3,
            Self::Unsound(_) => 4,
            Self::NotStarted { .. } => 125,
            Self::NotExecutable { .. } | Self::NoInterpreter(_) => 126,
            Self::NotFound(_) => 127,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_help_and_a_missing_daemon_has_its_own() {
        let no_daemon = || Failure::Daemon(ClientError::NoDaemon { socket: "/s".into(), cause: "x".into() });
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let failures = [
            (Failure::Output(denied()), 1),
            (no_daemon(), 3),
            (Failure::Daemon(ClientError::Permission("/s".into())), 3),
            (Failure::NotStarted { command: "sh".into(), cause: no_daemon().into() }, 125),
            (Failure::NotExecutable { command: "sh".into(), cause: denied() }, 126),
            (Failure::NoInterpreter("./sh".into()), 126),
            (Failure::NotFound("sh".into()), 127),
            (Failure::Unsound(1), 4),
        ];
        for (failure, code) in failures {
            assert_eq!(failure.code(), code, "{failure}");
            assert!(HELP.lines().any(|line| line.trim_start().starts_with(&format!("{code}  "))), "{code}");
        }
    }
}
