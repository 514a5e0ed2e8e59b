//! The daemon's threads: who they are, and their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Threads that look at one flag. They are told to end, and waited for, when this goes.
pub(super) struct Crew {
    stop: Arc<AtomicBool>,
    threads: Vec<(&'static str, JoinHandle<()>)>,
}

impl Crew {
    /// Nobody yet. `stop` is the flag.
    pub(super) fn new(stop: Arc<AtomicBool>) -> Self {
        Self { stop, threads: Vec::new() }
    }

    /// Takes on threads of the same name.
    pub(super) fn join(&mut self, name: &'static str, threads: impl IntoIterator<Item = JoinHandle<()>>) {
        self.threads.extend(threads.into_iter().map(|thread| (name, thread)));
    }

    /// One that has ended by itself, which none should.
    pub(super) fn ended(&self) -> Option<&'static str> {
        self.threads.iter().find_map(|(name, thread)| thread.is_finished().then_some(*name))
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (name, thread) in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(name, "a thread panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn all_have_ended_when_it_goes() {
        let stop = Arc::<AtomicBool>::default();
        let mut crew = Crew::new(Arc::clone(&stop));
        let waits = Arc::clone(&stop);
        let seen = thread::spawn(move || {
            while !waits.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        });
        crew.join("waits", [seen]);
        assert_eq!(crew.ended(), None);
        drop(crew);
        assert_eq!(Arc::strong_count(&stop), 1, "a thread still has the flag");
    }

    #[test]
    fn one_that_ends_by_itself_is_named() {
        let mut crew = Crew::new(Arc::default());
        let (done, wait) = std::sync::mpsc::channel::<()>();
        crew.join("short", [thread::spawn(move || drop(done))]);
        assert!(wait.recv().is_err());
        while crew.ended().is_none() {
            thread::yield_now();
        }
        assert_eq!(crew.ended(), Some("short"));
    }
}
