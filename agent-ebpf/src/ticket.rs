//! What was decided last on a socket, kept in its label, so that a packet costs no look-up of its own.
//!
//! Two threads may decide on one socket at the same time while a third one's packet leaves. One of the writers writes, the
//! other leaves it: packets to its destination are then looked up. A reader takes nothing that changed under it.

use agent_common::maps::{ConnectKey, SocketLabel};
use bytemuck::Zeroable;

use crate::decide::add;

/// Notes what was decided, unless somebody else does so right now.
#[inline(always)]
pub fn write(label: &mut SocketLabel, key: &ConnectKey, not_after: u64) {
    let (writers, version) = counts(label);
    if add(writers, 1) != 0 {
        return;
    }
    // Odd while it is being written. The additions are full barriers. The time goes first and comes back last: the kernel may
    // clone the label for an accepted socket in the middle of this, and such a ticket must be worth nothing.
    add(version, 1);
    // SAFETY: fields of the live label, written here alone: `writers` was 0. Those who came in between have left.
    unsafe {
        core::ptr::write_volatile(&raw mut label.ticket.not_after, 0);
        add(version, 0);
        core::ptr::write_volatile(&raw mut label.ticket.key, *key);
        add(version, 0);
        core::ptr::write_volatile(&raw mut label.ticket.not_after, not_after);
        add(version, 1);
        core::ptr::write_volatile(writers, 0);
    }
}

/// Fills `key` with what was decided last, and returns until when that holds. The key is zero if a ticket is being written
/// right now, or there is none.
#[inline(always)]
pub fn read(label: &mut SocketLabel, key: &mut ConnectKey) -> u64 {
    let (writers, version) = counts(label);
    // Adding nothing is a full barrier too.
    let before = add(version, 0);
    // SAFETY: fields of the live label; what a writer changes meanwhile is not used.
    let (busy, not_after) = unsafe {
        *key = core::ptr::read_volatile(&raw const label.ticket.key);
        (core::ptr::read_volatile(writers), core::ptr::read_volatile(&raw const label.ticket.not_after))
    };
    if busy != 0 || before & 1 != 0 || add(version, 0) != before {
        *key = ConnectKey::zeroed();
    }
    not_after
}

/// Forgets what was decided: the socket turns to something else.
#[inline(always)]
pub fn clear(label: &mut SocketLabel) {
    write(label, &ConnectKey::zeroed(), 0);
}

#[inline(always)]
fn counts(label: &mut SocketLabel) -> (*mut i64, *mut i64) {
    ((&raw mut label.writers).cast(), (&raw mut label.version).cast())
}
