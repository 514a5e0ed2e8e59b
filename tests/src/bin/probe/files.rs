//! Ways to a file's content.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, RenameFlags, openat2, renameat2};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::net::errno;
use crate::{Attempt, say};

pub(super) fn attempt(words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["read", path] => read(path),
        ["openat2", path] => with_openat2(path),
        ["reopen", path] => reopen(path),
        ["unlink-reopen", path] => unlink_reopen(path),
        ["self-root", path] => read(format!("/proc/self/root{path}")),
        ["mmap", path] => with_mmap(path),
        ["read-write", path] => io(File::options().read(true).write(true).open(path)).map(drop),
        ["write", path] => io(File::options().write(true).open(path)).map(drop),
        ["rename-read", from, to] => rename_read(from, to),
        ["link-read", from, to] => link_read(from, to),
        ["exec-file", path] => exec_file(path),
        ["link", from, to] => io(std::fs::hard_link(from, to)),
        ["rename", from, to] => io(std::fs::rename(from, to)),
        ["exchange", one, other] => exchange(one, other),
        ["unlink", path] => io(std::fs::remove_file(path)),
        ["remove-directory", path] => io(std::fs::remove_dir(path)),
        ["make-directory", path] => io(std::fs::create_dir(path)),
        ["symlink", to, path] => io(std::os::unix::fs::symlink(to, path)),
        ["make-node", path] => mknod(path, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0),
        ["truncate", path] => nix::unistd::truncate(path, 0),
        ["create", path] => io(std::fs::write(path, b"new")),
        _ => return None,
    })
}

fn io<T>(result: std::io::Result<T>) -> Attempt<T> {
    result.map_err(|error| errno(&error))
}

fn read(path: impl AsRef<Path>) -> Attempt {
    read_byte(&mut io(File::open(path))?)
}

fn read_byte(file: &mut File) -> Attempt {
    let count = io(file.read(&mut [0]))?;
    if count == 1 { Ok(()) } else { Err(Errno::ENODATA) }
}

fn with_openat2(path: &str) -> Attempt {
    let fd = openat2(AT_FDCWD, path, OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC))?;
    read_byte(&mut File::from(fd))
}

/// `O_PATH` gives no content; the file behind its magic link does.
fn reopen(path: &str) -> Attempt {
    let handle = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    read(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// A descriptor of that kind outlives the name; the daemon has time to notice that the name is gone.
fn unlink_reopen(path: &str) -> Attempt {
    let handle = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    io(std::fs::remove_file(path))?;
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        let outcome = read(format!("/proc/self/fd/{}", handle.as_raw_fd()));
        if outcome.is_ok() || Instant::now() > end {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn with_mmap(path: &str) -> Attempt {
    let file = io(File::open(path))?;
    // SAFETY: a new private mapping, read once below.
    let page = unsafe { mmap(None, NonZeroUsize::MIN, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, &file, 0) }?;
    // SAFETY: the file has at least one byte.
    let byte = unsafe { page.cast::<u8>().read_volatile() };
    if byte == 0 { Err(Errno::ENODATA) } else { Ok(()) }
}

/// Under its other name, then under its own again.
fn rename_read(from: &str, to: &str) -> Attempt {
    io(std::fs::rename(from, to))?;
    say(read(to));
    io(std::fs::rename(to, from))?;
    read(from)
}

fn exchange(one: &str, other: &str) -> Attempt {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)
}

fn link_read(from: &str, to: &str) -> Attempt {
    io(std::fs::hard_link(from, to))?;
    let outcome = read(to);
    io(std::fs::remove_file(to))?;
    outcome
}

/// A file that is no program gives `ENOEXEC`, but only to who may open it.
fn exec_file(path: &str) -> Attempt {
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    match nix::unistd::execv(&path, &[&path]) {
        Err(Errno::ENOEXEC) => Ok(()),
        Err(error) => Err(error),
    }
}
