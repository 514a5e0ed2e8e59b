//! Keeping the guards true to the catalogue: which files are secrets right now.
//!
//! Each protected file and directory is held by an `O_PATH` descriptor, so that its inode number cannot be given to
//! another file while a rule speaks of it. A secret that was renamed away stays protected until it is really gone.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_common::event::Object;
use agent_common::maps::FileKey;

use super::snapshot::Places;
use crate::kernel::{Fanotify, MapError, Maps, learn};
use crate::resource::{Changes, Ledger, Protected, Scan};

/// What guards secret reads on this host.
#[derive(Clone)]
pub(super) enum Guarding {
    /// The kernel program `file_open`.
    Kernel,
    /// Permission events.
    Fanotify(Arc<Fanotify>),
}

struct Held {
    path: PathBuf,
    class: u32,
    keys: Vec<FileKey>,
    directory: bool,
    /// Keeps the inode from being freed.
    file: File,
}

/// The protected files as the guards have them.
pub(super) struct Protection {
    guarding: Guarding,
    scan: Scan,
    held: HashMap<PathBuf, Held>,
    /// Renamed away or unlinked, and perhaps still open or linked somewhere.
    orphans: Vec<Held>,
    paths: HashMap<FileKey, PathBuf>,
    problems: Vec<String>,
    ledger: Ledger,
}

impl Protection {
    pub(super) fn new(guarding: Guarding) -> Self {
        let (held, orphans, paths) = (HashMap::new(), Vec::new(), HashMap::new());
        Self { guarding, scan: Scan::default(), held, orphans, paths, problems: Vec::new(), ledger: Ledger::default() }
    }

    /// Brings the guards from the last scan to this one. True if anything changed.
    ///
    /// `reloaded`: the catalogue is another than at the last scan.
    pub(super) fn apply(&mut self, maps: &mut Maps, mut scan: Scan, reloaded: bool) -> bool {
        self.ledger.settle(&mut scan, reloaded);
        let changes = scan.changes_since(&self.scan);
        self.problems = scan.problems.iter().map(ToString::to_string).collect();
        self.scan = scan;
        for gone in &changes.gone {
            if let Some(held) = self.held.remove(&gone.path) {
                // Still where it was: it is the catalogue that no longer speaks of it.
                if reloaded && still_there(gone) {
                    self.unwatch(&held);
                    self.free(maps, &held);
                } else {
                    self.orphans.push(held);
                }
            }
        }
        let mut failed = HashSet::new();
        for (found, directory) in changed(&changes) {
            if let Err(cause) = self.protect(maps, found, directory) {
                let path = found.path.display();
                self.problems.push(format!("`{path}` is not protected: {cause}"));
                failed.insert(found.path.clone());
            }
        }
        self.scan.forget(&failed);
        self.bury(maps);
        self.forget_known_orphans();
        !changes.is_empty()
    }

    /// An orphan that was found again under another name, or that is one of several under which a file was known, needs no
    /// descriptor of its own.
    fn forget_known_orphans(&mut self) {
        let mut known: HashSet<FileKey> = self.held.values().flat_map(|held| held.keys.iter().copied()).collect();
        self.orphans.retain(|orphan| orphan.keys.first().is_some_and(|key| known.insert(*key)));
    }

    /// Protects one more file, which no catalogue speaks of.
    pub(super) fn add(&mut self, maps: &mut Maps, path: &Path, class: u32) -> Result<(), String> {
        let meta = std::fs::metadata(path).map_err(|error| error.to_string())?;
        let found = Protected { path: path.to_owned(), class, device: meta.dev(), inode: meta.ino() };
        self.protect(maps, &found, false)
    }

    /// Every place, those of orphans included.
    pub(super) fn places(&self) -> Places {
        let mut places = Places::default();
        for held in self.orphans.iter().chain(self.held.values()) {
            let map = if held.directory { &mut places.directories } else { &mut places.files };
            map.extend(held.keys.iter().map(|key| ((key.device, key.inode), held.class)));
        }
        places
    }

    /// The path under which the catalogue found what a record speaks of.
    pub(super) fn path_of(&self, object: &Object) -> Option<PathBuf> {
        if object.directory.inode == 0 {
            return self.paths.get(&object.file).cloned();
        }
        let directory = self.paths.get(&object.directory)?;
        if object.directory == object.file {
            return Some(directory.clone());
        }
        Some(directory.join(OsStr::from_bytes(object.name())))
    }

    /// Directories whose change calls for a new scan.
    pub(super) fn watch(&self) -> impl Iterator<Item = &Path> {
        self.scan.watch.iter().map(PathBuf::as_path)
    }

