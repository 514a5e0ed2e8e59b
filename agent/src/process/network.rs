//! The network namespace of a process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

/// The namespace that a thread is in, open.
///
/// # Errors
/// If the thread has gone.
pub fn network_namespace(pid: u32, tid: u32) -> io::Result<File> {
    File::open(format!("/proc/{pid}/task/{tid}/ns/net"))
}

/// Device and inode of a process's namespace: the same for all that are in it.
pub fn network_namespace_id(pid: u32) -> Option<(u64, u64)> {
    let namespace = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
    Some((namespace.dev(), namespace.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_thread_share_a_namespace() {
        let own = std::process::id();
        let open = network_namespace(own, own).unwrap().metadata().unwrap();
        assert_eq!(network_namespace_id(own), Some((open.dev(), open.ino())));
        assert!(network_namespace(own, 1).is_err() && network_namespace_id(u32::MAX).is_none());
    }
}
