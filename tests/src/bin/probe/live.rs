//! Flows that stay open between the actions of a session, by number, and what their program is told when they end.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, MsgFlags, SockaddrStorage, sockopt};

use crate::net::{address, connect, errno, send, set_option, socket_for};
use crate::{Attempt, State, number};

pub(super) fn attempt(state: &mut State, words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["live-tcp", to, count] => open(state, to, libc::SOCK_STREAM, number(count)),
        ["live-udp", to, count] => open(state, to, libc::SOCK_DGRAM, number(count)),
        ["live-send", which, text] => flow(state, which).and_then(|fd| send(fd, text.as_bytes())),
        ["live-read", which] => flow(state, which).and_then(read),
        ["live-fill", which] => flow(state, which).and_then(fill),
        ["live-local", which] => flow(state, which).and_then(local),
        ["live-mark", which] => flow(state, which).and_then(mark),
        ["live-set-mark", which, value] => {
            flow(state, which).and_then(|fd| set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, number(value)))
        }
        ["live-dead"] => dead(state),
        ["live-alone"] => alone(),
        _ => return None,
    })
}

fn open(state: &mut State, to: &str, kind: i32, count: usize) -> Attempt {
    let to = address(to);
    for _ in 0..count {
        let fd = socket_for(to, kind)?;
        connect(&fd, to)?;
        state.live.push(fd);
    }
    Ok(())
}

fn flow<'a>(state: &'a State, which: &str) -> Attempt<&'a OwnedFd> {
    state.live.get(number::<usize>(which)).ok_or(Errno::ENOTCONN)
}

/// Waits for a byte; the end of the stream is `ENODATA`.
fn read(fd: &OwnedFd) -> Attempt {
    match socket::recv(fd.as_raw_fd(), &mut [0; 1], MsgFlags::empty())? {
        0 => Err(Errno::ENODATA),
        _ => Ok(()),
    }
}

/// Writes for as long as that goes, to a peer that takes nothing.
fn fill(fd: &OwnedFd) -> Attempt {
    loop {
        send(fd, &[0; 1 << 16])?;
    }
}

fn local(fd: &OwnedFd) -> Attempt {
    let address: SockaddrStorage = socket::getsockname(fd.as_raw_fd())?;
    println!("{address}");
    Ok(())
}

fn mark(fd: &OwnedFd) -> Attempt {
    println!("{}", socket::getsockopt(fd, sockopt::Mark)?);
    Ok(())
}

/// How many of the flows have an error to tell.
fn dead(state: &State) -> Attempt {
    let mut fds: Vec<PollFd<'_>> = state.live.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::empty())).collect();
    poll(&mut fds, PollTimeout::ZERO)?;
    let dead = fds.iter().filter(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLERR)));
    println!("{}", dead.count());
    Ok(())
}

/// A connection to itself, for a network namespace in which there is nobody else; then waits for what never comes.
fn alone() -> Attempt {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| errno(&error))?;
    let to = listener.local_addr().map_err(|error| errno(&error))?;
    let fd = socket_for(to, libc::SOCK_STREAM)?;
    connect(&fd, to)?;
    let (_kept, _) = listener.accept().map_err(|error| errno(&error))?;
    read(&fd)
}
