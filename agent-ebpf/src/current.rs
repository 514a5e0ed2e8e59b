//! The calling process: its mark, and what records say of it.

use agent_common::event::Actor;
use agent_common::maps::{Mark, SLOT_DAEMON};
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_comm};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};

use crate::instance;
use crate::maps::PROCESSES;

/// Thread group id in the initial pid namespace.
#[inline(always)]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Thread id in the initial pid namespace.
#[inline(always)]
pub fn tid() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

/// The caller's mark, for programs of cgroups and tracepoints; none if this set of programs does not act. The one look-up
/// that a process of no agent pays.
#[inline(always)]
pub fn mark() -> Option<Mark> {
    look_up().filter(|_| instance::acts())
}

/// The same for BPF LSM programs, which run in another order: see `instance.rs`.
#[inline(always)]
pub fn lsm_mark() -> Option<Mark> {
    look_up().filter(|_| instance::acts_still())
}

/// The caller's mark if it works for a task; the daemon itself does not. For programs of cgroups and tracepoints.
#[inline(always)]
pub fn task_mark() -> Option<Mark> {
    mark().filter(|mark| mark.slot != SLOT_DAEMON)
}

/// The same for BPF LSM programs.
#[inline(always)]
pub fn lsm_task_mark() -> Option<Mark> {
    lsm_mark().filter(|mark| mark.slot != SLOT_DAEMON)
}

#[inline(always)]
fn look_up() -> Option<Mark> {
    // SAFETY: the value is copied before anything else happens to the map.
    unsafe { PROCESSES.get(tgid()).copied() }
}

/// Writes who is calling into a ring entry.
#[inline(always)]
pub fn describe(mark: &Mark, actor: &mut Actor) {
    let ids = bpf_get_current_pid_tgid();
    actor.slot = mark.slot;
    actor.epoch = mark.epoch;
    actor.tgid = (ids >> 32) as u32;
    actor.tid = ids as u32;
    actor.uid = bpf_get_current_uid_gid() as u32;
    actor.pad = 0;
    // SAFETY: the helper takes nothing and returns a number.
    actor.cgroup = unsafe { bpf_get_current_cgroup_id() };
    // In place; where it fails, which it does not, the helper leaves zeroes.
    // SAFETY: the field is writable memory of the length given.
    unsafe { bpf_get_current_comm((&raw mut actor.comm).cast(), actor.comm.len() as u32) };
}
