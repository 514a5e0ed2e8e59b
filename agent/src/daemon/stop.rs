//! Going down: no agent goes on unenforced.

use std::time::{Duration, Instant};

use agent_common::maps::{SLOT_DAEMON, Settings};
use agent_common::{Mode, TaskStatus};
use jiff::Timestamp;

use super::protect::chain;
use super::start;
use super::state::Daemon;
use super::{DaemonError, Loop};
use crate::process::{kill_verified, snapshot};
use crate::record::{DaemonStopping, Event};

/// How long the processes of enforced tasks may take to die.
const LIMIT: Duration = Duration::from_secs(5);
/// How long before they may no longer fork.
const PATIENCE: Duration = Duration::from_millis(200);

impl Loop {
    /// Ends tasks and their processes, the API, the threads, and with the programs everything in the kernel.
    pub(super) async fn shut_down(mut self, why: Result<&'static str, DaemonError>) -> Result<(), DaemonError> {
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
        let reason = why.as_ref().map_or_else(|error| chain(error), ToString::to_string);
        self.daemon.recorder.record(Timestamp::now(), Event::DaemonStopping(DaemonStopping { why: reason }));
        drop(self.stop_server.take());
        if !self.server.is_finished() {
            let _ = self.server.await;
        }
        start::stop(&self.daemon.shared, self.threads);
        self.daemon.end_all(&mut self.records);
        let Daemon { recorder, kernel, .. } = self.daemon;
        let unwritten = recorder.close();
        if unwritten > 0 {
            tracing::error!(unwritten, "records could not be written");
        }
        drop(kernel);
        why.map(drop)
    }
}

impl Daemon {
    /// Once the programs are detached nothing holds a process back, so those of enforcing tasks are killed before.
    fn end_all(&mut self, records: &mut tokio::io::unix::AsyncFd<crate::kernel::Ring>) {
        let started = Instant::now();
        while self.kill_enforced() > 0 && started.elapsed() < LIMIT {
            if started.elapsed() > PATIENCE {
                self.forbid_forks();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut events = Vec::new();
        while records.get_mut().drain(4096, |event| events.push(event)) > 0 {}
        events.into_iter().flatten().for_each(|event| self.kernel_event(event));
        self.tell_losses();
        let active: Vec<(u32, u32)> = self.table.active().map(|task| (task.slot, task.epoch)).collect();
        for (slot, epoch) in active {
            self.finish(slot, epoch, TaskStatus::Ended, "the daemon stops");
        }
    }

    /// For processes that are gone into a child whenever they are to be killed: from here on no marked process gets one.
    fn forbid_forks(&mut self) {
        let settings = Settings { max_marks: 0, ..self.maps.settings.get(0) };
        if let Err(error) = self.maps.settings.put(0, settings) {
            tracing::error!("{}", chain(&error));
        }
    }

    /// Kills what is left and returns how many it was.
    fn kill_enforced(&self) -> usize {
        let enforced = |tgid: &u32| {
            self.maps.processes.get(*tgid).filter(|mark| mark.slot != SLOT_DAEMON).is_some_and(|mark| {
                self.table.by_mark(mark.slot, mark.epoch).is_none_or(|task| task.mode == Mode::Enforce)
            })
        };
        let marked: Vec<u32> = self.maps.processes.keys().into_iter().filter(enforced).collect();
        for tgid in &marked {
            let killed = snapshot(*tgid).map(|facts| kill_verified(*tgid, facts.start));
            if let Ok(Err(error)) = killed {
                tracing::error!("{}", chain(&error));
            }
        }
        marked.len()
    }
}
