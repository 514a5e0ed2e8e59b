//! Where descriptors change hands: a unix socket that tasks may connect to who are granted [`OPEN`](super::world::OPEN).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::wait::{bound, until};
use super::world::World;

/// The socket; its file goes with it.
pub(crate) struct Meeting {
    path: PathBuf,
    listener: UnixListener,
}

impl Meeting {
    /// A task comes to give or to take something.
    pub(crate) fn new(world: &World) -> Result<Self> {
        let path = world.daemon.place.path("meeting.sock");
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { path, listener })
    }

    pub(crate) fn path(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// Hands a descriptor to who comes.
    pub(crate) fn give(&self, fd: &impl AsRawFd) -> Result<()> {
        let raw = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(self.guest()?.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
        Ok(())
    }

    /// The descriptor that is handed over by who comes.
    pub(crate) fn take(&self) -> Result<OwnedFd> {
        let guest = self.guest()?;
        let mut byte = [0];
        let mut slices = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!(RawFd);
        let message = recvmsg::<()>(guest.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let fds = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        // SAFETY: the kernel has just put this descriptor into our table.
        Ok(unsafe { OwnedFd::from_raw_fd(fds.context("no descriptor came")?) })
    }

    fn guest(&self) -> Result<UnixStream> {
        let guest = until("somebody who comes to the meeting", 10, || match self.listener.accept() {
            Ok((guest, _)) => Ok(Some(guest)),
            Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        guest.set_nonblocking(false)?;
        guest.set_read_timeout(Some(bound(10)))?;
        Ok(guest)
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
