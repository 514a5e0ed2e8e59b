//! Taking over from a daemon that is gone: its tasks, their processes, and what happened meanwhile.
//!
//! The kernel says which tasks there are and where they stand; the files say whose they are. A task of which the kernel knows
//! and no file tells is revoked. What the kernel has decided meanwhile waits in its ring and is recorded with its own time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use agent_common::maps::{CLASS_ABOVE, Mark, SLOT_CANARY, SLOT_DAEMON, TaskState};
use agent_common::{DaemonLoss, Effect, Event as KernelEvent, Mode, Reason, TaskStatus};
use jiff::Timestamp;

use super::keeper::Keeper;
use super::over::Draining;
use super::protect::chain;
use super::snapshot::Snapshot;
use super::state::{Daemon, add_task};
use super::threads::now;
use crate::domain::clock::boot_now_ns;
use crate::domain::{TaskFacts, TaskId};
use crate::kernel::{Maps, Ring};
use crate::process::is_process;
use crate::record::{Cause, DaemonAdopted, Event, TaskOver, TaskRef};
use crate::resource::NO_CLASS;
use crate::task::{Counts, Kept, Registry, Task, TaskTable};

/// Ring items taken at once.
const BATCH: usize = 4096;

const UNKNOWN: &str = "the daemon that opened it left no word of it";
const UNREGISTERED: &str = "its agent is not registered for its intent any more";

/// What the kernel and the files say of the time before.
pub(super) struct Inherited {
    /// Slots that had tasks, and the epoch of the last one.
    pub(super) epochs: Vec<(u32, u32)>,
    /// A number that no verdict of the time before is kept under.
    pub(super) generation: u32,
    /// The last sign of life of the daemon before, boot clock, nanoseconds.
    seen: u64,
    tasks: Vec<Adopted>,
    /// Processes of tasks.
    marks: Vec<(u32, Mark)>,
    /// Files of tasks that are not there any more.
    gone: Vec<Task>,
}

/// A task whose slot is not free.
struct Adopted {
    task: Task,
    /// Why it cannot go on, if it cannot.
    revoke: Option<String>,
    /// When what its sockets hold must have left.
    drains: Option<u64>,
    /// Its end has not been recorded.
    untold: bool,
}

/// Reads what there is. Tasks that nobody knows are revoked at once.
pub(super) fn inherit(maps: &mut Maps, keeper: &Keeper, registry: &Registry) -> Inherited {
    let marks = marks(maps);
    let alive: HashSet<(u32, u32)> = marks.iter().map(|(_, mark)| (mark.slot, mark.epoch)).collect();
    let mut files: HashMap<u32, Kept> = keeper.read().into_iter().map(|kept| (kept.slot, kept)).collect();
    let states: Vec<(u32, TaskState)> = (0..SLOT_CANARY).map(|slot| (slot, maps.tasks.get(slot))).collect();
    let (mut tasks, mut gone) = (Vec::new(), Vec::new());
    for &(slot, state) in &states {
        let file = files.remove(&slot);
        let written = file.is_some();
        let is_its = |kept: &Kept| kept.boot == keeper.boot() && kept.epoch == state.epoch;
        let (known, other) = if file.as_ref().is_some_and(is_its) { (file, None) } else { (None, file) };
        let adopted = adopt(slot, &state, alive.contains(&(slot, state.epoch)), known);
        if written && adopted.as_ref().is_none_or(|adopted| adopted.revoke.is_some()) {
            keeper.forget(slot);
        }
        tasks.extend(adopted.map(|adopted| checked(adopted, registry)));
        gone.extend(other.filter(|kept| kept.ended.is_none()).and_then(|kept| kept.task(TaskStatus::Ended)));
    }
    let generation = states.iter().map(|(_, state)| state.generation).max().unwrap_or(0);
    let mut inherited = Inherited {
        epochs: states.iter().filter(|(_, state)| state.epoch > 0).map(|(slot, state)| (*slot, state.epoch)).collect(),
        generation: generation.max(maps.tasks.get(SLOT_CANARY).generation).saturating_add(1),
        seen: maps.settings.get(0).heartbeat,
        tasks,
        marks,
        gone,
    };
    inherited.settle(maps);
    inherited
}

