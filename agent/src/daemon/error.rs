//! Why the daemon did not start, or ended, and with which exit code.

use std::io;
use std::path::PathBuf;

use crate::api::BindError;
use crate::config::{ConfigError, Require};
use crate::domain::toml_text::TextErrors;
use crate::kernel::{AttachError, LoadError, MapError, PinError};
use crate::policy;

/// What `--help` says of exit codes.
pub const HELP: &str = "\
Exit codes:
    0  stopped as asked, or --check found no fault
    1  it failed while starting or running
    2  the command line is not understood
    3  configuration, policies, registry or catalogues have faults
    4  this kernel or this user cannot run it
    5  another daemon is running
    6  the host offers less than --require asks for
    7  what is pinned, or where it is to be, cannot be used";

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Not uid 0.
    #[error("writd must be run as root: it loads eBPF programs; start it with `sudo writd` or `systemctl start writd`")]
    NotRoot,
    /// The process ids that the kernel speaks of are not the ones seen here.
    #[error(
        "writd must run in the initial pid namespace, to name the processes that the kernel names; start it on the host"
    )]
    PidNamespace,
    /// `writd.toml` or a flag.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Registry or catalogues.
    #[error(transparent)]
    Text(#[from] TextErrors),
    /// A file of the configuration directory.
    #[error("cannot read `{}`; make it a file that root can read, or remove it", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The policies' directory.
    #[error(transparent)]
    PolicyFiles(#[from] policy::LoadError),
    /// Policies.
    #[error("{0}")]
    Policies(#[from] policy::LoadErrors),
    /// Another daemon.
    #[error("another writd is running: it holds `{}`; stop it first (`systemctl stop writd`), or choose another `--runtime-dir`", .0.display())]
    Running(PathBuf),
    /// The runtime or state directory.
    #[error("cannot use the directory `{}`; check that it can be made and written", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// The socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The record file.
    #[error(transparent)]
    Records(#[from] crate::record::OpenError),
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] LoadError),
    /// A guard that every host must have.
    #[error(transparent)]
    Guard(#[from] AttachError),
    /// The host offers too little.
    #[error("--require {}: {missing}", require_word(*.require))]
    Coverage {
        /// What was asked for.
        require: Require,
        /// What is missing, and the next step.
        missing: String,
    },
    /// The canary could not be run.
    #[error("cannot run the canary that proves each path; {0}")]
    Canary(String),
    /// `writd detach` could not end everybody.
    #[error(
        "{0} processes of tasks could not be killed, so everything stays in force; end them, or give `--leave-running`"
    )]
    StillAlive(usize),
    /// `writd detach` does not know whom to end.
    #[error("cannot tell which processes work for tasks; end them by hand and give `--leave-running`")]
    Unreadable(#[source] MapError),
    /// A thread or a task of the daemon ended by itself.
    #[error("{0} ended; the daemon stops, since it can no longer decide")]
    Ended(&'static str),
    /// Anything else of the system.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
}

impl DaemonError {
    /// The exit code, as [`HELP`] lists them.
    pub fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Text(_) | Self::Read(..) | Self::PolicyFiles(_) | Self::Policies(_) => 3,
            Self::Running(_) | Self::Bind(BindError::InUse(_)) => 5,
            Self::Kernel(LoadError::Pin(PinError::InUse(_))) => 5,
            Self::Kernel(LoadError::Pin(_)) => 7,
            Self::NotRoot | Self::PidNamespace | Self::Kernel(_) | Self::Guard(_) => 4,
            Self::Coverage { .. } => 6,
            _ => 1,
        }
    }
}

fn require_word(require: Require) -> &'static str {
    match require {
        Require::Any => "any",
        Require::Reduced => "reduced",
        Require::Full => "full",
    }
}
