//! Bringing the daemon up: everything that can fail for want of something is tried before anything is attached, and
//! nothing is called ready before a canary was refused.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;

use agent_common::Counter;
use agent_common::maps::{MARK_RESERVE, MAX_PROCESSES, Settings};
use arc_swap::ArcSwap;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::DaemonError;
use super::canary::{Outcome, Targets};
use super::canary_task::{self, CANARY_LABEL};
use super::coverage::{Coverage, Evidence};
use super::flows::{self, FlowNews};
use super::protect::{Guarding, Protection, chain};
use super::snapshot::Snapshot;
use super::sources::Sources;
use super::state::{Daemon, Parts};
use super::takeover;
use super::threads::{self, Note, Shared};
use super::unix;
use crate::config::{Config, Flags, Require, Translation};
use crate::domain::clock::boot_now_ns;
use crate::kernel::lsm::{BpfLsm, bpf_lsm};
use crate::kernel::{Fanotify, Guard, Guards, Kernel, Layout, LoadError, Loaded, Maps, Pins, Ring, Setup, learn};
use crate::record::{self, DaemonStarted, Event, Recorder, Sink, Tier};
use crate::resource::ClassTable;
use crate::task::{Limits, TaskTable};

/// `PROC_PID_INIT_INO` (include/linux/proc_ns.h): the inode number of the initial pid namespace.
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;
/// Notes that may wait for the main loop.
const NOTES: usize = 1 << 14;

/// The object that `cargo xtask build` made, at the alignment that its parser wants.
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("WRIT_EBPF_OBJECT")));

#[repr(C, align(32))]
struct Aligned<T: ?Sized>(T);

/// A daemon that is ready, and what its loop listens to.
pub(super) struct Started {
    pub(super) daemon: Daemon,
    pub(super) records: Ring,
    pub(super) notes: mpsc::Receiver<Note>,
    pub(super) flow_news: mpsc::Receiver<FlowNews>,
    pub(super) threads: Vec<(&'static str, JoinHandle<()>)>,
    /// Held until the end: no second daemon.
    pub(super) lock: File,
}

/// Refuses what cannot run it.
///
/// # Errors
/// [`DaemonError::NotRoot`] or [`DaemonError::PidNamespace`].
pub(super) fn check_host() -> Result<(), DaemonError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DaemonError::NotRoot);
    }
    match fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) if namespace.ino() != INITIAL_PID_NAMESPACE => Err(DaemonError::PidNamespace),
        _ => Ok(()),
    }
}

/// Makes the directories and takes the lock.
///
/// # Errors
/// [`DaemonError::Directory`] or [`DaemonError::Running`].
pub(super) fn lock(config: &Config) -> Result<File, DaemonError> {
    let records = config.records.parent().unwrap_or(Path::new("/"));
    for (directory, mode) in [(config.runtime_dir.as_path(), 0o755), (&config.state_dir, 0o700), (records, 0o750)] {
        let made = DirBuilder::new().recursive(true).mode(mode).create(directory);
        made.map_err(|error| DaemonError::Directory(directory.to_owned(), error))?;
    }
    let path = config.runtime_dir.join("writd.lock");
    let failed = |error| DaemonError::Directory(path.clone(), error);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DaemonError::Running(path)),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Loads, attaches, protects, proves.
///
/// # Errors
/// [`DaemonError`]; whatever was attached is detached again.
pub(super) fn start(config: Config, flags: &Flags, sources: Sources, lock: File) -> Result<Started, DaemonError> {
    let mut recorder = Recorder::new(sinks(&config)?);
    recorder.record(Timestamp::now(), Event::DaemonStarted(daemon_started()));
    raise_descriptor_limit();
    let settings = settings(&config);
    let Loaded { mut kernel, layout, mut maps, upcalls, records } = load(&config, settings)?;
    translate(&mut kernel, &config)?;
    let attached = attach(&mut kernel, layout)?;
    kernel.take_effect(&mut maps)?;
    let inherited = takeover::inherit(&mut maps);
    let targets = Targets::new(&config.runtime_dir).map_err(|error| DaemonError::System("set up the canary", error))?;
    let guarding = guarding(&mut maps, &attached, &targets)?;
    let mut classes = ClassTable::default();
    let protection = protect(&sources, &guarding, &mut maps, &mut classes, targets.secret());
    let (shared, notes) = share(&config, &sources, &classes, &protection);
    unix::put_exact(&mut maps, &sources.unix);
    let mut threads = spawn(&kernel, &shared, upcalls, settings, &guarding)?;
    let generation = inherited.generation;
    let canary = canary_task::run(&mut maps, &shared.snapshot, &targets, generation);
    let result = canary.and_then(|canary| {
        let evidence = Evidence {
            canary: &canary,
            guarding: &guarding,
            lsm: &attached.lsm,
            lsm_refused: attached.refused.as_deref(),
        };
        let coverage = Coverage::new(&evidence);
        require(&config, &coverage, &canary.values().cloned().collect::<Vec<_>>())?;
        Ok(coverage)
    });
    let coverage = match result {
        Ok(coverage) => coverage,
        Err(error) => {
            stop(&shared, threads);
            return Err(error);
        }
    };
    let maps_of_flows = kernel.maps().map_err(|error| DaemonError::Kernel(error.into()))?;
    let (flows, flow_news, thread) = flows::start(shared.clone(), maps_of_flows)
        .map_err(|error| DaemonError::System("start the flow thread", error))?;
    threads.push(("the flow thread", thread));
    let limits = Limits { default_ttl: config.default_ttl, max_ttl: config.max_ttl };
    let mut table = TaskTable::new(limits, generation);
    inherited.epochs.iter().for_each(|&(slot, epoch)| table.skip_epoch(slot, epoch));
    let parts = Parts {
        config,
        flags: flags.clone(),
        kernel,
        maps,
        shared,
        flows,
        classes,
        protection,
        guarding,
        coverage,
        recorder,
        table,
        generation,
    };
    let mut daemon = Daemon::new(parts, sources.registry, sources.secrets);
    daemon.kernel.stay();
    daemon.dismiss_canary(&targets);
    Ok(Started { daemon, records, notes, flow_news, threads, lock })
}

