//! What procfs says of a process, at one moment.

use std::io::Read;
use std::sync::Arc;

use procfs::ProcError;
use procfs::process::Process;

use crate::domain::Ancestor;

/// Bytes of the command line that are kept.
const MAX_ARGV: u64 = 4096;
/// Bytes of `status` and `cgroup` that are read: both are far smaller.
const MAX_TEXT: u64 = 65_536;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A process as procfs shows it. Texts that are not UTF-8 are kept lossily; `argv` and `comm` are of the process's choosing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Process id as this daemon sees it.
    pub pid: u32,
    /// Process id of its parent, 0 for none.
    pub ppid: u32,
    /// When it started: boot clock, clock ticks.
    pub start_ticks: u64,
    /// The same in nanoseconds, and as coarse.
    pub start: u64,
    /// Where its program is, or was. Kernel threads have none.
    pub exe: Option<Arc<str>>,
    /// Its arguments, cut at 4 KiB.
    pub argv: Vec<String>,
    /// Command name of its first thread.
    pub comm: Arc<str>,
    /// Real uid.
    pub uid: u32,
    /// Path below the cgroup v2 root.
    pub cgroup: Option<Arc<str>>,
}

/// Why procfs did not tell.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is no such process, or no longer.
    #[error("process {0} is gone; nothing is left to look at")]
    Gone(u32),
    /// It is there, and its entry could not be read.
    #[error("cannot read `/proc/{pid}`; the daemon must run as root in the host's pid namespace")]
    Unreadable {
        /// Which process.
        pid: u32,
        /// Why.
        #[source]
        source: ProcError,
    },
    /// Its entry lacks a field that every kernel writes.
    #[error("`/proc/{0}/status` has no `Uid` line; check that procfs is mounted at `/proc`")]
    NoUid(u32),
}

/// Looks at process `pid` (initial pid namespace).
///
/// # Errors
/// [`SnapshotError`] if it is gone or its entry cannot be read.
pub fn snapshot(pid: u32) -> Result<ProcessFacts, SnapshotError> {
    let told = |source| unread(pid, source);
    let process = open(pid)?;
    let stat = process.stat().map_err(told)?;
    let status = text(&process, "status", MAX_TEXT).map_err(told)?;
    let argv = text(&process, "cmdline", MAX_ARGV).map_err(told)?;
    Ok(ProcessFacts {
        pid,
        ppid: u32::try_from(stat.ppid).unwrap_or(0),
        start_ticks: stat.starttime,
        start: stat.starttime.saturating_mul(tick_ns()),
        exe: process.exe().ok().map(|path| path.to_string_lossy().into()),
        argv: arguments(&argv),
        comm: stat.comm.into(),
        uid: real_uid(&status).ok_or(SnapshotError::NoUid(pid))?,
        cgroup: text(&process, "cgroup", MAX_TEXT).ok().and_then(|groups| unified(&groups)),
    })
}

/// The processes above `pid`, nearest first, at most `limit`. It ends early where one cannot be read.
pub fn ancestors(pid: u32, limit: usize) -> Vec<Ancestor> {
    let Ok(facts) = snapshot(pid) else { return Vec::new() };
    std::iter::successors(above(&facts), above).take(limit).map(Ancestor::from).collect()
}

/// A parent that is younger than its child is another process under a recycled id.
fn above(child: &ProcessFacts) -> Option<ProcessFacts> {
    let parent = (child.ppid != 0).then(|| snapshot(child.ppid).ok()).flatten()?;
    (parent.start_ticks <= child.start_ticks).then_some(parent)
}

impl From<ProcessFacts> for Ancestor {
    fn from(facts: ProcessFacts) -> Self {
        Self { pid: facts.pid, start: facts.start, exe: facts.exe, comm: facts.comm }
    }
}

/// Whether there is a process `pid` that started at `start` (boot clock, nanoseconds; 0 for whenever). What cannot be told
/// counts as there.
pub fn is_process(pid: u32, start: u64) -> bool {
    match start_ticks(pid) {
        Ok(ticks) => start == 0 || ticks == start / tick_ns().max(1),
        Err(SnapshotError::Gone(_)) => false,
        Err(_) => true,
    }
}

/// When process `pid` started, in clock ticks.
pub(super) fn start_ticks(pid: u32) -> Result<u64, SnapshotError> {
    let stat = open(pid)?.stat().map_err(|source| unread(pid, source))?;
    Ok(stat.starttime)
}

