//! Unix sockets of an unmarked process.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;

/// An unmarked process that listens: this one.
#[derive(Debug)]
pub(crate) struct Ear {
    pub(crate) fd: OwnedFd,
    kind: i32,
    pub(crate) name: String,
}

impl Ear {
    /// `@` stands for the NUL of an abstract name.
    pub(crate) fn new(kind: i32, name: &str) -> Result<Self> {
        // SAFETY: three integers.
        let fd =
            Errno::result(unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) })?;
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain numbers, all of which may be 0.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let room = address.sun_path.get_mut(..name.len()).context("the name is too long")?;
        for (to, from) in room.iter_mut().zip(name.bytes()) {
            *to = if from == b'@' { 0 } else { from as libc::c_char };
        }
        let length = (size_of::<libc::sa_family_t>() + name.len()) as libc::socklen_t;
        // SAFETY: the kernel reads `length` bytes of a live address.
        Errno::result(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) })?;
        if kind != libc::SOCK_DGRAM {
            // SAFETY: two integers.
            Errno::result(unsafe { libc::listen(fd.as_raw_fd(), 64) })?;
        }
        Ok(Self { fd, kind, name: name.to_owned() })
    }

    /// Connections and datagrams since this was last asked.
    pub(crate) fn arrived(&self) -> usize {
        let one = || {
            let mut byte = [0_u8; 8];
            // SAFETY: a live buffer; or two null pointers, which accept(2) takes.
            let done = unsafe {
                if self.kind == libc::SOCK_DGRAM {
                    libc::recv(self.fd.as_raw_fd(), byte.as_mut_ptr().cast(), byte.len(), 0) as i32
                } else {
                    let fd = libc::accept(self.fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut());
                    if fd >= 0 { libc::close(fd) } else { fd }
                }
            };
            (done >= 0).then_some(())
        };
        std::iter::from_fn(one).count()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        if self.name.starts_with('/') {
            // A test may have renamed it.
            let _ = std::fs::remove_file(&self.name);
        }
    }
}
