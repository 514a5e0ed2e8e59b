//! Established connections: list them with their labels, destroy them.
//!
//! The kernel's `sock_diag` does both (`net/ipv4/inet_diag.c`, `net/ipv4/udp_diag.c`). A listing brings each socket's
//! [`SocketLabel`] along, so that a flow's task is known by what the socket itself carries, whichever process holds it. A
//! netlink socket speaks of the network namespace that it was made in, so there is one [`Diag`] for each namespace.
//!
//! This module knows neither tasks nor policy, and it waits for the kernel: never call it where somebody waits for an answer.

mod diag;
mod message;

use std::net::SocketAddr;

pub use diag::{Diag, DiagError};
pub use message::{Connection, DecodeError};

use agent_common::maps::SocketLabel;

use crate::domain::Protocol;

/// A socket of some process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What the kernel needs to find it again.
    pub connection: Connection,
    /// Transport.
    pub protocol: Protocol,
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; `None` for a socket that is not connected.
    pub remote: Option<SocketAddr>,
    /// Its inode number, by which processes' descriptors name it; 0 if no process holds it.
    pub inode: u64,
    /// Waits for connections.
    pub listens: bool,
    /// Who made it, if that was a process of a task. The kernel lists no labels of UDP sockets.
    pub label: Option<SocketLabel>,
    /// SO_MARK.
    pub mark: u32,
    /// Bytes that the peer has acknowledged, where the protocol counts them.
    pub bytes_acked: Option<u64>,
}

impl Flow {
    /// The kernel's number for this socket, which no other has until the next boot.
    pub fn cookie(&self) -> u64 {
        self.connection.cookie()
    }
}
