//! Noticing that files changed, and taking the change in: keep-last-good, always.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::task::{JoinError, JoinHandle};

use super::DaemonError;
use super::inotify::{Change, Directories};
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
    inotify: Option<Directories>,
    configuration: Configuration,
    changed_configuration: Option<Instant>,
    scan_wanted: bool,
    reloaded: bool,
    last_scan: Instant,
    running: Option<JoinHandle<Rescan>>,
}

impl Watcher {
    /// Watches what can be watched; what cannot is noticed by the regular scan, and policies by SIGHUP.
    pub(super) fn new(config: &Config, protection: &Protection) -> Self {
        let inotify = Directories::new().inspect_err(
            |error| tracing::warn!(%error, "file changes are not noticed at once; send SIGHUP after a change"),
        );
        let mut watcher = Self {
            inotify: inotify.ok(),
            configuration: Configuration { own: config.config_dir.clone(), policies: config.policies_dir.clone() },
            changed_configuration: None,
            scan_wanted: false,
            reloaded: false,
            last_scan: Instant::now(),
            running: None,
        };
        watcher.watch(protection);
        watcher
    }

    /// Brings the watches up to date with what is protected.
    pub(super) fn watch(&mut self, protection: &Protection) {
        let Some(inotify) = &mut self.inotify else { return };
        let configuration = [&self.configuration.own, &self.configuration.policies].map(|path| (path.as_path(), true));
        for (directory, contents) in configuration.into_iter().chain(protection.watch().map(|path| (path, false))) {
            if let Err(error) = inotify.add(directory, contents) {
                tracing::debug!(%error, directory = %directory.display(), "not watched; the regular scan looks at it");
            }
        }
    }

    /// The finding of a scan that is done; `None` if something changed somewhere.
    pub(super) async fn next(&mut self) -> Option<Rescan> {
        loop {
            let result = tokio::select! {
                changes = changes(&mut self.inotify) => {
                    if changes.iter().any(|change| self.configuration.has(change)) {
                        self.changed_configuration = Some(Instant::now());
                    }
                    return None;
                }
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
    pub(super) fn configuration_changed(&mut self) -> bool {
        let due = self.changed_configuration.is_some_and(|at| at.elapsed() >= QUIET);
        if due {
            self.changed_configuration = None;
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

/// Never, if nothing is watched or nothing can be told any more; then the regular scan goes on alone.
async fn changes(inotify: &mut Option<Directories>) -> Vec<Change> {
    let Some(directories) = inotify else { return std::future::pending().await };
    match directories.changes().await {
        Ok(changes) => changes,
        Err(error) => {
            tracing::warn!(%error, "file changes are not noticed at once any more; send SIGHUP after a change");
            *inotify = None;
            vec![Change::Anything]
        }
    }
}

/// Where the configuration is.
struct Configuration {
    own: PathBuf,
    policies: PathBuf,
}

impl Configuration {
    /// Whether a change is one of what the daemon reads.
    fn has(&self, change: &Change) -> bool {
        let Change::At(path) = change else { return true };
        let named = |directory: &PathBuf, extension| {
            path.parent() == Some(directory) && path.extension().is_some_and(|own| own == extension)
        };
        *path == self.policies || named(&self.own, "toml") || named(&self.policies, "cedar")
    }
}

impl Daemon {
    /// Reads everything again. On a fault the last good set stays in force, and the record says so.
    ///
    /// # Errors
    /// What is wrong with the new set.
    pub(super) fn reload(&mut self) -> Result<(), ErrorBody> {
        let refused = match self.read_again() {
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

    /// The sources, if the configuration has no faults either: with one, the next start would fail.
    fn read_again(&self) -> Result<Sources, DaemonError> {
        let config = Config::load(&self.flags)?;
        if config != self.config {
            tracing::warn!("writd.toml differs from what is in force; it takes effect when writd is restarted");
        }
        Sources::read(&self.config)
    }

    /// Takes in what a scan found. True if anything changed.
    pub(super) fn rescanned(&mut self, rescan: Rescan) -> bool {
        let known = self.classes.len();
        let changed = self.protection.apply(&mut self.maps, rescan.scan, rescan.reloaded);
        self.classes = rescan.classes;
        if !changed && self.classes.len() == known {
            return false;
        }
        self.secrets_changed();
        let (files, directories) = self.protection.counts();
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let event = CatalogueChanged { secrets: number(files), directories: number(directories) };
        self.recorder.record(Timestamp::now(), Event::CatalogueChanged(event));
        true
    }

    pub(super) fn reopen_records(&mut self) {
        for error in self.recorder.reopen() {
            tracing::error!("{}", chain(&error));
        }
        self.enclosure.close_records(&mut self.maps, &self.config, &self.guarding);
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