impl Inherited {
    fn settle(&mut self, maps: &mut Maps) {
        for adopted in &mut self.tasks {
            adopted.task.generation = self.generation;
            if adopted.revoke.is_some() {
                revoke_in_kernel(maps, adopted.task.slot);
            }
        }
    }

    /// Puts the tasks that go on into what the decision threads see. One that today's policies cannot take is revoked.
    pub(super) fn publish(&mut self, maps: &mut Maps, snapshot: &mut Snapshot) {
        let going_on = |adopted: &&mut Adopted| adopted.revoke.is_none() && adopted.task.status == TaskStatus::Active;
        for adopted in self.tasks.iter_mut().filter(going_on) {
            if let Err(error) = add_task(snapshot, &adopted.task) {
                adopted.revoke = Some(error);
                revoke_in_kernel(maps, adopted.task.slot);
            }
        }
    }

    /// Fills the table.
    pub(super) fn fill(&self, table: &mut TaskTable) {
        self.epochs.iter().for_each(|&(slot, epoch)| table.skip_epoch(slot, epoch));
        self.tasks.iter().for_each(|adopted| table.adopt(adopted.task.clone()));
    }
}

/// The highest number of a class that the kernel's catalogue has from the daemon before.
pub(super) fn last_class(maps: &Maps) -> u32 {
    let all = maps.secrets.keys().into_iter().filter_map(|key| maps.secrets.get(key));
    let below = maps.directories.keys().into_iter().filter_map(|key| maps.directories.get(key));
    all.chain(below).filter(|class| *class < CLASS_ABOVE).max().unwrap_or(0)
}

/// What becomes of a slot's task; `None` if the slot is free.
fn adopt(slot: u32, state: &TaskState, alive: bool, kept: Option<Kept>) -> Option<Adopted> {
    let status = TaskStatus::from_code(state.status).unwrap_or(TaskStatus::Ended);
    let goes_on = matches!(status, TaskStatus::Active | TaskStatus::Draining);
    let untold = status != TaskStatus::Active && kept.as_ref().is_some_and(|kept| kept.ended.is_none());
    if status == TaskStatus::Free || !(goes_on || alive || untold) {
        return None;
    }
    let after = if status == TaskStatus::Draining { TaskStatus::Ended } else { status };
    if let Some(mut task) = kept.and_then(|kept| kept.task(after)) {
        let drains = (status == TaskStatus::Draining).then_some(state.deadline);
        if status != TaskStatus::Active {
            task.ended.get_or_insert(now().millis());
        }
        return Some(Adopted { task, revoke: None, drains, untold });
    }
    let task = unknown(slot, state, if goes_on { TaskStatus::Active } else { after });
    Some(Adopted { task, revoke: goes_on.then(|| UNKNOWN.to_owned()), drains: None, untold: false })
}

/// A task of which nothing is known but what the kernel holds: its processes may live on, so its slot is not free.
fn unknown(slot: u32, state: &TaskState, status: TaskStatus) -> Task {
    let at = now();
    let id = TaskId::from_text(&format!("t-unknown-{slot}-{}", state.epoch));
    let facts = TaskFacts::without_grants(id, "unknown", at.millis());
    Task {
        facts: Arc::new(facts),
        argv: Arc::from([]),
        slot,
        epoch: state.epoch,
        generation: state.generation,
        mode: Mode::from_code(state.mode).unwrap_or(Mode::Enforce),
        on_daemon_loss: DaemonLoss::Deny,
        socket_mark: state.socket_mark,
        deadline: state.deadline,
        status,
        started: at.millis(),
        ended: (status != TaskStatus::Active).then(|| at.millis()),
        counts: Counts::default(),
    }
}

