//! Changes in directories, as inotify tells them.
//!
//! Only what matters is asked for: with `IN_OPEN` or, in a busy directory, `IN_MODIFY`, every process of the host that
//! opens or writes a file beside a secret would pay for an event that nobody wants.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags as Mask, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;

/// Which files there are, and who they are.
const NAMES: Mask = Mask::IN_CREATE
    .union(Mask::IN_DELETE)
    .union(Mask::IN_MOVED_FROM)
    .union(Mask::IN_MOVED_TO)
    .union(Mask::IN_ATTRIB)
    .union(Mask::IN_DELETE_SELF)
    .union(Mask::IN_MOVE_SELF);
/// What is in them as well.
const CONTENTS: Mask = Mask::IN_MODIFY.union(Mask::IN_CLOSE_WRITE);

/// What changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A watched directory, or what is in it under this name.
    At(PathBuf),
    /// More than could be told.
    Anything,
}

/// The directories that are watched.
pub(super) struct Directories {
    inotify: AsyncFd<Handle>,
    paths: HashMap<WatchDescriptor, PathBuf>,
}

struct Handle(Inotify);

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Directories {
    /// None yet.
    ///
    /// # Errors
    /// If the system has no more of them, or no descriptor.
    pub(super) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: the handle owns its descriptor and keeps the same one for its whole life.
        let inotify = unsafe { AsyncFd::register(Handle(inotify)) }?;
        Ok(Self { inotify, paths: HashMap::new() })
    }

    /// Watches which files a directory has and, if `contents`, what is written to them. Nothing if it is watched already.
    ///
    /// # Errors
    /// If it is no directory, or there are too many.
    pub(super) fn add(&mut self, directory: &Path, contents: bool) -> io::Result<()> {
        let mask = if contents { NAMES | CONTENTS } else { NAMES };
        // A directory can be reached by two names: the second does not take from what the first asked for.
        let mask = mask | Mask::IN_ONLYDIR | Mask::from_bits_retain(libc::IN_MASK_ADD);
        let watch = self.inotify.get_ref().0.add_watch(directory, mask)?;
        self.paths.entry(watch).or_insert_with(|| directory.to_owned());
        Ok(())
    }

    /// Waits for changes.
    ///
    /// # Errors
    /// If they cannot be read any more.
    pub(super) async fn changes(&mut self) -> io::Result<Vec<Change>> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match ready.get_inner().0.read_events() {
                Ok(events) => return Ok(events.into_iter().map(|event| change(&mut self.paths, event)).collect()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn change(paths: &mut HashMap<WatchDescriptor, PathBuf>, event: InotifyEvent) -> Change {
    let directory = match event.mask.contains(Mask::IN_IGNORED) {
        true => paths.remove(&event.wd),
        false => paths.get(&event.wd).cloned(),
    };
    match (directory, event.name) {
        (Some(directory), Some(name)) => Change::At(directory.join(name)),
        (Some(directory), None) => Change::At(directory),
        (None, _) => Change::Anything,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::Duration;

    use super::*;

    async fn soon(directories: &mut Directories) -> Vec<Change> {
        tokio::time::timeout(Duration::from_secs(10), directories.changes()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn only_changes_of_names_are_told_where_contents_do_not_matter() {
        let place = tempfile::tempdir().unwrap();
        let (old, new) = (place.path().join("old"), place.path().join("new"));
        fs::write(&old, "a").unwrap();
        let mut directories = Directories::new().unwrap();
        directories.add(place.path(), false).unwrap();
        fs::write(&old, "b").unwrap();
        drop(File::open(&old).unwrap());
        File::create(&new).unwrap();
        assert_eq!(soon(&mut directories).await, [Change::At(new)], "neither the open nor the write");
    }

    #[tokio::test]
    async fn contents_are_told_where_they_matter_under_either_name() {
        let place = tempfile::tempdir().unwrap();
        let (file, other) = (place.path().join("file"), place.path().join("."));
        fs::write(&file, "a").unwrap();
        let mut directories = Directories::new().unwrap();
        directories.add(place.path(), true).unwrap();
        directories.add(&other, false).unwrap();
        fs::write(&file, "b").unwrap();
        assert!(soon(&mut directories).await.contains(&Change::At(file)));
    }

    #[tokio::test]
    async fn a_directory_that_comes_back_can_be_watched_again() {
        let place = tempfile::tempdir().unwrap();
        let inner = place.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let mut directories = Directories::new().unwrap();
        directories.add(&inner, false).unwrap();
        fs::remove_dir(&inner).unwrap();
        while !directories.paths.is_empty() {
            soon(&mut directories).await;
        }
        assert!(directories.add(&inner, false).is_err());
        fs::create_dir(&inner).unwrap();
        directories.add(&inner, false).unwrap();
        assert_eq!(directories.paths.len(), 1);
    }
}
