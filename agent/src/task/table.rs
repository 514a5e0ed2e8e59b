//! The tasks there are, each in a slot of the kernel's `TASKS` map.
//!
//! A slot is named by processes' marks and sockets' labels for as long as any of them lives, so it is given to another task
//! only after the daemon has seen the last process go ([`TaskTable::release`]), and then under a new epoch: what still
//! bears the old one is `ended` to the kernel.

use std::collections::VecDeque;
use std::sync::Arc;

use agent_common::maps::{MAX_TASKS, TaskState};
use agent_common::{DaemonLoss, Effect, Mode, TaskStatus};

use super::open::{KnownLabels, Limits, OpenError, Resolved, TaskRequest};
use super::registry::Registry;
use crate::domain::{LabelSet, TaskFacts, TaskId, UnixMillis};

/// How many released tasks are remembered, for records that come late and for people who ask.
const MAX_RECENT: usize = 256;

/// One instant on both clocks that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_BOOTTIME`, nanoseconds: what the kernel compares deadlines with.
    pub boot: u64,
    /// The wall clock: what policies and people see.
    pub wall: UnixMillis,
}

/// Decisions of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Went through.
    pub allowed: u64,
    /// Refused.
    pub denied: u64,
    /// Went through, and would have been refused but for audit mode.
    pub would_denied: u64,
}

/// A task and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// What policy and records see.
    pub facts: Arc<TaskFacts>,
    /// The command it was opened for.
    pub argv: Arc<[String]>,
    /// Index into the kernel's `TASKS`.
    pub slot: u32,
    /// Which of the slot's tasks.
    pub epoch: u32,
    /// Part of every verdict's key.
    pub generation: u32,
    /// Whether denials block.
    pub mode: Mode,
    /// What a first contact gets while the daemon is lost.
    pub on_daemon_loss: DaemonLoss,
    /// What is set of its sockets' SO_MARK; 0 for nothing.
    pub socket_mark: u32,
    /// End of life, `CLOCK_BOOTTIME` nanoseconds.
    pub deadline: u64,
    /// Where it stands; never `Free`.
    pub status: TaskStatus,
    /// When it was opened.
    pub started: UnixMillis,
    /// When it left `Active`.
    pub ended: Option<UnixMillis>,
    /// What was decided for it.
    pub counts: Counts,
}

/// Why no task was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// None has this id.
    #[error("no task `{0}` is known; `writ task list` shows those that are")]
    None(String),
    /// More than one begins like this, or nothing of an id was given.
    #[error("`{text}` is too short to name one task (ids that begin so: {count}); write more of the id")]
    Ambiguous {
        /// What was given.
        text: String,
        /// How many there are.
        count: usize,
    },
}

#[derive(Debug, Default)]
struct Slot {
    /// The last epoch that was given out; 0 if none was.
    epoch: u32,
    task: Option<Task>,
}

/// All tasks.
#[derive(Debug)]
pub struct TaskTable {
    limits: Limits,
    generation: u32,
    opened: u64,
    slots: Vec<Slot>,
    /// Taken from the front, returned to the back: a slot rests as long as it can.
    free: VecDeque<u32>,
    recent: VecDeque<Task>,
}

impl TaskTable {
    /// An empty table, whose tasks get verdicts of `generation`. The last of the kernel's [`MAX_TASKS`] slots is the
    /// daemon's own, for its canary.
    pub fn new(limits: Limits, generation: u32) -> Self {
        Self::with_slots(limits, generation, MAX_TASKS - 1)
    }

    fn with_slots(limits: Limits, generation: u32, count: u32) -> Self {
        let slots = (0..count).map(|_| Slot::default()).collect();
        Self { limits, generation, opened: 0, slots, free: (0..count).collect(), recent: VecDeque::new() }
    }

    /// Notes that the kernel's map already had a task of `epoch` in `slot`, of which processes or sockets may still live:
    /// the slot's next task gets a later epoch. To be called before the first task is opened.
    pub fn skip_epoch(&mut self, slot: u32, epoch: u32) {
        if let Some(slot) = self.slot_mut(slot) {
            slot.epoch = slot.epoch.max(epoch);
        }
    }

