//! How tasks end: expired, revoked, closed, or with their last process; what their sockets may still send; and when their
//! slots are free again.

use agent_common::TaskStatus;
use agent_common::maps::TaskState;
use jiff::Timestamp;

use super::protect::chain;
use super::state::{Daemon, instant};
use super::threads::now;
use crate::record::{Event, TaskOver};
use crate::task::Task;
use crate::task::table::state;

/// How long the TCP connections of a task whose last process has gone may still send what was written: nanoseconds. Nobody
/// is left to write more; after a revocation or an expiry there is no such time.
const DRAIN: u64 = 2_000_000_000;

/// A task that had no process for so long and of whose end no news came has ended: the news was lost. Nanoseconds.
const NEWS_LOST: u64 = 2_000_000_000;

/// Tasks whose counts are written down in one turn.
const AT_ONCE: usize = 32;

/// A task whose processes are gone and whose sockets drain.
pub(super) struct Draining {
    pub(super) slot: u32,
    pub(super) epoch: u32,
    pub(super) until: u64,
}

impl Daemon {
    /// Writes down the counts of the tasks for which there were decisions, some at a time.
    pub(super) fn keep_counts(&mut self) {
        let some: Vec<(u32, u32)> = self.unwritten.iter().copied().take(AT_ONCE).collect();
        for owner in some {
            self.unwritten.remove(&owner);
            if let Some(task) = self.table.held().find(|task| (task.slot, task.epoch) == owner) {
                self.keeper.note(task);
            }
        }
    }

    /// Expires what is due, ends what has no process left, and frees the slots of what has drained.
    pub(super) fn sweep(&mut self) {
        for task in self.table.expire(instant()) {
            self.take_down(&task, TaskStatus::Expired);
            self.record_over(&task, "its time ran out");
            self.keeper.note(&task);
        }
        let empty = |task: &&Task| self.maps.usage.get(task.slot).processes <= 0;
        let gone: Vec<(u32, u32, TaskStatus)> =
            self.table.held().filter(empty).map(|task| (task.slot, task.epoch, task.status)).collect();
        let at = now().boot;
        let since = std::mem::take(&mut self.empty);
        self.empty = gone
            .iter()
            .map(|&(slot, epoch, _)| ((slot, epoch), since.get(&(slot, epoch)).copied().unwrap_or(at)))
            .collect();
        for (slot, epoch, status) in gone {
            match status {
                TaskStatus::Active => {
                    // Usually the news is still under way, behind records of what the task did last.
                    if self.empty.get(&(slot, epoch)).is_some_and(|since| at.saturating_sub(*since) >= NEWS_LOST) {
                        self.last_process_gone(slot, epoch);
                    }
                }
                _ if self.draining.iter().any(|other| (other.slot, other.epoch) == (slot, epoch)) => {}
                _ => self.release(slot, epoch),
            }
        }
        self.end_drained();
    }

    /// The last marked process of a task is gone: it has ended, and what its sockets hold may still leave.
    pub(super) fn last_process_gone(&mut self, slot: u32, epoch: u32) {
        let Some(task) = self.table.finish(slot, epoch, TaskStatus::Ended, instant()).cloned() else { return };
        let until = task.deadline.min(now().boot.saturating_add(DRAIN));
        let drains = TaskState { deadline: until, status: TaskStatus::Draining.code(), ..state(&task) };
        self.put_state(slot, drains);
        self.draining.push(Draining { slot, epoch, until });
        self.record_over(&task, "its last process has gone");
        self.keeper.note(&task);
    }

    fn end_drained(&mut self) {
        let at = now().boot;
        let (over, still): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.draining).into_iter().partition(|task| task.until <= at);
        self.draining = still;
        for Draining { slot, epoch, .. } in over {
            if let Some(task) = self.table.by_mark(slot, epoch).cloned() {
                self.take_down(&task, TaskStatus::Ended);
            }
            self.release(slot, epoch);
        }
    }

    pub(super) fn finish(&mut self, slot: u32, epoch: u32, status: TaskStatus, why: &str) {
        let Some(task) = self.table.finish(slot, epoch, status, instant()).cloned() else { return };
        self.take_down(&task, status);
        self.record_over(&task, why);
        self.keeper.note(&task);
    }

    /// The kernel first: from here on nothing goes. Then the programs are told, by the end of their connections.
    pub(super) fn take_down(&mut self, task: &Task, status: TaskStatus) {
        self.put_state(task.slot, TaskState { status: status.code(), ..state(task) });
        self.flows.task_over();
    }

    pub(super) fn put_state(&mut self, slot: u32, state: TaskState) {
        if let Err(error) = self.maps.tasks.put(slot, state) {
            // The kernel goes on with the old state, whose deadline still holds.
            tracing::error!(error = chain(&error), slot, "a task's state could not be changed");
        }
    }

    pub(super) fn release(&mut self, slot: u32, epoch: u32) {
        let _ = self.table.finish(slot, epoch, TaskStatus::Ended, instant());
        if self.table.release(slot, epoch).is_some() {
            self.keeper.forget(slot);
        }
        self.shared.snapshot.load().names.forget((slot, epoch));
        let _ = self.publish(|snapshot| {
            snapshot.tasks.remove(&(slot, epoch));
            Ok(())
        });
    }

    pub(super) fn record_over(&mut self, task: &Task, why: &str) {
        let Some(reference) = self.reference(task.slot, task.epoch) else { return };
        let counts = self.table.by_mark(task.slot, task.epoch).map_or(task.counts, |task| task.counts);
        let over = Box::new(TaskOver {
            task: reference,
            why: why.to_owned(),
            allowed: counts.allowed,
            denied: counts.denied,
            would_denied: counts.would_denied,
        });
        let event = match task.status {
            TaskStatus::Revoked => Event::TaskRevoked(over),
            TaskStatus::Expired => Event::TaskExpired(over),
            _ => Event::TaskEnded(over),
        };
        self.recorder.record(Timestamp::now(), event);
    }
}
