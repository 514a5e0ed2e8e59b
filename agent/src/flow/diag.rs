//! A netlink socket that speaks `sock_diag`, in one network namespace.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::thread;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvmsg, sendmsg, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use super::message::{Answer, DecodeError, Request};
use super::{Connection, Flow};
use crate::domain::Protocol;

/// The kernel fills at most this much at once.
const BUFFER: usize = 1 << 15;
/// The kernel answers at once; this only keeps a fault from hanging the thread.
const PATIENCE: i64 = 5;
/// In both address families and both protocols that tasks may use.
const KINDS: [(i32, Protocol); 4] = [
    (libc::AF_INET, Protocol::Tcp),
    (libc::AF_INET6, Protocol::Tcp),
    (libc::AF_INET, Protocol::Udp),
    (libc::AF_INET6, Protocol::Udp),
];

/// Why sockets could not be listed or destroyed.
#[derive(Debug, thiserror::Error)]
pub enum DiagError {
    /// The kernel has no such part.
    #[error("this kernel cannot list sockets ({0}); load the modules tcp_diag and udp_diag")]
    NotThere(Errno),
    /// It can list sockets and not destroy them.
    #[error("this kernel cannot destroy sockets; it was built without CONFIG_INET_DIAG_DESTROY")]
    NoDestroy,
    /// It is gone already.
    #[error("the socket is gone already; nothing is left to destroy")]
    Gone,
    /// No netlink socket.
    #[error("cannot open a netlink socket; raise the limit of open files")]
    Open(#[source] io::Error),
    /// The kernel refuses.
    #[error("sock_diag fails; the daemon needs CAP_NET_ADMIN and CAP_BPF (run it as root)")]
    Failed(#[source] Errno),
    /// The kernel says what this cannot read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The kernel's framing cannot be read.
    #[error("sock_diag answers what is no netlink message; please report it with `uname -r`: {0}")]
    Framing(String),
}

/// Speaks of the sockets of one network namespace.
#[derive(Debug)]
pub struct Diag {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Diag {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`DiagError::Open`].
    pub fn open() -> Result<Self, DiagError> {
        let socket = netlink().map_err(|error| DiagError::Open(error.into()))?;
        Ok(Self { socket, buffer: vec![0; BUFFER], sequence: 0 })
    }

    /// For another network namespace. A thread of its own goes there and makes the socket, which stays what it is wherever it
    /// is used afterwards.
    ///
    /// # Errors
    /// [`DiagError::Open`].
    pub fn open_in(namespace: BorrowedFd<'_>) -> Result<Self, DiagError> {
        let make = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| DiagError::Open(error.into()))?;
            Self::open()
        };
        thread::scope(|scope| {
            let made = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, make);
            let joined = made.map_err(DiagError::Open)?.join();
            joined.unwrap_or_else(|_| Err(DiagError::Open(io::Error::other("the thread panicked"))))
        })
    }

    /// All TCP and UDP sockets, with what the `labels` map holds for each.
    ///
    /// # Errors
    /// [`DiagError`]; a socket that cannot be read is an error rather than left out.
    pub fn flows(&mut self, labels: BorrowedFd<'_>) -> Result<Vec<Flow>, DiagError> {
        let mut flows = Vec::new();
        for (family, protocol) in KINDS {
            let family = u8::try_from(family).unwrap_or_default();
            self.list(Request::List { family, protocol, labels: labels.as_raw_fd() }, protocol, &mut flows)?;
        }
        Ok(flows)
    }

    /// Ends a connection: whoever holds its socket sees an error at once.
    ///
    /// # Errors
    /// [`DiagError::Gone`] if it ended meanwhile, and others.
    pub fn destroy(&mut self, connection: Connection) -> Result<(), DiagError> {
        self.send(Request::Destroy(connection), NLM_F_REQUEST | NLM_F_ACK)?;
        loop {
            for message in self.receive()? {
                match message.payload {
                    NetlinkPayload::Error(answer) => return refused(answer.raw_code()).map_or(Ok(()), Err),
                    NetlinkPayload::Done(_) => return Ok(()),
                    _ => {}
                }
            }
        }
    }

    fn list(&mut self, request: Request, protocol: Protocol, flows: &mut Vec<Flow>) -> Result<(), DiagError> {
        self.send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        loop {
            for message in self.receive()? {
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => flows.push(answer.flow(protocol)?),
                    NetlinkPayload::Done(done) => return unlisted(done.code).map_or(Ok(()), Err),
                    NetlinkPayload::Error(answer) => return unlisted(answer.raw_code()).map_or(Ok(()), Err),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, request: Request, flags: u16) -> Result<(), DiagError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (flags, self.sequence);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let kernel = NetlinkAddr::new(0, 0);
        let sent = sendmsg(self.socket.as_raw_fd(), &[IoSlice::new(&bytes)], &[], MsgFlags::empty(), Some(&kernel));
        sent.map(drop).map_err(DiagError::Failed)
    }

    /// The next answers to the last request; what was meant for an earlier one is left out.
    fn receive(&mut self) -> Result<Vec<NetlinkMessage<Answer>>, DiagError> {
        let mut slices = [IoSliceMut::new(&mut self.buffer)];
        let received = recvmsg::<NetlinkAddr>(self.socket.as_raw_fd(), &mut slices, None, MsgFlags::empty());
        let length = received.map_err(DiagError::Failed)?.bytes;
        let mut rest = self.buffer.get(..length).unwrap_or_default();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(|error| DiagError::Framing(error.to_string()))?;
            let whole = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            rest = rest.get(whole..).unwrap_or_default();
            if message.header.sequence_number == self.sequence {
                messages.push(message);
            }
        }
        Ok(messages)
    }
}

fn netlink() -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
    Ok(socket)
}

/// What a negative error number means for a listing.
fn unlisted(code: i32) -> Option<DiagError> {
    match Errno::from_raw(-code) {
        _ if code == 0 => None,
        error @ (Errno::ENOENT | Errno::EOPNOTSUPP) => Some(DiagError::NotThere(error)),
        error => Some(DiagError::Failed(error)),
    }
}

/// What a negative error number means for a destruction.
fn refused(code: i32) -> Option<DiagError> {
    match Errno::from_raw(-code) {
        _ if code == 0 => None,
        // `ESTALE`: the addresses are those of another socket by now.
        Errno::ENOENT | Errno::ESTALE => Some(DiagError::Gone),
        Errno::EOPNOTSUPP => Some(DiagError::NoDestroy),
        error => Some(DiagError::Failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_numbers_have_their_meaning() {
        assert!(refused(0).is_none() && unlisted(0).is_none());
        assert!(matches!(refused(-libc::ENOENT), Some(DiagError::Gone)));
        assert!(matches!(refused(-libc::ESTALE), Some(DiagError::Gone)));
        assert!(matches!(refused(-libc::EOPNOTSUPP), Some(DiagError::NoDestroy)));
        assert!(matches!(refused(-libc::EPERM), Some(DiagError::Failed(Errno::EPERM))));
        assert!(matches!(unlisted(-libc::ENOENT), Some(DiagError::NotThere(Errno::ENOENT))));
        assert!(matches!(unlisted(-libc::EPERM), Some(DiagError::Failed(Errno::EPERM))));
    }
}
