//! Permission events on catalogued files: the reduced tier's guard for secret reads.
//!
//! The kernel holds the opener until the answer is written (`fs/notify/fanotify/fanotify.c: fanotify_get_response`). The
//! thread that answers must never open a marked file, log, or wait for anything that might.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::fanotify::{
    EventFFlags, Fanotify as Group, FanotifyEvent, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};

/// A group of permission marks.
pub struct Fanotify(Group);

/// Somebody who waits for an answer.
#[derive(Debug)]
pub struct Opened<'a> {
    /// Thread group id.
    pub tgid: u32,
    /// `stat(2)`'s device and inode of what is opened or read.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
    /// False for a read of a descriptor that is open already.
    pub open: bool,
    fd: BorrowedFd<'a>,
}

impl Opened<'_> {
    /// Device and inode of the directory that the file is in, as far as its path can be followed from here.
    pub fn parent(&self) -> Option<(u64, u64)> {
        let path = self.path()?;
        // The path is the opener's: in another mount namespace it may lead elsewhere.
        let own = std::fs::symlink_metadata(&path).ok()?;
        if (own.dev(), own.ino()) != (self.device, self.inode) {
            return None;
        }
        let metadata = std::fs::metadata(path.parent()?).ok()?;
        Some((metadata.dev(), metadata.ino()))
    }

    /// Writes the last component of the path, cut to `name`'s length.
    pub fn write_name(&self, name: &mut [u8]) {
        let path = self.path();
        let component = path.as_deref().and_then(Path::file_name).unwrap_or_default();
        for (to, from) in name.iter_mut().zip(component.as_bytes()) {
            *to = *from;
        }
    }

    fn path(&self) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/self/fd/{}", self.fd.as_raw_fd())).ok()
    }
}

/// Why there are no permission events.
#[derive(Debug, thiserror::Error)]
pub enum FanotifyError {
    /// No group.
    #[error("this kernel gives no fanotify permission events (CONFIG_FANOTIFY_ACCESS_PERMISSIONS)")]
    Init(#[source] nix::Error),
    /// The path could not be marked.
    #[error("cannot watch `{0}`")]
    Mark(String, #[source] nix::Error),
}

impl Fanotify {
    /// Opens a group.
    ///
    /// # Errors
    /// [`FanotifyError::Init`].
    pub fn new() -> Result<Self, FanotifyError> {
        let flags = InitFlags::FAN_CLASS_CONTENT
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | InitFlags::FAN_UNLIMITED_QUEUE
            | InitFlags::FAN_UNLIMITED_MARKS;
        let file_flags = EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC;
        Group::init(flags, file_flags).map(Self).map_err(FanotifyError::Init)
    }

    /// Watches one file.
    ///
    /// # Errors
    /// [`FanotifyError::Mark`].
    pub fn watch_file(&self, path: &Path) -> Result<(), FanotifyError> {
        self.mark(path, MarkFlags::FAN_MARK_ADD, permissions())
    }

    /// Watches a directory and the files directly in it.
    ///
    /// # Errors
    /// [`FanotifyError::Mark`].
    pub fn watch_directory(&self, path: &Path) -> Result<(), FanotifyError> {
        let mask = permissions() | MaskFlags::FAN_EVENT_ON_CHILD | MaskFlags::FAN_ONDIR;
        self.mark(path, MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_ONLYDIR, mask)
    }

    /// Stops watching; that it was not watched, or is gone, is no error.
    pub fn unwatch(&self, path: &Path, directory: bool) {
        let children = MaskFlags::FAN_EVENT_ON_CHILD | MaskFlags::FAN_ONDIR;
        let mask = if directory { permissions() | children } else { permissions() };
        let _ = self.mark(path, MarkFlags::FAN_MARK_REMOVE, mask);
    }

    fn mark(&self, path: &Path, flags: MarkFlags, mask: MaskFlags) -> Result<(), FanotifyError> {
        self.0
            .mark(flags, mask, nix::fcntl::AT_FDCWD, Some(path))
            .map_err(|error| FanotifyError::Mark(path.display().to_string(), error))
    }

    /// Answers everybody who waits: `allow` decides. Returns how many events were read.
    ///
    /// # Errors
    /// That of read(2), or the last one of write(2) for an answer: the kernel keeps such an opener waiting until the group
    /// closes.
    pub fn answer(&self, mut allow: impl FnMut(&Opened<'_>) -> bool) -> io::Result<usize> {
        let events = match self.0.read_events() {
            Err(nix::Error::EAGAIN) => return Ok(0),
            other => other?,
        };
        // All of them, whatever becomes of one: who is not answered waits.
        let mut result = Ok(events.len());
        for event in &events {
            if let Err(error) = self.answer_one(event, &mut allow) {
                result = Err(error);
            }
        }
        result
    }

    fn answer_one(&self, event: &FanotifyEvent, allow: &mut impl FnMut(&Opened<'_>) -> bool) -> io::Result<()> {
        let Some(fd) = event.fd() else { return Ok(()) };
        // What cannot be told apart is refused: the mark is on a secret.
        let allowed = opened(event, fd).is_ok_and(|opened| allow(&opened));
        let response = if allowed { Response::FAN_ALLOW } else { Response::FAN_DENY };
        match self.0.write_response(FanotifyResponse::new(fd, response)) {
            // The opener was killed while it waited.
            Err(nix::Error::ENOENT) => Ok(()),
            other => Ok(other?),
        }
    }
}

fn permissions() -> MaskFlags {
    MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ACCESS_PERM
}

fn opened<'a>(event: &FanotifyEvent, fd: BorrowedFd<'a>) -> io::Result<Opened<'a>> {
    let stat = nix::sys::stat::fstat(fd)?;
    Ok(Opened {
        tgid: u32::try_from(event.pid()).map_err(io::Error::other)?,
        device: stat.st_dev,
        inode: stat.st_ino,
        open: event.mask().contains(MaskFlags::FAN_OPEN_PERM),
        fd,
    })
}

impl AsFd for Fanotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
