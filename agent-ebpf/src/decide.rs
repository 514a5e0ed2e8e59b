//! Task state, then verdict, then hold: the only place that turns a verdict into what the caller gets.
//!
//! The order is the same for every guard. The task's own state and deadline come before any verdict, so that expiry and
//! revocation hold while the daemon is dead. A verdict that the kernel lacks is asked of the daemon while the caller is
//! held in a bounded `bpf_loop`; whatever goes wrong on that way denies, each with its own reason.

mod packet;
mod share;
mod wait;

use core::ffi::c_void;

use agent_common::event::{Actor, Ask, HELD_AUDIT, HELD_REFUSED, HELD_WAITS, KIND_ASK, Object};
use agent_common::maps::{CLASS_FACILITY, CLASS_UNIX, ConnectKey, Mark, RowKey, Settings, TaskState, Verdict};
use agent_common::{Action, Counter, DaemonLoss, Effect, Mode, Reason, Source, TaskStatus};
use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_loop};

pub use self::packet::{Flow, ask_ahead, decide_packet};
use self::share::{leave_place, outstanding_of, take_place, too_many};
pub use self::wait::wait_for;

use crate::current;
use crate::maps::{CONNECT, ROWS, SETTINGS, TASKS, TOTALS, UPCALLS, USAGE, count, count_for};
use crate::record::{self, Describe, Outcome, Who, structural, zeroed};

/// Index into `TOTALS`: first contacts that wait, all tasks together.
const HOLDERS: u32 = 1;
/// Turns of the hold's loop at most, which is as many as the kernel has (`BPF_MAX_LOOPS`): some 500 ms. The clock ends it
/// before.
const MAX_TURNS: u32 = 8 << 20;

/// Nanoseconds since boot, suspend included: the clock of deadlines.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing and returns a number.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// A key of one of the verdict maps.
pub trait Key: Copy {
    /// What is asked.
    fn action(&self) -> Action;
    /// Fills in whose verdict it is.
    fn set_owner(&mut self, mark: &Mark, generation: u32);
    /// The verdict that the kernel holds.
    fn verdict(&self) -> Option<Verdict>;
    /// Drops a verdict that was meant for one process.
    fn forget(&self);
    /// One turn of the hold: 1 ends it.
    const TURN: unsafe extern "C" fn(u32, *mut c_void) -> i64;
}

impl Key for ConnectKey {
    const TURN: unsafe extern "C" fn(u32, *mut c_void) -> i64 = connect_turn;

    #[inline(always)]
    fn action(&self) -> Action {
        if self.action == Action::Listen.code() { Action::Listen } else { Action::Connect }
    }

    #[inline(always)]
    fn set_owner(&mut self, mark: &Mark, generation: u32) {
        (self.slot, self.epoch, self.generation) = (mark.slot, mark.epoch, generation);
    }

    #[inline(always)]
    fn verdict(&self) -> Option<Verdict> {
        // SAFETY: the value is copied at once.
        unsafe { CONNECT.get(self).copied() }
    }

    #[inline(always)]
    fn forget(&self) {
        let _ = CONNECT.remove(self);
    }
}

impl Describe for ConnectKey {
    #[inline(always)]
    fn describe(&self, object: &mut Object) {
        object.connect = *self;
    }
}

impl Key for RowKey {
    const TURN: unsafe extern "C" fn(u32, *mut c_void) -> i64 = row_turn;

    #[inline(always)]
    fn action(&self) -> Action {
        match self.class & (CLASS_FACILITY | CLASS_UNIX) {
            0 => Action::Read,
            CLASS_UNIX => Action::ConnectUnix,
            _ => Action::Use,
        }
    }

    #[inline(always)]
    fn set_owner(&mut self, mark: &Mark, generation: u32) {
        (self.slot, self.epoch, self.generation) = (mark.slot, mark.epoch, generation);
    }

    #[inline(always)]
    fn verdict(&self) -> Option<Verdict> {
        // SAFETY: the value is copied at once.
        unsafe { ROWS.get(self).copied() }
    }

