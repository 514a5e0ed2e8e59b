//! The daemon's state and what changes it: tasks opened, revoked, expired and ended, policies exchanged.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use agent_common::maps::{Mark, RowKey, TaskState, Usage};
use agent_common::{Counter, TaskStatus};
use bytemuck::Zeroable;
use jiff::Timestamp;

use super::coverage::Coverage;
use super::enclosure::Enclosure;
use super::flows::Flows;
use super::keeper::Keeper;
use super::over::Draining;
use super::protect::{Guarding, Protection, chain};
use super::snapshot::{Known, Snapshot};
use super::sources::Sources;
use super::threads::{Shared, now};
use super::unix::UnixNames;
use super::watch::Watch;
use crate::api::types::{MarkTarget, OpenTask};
use crate::api::{ErrorBody, ErrorCode, Peer};
use crate::config::{Config, Flags};
use crate::decision::Rows;
use crate::domain::clock::BootClock;
use crate::domain::{Effect, UnixMillis};
use crate::kernel::{Kernel, Maps};
use crate::process::{CgroupPaths, Lineage, snapshot};
use crate::record::{Event, PolicyLoaded, Recorder, TaskRef, TaskStarted};
use crate::resource::{ClassTable, Secrets};
use crate::task::open::OpenError;
use crate::task::table::state;
use crate::task::{FindError, KnownLabels, Now, Registry, Task, TaskRequest, TaskTable};

/// All state. Owned by the one loop.
pub(super) struct Daemon {
    pub(super) config: Config,
    /// For reading the configuration again.
    pub(super) flags: Flags,
    /// Held for its attached programs: dropping it detaches them.
    pub(super) kernel: Kernel,
    pub(super) maps: Maps,
    pub(super) shared: Shared,
    pub(super) flows: Flows,
    pub(super) keeper: Keeper,
    pub(super) table: TaskTable,
    pub(super) registry: Registry,
    pub(super) secrets: Arc<Secrets>,
    pub(super) classes: ClassTable,
    pub(super) protection: Protection,
    pub(super) guarding: Guarding,
    pub(super) coverage: Coverage,
    pub(super) watch: Watch,
    pub(super) recorder: Recorder,
    pub(super) lineage: Lineage,
    pub(super) cgroups: CgroupPaths,
    pub(super) clock: BootClock,
    pub(super) refs: HashMap<(u32, u32), Arc<TaskRef>>,
    pub(super) generation: u32,
    pub(super) policies_loaded: UnixMillis,
    pub(super) policies_error: Option<String>,
    pub(super) started: Instant,
    /// Losses that were recorded already, by kernel counter.
    pub(super) told: HashMap<Counter, u64>,
    /// Losses by cause since the start.
    pub(super) losses: std::collections::BTreeMap<String, u64>,
    pub(super) rates: super::status::Rates,
    /// What the kernel had counted for the canary, when it was done.
    pub(super) baseline: HashMap<Counter, u64>,
    /// Decisions that the kernel's counters do not know of: fanotify's, and those of audit mode.
    pub(super) noted: HashMap<Effect, u64>,
    /// Tasks whose counts are newer than what is written down of them.
    pub(super) unwritten: HashSet<(u32, u32)>,
    pub(super) draining: Vec<Draining>,
    pub(super) unix_names: UnixNames,
    pub(super) enclosure: Enclosure,
    /// Tasks without a process, and since when: boot clock, nanoseconds.
    pub(super) empty: HashMap<(u32, u32), u64>,
}

/// What [`Daemon::new`] takes beside the sources.
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) flags: Flags,
    pub(super) kernel: Kernel,
    pub(super) maps: Maps,
    pub(super) shared: Shared,
    pub(super) flows: Flows,
    pub(super) keeper: Keeper,
    pub(super) classes: ClassTable,
    pub(super) protection: Protection,
    pub(super) guarding: Guarding,
    pub(super) enclosure: Enclosure,
    pub(super) coverage: Coverage,
    pub(super) watch: Watch,
    pub(super) recorder: Recorder,
    pub(super) table: TaskTable,
    pub(super) generation: u32,
}

