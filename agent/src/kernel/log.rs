//! The programs' own debug lines (aya-log), for developers: never the records, and off unless asked for.
//!
//! The object contains them only if it was built with `cargo xtask build --ebpf-log`.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, poll};

/// How long the thread waits before it looks whether it is to stop, milliseconds.
const TURN: u16 = 200;

/// Prints the programs' lines through `tracing` until `stop` is set. Without lines in the object it says so.
pub(super) fn follow(ebpf: &mut Ebpf, stop: Arc<AtomicBool>) {
    // It fails where a logger is set already, which then is the one that is wanted.
    let _ = tracing_log::LogTracer::init();
    let mut logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "the programs have no debug lines; build with `cargo xtask build --ebpf-log`");
            return;
        }
    };
    let run = move || {
        while !stop.load(Ordering::Relaxed) {
            let _ = poll(&mut [PollFd::new(logger.as_fd(), PollFlags::POLLIN)], TURN);
            logger.flush();
        }
    };
    if let Err(error) = thread::Builder::new().name("kernel-log".into()).spawn(run) {
        tracing::warn!(%error, "the programs' debug lines are not shown");
    }
}
