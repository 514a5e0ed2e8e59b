//! The watch: a thread that lets the canary try again every second, and says what changed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::attempt::{Attempt, Outcome};
use super::canary::Outcomes;
use super::canary_task::Stage;
use super::protect::chain;
use crate::api::Reply;
use crate::api::types::DoctorView;
use crate::domain::clock::boot_now_ns;

/// How often the canary tries.
const PERIOD: Duration = Duration::from_secs(1);
/// How soon it must have answered.
const LIMIT: Duration = Duration::from_secs(2);
/// The same where somebody asked for everything, new processes included.
const PATIENCE: Duration = Duration::from_secs(8);
/// Turns of the loop come at least this often, for the end.
const TURN: Duration = Duration::from_millis(100);
/// Rounds that may wait for the main loop; what finds no room comes with the next.
const ROUNDS: usize = 4;

/// Who waits for a round of everything.
pub(super) type Asker = Reply<DoctorView>;

/// What a round has shown.
pub(super) struct Round {
    /// The last outcome of each attempt.
    pub(super) outcomes: Outcomes,
    /// Who asked for it, if anybody did.
    pub(super) asker: Option<Asker>,
}

/// What the thread counts, for who asks how it is.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) rounds: AtomicU64,
    pub(super) restarts: AtomicU64,
    /// End of the last round, boot clock, nanoseconds.
    pub(super) last: AtomicU64,
    /// How long it took, microseconds.
    pub(super) took: AtomicU64,
}

/// The main loop's side.
pub(super) struct Watch {
    pub(super) rounds: mpsc::Receiver<Round>,
    pub(super) asks: Sender<Asker>,
    pub(super) counts: Arc<Counts>,
}

/// Starts the thread.
///
/// # Errors
/// If the system has no thread left.
pub(super) fn start(stage: Stage, proven: Outcomes, stop: Arc<AtomicBool>) -> io::Result<(Watch, JoinHandle<()>)> {
    let (send, rounds) = mpsc::channel(ROUNDS);
    let (asks, asked) = channel();
    let counts = Arc::new(Counts::default());
    counts.last.store(boot_now_ns(), Ordering::Relaxed);
    let every_second = stage.attempts().iter().copied().filter(|attempt| attempt.is_cheap()).collect();
    let watcher =
        Watcher { stage, every_second, told: proven.clone(), known: proven, send, counts: Arc::clone(&counts) };
    let thread = thread::Builder::new().name("canary".into()).spawn(move || watcher.run(&asked, &stop))?;
    Ok((Watch { rounds, asks, counts }, thread))
}

struct Watcher {
    stage: Stage,
    every_second: Vec<Attempt>,
    known: Outcomes,
    /// What the main loop was told last.
    told: Outcomes,
    send: mpsc::Sender<Round>,
    counts: Arc<Counts>,
}

impl Watcher {
    fn run(mut self, asked: &Receiver<Asker>, stop: &AtomicBool) {
        let mut due = Instant::now() + PERIOD;
        while !stop.load(Ordering::Relaxed) {
            match asked.recv_timeout(due.saturating_duration_since(Instant::now()).min(TURN)) {
                Ok(asker) => self.round(Some(asker)),
                Err(RecvTimeoutError::Timeout) if Instant::now() < due => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.round(None);
                    due = Instant::now() + PERIOD;
                }
                // The main loop has gone, and takes this thread along.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(TURN),
            }
        }
    }

    fn round(&mut self, asker: Option<Asker>) {
        let began = Instant::now();
        let (attempts, limit) = match &asker {
            Some(_) => (self.stage.attempts().to_vec(), PATIENCE),
            None => (self.every_second.clone(), LIMIT),
        };
        match self.stage.run(&attempts, limit) {
            Ok(outcomes) => {
                self.known.extend(outcomes);
            }
            Err(error) => {
                let silent = Outcome::Failed(chain(&error));
                self.known.extend(attempts.into_iter().map(|attempt| (attempt, silent.clone())));
                self.counts.restarts.fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.known.values().any(|outcome| *outcome == Outcome::Through) {
            self.stage.dismiss();
        }
        self.counts.rounds.fetch_add(1, Ordering::Relaxed);
        self.counts.last.store(boot_now_ns(), Ordering::Relaxed);
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counts.took.store(took, Ordering::Relaxed);
        self.tell(asker);
    }

    fn tell(&mut self, asker: Option<Asker>) {
        if asker.is_none() && self.known == self.told {
            return;
        }
        let outcomes = self.known.clone();
        if self.send.try_send(Round { outcomes, asker }).is_ok() {
            self.told = self.known.clone();
        }
    }
}
