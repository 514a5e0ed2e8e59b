//! What one task may ask for in a while: how often, and how much that could be somebody's message.
//!
//! A name that the catalogue spells out tells nobody anything. What an agent may choose itself, parts below a wildcard or
//! names that are not there, could carry what it knows to whoever runs the name server: that is bounded.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::TaskMark;

/// How long names of the asker's choosing are counted together.
const WINDOW: Duration = Duration::from_secs(60);
/// Different names of the asker's choosing in that time, and their bytes.
const MAX_CHOSEN: Amount = Amount { names: 300, bytes: 12_288 };
/// Of these, names that turned out not to be there.
const MAX_MISSING: Amount = Amount { names: 60, bytes: 2_048 };
/// Parts of a name of the asker's choosing, and its bytes.
const MAX_PARTS: usize = 12;
const MAX_CHOSEN_NAME: usize = 180;
/// Tasks that are remembered at most: those that asked last.
const MAX_REMEMBERED: usize = 8192;
/// Questions of one task, and of all, that may be under way.
const MAX_UNDER_WAY: usize = 64;
const MAX_ALL_UNDER_WAY: usize = 2048;

/// How often a task may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Questions a second.
    pub per_second: NonZeroU32,
    /// Questions at once.
    pub burst: NonZeroU32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Amount {
    names: usize,
    bytes: usize,
}

/// What tasks have asked for.
#[derive(Debug)]
pub(super) struct Limits {
    rate: Rate,
    tasks: HashMap<TaskMark, Asked>,
    under_way: usize,
}

#[derive(Debug)]
struct Asked {
    /// Questions that are left.
    left: f64,
    filled: Instant,
    window: Instant,
    chosen: HashSet<Arc<str>>,
    chosen_bytes: usize,
    missing: HashSet<Arc<str>>,
    missing_bytes: usize,
    under_way: usize,
}

impl Limits {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, tasks: HashMap::new(), under_way: 0 }
    }

    /// Counts a question in. Whether the task may ask it, by how often it asks.
    pub(super) fn take(&mut self, task: TaskMark, now: Instant) -> bool {
        let (per_second, burst) = (f64::from(self.rate.per_second.get()), f64::from(self.rate.burst.get()));
        let asked = self.asked(task, now);
        let since = now.saturating_duration_since(asked.filled).as_secs_f64();
        (asked.left, asked.filled) = ((asked.left + since * per_second).min(burst), now);
        let may = asked.left >= 1.0;
        if may {
            asked.left -= 1.0;
        }
        may
    }

    /// Whether the task may ask for a name of its own choosing, by how much it has said with such names.
    pub(super) fn may_choose(&mut self, task: TaskMark, name: &Arc<str>, now: Instant) -> bool {
        if name.len() > MAX_CHOSEN_NAME || name.split('.').count() > MAX_PARTS {
            return false;
        }
        let asked = self.asked(task, now);
        if asked.chosen.contains(name) {
            return true;
        }
        let fits = |names: usize, bytes: usize, most: Amount| names < most.names && bytes + name.len() <= most.bytes;
        if !fits(asked.chosen.len(), asked.chosen_bytes, MAX_CHOSEN)
            || !fits(asked.missing.len(), asked.missing_bytes, MAX_MISSING)
        {
            return false;
        }
        asked.chosen_bytes += name.len();
        asked.chosen.insert(Arc::clone(name))
    }

    /// Notes that a name of the task's choosing is not there.
    pub(super) fn was_missing(&mut self, task: TaskMark, name: &Arc<str>, now: Instant) {
        let asked = self.asked(task, now);
        if asked.missing.insert(Arc::clone(name)) {
            asked.missing_bytes += name.len();
        }
    }

    /// Begins work on a question; false if too much is under way.
    pub(super) fn begin(&mut self, task: TaskMark, now: Instant) -> bool {
        let all = self.under_way;
        let asked = self.asked(task, now);
        let may = asked.under_way < MAX_UNDER_WAY && all < MAX_ALL_UNDER_WAY;
        if may {
            asked.under_way += 1;
            self.under_way += 1;
        }
        may
    }

    /// Ends what was begun.
    pub(super) fn end(&mut self, task: TaskMark) {
        if let Some(asked) = self.tasks.get_mut(&task) {
            asked.under_way = asked.under_way.saturating_sub(1);
        }
        self.under_way = self.under_way.saturating_sub(1);
    }

    fn asked(&mut self, task: TaskMark, now: Instant) -> &mut Asked {
        if self.tasks.len() >= MAX_REMEMBERED && !self.tasks.contains_key(&task) {
            self.tasks.retain(|_, asked| asked.under_way > 0 || now.saturating_duration_since(asked.filled) < WINDOW);
        }
        let burst = f64::from(self.rate.burst.get());
        let asked = self.tasks.entry(task).or_insert_with(|| Asked::new(burst, now));
        if now.saturating_duration_since(asked.window) >= WINDOW {
            *asked =
                Asked { left: asked.left, filled: asked.filled, under_way: asked.under_way, ..Asked::new(burst, now) };
        }
        asked
    }
}

impl Asked {
    fn new(burst: f64, now: Instant) -> Self {
        Self {
            left: burst,
            filled: now,
            window: now,
            chosen: HashSet::new(),
            chosen_bytes: 0,
            missing: HashSet::new(),
            missing_bytes: 0,
            under_way: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: TaskMark = (1, 1);

    fn limits() -> Limits {
        let number = |n| NonZeroU32::new(n).unwrap();
        Limits::new(Rate { per_second: number(10), burst: number(20) })
    }

    #[test]
    fn a_burst_goes_through_and_then_the_rate() {
        let (mut limits, start) = (limits(), Instant::now());
        let taken = |limits: &mut Limits, at| (0..100).filter(|_| limits.take(TASK, at)).count();
        assert_eq!(taken(&mut limits, start), 20);
        assert_eq!(taken(&mut limits, start + Duration::from_secs(1)), 10);
        assert!(limits.take((2, 1), start), "another task has its own");
    }

    #[test]
    fn names_of_ones_own_choosing_are_bounded_in_number_and_bytes() {
        let (mut limits, start) = (limits(), Instant::now());
        let may = |limits: &mut Limits, name: String, at| limits.may_choose(TASK, &name.into(), at);
        let short = (0..1000).filter(|n| may(&mut limits, format!("{n}.example"), start)).count();
        assert_eq!(short, MAX_CHOSEN.names);
        assert!(may(&mut limits, "0.example".into(), start), "the same again says nothing new");
        let later = start + WINDOW;
        let long = (0..1000).filter(|n| may(&mut limits, format!("{n:0>100}.example"), later)).count();
        assert_eq!(long, MAX_CHOSEN.bytes / 108);
        assert!(!may(&mut limits, "x".repeat(181), later + WINDOW));
        assert!(!may(&mut limits, ["x"; 13].join("."), later + WINDOW));
    }

    #[test]
    fn names_that_are_not_there_are_bounded_sooner() {
        let (mut limits, start) = (limits(), Instant::now());
        let asked = (0..1000).filter(|n| {
            let name: Arc<str> = format!("{n}.example").into();
            let may = limits.may_choose(TASK, &name, start);
            if may {
                limits.was_missing(TASK, &name, start);
            }
            may
        });
        assert_eq!(asked.count(), MAX_MISSING.names);
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let (mut limits, start) = (limits(), Instant::now());
        assert_eq!((0..100).filter(|_| limits.begin(TASK, start)).count(), MAX_UNDER_WAY);
        limits.end(TASK);
        assert!(limits.begin(TASK, start) && !limits.begin(TASK, start));
    }
}