impl Daemon {
    pub(super) fn new(parts: Parts, registry: Registry, secrets: Arc<Secrets>) -> Self {
        Self {
            config: parts.config,
            flags: parts.flags,
            kernel: parts.kernel,
            maps: parts.maps,
            shared: parts.shared,
            flows: parts.flows,
            keeper: parts.keeper,
            table: parts.table,
            registry,
            secrets,
            classes: parts.classes,
            protection: parts.protection,
            guarding: parts.guarding,
            coverage: parts.coverage,
            watch: parts.watch,
            recorder: parts.recorder,
            lineage: Lineage::new(1 << 16, 4096),
            cgroups: CgroupPaths::find(),
            clock: BootClock::now(),
            refs: HashMap::new(),
            generation: parts.generation,
            policies_loaded: now().millis(),
            policies_error: None,
            started: Instant::now(),
            told: HashMap::new(),
            losses: std::collections::BTreeMap::new(),
            rates: super::status::Rates::default(),
            baseline: HashMap::new(),
            noted: HashMap::new(),
            unwritten: HashSet::new(),
            draining: Vec::new(),
            unix_names: UnixNames::default(),
            enclosure: parts.enclosure,
            empty: HashMap::new(),
        }
    }

    /// Opens a task and marks the peer; the task is undone if the mark does not hold.
    pub(super) fn open_task(&mut self, request: OpenTask, peer: Peer) -> Result<Task, ErrorBody> {
        self.may_open(peer)?;
        let MarkTarget::Caller = request.mark;
        let request = self.task_request(request);
        let secrets = self.secrets.labels();
        let snapshot = self.shared.snapshot.load_full();
        let connect = snapshot.connect_labels();
        let known = KnownLabels { read: &secrets, connect: &connect };
        let task =
            self.table.open(&request, &self.registry, known, instant()).map_err(|error| refusal(&error))?.clone();
        match self.set_up(&task).and_then(|()| self.mark(&task, peer)) {
            Ok(()) => {
                self.record_started(&task, peer);
                Ok(task)
            }
            Err(message) => {
                self.take_down(&task, TaskStatus::Ended);
                self.uncount(&task);
                self.release(task.slot, task.epoch);
                Err(ErrorBody::new(ErrorCode::MarkFailed, message, "run `writ status` and see the daemon's log"))
            }
        }
    }

    /// A process of a task gets no second one: it could ask for more than it was given.
    fn may_open(&self, peer: Peer) -> Result<(), ErrorBody> {
        if peer.pid == 0 {
            let message = "the caller lives in a pid namespace that the daemon does not see";
            return Err(ErrorBody::new(ErrorCode::MarkFailed, message, "start the task from the host"));
        }
        if self.maps.processes.get(peer.pid).is_some() {
            let message = format!("process {} works for a task already", peer.pid);
            return Err(ErrorBody::new(ErrorCode::MarkFailed, message, "open tasks from outside of tasks"));
        }
        Ok(())
    }

    fn task_request(&self, request: OpenTask) -> TaskRequest {
        TaskRequest {
            agent: request.agent,
            intent: request.intent,
            goal: request.goal,
            on_behalf_of: request.on_behalf_of,
            // Root said so: a uid match.
            assurance: 1,
            grant_read: request.grant_read,
            grant_connect: request.grant_connect,
            ttl: request.ttl,
            mode: request.mode.unwrap_or(self.config.mode),
            on_daemon_loss: request.on_daemon_loss.unwrap_or(agent_common::DaemonLoss::Deny),
            argv: request.argv,
        }
    }

    /// The decision threads first, then the kernel: nothing may be asked that cannot be answered.
    fn set_up(&mut self, task: &Task) -> Result<(), String> {
        self.keeper.write(task).map_err(|error| format!("the task cannot be written down: {error}"))?;
        self.publish(|snapshot| add_task(snapshot, task))?;
        self.fill_rows(task).map_err(|error| chain(&error))?;
        // One process: the one that is about to be marked. No other has this slot's mark.
        let usage = Usage { processes: 1, ..Usage::zeroed() };
        self.maps.usage.put(task.slot, usage).map_err(|error| chain(&error))?;
        // In two steps, since the kernel may read in between: the epoch first, so that what bears the old one is ended.
        let free = TaskState { epoch: task.epoch, ..TaskState::zeroed() };
        self.maps.tasks.put(task.slot, free).map_err(|error| chain(&error))?;
        self.maps.tasks.put(task.slot, state(task)).map_err(|error| chain(&error))
    }

    fn mark(&mut self, task: &Task, peer: Peer) -> Result<(), String> {
        let before = snapshot(peer.pid).map_err(|error| chain(&error))?;
        let mark = Mark { slot: task.slot, epoch: task.epoch, start: 0 };
        self.maps.processes.put_new(peer.pid, mark).map_err(|error| chain(&error))?;
        let holds = self.maps.processes.get(peer.pid) == Some(mark);
        let same = snapshot(peer.pid).is_ok_and(|after| after.start == before.start);
        if !(holds && same) {
            self.maps.processes.remove(peer.pid);
            return Err(format!("process {} went away before it was marked", peer.pid));
        }
        self.lineage.adopt(peer.pid, task.slot, task.epoch).map_err(|error| chain(&error))
    }

