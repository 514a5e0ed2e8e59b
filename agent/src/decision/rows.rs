//! Rows of answers: one for each task and class, kept for as long as they hold.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use agent_common::maps::Verdict;

use super::Details;
use crate::domain::{Decision, Lifetime, UnixMillis};

/// Rows at most; beyond it all are dropped, which costs evaluations and nothing else.
const MAX_ROWS: usize = 1 << 16;
const NANOS_PER_MILLI: u64 = 1_000_000;

/// Which task, in the state that one generation saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskKey {
    /// Index into `TASKS`.
    pub slot: u32,
    /// The task's epoch.
    pub epoch: u32,
    /// The task's generation in the judge's view.
    pub generation: u32,
}

/// One instant on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant {
    /// `CLOCK_BOOTTIME`, nanoseconds: what the kernel compares.
    pub boot: u64,
    /// `CLOCK_REALTIME`, nanoseconds: what policies speak of.
    pub wall: i64,
}

impl Instant {
    /// What policies see.
    pub fn millis(self) -> UnixMillis {
        self.wall.div_euclid(1_000_000)
    }

    /// The last nanosecond of the boot clock at which an answer of this lifetime, given now, holds. `None` to ask each
    /// time.
    pub fn not_after(self, lifetime: Lifetime) -> Option<u64> {
        let last = match lifetime {
            Lifetime::Forever => return Some(u64::MAX),
            Lifetime::Ask => return None,
            Lifetime::Until(last) => last,
        };
        // The last millisecond counts whole: policies see time in milliseconds, rounded down.
        let end = last.saturating_add(1).saturating_mul(1_000_000).saturating_sub(1);
        u64::try_from(end.saturating_sub(self.wall)).ok().map(|ahead| self.boot.saturating_add(ahead))
    }
}

/// What decides.
pub trait Judge {
    /// Everything that policy can tell apart about a resource.
    type Class: Clone + Eq + Hash;

    /// The authorizer's answer.
    fn decide(&self, task: TaskKey, class: &Self::Class, at: UnixMillis) -> Decision;
}

/// An answer and how it goes into the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What was decided.
    pub decision: Arc<Decision>,
    /// The same for the kernel. With `once` set where it must not be used a second time; `not_after` is then the end of
    /// `patience`.
    pub verdict: Verdict,
}

struct Row {
    decision: Arc<Decision>,
    not_after: u64,
    detail: u32,
}

/// The rows of one decision thread.
pub struct Rows<C> {
    rows: HashMap<(TaskKey, C), Row>,
    details: Arc<Details>,
    /// How long a process that waits may take to find an answer that is for it alone, nanoseconds.
    patience: u64,
}

impl<C: Clone + Eq + Hash> Rows<C> {
    /// No rows yet. `patience_millis` bounds how long an answer that holds for one question is left for its asker.
    pub fn new(details: Arc<Details>, patience_millis: u64) -> Self {
        Self { rows: HashMap::new(), details, patience: patience_millis.saturating_mul(NANOS_PER_MILLI) }
    }

    /// The answer for a task and a class at an instant: from the row while it holds, else from the judge.
    pub fn answer(&mut self, judge: &impl Judge<Class = C>, task: TaskKey, class: C, now: Instant) -> Answer {
        let key = (task, class);
        if let Some(row) = self.rows.get(&key).filter(|row| now.boot <= row.not_after) {
            return row.answer();
        }
        let decision = Arc::new(judge.decide(task, &key.1, now.millis()));
        let detail = self.details.number(&decision);
        let Some(not_after) = now.not_after(decision.lifetime) else {
            return once(decision, detail, now.boot.saturating_add(self.patience));
        };
        if self.rows.len() >= MAX_ROWS {
            self.rows.clear();
        }
        let row = Row { decision, not_after, detail };
        let answer = row.answer();
        self.rows.insert(key, row);
        answer
    }

    /// Drops the rows of tasks that `keep` does not know in the generation that they are of.
    pub fn retain(&mut self, keep: impl Fn(TaskKey) -> bool) {
        self.rows.retain(|(task, _), _| keep(*task));
    }
}

