//! Waiting for connections, and answering them.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket;

use crate::net::{address, connect, dissolve, errno, set_option, socket_for, storage};
use crate::{Attempt, State, number, say};

pub(super) fn attempt(state: &mut State, words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["listen", at] => listen(state, address(at), true),
        // The kernel chooses address and port.
        ["listen-unbound", like] => listen(state, address(like), false),
        ["inherited-accept", fd] => inherited(number(fd)).and_then(|listener| {
            state.listener = Some(listener);
            accept(state)
        }),
        ["connect-then-listen", to] => connect_then_listen(state, address(to)),
        ["listen-at"] => listening_at(state),
        ["accept"] => accept(state),
        ["unlisten"] => {
            state.listener = None;
            Ok(())
        }
        _ => return None,
    })
}

fn listen(state: &mut State, at: SocketAddr, bind: bool) -> Attempt {
    let fd = socket_for(at, libc::SOCK_STREAM)?;
    set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if bind {
        socket::bind(fd.as_raw_fd(), &storage(at))?;
    }
    // SAFETY: two integers.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), 16) })?;
    state.listener = Some(TcpListener::from(fd));
    Ok(())
}

/// Connects, dissolves the association, and listens wherever the kernel says.
fn connect_then_listen(state: &mut State, to: SocketAddr) -> Attempt {
    let fd = socket_for(to, libc::SOCK_STREAM)?;
    say(connect(&fd, to));
    dissolve(&fd)?;
    // SAFETY: two integers.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), 16) })?;
    state.listener = Some(TcpListener::from(fd));
    Ok(())
}

/// A listener that was there when this program began.
fn inherited(fd: i32) -> Attempt<TcpListener> {
    // SAFETY: the descriptor is inherited and stays open until this process ends.
    let inherited = unsafe { BorrowedFd::borrow_raw(fd) };
    inherited.try_clone_to_owned().map(TcpListener::from).map_err(|error| errno(&error))
}

fn listener(state: &State) -> Attempt<&TcpListener> {
    state.listener.as_ref().ok_or(Errno::ENOTCONN)
}

fn listening_at(state: &State) -> Attempt {
    let at = listener(state)?.local_addr().map_err(|error| errno(&error))?;
    println!("{at}");
    Ok(())
}

/// Takes the next connection, which must come within some seconds, and answers `hello`.
fn accept(state: &State) -> Attempt {
    let listener = listener(state)?;
    let seconds = PollTimeout::from(u16::MAX);
    if poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], seconds)? == 0 {
        return Err(Errno::ETIMEDOUT);
    }
    let (mut stream, _) = listener.accept().map_err(|error| errno(&error))?;
    stream.write_all(b"hello").map_err(|error| errno(&error))
}
