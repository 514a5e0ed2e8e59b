//! Ending exactly the process that was meant, though its id may have been recycled.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::snapshot::{SnapshotError, start_ticks, tick_ns};

/// What came of [`kill_verified`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killed {
    /// SIGKILL was sent to it.
    Sent,
    /// It had gone already.
    Gone,
}

/// Why a process could not be killed.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// The kernel refused.
    #[error("cannot kill process {pid}; kill it by hand, or revoke its task")]
    Refused {
        /// Which.
        pid: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It could not be told whether it is the one that was meant.
    #[error("process {pid} was left alone, because its start time could not be read")]
    Unverified {
        /// Which.
        pid: u32,
        /// Why.
        #[source]
        source: SnapshotError,
    },
}

/// Sends SIGKILL to the process that has id `pid` and started at `start` (boot clock, nanoseconds), and to no other.
///
/// The descriptor is taken before the start time is read: a process that starts later than `start` was known cannot have
/// this start time, so what matches is what the descriptor holds.
///
/// # Errors
/// [`KillError`] if the signal or the verification fails; in both cases nothing was killed.
pub fn kill_verified(pid: u32, start: u64) -> Result<Killed, KillError> {
    let refused = |errno: Errno| KillError::Refused { pid, source: errno.into() };
    let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(Killed::Gone) };
    let held = match pidfd_open(target, PidfdFlags::empty()) {
        Ok(held) => held,
        Err(Errno::SRCH) => return Ok(Killed::Gone),
        Err(errno) => return Err(refused(errno)),
    };
    match start_ticks(pid) {
        Ok(ticks) if ticks == start / tick_ns().max(1) => {}
        Ok(_) | Err(SnapshotError::Gone(_)) => return Ok(Killed::Gone),
        Err(source) => return Err(KillError::Unverified { pid, source }),
    }
    match pidfd_send_signal(&held, Signal::KILL) {
        Ok(()) => Ok(Killed::Sent),
        Err(Errno::SRCH) => Ok(Killed::Gone),
        Err(errno) => Err(refused(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::super::snapshot;
    use super::*;

    #[test]
    fn only_the_process_that_was_meant_is_killed() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let start = snapshot(child.id()).unwrap().start;
        assert_eq!(kill_verified(child.id(), start + tick_ns()).unwrap(), Killed::Gone);
        assert_eq!(child.try_wait().unwrap(), None, "another start time is another process");
        assert_eq!(kill_verified(child.id(), start + tick_ns() - 1).unwrap(), Killed::Sent);
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert_eq!(kill_verified(child.id(), start).unwrap(), Killed::Gone);
    }

    #[test]
    fn no_process_has_id_zero_or_a_negative_one() {
        assert_eq!(kill_verified(0, 0).unwrap(), Killed::Gone);
        assert_eq!(kill_verified(u32::MAX, 0).unwrap(), Killed::Gone);
    }
}
