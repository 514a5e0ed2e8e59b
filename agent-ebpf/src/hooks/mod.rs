//! One file per thing guarded. Each hook is thin: find the mark, name the object, let `decide` answer.

mod file;
mod listen;
pub mod net;
mod process;
mod socket;
mod unix;
mod wire;