/// Ends the threads and waits for them.
pub(super) fn stop(shared: &Shared, threads: Vec<(&'static str, JoinHandle<()>)>) {
    shared.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for (name, thread) in threads {
        if thread.join().is_err() {
            tracing::error!(name, "a thread panicked");
        }
    }
}

fn sinks(config: &Config) -> Result<Vec<Sink>, DaemonError> {
    let mut sinks = vec![Sink::file(&config.records)?];
    if config.records_stdout {
        sinks.push(Sink::stdout());
    }
    Ok(sinks)
}

fn daemon_started() -> DaemonStarted {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    DaemonStarted { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id(), kernel, adopted_tasks: 0 }
}

/// Each protected file takes a descriptor.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn settings(config: &Config) -> Settings {
    let answerers = std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(threads::MAX_ANSWERERS));
    let holders = u32::try_from(answerers.saturating_sub(1).max(1)).unwrap_or(1);
    let nanos = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    Settings {
        heartbeat: boot_now_ns(),
        stale_after: nanos(config.stale_after),
        hold_budget: nanos(config.hold_budget),
        max_holders: holders,
        // Where there is more than one place, no task takes them all.
        max_outstanding: config.max_outstanding.get().min(holders.div_ceil(2)),
        max_contacts: config.max_contacts_per_second.get(),
        max_marks: config.max_processes.get().min(MAX_PROCESSES - MARK_RESERVE),
        learner: std::process::id(),
        pad: 0,
    }
}

fn load(config: &Config, settings: Settings) -> Result<Loaded, DaemonError> {
    let pins = config.pin_dir.as_deref().map(Pins::create).transpose().map_err(LoadError::from)?;
    Ok(Kernel::load(&OBJECT.0, Setup { settings, log_level: log_level(config), pins })?)
}

/// aya-log's levels: 0 is off, 5 is trace.
fn log_level(config: &Config) -> u8 {
    config.kernel_log.into_level().map_or(0, |level| match level {
        tracing::Level::ERROR => 1,
        tracing::Level::WARN => 2,
        tracing::Level::INFO => 3,
        tracing::Level::DEBUG => 4,
        tracing::Level::TRACE => 5,
    })
}

/// Each range with the number of its translation.
fn translate(kernel: &mut Kernel, config: &Config) -> Result<(), DaemonError> {
    let numbered = |side: fn(&Translation) -> &[IpNet]| -> Vec<(IpNet, u32)> {
        let all = (1_u32..).zip(&config.translations);
        all.flat_map(|(number, one)| side(one).iter().map(move |range| (*range, number))).collect()
    };
    Ok(kernel.translate(&numbered(|one| &one.from), &numbered(|one| &one.to))?)
}

struct Attached {
    lsm: BpfLsm,
    file_open: bool,
    /// Why the kernel would not have an LSM program.
    refused: Option<String>,
}

/// What every host must have, and what BPF LSM adds where the kernel's list has it or cannot be read.
fn attach(kernel: &mut Kernel, layout: Layout) -> Result<Attached, DaemonError> {
    let lsm = bpf_lsm();
    let hopeless = matches!(lsm, BpfLsm::NotListed(_));
    let wanted: Vec<Guard> = Guard::ALL.into_iter().filter(|guard| !(guard.needs_lsm() && hopeless)).collect();
    let (optional, needed): (Guards, Guards) =
        kernel.attach(&layout, &wanted)?.into_iter().partition(|(guard, _)| guard.needs_lsm());
    needed.into_iter().try_for_each(|(_, result)| result)?;
    for (guard, error) in optional.iter().filter_map(|(guard, result)| Some((guard, result.as_ref().err()?))) {
        tracing::warn!(guard = guard.program(), error = chain(error), "this kernel does not take a guard");
    }
    let refused = optional.iter().find_map(|(_, result)| result.as_ref().err()).map(|error| chain(error));
    let file_open = optional.iter().any(|(guard, result)| *guard == Guard::FileOpen && result.is_ok());
    Ok(Attached { lsm, file_open, refused })
}

