//! Reading from what is open already, whoever opened it.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, copy_file_range, splice};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::sendfile::sendfile;
use nix::sys::uio::{pread, preadv};
use nix::unistd::pipe;

use crate::net::errno;
use crate::sockets::take;
use crate::{Attempt, State, number, uring};

pub(super) fn attempt(state: &mut State, words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["hold", path] => File::open(path).map_err(|error| errno(&error)).map(|file| state.held = Some(file.into())),
        ["held", way] => match &state.held {
            Some(held) => by(way, held.as_fd()),
            None => Err(Errno::EBADF),
        },
        ["descriptor-by", fd, way] => by(way, inherited(number(fd))),
        ["uring-read", path] => uring::open_and_read(path, false),
        ["uring-async-read", path] => uring::open_and_read(path, true),
        ["take-and-read", path] => take_and_read(path),
        _ => return None,
    })
}

fn inherited(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the descriptor is inherited and stays open until this process ends.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// One byte, by some way.
fn by(way: &str, fd: BorrowedFd<'_>) -> Attempt {
    match way {
        "read" => some(pread(fd, &mut [0], 0)?),
        "readv" => some(preadv(fd, &mut [std::io::IoSliceMut::new(&mut [0])], 0)?),
        "mmap" => mapped(fd),
        "sendfile" => some(sendfile(pipe()?.1, fd, Some(&mut 0), 1)?),
        "splice" => some(splice(fd, Some(&mut 0), pipe()?.1, None, 1, SpliceFFlags::empty())?),
        "copy" => copied(fd),
        "uring" => uring::read(fd, false),
        "uring-async" => uring::read(fd, true),
        "reopen" => File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).map(drop).map_err(|error| errno(&error)),
        _ => Err(Errno::EINVAL),
    }
}

fn some(count: usize) -> Attempt {
    if count == 1 { Ok(()) } else { Err(Errno::ENODATA) }
}

fn mapped(fd: BorrowedFd<'_>) -> Attempt {
    // SAFETY: a new private mapping, read once below.
    let page = unsafe { mmap(None, NonZeroUsize::MIN, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, fd, 0) }?;
    // SAFETY: the file has at least one byte.
    let byte = unsafe { page.cast::<u8>().read_volatile() };
    if byte == 0 { Err(Errno::ENODATA) } else { Ok(()) }
}

/// Into a file beside it.
fn copied(fd: BorrowedFd<'_>) -> Attempt {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|error| errno(&error))?;
    let to = path.with_extension("copied");
    let file = File::create(&to).map_err(|error| errno(&error))?;
    let outcome = copy_file_range(fd, Some(&mut 0), &file, None, 1);
    let _ = std::fs::remove_file(to);
    some(outcome?)
}

/// Is given a file over a unix socket, and reads it.
fn take_and_read(path: &str) -> Attempt {
    let unix = UnixStream::connect(path).map_err(|error| errno(&error))?;
    by("read", take(&unix)?.as_fd())
}