/// The registry may have changed meanwhile.
fn checked(mut adopted: Adopted, registry: &Registry) -> Adopted {
    let facts = &adopted.task.facts;
    let registered = registry.agent(&facts.agent.id).is_ok()
        && registry.intent(&facts.intent.id).is_ok()
        && registry.intents_of(&facts.agent.id).is_none_or(|allowed| allowed.contains(&facts.intent.id));
    if adopted.task.status == TaskStatus::Active && adopted.revoke.is_none() && !registered {
        adopted.revoke = Some(UNREGISTERED.to_owned());
    }
    adopted
}

fn revoke_in_kernel(maps: &mut Maps, slot: u32) {
    let revoked = TaskState { status: TaskStatus::Revoked.code(), ..maps.tasks.get(slot) };
    if let Err(error) = maps.tasks.put(slot, revoked) {
        tracing::error!(error = chain(&error), slot, "a task that cannot go on could not be revoked");
    }
}

/// The marked processes of tasks. The kernel takes a mark away when its process goes; one that was left behind, by whatever
/// went wrong, would fall on another process in time.
fn marks(maps: &mut Maps) -> Vec<(u32, Mark)> {
    let mut found = Vec::new();
    for tgid in maps.processes.keys() {
        let Some(mark) = maps.processes.get(tgid) else { continue };
        let own = tgid == std::process::id();
        if own || mark.slot == SLOT_CANARY {
            continue;
        }
        if mark.slot == SLOT_DAEMON || !is_process(tgid, mark.start) {
            tracing::warn!(tgid, "a mark without its process is taken away");
            maps.processes.remove(tgid);
            continue;
        }
        found.push((tgid, mark));
    }
    found
}

impl Daemon {
    /// Goes on where the daemon before was lost.
    pub(super) fn take_over(&mut self, inherited: Inherited, records: &mut Ring) {
        if !self.kernel.taken_over() {
            self.keeper.start_anew();
        }
        self.told = self.keeper.losses();
        let Inherited { generation, seen, tasks, marks, gone, .. } = inherited;
        let away = boot_now_ns().saturating_sub(seen);
        for (tgid, mark) in &marks {
            // One that has gone meanwhile has left word of it in the ring.
            let _ = self.lineage.adopt(*tgid, mark.slot, mark.epoch);
        }
        let revoked: Vec<_> = tasks.iter().filter_map(|adopted| Some((adopted, adopted.revoke.as_ref()?))).collect();
        for (adopted, why) in &revoked {
            self.finish(adopted.task.slot, adopted.task.epoch, TaskStatus::Revoked, why);
        }
        self.draining.extend(tasks.iter().filter_map(|adopted| {
            let Task { slot, epoch, .. } = adopted.task;
            adopted.drains.map(|until| Draining { slot, epoch, until })
        }));
        let decisions = self.catch_up(records, seen);
        for adopted in tasks.iter().filter(|adopted| adopted.untold) {
            self.record_over(&adopted.task, "it ended as the daemon was lost");
            self.keeper.note(&adopted.task);
        }
        gone.iter().for_each(|task| self.record_gone(task));
        // The catalogue may be another than the one by which names were given their classes.
        self.unix_listeners_changed();
        self.renumber(generation);
        self.forget_classes();
        if !self.kernel.taken_over() {
            return;
        }
        let event = DaemonAdopted {
            away_ms: away / 1_000_000,
            tasks: number(tasks.len() - revoked.len()),
            revoked: number(revoked.len()),
            processes: number(marks.len()),
            decisions,
        };
        self.recorder.record(Timestamp::now(), Event::DaemonAdopted(event));
    }

    /// What the catalogue does not speak of any more: the daemon that knew those classes is gone, and so is its hold on the
    /// inodes.
    fn forget_classes(&mut self) {
        let Self { maps, classes, .. } = self;
        let stale = |class: Option<u32>| {
            class.is_some_and(|class| class != NO_CLASS && class < CLASS_ABOVE && classes.labels(class).is_none())
        };
        for key in maps.secrets.keys().into_iter().filter(|key| stale(maps.secrets.get(*key))).collect::<Vec<_>>() {
            maps.secrets.remove(key);
        }
        for key in
            maps.directories.keys().into_iter().filter(|key| stale(maps.directories.get(*key))).collect::<Vec<_>>()
        {
            maps.directories.remove(key);
        }
    }

