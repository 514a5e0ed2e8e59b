//! Which set of programs acts. While a new daemon takes over from one that is gone, both its programs and the old ones are
//! attached; one store to `ACTIVE` hands over.
//!
//! No event may fall between them. Programs of cgroups and tracepoints run in the order in which they were attached, so
//! the old one looks first: if it finds itself replaced, the new one, which looks later, finds itself in force. BPF LSM
//! programs run in the opposite order (`kernel/bpf/trampoline.c: __bpf_trampoline_link_prog` adds at the head), so there an
//! old one goes on until it is detached.

use aya_ebpf::Global;

use crate::maps::ACTIVE;

/// This set's number; set by the loader. The next set's is higher.
#[unsafe(no_mangle)]
pub static INSTANCE: Global<u32> = Global::new(u32::MAX);

/// Whether this is the set that acts: for programs of cgroups and tracepoints.
#[inline(always)]
pub fn acts() -> bool {
    active() == INSTANCE.load()
}

/// The same for BPF LSM programs, an old set included.
#[inline(always)]
pub fn acts_still() -> bool {
    INSTANCE.load() <= active()
}

#[inline(always)]
fn active() -> u32 {
    // SAFETY: a live map value; read anew each time, since another set may be put in force at any moment.
    ACTIVE.get(0).map_or(0, |active| unsafe { core::ptr::read_volatile(active) })
}