    #[inline(always)]
    fn forget(&self) {
        let _ = ROWS.remove(self);
    }
}

/// What the hold's loop looks at.
#[repr(C)]
pub struct Hold<K> {
    key: K,
    until: u64,
}

// The callbacks must not be exported: the verifier wants them static.
unsafe extern "C" fn connect_turn(_turn: u32, hold: *mut c_void) -> i64 {
    // SAFETY: `wait` passes a `Hold<ConnectKey>` on its own stack.
    turn(unsafe { &*hold.cast::<Hold<ConnectKey>>() })
}

unsafe extern "C" fn row_turn(_turn: u32, hold: *mut c_void) -> i64 {
    // SAFETY: `wait` passes a `Hold<RowKey>` on its own stack.
    turn(unsafe { &*hold.cast::<Hold<RowKey>>() })
}

/// One turn for any key.
#[inline(always)]
pub fn turn<K: Key>(hold: &Hold<K>) -> i64 {
    i64::from(hold.key.verdict().is_some_and(|verdict| verdict.not_after >= now()) || now() >= hold.until)
}

/// Why a task may do nothing more, if so.
#[inline(always)]
pub fn over(task: &TaskState, epoch: u32, now: u64) -> Option<Reason> {
    if task.epoch != epoch {
        return Some(Reason::Ended);
    }
    if task.status == TaskStatus::Revoked.code() {
        return Some(Reason::Revoked);
    }
    if task.status == TaskStatus::Expired.code() {
        return Some(Reason::Expired);
    }
    if task.status != TaskStatus::Active.code() {
        return Some(Reason::Ended);
    }
    if now >= task.deadline { Some(Reason::Expired) } else { None }
}

/// A deny that needs no verdict, with the task's mode applied. True if the action may go on.
#[inline(always)]
pub fn refuse(mark: &Mark, action: Action, reason: Reason, what: &impl Describe) -> bool {
    let (mode, generation) = match TASKS.get(mark.slot) {
        Some(task) if task.epoch == mark.epoch => (task.mode, task.generation),
        _ => (Mode::Enforce.code(), 0),
    };
    let mut outcome = structural(Effect::Deny, reason);
    outcome.generation = generation;
    finish(mark, action, mode, &mut outcome, now(), what)
}

/// A deny whatever the task's mode is: a task is watched for its own sake, and this would blind all.
#[inline(always)]
pub fn forbid(mark: &Mark, action: Action, reason: Reason, what: &impl Describe) {
    let generation = TASKS.get(mark.slot).filter(|task| task.epoch == mark.epoch).map_or(0, |task| task.generation);
    let mut outcome = structural(Effect::Deny, reason);
    outcome.generation = generation;
    finish(mark, action, Mode::Enforce.code(), &mut outcome, now(), what);
}

/// Whether a task may go on at all; if not, that is recorded.
#[inline(always)]
pub fn admit(mark: &Mark, action: Action, what: &impl Describe) -> bool {
    let reason = match TASKS.get(mark.slot) {
        Some(task) => over(task, mark.epoch, now()),
        None => Some(Reason::Undecidable),
    };
    match reason {
        Some(reason) => refuse(mark, action, reason, what),
        None => true,
    }
}

/// One action of a task, on its way through the steps below.
struct Question<'a, K, W, D> {
    who: &'a W,
    key: &'a K,
    what: &'a D,
    generation: u32,
    time: u64,
}

/// Decides one action of a marked process. True if it may go on.
#[inline(always)]
pub fn decide<K: Key>(mark: &Mark, key: &mut K, what: &impl Describe) -> bool {
    settle(mark, key, what, None).is_some()
}

/// As [`decide`]; where the action may go on, says until when packets may follow without another look: 0 asks for each.
#[inline(always)]
pub fn decide_flow<K: Key>(mark: &Mark, key: &mut K, what: &impl Describe) -> Option<u64> {
    settle(mark, key, what, None)
}

