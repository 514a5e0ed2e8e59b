//! The threads that answer while somebody waits: those for the kernel's questions, and one for fanotify's.
//!
//! None logs, opens a file or takes a lock that is held for long. What there is to record goes to the main loop through
//! a queue that is never waited for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use agent_common::event::{Actor, Ask, HELD_AUDIT, HELD_WAITS, HELD_WIRE};
use agent_common::maps::{ConnectKey, RowKey, SLOT_DAEMON, Settings, TaskState, Verdict};
use agent_common::{Action, Event, TaskStatus};
use arc_swap::ArcSwap;
use bytemuck::Zeroable;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::named::names_of;
use super::namespaces::Namespaces;
use super::snapshot::{Known, Snapshot, facility_labels, undecided};
use super::unix;
use crate::decision::{Answer, Details, Instant, Rows, TaskKey};
use crate::domain::clock::boot_now_ns;
use crate::domain::{Decision, Effect, Hosts, Mode, Reason, Source};
use crate::kernel::{Fanotify, Maps, Opened, Ring};
use crate::policy::Class;
use crate::record::Resource;

/// Turns of the loop come at least this often, for the heartbeat and for the end.
const TURN: u16 = 100;
/// Threads that answer upcalls at most. One less is how many processes are held at once.
pub(super) const MAX_ANSWERERS: usize = 16;
/// How long a refusal for want of an entity is left for who waits, nanoseconds.
const PATIENCE: u64 = 1_000_000_000;
/// A question older than this, in nanoseconds, was put to a daemon that is gone: nobody waits for its answer any more.
const STALE: u64 = 5_000_000_000;
/// Questions taken from the ring before the heartbeat is looked after.
const BATCH: usize = 256;

/// A decision that the kernel has not recorded.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) actor: Actor,
    pub(super) object: agent_common::event::Object,
    pub(super) action: Action,
    pub(super) effect: Effect,
    pub(super) reason: Reason,
    pub(super) source: Source,
    pub(super) detail: u32,
    pub(super) generation: u32,
    /// Boot clock, nanoseconds.
    pub(super) time: u64,
    /// Nanoseconds.
    pub(super) latency: u32,
    /// What was acted upon, where `object` cannot say it.
    pub(super) resource: Option<Box<Resource>>,
}

/// What both threads share with the main loop.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) details: Arc<Details>,
    pub(super) notes: mpsc::Sender<Note>,
    /// Notes for which the queue had no room.
    pub(super) lost_notes: Arc<AtomicU64>,
    /// Ring items that could not be decoded.
    pub(super) undecodable: Arc<AtomicU64>,
    pub(super) stop: Arc<AtomicBool>,
    /// Where network namespaces are told of in which marked processes ask for names.
    pub(super) namespaces: Arc<Namespaces>,
    /// Milliseconds that a held process may wait.
    pub(super) patience: u64,
}

impl Shared {
    pub(super) fn note(&self, note: Note) {
        if self.notes.try_send(note).is_err() {
            self.lost_notes.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Starts the threads that answer upcalls, one on each of at most [`MAX_ANSWERERS`] CPUs.
///
/// A held process keeps its CPU, and a kernel that does not preempt itself lets nothing else run there: not even a thread of
/// real-time priority, which is woken where it ran last. So there is one thread on each CPU, fewer processes are held than
/// there are threads, and whichever thread can run answers.
///
/// # Errors
/// If the system has no thread or descriptor left.
pub(super) fn upcalls(shared: Shared, ring: Ring, maps: Maps, settings: Settings) -> io::Result<Vec<JoinHandle<()>>> {
    let rows = Rows::new(Arc::clone(&shared.details), shared.patience);
    let ready = Arc::new(ring.as_fd().try_clone_to_owned()?);
    let answerer = Answerer { stop: Arc::clone(&shared.stop), ready };
    let upcalls = Arc::new(Mutex::new(Upcalls { shared, ring, maps, rows, settings, generation: 0 }));
    for_each_cpu("decision", || {
        let (answerer, upcalls) = (answerer.clone(), Arc::clone(&upcalls));
        move || answerer.run(&upcalls)
    })
}

/// Starts a thread on each of at most [`MAX_ANSWERERS`] CPUs.
///
/// # Errors
/// If the system has no thread left.
pub(super) fn for_each_cpu<F: FnOnce() + Send + 'static>(
    name: &str,
    make: impl Fn() -> F,
) -> io::Result<Vec<JoinHandle<()>>> {
    let start = |cpu| {
        let run = make();
        thread::Builder::new().name(name.into()).spawn(move || {
            stay_on(cpu);
            prefer();
            run();
        })
    };
    own_cpus().into_iter().take(MAX_ANSWERERS).map(start).collect()
}

/// What each of the threads has for itself.
#[derive(Clone)]
struct Answerer {
    stop: Arc<AtomicBool>,
    ready: Arc<OwnedFd>,
}

impl Answerer {
    fn run(&self, upcalls: &Mutex<Upcalls>) {
        while !self.stop.load(Ordering::Relaxed) {
            // A full batch means that there may be more: the next turn looks without waiting.
            let taken = upcalls.lock().unwrap_or_else(PoisonError::into_inner).turn();
            if taken < BATCH {
                wait(self.ready.as_fd());
            }
        }
    }
}

/// The CPUs that this process may use; the first one if that cannot be told.
fn own_cpus() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let own: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect();
    if own.is_empty() { vec![0] } else { own }
}

/// Where that may not be had, the thread runs anywhere, and the hold budget bounds what that costs.
fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    let _ = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
}

