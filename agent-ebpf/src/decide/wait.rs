//! Waiting for what is no verdict: something that the daemon sets up for whoever needs it first.

use agent_common::maps::Mark;
use agent_common::{Effect, Reason};

use super::{Caller, Key, Question, finish, first_contact, generation_of, now, refuse};
use crate::maps::TASKS;
use crate::record::Describe;

/// Waits for something that the daemon puts there for the asking. Recorded only where it does not come. True if the action
/// may go on.
#[inline(always)]
pub fn wait_for<K: Key>(mark: &Mark, key: &K, what: &impl Describe) -> bool {
    let Some(task) = TASKS.get(mark.slot) else { return refuse(mark, key.action(), Reason::Undecidable, what) };
    let generation = generation_of(task);
    let question = Question { who: &Caller(mark), key, what, generation, time: now() };
    let mut outcome = first_contact(&question, mark, task);
    if outcome.effect == Effect::Allow {
        return true;
    }
    outcome.generation = generation;
    finish(mark, key.action(), task.mode, &mut outcome, question.time, what)
}