/// Decides where nobody may be held: what the kernel has no verdict for is refused with `absent` as the reason, and the answer
/// serves the next try. See [`prepare`].
#[inline(always)]
pub fn decide_now<K: Key>(mark: &Mark, key: &mut K, what: &impl Describe, absent: Reason) -> bool {
    settle(mark, key, what, Some(absent)).is_some()
}

/// The same for what the kernel only wants to know, such as how much memory it may promise: nothing is asked, recorded or
/// counted.
#[inline(always)]
pub fn decide_quietly<K: Key>(mark: &Mark, key: &mut K) -> bool {
    let audited = |task: &TaskState| task.epoch == mark.epoch && task.mode == Mode::Audit.code();
    is_permitted(mark, key) || TASKS.get(mark.slot).is_some_and(audited)
}

/// Whether the kernel holds an allow for what a task does again.
#[inline(always)]
pub fn is_permitted<K: Key>(mark: &Mark, key: &mut K) -> bool {
    let time = now();
    let Some(task) = TASKS.get(mark.slot) else { return false };
    key.set_owner(mark, generation_of(task));
    let allowed =
        |verdict: Verdict| verdict.once == 0 && verdict.not_after >= time && verdict.effect == Effect::Allow.code();
    over(task, mark.epoch, time).is_none() && key.verdict().is_some_and(allowed)
}

#[inline(always)]
fn settle<K: Key>(mark: &Mark, key: &mut K, what: &impl Describe, absent: Option<Reason>) -> Option<u64> {
    let time = now();
    let Some(task) = TASKS.get(mark.slot) else {
        return refuse(mark, key.action(), Reason::Undecidable, what).then_some(0);
    };
    if let Some(reason) = over(task, mark.epoch, time) {
        return refuse(mark, key.action(), reason, what).then_some(0);
    }
    let generation = generation_of(task);
    key.set_owner(mark, generation);
    let question = Question { who: &Caller(mark), key: &*key, what, generation, time };
    let mut outcome = match key.verdict() {
        Some(verdict) if verdict.once == 0 && verdict.not_after >= time => {
            count_for(mark.slot, Counter::CacheHits);
            by_verdict(&verdict, Source::Cache)
        }
        // It was asked for by `prepare`, for this very action.
        Some(verdict) if absent.is_some() && verdict.not_after >= time => {
            key.forget();
            by_verdict(&verdict, Source::Upcall)
        }
        _ if too_many(mark.slot, time) => {
            count(Counter::RateLimited);
            structural(Effect::Deny, Reason::RateLimited)
        }
        _ if task.mode == Mode::Audit.code() => {
            if ask(&question, HELD_AUDIT) {
                // The daemon writes the record: what would have been decided is for it to say.
                return Some(0);
            }
            structural(Effect::Deny, Reason::UpcallLost)
        }
        _ => match absent {
            None => first_contact(&question, mark, task),
            Some(absent) => unheld(&question, task, absent),
        },
    };
    outcome.generation = generation;
    let go_on = finish(mark, key.action(), task.mode, &mut outcome, time, what);
    go_on.then_some(if outcome.effect == Effect::Allow { outcome.flow_not_after } else { 0 })
}

/// Part of every verdict's key. Read once: the daemon may change it at any moment, and question and answer must agree.
#[inline(always)]
pub fn generation_of(task: &TaskState) -> u32 {
    // SAFETY: a field of a live map value.
    unsafe { core::ptr::read_volatile(&raw const task.generation) }
}

#[inline(always)]
fn by_verdict(verdict: &Verdict, source: Source) -> Outcome {
    // What is not an allow with a known reason is a deny: nothing here is taken on trust.
    let effect = if verdict.effect == Effect::Allow.code() { Effect::Allow } else { Effect::Deny };
    let reason = Reason::from_code(verdict.reason).unwrap_or(Reason::Undecidable);
    let (detail, flow_not_after) = (verdict.detail, verdict.flow_not_after);
    Outcome { effect, reason, source, detail, generation: 0, latency: 0, flow_not_after }
}

