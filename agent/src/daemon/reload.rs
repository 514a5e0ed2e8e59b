//! Noticing that files changed, and taking the change in: keep-last-good, always.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};

use super::DaemonError;
use super::protect::{Protection, chain};
use super::sources::Sources;
use super::state::Daemon;
use crate::api::{ErrorBody, ErrorCode};
use crate::config::Config;
use crate::domain::clock::BootClock;
use crate::record::{CatalogueChanged, Event, Rejected};
use crate::resource::{ClassTable, Scan, Secrets};

/// Files are read only once they have been left alone for this long: an editor writes more than once.
const QUIET: Duration = Duration::from_millis(200);
/// A scan comes at least this often, for what no watch can tell (mounts, watches that could not be had).
const RESCAN: Duration = Duration::from_secs(30);
/// A scan comes at most this often.
const PAUSE: Duration = Duration::from_millis(50);
/// The wall clock moved against the boot clock by more than slewing does between two ticks: it was set.
const STEP: Duration = Duration::from_millis(20);

/// What a scan for secrets found.
pub(super) struct Rescan {
    scan: Scan,
    classes: ClassTable,
    reloaded: bool,
}

/// Watches the configuration and the directories that secrets are in.
pub(super) struct Watcher {
    inotify: Option<RecommendedWatcher>,
    events: mpsc::Receiver<()>,
    changed_configuration: Arc<std::sync::Mutex<Option<Instant>>>,
    watched: std::collections::BTreeSet<PathBuf>,
    scan_wanted: bool,
    reloaded: bool,
    last_scan: Instant,
    running: Option<JoinHandle<Rescan>>,
}

impl Watcher {
    /// Watches what can be watched; what cannot is noticed by the regular scan, and policies by SIGHUP.
    pub(super) fn new(config: &Config, protection: &Protection) -> Self {
        let (sender, events) = mpsc::channel(1);
        let changed_configuration = Arc::new(std::sync::Mutex::new(None));
        let directories = [config.config_dir.clone(), config.policies_dir.clone()];
        let handler = handler(sender, Arc::clone(&changed_configuration), directories.clone());
        let inotify = notify::recommended_watcher(handler).inspect_err(
            |error| tracing::warn!(%error, "file changes are not noticed at once; send SIGHUP after a change"),
        );
        let mut watcher = Self {
            inotify: inotify.ok(),
            events,
            changed_configuration,
            watched: directories.into_iter().collect(),
            scan_wanted: false,
            reloaded: false,
            last_scan: Instant::now(),
            running: None,
        };
        let directories: Vec<PathBuf> = watcher.watched.iter().cloned().collect();
        directories.iter().for_each(|directory| watcher.add(directory));
        watcher.watch(protection);
        watcher
    }

    /// Brings the watches up to date with what is protected.
    pub(super) fn watch(&mut self, protection: &Protection) {
        let new: Vec<PathBuf> =
            protection.watch().filter(|path| !self.watched.contains(*path)).map(Path::to_owned).collect();
        for directory in new {
            self.add(&directory);
            self.watched.insert(directory);
        }
    }

    fn add(&mut self, directory: &Path) {
        let Some(inotify) = &mut self.inotify else { return };
        if let Err(error) = inotify.watch(directory, RecursiveMode::NonRecursive) {
            tracing::debug!(%error, directory = %directory.display(), "not watched; the regular scan looks at it");
        }
    }

    /// The finding of a scan that is done; `None` if something changed somewhere.
    pub(super) async fn next(&mut self) -> Option<Rescan> {
        loop {
            let result = tokio::select! {
                Some(()) = self.events.recv() => return None,
                result = finished(&mut self.running) => result,
            };
            self.running = None;
            match result {
                Ok(rescan) => return Some(rescan),
                Err(error) => tracing::error!(%error, "a scan for secrets failed; the next one comes"),
            }
        }
    }

    /// A change calls for a scan.
    pub(super) fn note_change(&mut self) {
        self.scan_wanted = true;
    }

    /// A scan is wanted; `reloaded`: because the catalogue is another now.
    pub(super) fn scan_soon(&mut self, reloaded: bool) {
        self.scan_wanted = true;
        self.reloaded |= reloaded;
    }

