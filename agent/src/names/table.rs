//! Which names each task came to know an address by, and which of its verdicts rest on that.
//!
//! Decision threads read it while a process is held, so every lock is one task's share of the table and held for a look-up.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_common::maps::ConnectKey;

use crate::domain::Hosts;

/// A task's slot and epoch.
pub type TaskMark = (u32, u32);

const SHARDS: usize = 64;
/// Addresses that one task can know by name; beyond it, the one whose names end first goes.
const MAX_ADDRESSES: usize = 4096;
/// Names of one address that one task can know.
const MAX_NAMES: usize = 16;
/// Verdicts of one task that are known to be in the kernel; beyond it the oldest is taken out of there.
const MAX_ASKED: usize = 4096;
/// How long a verdict under way is waited for. It takes microseconds.
const SETTLED: Duration = Duration::from_millis(50);

/// What a task knows of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The names.
    pub hosts: Arc<Hosts>,
    /// The last instant at which these are the names, boot clock, nanoseconds; `u64::MAX` if there are none.
    pub until: u64,
}

/// The names of all tasks.
#[derive(Debug)]
pub struct Names {
    shards: Vec<Shard>,
    /// For what falls to none of `shards`, which is nothing.
    spare: Shard,
    turn: AtomicUsize,
    deciding: [AtomicU64; 2],
}

type Shard = Mutex<HashMap<TaskMark, TaskNames>>;

#[derive(Debug, Default)]
struct TaskNames {
    addresses: HashMap<IpAddr, Vec<Name>>,
    asked: Asked,
}

#[derive(Debug)]
struct Name {
    name: Arc<str>,
    since: u64,
    until: u64,
}

/// Verdicts that the kernel was given, oldest first.
#[derive(Debug, Default)]
struct Asked {
    order: VecDeque<(IpAddr, ConnectKey)>,
    by_address: HashMap<IpAddr, Vec<ConnectKey>>,
}

/// A verdict is being worked out and put down.
#[derive(Debug)]
pub struct Deciding<'a>(&'a AtomicU64);

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Default for Names {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, spare: Shard::default(), turn: AtomicUsize::new(0), deciding: Default::default() }
    }
}

impl Names {
    /// What `task` knows `address` by at an instant of the boot clock.
    pub fn known(&self, task: TaskMark, address: IpAddr, at: u64) -> Known {
        let shard = self.shard(task);
        shard.get(&task).map_or_else(Known::nothing, |names| names.known(address, at))
    }

    /// All names by which `task` has known `address`, ended or not: those of connections that were opened under them.
    pub fn remembered(&self, task: TaskMark, address: IpAddr) -> Arc<Hosts> {
        let shard = self.shard(task);
        let names = shard.get(&task).and_then(|names| names.addresses.get(&address));
        Arc::new(names.into_iter().flatten().map(|name| Arc::clone(&name.name)).collect())
    }

    /// As [`Names::known`], for a verdict that goes into the kernel under `key`. The second value is the key of a verdict that
    /// must be taken out there, since nobody would know of it any more.
    pub fn known_for(&self, task: TaskMark, address: IpAddr, key: ConnectKey, at: u64) -> (Known, Option<ConnectKey>) {
        let mut shard = self.shard(task);
        let names = shard.entry(task).or_default();
        let gone = names.asked.note(address, key);
        (names.known(address, at), gone)
    }