    /// Protected files and directories.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.scan.files.len() + self.scan.inside.len(), self.scan.directories.len())
    }

    /// What could not be protected, and why.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    fn protect(&mut self, maps: &mut Maps, found: &Protected, directory: bool) -> Result<(), String> {
        let file = hold(found)?;
        let keys = self.guard(maps, found, &file, directory)?;
        for key in &keys {
            self.paths.insert(*key, found.path.clone());
        }
        let held = Held { path: found.path.clone(), class: found.class, keys, directory, file };
        // What was here before under the same path is another file, or has another class now.
        if let Some(before) = self.held.insert(found.path.clone(), held)
            && before.keys.first() != self.held.get(&found.path).and_then(|now| now.keys.first())
        {
            self.orphans.push(before);
        }
        Ok(())
    }

    /// By the descriptor that is held, not by the path: whoever swaps something on the way changes nothing.
    fn guard(&self, maps: &mut Maps, found: &Protected, file: &File, directory: bool) -> Result<Vec<FileKey>, String> {
        let held = by_descriptor(file);
        match &self.guarding {
            Guarding::Kernel => {
                let keys = learn::learn(maps, &held).map_err(|error| chain(&error))?;
                keys.iter().try_for_each(|key| put(maps, *key, found.class, directory)).map_err(|e| chain(&e))?;
                keys.iter().try_for_each(|key| mark_device(maps, key.device)).map_err(|e| chain(&e))?;
                Ok(keys)
            }
            Guarding::Fanotify(group) => {
                let watched = if directory { group.watch_directory(&held) } else { group.watch_file(&held) };
                watched.map_err(|error| chain(&error))?;
                Ok(vec![FileKey { device: found.device, inode: found.inode }])
            }
        }
    }

    /// Drops the rules of orphans that are gone for good.
    fn bury(&mut self, maps: &mut Maps) {
        let orphans = std::mem::take(&mut self.orphans);
        for orphan in orphans {
            match orphan.file.metadata() {
                Ok(meta) if meta.nlink() == 0 => {}
                _ => {
                    self.orphans.push(orphan);
                    continue;
                }
            }
            self.free(maps, &orphan);
        }
    }

    /// Only for what is no secret any more. The mark on an unlinked file goes when the file does: until then a descriptor
    /// that somebody holds leads to it.
    fn unwatch(&self, held: &Held) {
        if let Guarding::Fanotify(group) = &self.guarding {
            group.unwatch(&by_descriptor(&held.file), held.directory);
        }
    }

    /// Takes the rules back.
    fn free(&mut self, maps: &mut Maps, held: &Held) {
        if let Ok(meta) = held.file.metadata() {
            self.ledger.forget(meta.dev(), meta.ino());
        }
        for key in &held.keys {
            let map = if held.directory { &mut maps.directories } else { &mut maps.secrets };
            map.remove(*key);
            if self.paths.get(key) == Some(&held.path) {
                self.paths.remove(key);
            }
        }
    }
}

/// What is new or different, and whether it is a directory. A file inside a protected directory gets a rule of its own,
/// so that it stays protected when it is moved out.
fn changed(changes: &Changes) -> impl Iterator<Item = (&Protected, bool)> {
    let files = changes.files.iter().chain(&changes.inside).map(|file| (file, false));
    files.chain(changes.directories.iter().map(|directory| (directory, true)))
}

fn put(maps: &mut Maps, key: FileKey, class: u32, directory: bool) -> Result<(), MapError> {
    let map = if directory { &mut maps.directories } else { &mut maps.secrets };
    map.put(key, class)
}

/// Tells the program that files of this device are worth a closer look.
fn mark_device(maps: &mut Maps, device: u64) -> Result<(), MapError> {
    maps.secrets.put(FileKey { device, inode: 0 }, 0)
}

/// A path that leads to what a descriptor holds, whatever became of its name.
fn by_descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn still_there(found: &Protected) -> bool {
    std::fs::symlink_metadata(&found.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (found.device, found.inode))
}

/// Takes hold of what the scan found; what is there now may be something else.
fn hold(found: &Protected) -> Result<File, String> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let file =
        OpenOptions::new().read(true).custom_flags(flags).open(&found.path).map_err(|error| error.to_string())?;
    let meta = file.metadata().map_err(|error| error.to_string())?;
    if (meta.dev(), meta.ino()) == (found.device, found.inode) {
        Ok(file)
    } else {
        Err("it was replaced during the scan; the next scan takes it in".to_owned())
    }
}

/// An error and what caused it, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