    /// Whether the configuration changed and has been left alone since. True once a change.
    pub(super) fn configuration_changed(&self) -> bool {
        let mut changed = self.changed_configuration.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let due = changed.is_some_and(|at| at.elapsed() >= QUIET);
        if due {
            *changed = None;
        }
        due
    }

    /// Starts a scan on a thread of its own, since a file system may not answer.
    pub(super) fn scan_if_due(&mut self, secrets: &Arc<Secrets>, classes: &ClassTable) {
        let since = self.last_scan.elapsed();
        let due = since >= RESCAN || (self.scan_wanted && since >= PAUSE);
        if !due || self.running.is_some() {
            return;
        }
        let (secrets, mut classes) = (Arc::clone(secrets), classes.clone());
        let reloaded = std::mem::take(&mut self.reloaded);
        (self.scan_wanted, self.last_scan) = (false, Instant::now());
        self.running = Some(tokio::task::spawn_blocking(move || {
            let scan = secrets.scan(&mut classes);
            Rescan { scan, classes, reloaded }
        }));
    }
}

/// Never, if no scan is running.
async fn finished(running: &mut Option<JoinHandle<Rescan>>) -> Result<Rescan, JoinError> {
    match running {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

fn handler(
    sender: mpsc::Sender<()>,
    configuration: Arc<std::sync::Mutex<Option<Instant>>>,
    [configuration_dir, policies_dir]: [PathBuf; 2],
) -> impl Fn(notify::Result<notify::Event>) + Send + 'static {
    move |event| {
        let Ok(event) = event else { return };
        if matches!(event.kind, notify::EventKind::Access(_)) {
            return;
        }
        let ours = |path: &PathBuf| {
            let named = |directory: &PathBuf, extension| {
                path.parent() == Some(directory) && path.extension().is_some_and(|own| own == extension)
            };
            *path == policies_dir || named(&configuration_dir, "toml") || named(&policies_dir, "cedar")
        };
        if event.paths.iter().any(ours) {
            *configuration.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Instant::now());
        }
        // One waiting note is enough.
        let _ = sender.try_send(());
    }
}

impl Daemon {
    /// Reads everything again. On a fault the last good set stays in force, and the record says so.
    ///
    /// # Errors
    /// What is wrong with the new set.
    pub(super) fn reload(&mut self) -> Result<(), ErrorBody> {
        let refused = match Sources::read(&self.config) {
            Ok(sources) => match self.adopt(sources) {
                Ok(()) => return Ok(()),
                Err(error) => (error, true),
            },
            Err(error) => (chain(&error), is_policy(&error)),
        };
        let (error, policy) = refused;
        tracing::warn!("reload refused, the last good set stays in force: {error}");
        self.policies_error = Some(error.clone());
        let rejected = Rejected { error: error.clone(), generation: self.generation };
        let event = if policy { Event::PolicyRejected(rejected) } else { Event::CatalogueRejected(rejected) };
        self.recorder.record(Timestamp::now(), event);
        Err(ErrorBody::new(ErrorCode::ReloadRefused, error, "mend it and reload; the last good set stays in force"))
    }

    /// Takes in what a scan found. True if anything changed.
    pub(super) fn rescanned(&mut self, rescan: Rescan) -> bool {
        let known = self.classes.classes().len();
        let changed = self.protection.apply(&mut self.maps, rescan.scan, rescan.reloaded);
        self.classes = rescan.classes;
        if !changed && self.classes.classes().len() == known {
            return false;
        }
        self.secrets_changed();
        let (files, directories) = self.protection.counts();
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let event = CatalogueChanged { secrets: number(files), directories: number(directories), endpoints: 0 };
        self.recorder.record(Timestamp::now(), Event::CatalogueChanged(event));
        true
    }

    pub(super) fn reopen_records(&mut self) {
        for error in self.recorder.reopen() {
            tracing::error!("{}", chain(&error));
        }
    }

    /// Notices that the wall clock was set, and keeps the conversion between the clocks fresh.
    pub(super) fn watch_clock(&mut self) {
        let fresh = BootClock::now();
        let before = std::mem::replace(&mut self.clock, fresh);
        if fresh.stepped_since(&before) > STEP {
            self.clock_was_set();
        }
    }
}

fn is_policy(error: &DaemonError) -> bool {
    matches!(error, DaemonError::Policies(_) | DaemonError::PolicyFiles(_))
}