    /// Undoes what was opened for a caller who did not wait for the answer.
    pub(super) fn abandon(&mut self, task: &Task, peer: Peer) {
        if self.maps.processes.get(peer.pid).is_some_and(|mark| (mark.slot, mark.epoch) == (task.slot, task.epoch)) {
            self.maps.processes.remove(peer.pid);
            self.uncount(task);
        }
        self.finish(task.slot, task.epoch, TaskStatus::Ended, "the caller went away before it started");
    }

    /// The process that was counted in is not one of the task's.
    fn uncount(&mut self, task: &Task) {
        if let Err(error) = self.maps.usage.put(task.slot, Usage::zeroed()) {
            tracing::error!(error = chain(&error), "a task's processes could not be counted");
        }
    }

    /// Revokes the task that `id` names.
    pub(super) fn revoke(&mut self, id: &str) -> Result<Task, ErrorBody> {
        let task = self.table.find(id).map_err(|error| not_found(&error))?.clone();
        if task.status != TaskStatus::Active {
            let message = format!("task `{}` is over already ({})", task.facts.id, task.status.as_str());
            return Err(ErrorBody::new(ErrorCode::TaskOver, message, "nothing is left to revoke"));
        }
        self.finish(task.slot, task.epoch, TaskStatus::Revoked, "revoked by an operator");
        Ok(self.table.by_mark(task.slot, task.epoch).unwrap_or(&task).clone())
    }

    pub(super) fn publish(&self, change: impl FnOnce(&mut Snapshot) -> Result<(), String>) -> Result<(), String> {
        let mut snapshot = Snapshot::clone(&self.shared.snapshot.load());
        change(&mut snapshot)?;
        self.shared.snapshot.store(Arc::new(snapshot));
        Ok(())
    }

    /// The rows of one task for every class of secrets, so that reads need no question, for those of unix listeners that callers
    /// do not name, and for every facility, of which the kernel asks where nobody may wait.
    fn fill_rows(&mut self, task: &Task) -> Result<(), crate::kernel::MapError> {
        let snapshot = self.shared.snapshot.load_full();
        let mut rows = Rows::new(Arc::clone(&self.shared.details), self.shared.patience);
        let at = now();
        let (slot, epoch, generation) = (task.slot, task.epoch, task.generation);
        let lsm = matches!(self.guarding, Guarding::Kernel);
        let unix = self.unix_names.classes().into_iter().filter(|_| lsm);
        let unix = unix.map(|number| (number, snapshot.unix.of_class(number)));
        let unix = unix.map(|(number, labels)| (number, snapshot.policies.unix_class(&labels)));
        for (number, class) in snapshot.rows(lsm).chain(unix) {
            let answer = rows.answer(&*snapshot, crate::decision::TaskKey { slot, epoch, generation }, class, at);
            if answer.verdict.once == 0 {
                self.maps.rows.put(RowKey { slot, epoch, generation, class: number }, answer.verdict)?;
            }
        }
        Ok(())
    }

    /// Brings new sources into force for every task: prepared, published, rows filled, and only then named to the kernel.
    pub(super) fn adopt(&mut self, sources: Sources) -> Result<(), String> {
        sources.warn();
        let generation = self.generation.wrapping_add(1).max(1);
        let snapshot = self.shared.snapshot.load_full();
        let mut next = Snapshot {
            policies: sources.policies,
            endpoints: sources.endpoints,
            unix: sources.unix,
            classes: Arc::clone(&snapshot.classes),
            places: Arc::clone(&snapshot.places),
            tasks: HashMap::new(),
            names: Arc::clone(&snapshot.names),
        };
        let mut tasks: Vec<Task> = self.table.held().cloned().collect();
        for task in &mut tasks {
            task.generation = generation;
            add_task(&mut next, task)?;
        }
        self.registry = sources.registry;
        self.secrets = sources.secrets;
        self.policies_loaded = now().millis();
        self.policies_error = None;
        self.shared.snapshot.store(Arc::new(next));
        self.unix_listeners_changed();
        self.renumber(generation);
        let policies = u64::try_from(self.shared.snapshot.load().policies.number_of_policies()).unwrap_or(u64::MAX);
        let audited = u64::try_from(self.shared.snapshot.load().policies.number_of_audited()).unwrap_or(u64::MAX);
        self.recorder.record(Timestamp::now(), Event::PolicyLoaded(PolicyLoaded { generation, policies, audited }));
        Ok(())
    }

