//! Lineage: a child gets its parent's mark before it runs, keeps it through exec, and loses it when its last thread goes.
//!
//! The child is marked from **current**, never from its parent pointer: `CLONE_PARENT` and reparenting would lie.

use agent_common::Counter;
use agent_common::event::{Executed, Exited, Forked, KIND_EXECUTED, KIND_EXITED, KIND_FORKED, PATH_LEN};
use agent_common::maps::{Mark, SLOT_DAEMON};
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel_str, bpf_send_signal};
use aya_ebpf::macros::{btf_tracepoint, lsm};
use aya_ebpf::programs::{BtfTracePointContext, LsmContext};
use core::ffi::c_void;

use crate::current;
use crate::decide::{add, now};
use crate::maps::{PROCESSES, RECORDS, SETTINGS, TOTALS, USAGE, count};
use crate::offsets::{self, member};
use crate::record::zeroed;

/// Index into `TOTALS`: marked processes.
const LIVE: u32 = 0;
const SIGKILL: u32 = 9;
const CLONE_THREAD: u64 = 0x0001_0000;
const EAGAIN: i32 = 11;

/// `kernel/fork.c: kernel_clone`, after `copy_process` and before `wake_up_new_task`: the child has not run yet.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let Some(mark) = current::task_mark() else { return 0 };
    fork(&mark, ctx.arg(1));
    0
}

#[inline(always)]
fn fork(mark: &Mark, child: *const c_void) {
    // SAFETY: the tracepoint's second argument is a `task_struct`.
    let (pid, tgid, start): (i32, i32, u64) = unsafe {
        (
            member(child, &offsets::task_struct__pid),
            member(child, &offsets::task_struct__tgid),
            member(child, &offsets::task_struct__start_boottime),
        )
    };
    if pid != tgid {
        // A thread shares its group's mark.
        return;
    }
    let child = tgid as u32;
    let full = live() >= max_marks();
    let new = Mark { start, ..*mark };
    // SAFETY: the value is compared at once.
    if unsafe { PROCESSES.get(child).is_some_and(|known| *known == new) } {
        // The set of programs that this one replaces has just done it, before it was replaced.
        return;
    }
    // An update, not an insert: a stale mark of a reused id must not stand.
    let marked = PROCESSES.insert(child, new, 0).is_ok();
    if marked {
        count_process(mark.slot, 1, 1);
    }
    if full || !marked {
        // No more room: the family that asks for it dies. The child is marked out of the reserve; while the signal is
        // pending no thread of the parent can fork again (`copy_process` checks `signal_pending`).
        count(Counter::MarksFull);
        // SAFETY: the helper signals current.
        unsafe { bpf_send_signal(SIGKILL) };
    }
    let Some(mut entry) = RECORDS.reserve_untyped::<Forked>(0) else { return count(Counter::LifecycleLost) };
    let event = zeroed(&mut entry);
    (event.kind, event.child, event.time, event.start) = (KIND_FORKED, child, now(), start);
    current::describe(mark, &mut event.actor);
    entry.submit(0);
}

/// `kernel/fork.c: copy_process`, where an error fails the fork.
#[lsm(hook = "task_alloc")]
pub fn task_alloc(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let flags: u64 = ctx.arg(1);
    if flags & CLONE_THREAD != 0 || current::lsm_task_mark().is_none() || live() < max_marks() {
        return 0;
    }
    count(Counter::MarksFull);
    -EAGAIN
}

/// `fs/exec.c: exec_binprm`, after the new program is in place.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    if let Some(mark) = current::task_mark() {
        exec(&mark, ctx.arg(2));
    }
    0
}

#[inline(always)]
fn exec(mark: &Mark, bprm: *const c_void) {
    let Some(mut entry) = RECORDS.reserve_untyped::<Executed>(0) else { return count(Counter::LifecycleLost) };
    let event = zeroed(&mut entry);
    // SAFETY: `bprm` is the tracepoint's third argument, a `linux_binprm`; the string read is bounded.
    let length = unsafe {
        let filename: *const c_void = member(bprm, &offsets::linux_binprm__filename);
        bpf_probe_read_kernel_str((&raw mut event.path).cast(), PATH_LEN as u32, filename)
    };
    (event.kind, event.time) = (KIND_EXECUTED, now());
    // The count includes the terminating NUL; an error is negative.
    event.path_len = if length > 0 { (length - 1) as u32 } else { 0 };
    current::describe(mark, &mut event.actor);
    entry.submit(0);
}

/// `kernel/exit.c: do_exit`, once per thread, after `signal->live` was counted down.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    if let Some(mark) = current::mark() {
        exit(current::tgid(), &mark, ctx.arg(0));
    }
    0
}

#[inline(always)]
fn exit(tgid: u32, mark: &Mark, task: *const c_void) {
    // SAFETY: the tracepoint's first argument is a `task_struct`; `signal` is one of its members.
    let live: i32 = unsafe {
        let signal: *const c_void = member(task, &offsets::task_struct__signal);
        member(signal, &offsets::signal_struct__live)
    };
    // Two last threads may both see 0; the one that removes the mark reports.
    if live > 0 || PROCESSES.remove(tgid).is_err() || mark.slot == SLOT_DAEMON {
        return;
    }
    // The daemon's own marks (start 0) were not counted in: it cannot add atomically.
    let remaining = count_process(mark.slot, -1, if mark.start == 0 { 0 } else { -1 });
    let Some(mut entry) = RECORDS.reserve_untyped::<Exited>(0) else { return count(Counter::LifecycleLost) };
    let event = zeroed(&mut entry);
    (event.kind, event.time, event.remaining) = (KIND_EXITED, now(), remaining);
    current::describe(mark, &mut event.actor);
    entry.submit(0);
}

#[inline(always)]
fn live() -> i64 {
    TOTALS.get(LIVE).copied().unwrap_or(i64::MAX)
}

#[inline(always)]
fn max_marks() -> i64 {
    SETTINGS.get(0).map_or(0, |settings| i64::from(settings.max_marks))
}

/// Counts a process of a task in or out, and among all those that were forked; returns how many the task has now.
#[inline(always)]
fn count_process(slot: u32, by: i64, forked: i64) -> i64 {
    if let Some(live) = TOTALS.get_ptr_mut(LIVE) {
        add(live, forked);
    }
    match USAGE.get_ptr_mut(slot) {
        // SAFETY: a projection inside the map value.
        Some(usage) => add(unsafe { &raw mut (*usage).processes }, by) + by,
        None => 0,
    }
}
