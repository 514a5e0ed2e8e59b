//! Going down: what is pinned goes on enforcing; where nothing is, no agent goes on unenforced.

use agent_common::{Mode, TaskStatus};
use jiff::Timestamp;

use super::killing::kill_all;
use super::protect::chain;
use super::state::Daemon;
use super::{DaemonError, Loop};
use crate::record::{DaemonStopping, Event};

impl Loop {
    /// Ends the API, the threads and, unless they are pinned, tasks with their processes and everything in the kernel.
    pub(super) async fn shut_down(mut self, why: Result<&'static str, DaemonError>) -> Result<(), DaemonError> {
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
        let reason = why.as_ref().map_or_else(|error| chain(error), ToString::to_string);
        let stays_enforced = self.daemon.config.pin_dir.is_some();
        let stopping = DaemonStopping { why: reason, stays_enforced };
        self.daemon.recorder.record(Timestamp::now(), Event::DaemonStopping(stopping));
        drop(self.stop_server.take());
        if !self.server.is_finished() {
            let _ = self.server.await;
        }
        drop(self.crew);
        if !stays_enforced {
            self.daemon.kill_enforced();
        }
        self.daemon.drain(&mut self.records);
        if !stays_enforced {
            self.daemon.end_tasks();
        }
        while !self.daemon.unwritten.is_empty() {
            self.daemon.keep_counts();
        }
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
    fn kill_enforced(&mut self) {
        let table = &self.table;
        kill_all(&self.maps.processes, &mut self.maps.settings, |mark| {
            table.by_mark(mark.slot, mark.epoch).is_none_or(|task| task.mode == Mode::Enforce)
        });
    }

    /// What has happened so far is recorded.
    fn drain(&mut self, records: &mut tokio::io::unix::AsyncFd<crate::kernel::Ring>) {
        let mut events = Vec::new();
        while records.get_mut().drain(4096, |event| events.push(event)) > 0 {}
        events.into_iter().flatten().for_each(|event| self.kernel_event(event));
        self.tell_losses();
    }

    fn end_tasks(&mut self) {
        let active: Vec<(u32, u32)> = self.table.active().map(|task| (task.slot, task.epoch)).collect();
        for (slot, epoch) in active {
            self.finish(slot, epoch, TaskStatus::Ended, "the daemon stops");
        }
    }
}
