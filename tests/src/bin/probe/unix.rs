//! Unix sockets. A name that begins with `@` is abstract; `KIND` is `stream`, `seqpacket` or `dgram`.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags};

use crate::net::{errno, plain_socket, send};
use crate::{Attempt, State, number};

pub(super) fn attempt(state: &mut State, words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["unix", kind, name] => connected(kind, name).and_then(|fd| send(&fd, b"x")),
        ["unix-sendto", name] => socket_of("dgram").and_then(|fd| send_to(&fd, name)),
        ["unix-sendmmsg", name] => send_many(name),
        ["unix-self-root", kind, name] => {
            connected(kind, &format!("/proc/self/root{name}")).and_then(|fd| send(&fd, b"x"))
        }
        ["unix-link", from, to, kind] => linked(from, to, kind),
        ["unix-symlink", from, to, kind] => symlinked(from, to, kind),
        ["unix-rename", from, to, kind] => renamed(from, to, kind),
        ["unix-socketpair", kind] => socketpair(kind),
        ["unix-bind", kind, name] => bind(state, kind, name),
        ["unix-own", kind, name] => own(kind, name),
        ["unix-flow", kind, name] => connected(kind, name).map(|fd| state.flow = Some(fd)),
        ["unix-flow-write"] => flow_write(state),
        ["unix-fd-sendto", fd, name] => fd_send_to(number(fd), name),
        ["getpwnam", name] => user(name),
        ["unix-fd-write", fd] => write_fd(number(fd)),
        ["unix-flood", count, prefix] => flood(number(count), prefix),
        ["syslog"] => syslog(),
        _ => return None,
    })
}

fn kind_of(kind: &str) -> i32 {
    match kind {
        "stream" => libc::SOCK_STREAM,
        "seqpacket" => libc::SOCK_SEQPACKET,
        "dgram" => libc::SOCK_DGRAM,
        _ => number(kind),
    }
}

fn socket_of(kind: &str) -> Attempt<OwnedFd> {
    plain_socket(libc::AF_UNIX, kind_of(kind), 0)
}

/// An address and its length: whole, with no NUL after a path of full length.
fn address(name: &str) -> Attempt<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: plain numbers, all of which may be 0.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = name.as_bytes();
    let room = address.sun_path.get_mut(..bytes.len()).ok_or(Errno::ENAMETOOLONG)?;
    for (to, from) in room.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    if name.starts_with('@') {
        address.sun_path[0] = 0;
    }
    Ok((address, (size_of::<libc::sa_family_t>() + bytes.len()) as libc::socklen_t))
}

fn connect(fd: &OwnedFd, name: &str) -> Attempt {
    let (address, length) = address(name)?;
    // SAFETY: the kernel reads `length` bytes of a live address.
    Errno::result(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) }).map(drop)
}

fn connected(kind: &str, name: &str) -> Attempt<OwnedFd> {
    let fd = socket_of(kind)?;
    connect(&fd, name)?;
    Ok(fd)
}

fn send_to(fd: &OwnedFd, name: &str) -> Attempt {
    let (address, length) = address(name)?;
    // SAFETY: the kernel reads one byte, and `length` bytes of a live address.
    let sent = unsafe {
        libc::sendto(fd.as_raw_fd(), b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL, (&raw const address).cast(), length)
    };
    Errno::result(sent).map(drop)
}

