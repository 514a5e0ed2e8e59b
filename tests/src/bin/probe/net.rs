//! Connections and datagrams, each by another way into the kernel.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, MsgFlags, SockaddrStorage};

use crate::{Attempt, number, say, uring};

const WAIT: PollTimeout = PollTimeout::MAX;

pub(super) fn attempt(words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["tcp", to] => tcp(to),
        ["tcp-nonblock", to] => nonblock(to),
        ["tcp-fastopen", to] => fastopen(to),
        ["tcp-fastopen-connect", to] => fastopen_connect(to),
        ["tcp-again", first, then] => again(first, then),
        ["udp", to] => udp(to),
        ["udp-connected", to] => udp_connected(to).map(drop),
        ["udp-elsewhere", first, then] => udp_elsewhere(first, then),
        ["udp-many", to, count] => udp_many(to, number(count)),
        ["self-connect"] => self_connect(),
        ["http", proxy, target] => http(proxy, target),
        ["uring", to] => uring::connect(address(to), false),
        ["uring-async", to] => uring::connect(address(to), true),
        ["uring-sendmsg", to] => uring::send_message(address(to)),
        ["uring-send", to] => uring::send_to(address(to)),
        ["uring-socket", to] => uring::socket_and_connect(address(to)),
        ["uring-kind", family, kind, protocol] => uring::socket(number(family), number(kind), number(protocol)),
        ["flood", count, to] => flood(number(count), to),
        _ => return None,
    })
}

pub(super) fn address(word: &str) -> SocketAddr {
    number(word)
}

pub(super) fn storage(to: SocketAddr) -> SockaddrStorage {
    SockaddrStorage::from(to)
}

/// socket(2) with plain numbers, so that any kind can be asked for.
pub(super) fn plain_socket(family: i32, kind: i32, protocol: i32) -> Attempt<OwnedFd> {
    // SAFETY: three integers; no memory is involved.
    let fd = Errno::result(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn socket_for(to: SocketAddr, kind: i32) -> Attempt<OwnedFd> {
    plain_socket(if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, kind, 0)
}

pub(super) fn connect(fd: &OwnedFd, to: SocketAddr) -> Attempt {
    socket::connect(fd.as_raw_fd(), &storage(to))
}

pub(super) fn send(fd: &OwnedFd, bytes: &[u8]) -> Attempt {
    socket::send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).map(drop)
}

fn send_to(fd: &OwnedFd, to: SocketAddr, flags: MsgFlags) -> Attempt {
    socket::sendto(fd.as_raw_fd(), b"x", &storage(to), flags).map(drop)
}

fn tcp(to: &str) -> Attempt {
    let to = address(to);
    let fd = socket_for(to, libc::SOCK_STREAM)?;
    connect(&fd, to)?;
    send(&fd, b"x")
}

/// A connection under way counts only once it is through.
fn nonblock(to: &str) -> Attempt {
    let to = address(to);
    let fd = socket_for(to, libc::SOCK_STREAM)?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    match connect(&fd, to) {
        Err(Errno::EINPROGRESS) => {
            poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)], WAIT)?;
            let error = socket::getsockopt(&fd, socket::sockopt::SocketError)?;
            if error == 0 { Ok(()) } else { Err(Errno::from_raw(error)) }
        }
        other => other,
    }
}

fn fastopen(to: &str) -> Attempt {
    let to = address(to);
    let fd = socket_for(to, libc::SOCK_STREAM)?;
    let flag = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL);
    send_to(&fd, to, flag)
}

fn fastopen_connect(to: &str) -> Attempt {
    let to = address(to);
    let fd = socket_for(to, libc::SOCK_STREAM)?;
    set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)?;
    connect(&fd, to)?;
    send(&fd, b"x")
}

pub(super) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Attempt {
    let size = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of a live integer.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size) };
    Errno::result(done).map(drop)
}

/// Connects, dissolves the association, connects elsewhere.
fn again(first: &str, then: &str) -> Attempt {
    let fd = socket_for(address(first), libc::SOCK_STREAM)?;
    say(connect(&fd, address(first)));
    dissolve(&fd)?;
    connect(&fd, address(then))
}

/// connect(2) to no address: the socket is connected to nothing any more.
pub(super) fn dissolve(fd: &OwnedFd) -> Attempt {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let size = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of a live address.
    Errno::result(unsafe { libc::connect(fd.as_raw_fd(), &raw const nowhere, size) }).map(drop)
}

fn udp(to: &str) -> Attempt {
    let to = address(to);
    send_to(&socket_for(to, libc::SOCK_DGRAM)?, to, MsgFlags::empty())
}

fn udp_connected(to: &str) -> Attempt<OwnedFd> {
    let to = address(to);
    let fd = socket_for(to, libc::SOCK_DGRAM)?;
    connect(&fd, to)?;
    send(&fd, b"x")?;
    Ok(fd)
}

fn udp_elsewhere(first: &str, then: &str) -> Attempt {
    let outcome = udp_connected(first);
    say(outcome.as_ref().map(drop).map_err(|error| *error));
    send_to(&outcome?, address(then), MsgFlags::empty())
}

/// `count` datagrams in one call: `ok` if any of them left.
fn udp_many(to: &str, count: usize) -> Attempt {
    let to = address(to);
    let fd = socket_for(to, libc::SOCK_DGRAM)?;
    let iov = [IoSlice::new(b"x")];
    let mut headers = socket::MultiHeaders::preallocate(count, None);
    let slices = vec![iov; count];
    let addresses = vec![Some(storage(to)); count];
    let no_control: [socket::ControlMessage<'_>; 0] = [];
    socket::sendmmsg(fd.as_raw_fd(), &mut headers, &slices, addresses, no_control, MsgFlags::empty()).map(drop)
}

/// Listens on loopback and connects to itself: needs nothing but the network namespace it is in.
fn self_connect() -> Attempt {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| errno(&error))?;
    let to = listener.local_addr().map_err(|error| errno(&error))?;
    connect(&socket_for(to, libc::SOCK_STREAM)?, to)
}

pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Fetches `http://target/` through `proxy`; an answer that is no success is `EPROTO`.
fn http(proxy: &str, target: &str) -> Attempt {
    use std::io::{Read, Write};
    let proxy = address(proxy);
    let fd = socket_for(proxy, libc::SOCK_STREAM)?;
    connect(&fd, proxy)?;
    let mut stream = std::net::TcpStream::from(fd);
    let request = format!("GET http://{target}/ HTTP/1.0\r\nHost: {target}\r\n\r\n");
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer)).map_err(|e| errno(&e))?;
    if answer.starts_with("HTTP/1.0 200") { Ok(()) } else { Err(Errno::EPROTO) }
}

/// `count` connects that are counted instead of told one by one: `ok` if each was refused with `EPERM`.
fn flood(count: u64, to: &str) -> Attempt {
    let to = address(to);
    for _ in 0..count {
        match connect(&socket_for(to, libc::SOCK_STREAM)?, to) {
            Err(Errno::EPERM) => {}
            Err(error) => return Err(error),
            Ok(()) => return Err(Errno::EISCONN),
        }
    }
    Ok(())
}