/// Everything that answers, for one thread at a time.
struct Upcalls {
    shared: Shared,
    ring: Ring,
    maps: Maps,
    rows: Rows<Class>,
    settings: Settings,
    /// The newest generation for which rows were kept.
    generation: u32,
}

impl Upcalls {
    /// Answers a batch and returns how many it was.
    fn turn(&mut self) -> usize {
        let mut snapshot = self.shared.snapshot.load_full();
        // By parts, since each answer needs all but the ring.
        let Self { shared, ring, maps, rows, .. } = self;
        let taken = ring.drain(BATCH, |event| match event {
            Ok(Event::Ask(ask)) => {
                if !snapshot.knows(&ask) {
                    // The task was opened, or got its new generation, after this turn began.
                    snapshot = shared.snapshot.load_full();
                }
                answer(shared, maps, rows, &snapshot, &ask);
            }
            _ => {
                shared.undecodable.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Housekeeping comes when nobody waits for it.
        self.heartbeat();
        self.drop_old_rows(&snapshot);
        taken
    }

    /// The kernel denies once this is too old.
    fn heartbeat(&mut self) {
        self.settings.heartbeat = boot_now_ns();
        // It cannot fail while the map exists; if it did, the kernel would notice the missing heartbeat.
        let _ = self.maps.settings.put(0, self.settings);
    }

    fn drop_old_rows(&mut self, snapshot: &Snapshot) {
        let newest = snapshot.tasks.values().map(|task| task.generation).max().unwrap_or(0);
        if newest != self.generation {
            self.generation = newest;
            self.rows
                .retain(|key| snapshot.task(key.slot, key.epoch).is_some_and(|task| task.generation == key.generation));
        }
    }
}

fn answer(shared: &Shared, maps: &mut Maps, rows: &mut Rows<Class>, snapshot: &Snapshot, ask: &Ask) {
    if Action::from_code(ask.action) == Some(Action::Resolve) {
        // What is waited for is set up by threads of its own.
        return shared.namespaces.ask(ask);
    }
    let now = now();
    if ask.held != HELD_AUDIT && now.boot.saturating_sub(ask.time) > STALE {
        return;
    }
    let _deciding = snapshot.names.deciding();
    let known = names_of(maps, snapshot, ask, now);
    let mut answer = decide(rows, snapshot, ask, &known.hosts, now);
    // Connections that are established outlive the name under which they were opened.
    answer.verdict.not_after = answer.verdict.not_after.min(known.until);
    // An answer for one question is put down only where somebody waits for it, or a flow does.
    if ask.action == Action::ConnectUnix.code() {
        unix::put(maps, snapshot, ask, answer.verdict);
    } else if answer.verdict.once == 0 || matches!(ask.held, HELD_WAITS | HELD_WIRE) {
        put(maps, ask, answer.verdict);
    }
    if ask.held == HELD_AUDIT {
        shared.note(audited(ask, &answer, now));
    }
}

/// Under the generation that was asked in, even if the snapshot is newer: that is the key which is being watched.
fn put(maps: &mut Maps, ask: &Ask, verdict: Verdict) {
    let Actor { slot, epoch, .. } = ask.actor;
    let generation = ask.generation;
    let _ = match Action::from_code(ask.action) {
        Some(Action::Connect | Action::Listen) => {
            maps.connect.put(ConnectKey { slot, epoch, generation, ..ask.object.connect }, verdict)
        }
        Some(Action::Read | Action::Use) => {
            maps.rows.put(RowKey { slot, epoch, generation, class: ask.object.class }, verdict)
        }
        _ => Ok(()),
    };
}

fn decide(rows: &mut Rows<Class>, snapshot: &Snapshot, ask: &Ask, hosts: &Arc<Hosts>, now: Instant) -> Answer {
    let Actor { slot, epoch, .. } = ask.actor;
    let class = match Action::from_code(ask.action) {
        Some(action @ (Action::Connect | Action::Listen)) => {
            endpoint_class(snapshot, &ConnectKey { action: action.code(), ..ask.object.connect }, hosts)
        }
        Some(Action::Use) => facility_labels(ask.object.class).map(|labels| snapshot.policies.facility_class(&labels)),
        Some(Action::ConnectUnix) => Some(snapshot.policies.unix_class(&snapshot.unix_labels(&ask.object))),
        Some(Action::Read) => {
            snapshot.class_labels(ask.object.class).map(|labels| snapshot.policies.secret_class(labels))
        }
        _ => None,
    };
    match (snapshot.task(slot, epoch), class) {
        (Some(task), Some(class)) => rows.answer(snapshot, task_key(slot, epoch, task), class, now),
        _ => missing(now),
    }
}

/// What policy can tell apart about where a task connects to or listens at; `None` for what it has no word for.
pub(super) fn endpoint_class(snapshot: &Snapshot, key: &ConnectKey, hosts: &Arc<Hosts>) -> Option<Class> {
    match Action::from_code(key.action) {
        Some(Action::Connect) => {
            let endpoint = snapshot.endpoint(key, Arc::clone(hosts));
            endpoint.map(|endpoint| snapshot.policies.endpoint_class(&endpoint))
        }
        Some(Action::Listen) => snapshot.listener(key).map(|endpoint| snapshot.policies.listen_class(&endpoint)),
        _ => None,
    }
}

pub(super) fn task_key(slot: u32, epoch: u32, task: &Known) -> TaskKey {
    TaskKey { slot, epoch, generation: task.generation }
}

fn missing(now: Instant) -> Answer {
    let decision = Arc::new(undecided(Reason::MissingEntity));
    let not_after = now.boot.saturating_add(PATIENCE);
    let verdict = Verdict {
        not_after,
        flow_not_after: not_after,
        effect: decision.effect.code(),
        reason: decision.reason.code(),
        once: 1,
        ..Verdict::zeroed()
    };
    Answer { decision, verdict }
}

/// What a policy in audit mode would have refused is `would_deny` in an enforcing task too.
pub(super) fn effect_of(effect: Effect, shadow: Option<Effect>, mode: Mode) -> Effect {
    match (effect, mode) {
        (Effect::Deny, Mode::Enforce) => Effect::Deny,
        (Effect::Deny, Mode::Audit) => Effect::WouldDeny,
        _ if shadow == Some(Effect::Deny) => Effect::WouldDeny,
        (effect, _) => effect,
    }
}

fn audited(ask: &Ask, answer: &Answer, now: Instant) -> Note {
    Note {
        actor: ask.actor,
        object: ask.object,
        action: Action::from_code(ask.action).unwrap_or(Action::Connect),
        effect: shown(&answer.decision, Mode::Audit),
        reason: answer.decision.reason,
        source: Source::After,
        detail: answer.verdict.detail,
        generation: ask.generation,
        time: ask.time,
        latency: u32::try_from(now.boot.saturating_sub(ask.time)).unwrap_or(u32::MAX),
        resource: None,
    }
}

fn shown(decision: &Decision, mode: Mode) -> Effect {
    effect_of(decision.effect, decision.shadow.as_ref().map(|shadow| shadow.effect), mode)
}

/// Starts the thread that answers fanotify.
///
/// # Errors
/// If the system has no thread left.
pub(super) fn files(shared: Shared, group: Arc<Fanotify>, maps: Maps) -> io::Result<JoinHandle<()>> {
    let rows = Rows::new(Arc::clone(&shared.details), shared.patience);
    let mut files = Files { shared, maps, rows };
    thread::Builder::new().name("fanotify".into()).spawn(move || {
        prefer();
        files.run(&group);
    })
}

struct Files {
    shared: Shared,
    maps: Maps,
    rows: Rows<Class>,
}

impl Files {
    fn run(&mut self, group: &Fanotify) {
        while !self.shared.stopping() {
            let snapshot = self.shared.snapshot.load_full();
            match group.answer(|opened| self.allows(&snapshot, opened)) {
                Ok(0) | Err(_) => wait(group.as_fd()),
                Ok(_) => {}
            }
        }
    }

    /// Whether an open or a read may go on. The order is that of the kernel's `decide.rs`.
    fn allows(&mut self, snapshot: &Snapshot, opened: &Opened<'_>) -> bool {
        let Some(mark) = self.maps.processes.get(opened.tgid).filter(|mark| mark.slot != SLOT_DAEMON) else {
            return true;
        };
        let now = now();
        let class = class_of(snapshot, opened);
        let known = snapshot.task(mark.slot, mark.epoch);
        let state = self.maps.tasks.get(mark.slot);
        let answer = match (over(&state, mark.epoch, now.boot), class, known) {
            (Some(reason), _, _) => refused(reason, now),
            (None, Some((class, _)), Some(task)) => self.by_policy(snapshot, mark.slot, mark.epoch, task, class, now),
            (None, _, _) => refused(Reason::Undecidable, now),
        };
        let mode = if state.epoch == mark.epoch { Mode::from_code(state.mode) } else { None };
        let effect = shown(&answer.decision, mode.unwrap_or(Mode::Enforce));
        // A read that goes through was recorded when the file was opened.
        if opened.open || effect != Effect::Allow {
            let actor =
                Actor { slot: mark.slot, epoch: mark.epoch, tgid: opened.tgid, tid: opened.tgid, ..Actor::zeroed() };
            self.shared.note(note(actor, opened, class, effect, &answer, state.generation, now));
        }
        effect != Effect::Deny
    }

    fn by_policy(
        &mut self,
        snapshot: &Snapshot,
        slot: u32,
        epoch: u32,
        task: &Known,
        class: u32,
        now: Instant,
    ) -> Answer {
        match snapshot.class_labels(class) {
            Some(labels) => {
                let class = snapshot.policies.secret_class(labels);
                self.rows.answer(snapshot, task_key(slot, epoch, task), class, now)
            }
            None => refused(Reason::Undecidable, now),
        }
    }
}

/// The class of a file, and the directory that gave it where it is not the file's own.
fn class_of(snapshot: &Snapshot, opened: &Opened<'_>) -> Option<(u32, Option<(u64, u64)>)> {
    let places = &snapshot.places;
    let own = (opened.device, opened.inode);
    if let Some(&class) = places.files.get(&own) {
        return Some((class, None));
    }
    if let Some(&class) = places.directories.get(&own) {
        return Some((class, Some(own)));
    }
    // The event came by the mark on its directory.
    let parent = opened.parent()?;
    places.directories.get(&parent).map(|&class| (class, Some(parent)))
}

/// The kernel's `decide::over`, for who decides out here.
pub(super) fn over(state: &TaskState, epoch: u32, now: u64) -> Option<Reason> {
    if state.epoch != epoch {
        return Some(Reason::Ended);
    }
    match TaskStatus::from_code(state.status) {
        Some(TaskStatus::Active) if now < state.deadline => None,
        Some(TaskStatus::Active | TaskStatus::Expired) => Some(Reason::Expired),
        Some(TaskStatus::Revoked) => Some(Reason::Revoked),
        _ => Some(Reason::Ended),
    }
}

fn refused(reason: Reason, now: Instant) -> Answer {
    let mut answer = missing(now);
    answer.decision = Arc::new(undecided(reason));
    answer
}

fn note(
    actor: Actor,
    opened: &Opened<'_>,
    class: Option<(u32, Option<(u64, u64)>)>,
    effect: Effect,
    answer: &Answer,
    generation: u32,
    now: Instant,
) -> Note {
    let mut object = agent_common::event::Object::zeroed();
    (object.file.device, object.file.inode) = (opened.device, opened.inode);
    if let Some((class, directory)) = class {
        object.class = class;
        (object.directory.device, object.directory.inode) = directory.unwrap_or_default();
    }
    opened.write_name(&mut object.name);
    let structural = !matches!(answer.decision.reason, Reason::Policy | Reason::NoPermit | Reason::Error);
    Note {
        actor,
        object,
        action: Action::Read,
        effect,
        reason: answer.decision.reason,
        source: if structural { Source::Structural } else { Source::Upcall },
        detail: answer.verdict.detail,
        generation,
        time: now.boot,
        latency: u32::try_from(boot_now_ns().saturating_sub(now.boot)).unwrap_or(u32::MAX),
        resource: None,
    }
}

/// Both clocks. The boot clock first: whatever comes between the two readings makes an answer hold for less, never longer.
pub(super) fn now() -> Instant {
    let boot = boot_now_ns();
    let wall = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |time| {
        i64::try_from(i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec())).unwrap_or(i64::MAX)
    });
    Instant { boot, wall }
}

/// Until there is something to read, or a turn has passed.
fn wait(fd: BorrowedFd<'_>) {
    let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(TURN));
}

/// Real-time priority, so that a busy host does not make held processes wait. Where it may not be had, answers are late
/// under load, and the hold budget bounds that.
fn prefer() {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: a call on the calling thread with a valid parameter; failure changes nothing.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const param) };
}
