//! The calling process: its mark, and what records say of it.

use agent_common::event::Actor;
use agent_common::maps::{Mark, SLOT_DAEMON};
use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid};

use crate::maps::PROCESSES;

/// Thread group id in the initial pid namespace.
#[inline(always)]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The mark of a thread group. The one look-up that a process of no agent pays.
#[inline(always)]
pub fn mark_of(tgid: u32) -> Option<Mark> {
    // SAFETY: the value is copied before anything else happens to the map.
    unsafe { PROCESSES.get(tgid).copied() }
}

/// The caller's mark if it works for a task; the daemon itself does not.
#[inline(always)]
pub fn task_mark() -> Option<Mark> {
    mark_of(tgid()).filter(|mark| mark.slot != SLOT_DAEMON)
}

/// Who is calling.
#[inline(always)]
pub fn actor(mark: &Mark) -> Actor {
    let ids = bpf_get_current_pid_tgid();
    Actor {
        slot: mark.slot,
        epoch: mark.epoch,
        tgid: (ids >> 32) as u32,
        tid: ids as u32,
        uid: bpf_get_current_uid_gid() as u32,
        pad: 0,
        // SAFETY: the helper takes nothing and returns a number.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        comm: bpf_get_current_comm().unwrap_or_default(),
    }
}
