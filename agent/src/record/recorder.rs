//! Coalescer and hub together: what the daemon's loop holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::broadcast;

use super::coalesce::Coalescer;
use super::hub::{Hub, Writing};
use super::sink::{OpenError, Sink};
use super::{Cause, Decision, Event, Loss};

/// How long repeats of a decision are counted before the count is written.
const WINDOW: Duration = Duration::from_secs(1);
/// Kinds of decisions that are counted at once; each takes under a KiB.
const MAX_KEYS: usize = 8192;
/// Lines that a watcher may lag behind.
const BACKLOG: usize = 4096;

/// Takes what happened and sees to it that it is written. Owned by one loop; nothing in it waits, except a sink's write.
pub struct Recorder {
    coalescer: Coalescer,
    hub: Hub,
    failing: Option<String>,
}

impl Recorder {
    /// Writes to `sinks` and to watchers.
    pub fn new(sinks: Vec<Sink>) -> Self {
        Self { coalescer: Coalescer::new(WINDOW, MAX_KEYS), hub: Hub::new(sinks, BACKLOG), failing: None }
    }

    /// Where to subscribe to lines from now on; see [`Hub::watchers`].
    pub fn watchers(&self) -> broadcast::Sender<Arc<str>> {
        self.hub.watchers()
    }

    /// Records what happened at `time`. Decisions that repeat are counted; see [`Coalescer`].
    pub fn record(&mut self, time: Timestamp, event: Event) {
        match event {
            Event::Decision(decision) => self.coalescer.offer(Instant::now(), time, decision, writer(&mut self.hub)),
            other => {
                self.hub.emit(time, other);
            }
        }
    }

    /// Records that `count` things were lost just now; nothing if `count` is 0.
    pub fn loss(&mut self, cause: Cause, count: u64) {
        if count > 0 {
            self.hub.emit(Timestamp::now(), Event::Loss(Loss { cause, count }));
        }
    }

    /// To be called once a turn of the loop: writes the counts that are due at `now` and what waits in the sinks.
    pub fn tick(&mut self, now: Instant) -> Writing {
        self.coalescer.flush_due(now, writer(&mut self.hub));
        let writing = self.hub.flush();
        self.failing.clone_from(&writing.failing);
        writing
    }

    /// Where and why the last [`Recorder::tick`] could not write.
    pub fn failing(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    /// When [`Recorder::tick`] will have counts to write, if nothing else happens.
    pub fn next_due(&self) -> Option<Instant> {
        self.coalescer.next_due()
    }

    /// Opens the record files by name again (SIGHUP, after logrotate).
    ///
    /// Returns one [`OpenError`] for each file that could not be opened; its lines go on into the old one.
    pub fn reopen(&mut self) -> Vec<OpenError> {
        self.hub.reopen()
    }

    /// Writes everything that is left, counts included. Returns how many lines could not be written, all sinks together;
    /// they are lost, and the daemon's log is the last place that can tell.
    pub fn close(mut self) -> u64 {
        self.coalescer.flush_all(writer(&mut self.hub));
        // The second time is for the loss record that the first may have made.
        self.hub.flush();
        self.hub.flush();
        self.hub.unwritten()
    }
}

fn writer(hub: &mut Hub) -> impl FnMut(Timestamp, Box<Decision>) -> u64 + '_ {
    |time, decision| hub.emit(time, Event::Decision(decision))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{decision, over, time};
    use super::super::{Record, missed_line};
    use super::*;

