//! A task's share of the daemon: how many first contacts in a second, and how many that wait at the same time.

use agent_common::maps::{Settings, Usage};

use super::add;
use crate::maps::{SETTINGS, USAGE};

/// Counts a first contact in, and tells whether the task has had its share of this second. Threads that meet at the turn
/// of a second may count for either, which gives a task a few more or less.
#[inline(always)]
pub fn too_many(slot: u32, time: u64) -> bool {
    let (Some(settings), Some(usage)) = (SETTINGS.get(0), USAGE.get_ptr_mut(slot)) else { return true };
    let second = time >> 30;
    // SAFETY: fields of a live map value; whole words, which are not torn.
    let counted = unsafe {
        let (at, contacts) = (&raw mut (*usage).second, &raw mut (*usage).contacts);
        if core::ptr::read_volatile(at) != second {
            core::ptr::write_volatile(at, second);
            core::ptr::write_volatile(contacts, 0);
        }
        add(contacts, 1)
    };
    counted >= i64::from(settings.max_contacts)
}

/// Counts somebody in who would wait; true if there are too many already. Holders keep their CPU: with all CPUs taken, a kernel
/// that does not preempt could not run the daemon at all. To be followed by [`leave_place`] either way.
#[inline(always)]
pub fn take_place(settings: &Settings, outstanding: *mut i64, holders: *mut i64) -> bool {
    let before = (add(outstanding, 1), add(holders, 1));
    before.0 >= i64::from(settings.max_outstanding) || before.1 >= i64::from(settings.max_holders)
}

#[inline(always)]
pub fn leave_place(outstanding: *mut i64, holders: *mut i64) {
    add(holders, -1);
    add(outstanding, -1);
}

#[inline(always)]
pub fn outstanding_of(usage: *mut Usage) -> *mut i64 {
    // SAFETY: a projection inside the map value.
    unsafe { &raw mut (*usage).outstanding }
}
