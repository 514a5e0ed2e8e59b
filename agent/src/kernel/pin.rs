//! What outlives the daemon: maps and links held by names on a BPF file system.
//!
//! ```text
//! DIR/layout            symlink whose target names the layout of the maps (see `abi`)
//! DIR/maps/NAME         each map
//! DIR/links/N/PROGRAM   each attached program of set N; the map `ACTIVE` says which N acts
//! ```

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;

use super::MapError;
use super::link::Link;
use super::maps::Slots;

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No bpffs there.
    #[error("`{}` is not on a BPF file system; mount one (`mount -t bpf bpf {}`), give another `--pin-dir`, or start with `--no-pin`: then enforcement ends with the daemon", .0.display(), .0.parent().unwrap_or(.0).display())]
    NoFileSystem(PathBuf),
    /// Somebody else could put something there.
    #[error("`{}` is not a directory of root's alone; remove it, and check who made it", .0.display())]
    NotOurs(PathBuf),
    /// Another daemon works with it.
    #[error("another writd enforces by `{}`; stop it first (`systemctl stop writd`)", .0.display())]
    InUse(PathBuf),
    /// The maps are those of another build.
    #[error(
        "`{}` holds maps of the layout {found}, and this writd has {own}; start the version that made them, or end the enforcement with `writd detach` and start again", dir.display()
    )]
    Layout {
        /// The directory.
        dir: PathBuf,
        /// What is pinned.
        found: String,
        /// What this build has.
        own: String,
    },
    /// The system refused.
    #[error("cannot use `{}`", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// A pinned map cannot be opened.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// The directory, locked for as long as this lives.
pub struct Pins {
    dir: PathBuf,
    _lock: File,
}

impl Pins {
    /// Opens the directory and makes what is missing.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn create(dir: &Path) -> Result<Self, PinError> {
        let parent = dir.parent().unwrap_or(dir);
        match statfs(if dir.exists() { dir } else { parent }) {
            Ok(found) if found.filesystem_type().0 == BPF_FS_MAGIC => {}
            _ => return Err(PinError::NoFileSystem(dir.to_owned())),
        }
        make(dir)?;
        let pins = Self::open(dir)?;
        make(&pins.maps())?;
        make(&pins.links())?;
        Ok(pins)
    }

    /// Opens the directory as it is.
    ///
    /// # Errors
    /// [`PinError`]; [`PinError::Io`] with [`ErrorKind::NotFound`] if it is not there.
    pub fn open(dir: &Path) -> Result<Self, PinError> {
        let failed = |error| PinError::Io(dir.to_owned(), error);
        let meta = fs::symlink_metadata(dir).map_err(failed)?;
        if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o077 != 0 {
            return Err(PinError::NotOurs(dir.to_owned()));
        }
        // Nothing can be written on such a file system, but its directories can be locked.
        let lock = File::open(dir).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(PinError::InUse(dir.to_owned())),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Takes the directory for maps of the layout `own`.
    ///
    /// # Errors
    /// [`PinError::Layout`] if it holds maps of another.
    pub fn claim(&self, own: &str) -> Result<(), PinError> {
        let path = self.dir.join("layout");
        let found = match fs::read_link(&path) {
            Ok(found) => found.to_string_lossy().into_owned(),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(PinError::Io(path, error)),
            // Without its name nobody can tell what the maps hold.
            Err(_) if self.has_maps()? => "(its name is gone)".to_owned(),
            Err(_) => return symlink(own, &path).map_err(|error| PinError::Io(path, error)),
        };
        if found == own {
            return Ok(());
        }
        Err(PinError::Layout { dir: self.dir.clone(), found, own: own.to_owned() })
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The set of programs that acts, if there is one: 0 for none.
    pub fn active(&self) -> u32 {
        Slots::<u32>::pinned(self, "ACTIVE").map_or(0, |active| active.get(0))
    }

    /// The sets of programs that are attached, or were about to be.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub fn instances(&self) -> Result<Vec<u32>, PinError> {
        let names = entries(&self.links())?;
        Ok(names.iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect())
    }

    /// Makes the place for the links of a set.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub fn add_instance(&self, instance: u32) -> Result<(), PinError> {
        make(&self.instance(instance))
    }

    /// Pins a link. It stays attached for as long as either its name or the link that is returned is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pin(&self, instance: u32, program: &str, link: Link) -> Result<Link, aya::pin::PinError> {
        link.pin(&self.instance(instance).join(program))
    }

    /// Detaches a set of programs. Returns how many they were.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub fn detach(&self, instance: u32) -> Result<usize, PinError> {
        let dir = self.instance(instance);
        let links = entries(&dir)?;
        for link in &links {
            remove(link)?;
        }
        fs::remove_dir(&dir).map_err(|error| PinError::Io(dir, error))?;
        Ok(links.len())
    }

    /// Detaches every set but `keep`. Returns how many programs they were.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub fn detach_all_but(&self, keep: u32) -> Result<usize, PinError> {
        let gone = self.instances()?.into_iter().filter(|&instance| instance != keep);
        gone.map(|instance| self.detach(instance)).sum()
    }

    /// Detaches and unpins everything, and removes the directory. Returns how many programs and maps went.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub fn clear(&self) -> Result<(usize, usize), PinError> {
        // The kernel detaches a program of BPF LSM a moment after its last name has gone: from here on none acts, so that
        // it is true at once what is said when this returns. A map of another build is left to be removed.
        if let Ok(mut active) = Slots::<u32>::pinned(self, "ACTIVE") {
            let _ = active.put(0, 0);
        }
        let programs = self.detach_all_but(0)?;
        let maps = entries(&self.maps())?;
        for map in &maps {
            remove(map)?;
        }
        for dir in [self.maps(), self.links()] {
            absent_is_fine(fs::remove_dir(&dir)).map_err(|error| PinError::Io(dir, error))?;
        }
        remove(&self.dir.join("layout"))?;
        fs::remove_dir(&self.dir).map_err(|error| PinError::Io(self.dir.clone(), error))?;
        Ok((programs, maps.len()))
    }

    fn has_maps(&self) -> Result<bool, PinError> {
        entries(&self.maps()).map(|maps| !maps.is_empty())
    }

    fn maps(&self) -> PathBuf {
        self.dir.join("maps")
    }

    fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    fn instance(&self, instance: u32) -> PathBuf {
        self.links().join(instance.to_string())
    }
}