    /// Takes in a task that was opened before this table was made; its slot is not free, and its epoch is the slot's last.
    pub fn adopt(&mut self, task: Task) {
        self.free.retain(|slot| *slot != task.slot);
        self.opened += 1;
        if let Some(slot) = self.slot_mut(task.slot) {
            slot.epoch = slot.epoch.max(task.epoch);
            slot.task = Some(task);
        }
    }

    /// Opens a task.
    ///
    /// # Errors
    /// [`OpenError`]; the table is then unchanged.
    pub fn open(
        &mut self,
        request: &TaskRequest,
        registry: &Registry,
        known: KnownLabels<'_>,
        now: Now,
    ) -> Result<&Task, OpenError> {
        let resolved = Resolved::new(request, registry, known, self.limits)?;
        let socket_mark = self.socket_mark(registry, &request.agent)?;
        let id = self.fresh_id();
        let (slot, epoch) = self.take_slot()?;
        let task = Task {
            deadline: now.boot.saturating_add(u64::try_from(resolved.ttl.as_nanos()).unwrap_or(u64::MAX)),
            facts: Arc::new(facts(id, resolved, request.assurance, now)),
            argv: request.argv.clone().into(),
            slot,
            epoch,
            generation: self.generation,
            mode: request.mode,
            on_daemon_loss: request.on_daemon_loss,
            socket_mark,
            status: TaskStatus::Active,
            started: now.wall,
            ended: None,
            counts: Counts::default(),
        };
        self.opened += 1;
        let full = OpenError::Full(self.slots.len());
        Ok(self.slot_mut(slot).ok_or(full)?.task.insert(task))
    }

    /// Of a registered agent; 0 where nothing is configured.
    fn socket_mark(&self, registry: &Registry, agent: &str) -> Result<u32, OpenError> {
        let mask = self.limits.socket_mark_mask;
        let Some(number) = registry.socket_mark(agent).filter(|_| mask != 0) else { return Ok(0) };
        let mark = self.limits.socket_mark(number);
        mark.ok_or_else(|| OpenError::SocketMark { agent: agent.to_owned(), number, mask })
    }

    /// Moves an active task to `status`; the first cause stays. `None` if there is no such active task.
    pub fn finish(&mut self, slot: u32, epoch: u32, status: TaskStatus, now: Now) -> Option<&Task> {
        let task = self.held_mut(slot, epoch).filter(|task| task.status == TaskStatus::Active)?;
        task.status = status;
        task.ended = Some(now.wall);
        Some(task)
    }

    /// Moves every active task whose deadline has passed to `Expired` and returns them.
    pub fn expire(&mut self, now: Now) -> Vec<Task> {
        let due = self.active().filter(|task| task.deadline <= now.boot).map(|task| (task.slot, task.epoch));
        let due: Vec<(u32, u32)> = due.collect();
        due.into_iter()
            .filter_map(|(slot, epoch)| self.finish(slot, epoch, TaskStatus::Expired, now).cloned())
            .collect()
    }

