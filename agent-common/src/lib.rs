//! What the kernel programs and the daemon say to each other: map keys, map values and ring-buffer events.
//!
//! Everything here is `repr(C)` with fixed-width fields and named padding, so that both sides see the same bytes
//! whatever built them. No `bool`, `usize` or enum crosses; codes are decoded into enums, and decoding is total.
#![no_std]

pub mod codes;
pub mod event;
pub mod maps;

pub use codes::{Action, Counter, DaemonLoss, Effect, Facility, Mode, Reason, Source, TaskStatus};
pub use event::{DecodeError, Event};
