//! Taking over from a daemon that is gone: what the kernel still holds.

use agent_common::TaskStatus;
use agent_common::maps::TaskState;

use super::canary_task::CANARY_SLOT;
use super::protect::chain;
use crate::kernel::Maps;

/// What the kernel's maps say of the time before.
pub(super) struct Inherited {
    /// Slots that had tasks, and the epoch of the last one.
    pub(super) epochs: Vec<(u32, u32)>,
    /// A number that no verdict of the time before is kept under.
    pub(super) generation: u32,
}

/// Reads what there is, and revokes the tasks that nobody knows any more.
pub(super) fn inherit(maps: &mut Maps) -> Inherited {
    let states: Vec<(u32, TaskState)> = (0..CANARY_SLOT).map(|slot| (slot, maps.tasks.get(slot))).collect();
    for (slot, state) in &states {
        if state.status == TaskStatus::Active.code() || state.status == TaskStatus::Draining.code() {
            let revoked = TaskState { status: TaskStatus::Revoked.code(), ..*state };
            if let Err(error) = maps.tasks.put(*slot, revoked) {
                tracing::error!(error = chain(&error), slot, "a task that nobody knows could not be revoked");
            }
        }
    }
    let generation = states.iter().map(|(_, state)| state.generation).max().unwrap_or(0);
    Inherited {
        epochs: states.iter().filter(|(_, state)| state.epoch > 0).map(|(slot, state)| (*slot, state.epoch)).collect(),
        generation: generation.max(maps.tasks.get(CANARY_SLOT).generation).saturating_add(1),
    }
}
