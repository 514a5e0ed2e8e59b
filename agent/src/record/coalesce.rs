//! Coalescing: decisions that repeat within a window become two lines, the first and one that counts the rest.
//!
//! The first decision of its kind is written at once. Those that follow within the window are only counted; when the
//! window ends, one line tells how many there were. The sum of `count` over the lines of a kind is therefore, once the
//! windows have ended, exactly the number of its decisions. Windows are of one length, so they end in the order in which
//! they began and a queue is all the bookkeeping there is. When there is no room for another, the oldest ends early.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::decision::{Decision, PolicyNote, Resource, Shadow};
use crate::domain::{Action, Effect, Reason, TaskId};

/// What makes decisions alike.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    task: TaskId,
    pid: u32,
    start: u64,
    action: Action,
    resource: Resource,
    effect: Effect,
    reason: Reason,
    policies: Arc<[PolicyNote]>,
    shadow: Option<Arc<Shadow>>,
    generation: u32,
}

impl From<&Decision> for Key {
    fn from(decision: &Decision) -> Self {
        Self {
            task: decision.task.task.clone(),
            pid: decision.process.pid,
            start: decision.process.start,
            action: decision.action,
            resource: decision.resource.clone(),
            effect: decision.effect,
            reason: decision.reason,
            policies: decision.policies.clone(),
            shadow: decision.shadow.clone(),
            generation: decision.generation,
        }
    }
}

/// A window that has begun.
struct Window {
    /// Sequence of the line that shows the first decision.
    first: u64,
    /// The repeats so far as one decision, once there is one.
    repeats: Option<(Timestamp, Box<Decision>)>,
}

impl Window {
    fn add(&mut self, time: Timestamp, mut decision: Box<Decision>) {
        let (first_time, count, latency) = match &self.repeats {
            Some((_, so_far)) => (so_far.first_time, so_far.count, so_far.latency_us),
            None => (Some(time), 0, 0),
        };
        decision.repeat_of = Some(self.first);
        decision.first_time = first_time;
        decision.last_time = Some(time);
        decision.count = decision.count.saturating_add(count);
        decision.latency_us = decision.latency_us.max(latency);
        self.repeats = Some((time, decision));
    }
}

/// Decisions that may repeat. `write` takes a line's time and content and returns the sequence that it got.
pub struct Coalescer {
    window: Duration,
    max_keys: usize,
    open: HashMap<Key, Window>,
    ends: VecDeque<(Instant, Key)>,
}

impl Coalescer {
    /// Windows of `window`, at most `max_keys` (at least 1) at a time.
    pub fn new(window: Duration, max_keys: usize) -> Self {
        Self { window, max_keys: max_keys.max(1), open: HashMap::new(), ends: VecDeque::new() }
    }

    /// Writes `decision` if it is the first of its kind, else counts it.
    pub fn offer<W>(&mut self, now: Instant, time: Timestamp, decision: Box<Decision>, mut write: W)
    where
        W: FnMut(Timestamp, Box<Decision>) -> u64,
    {
        self.flush_due(now, &mut write);
        let key = Key::from(&*decision);
        if let Some(window) = self.open.get_mut(&key) {
            return window.add(time, decision);
        }
        if self.ends.len() >= self.max_keys {
            self.end_oldest(&mut write);
        }
        let first = write(time, decision);
        self.ends.push_back((now + self.window, key.clone()));
        self.open.insert(key, Window { first, repeats: None });
    }

    /// Writes the counts of the windows that have ended at `now`.
    pub fn flush_due<W>(&mut self, now: Instant, mut write: W)
    where
        W: FnMut(Timestamp, Box<Decision>) -> u64,
    {
        while self.next_due().is_some_and(|end| end <= now) {
            self.end_oldest(&mut write);
        }
    }

    /// Ends every window now and writes its count.
    pub fn flush_all<W>(&mut self, mut write: W)
    where
        W: FnMut(Timestamp, Box<Decision>) -> u64,
    {
        while !self.ends.is_empty() {
            self.end_oldest(&mut write);
        }
    }

    /// When the next window ends.
    pub fn next_due(&self) -> Option<Instant> {
        self.ends.front().map(|(end, _)| *end)
    }

