//! Killing the processes of tasks, for those who are about to let go of them.

use std::time::{Duration, Instant};

use agent_common::maps::{Mark, SLOT_DAEMON, Settings};

use super::protect::chain;
use crate::kernel::maps::{Slots, Table};
use crate::process::{kill_verified, snapshot};

/// How long the processes of enforced tasks may take to die.
const LIMIT: Duration = Duration::from_secs(5);
/// How long before they may no longer fork.
const PATIENCE: Duration = Duration::from_millis(200);

/// Kills every marked process that `enforced` says, and those that they make meanwhile. Returns how many it was, and how many
/// are left.
pub(super) fn kill_all(
    processes: &Table<u32, Mark>,
    settings: &mut Slots<Settings>,
    enforced: impl Fn(&Mark) -> bool,
) -> (usize, usize) {
    let started = Instant::now();
    let mut seen = std::collections::HashSet::new();
    loop {
        let left = kill(processes, &enforced);
        seen.extend(left.iter().copied());
        if left.is_empty() || started.elapsed() > LIMIT {
            return (seen.len() - left.len(), left.len());
        }
        if started.elapsed() > PATIENCE {
            forbid_forks(settings);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(processes: &Table<u32, Mark>, enforced: &impl Fn(&Mark) -> bool) -> Vec<u32> {
    let is_enforced = |tgid: &u32| processes.get(*tgid).is_some_and(|mark| mark.slot != SLOT_DAEMON && enforced(&mark));
    let marked: Vec<u32> = processes.keys().into_iter().filter(is_enforced).collect();
    for tgid in &marked {
        let killed = snapshot(*tgid).map(|facts| kill_verified(*tgid, facts.start));
        if let Ok(Err(error)) = killed {
            tracing::error!("{}", chain(&error));
        }
    }
    marked
}

/// For processes that are gone into a child whenever they are to be killed: from here on no marked process gets one.
fn forbid_forks(settings: &mut Slots<Settings>) {
    let forbidding = Settings { max_marks: 0, ..settings.get(0) };
    if let Err(error) = settings.put(0, forbidding) {
        tracing::error!("{}", chain(&error));
    }
}