    /// The first deadline of an active task, `CLOCK_BOOTTIME` nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.active().map(|task| task.deadline).min()
    }

    /// Frees the slot of a task that is over and of which no process is left. `None`, and nothing done, if it is still active
    /// or not there.
    pub fn release(&mut self, slot: u32, epoch: u32) -> Option<Task> {
        let held = self.slot_mut(slot)?;
        let task = held.task.take_if(|task| task.epoch == epoch && task.status != TaskStatus::Active)?;
        // An epoch that has run out would be given twice: such a slot stays empty.
        if task.epoch < u32::MAX {
            self.free.push_back(slot);
        }
        self.recent.push_front(task.clone());
        self.recent.truncate(MAX_RECENT);
        Some(task)
    }

    /// Makes all tasks' verdicts, of now and later, belong to `generation`.
    pub fn set_generation(&mut self, generation: u32) {
        self.generation = generation;
        for task in self.slots.iter_mut().filter_map(|slot| slot.task.as_mut()) {
            task.generation = generation;
        }
    }

    /// Adds `times` decisions of this effect to the task, also if it was released a moment ago.
    pub fn count(&mut self, slot: u32, epoch: u32, effect: Effect, times: u64) {
        let Some(task) = self.any_mut(slot, epoch) else { return };
        let count = match effect {
            Effect::Allow => &mut task.counts.allowed,
            Effect::Deny => &mut task.counts.denied,
            Effect::WouldDeny => &mut task.counts.would_denied,
        };
        *count = count.saturating_add(times);
    }

    /// The task that a mark names, also if it was released a moment ago.
    pub fn by_mark(&self, slot: u32, epoch: u32) -> Option<&Task> {
        let held = self.slots.get(usize::try_from(slot).ok()?)?.task.as_ref().filter(|task| task.epoch == epoch);
        held.or_else(|| self.recent.iter().find(|task| task.slot == slot && task.epoch == epoch))
    }

    /// The task with this id, or the only one whose id begins so; the leading `t-` may be left out.
    ///
    /// # Errors
    /// [`FindError`].
    pub fn find(&self, text: &str) -> Result<&Task, FindError> {
        let begin = text.strip_prefix("t-").unwrap_or(text);
        let begins = |task: &&Task| task.facts.id.as_str().strip_prefix("t-").is_some_and(|id| id.starts_with(begin));
        let found: Vec<&Task> = self.all().filter(begins).collect();
        match found.as_slice() {
            [] => Err(FindError::None(text.to_owned())),
            // Where a script's variable was empty, it names no task, even if there is only one.
            [task] if !begin.is_empty() => Ok(task),
            several => Err(FindError::Ambiguous { text: text.to_owned(), count: several.len() }),
        }
    }

    /// Tasks in a slot, by slot; then those released lately, latest first.
    pub fn all(&self) -> impl Iterator<Item = &Task> {
        self.held().chain(&self.recent)
    }

    /// Tasks in a slot: active ones, and ended ones of which a process is left.
    pub fn held(&self) -> impl Iterator<Item = &Task> {
        self.slots.iter().filter_map(|slot| slot.task.as_ref())
    }

    /// Active tasks.
    pub fn active(&self) -> impl Iterator<Item = &Task> {
        self.held().filter(|task| task.status == TaskStatus::Active)
    }

    /// How many tasks were opened.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(slot).ok()?)
    }

    fn held_mut(&mut self, slot: u32, epoch: u32) -> Option<&mut Task> {
        self.slot_mut(slot)?.task.as_mut().filter(|task| task.epoch == epoch)
    }

    fn any_mut(&mut self, slot: u32, epoch: u32) -> Option<&mut Task> {
        let held = self.slots.get_mut(usize::try_from(slot).ok()?)?.task.as_mut().filter(|task| task.epoch == epoch);
        held.or_else(|| self.recent.iter_mut().find(|task| task.slot == slot && task.epoch == epoch))
    }

    fn take_slot(&mut self) -> Result<(u32, u32), OpenError> {
        let full = OpenError::Full(self.slots.len());
        while let Some(index) = self.free.pop_front() {
            let Some(slot) = self.slot_mut(index) else { continue };
            if let Some(epoch) = slot.epoch.checked_add(1) {
                slot.epoch = epoch;
                return Ok((index, epoch));
            }
        }
        Err(full)
    }

    fn fresh_id(&self) -> TaskId {
        loop {
            let id = TaskId::from_number(rand::random());
            if self.all().all(|task| task.facts.id != id) {
                return id;
            }
        }
    }
}

/// What the kernel must know of a task: the value of its slot in `TASKS`.
pub fn state(task: &Task) -> TaskState {
    TaskState {
        deadline: task.deadline,
        status: task.status.code(),
        mode: task.mode.code(),
        epoch: task.epoch,
        generation: task.generation,
        on_daemon_loss: task.on_daemon_loss.code(),
        socket_mark: task.socket_mark,
    }
}