    fn end_oldest<W>(&mut self, write: &mut W)
    where
        W: FnMut(Timestamp, Box<Decision>) -> u64,
    {
        let Some((_, key)) = self.ends.pop_front() else { return };
        if let Some((time, repeats)) = self.open.remove(&key).and_then(|window| window.repeats) {
            write(time, repeats);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::testing::decision;
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Event { port: u16, pid: u32, count: u64 },
        Wait(u64),
        FlushAll,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u16..5, 1u32..3, 1u64..3).prop_map(|(port, pid, count)| Step::Event { port, pid, count }),
            3 => (0u64..1500).prop_map(Step::Wait),
            1 => Just(Step::FlushAll),
        ]
    }

    fn alike(decision: &Decision) -> (u16, u32) {
        let Resource::Endpoint { port, .. } = decision.resource else { panic!("the test makes endpoints") };
        (port, decision.process.pid)
    }

    fn at(port: u16, pid: u32, count: u64) -> Box<Decision> {
        let mut made = decision();
        let Resource::Endpoint { port: slot, .. } = &mut made.resource else { panic!("the sample is an endpoint") };
        *slot = port;
        made.process.pid = pid;
        made.count = count;
        Box::new(made)
    }

    proptest! {
        #[test]
        fn counts_add_up_exactly(steps in proptest::collection::vec(step(), 0..200), max_keys in 1usize..6) {
            let mut coalescer = Coalescer::new(Duration::from_secs(1), max_keys);
            let (mut now, mut sequence) = (Instant::now(), 0u64);
            let mut lines: Vec<(u64, Box<Decision>)> = Vec::new();
            let mut offered: BTreeMap<(u16, u32), u64> = BTreeMap::new();
            let mut write = |_, decision| { sequence += 1; lines.push((sequence, decision)); sequence };
            for step in steps {
                match step {
                    Step::Event { port, pid, count } => {
                        *offered.entry((port, pid)).or_default() += count;
                        coalescer.offer(now, Timestamp::UNIX_EPOCH, at(port, pid, count), &mut write);
                    }
                    Step::Wait(millis) => { now += Duration::from_millis(millis); coalescer.flush_due(now, &mut write); }
                    Step::FlushAll => coalescer.flush_all(&mut write),
                }
                prop_assert!(coalescer.open.len() <= max_keys && coalescer.open.len() == coalescer.ends.len());
            }
            coalescer.flush_all(&mut write);
            let mut written: BTreeMap<(u16, u32), u64> = BTreeMap::new();
            for (sequence, line) in &lines {
                *written.entry(alike(line)).or_default() += line.count;
                if let Some(first) = line.repeat_of {
                    let (_, shown) = lines.iter().find(|(number, _)| *number == first).unwrap();
                    prop_assert!(first < *sequence && shown.repeat_of.is_none() && alike(shown) == alike(line));
                }
            }
            prop_assert_eq!(written, offered);
        }
    }

    #[test]
    fn repeats_carry_their_times_and_the_longest_latency() {
        let mut coalescer = Coalescer::new(Duration::from_secs(1), 8);
        let (now, mut lines) = (Instant::now(), Vec::new());
        let mut write = |time, decision| {
            lines.push((time, decision));
            7
        };
        for (second, latency) in [(1, 10), (2, 30), (3, 20)] {
            let mut repeat = at(443, 1, 1);
            repeat.latency_us = latency;
            coalescer.offer(now, Timestamp::from_second(second).unwrap(), repeat, &mut write);
        }
        coalescer.flush_due(now + Duration::from_millis(999), &mut write);
        coalescer.flush_due(now + Duration::from_secs(1), &mut write);
        assert_eq!(coalescer.next_due(), None);
        let [(_, first), (time, rest)] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((first.count, first.repeat_of, first.first_time), (1, None, None));
        assert_eq!((rest.count, rest.repeat_of, rest.latency_us), (2, Some(7), 30));
        assert_eq!(rest.first_time, Some(Timestamp::from_second(2).unwrap()));
        assert_eq!((rest.last_time, *time), (Some(Timestamp::from_second(3).unwrap()), rest.last_time.unwrap()));
    }

    #[test]
    fn what_differs_is_not_coalesced() {
        let mut coalescer = Coalescer::new(Duration::from_secs(1), 64);
        let (now, mut lines) = (Instant::now(), 0);
        let changes: [fn(&mut Decision); 6] = [
            |d| d.process.start += 1,
            |d| d.action = Action::Send,
            |d| d.effect = Effect::Allow,
            |d| d.reason = Reason::Expired,
            |d| d.policies = Arc::from([]),
            |d| d.generation += 1,
        ];
        for change in changes {
            let mut other = decision();
            change(&mut other);
            coalescer.offer(now, Timestamp::UNIX_EPOCH, Box::new(other), |_, _| {
                lines += 1;
                lines
            });
        }
        coalescer.offer(now, Timestamp::UNIX_EPOCH, Box::new(decision()), |_, _| {
            lines += 1;
            lines
        });
        assert_eq!(lines, 7);
    }
}
