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

/// Is given a socket over a unix socket, and connects it.
fn take_and_connect(path: &str, to: &str) -> Attempt {
    let unix = UnixStream::connect(path).map_err(|error| errno(&error))?;
    connect(&take(&unix)?, address(to))
}

fn take(unix: &UnixStream) -> Attempt<OwnedFd> {
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
