//! What the kernel programs and the daemon say to each other: map keys, map values and ring-buffer events.
//!
//! Everything here is `repr(C)` with fixed-width fields and named padding, so that both sides see the same bytes
//! whatever built them. No `bool`, `usize` or enum crosses; codes are decoded into enums, and decoding is total.
#![no_std]

/// What the maps mean beyond their sizes. To be counted up with any change of a key, a value or an event that an older
/// daemon or its programs would read otherwise: sets of programs share their maps only under the same number.
pub const ABI_VERSION: u32 = 1;

pub mod codes;
pub mod event;
pub mod maps;

pub use codes::{Action, Counter, DaemonLoss, Effect, Facility, Mode, Reason, Source, TaskStatus};
pub use event::{DecodeError, Event};