    /// Makes every verdict that was given so far unreachable: the tasks' generation is part of their key.
    pub(super) fn renumber(&mut self, generation: u32) {
        self.carry_over(self.generation, generation);
        self.generation = generation;
        self.table.set_generation(generation);
        let tasks: Vec<Task> = self.table.active().cloned().collect();
        for task in &tasks {
            if let Err(error) = self.fill_rows(task) {
                tracing::warn!(error = chain(&error), "rows could not be filled; reads will ask");
            }
            self.put_state(task.slot, state(task));
        }
        self.flows.verdicts_changed();
    }

    /// The wall clock was set: what was computed from it no longer holds.
    pub(super) fn clock_was_set(&mut self) {
        let generation = self.generation.wrapping_add(1).max(1);
        let published = self.publish(|snapshot| {
            for known in snapshot.tasks.values_mut() {
                let prepared = snapshot.policies.prepare(&known.facts).map_err(|error| chain(&error))?;
                let (facts, mode) = (Arc::clone(&known.facts), known.mode);
                *known = Arc::new(Known { prepared, facts, generation, mode });
            }
            Ok(())
        });
        match published {
            Ok(()) => self.renumber(generation),
            Err(error) => tracing::error!(error, "the tasks could not be prepared anew"),
        }
    }

    /// New classes, places and rows after the guards were brought up to date.
    pub(super) fn secrets_changed(&mut self) {
        let (classes, places) = (Arc::new(self.classes.clone()), Arc::new(self.protection.places()));
        let _ = self.publish(|snapshot| {
            (snapshot.classes, snapshot.places) = (classes, places);
            Ok(())
        });
        let tasks: Vec<Task> = self.table.active().cloned().collect();
        for task in &tasks {
            if let Err(error) = self.fill_rows(task) {
                tracing::warn!(error = chain(&error), "rows could not be filled; reads will ask");
            }
        }
    }

    fn record_started(&mut self, task: &Task, peer: Peer) {
        let reference = Arc::new(TaskRef::from(&*task.facts));
        self.refs.insert((task.slot, task.epoch), Arc::clone(&reference));
        let process = self.process_of(peer.pid, peer.uid);
        let event = TaskStarted {
            task: reference,
            mode: task.mode,
            grant_read: task.facts.may_read.clone(),
            grant_connect: task.facts.may_connect.clone(),
            expires_at: Timestamp::from_millisecond(task.facts.expires_at).unwrap_or(Timestamp::MAX),
            socket_mark: (task.socket_mark != 0).then_some(task.socket_mark),
            process: Some(process),
            argv: Some(task.argv.to_vec()),
        };
        self.recorder.record(Timestamp::now(), Event::TaskStarted(Box::new(event)));
    }

    /// What records say of a task, made once.
    pub(super) fn reference(&mut self, slot: u32, epoch: u32) -> Option<Arc<TaskRef>> {
        if self.refs.len() > 2 * usize::try_from(agent_common::maps::MAX_TASKS).unwrap_or(usize::MAX) {
            let table = &self.table;
            self.refs.retain(|(slot, epoch), _| table.by_mark(*slot, *epoch).is_some());
        }
        if let Some(reference) = self.refs.get(&(slot, epoch)) {
            return Some(Arc::clone(reference));
        }
        let reference = Arc::new(TaskRef::from(&*self.table.by_mark(slot, epoch)?.facts));
        self.refs.insert((slot, epoch), Arc::clone(&reference));
        Some(reference)
    }
}

pub(super) fn add_task(snapshot: &mut Snapshot, task: &Task) -> Result<(), String> {
    let prepared = snapshot.policies.prepare(&task.facts).map_err(|error| chain(&error))?;
    let known = Known { prepared, facts: Arc::clone(&task.facts), generation: task.generation, mode: task.mode };
    snapshot.tasks.insert((task.slot, task.epoch), Arc::new(known));
    Ok(())
}

pub(super) fn instant() -> Now {
    let now = now();
    Now { boot: now.boot, wall: now.millis() }
}

fn refusal(error: &OpenError) -> ErrorBody {
    let code = match error {
        OpenError::Unknown(_) | OpenError::UnknownLabel { .. } => ErrorCode::Unknown,
        OpenError::IntentNotAllowed { .. } => ErrorCode::IntentNotAllowed,
        OpenError::Ttl(_) => ErrorCode::BadTtl,
        OpenError::Full(_) => ErrorCode::TasksFull,
        OpenError::BadLabel(_)
        | OpenError::TooManyLabels(_)
        | OpenError::GoalTooLong(_)
        | OpenError::SocketMark { .. } => ErrorCode::BadRequest,
    };
    ErrorBody::from_error(code, error)
}

pub(super) fn not_found(error: &FindError) -> ErrorBody {
    let code = match error {
        FindError::None(_) => ErrorCode::NoTask,
        FindError::Ambiguous { .. } => ErrorCode::AmbiguousTask,
    };
    ErrorBody::from_error(code, error)
}
