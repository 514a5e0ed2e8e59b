//! The sockets that a process holds.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// An open socket of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldSocket {
    /// Whose.
    pub pid: u32,
    /// Its descriptor there.
    pub descriptor: i32,
    /// Its inode number, by which listings of sockets name it too.
    pub inode: u64,
}

/// The sockets of process `pid`; none of one that is gone.
pub fn held_sockets(pid: u32) -> Vec<HeldSocket> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let sockets = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        let inode = inode(target.to_str()?)?;
        Some(HeldSocket { pid, descriptor: entry.file_name().to_str()?.parse().ok()?, inode })
    });
    sockets.collect()
}

/// Of `socket:[4242]`.
fn inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

impl HeldSocket {
    /// A descriptor of the same socket for this process, if it is still held. Whether it is the same is for the caller to see:
    /// numbers of processes and descriptors are given again.
    pub fn take(&self) -> Option<OwnedFd> {
        let process = pidfd_open(i32::try_from(self.pid).ok().and_then(Pid::from_raw)?, PidfdFlags::empty()).ok()?;
        pidfd_getfd(process, self.descriptor, PidfdGetfdFlags::empty()).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_socket_of_this_process_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let held = held_sockets(std::process::id());
        let found = held.iter().find(|held| held.descriptor == socket.as_raw_fd()).unwrap();
        let target = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        assert_eq!(target.to_str().and_then(inode), Some(found.inode));
        let (file, _other) = std::io::pipe().unwrap();
        assert!(held.iter().all(|held| held.descriptor != file.as_raw_fd()));
    }

    #[test]
    fn only_sockets_have_such_names() {
        assert_eq!(inode("socket:[7]"), Some(7));
        for other in ["pipe:[7]", "socket:[x]", "socket:[7", "/tmp/socket:[7]"] {
            assert_eq!(inode(other), None, "{other}");
        }
        assert!(held_sockets(u32::MAX).is_empty());
    }
}