impl Row {
    fn answer(&self) -> Answer {
        let verdict = verdict(&self.decision, self.detail, self.not_after, 0);
        Answer { decision: Arc::clone(&self.decision), verdict }
    }
}

/// What was opened by an answer for one question may go on under the generation that gave it.
fn once(decision: Arc<Decision>, detail: u32, not_after: u64) -> Answer {
    let verdict = Verdict { flow_not_after: u64::MAX, ..verdict(&decision, detail, not_after, 1) };
    Answer { decision, verdict }
}

fn verdict(decision: &Decision, detail: u32, not_after: u64, once: u8) -> Verdict {
    let (effect, reason) = (decision.effect.code(), decision.reason.code());
    Verdict { not_after, flow_not_after: not_after, detail, effect, reason, once, pad: 0 }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::domain::{Effect, Reason};

    const TASK: TaskKey = TaskKey { slot: 1, epoch: 1, generation: 1 };
    const NOW: Instant = Instant { boot: 5_000_000_000, wall: 1_700_000_000_000_400_000 };

    struct Fixed(Lifetime, Cell<u32>);

    impl Judge for Fixed {
        type Class = u8;

        fn decide(&self, _: TaskKey, _: &u8, _: UnixMillis) -> Decision {
            self.1.set(self.1.get() + 1);
            let (effect, reason) = (Effect::Allow, Reason::Policy);
            Decision { effect, reason, policies: Vec::new(), hop: 0, shadow: None, lifetime: self.0 }
        }
    }

    fn asked(lifetime: Lifetime, at: &[u64]) -> u32 {
        let judge = Fixed(lifetime, Cell::new(0));
        let mut rows = Rows::new(Arc::default(), 20);
        for ahead in at {
            let now = Instant { boot: NOW.boot + ahead, wall: NOW.wall + i64::try_from(*ahead).unwrap() };
            rows.answer(&judge, TASK, 7, now);
        }
        judge.1.get()
    }

    #[test]
    fn a_row_is_asked_for_once_while_it_holds() {
        assert_eq!(asked(Lifetime::Forever, &[0, 1, u64::pow(10, 15)]), 1);
        // 600 microseconds are left of the millisecond that is the last.
        assert_eq!(asked(Lifetime::Until(1_700_000_000_000), &[0, 599_999]), 1);
        assert_eq!(asked(Lifetime::Until(1_700_000_000_000), &[0, 600_000]), 2);
        assert_eq!(asked(Lifetime::Ask, &[0, 0, 0]), 3);
    }

    #[test]
    fn not_after_is_the_last_nanosecond_of_the_last_millisecond() {
        assert_eq!(NOW.not_after(Lifetime::Until(1_700_000_000_000)), Some(NOW.boot + 599_999));
        assert_eq!(NOW.not_after(Lifetime::Until(1_600_000_000_000)), None, "over already: for this question only");
        assert_eq!(NOW.not_after(Lifetime::Forever), Some(u64::MAX));
    }

    #[test]
    fn an_answer_for_one_question_says_so_and_goes_stale() {
        let judge = Fixed(Lifetime::Ask, Cell::new(0));
        let answer = Rows::new(Arc::default(), 20).answer(&judge, TASK, 7, NOW);
        assert_eq!((answer.verdict.once, answer.verdict.not_after), (1, NOW.boot + 20_000_000));
        assert_eq!(answer.verdict.flow_not_after, u64::MAX, "what it opened goes on");
    }

    #[test]
    fn rows_of_tasks_that_are_gone_are_dropped() {
        let judge = Fixed(Lifetime::Forever, Cell::new(0));
        let mut rows = Rows::new(Arc::default(), 20);
        rows.answer(&judge, TASK, 7, NOW);
        rows.retain(|task| task.generation == 2);
        rows.answer(&judge, TASK, 7, NOW);
        assert_eq!(judge.1.get(), 2);
    }
}
