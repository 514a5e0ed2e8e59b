//! How the kernel knows a file: `super_block.s_dev` and `inode.i_ino`, told by the `file_open` program as the daemon opens it.
//!
//! `stat(2)` tells another device on btrfs and overlayfs, so asking it would protect nothing there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use agent_common::maps::{FileKey, LEARNED_FILES, Learned};
use bytemuck::Zeroable;

use super::{MapError, Maps};

/// Why a file's identity could not be learned.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// It could not be opened.
    #[error("cannot open it")]
    Open(#[source] io::Error),
    /// The map could not be reset.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel program saw no open, or more than it has room for.
    #[error("the kernel saw {0} opens where 1 to {LEARNED_FILES} were expected")]
    Seen(u64),
}

/// Opens `path` without waiting and returns the keys of every inode that the kernel opened for it (two on overlayfs).
///
/// Must be called by the thread whose opens feed `LEARNED`, with `file_open` attached.
///
/// # Errors
/// [`LearnError`].
pub fn learn(maps: &mut Maps, path: &Path) -> Result<Vec<FileKey>, LearnError> {
    maps.learned.put(0, Learned::zeroed())?;
    let opened = open(path);
    let learned = maps.learned.get(0);
    // The program has seen the file even where the open then failed, as it does while somebody has a lease on it.
    if learned.count == 0 {
        opened.map_err(LearnError::Open)?;
    }
    let count = usize::try_from(learned.count).unwrap_or(usize::MAX);
    match learned.files.get(..count) {
        Some(keys) if count > 0 => Ok(keys.to_vec()),
        _ => Err(LearnError::Seen(learned.count)),
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}
