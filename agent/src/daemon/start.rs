//! Bringing the daemon up: everything that can fail for want of something is tried before anything is attached, and
//! nothing is called ready before a canary was refused.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use agent_common::Counter;
use agent_common::maps::{MARK_RESERVE, MAX_PROCESSES, SLOT_CANARY, Settings};
use arc_swap::ArcSwap;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::DaemonError;
use super::attempt::{Attempt, Targets};
use super::canary::Outcomes;
use super::canary_task::{self, CANARY_LABEL, Stage};
use super::coverage::{Coverage, Facts};
use super::crew::Crew;
use super::enclosure::Enclosure;
use super::flows::{self, FlowNews};
use super::keeper::Keeper;
use super::namespaces::{self, Namespaces};
use super::protect::{Guarding, Protection, chain};
use super::resolver;
use super::snapshot::Snapshot;
use super::sources::Sources;
use super::state::{Daemon, Parts};
use super::takeover;
use super::threads::{self, Note, Shared};
use super::unix;
use super::watch::{self, Watch};
use crate::config::{Config, Flags, Require, Translation};
use crate::decision::{Details, MAX_DETAILS};
use crate::domain::LabelSet;
use crate::domain::clock::boot_now_ns;
use crate::kernel::lsm::{BpfLsm, bpf_lsm};
use crate::kernel::{Fanotify, Guard, Guards, Kernel, Layout, LoadError, Loaded, Maps, Pins, Ring, Setup, learn};
use crate::names::Sockets;
use crate::process::kernel_is_at_least;
use crate::record::{self, DaemonStarted, Event, Recorder, Sink, Tier};
use crate::resource::ClassTable;
use crate::task::{Limits, TaskTable};

/// `PROC_PID_INIT_INO` (include/linux/proc_ns.h): the inode number of the initial pid namespace.
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;
/// How long the canary's first round may take.
const FIRST_ROUND: Duration = Duration::from_secs(30);
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
    pub(super) crew: Crew,
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
    let Loaded { mut kernel, layout, mut maps, upcalls, mut records } = load(&config, settings)?;
    translate(&mut kernel, &config)?;
    let attached = attach(&mut kernel, &layout)?;
    kernel.take_effect(&mut maps)?;
    let keeper = Keeper::open(&config)?;
    let mut inherited = takeover::inherit(&mut maps, &keeper, &sources.registry);
    let targets = Targets::new(&config.runtime_dir).map_err(|error| DaemonError::System("set up the canary", error))?;
    let guarding = guarding(&mut maps, &attached, &targets)?;
    let mut classes = ClassTable::after(takeover::last_class(&maps));
    let protection = protect(&sources, &guarding, &mut maps, &mut classes, targets.secret());
    let enclosure = Enclosure::new(&mut maps, &config, &guarding);
    unix::put_exact(&mut maps, &sources.unix);
    let (shared, notes, opened) = share(&config, &sources, &classes, &protection, kernel.instance());
    shared.snapshot.rcu(|snapshot| {
        let mut snapshot = Snapshot::clone(snapshot);
        inherited.publish(&mut maps, &mut snapshot);
        snapshot
    });
    let mut crew = Crew::new(Arc::clone(&shared.stop));
    decide(&mut crew, &kernel, &shared, upcalls, settings, &guarding)?;
    resolve(&mut crew, &config, &kernel, &shared, opened)?;
    let generation = inherited.generation;
    let facts = Facts {
        guarding: guarding.clone(),
        lsm: attached.lsm,
        lsm_refused: attached.refused,
        pins: config.pin_dir.clone(),
        splice_is_seen: kernel_is_at_least(6, 5),
    };
    let proven = prove(&config, &kernel, &shared, targets, facts, generation)?;
    let (coverage, watch) = watch(&mut crew, proven, &shared, &classes)?;
    let maps_of_flows = kernel.maps().map_err(|error| DaemonError::Kernel(error.into()))?;
    let (flows, flow_news, thread) = flows::start(shared.clone(), maps_of_flows)
        .map_err(|error| DaemonError::System("start the flow thread", error))?;
    crew.join("the flow thread", [thread]);
    let limits =
        Limits { default_ttl: config.default_ttl, max_ttl: config.max_ttl, socket_mark_mask: config.socket_mark_mask };
    let mut table = TaskTable::new(limits, generation);
    inherited.fill(&mut table);
    let parts = Parts {
        config,
        flags: flags.clone(),
        kernel,
        maps,
        shared,
        flows,
        keeper,
        classes,
        protection,
        guarding,
        enclosure,
        coverage,
        watch,
        recorder,
        table,
        generation,
    };
    let mut daemon = Daemon::new(parts, sources.registry, sources.secrets);
    daemon.kernel.stay();
    daemon.begin_counting();
    daemon.take_over(inherited, &mut records);
    Ok(Started { daemon, records, notes, flow_news, crew, lock })
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
    DaemonStarted { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id(), kernel }
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