/// A daemon's time over the directory, from its start on. Dropped before [`Tenure::stay`], it undoes what it did: what acted
/// before goes on acting, and where nothing did, nothing is left.
pub(super) struct Tenure {
    pins: Pins,
    instance: u32,
    taken_over: bool,
    stays: bool,
}

impl Tenure {
    /// Takes the directory. What an earlier daemon attached and never put in force, or had no time to detach, goes.
    pub(super) fn begin(pins: Pins, layout: &str) -> Result<Self, PinError> {
        pins.claim(layout)?;
        let active = pins.active();
        pins.detach_all_but(active)?;
        Ok(Self { pins, instance: active.saturating_add(1), taken_over: active != 0, stays: false })
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The number of the set of programs that this daemon attaches.
    pub(super) fn instance(&self) -> u32 {
        self.instance
    }

    /// Whether another set acted before.
    pub(super) fn taken_over(&self) -> bool {
        self.taken_over
    }

    pub(super) fn stay(&mut self) {
        self.stays = true;
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let pins = &self.pins;
        let undone =
            if self.taken_over { pins.detach_all_but(pins.active()).map(drop) } else { pins.clear().map(drop) };
        if let Err(error) = undone {
            tracing::error!(%error, "programs may be left attached; `writd detach` removes them");
        }
    }
}

fn make(dir: &Path) -> Result<(), PinError> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(PinError::Io(dir.to_owned(), error)),
        _ => Ok(()),
    }
}

/// None, if the directory is not there.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, PinError> {
    let failed = |error| PinError::Io(dir.to_owned(), error);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}

fn remove(path: &Path) -> Result<(), PinError> {
    absent_is_fine(fs::remove_file(path)).map_err(|error| PinError::Io(path.to_owned(), error))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
