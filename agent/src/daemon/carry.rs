//! What was decided under one generation, carried over to the next, so that live connections go on without waiting and what was
//! met before is no first contact again.

use std::sync::Arc;
use std::time::Duration;

use agent_common::maps::{ConnectKey, MAX_CONNECT, Verdict};
use agent_common::{Action, Effect};
use nix::time::{ClockId, clock_gettime};

use super::snapshot::{Snapshot, address};
use super::state::Daemon;
use super::threads::{endpoint_class, now};
use crate::decision::{Answer, Rows, TaskKey};
use crate::domain::resource::canonical;
use crate::policy::Class;

/// Processor time that it may take of the loop, half of that for reading; not time that passes, since on a busy host that says
/// nothing of how much there is to do. What is left is decided when it is met again: in the kernel's table there is no order
/// that a task could choose.
const BUDGET: Duration = Duration::from_millis(20);

impl Daemon {
    /// Decides again what the kernel holds for connections under the `old` generation, and puts it down under the `new` one. To be
    /// called when the new policies are published, and before the kernel is told the number.
    pub(super) fn carry_over(&mut self, old: u32, new: u32) {
        let (began, snapshot) = (own_time(), self.shared.snapshot.load_full());
        let spent = || own_time().saturating_sub(began);
        let most = usize::try_from(MAX_CONNECT).unwrap_or(usize::MAX);
        let keys = self.maps.connect.keys_while(most, || spent() < BUDGET / 2);
        let mut rows = Rows::new(Arc::clone(&self.shared.details), self.shared.patience);
        let (mut carried, mut left) = (0_usize, 0_usize);
        for key in keys {
            if spent() >= BUDGET {
                left += 1;
            } else if key.generation == old {
                carried += usize::from(self.carry(&snapshot, &mut rows, ConnectKey { generation: new, ..key }));
            } else if key.generation != new {
                // Out of reach since the generation before: it would only be read again.
                self.maps.connect.remove(key);
            }
        }
        tracing::debug!(carried, left, "verdicts carried over to generation {new}");
    }

    fn carry(&mut self, snapshot: &Snapshot, rows: &mut Rows<Class>, key: ConnectKey) -> bool {
        if snapshot.task(key.slot, key.epoch).is_none() {
            return false;
        }
        let _deciding = snapshot.names.deciding();
        let verdict = match Action::from_code(key.action) {
            Some(Action::Connect) => self.carried(snapshot, rows, key),
            Some(Action::Listen) => answer(snapshot, rows, key, &Arc::default()).map(|answer| answer.verdict),
            _ => None,
        };
        let verdict = verdict.filter(|verdict| verdict.once == 0);
        verdict.is_some_and(|verdict| self.maps.connect.put(key, verdict).is_ok())
    }

    /// A connection that is there goes by every name that the task has known its destination by. A new one goes by those that
    /// hold: where they are others, it is a first contact.
    fn carried(&mut self, snapshot: &Snapshot, rows: &mut Rows<Class>, key: ConnectKey) -> Option<Verdict> {
        let (task, ip) = ((key.slot, key.epoch), canonical(address(&key)));
        let hosts = snapshot.names.remembered(task, ip);
        let mut verdict = answer(snapshot, rows, key, &hosts)?.verdict;
        let (known, gone) = snapshot.names.known_for(task, ip, key, now().boot);
        if let Some(gone) = gone {
            self.maps.connect.remove(gone);
        }
        if known.hosts == hosts {
            verdict.not_after = verdict.not_after.min(known.until);
        } else if verdict.effect == Effect::Allow.code() {
            verdict.not_after = 0;
        }
        Some(verdict)
    }
}

/// Processor time of this thread.
fn own_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn answer(
    snapshot: &Snapshot,
    rows: &mut Rows<Class>,
    key: ConnectKey,
    hosts: &Arc<crate::domain::Hosts>,
) -> Option<Answer> {
    let class = endpoint_class(snapshot, &key, hosts)?;
    let task = TaskKey { slot: key.slot, epoch: key.epoch, generation: key.generation };
    Some(rows.answer(snapshot, task, class, now()))
}
