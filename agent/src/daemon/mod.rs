//! The closed list of inputs and the one loop that owns all state.

mod attempt;
mod canary;
mod canary_task;
mod carry;
mod coverage;
mod crew;
mod cuts;
mod detach;
mod doctor;
mod enclosure;
mod error;
mod flows;
mod inotify;
mod keeper;
mod killing;
mod named;
mod namespaces;
mod over;
mod protect;
mod records;
mod reload;
mod resolver;
mod snapshot;
mod sources;
mod start;
mod state;
mod status;
mod stop;
mod takeover;
mod threads;
mod unix;
mod watch;

use std::fs::File;
use std::time::Duration;

use agent_common::{DecodeError, Event as KernelEvent};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};

pub use canary::{child as canary_child, main as canary_main};
pub use detach::{DetachFlags, Detached, detach};
pub use error::{DaemonError, HELP};

use self::crew::Crew;
use self::flows::FlowNews;
use self::reload::{Rescan, Watcher};
use self::sources::Sources;
use self::start::Started;
use self::state::Daemon;
use self::threads::Note;
use self::watch::Round;
use crate::api::{self, Admits, Command, ErrorBody, Records};
use crate::config::{Config, Flags};
use crate::kernel::Ring;
use crate::record::{Cause, missed_line};

/// How often deadlines, counts and losses are looked after.
const TICK: Duration = Duration::from_millis(100);
/// Ring items taken in one turn of the loop.
const BATCH: usize = 4096;
/// Commands that may wait.
const COMMANDS: usize = 64;

/// Everything that can happen to the daemon.
enum Input {
    /// The record ring has items.
    Kernel(Vec<Result<KernelEvent, DecodeError>>),
    /// A decision thread has something to record.
    Note(Note),
    /// The flow thread has found something.
    Flows(FlowNews),
    /// The API asks.
    Command(Command),
    /// A file of the configuration or a directory with secrets changed.
    Changed,
    /// The canary has seen something else than before, or was asked.
    Proven(Round),
    /// A scan for secrets is done.
    Scanned(Rescan),
    /// SIGHUP.
    Reload,
    /// Time passed.
    Tick,
    /// SIGTERM, SIGINT: the reason to stop.
    Stop(&'static str),
    /// A part without which the daemon cannot go on has ended.
    Ended(&'static str),
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// [`DaemonError`]; nothing is left attached.
pub fn run(flags: &Flags) -> Result<(), DaemonError> {
    if flags.check {
        return check(&Config::load(flags)?);
    }
    start::check_host()?;
    let config = Config::load(flags)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| DaemonError::System("make the event loop", error))?;
    let result = runtime.block_on(serve(config, flags));
    // Without waiting: a scan may hang on a file system that does not answer.
    runtime.shutdown_background();
    result
}

/// Says that there is nothing to say, but for warnings.
fn check(config: &Config) -> Result<(), DaemonError> {
    let sources = Sources::read(config)?;
    sources.warn();
    tracing::info!(policies = sources.policies.number_of_policies(), "no faults");
    Ok(())
}

async fn serve(config: Config, flags: &Flags) -> Result<(), DaemonError> {
    let sources = Sources::read(&config)?;
    sources.warn();
    let lock = start::lock(&config)?;
    let socket = config.runtime_dir.join("writd.sock");
    let listener = api::bind(&socket)?;
    let result = match start::start(config, flags, sources, lock) {
        Ok(started) => Loop::new(started, listener)?.run().await,
        Err(error) => Err(error),
    };
    let _ = std::fs::remove_file(&socket);
    result
}

/// The state and everything that is listened to.
struct Loop {
    daemon: Daemon,
    records: AsyncFd<Ring>,
    notes: mpsc::Receiver<Note>,
    flow_news: mpsc::Receiver<FlowNews>,
    commands: mpsc::Receiver<Command>,
    watcher: Watcher,
    server: JoinHandle<std::io::Result<()>>,
    stop_server: Option<oneshot::Sender<()>>,
    tick: Interval,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    crew: Crew,
    _lock: File,
}

impl Loop {
    fn new(started: Started, listener: UnixListener) -> Result<Self, DaemonError> {
        let Started { daemon, records, notes, flow_news, crew, lock } = started;
        let failed = |what| move |error| DaemonError::System(what, error);
        // SAFETY: the ring owns its descriptor and keeps the same one for its whole life.
        let records = unsafe { AsyncFd::register(records) };
        let records = records.map_err(|error| failed("wait for the record ring")(error.into()))?;
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (stop_server, stopped) = oneshot::channel::<()>();
        let lines = Records { lines: daemon.recorder.watchers(), missed: missed_line };
        let maps = daemon.kernel.maps().map_err(|error| DaemonError::Kernel(error.into()))?;
        let admits: Admits = Box::new(move |peer| maps.processes.get(peer.pid).is_none());
        let server = tokio::spawn(api::serve(listener, sender, lines, admits, async { drop(stopped.await) }));
        let watcher = Watcher::new(&daemon.config, &daemon.protection);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let on = |kind| signal(kind).map_err(failed("listen for signals"));
        Ok(Self {
            daemon,
            records,
            notes,
            flow_news,
            commands,
            watcher,
            server,
            stop_server: Some(stop_server),
            tick,
            hangup: on(SignalKind::hangup())?,
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            crew,
            _lock: lock,
        })
    }

    async fn run(mut self) -> Result<(), DaemonError> {
        self.daemon.record_ready();
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
        let why = loop {
            let input = self.next().await;
            if let Some(why) = self.take(input) {
                break why;
            }
            self.daemon.write_records();
        };
        self.shut_down(why).await
    }

    async fn next(&mut self) -> Input {
        // In no fixed order: a flood of records must not keep commands and deadlines waiting.
        tokio::select! {
            _ = self.terminate.recv() => Input::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Input::Stop("SIGINT"),
            _ = self.hangup.recv() => Input::Reload,
            events = read_records(&mut self.records) => events.map_or(Input::Ended("the record ring"), Input::Kernel),
            Some(note) = self.notes.recv() => Input::Note(note),
            Some(news) = self.flow_news.recv() => Input::Flows(news),
            Some(command) = self.commands.recv() => Input::Command(command),
            seen = self.watcher.next() => seen.map_or(Input::Changed, Input::Scanned),
            Some(round) = self.daemon.watch.rounds.recv() => Input::Proven(round),
            _ = &mut self.server => Input::Ended("the API's server"),
            _ = self.tick.tick() => Input::Tick,
        }
    }

    /// Carries out one input. Returns why to stop, if so.
    fn take(&mut self, input: Input) -> Option<Result<&'static str, DaemonError>> {
        match input {
            Input::Kernel(events) => self.take_in(None, events),
            Input::Note(note) => self.take_in(Some(note), Vec::new()),
            Input::Flows(news) => self.daemon.flow_news(news),
            Input::Command(command) => self.command(command),
            Input::Proven(round) => self.daemon.proven(round),
            Input::Changed => self.watcher.note_change(),
            Input::Scanned(rescan) => self.scanned(rescan),
            Input::Reload => {
                self.daemon.reopen_records();
                let _ = self.reload();
            }
            Input::Tick => return self.tick(),
            Input::Stop(why) => return Some(Ok(why)),
            Input::Ended(what) => return Some(Err(DaemonError::Ended(what))),
        }
        None
    }

    /// What the kernel and the decision threads say comes by two ways: it is taken in by the time at which it happened, so
    /// that a process is known before its deeds and its deeds before its end.
    fn take_in(&mut self, note: Option<Note>, mut events: Vec<Result<KernelEvent, DecodeError>>) {
        let mut notes: Vec<Note> = note.into_iter().collect();
        while let Ok(note) = self.notes.try_recv() {
            notes.push(note);
        }
        if events.len() < BATCH {
            self.records.get_mut().drain(BATCH, |event| events.push(event));
        }
        notes.sort_by_key(|note| note.time);
        let mut notes = notes.into_iter().peekable();
        for event in events {
            let Ok(event) = event else {
                self.daemon.lost(Cause::Undecodable, 1);
                continue;
            };
            while let Some(note) = notes.next_if(|note| note.time <= event.time()) {
                self.daemon.noted(&note);
            }
            self.daemon.kernel_event(event);
        }
        notes.for_each(|note| self.daemon.noted(&note));
    }

    fn tick(&mut self) -> Option<Result<&'static str, DaemonError>> {
        // What has happened so far belongs to the tasks that the sweep may end.
        self.take_in(None, Vec::new());
        self.daemon.sweep();
        self.daemon.tell_losses();
        self.daemon.keep_counts();
        self.daemon.measure();
        self.daemon.watch_clock();
        self.daemon.refresh_unix_names();
        if self.watcher.configuration_changed() {
            let _ = self.reload();
        }
        self.watcher.scan_if_due(&self.daemon.secrets, &self.daemon.classes);
        self.crew.ended().map(|name| Err(DaemonError::Ended(name)))
    }

