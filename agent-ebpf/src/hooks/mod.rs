//! One file per thing guarded. Each hook is thin: find the mark, name the object, let `decide` answer.

mod dns;
mod entry;
mod facility;
mod file;
mod listen;
pub mod net;
mod options;
mod passed;
mod process;
mod socket;
mod special;
mod sysctl;
mod tamper;
mod unix;
mod wire;
