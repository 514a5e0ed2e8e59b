//! The canary's task: a real one to the kernel and to policy, in a slot that no other task gets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use agent_common::maps::{ConnectKey, FAMILY_V4, MAX_TASKS, Mark, TaskState, Usage, Verdict};
use agent_common::{Action, Effect, Mode, Reason, TaskStatus};
use arc_swap::ArcSwap;
use bytemuck::Zeroable;

use super::DaemonError;
use super::canary::{Attempt, Canary, Outcome, Targets};
use super::protect::chain;
use super::snapshot::{Known, Snapshot};
use super::threads::now;
use crate::domain::{AgentFacts, IntentFacts, LabelSet, Protocol, TaskFacts, TaskId};
use crate::kernel::{MapError, Maps};
use crate::policy::Prepared;

/// The last slot.
pub(super) const CANARY_SLOT: u32 = MAX_TASKS - 1;
/// The label of the canary's secret: no policy speaks of it.
pub(super) const CANARY_LABEL: &str = "secret/writ/canary";
const EPOCH: u32 = 1;
/// Nanoseconds that the canary may take.
const LIFE: u64 = 60_000_000_000;

fn facts() -> TaskFacts {
    TaskFacts {
        id: TaskId::from_text("t-canary"),
        agent: AgentFacts { id: "writ-canary".into(), groups: Vec::new(), owner: None },
        intent: IntentFacts { id: "writ-canary".into(), parents: Vec::new() },
        goal: None,
        on_behalf_of: None,
        parent: None,
        assurance: 0,
        may_read: LabelSet::new(),
        may_connect: LabelSet::new(),
        touched: LabelSet::new(),
        expires_at: now().millis().saturating_add(60_000),
    }
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

/// Runs the canary and says what came of each attempt.
///
/// # Errors
/// If it could not be started, marked or understood.
pub(super) fn run(
    maps: &mut Maps,
    snapshot: &ArcSwap<Snapshot>,
    targets: &Targets,
    generation: u32,
) -> Result<BTreeMap<Attempt, Outcome>, DaemonError> {
    publish(snapshot, generation)?;
    set_up(maps, targets, generation).map_err(|error| DaemonError::Canary(chain(&error)))?;
    let outcomes = sing(maps, targets, generation);
    let _ = maps.tasks.put(CANARY_SLOT, state(TaskStatus::Ended, generation));
    outcomes
}

fn publish(snapshot: &ArcSwap<Snapshot>, generation: u32) -> Result<(), DaemonError> {
    let mut next = Snapshot::clone(&snapshot.load());
    let facts = Arc::new(facts());
    let prepared = next.policies.prepare(&facts).map_err(|error| DaemonError::Canary(chain(&error)))?;
    warm_up(&next, &prepared);
    let known = Known { prepared, facts, generation, mode: Mode::Enforce };
    next.tasks.insert((CANARY_SLOT, EPOCH), Arc::new(known));
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

fn set_up(maps: &mut Maps, targets: &Targets, generation: u32) -> Result<(), MapError> {
    maps.usage.put(CANARY_SLOT, Usage { processes: 1, ..Usage::zeroed() })?;
    maps.tasks
        .put(CANARY_SLOT, state(TaskStatus::Active, generation))
        .and_then(|()| targets.egress().map_or(Ok(()), |to| allow(maps, to, generation)))
}

/// The one connection that the canary is allowed, so that there is a flow to cut. It is to another port than the attempts'
/// own: those must be refused.
fn allow(maps: &mut Maps, to: std::net::SocketAddr, generation: u32) -> Result<(), MapError> {
    let IpAddr::V4(address) = to.ip() else { return Ok(()) };
    let [a, b, c, d] = address.octets();
    let mut key = ConnectKey {
        slot: CANARY_SLOT,
        epoch: EPOCH,
        generation,
        action: Action::Connect.code(),
        ..ConnectKey::zeroed()
    };
    (key.port, key.protocol, key.family) = (to.port(), Protocol::Udp.number(), FAMILY_V4);
    key.address = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (effect, reason) = (Effect::Allow.code(), Reason::Policy.code());
    maps.connect
        .put(key, Verdict { not_after: u64::MAX, flow_not_after: u64::MAX, effect, reason, ..Verdict::zeroed() })
}

fn sing(maps: &mut Maps, targets: &Targets, generation: u32) -> Result<BTreeMap<Attempt, Outcome>, DaemonError> {
    let failed = |error: std::io::Error| DaemonError::Canary(error.to_string());
    let canary = Canary::start(targets).map_err(failed)?;
    let mark = Mark { slot: CANARY_SLOT, epoch: EPOCH, start: 0 };
    maps.processes.put(canary.pid(), mark).map_err(|error| DaemonError::Canary(chain(&error)))?;
    let outcomes = canary.run(|| {
        let _ = maps.tasks.put(CANARY_SLOT, state(TaskStatus::Revoked, generation));
    });
    Ok(outcomes.map_err(failed)?.into_iter().collect())
}
