//! `writd detach`: takes down what a daemon that is gone left in force.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use agent_common::Mode;
use agent_common::maps::{Mark, SLOT_DAEMON, Settings, TaskState};
use jiff::Timestamp;

use super::killing::kill_all;
use super::{DaemonError, keeper, start};
use crate::config::{Config, Flags};
use crate::kernel::maps::{Slots, Table};
use crate::kernel::{LoadError, MapError, PinError, Pins};
use crate::record::{self, Event, Recorder, Sink};

/// What the command line of `writd detach` can say.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DetachFlags {
    /// Directory of writd.toml [default: /etc/writ]
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Directory of the lock [default: /run/writ]
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Directory of what outlives the daemon [default: /var/lib/writ]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Directory on a BPF file system of what the kernel keeps without the daemon [default: /sys/fs/bpf/writ]
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    /// File to which the record of it is appended [default: /var/log/writ/records.jsonl]
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
    /// Let the processes of tasks go on, with nothing that holds them back
    #[arg(long)]
    leave_running: bool,
}

/// What was taken down.
#[derive(Debug)]
pub struct Detached {
    dir: Option<PathBuf>,
    killed: usize,
    left_running: usize,
    programs: usize,
    maps: usize,
}

impl fmt::Display for Detached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(dir) = &self.dir else { return write!(f, "nothing is pinned, nothing was done") };
        let Self { killed, left_running, programs, maps, .. } = self;
        let dir = dir.display();
        writeln!(f, "killed {killed} processes of tasks")?;
        if *left_running > 0 {
            writeln!(f, "WARNING: {left_running} processes of tasks go on, and nothing holds them back any more")?;
        }
        write!(f, "detached {programs} programs and removed {maps} maps from `{dir}`: nothing is enforced any more")
    }
}

/// Ends the enforcement that a daemon left behind: first the processes of enforced tasks, so that none goes on without.
///
/// # Errors
/// [`DaemonError`]; [`DaemonError::Running`] while a daemon runs, and [`DaemonError::StillAlive`] if processes cannot be
/// killed: then everything stays in force.
pub fn detach(flags: &DetachFlags) -> Result<Detached, DaemonError> {
    start::check_host()?;
    let config = Config::load(&Flags {
        config_dir: flags.config_dir.clone(),
        runtime_dir: flags.runtime_dir.clone(),
        state_dir: flags.state_dir.clone(),
        pin_dir: flags.pin_dir.clone(),
        records: flags.records.clone(),
        ..Flags::default()
    })?;
    let nothing = Detached { dir: None, killed: 0, left_running: 0, programs: 0, maps: 0 };
    let Some(dir) = config.pin_dir.clone() else { return Ok(nothing) };
    let _lock = start::lock(&config)?;
    match Pins::open(&dir) {
        Ok(pins) => take_down(&config, &dir, &pins, flags.leave_running),
        Err(PinError::Io(_, error)) if error.kind() == ErrorKind::NotFound => Ok(nothing),
        Err(error) => Err(LoadError::from(error).into()),
    }
}

fn take_down(config: &Config, dir: &Path, pins: &Pins, leave_running: bool) -> Result<Detached, DaemonError> {
    let (killed, left_running) = match Marked::open(pins) {
        Ok(None) => (0, 0),
        Ok(Some(marked)) => marked.end(leave_running)?,
        // Maps of another build, which cannot be read: whoever lets the processes live need not know them.
        Err(_) if leave_running => (0, 0),
        Err(error) => return Err(DaemonError::Unreadable(error)),
    };
    record(config, killed, left_running)?;
    let (programs, maps) = pins.clear().map_err(LoadError::from)?;
    keeper::forget_all(config);
    Ok(Detached { dir: Some(dir.to_owned()), killed, left_running, programs, maps })
}

fn record(config: &Config, killed: usize, left_running: usize) -> Result<(), DaemonError> {
    let number = |count| u64::try_from(count).unwrap_or(u64::MAX);
    let mut recorder = Recorder::new(vec![Sink::file(&config.records)?]);
    let detached = record::Detached { killed: number(killed), left_running: number(left_running) };
    recorder.record(Timestamp::now(), Event::Detached(detached));
    match recorder.close() {
        0 => Ok(()),
        _ => Err(DaemonError::System("write the record", std::io::Error::other("no line was taken"))),
    }
}

/// The maps that tell who is marked.
struct Marked {
    processes: Table<u32, Mark>,
    tasks: Slots<TaskState>,
    settings: Slots<Settings>,
}

impl Marked {
    /// `None` where a start did not even come to make them.
    fn open(pins: &Pins) -> Result<Option<Self>, MapError> {
        if ["PROCESSES", "TASKS", "SETTINGS"].iter().any(|name| !pins.map(name).exists()) {
            return Ok(None);
        }
        Ok(Some(Self {
            processes: Table::pinned(pins, "PROCESSES")?,
            tasks: Slots::pinned(pins, "TASKS")?,
            settings: Slots::pinned(pins, "SETTINGS")?,
        }))
    }

    /// Returns how many processes were killed, and how many were left alive because they may.
    fn end(mut self, leave_running: bool) -> Result<(usize, usize), DaemonError> {
        let own = self.processes.get(std::process::id());
        if own.is_some_and(|mark| mark.slot != SLOT_DAEMON) {
            return Err(LoadError::Marked.into());
        }
        let tasks = &self.tasks;
        let enforced = |mark: &Mark| {
            let task = tasks.get(mark.slot);
            !(task.epoch == mark.epoch && task.mode == Mode::Audit.code())
        };
        if leave_running {
            let marks = self.processes.keys().into_iter().filter_map(|tgid| self.processes.get(tgid));
            return Ok((0, marks.filter(|mark| mark.slot != SLOT_DAEMON && enforced(mark)).count()));
        }
        match kill_all(&self.processes, &mut self.settings, enforced) {
            (killed, 0) => Ok((killed, 0)),
            (_, left) => Err(DaemonError::StillAlive(left)),
        }
    }
}