fn facts(id: TaskId, resolved: Resolved, assurance: u8, now: Now) -> TaskFacts {
    let ttl = i64::try_from(resolved.ttl.as_millis()).unwrap_or(i64::MAX);
    TaskFacts {
        id,
        agent: resolved.agent,
        intent: resolved.intent,
        goal: resolved.goal,
        on_behalf_of: resolved.on_behalf_of,
        parent: None,
        assurance,
        may_read: resolved.may_read,
        may_connect: resolved.may_connect,
        touched: LabelSet::new(),
        expires_at: now.wall.saturating_add(ttl),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const NOW: Now = Now { boot: 1_000_000_000, wall: 1_700_000_000_000 };

    fn registry() -> Registry {
        let text = "[[intent]]\nid='fix-bug'\n[[intent]]\nid='deploy'\n[[user]]\nid='alice'\n\
                    [[agent]]\nid='coder'\nintents=['fix-bug']\n";
        Registry::load(Path::new("/etc/writ/agents.toml"), text).unwrap()
    }

    fn request() -> TaskRequest {
        TaskRequest {
            agent: "coder".into(),
            intent: "fix-bug".into(),
            goal: None,
            on_behalf_of: Some("alice".into()),
            assurance: 1,
            grant_read: vec!["secret/ssh".into()],
            grant_connect: vec!["net/loopback".into()],
            ttl: Some("30m".into()),
            mode: Mode::Audit,
            on_daemon_loss: DaemonLoss::Deny,
            argv: vec!["sh".into()],
        }
    }

    fn open_at(table: &mut TaskTable, request: &TaskRequest, now: Now) -> Result<Task, OpenError> {
        let read = ["secret/ssh/key".parse().unwrap()].into();
        let connect = ["net/loopback".parse().unwrap()].into();
        let known = KnownLabels { read: &read, connect: &connect };
        table.open(request, &registry(), known, now).cloned()
    }

    fn open(table: &mut TaskTable, request: &TaskRequest) -> Result<Task, OpenError> {
        open_at(table, request, NOW)
    }

    fn refusal(change: impl FnOnce(&mut TaskRequest)) -> String {
        let mut request = request();
        change(&mut request);
        let mut table = TaskTable::with_slots(Limits::default(), 1, 1);
        let error = open(&mut table, &request).unwrap_err();
        assert_eq!(table.all().count(), 0);
        error.to_string()
    }

    #[test]
    fn an_open_task_has_its_facts_and_its_kernel_state() {
        let mut table = TaskTable::with_slots(Limits::default(), 7, 2);
        let task = open(&mut table, &request()).unwrap();
        assert_eq!(task.facts.expires_at, NOW.wall + 1_800_000);
        assert_eq!(task.facts.on_behalf_of.as_ref().unwrap().id.as_ref(), "alice");
        let state = state(&task);
        assert_eq!((state.status, state.mode, state.epoch, state.generation), (1, 1, 1, 7));
        assert_eq!(state.deadline, NOW.boot + 1_800_000_000_000);
        assert_eq!(table.by_mark(task.slot, task.epoch), Some(&task));
        assert_eq!(table.by_mark(task.slot, task.epoch + 1), None);
    }

    #[test]
    fn an_adopted_task_keeps_its_slot_and_its_slot_goes_on_counting() {
        let mut first = TaskTable::with_slots(Limits::default(), 7, 2);
        first.skip_epoch(0, 4);
        let task = open(&mut first, &request()).unwrap();
        let mut table = TaskTable::with_slots(Limits::default(), 8, 2);
        table.adopt(task.clone());
        let other = open(&mut table, &request()).unwrap();
        assert_eq!((task.slot, task.epoch, other.slot), (0, 5, 1));
        assert_eq!(open(&mut table, &request()), Err(OpenError::Full(2)));
        table.finish(0, 5, TaskStatus::Ended, NOW);
        table.release(0, 5);
        let next = open(&mut table, &request()).unwrap();
        assert_eq!((next.slot, next.epoch, table.opened()), (0, 6, 3));
    }

    #[test]
    fn without_a_ttl_the_default_holds() {
        let mut table = TaskTable::with_slots(Limits::default(), 1, 1);
        let task = open(&mut table, &TaskRequest { ttl: None, ..request() }).unwrap();
        assert_eq!(task.deadline, NOW.boot + 3_600_000_000_000);
    }

    #[test]
    fn refusals_name_what_and_the_next_step() {
        let cases: Vec<(String, &str)> = vec![
            (refusal(|r| r.agent = "codr".into()), "unknown agent `codr`; did you mean `coder`?"),
            (refusal(|r| r.intent = "fix".into()), "unknown intent `fix`; did you mean `fix-bug`?"),
            (refusal(|r| r.intent = "deploy".into()), "may not run for intent `deploy`; use one of `fix-bug`"),
            (refusal(|r| r.on_behalf_of = Some("bob".into())), "unknown user `bob`; add it to /etc/writ/agents.toml"),
            (refusal(|r| r.ttl = Some("-5m".into())), "the ttl `-5m` is negative"),
            (refusal(|r| r.ttl = Some("0s".into())), "the ttl `0s` is no time at all"),
            (refusal(|r| r.ttl = Some("9999h".into())), "the ttl `9999h` is longer than `168h`"),
            (refusal(|r| r.ttl = Some("soon".into())), "the ttl `soon` is not a length of time"),
            (refusal(|r| r.goal = Some("x".repeat(1025))), "a goal of 1025 bytes"),
            (refusal(|r| r.grant_read = vec!["Secret".into()]), "`Secret` is not a label"),
            (refusal(|r| r.grant_read = vec!["secret/shs".into()]), "did you mean `secret/ssh`? `writ labels`"),
            (refusal(|r| r.grant_read = vec!["net/loopback".into()]), "no secret has the label `net/loopback`"),
            (refusal(|r| r.grant_connect = vec!["secret/ssh".into()]), "no endpoint has the label `secret/ssh`"),
            (refusal(|r| r.grant_read = vec!["secret/ssh/key/x".into()]), "no secret has the label"),
            (refusal(|r| r.grant_read = vec!["secret".into(); 257]), "a grant of 257 labels"),
        ];
        for (error, expected) in cases {
            assert!(error.contains(expected), "{error}\nlacks {expected}");
        }
    }

    #[test]
    fn the_first_end_stays_and_only_a_finished_task_is_released() {
        let mut table = TaskTable::with_slots(Limits::default(), 1, 1);
        let task = open(&mut table, &request()).unwrap();
        assert_eq!(open(&mut table, &request()), Err(OpenError::Full(1)));
        assert_eq!(table.release(task.slot, task.epoch), None);
        assert!(table.finish(task.slot, task.epoch, TaskStatus::Revoked, NOW).is_some());
        assert!(table.finish(task.slot, task.epoch, TaskStatus::Ended, NOW).is_none());
        assert_eq!(open(&mut table, &request()), Err(OpenError::Full(1)), "a process may be left");
        assert_eq!(table.release(task.slot, task.epoch + 1), None);
        assert_eq!(table.release(task.slot, task.epoch).unwrap().status, TaskStatus::Revoked);
        let next = open(&mut table, &request()).unwrap();
        assert_eq!((next.slot, next.epoch), (task.slot, task.epoch + 1));
        table.count(task.slot, task.epoch, Effect::Deny, 3);
        assert_eq!(table.by_mark(task.slot, task.epoch).unwrap().counts.denied, 3, "late records find it");
        assert_eq!(table.by_mark(next.slot, next.epoch).unwrap().counts, Counts::default());
    }

    #[test]
    fn deadlines_expire_tasks_in_their_order() {
        let mut table = TaskTable::with_slots(Limits::default(), 1, 2);
        let short = open(&mut table, &TaskRequest { ttl: Some("1s".into()), ..request() }).unwrap();
        open(&mut table, &request()).unwrap();
        assert_eq!(table.next_deadline(), Some(short.deadline));
        assert_eq!(table.expire(Now { boot: short.deadline - 1, ..NOW }), []);
        let expired = table.expire(Now { boot: short.deadline, wall: NOW.wall + 1000 });
        assert_eq!(expired.len(), 1);
        assert_eq!((expired[0].status, expired[0].ended), (TaskStatus::Expired, Some(NOW.wall + 1000)));
        assert_eq!(table.active().count(), 1);
    }

    #[test]
    fn an_id_is_found_by_its_beginning() {
        let mut table = TaskTable::with_slots(Limits::default(), 1, 40);
        let tasks: Vec<Task> = (0..40).map(|_| open(&mut table, &request()).unwrap()).collect();
        let id = tasks[0].facts.id.as_str();
        assert_eq!(table.find(id).unwrap().slot, tasks[0].slot);
        assert_eq!(table.find(&id[2..]).unwrap().slot, tasks[0].slot);
        assert!(matches!(table.find("t-u"), Err(FindError::None(_))));
        // Forty ids share sixteen first characters: 64 bits leave the first of 13 digits four.
        let shared = tasks
            .iter()
            .find(|task| tasks.iter().filter(|o| o.facts.id.as_str()[..3] == task.facts.id.as_str()[..3]).count() > 1);
        let begin = &shared.unwrap().facts.id.as_str()[..3];
        assert!(matches!(table.find(begin), Err(FindError::Ambiguous { .. })), "{begin}");
    }

    #[test]
    fn nothing_of_an_id_is_too_short_for_any_task() {
        let mut table = TaskTable::with_slots(Limits::default(), 1, 2);
        for text in ["", "t-"] {
            assert_eq!(table.find(text), Err(FindError::None(text.to_owned())));
        }
        for count in [1, 2] {
            open(&mut table, &request()).unwrap();
            for text in ["", "t-"] {
                assert_eq!(table.find(text), Err(FindError::Ambiguous { text: text.to_owned(), count }));
            }
        }
        let said = table.find("t-").unwrap_err().to_string();
        assert_eq!(said, "`t-` is too short to name one task (ids that begin so: 2); write more of the id");
    }

    #[test]
    fn an_adopted_epoch_is_not_given_again_and_the_last_one_retires_its_slot() {
        let mut table = TaskTable::with_slots(Limits::default(), 1, 2);
        table.skip_epoch(0, 41);
        table.skip_epoch(1, u32::MAX);
        table.skip_epoch(9, 1);
        let task = open(&mut table, &request()).unwrap();
        assert_eq!((task.slot, task.epoch), (0, 42));
        assert_eq!(open(&mut table, &request()), Err(OpenError::Full(2)));
    }

    #[test]
    fn a_new_generation_reaches_every_task() {
        let mut table = TaskTable::with_slots(Limits::default(), 1, 2);
        open(&mut table, &request()).unwrap();
        table.set_generation(9);
        open(&mut table, &request()).unwrap();
        assert!(table.held().all(|task| task.generation == 9));
    }

    proptest! {
        #[test]
        fn no_two_tasks_ever_share_a_mark_or_an_id(steps in prop::collection::vec((0_u8..4, 0_usize..8), 1..200)) {
            let mut table = TaskTable::with_slots(Limits::default(), 1, 4);
            let (mut marks, mut ids) = (HashSet::new(), HashSet::new());
            for (step, pick) in steps {
                let picked = table.held().nth(pick).map(|task| (task.slot, task.epoch));
                match (step, picked) {
                    (0 | 1, _) => {
                        let held = table.held().count();
                        match open(&mut table, &request()) {
                            Ok(task) => {
                                prop_assert!(held < 4);
                                prop_assert!(task.epoch > 0 && marks.insert((task.slot, task.epoch)));
                                prop_assert!(ids.insert(task.facts.id.clone()));
                            }
                            Err(error) => prop_assert_eq!((held, error), (4, OpenError::Full(4))),
                        }
                    }
                    (2, Some((slot, epoch))) => drop(table.finish(slot, epoch, TaskStatus::Ended, NOW)),
                    (_, Some((slot, epoch))) => drop(table.release(slot, epoch)),
                    (_, None) => {}
                }
                let held: HashSet<u32> = table.held().map(|task| task.slot).collect();
                prop_assert_eq!(held.len(), table.held().count());
                prop_assert_eq!(held.len() + table.free.len(), 4);
            }
            prop_assert_eq!(table.opened(), marks.len() as u64);
        }
    }
}