/// LSM programs can be attached and never run: whether they do is asked, not believed.
fn guarding(maps: &mut Maps, attached: &Attached, targets: &Targets) -> Result<Guarding, DaemonError> {
    if attached.file_open && learn::learn(maps, targets.secret()).is_ok() {
        return Ok(Guarding::Kernel);
    }
    match Fanotify::new() {
        Ok(group) => Ok(Guarding::Fanotify(Arc::new(group))),
        Err(error) => Err(DaemonError::Coverage { require: Require::Reduced, missing: chain(&error) }),
    }
}

fn protect(
    sources: &Sources,
    guarding: &Guarding,
    maps: &mut Maps,
    classes: &mut ClassTable,
    canary: &Path,
) -> Protection {
    let mut protection = Protection::new(guarding.clone());
    protection.apply(maps, sources.secrets.scan(classes), false);
    let label = CANARY_LABEL.parse().map(|label| classes.intern(&[label].into()));
    if let Err(error) = label
        .map_err(|error: crate::domain::label::LabelError| error.to_string())
        .and_then(|class| protection.add(maps, canary, class))
    {
        tracing::error!(error, "the canary's secret could not be protected");
    }
    for problem in protection.problems() {
        tracing::warn!("{problem}");
    }
    protection
}

fn share(
    config: &Config,
    sources: &Sources,
    classes: &ClassTable,
    protection: &Protection,
) -> (Shared, mpsc::Receiver<Note>) {
    let snapshot = Snapshot {
        policies: Arc::clone(&sources.policies),
        endpoints: Arc::clone(&sources.endpoints),
        unix: Arc::clone(&sources.unix),
        classes: Arc::from(classes.classes()),
        places: Arc::new(protection.places()),
        tasks: HashMap::new(),
        names: Arc::default(),
    };
    let (notes, received) = mpsc::channel(NOTES);
    let shared = Shared {
        snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
        details: Arc::default(),
        notes,
        lost_notes: Arc::new(AtomicU64::new(0)),
        undecodable: Arc::new(AtomicU64::new(0)),
        stop: Arc::new(AtomicBool::new(false)),
        patience: u64::try_from(config.hold_budget.as_millis()).unwrap_or(u64::MAX),
    };
    (shared, received)
}

fn spawn(
    kernel: &Kernel,
    shared: &Shared,
    upcalls: Ring,
    settings: Settings,
    guarding: &Guarding,
) -> Result<Vec<(&'static str, JoinHandle<()>)>, DaemonError> {
    let failed = |error: io::Error| DaemonError::System("start a decision thread", error);
    let maps = || kernel.maps().map_err(|error| DaemonError::Kernel(error.into()));
    let answering = threads::upcalls(shared.clone(), upcalls, maps()?, settings).map_err(failed)?;
    let mut threads: Vec<_> = answering.into_iter().map(|thread| ("a decision thread", thread)).collect();
    if let Guarding::Fanotify(group) = guarding {
        let thread = threads::files(shared.clone(), Arc::clone(group), maps()?).map_err(failed)?;
        threads.push(("the fanotify thread", thread));
    }
    Ok(threads)
}

/// A path that let the canary through is worse than one that is not there: nothing may rest on it.
fn require(config: &Config, coverage: &Coverage, canary: &[Outcome]) -> Result<(), DaemonError> {
    let missing = match config.require {
        Require::Any => None,
        Require::Reduced => coverage.missing(),
        Require::Full if coverage.tier == Tier::Full => coverage.missing(),
        Require::Full => Some(format!(
            "BPF LSM does not work here: {}",
            coverage.rows.iter().find(|row| row.path == "other socket families").map_or("", |row| &row.detail)
        )),
    };
    tracing::debug!(?canary, "the canary's outcomes");
    match missing {
        Some(missing) => Err(DaemonError::Coverage { require: config.require, missing }),
        None => Ok(()),
    }
}

impl Daemon {
    fn dismiss_canary(&mut self, targets: &Targets) {
        let _ = fs::remove_file(targets.secret());
        self.protection.remove(&mut self.maps, targets.secret());
        self.baseline = Counter::ALL.iter().map(|counter| (*counter, self.maps.counter(*counter))).collect();
        let mut snapshot = Snapshot::clone(&self.shared.snapshot.load());
        snapshot.tasks.clear();
        snapshot.places = Arc::new(self.protection.places());
        self.shared.snapshot.store(Arc::new(snapshot));
    }

    /// To be called once everything is listened to.
    pub(super) fn record_ready(&mut self) {
        let coverage =
            record::Coverage { tier: self.coverage.tier, paths: self.coverage.paths(), generation: self.generation };
        let policies = self.shared.snapshot.load().policies.number_of_policies();
        let (files, directories) = self.protection.counts();
        tracing::info!(tier = ?self.coverage.tier, policies, files, directories, "ready");
        self.recorder.record(Timestamp::now(), Event::DaemonReady(coverage));
        self.write_records();
    }
}
