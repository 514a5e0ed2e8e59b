//! Writing to the rings. Entries are filled in place: a program's stack has 512 bytes. Losing a record is counted and
//! never changes a verdict.

use agent_common::event::{Actor, Decided, KIND_DECIDED, Object};
use agent_common::maps::SLOT_CANARY;
use agent_common::{Action, Counter, Effect, Reason, Source};
use aya_ebpf::maps::ring_buf::RingBufEntry;

use crate::maps::{RECORDS, count};

/// Something that can be acted upon, and says into a ring entry what it is.
pub trait Describe {
    /// Fills in what applies; the rest is 0 already.
    fn describe(&self, object: &mut Object);
}

/// Who acts: the calling process, or whoever made the socket that a packet leaves from.
pub trait Who {
    /// Fills in every field.
    fn describe(&self, actor: &mut Actor);
}

/// What came of a question.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// With the task's mode applied.
    pub effect: Effect,
    pub reason: Reason,
    pub source: Source,
    pub detail: u32,
    pub generation: u32,
    /// Nanoseconds.
    pub latency: u32,
    /// Until when packets may follow without another look, boot clock, nanoseconds; 0 asks for each.
    pub flow_not_after: u64,
}

/// An outcome without a verdict behind it.
#[inline(always)]
pub const fn structural(effect: Effect, reason: Reason) -> Outcome {
    let source = Source::Structural;
    Outcome { effect, reason, source, detail: 0, generation: 0, latency: 0, flow_not_after: 0 }
}

/// A ring entry, all zero, to be filled in.
#[inline(always)]
pub fn zeroed<T: bytemuck::Zeroable>(entry: &mut RingBufEntry<T>) -> &mut T {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    let words = entry.as_mut_ptr().cast::<u64>();
    // Volatile, or the compiler makes it a call of its `memset`, which goes byte by byte and is verified so on every path:
    // more than 6.1 takes.
    // SAFETY: the entry is writable memory of `T`'s size, aligned to 8, and zeroes are a value of `T`.
    unsafe {
        for at in 0..size_of::<T>() / 8 {
            core::ptr::write_volatile(words.add(at), 0);
        }
        &mut *entry.as_mut_ptr()
    }
}

/// Records a decision and counts it. What the daemon's canary is refused every second is nobody's decision.
#[inline(always)]
pub fn decided(slot: u32, action: Action, outcome: &Outcome, time: u64, who: &impl Who, what: &impl Describe) {
    if slot == SLOT_CANARY {
        return;
    }
    count(match outcome.effect {
        Effect::Allow => Counter::Allowed,
        Effect::Deny => Counter::Denied,
        Effect::WouldDeny => Counter::WouldDenied,
    });
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        (),
        "action {} effect {} reason {}",
        action.code(),
        outcome.effect.code(),
        outcome.reason.code()
    );
    let Some(mut entry) = RECORDS.reserve_untyped::<Decided>(0) else {
        count(match outcome.effect {
            Effect::Allow => Counter::RecordLostAllow,
            Effect::Deny => Counter::RecordLostDeny,
            Effect::WouldDeny => Counter::RecordLostWouldDeny,
        });
        return;
    };
    let event = zeroed(&mut entry);
    event.kind = KIND_DECIDED;
    event.action = action.code();
    event.effect = outcome.effect.code();
    event.reason = outcome.reason.code();
    event.source = outcome.source.code();
    event.time = time;
    event.latency = outcome.latency;
    event.detail = outcome.detail;
    event.generation = outcome.generation;
    who.describe(&mut event.actor);
    what.describe(&mut event.object);
    entry.submit(0);
}
