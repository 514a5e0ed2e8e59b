//! What is written down of each task, so that the next daemon knows it: one file a slot, removed when the slot is free.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use agent_common::Counter;

use super::DaemonError;
use super::protect::chain;
use crate::config::Config;
use crate::task::{Kept, Task};

const LOSSES: &str = "losses";

/// The directory of the files; none where nothing outlives the daemon.
pub(super) struct Keeper {
    dir: Option<PathBuf>,
    /// Deadlines are on the clock of one boot.
    boot: String,
}

impl Keeper {
    /// Makes the directory.
    ///
    /// # Errors
    /// [`DaemonError::Directory`].
    pub(super) fn open(config: &Config) -> Result<Self, DaemonError> {
        let dir = config.pin_dir.is_some().then(|| directory(config));
        if let Some(dir) = &dir {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|error| DaemonError::Directory(dir.clone(), error))?;
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Ok(Self { dir, boot })
    }

    pub(super) fn boot(&self) -> &str {
        &self.boot
    }

    /// Writes a task down, in the place of what its slot had.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn write(&self, task: &Task) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let text = serde_json::to_string(&Kept::new(&self.boot, task))?;
        replace(&file(dir, task.slot), &text)
    }

    /// The same where it may fail: the next daemon then revokes the task, or knows less of it.
    pub(super) fn note(&self, task: &Task) {
        if let Err(error) = self.write(task) {
            tracing::error!(%error, task = %task.facts.id, "a task could not be written down");
        }
    }

    /// The slot is free.
    pub(super) fn forget(&self, slot: u32) {
        if let Some(dir) = &self.dir {
            remove(&file(dir, slot));
        }
    }

    /// Writes down up to which count losses have been recorded.
    pub(super) fn note_losses(&self, told: &HashMap<Counter, u64>) {
        let Some(dir) = &self.dir else { return };
        let told: BTreeMap<&str, u64> = told.iter().map(|(counter, count)| (counter.as_str(), *count)).collect();
        let written = serde_json::to_string(&told).map_err(io::Error::from);
        if let Err(error) = written.and_then(|text| replace(&dir.join(LOSSES), &text)) {
            tracing::error!(%error, "what was lost could not be written down; the next daemon records it again");
        }
    }

    /// Up to which count losses have been recorded by the daemon before.
    pub(super) fn losses(&self) -> HashMap<Counter, u64> {
        let text = self.dir.as_ref().and_then(|dir| fs::read(dir.join(LOSSES)).ok()).unwrap_or_default();
        let told: BTreeMap<String, u64> = serde_json::from_slice(&text).unwrap_or_default();
        Counter::ALL.iter().filter_map(|counter| Some((*counter, *told.get(counter.as_str())?))).collect()
    }

    /// Forgets what only holds for maps that are there no more.
    pub(super) fn start_anew(&self) {
        if let Some(dir) = &self.dir {
            remove(&dir.join(LOSSES));
        }
    }

    /// Everything that was written down of tasks, and can be read.
    pub(super) fn read(&self) -> Vec<Kept> {
        let Some(dir) = &self.dir else { return Vec::new() };
        files(dir).iter().filter_map(|path| read(path)).collect()
    }
}

/// Removes all files.
pub(super) fn forget_all(config: &Config) {
    let dir = directory(config);
    files(&dir).iter().for_each(|path| remove(path));
    let _ = fs::remove_dir(dir);
}

fn directory(config: &Config) -> PathBuf {
    config.state_dir.join("tasks")
}

fn file(dir: &Path, slot: u32) -> PathBuf {
    dir.join(format!("{slot}.json"))
}

/// Not synced: after a crash of the host there is no task to be known.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).collect()
}

fn read(path: &Path) -> Option<Kept> {
    if path.ends_with(LOSSES) {
        return None;
    }
    if path.extension().is_none_or(|extension| extension != "json") {
        // A daemon was killed while it wrote.
        remove(path);
        return None;
    }
    let kept = fs::read(path).and_then(|text| Ok(serde_json::from_slice(&text)?));
    kept.inspect_err(|error| tracing::error!("`{}` is not understood: {}", path.display(), chain(error))).ok()
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::error!("`{}` cannot be removed: {error}", path.display());
    }
}