/// Asks the daemon and holds the caller for the answer.
#[inline(always)]
fn first_contact<K: Key, W: Who, D: Describe>(
    question: &Question<'_, K, W, D>,
    mark: &Mark,
    task: &TaskState,
) -> Outcome {
    let (Some(settings), Some(usage), Some(holders)) =
        (SETTINGS.get(0), USAGE.get_ptr_mut(mark.slot), TOTALS.get_ptr_mut(HOLDERS))
    else {
        return structural(Effect::Deny, Reason::Undecidable);
    };
    if is_lost(settings, question.time) {
        return daemon_lost(task);
    }
    let outstanding = outstanding_of(usage);
    let busy = take_place(settings, outstanding, holders);
    let outcome = if busy { refused_busy(question) } else { held(question, settings, mark, task) };
    leave_place(outstanding, holders);
    outcome
}

#[inline(always)]
fn is_lost(settings: &Settings, time: u64) -> bool {
    time.saturating_sub(settings.heartbeat) > settings.stale_after
}

#[inline(always)]
fn daemon_lost(task: &TaskState) -> Outcome {
    count(Counter::DaemonLost);
    let allow = task.on_daemon_loss == DaemonLoss::Allow.code();
    structural(if allow { Effect::Allow } else { Effect::Deny }, Reason::DaemonLost)
}

/// Asks the daemon for the next try, and refuses this one.
#[inline(always)]
fn unheld<K: Key, W: Who, D: Describe>(question: &Question<'_, K, W, D>, task: &TaskState, absent: Reason) -> Outcome {
    let Some(settings) = SETTINGS.get(0) else { return structural(Effect::Deny, Reason::Undecidable) };
    if is_lost(settings, question.time) {
        return daemon_lost(task);
    }
    structural(Effect::Deny, if ask(question, HELD_REFUSED) { absent } else { Reason::UpcallLost })
}

/// What [`prepare`] waits for.
pub trait Awaited: Describe + Copy {
    /// What is asked.
    const ACTION: Action;
    /// One turn of the hold, which is given a [`Hold`] of this.
    const TURN: unsafe extern "C" fn(u32, *mut c_void) -> i64;
    /// Fills in whose verdict it is.
    fn set_owner(&mut self, mark: &Mark, generation: u32);
    /// Whether everything is there that the kernel needs to decide.
    fn is_there(&self) -> bool;
}

/// Has the daemon give its answer before a hook comes in which nobody may be held. That hook decides: if the answer is not there
/// by then, for whatever cause, what needs it is refused.
#[inline(always)]
pub fn prepare<A: Awaited>(mark: &Mark, awaited: &A) {
    let (Some(task), Some(settings), Some(usage), Some(holders)) =
        (TASKS.get(mark.slot), SETTINGS.get(0), USAGE.get_ptr_mut(mark.slot), TOTALS.get_ptr_mut(HOLDERS))
    else {
        return;
    };
    let time = now();
    if over(task, mark.epoch, time).is_some() || task.mode == Mode::Audit.code() || is_lost(settings, time) {
        // None of these waits.
        return;
    }
    let generation = generation_of(task);
    let mut hold = Hold { key: *awaited, until: time + settings.hold_budget };
    hold.key.set_owner(mark, generation);
    if hold.key.is_there() || too_many(mark.slot, time) {
        return;
    }
    let outstanding = outstanding_of(usage);
    let busy = take_place(settings, outstanding, holders);
    if busy {
        count(Counter::Busy);
    }
    let waits = !busy && settings.hold_budget != 0;
    let held = if waits { HELD_WAITS } else { HELD_REFUSED };
    if put_question(&Caller(mark), A::ACTION, generation, time, awaited, held) && waits {
        // SAFETY: as in `held`.
        unsafe { bpf_loop(MAX_TURNS, A::TURN as *mut c_void, (&raw mut hold).cast(), 0) };
    }
    leave_place(outstanding, holders);
}

/// One turn of the hold of an [`Awaited`]: 1 ends it.
#[inline(always)]
pub fn turn_of<A: Awaited>(hold: &Hold<A>) -> i64 {
    i64::from(hold.key.is_there() || now() >= hold.until)
}

