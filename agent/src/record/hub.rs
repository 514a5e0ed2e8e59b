//! Numbers records, writes each as text once and hands the line to the sinks and to whoever watches.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::broadcast;

use super::sink::{OpenError, Sink};
use super::{Cause, Event, Loss, Record};

/// How writing goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writing {
    /// Lines lost since the last flush, all sinks together. A loss record tells of them once writing works again.
    pub lost: u64,
    /// Where and why writing fails, for the first sink that does.
    pub failing: Option<String>,
}

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
    /// The latter goes out with the next flush, and not before writing works again.
    pub fn flush(&mut self) -> Writing {
        let mut writing = Writing::default();
        let mut recovered = 0;
        for flushed in self.sinks.iter_mut().map(Sink::flush) {
            recovered += flushed.recovered;
            writing.lost += flushed.fresh;
            writing.failing = writing.failing.or(flushed.failing);
        }
        if recovered > 0 {
            self.emit(Timestamp::now(), Event::Loss(Loss { cause: Cause::WriteFailed, count: recovered }));
        }
        writing
    }

    /// Lines that the sinks still hold or had to drop untold.
    pub(super) fn unwritten(&self) -> u64 {
        self.sinks.iter().map(Sink::unwritten).sum()
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
    let text = text.unwrap_or_else(|error| serde_json::json!({ "unwritable": error.to_string() }).to_string());
    if text.contains(deceives) { escaped(&text).into() } else { text.into() }
}

/// What JSON lets through and a terminal obeys or hides: C1 controls, DEL, marks of direction and what has no width.
/// Agents choose their names and paths, and people `tail` record files.
fn deceives(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The same JSON. All of these lie in strings, where an escape means the character.
fn escaped(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len() + 16), |mut text, c| {
        if deceives(c) {
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::super::ProcessEvent;
    use super::super::testing::{process, task, time};
    use super::*;

    #[test]
    fn a_name_cannot_command_the_terminal_that_shows_the_file() {
        let comm = "a\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\n\"é";
        let process = super::super::Process { comm: comm.into(), ..process() };
        let event = Event::ProcessExit(Box::new(ProcessEvent { task: task(), process, remaining: None }));
        let text = line(&Record { time: time(), sequence: 1, event });
        assert!(!text.contains(deceives) && text.contains("é"), "{text}");
        let Event::ProcessExit(read) = serde_json::from_str::<Record>(&text).unwrap().event else { panic!("{text}") };
        assert_eq!(&*read.process.comm, comm);
    }
}