    /// To be held from before the names are read until the verdict that rests on them is in the kernel.
    pub fn deciding(&self) -> Deciding<'_> {
        let [even, odd] = &self.deciding;
        let count = if self.turn.load(Ordering::SeqCst).is_multiple_of(2) { even } else { odd };
        count.fetch_add(1, Ordering::SeqCst);
        Deciding(count)
    }

    /// Notes that `task` knows `addresses` by `name` until an instant of the boot clock. The keys are those of verdicts that
    /// this changes: they must be taken out of the kernel before the task is told of the addresses. By the time that they
    /// are returned, all of them are there.
    pub fn learn(&self, task: TaskMark, name: &Arc<str>, addresses: &[IpAddr], at: u64, until: u64) -> Vec<ConnectKey> {
        let mut changed = Vec::new();
        {
            let mut shard = self.shard(task);
            let names = shard.entry(task).or_default();
            for &address in addresses {
                changed.extend(names.learn(name, address, at, until));
            }
        }
        if changed.is_empty() {
            return Vec::new();
        }
        self.settle();
        let mut shard = self.shard(task);
        let Some(names) = shard.get_mut(&task) else { return Vec::new() };
        changed.iter().flat_map(|address| names.asked.take(*address)).collect()
    }

    /// Drops what a task knew.
    pub fn forget(&self, task: TaskMark) {
        self.shard(task).remove(&task);
    }

    /// Waits until every verdict is in the kernel that was begun before this was called.
    fn settle(&self) {
        let [even, odd] = &self.deciding;
        let before = if self.turn.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) { even } else { odd };
        let end = Instant::now() + SETTLED;
        while before.load(Ordering::SeqCst) != 0 && Instant::now() < end {
            std::thread::yield_now();
        }
    }

    fn shard(&self, task: TaskMark) -> MutexGuard<'_, HashMap<TaskMark, TaskNames>> {
        let index = usize::try_from(task.0).unwrap_or(0) % SHARDS;
        self.shards.get(index).unwrap_or(&self.spare).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// An address without a name.
    pub fn nothing() -> Self {
        Self { hosts: Arc::default(), until: u64::MAX }
    }
}

impl TaskNames {
    fn known(&self, address: IpAddr, at: u64) -> Known {
        let names = self.addresses.get(&address).into_iter().flatten();
        let holding: Vec<&Name> = names.filter(|name| (name.since..=name.until).contains(&at)).collect();
        if holding.is_empty() {
            return Known::nothing();
        }
        let until = holding.iter().map(|name| name.until).min().unwrap_or(u64::MAX);
        Known { hosts: Arc::new(holding.iter().map(|name| Arc::clone(&name.name)).collect()), until }
    }

    /// The addresses that have other names now.
    fn learn(&mut self, name: &Arc<str>, address: IpAddr, at: u64, until: u64) -> Vec<IpAddr> {
        let mut changed = Vec::new();
        if !self.addresses.contains_key(&address) && self.addresses.len() >= MAX_ADDRESSES {
            changed.extend(self.drop_first_to_end());
        }
        let names = self.addresses.entry(address).or_default();
        if let Some(known) = names.iter_mut().find(|known| known.name == *name) {
            let held = known.until >= at;
            if !held {
                known.since = at;
                changed.push(address);
            }
            known.until = known.until.max(until);
            return changed;
        }
        if names.len() >= MAX_NAMES
            && let Some((index, _)) = names.iter().enumerate().min_by_key(|(_, name)| name.until)
        {
            names.swap_remove(index);
        }
        names.push(Name { name: Arc::clone(name), since: at, until });
        changed.push(address);
        changed
    }

    fn drop_first_to_end(&mut self) -> Option<IpAddr> {
        let end = |names: &Vec<Name>| names.iter().map(|name| name.until).max().unwrap_or(0);
        let (&address, _) = self.addresses.iter().min_by_key(|(_, names)| end(names))?;
        self.addresses.remove(&address);
        Some(address)
    }
}

impl Asked {
    fn note(&mut self, address: IpAddr, key: ConnectKey) -> Option<ConnectKey> {
        let keys = self.by_address.entry(address).or_default();
        if keys.contains(&key) {
            return None;
        }
        keys.push(key);
        self.order.push_back((address, key));
        if self.order.len() <= MAX_ASKED {
            return None;
        }
        let (address, oldest) = self.order.pop_front()?;
        if let Some(keys) = self.by_address.get_mut(&address) {
            keys.retain(|key| *key != oldest);
            if keys.is_empty() {
                self.by_address.remove(&address);
            }
        }
        Some(oldest)
    }