/// What every host must have, and what BPF LSM adds where the kernel's list has it or cannot be read. Of that it is
/// `file_open` or nothing: what only guards decide that this daemon does not answer for is worse than a tier that is not given.
fn attach(kernel: &mut Kernel, layout: &Layout) -> Result<Attached, DaemonError> {
    let lsm = bpf_lsm();
    let hopeless = matches!(lsm, BpfLsm::NotListed(_));
    let (needed, mut optional): (Vec<Guard>, Vec<Guard>) = Guard::ALL.into_iter().partition(|guard| !guard.needs_lsm());
    optional.retain(|guard| !hopeless && *guard != Guard::FileOpen);
    kernel.attach(layout, &needed)?.into_iter().try_for_each(|(_, result)| result)?;
    let first = if hopeless { Vec::new() } else { kernel.attach(layout, &[Guard::FileOpen])? };
    let file_open = first.iter().any(|(_, result)| result.is_ok());
    let rest = if file_open { kernel.attach(layout, &optional)? } else { Vec::new() };
    let optional: Guards = first.into_iter().chain(rest).collect();
    for (guard, error) in optional.iter().filter_map(|(guard, result)| Some((guard, result.as_ref().err()?))) {
        tracing::warn!(guard = guard.program(), error = chain(error), "this kernel does not take a guard");
    }
    let refused = optional.iter().find_map(|(_, result)| result.as_ref().err()).map(|error| chain(error));
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
    instance: u32,
) -> (Shared, mpsc::Receiver<Note>, mpsc::UnboundedReceiver<Sockets>) {
    let snapshot = Snapshot {
        policies: Arc::clone(&sources.policies),
        endpoints: Arc::clone(&sources.endpoints),
        unix: Arc::clone(&sources.unix),
        classes: Arc::new(classes.clone()),
        places: Arc::new(protection.places()),
        tasks: HashMap::new(),
        names: Arc::default(),
    };
    let (notes, received) = mpsc::channel(NOTES);
    let (namespaces, opened) = Namespaces::new();
    let shared = Shared {
        snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
        // Each daemon's numbers are its own, for as long as there are not 65,536 of them between two boots.
        details: Arc::new(Details::after(instance.wrapping_sub(1) << MAX_DETAILS.trailing_zeros())),
        notes,
        lost_notes: Arc::new(AtomicU64::new(0)),
        undecodable: Arc::new(AtomicU64::new(0)),
        stop: Arc::new(AtomicBool::new(false)),
        namespaces,
        patience: u64::try_from(config.hold_budget.as_millis()).unwrap_or(u64::MAX),
    };
    (shared, received, opened)
}

/// The threads that answer while somebody waits.
fn decide(
    crew: &mut Crew,
    kernel: &Kernel,
    shared: &Shared,
    upcalls: Ring,
    settings: Settings,
    guarding: &Guarding,
) -> Result<(), DaemonError> {
    let failed = |error: io::Error| DaemonError::System("start a decision thread", error);
    let maps = || kernel.maps().map_err(|error| DaemonError::Kernel(error.into()));
    crew.join("a decision thread", threads::upcalls(shared.clone(), upcalls, maps()?, settings).map_err(failed)?);
    if let Guarding::Fanotify(group) = guarding {
        crew.join("the fanotify thread", [threads::files(shared.clone(), Arc::clone(group), maps()?).map_err(failed)?]);
    }
    Ok(())
}

/// The threads that answer questions for names.
fn resolve(
    crew: &mut Crew,
    config: &Config,
    kernel: &Kernel,
    shared: &Shared,
    opened: mpsc::UnboundedReceiver<Sockets>,
) -> Result<(), DaemonError> {
    let failed = |error: io::Error| DaemonError::System("start a thread for names", error);
    let maps = || kernel.maps().map_err(|error| DaemonError::Kernel(error.into()));
    crew.join("the resolver", [resolver::start(config, shared, maps()?, opened)?]);
    crew.join("a thread for network namespaces", namespaces::start(shared, maps()?).map_err(failed)?);
    Ok(())
}

/// The canary's first round, of everything that makes sense on this host, and by policy's own answers.
fn prove(
    config: &Config,
    kernel: &Kernel,
    shared: &Shared,
    targets: Targets,
    facts: Facts,
    generation: u32,
) -> Result<(Stage, Coverage, Outcomes), DaemonError> {
    let lsm = matches!(facts.guarding, Guarding::Kernel);
    let attempts = Attempt::ALL.into_iter().filter(|attempt| lsm || !attempt.needs_lsm()).collect::<Vec<_>>();
    let maps = kernel.maps().map_err(|error| DaemonError::Kernel(error.into()))?;
    let mut stage = Stage::new(maps, targets, attempts.clone(), generation)?;
    canary_task::publish(&shared.snapshot, generation)?;
    let outcomes = stage.run(&attempts, FIRST_ROUND)?;
    let coverage = Coverage::new(facts, outcomes.clone());
    require(config, &coverage, &outcomes)?;
    Ok((stage, coverage, outcomes))
}

/// Hands the canary over to its thread; from here on it is known to the kernel alone.
fn watch(
    crew: &mut Crew,
    (mut stage, coverage, outcomes): (Stage, Coverage, Outcomes),
    shared: &Shared,
    classes: &ClassTable,
) -> Result<(Coverage, Watch), DaemonError> {
    let label = CANARY_LABEL.parse().ok().map(|label| LabelSet::from([label]));
    let class = label.and_then(|label| classes.numbered().find(|(_, other)| ***other == label));
    stage.settle(class.map(|(number, _)| number)).map_err(|error| DaemonError::Canary(chain(&error)))?;
    let mut snapshot = Snapshot::clone(&shared.snapshot.load());
    snapshot.tasks.retain(|(slot, _), _| *slot != SLOT_CANARY);
    shared.snapshot.store(Arc::new(snapshot));
    let started = watch::start(stage, outcomes, Arc::clone(&shared.stop));
    let (watch, thread) = started.map_err(|error| DaemonError::System("start the canary's thread", error))?;
    crew.join("the canary's thread", [thread]);
    Ok((coverage, watch))
}

/// A path that let the canary through is worse than one that is not there: nothing may rest on it.
fn require(config: &Config, coverage: &Coverage, canary: &Outcomes) -> Result<(), DaemonError> {
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
    /// What the kernel has counted so far was an earlier daemon's, or the canary's.
    fn begin_counting(&mut self) {
        self.baseline = Counter::ALL.iter().map(|counter| (*counter, self.maps.counter(*counter))).collect();
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
