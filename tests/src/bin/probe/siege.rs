//! Trying to get out all the time, until told to stop.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Attempt;
use crate::net::{address, connect, errno, send, socket_for};

/// How long an answer to a query is waited for.
const PATIENCE: Duration = Duration::from_millis(20);
/// A query for the address of `writ.test`.
const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04writ\x04test\x00\x00\x01\x00\x01";

/// Prints how often it tried, and how often it succeeded as far as it can tell.
pub(super) fn siege(targets: &[&str]) -> Attempt {
    let (mut tried, mut through) = (0_u64, 0_u64);
    while !told_to_stop()? {
        for target in targets {
            tried += 1;
            through += u64::from(attempt(target).is_ok());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    println!("tried {tried} through {through}");
    Ok(())
}

fn told_to_stop() -> Result<bool, Errno> {
    let stdin = std::io::stdin();
    Ok(poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)? > 0)
}

fn attempt(target: &str) -> Attempt {
    let (how, to) = target.split_once('=').unwrap_or((target, ""));
    let to: SocketAddr = address(to);
    match how {
        "tcp" => {
            let fd = socket_for(to, libc::SOCK_STREAM)?;
            connect(&fd, to)?;
            send(&fd, b"x")
        }
        "udp" => {
            let socket = unconnected(to).map_err(|error| errno(&error))?;
            socket.send_to(b"x", to).map_err(|error| errno(&error))?;
            // Whether it arrived is for the receiver to say.
            Err(Errno::ENOMSG)
        }
        "name" => ask(to).map_err(|error| errno(&error)),
        "name-tcp" => ask_by_tcp(to).map_err(|error| errno(&error)),
        _ => Err(Errno::EINVAL),
    }
}

fn unconnected(to: SocketAddr) -> std::io::Result<UdpSocket> {
    UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })
}

/// A name is had where an answer has an address.
fn ask(server: SocketAddr) -> std::io::Result<()> {
    let socket = unconnected(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(QUERY, server)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    has_address(answer.get(..length).unwrap_or_default())
}

fn ask_by_tcp(server: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[&[0, QUERY.len() as u8], QUERY].concat())?;
    let mut head = [0; 2 + 8];
    stream.read_exact(&mut head)?;
    has_address(&head[2..])
}

/// Whether the header of an answer counts any.
fn has_address(answer: &[u8]) -> std::io::Result<()> {
    match answer {
        [_, _, _, _, _, _, high, low, ..] if (*high, *low) != (0, 0) => Ok(()),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    }
}