    fn read(path: &std::path::Path) -> Vec<Record> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn lines_are_numbered_and_repeats_are_written_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        let mut recorder = Recorder::new(vec![Sink::file(&path).unwrap()]);
        for _ in 0..100 {
            recorder.record(time(), Event::Decision(Box::new(decision())));
        }
        recorder.record(time(), Event::TaskEnded(over()));
        recorder.loss(Cause::Undecodable, 0);
        assert_eq!(recorder.close(), 0);
        let lines = read(&path);
        let numbers: Vec<u64> = lines.iter().map(|line| line.sequence).collect();
        assert_eq!(numbers, (1..=lines.len() as u64).collect::<Vec<u64>>());
        let counted = lines.iter().filter_map(|line| match &line.event {
            Event::Decision(decision) => Some(decision.count),
            _ => None,
        });
        assert_eq!(counted.sum::<u64>(), 100);
        assert!(lines.len() < 100 && lines.iter().any(|line| matches!(line.event, Event::TaskEnded(_))));
    }

    #[test]
    fn a_tick_writes_what_is_due() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        let mut recorder = Recorder::new(vec![Sink::file(&path).unwrap()]);
        recorder.record(time(), Event::Decision(Box::new(decision())));
        recorder.record(time(), Event::Decision(Box::new(decision())));
        let due = recorder.next_due().unwrap();
        recorder.tick(due);
        assert_eq!(recorder.next_due(), None);
        assert_eq!(read(&path).len(), 2);
    }

    #[test]
    fn watchers_get_the_same_lines_and_are_told_what_they_missed() {
        let mut hub = Hub::new(Vec::new(), 2);
        let mut watcher = hub.watchers().subscribe();
        for _ in 0..5 {
            hub.emit(time(), Event::Loss(Loss { cause: Cause::Undecodable, count: 1 }));
        }
        let Err(broadcast::error::TryRecvError::Lagged(missed)) = watcher.try_recv() else { panic!("it kept up") };
        assert_eq!(missed, 3);
        let told: Record = serde_json::from_str(&missed_line(missed)).unwrap();
        assert_eq!(told.event, Event::Loss(Loss { cause: Cause::WatcherLagged, count: 3 }));
        let next: Record = serde_json::from_str(&watcher.try_recv().unwrap()).unwrap();
        assert_eq!(next.sequence, 4);
    }

    #[test]
    fn what_cannot_be_written_at_the_end_is_told() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut recorder = Recorder::new(vec![Sink::stream(Box::new(full))]);
        recorder.record(time(), Event::TaskEnded(over()));
        recorder.record(time(), Event::TaskEnded(over()));
        recorder.tick(Instant::now());
        assert_eq!(recorder.close(), 2);
    }

    #[test]
    fn a_full_disk_is_told_while_it_lasts_and_its_loss_once() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut sink = Sink::stream(Box::new(full));
        sink.push(&"x".repeat(5 << 20));
        let mut recorder = Recorder::new(vec![sink]);
        recorder.record(time(), Event::TaskEnded(over()));
        let writing = recorder.tick(Instant::now());
        assert_eq!(writing.lost, 1);
        let failing = "standard output: No space left on device (os error 28)";
        assert_eq!(writing.failing.as_deref(), Some(failing));
        let again = recorder.tick(Instant::now());
        assert_eq!(again, Writing { lost: 0, ..writing }, "a loss is counted once, and the failure is still there");
        assert_eq!(recorder.failing(), Some(failing));
    }

    #[test]
    fn a_broken_pipe_is_told_and_the_file_is_written_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(theirs);
        let mut recorder = Recorder::new(vec![Sink::file(&path).unwrap(), Sink::stream(Box::new(ours))]);
        recorder.record(time(), Event::TaskEnded(over()));
        let failing = recorder.tick(Instant::now()).failing;
        assert_eq!(failing.as_deref(), Some("standard output: Broken pipe (os error 32)"));
        assert_eq!(read(&path).len(), 1);
    }

    #[test]
    fn what_a_sink_dropped_is_recorded_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        let mut sink = Sink::file(&path).unwrap();
        sink.push(&"x".repeat(5 << 20));
        Recorder::new(vec![sink]).close();
        let [Record { event: Event::Loss(loss), .. }] = &read(&path)[..] else { panic!("one loss record") };
        assert_eq!(*loss, Loss { cause: Cause::WriteFailed, count: 1 });
    }
}