/// Nanoseconds in a clock tick.
pub(super) fn tick_ns() -> u64 {
    NANOS_PER_SECOND / procfs::ticks_per_second().max(1)
}

/// The open directory stays with this process: once it is gone, reads fail rather than tell of its successor.
fn open(pid: u32) -> Result<Process, SnapshotError> {
    let number = i32::try_from(pid).map_err(|_| SnapshotError::Gone(pid))?;
    Process::new(number).map_err(|source| unread(pid, source))
}

fn unread(pid: u32, source: ProcError) -> SnapshotError {
    // Reads below the directory of a process that has gone fail with ESRCH, which procfs passes on as an I/O error.
    let gone = match &source {
        ProcError::NotFound(_) => true,
        ProcError::Io(error, _) => error.raw_os_error() == Some(libc::ESRCH),
        _ => false,
    };
    if gone { SnapshotError::Gone(pid) } else { SnapshotError::Unreadable { pid, source } }
}

/// procfs's own readers insist on UTF-8, which a process need not grant.
fn text(process: &Process, name: &str, limit: u64) -> Result<String, ProcError> {
    let mut bytes = Vec::new();
    process.open_relative(name)?.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn arguments(cmdline: &str) -> Vec<String> {
    let whole = cmdline.strip_suffix('\0').unwrap_or(cmdline);
    if whole.is_empty() { Vec::new() } else { whole.split('\0').map(str::to_owned).collect() }
}

/// The kernel escapes line breaks in the name, so a line that begins with `Uid:` is the kernel's.
fn real_uid(status: &str) -> Option<u32> {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().next()?.parse().ok()
}

fn unified(groups: &str) -> Option<Arc<str>> {
    groups.lines().find_map(|line| line.strip_prefix("0::")).map(Arc::from)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::domain::clock::boot_now_ns;

    /// `cat` waiting for input. It has echoed some already, since a child that is only just becoming `cat` shows no arguments.
    fn sleeper(name: &str) -> Child {
        let mut command = Command::new("cat");
        command.arg0(name).arg("-").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    #[test]
    fn a_child_is_seen_as_it_is() {
        let before = boot_now_ns();
        let mut child = sleeper("some name");
        let facts = snapshot(child.id()).unwrap();
        assert_eq!(facts.pid, child.id());
        assert_eq!(facts.ppid, std::process::id());
        assert_eq!(facts.argv, ["some name", "-"]);
        assert_eq!(&*facts.comm, "cat");
        assert_eq!(facts.uid, nix::unistd::getuid().as_raw());
        assert!(facts.exe.unwrap().starts_with('/'));
        assert!(is_process(child.id(), 0) && is_process(child.id(), facts.start));
        assert!(!is_process(child.id(), facts.start + tick_ns()));
        assert!(facts.start + tick_ns() >= before && facts.start <= boot_now_ns());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_process(child.id(), 0));
        assert!(matches!(snapshot(child.id()), Err(SnapshotError::Gone(_))));
    }

    #[test]
    fn ancestors_are_nearest_first_and_bounded() {
        let mut child = sleeper("x");
        let all = ancestors(child.id(), 16);
        assert_eq!(all[0].pid, std::process::id());
        assert!(all.len() >= 2 && all[1].start <= all[0].start);
        assert_eq!(ancestors(child.id(), 1).len(), 1);
        let older = ProcessFacts { start_ticks: 0, ..snapshot(child.id()).unwrap() };
        assert_eq!(above(&older), None, "a parent cannot be younger than its child");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ancestors(child.id(), 16).is_empty());
    }

    #[test]
    fn a_name_cannot_forge_a_uid() {
        assert_eq!(real_uid("Name:\tx\\nUid:\\t0\nUid:\t1000\t0\t0\t0\n"), Some(1000));
        assert_eq!(real_uid("Name:\tx\n"), None);
    }

    #[test]
    fn only_the_unified_hierarchy_counts() {
        assert_eq!(unified("4:memory:/a\n0::/b/c\n").as_deref(), Some("/b/c"));
        assert_eq!(unified("4:memory:/a\n"), None);
    }

    #[test]
    fn empty_arguments_are_kept() {
        assert_eq!(arguments("a\0\0b\0"), ["a", "", "b"]);
        assert!(arguments("").is_empty());
    }
}