fn send_many(name: &str) -> Attempt {
    let fd = socket_of("dgram")?;
    let to = if let Some(name) = name.strip_prefix('@') {
        socket::UnixAddr::new_abstract(name.as_bytes())?
    } else {
        socket::UnixAddr::new(name)?
    };
    let mut headers = socket::MultiHeaders::preallocate(2, None);
    let slices = vec![[IoSlice::new(b"x")]; 2];
    let none: [socket::ControlMessage<'_>; 0] = [];
    socket::sendmmsg(fd.as_raw_fd(), &mut headers, &slices, vec![Some(to); 2], none, MsgFlags::empty()).map(drop)
}

fn io<T>(result: std::io::Result<T>) -> Attempt<T> {
    result.map_err(|error| errno(&error))
}

fn linked(from: &str, to: &str, kind: &str) -> Attempt {
    io(std::fs::hard_link(from, to))?;
    let outcome = connected(kind, to).and_then(|fd| send(&fd, b"x"));
    io(std::fs::remove_file(to))?;
    outcome
}

fn symlinked(from: &str, to: &str, kind: &str) -> Attempt {
    io(std::os::unix::fs::symlink(from, to))?;
    let outcome = connected(kind, to).and_then(|fd| send(&fd, b"x"));
    io(std::fs::remove_file(to))?;
    outcome
}

fn renamed(from: &str, to: &str, kind: &str) -> Attempt {
    io(std::fs::rename(from, to))?;
    let outcome = connected(kind, to).and_then(|fd| send(&fd, b"x"));
    io(std::fs::rename(to, from))?;
    outcome
}

fn socketpair(kind: &str) -> Attempt {
    let mut fds: [RawFd; 2] = [0; 2];
    // SAFETY: the kernel writes two descriptors.
    Errno::result(unsafe { libc::socketpair(libc::AF_UNIX, kind_of(kind), 0, fds.as_mut_ptr()) })?;
    // SAFETY: both descriptors are new and nobody else's.
    let [a, b] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    send(&a, b"x")?;
    send(&b, b"x")
}

/// Binds, and listens where that is called for; for as long as the session lasts.
fn bind(state: &mut State, kind: &str, name: &str) -> Attempt {
    let fd = socket_of(kind)?;
    let (address, length) = address(name)?;
    // SAFETY: the kernel reads `length` bytes of a live address.
    Errno::result(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) })?;
    if kind != "dgram" {
        // SAFETY: two integers.
        Errno::result(unsafe { libc::listen(fd.as_raw_fd(), 8) })?;
    }
    state.bound.push(fd);
    Ok(())
}

/// Connects to a socket of its own, and to one of a child's parent: the same task.
fn own(kind: &str, name: &str) -> Attempt {
    let mut state = State::default();
    bind(&mut state, kind, name)?;
    let mut outcome = Err(Errno::ECHILD);
    std::thread::scope(|scope| {
        scope.spawn(|| outcome = connected(kind, name).and_then(|fd| send(&fd, b"x")));
    });
    if !name.starts_with('@') {
        io(std::fs::remove_file(Path::new(name)))?;
    }
    outcome
}

fn flow_write(state: &State) -> Attempt {
    match &state.flow {
        Some(fd) => nix::unistd::write(fd, b"x").map(drop),
        None => Err(Errno::ENOTCONN),
    }
}

fn write_fd(fd: RawFd) -> Attempt {
    // SAFETY: the descriptor is inherited and stays open until this process ends.
    let stream = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    nix::unistd::write(stream, b"x").map(drop)
}

/// Sends from a socket that was there when this program began.
fn fd_send_to(fd: RawFd, name: &str) -> Attempt {
    // SAFETY: as in `write_fd`.
    let inherited = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    send_to(&io(inherited.try_clone_to_owned())?, name)
}

/// Looks up a user, for which libc asks nscd first.
fn user(name: &str) -> Attempt {
    nix::unistd::User::from_name(name)?.map(drop).ok_or(Errno::ENODATA)
}

/// `count` connects to names that nobody listens on: `ok` if each fails for that alone.
fn flood(count: u64, prefix: &str) -> Attempt {
    for number in 0..count {
        match connected("stream", &format!("{prefix}{number}")) {
            Err(Errno::ECONNREFUSED | Errno::ENOENT) => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(Errno::EISCONN),
        }
    }
    Ok(())
}

/// syslog(3), which tells nobody whether it worked.
fn syslog() -> Attempt {
    // SAFETY: constant strings that outlive the calls.
    unsafe {
        libc::openlog(c"writ-probe".as_ptr(), libc::LOG_NDELAY, libc::LOG_USER);
        libc::syslog(libc::LOG_INFO, c"%s".as_ptr(), c"nothing".as_ptr());
        libc::closelog();
    }
    Ok(())
}
