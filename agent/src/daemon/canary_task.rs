//! The canary's task: a real one to the kernel, in a slot that no other task gets, and permitted nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use agent_common::maps::{
    CLASS_FACILITY, ConnectKey, FAMILY_V4, FAMILY_V6, Mark, RowKey, SLOT_CANARY, TaskState, Usage, Verdict,
};
use agent_common::{Action, Effect, Facility, Mode, Reason, TaskStatus};
use arc_swap::ArcSwap;
use bytemuck::Zeroable;

use super::DaemonError;
use super::attempt::{Attempt, Targets};
use super::canary::{Canary, Outcomes};
use super::protect::chain;
use super::snapshot::{Known, Snapshot};
use super::threads::now;
use crate::domain::{Protocol, TaskFacts, TaskId};
use crate::kernel::{MapError, Maps};
use crate::policy::Prepared;

/// The label of the canary's secret: no policy speaks of it.
pub(super) const CANARY_LABEL: &str = "secret/writ/canary";
const EPOCH: u32 = 1;
/// Nanoseconds that the task lives on after each turn.
const LIFE: u64 = 60_000_000_000;

fn facts() -> TaskFacts {
    TaskFacts::without_grants(TaskId::from_text("t-canary"), "writ-canary", now().millis().saturating_add(60_000))
}

fn state(status: TaskStatus, generation: u32) -> TaskState {
    TaskState {
        deadline: now().boot.saturating_add(LIFE),
        status: status.code(),
        mode: Mode::Enforce.code(),
        epoch: EPOCH,
        generation,
        ..TaskState::zeroed()
    }
}

/// Makes the task known to the threads that decide, so that at the start what is decided is asked of policy.
///
/// # Errors
/// If policy cannot judge it.
pub(super) fn publish(snapshot: &ArcSwap<Snapshot>, generation: u32) -> Result<(), DaemonError> {
    let mut next = Snapshot::clone(&snapshot.load());
    let facts = Arc::new(facts());
    let prepared = next.policies.prepare(&facts).map_err(|error| DaemonError::Canary(chain(&error)))?;
    warm_up(&next, &prepared);
    let known = Known { prepared, facts, generation, mode: Mode::Enforce };
    next.tasks.insert((SLOT_CANARY, EPOCH), Arc::new(known));
    snapshot.store(Arc::new(next));
    Ok(())
}

/// The authorizer sets itself up on its first question, which takes longer than a process should be held.
fn warm_up(snapshot: &Snapshot, prepared: &Prepared) {
    let at = now().millis();
    let nowhere = ConnectKey {
        protocol: Protocol::Tcp.number(),
        family: FAMILY_V4,
        action: Action::Connect.code(),
        ..ConnectKey::zeroed()
    };
    if let Some(endpoint) = snapshot.endpoint(&nowhere, Arc::default()) {
        snapshot.policies.decide(prepared, &snapshot.policies.endpoint_class(&endpoint), at);
    }
}

/// The canary with everything that it needs, on whatever thread.
pub(super) struct Stage {
    maps: Maps,
    targets: Targets,
    attempts: Vec<Attempt>,
    canary: Option<Canary>,
    /// Verdicts of an earlier daemon's canary are none of this one's.
    generation: u32,
}

impl Stage {
    /// Prepares the task. `attempts` is all that makes sense on this host.
    ///
    /// # Errors
    /// If the kernel's maps do not take it.
    pub(super) fn new(
        maps: Maps,
        targets: Targets,
        attempts: Vec<Attempt>,
        generation: u32,
    ) -> Result<Self, DaemonError> {
        let mut stage = Self { maps, targets, attempts, canary: None, generation };
        stage.prepare().map_err(|error| DaemonError::Canary(chain(&error)))?;
        Ok(stage)
    }

    /// What a site's policies permit everybody is not permitted here.
    fn prepare(&mut self) -> Result<(), MapError> {
        for facility in Facility::ALL {
            self.maps.rows.put(self.row(CLASS_FACILITY | facility.code()), refusal())?;
        }
        match self.targets.egress() {
            Some(to) => self.maps.connect.put(self.destination(to, false), verdict(Effect::Allow)),
            None => Ok(()),
        }
    }