    /// Records what the kernel did since nobody listened. Returns how often it decided what, and why, after `seen`.
    fn catch_up(&mut self, records: &mut Ring, seen: u64) -> BTreeMap<String, u64> {
        let mut decisions = BTreeMap::new();
        loop {
            let mut events = Vec::new();
            let taken = records.drain(BATCH, |event| events.push(event));
            for event in events {
                match event {
                    Ok(event) => {
                        count(&mut decisions, &event, seen);
                        self.kernel_event(event);
                    }
                    Err(_) => self.lost(Cause::Undecodable, 1),
                }
            }
            self.write_records();
            if taken < BATCH {
                return decisions;
            }
        }
    }

    /// A task of which the kernel knows nothing any more: the host was started anew, or what was pinned was removed.
    fn record_gone(&mut self, task: &Task) {
        let over = TaskOver {
            task: Arc::new(TaskRef::from(&*task.facts)),
            why: "it had ended when the daemon came back".to_owned(),
            allowed: task.counts.allowed,
            denied: task.counts.denied,
            would_denied: task.counts.would_denied,
        };
        self.recorder.record(Timestamp::now(), Event::TaskEnded(Box::new(over)));
    }
}

fn count(decisions: &mut BTreeMap<String, u64>, event: &KernelEvent, seen: u64) {
    let KernelEvent::Decided(decided) = event else { return };
    let what = (Effect::from_code(decided.effect), Reason::from_code(decided.reason));
    if let (Some(effect), Some(reason)) = what
        && decided.time > seen
    {
        *decisions.entry(format!("{} {}", effect.as_str(), reason.as_str())).or_default() += 1;
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn state(status: TaskStatus) -> TaskState {
        TaskState { status: status.code(), epoch: 3, deadline: 9, ..TaskState::zeroed() }
    }

    fn kept(ended: Option<i64>) -> Kept {
        let mut task = unknown(5, &state(TaskStatus::Active), TaskStatus::Active);
        task.ended = ended;
        Kept::new("boot", &task)
    }

    #[test]
    fn a_task_goes_on_where_kernel_and_file_agree() {
        let adopted = adopt(5, &state(TaskStatus::Active), false, Some(kept(None))).unwrap();
        assert_eq!((adopted.task.status, adopted.revoke, adopted.untold), (TaskStatus::Active, None, false));
        let adopted = adopt(5, &state(TaskStatus::Draining), false, Some(kept(Some(1)))).unwrap();
        assert_eq!((adopted.task.status, adopted.drains, adopted.untold), (TaskStatus::Ended, Some(9), false));
    }

    #[test]
    fn a_task_of_which_no_file_tells_is_revoked() {
        for status in [TaskStatus::Active, TaskStatus::Draining] {
            let adopted = adopt(5, &state(status), true, None).unwrap();
            assert_eq!((adopted.task.status, adopted.revoke.as_deref()), (TaskStatus::Active, Some(UNKNOWN)));
            assert_eq!((adopted.task.slot, adopted.task.epoch), (5, 3));
        }
    }

    #[test]
    fn a_slot_is_free_once_no_process_is_left_and_the_end_is_told() {
        for status in [TaskStatus::Revoked, TaskStatus::Ended, TaskStatus::Expired] {
            assert!(adopt(5, &state(status), false, None).is_none());
            assert!(adopt(5, &state(status), false, Some(kept(Some(1)))).is_none());
            assert!(adopt(5, &state(status), true, None).is_some_and(|adopted| adopted.revoke.is_none()));
            assert!(adopt(5, &state(status), false, Some(kept(None))).is_some_and(|adopted| adopted.untold));
        }
        assert!(adopt(5, &state(TaskStatus::Free), false, Some(kept(None))).is_none());
    }

    #[test]
    fn an_agent_that_is_not_registered_any_more_cannot_go_on() {
        let adopted = adopt(5, &state(TaskStatus::Active), true, Some(kept(None))).unwrap();
        let adopted = checked(adopted, &Registry::default());
        assert_eq!(adopted.revoke.as_deref(), Some(UNREGISTERED));
    }
}