    fn take(&mut self, address: IpAddr) -> Vec<ConnectKey> {
        let keys = self.by_address.remove(&address).unwrap_or_default();
        if !keys.is_empty() {
            self.order.retain(|(other, _)| *other != address);
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    const TASK: TaskMark = (3, 1);
    const OTHER: TaskMark = (3 + 64, 1);

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn key(port: u16) -> ConnectKey {
        ConnectKey { port, ..ConnectKey::zeroed() }
    }

    fn learn(names: &Names, name: &str, to: &str, at: u64, until: u64) -> Vec<ConnectKey> {
        names.learn(TASK, &name.into(), &[address(to)], at, until)
    }

    fn hosts(known: &Known) -> Vec<&str> {
        known.hosts.iter().map(|host| &**host).collect()
    }

    #[test]
    fn an_address_has_the_names_that_this_task_asked_for_while_they_hold() {
        let names = Names::default();
        learn(&names, "a.example", "192.0.2.1", 10, 100);
        learn(&names, "b.example", "192.0.2.1", 20, 50);
        let known = |task, to, at| names.known(task, address(to), at);
        let both = known(TASK, "192.0.2.1", 30);
        assert_eq!((hosts(&both), both.until), (vec!["a.example", "b.example"], 50));
        let later = known(TASK, "192.0.2.1", 51);
        assert_eq!((hosts(&later), later.until), (vec!["a.example"], 100));
        assert_eq!(known(TASK, "192.0.2.1", 101), Known::nothing());
        assert_eq!(known(TASK, "192.0.2.1", 15).hosts.len(), 1, "what was learnt later was not known then");
        for (task, to) in [(OTHER, "192.0.2.1"), ((3, 2), "192.0.2.1"), (TASK, "192.0.2.2")] {
            assert_eq!(known(task, to, 30), Known::nothing());
        }
        assert_eq!(names.remembered(TASK, address("192.0.2.1")).len(), 2);
        names.forget(TASK);
        assert_eq!(known(TASK, "192.0.2.1", 30), Known::nothing());
    }

    #[test]
    fn a_new_name_takes_the_verdicts_along_that_were_given_without_it() {
        let names = Names::default();
        for port in [80, 443] {
            let (known, gone) = names.known_for(TASK, address("192.0.2.1"), key(port), 5);
            assert_eq!((known, gone), (Known::nothing(), None));
        }
        assert_eq!(learn(&names, "a.example", "192.0.2.1", 10, 100), [key(80), key(443)]);
        assert_eq!(learn(&names, "b.example", "192.0.2.1", 10, 100), [], "they are gone already");
        names.known_for(TASK, address("192.0.2.1"), key(80), 20);
        assert_eq!(learn(&names, "a.example", "192.0.2.1", 20, 200), [], "it was known by that name");
        assert_eq!(learn(&names, "a.example", "192.0.2.1", 201, 300), [key(80)], "the name had ended in between");
    }

    #[test]
    fn what_there_is_no_room_for_is_taken_out_of_the_kernel() {
        let names = Names::default();
        let to = |number: usize| IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
        for number in 0..MAX_ASKED {
            assert_eq!(names.known_for(TASK, to(number), ConnectKey { slot: number as u32, ..key(1) }, 0).1, None);
        }
        let gone = names.known_for(TASK, address("192.0.2.1"), key(2), 0).1;
        assert_eq!(gone, Some(ConnectKey { slot: 0, ..key(1) }));
        for number in 0..=MAX_ADDRESSES {
            names.learn(TASK, &"a.example".into(), &[to(number)], 0, 100 + number as u64);
        }
        assert_eq!(names.known(TASK, to(0), 1), Known::nothing(), "the first to end went");
        assert_eq!(names.known(TASK, to(MAX_ADDRESSES), 1).hosts.len(), 1);
    }

    #[test]
    fn learning_waits_for_a_verdict_under_way() {
        let names = Names::default();
        let deciding = names.deciding();
        std::thread::scope(|scope| {
            let learner = scope.spawn(|| learn(&names, "a.example", "192.0.2.1", 10, 100));
            names.known_for(TASK, address("192.0.2.1"), key(443), 5);
            drop(deciding);
            let taken = learner.join().unwrap();
            // Either the verdict saw the name, or it is taken back.
            let known = names.known(TASK, address("192.0.2.1"), 10);
            assert!(taken == [key(443)] && hosts(&known) == ["a.example"], "{taken:?}");
        });
    }
}
