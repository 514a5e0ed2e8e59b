//! A link: what keeps a program attached. aya gives those of sysctl and sockopt programs no name, so they are made here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::programs::links::FdLink;
use aya::sys::SyscallError;

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_CGROUP_SYSCTL: u32 = 18;
const BPF_CGROUP_SETSOCKOPT: u32 = 22;

/// Dropping it detaches the program, unless it is pinned.
pub enum Link {
    /// One of aya's.
    Named(FdLink),
    /// One of our own.
    Own(OwnedFd),
}

impl Link {
    /// Attaches a sysctl program, beside others.
    pub(super) fn sysctl(program: BorrowedFd<'_>, cgroup: &File) -> Result<Self, ProgramError> {
        Self::cgroup(program, cgroup, BPF_CGROUP_SYSCTL)
    }

    /// Attaches a program for setsockopt(2), beside others.
    pub(super) fn setsockopt(program: BorrowedFd<'_>, cgroup: &File) -> Result<Self, ProgramError> {
        Self::cgroup(program, cgroup, BPF_CGROUP_SETSOCKOPT)
    }

    fn cgroup(program: BorrowedFd<'_>, cgroup: &File, kind: u32) -> Result<Self, ProgramError> {
        let number = |fd: RawFd| u32::try_from(fd).unwrap_or(u32::MAX);
        // `union bpf_attr`, `link_create`: program, target, type, flags.
        let attributes = [number(program.as_raw_fd()), number(cgroup.as_fd().as_raw_fd()), kind, 0];
        let fd = bpf(BPF_LINK_CREATE, &attributes).map_err(ProgramError::IOError)?;
        // SAFETY: a new descriptor that is nobody else's.
        Ok(Self::Own(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Gives it a name, by which it outlives this process.
    pub(super) fn pin(self, path: &Path) -> Result<Self, PinError> {
        match self {
            Self::Named(link) => Ok(Self::Named(link.pin(path)?.into())),
            Self::Own(fd) => {
                let text = std::ffi::CString::new(path.as_os_str().as_bytes())
                    .map_err(|error| PinError::InvalidPinPath { path: path.to_owned(), error })?;
                // `union bpf_attr`: the address of the path, then descriptor and flags in one word.
                let address = text.as_ptr() as u64;
                let number = u64::try_from(fd.as_raw_fd()).unwrap_or(u64::MAX);
                let pinned = bpf(BPF_OBJ_PIN, &[address, number]);
                pinned.map_err(|io_error| SyscallError { call: "BPF_OBJ_PIN", io_error })?;
                Ok(Self::Own(fd))
            }
        }
    }
}

fn bpf<T>(command: libc::c_int, attributes: &[T]) -> io::Result<RawFd> {
    // SAFETY: the kernel reads attributes of the size that is given; a path among them lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    nix::errno::Errno::result(result)
        .map_err(io::Error::from)
        .and_then(|fd| RawFd::try_from(fd).map_err(io::Error::other))
}
