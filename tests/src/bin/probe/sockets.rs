//! Sockets of other kinds and of other makers.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags};

use crate::net::{address, connect, errno, plain_socket};
use crate::{Attempt, number};

pub(super) fn attempt(words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["socket", family, kind, protocol] => plain_socket(number(family), number(kind), number(protocol)).map(drop),
        ["connect-fd", fd, to] => connect_fd(number(fd), to),
        ["take-and-connect", path, to] => take_and_connect(path, to),
        ["send-fd", fd] => send_fd(number(fd)),
        ["sendfile-fd", fd] => sendfile_fd(number(fd)),
        ["take-and-send", path] => take_and_send(path),
        ["give-tcp", path] => give(path, libc::SOCK_STREAM),
        ["give-connected", path, to] => give_connected(path, to),
        ["give-udp", path] => give(path, libc::SOCK_DGRAM),
        _ => return None,
    })
}

/// Connects a socket that was there when this program began.
fn connect_fd(fd: RawFd, to: &str) -> Attempt {
    // SAFETY: the descriptor is inherited and stays open until this process ends.
    let inherited = unsafe { BorrowedFd::borrow_raw(fd) };
    let own = inherited.try_clone_to_owned().map_err(|error| errno(&error))?;
    connect(&own, address(to))
}

/// Writes to a socket that was there when this program began.
fn send_fd(fd: RawFd) -> Attempt {
    // SAFETY: the descriptor is inherited and stays open until this process ends.
    nix::unistd::write(unsafe { BorrowedFd::borrow_raw(fd) }, b"x").map(drop)
}

/// The same without a buffer of this program's.
fn sendfile_fd(fd: RawFd) -> Attempt {
    let file = std::fs::File::open("/proc/self/exe").map_err(|error| errno(&error))?;
    // SAFETY: two descriptors, no offset, one byte.
    Errno::result(unsafe { libc::sendfile(fd, file.as_raw_fd(), std::ptr::null_mut(), 1) }).map(drop)
}

/// Is given a connected socket over a unix socket, and writes to it.
fn take_and_send(path: &str) -> Attempt {
    let unix = UnixStream::connect(path).map_err(|error| errno(&error))?;
    nix::unistd::write(&take(&unix)?, b"x").map(drop)
}

/// Is given a socket over a unix socket, and connects it.
fn take_and_connect(path: &str, to: &str) -> Attempt {
    let unix = UnixStream::connect(path).map_err(|error| errno(&error))?;
    connect(&take(&unix)?, address(to))
}

pub(super) fn take(unix: &UnixStream) -> Attempt<OwnedFd> {
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = socket::recvmsg::<()>(unix.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty())?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(&fd) = fds.first()
        {
            // SAFETY: the kernel has just put this descriptor into our table.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(Errno::ENODATA)
}

/// Makes a socket and gives it to whoever listens on the unix socket.
fn give(path: &str, kind: i32) -> Attempt {
    hand_over(path, &plain_socket(libc::AF_INET, kind, 0)?)
}

/// The same with a connection.
fn give_connected(path: &str, to: &str) -> Attempt {
    let fd = plain_socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    connect(&fd, address(to))?;
    hand_over(path, &fd)
}

fn hand_over(path: &str, fd: &OwnedFd) -> Attempt {
    let unix = UnixStream::connect(path).map_err(|error| errno(&error))?;
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    socket::sendmsg::<()>(unix.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).map(drop)
}