#[inline(always)]
fn refused_busy<K: Key, W: Who, D: Describe>(question: &Question<'_, K, W, D>) -> Outcome {
    count(Counter::Busy);
    ask(question, HELD_REFUSED);
    structural(Effect::Deny, Reason::Busy)
}

#[inline(always)]
fn held<K: Key, W: Who, D: Describe>(
    question: &Question<'_, K, W, D>,
    settings: &Settings,
    mark: &Mark,
    task: &TaskState,
) -> Outcome {
    let waits = settings.hold_budget != 0;
    if !ask(question, if waits { HELD_WAITS } else { HELD_REFUSED }) {
        return structural(Effect::Deny, Reason::UpcallLost);
    }
    if waits {
        let mut hold = Hold { key: *question.key, until: question.time + settings.hold_budget };
        // SAFETY: the callback is static and takes what is passed; the loop is bounded by turns and by the clock.
        unsafe { bpf_loop(MAX_TURNS, K::TURN as *mut c_void, (&raw mut hold).cast(), 0) };
    }
    // Looked up again, since on 6.1 the verifier prunes away branches on what a callback left in its context.
    let time = now();
    let mut outcome = match (over(task, mark.epoch, time), question.key.verdict()) {
        // A caller that was preempted may come back long after its task is over.
        (Some(reason), _) => structural(Effect::Deny, reason),
        (None, Some(verdict)) if verdict.not_after >= time => {
            if verdict.once != 0 {
                question.key.forget();
            }
            by_verdict(&verdict, Source::Upcall)
        }
        _ => {
            count(Counter::Timeouts);
            structural(Effect::Deny, Reason::Timeout)
        }
    };
    outcome.latency = (time - question.time).min(u64::from(u32::MAX)) as u32;
    outcome
}

/// Puts a question to the daemon. False if it was lost.
#[inline(always)]
fn ask<K: Key, W: Who, D: Describe>(question: &Question<'_, K, W, D>, held: u8) -> bool {
    put_question(question.who, question.key.action(), question.generation, question.time, question.what, held)
}

#[inline(always)]
fn put_question(who: &impl Who, action: Action, generation: u32, time: u64, what: &impl Describe, held: u8) -> bool {
    let Some(mut entry) = UPCALLS.reserve_untyped::<Ask>(0) else {
        count(Counter::UpcallRingFull);
        return false;
    };
    let event = zeroed(&mut entry);
    (event.kind, event.action, event.held) = (KIND_ASK, action.code(), held);
    (event.generation, event.time) = (generation, time);
    who.describe(&mut event.actor);
    what.describe(&mut event.object);
    entry.submit(0);
    count(Counter::Upcalls);
    true
}

#[inline(always)]
fn finish(mark: &Mark, action: Action, mode: u32, outcome: &mut Outcome, time: u64, what: &impl Describe) -> bool {
    if outcome.effect == Effect::Deny && mode == Mode::Audit.code() {
        outcome.effect = Effect::WouldDeny;
    }
    record::decided(mark.slot, action, outcome, time, &Caller(mark), what);
    outcome.effect != Effect::Deny
}

/// The calling process.
struct Caller<'a>(&'a Mark);

impl Who for Caller<'_> {
    #[inline(always)]
    fn describe(&self, actor: &mut Actor) {
        current::describe(self.0, actor);
    }
}

/// Adds to a shared count and returns what it was before.
///
/// By hand, since the target has no `AtomicI64::fetch_add`: rustc counts BPF among the machines without compare-and-swap.
#[inline(always)]
pub fn add(count: *mut i64, by: i64) -> i64 {
    let mut value = by;
    // SAFETY: the pointer is into a live map value and aligned. `BPF_ATOMIC | BPF_FETCH`, Linux 5.12 and later.
    unsafe {
        core::arch::asm!(
            "{value} = atomic_fetch_add((u64 *)({count} + 0), {value})",
            value = inout(reg) value,
            count = in(reg) count,
        );
    }
    value
}
