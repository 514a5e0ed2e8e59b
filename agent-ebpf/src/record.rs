//! Writing to the record ring. Losing a record is counted and never changes a verdict.

use agent_common::event::{Actor, Decided, KIND_DECIDED, Object};
use agent_common::{Action, Counter, Effect, Reason, Source};

use crate::maps::{RECORDS, count};

/// What came of a question.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// With the task's mode applied.
    pub effect: Effect,
    pub reason: Reason,
    pub source: Source,
    pub detail: u32,
    pub generation: u32,
    /// Nanoseconds.
    pub latency: u32,
}

/// Records a decision and counts it.
#[inline(always)]
pub fn decided(action: Action, outcome: Outcome, time: u64, actor: Actor, object: &Object) {
    count(match outcome.effect {
        Effect::Allow => Counter::Allowed,
        Effect::Deny => Counter::Denied,
        Effect::WouldDeny => Counter::WouldDenied,
    });
    let Some(mut entry) = RECORDS.reserve_untyped::<Decided>(0) else {
        count(match outcome.effect {
            Effect::Allow => Counter::RecordLostAllow,
            Effect::Deny => Counter::RecordLostDeny,
            Effect::WouldDeny => Counter::RecordLostWouldDeny,
        });
        return;
    };
    entry.write(Decided {
        kind: KIND_DECIDED,
        action: action.code(),
        effect: outcome.effect.code(),
        reason: outcome.reason.code(),
        source: outcome.source.code(),
        time,
        latency: outcome.latency,
        detail: outcome.detail,
        generation: outcome.generation,
        pad: 0,
        actor,
        object: *object,
    });
    entry.submit(0);
}
