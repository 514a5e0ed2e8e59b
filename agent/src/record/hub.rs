//! Numbers records, writes each as text once and hands the line to the sinks and to whoever watches.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::broadcast;

use super::sink::{OpenError, Sink};
use super::{Cause, Event, Loss, Record};

/// The one place where records become lines.
pub struct Hub {
    sequence: u64,
    sinks: Vec<Sink>,
    watchers: broadcast::Sender<Arc<str>>,
}

impl Hub {
    /// Lines go to `sinks` and to watchers that may lag `backlog` (at least 1) lines behind.
    pub fn new(sinks: Vec<Sink>, backlog: usize) -> Self {
        Self { sequence: 0, sinks, watchers: broadcast::Sender::new(backlog.max(1)) }
    }

    /// Where to subscribe to lines from now on. A subscriber that lags is told by the channel how many it missed, and tells
    /// its reader with [`missed_line`].
    pub fn watchers(&self) -> broadcast::Sender<Arc<str>> {
        self.watchers.clone()
    }

    /// Hands `event` on and returns its sequence.
    pub fn emit(&mut self, time: Timestamp, event: Event) -> u64 {
        self.sequence += 1;
        let line = line(&Record { time, sequence: self.sequence, event });
        for sink in &mut self.sinks {
            sink.push(&line);
        }
        // Nobody watching is no failure.
        let _ = self.watchers.send(line);
        self.sequence
    }

    /// Writes what waits in the sinks, and a loss record for what they had to drop.
    /// The latter goes out with the next flush.
    pub fn flush(&mut self) {
        let lost: u64 = self.sinks.iter_mut().map(Sink::flush).sum();
        if lost > 0 {
            self.emit(Timestamp::now(), Event::Loss(Loss { cause: Cause::WriteFailed, count: lost }));
        }
    }

    /// Opens the files by name again.
    ///
    /// # Errors
    /// One [`OpenError`] for each file that could not be opened; its lines go on into the old one.
    pub fn reopen(&mut self) -> Vec<OpenError> {
        self.sinks.iter_mut().filter_map(|sink| sink.reopen().err()).collect()
    }
}

/// The line that tells a watcher how many lines it was too slow for. Its sequence is 0: it is in this stream only.
pub fn missed_line(missed: u64) -> Arc<str> {
    let event = Event::Loss(Loss { cause: Cause::WatcherLagged, count: missed });
    line(&Record { time: Timestamp::now(), sequence: 0, event })
}

fn line(record: &Record) -> Arc<str> {
    // Records have string keys and no foreign `Serialize`, so this does not fail; if it did, the line would say so.
    let text = serde_json::to_string(record);
    text.unwrap_or_else(|error| serde_json::json!({ "unwritable": error.to_string() }).to_string()).into()
}