    /// From here on nothing is asked of policy: the kernel holds every answer. `class` is that of the secret.
    pub(super) fn settle(&mut self, class: Option<u32>) -> Result<(), MapError> {
        if let Some(class) = class {
            self.maps.rows.put(self.row(class), refusal())?;
        }
        let mut forbidden: Vec<ConnectKey> =
            self.targets.forbidden().map(|(to, tcp)| self.destination(to, tcp)).collect();
        let listen = self.targets.listen().map(|at| self.destination(at, true));
        forbidden.extend(listen.map(|key| ConnectKey { action: Action::Listen.code(), ..key }));
        forbidden.into_iter().try_for_each(|key| self.maps.connect.put(key, refusal()))
    }

    /// All that makes sense here.
    pub(super) fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Lets the canary try, and begins another one where there is none.
    ///
    /// # Errors
    /// If it cannot be started, marked or understood, or does not answer within `limit`; it is gone then.
    pub(super) fn run(&mut self, attempts: &[Attempt], limit: Duration) -> Result<Outcomes, DaemonError> {
        let result = self.perform(attempts, limit);
        if result.is_err() {
            self.canary = None;
        }
        result
    }

    /// Lets go of the canary: one that got through somewhere may have changed.
    pub(super) fn dismiss(&mut self) {
        self.canary = None;
        self.targets.drain();
    }

    fn perform(&mut self, attempts: &[Attempt], limit: Duration) -> Result<Outcomes, DaemonError> {
        let failed = |error: &dyn std::error::Error| DaemonError::Canary(chain(error));
        self.maps.tasks.put(SLOT_CANARY, state(TaskStatus::Active, self.generation)).map_err(|error| failed(&error))?;
        let mut canary = match self.canary.take() {
            Some(canary) => canary,
            None => self.begin()?,
        };
        let (maps, generation) = (&mut self.maps, self.generation);
        let outcomes = canary.run(attempts, limit, || {
            let _ = maps.tasks.put(SLOT_CANARY, state(TaskStatus::Revoked, generation));
        });
        let outcomes = outcomes.map_err(|error| failed(&error))?;
        self.canary = Some(canary);
        Ok(outcomes)
    }

    fn row(&self, class: u32) -> RowKey {
        RowKey { slot: SLOT_CANARY, epoch: EPOCH, generation: self.generation, class }
    }

    fn destination(&self, to: SocketAddr, tcp: bool) -> ConnectKey {
        let (family, address) = match to.ip() {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                (FAMILY_V4, [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            IpAddr::V6(address) => (FAMILY_V6, address.octets()),
        };
        ConnectKey {
            slot: SLOT_CANARY,
            epoch: EPOCH,
            generation: self.generation,
            port: to.port(),
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp }.number(),
            family,
            address,
            action: Action::Connect.code(),
            ..ConnectKey::zeroed()
        }
    }

    fn begin(&mut self) -> Result<Canary, DaemonError> {
        let canary = Canary::start(&self.targets.addresses(), &self.attempts)
            .map_err(|error| DaemonError::Canary(error.to_string()))?;
        self.targets.drain();
        let mark = Mark { slot: SLOT_CANARY, epoch: EPOCH, start: 0 };
        let marked = self
            .maps
            .usage
            .put(SLOT_CANARY, Usage { processes: 1, ..Usage::zeroed() })
            .and_then(|()| self.maps.processes.put(canary.pid(), mark));
        marked.map_err(|error| DaemonError::Canary(chain(&error)))?;
        Ok(canary)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.canary = None;
        let _ = self.maps.tasks.put(SLOT_CANARY, state(TaskStatus::Ended, self.generation));
    }
}

fn verdict(effect: Effect) -> Verdict {
    let (effect, reason) = (effect.code(), Reason::Policy.code());
    Verdict { not_after: u64::MAX, flow_not_after: u64::MAX, effect, reason, ..Verdict::zeroed() }
}

fn refusal() -> Verdict {
    verdict(Effect::Deny)
}