    /// Reads everything again; on any fault what is in force stays.
    fn reload(&mut self) -> Result<(), ErrorBody> {
        let result = self.daemon.reload();
        // Directories may have come, or been replaced.
        self.watcher.watch(&self.daemon.protection);
        self.watcher.scan_soon(result.is_ok());
        result
    }

    fn scanned(&mut self, rescan: Rescan) {
        if self.daemon.rescanned(rescan) {
            self.watcher.watch(&self.daemon.protection);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::OpenTask { request, peer, reply } => {
                let opened = self.daemon.open_task(request, peer);
                let answer = opened.as_ref().map(|task| self.daemon.task(task)).map_err(Clone::clone);
                if let (Err(_), Ok(task)) = (reply.send(answer), &opened) {
                    self.daemon.abandon(task, peer);
                }
            }
            Command::RevokeTask { id, reply } => {
                let revoked = self.daemon.revoke(&id);
                drop(reply.send(revoked.map(|task| self.daemon.task(&task))));
            }
            Command::ListTasks { reply } => drop(reply.send(Ok(self.daemon.tasks()))),
            Command::GetTask { id, reply } => {
                let found = self.daemon.table.find(&id).map_err(|error| state::not_found(&error));
                drop(reply.send(found.map(|task| self.daemon.task(task))));
            }
            Command::Status { reply } => drop(reply.send(Ok(self.daemon.status()))),
            Command::Doctor { reply } => self.daemon.examine(reply),
            Command::Labels { reply } => drop(reply.send(Ok(self.daemon.labels()))),
            Command::Whois { query, reply } => self.daemon.flows.who(query, reply),
            Command::Reload { reply } => {
                let reloaded = self.reload();
                drop(reply.send(reloaded.map(|()| self.daemon.reloaded())));
            }
        }
    }
}

/// Waits until the ring has items and takes a batch.
async fn read_records(ring: &mut AsyncFd<Ring>) -> std::io::Result<Vec<Result<KernelEvent, DecodeError>>> {
    let mut guard = ring.readable_mut().await?;
    let mut events = Vec::new();
    // Readiness is cleared only once the ring was seen empty: it is signalled for new items, not for those left.
    if guard.get_inner_mut().drain(BATCH, |event| events.push(event)) < BATCH {
        guard.clear_ready();
    }
    Ok(events)
}
