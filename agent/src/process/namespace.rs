//! The network namespaces that processes live in.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

/// One descriptor for each network namespace that some of these processes are in and this thread is not. Processes that have
/// gone meanwhile have none.
pub fn net_namespaces(pids: impl IntoIterator<Item = u32>) -> Vec<File> {
    let own = fs::metadata("/proc/thread-self/ns/net").map(|meta| meta.ino()).ok();
    let mut known: HashSet<u64> = own.into_iter().collect();
    pids.into_iter().filter_map(|pid| new_one(pid, &mut known)).collect()
}

/// The namespace of a process, if it is none of those that are known.
fn new_one(pid: u32, known: &mut HashSet<u64>) -> Option<File> {
    let path = format!("/proc/{pid}/ns/net");
    if known.contains(&fs::metadata(&path).ok()?.ino()) {
        return None;
    }
    let file = File::open(&path).ok()?;
    // The process may have moved on between the two: what counts is what was opened.
    known.insert(file.metadata().ok()?.ino()).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_and_processes_that_are_gone_are_left_out() {
        assert!(net_namespaces([std::process::id(), u32::MAX]).is_empty());
    }
}
