//! What the kernel knows of unix listeners: the class of each name.
//!
//! A process of a task is refused where the kernel does not know the class of a listener's name, since nobody can be asked while
//! that listener is locked. Names are made known before it comes to that: those that the catalogue spells out from the start,
//! those that tasks ask for just before (the decision threads do that), and, for who comes by another name than the listener's
//! own, all on which somebody listens now.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use agent_common::event::Ask;
use agent_common::maps::{
    CLASS_UNIX, MAX_UNIX_NAMES, RowKey, UNIX_AGENT, UNIX_UNKNOWN, UNIX_UNNAMED, UnixName, Verdict,
};

use super::protect::{Guarding, chain};
use super::snapshot::Snapshot;
use super::state::Daemon;
use crate::kernel::Maps;
use crate::process::listening_paths;
use crate::resource::UnixListeners;
use crate::resource::unix::class_of;

/// Listeners are looked for this often.
const REFRESH: Duration = Duration::from_secs(1);
/// Names that the catalogue does not know and that are told to the kernel before anybody asks: a part of what that map holds,
/// since tasks can listen too.
const MAX_UNKNOWN: usize = 1024;

/// The names as the kernel has them.
#[derive(Default)]
pub(super) struct UnixNames {
    /// `None` before the first look, which finds what is in the map.
    known: Option<HashMap<UnixName, u32>>,
    /// Names without a label that were put down at the last look.
    unknown: HashSet<UnixName>,
    /// The classes of all on which somebody listened at the last look.
    listening: BTreeSet<u32>,
    looked: Option<Instant>,
    /// The catalogue was exchanged: a decision thread may still have put down a class of the old one.
    stale: bool,
}

impl UnixNames {
    /// The classes of which a task's verdicts are worth having before anybody asks: those of sockets that have no name or another
    /// task's, and those of listeners, who may be reached by another name than their own. For others the caller's name is
    /// asked for in time.
    pub(super) fn classes(&self) -> BTreeSet<u32> {
        let fixed = [UNIX_AGENT, UNIX_UNNAMED, UNIX_UNKNOWN];
        self.listening.iter().copied().chain(fixed).collect()
    }
}

/// The names that the catalogue spells out.
pub(super) fn put_exact(maps: &mut Maps, listeners: &UnixListeners) {
    for (name, class) in exact(listeners) {
        put_name(maps, name, class);
    }
}

fn exact(listeners: &UnixListeners) -> HashMap<UnixName, u32> {
    let names = listeners.exact().filter_map(|(name, class)| Some((UnixName::new(name)?, class)));
    names.take(usize::try_from(MAX_UNIX_NAMES).unwrap_or(usize::MAX)).collect()
}

fn put_name(maps: &mut Maps, name: UnixName, class: u32) {
    if let Err(error) = maps.unix_names.put(name, class) {
        tracing::debug!(error = chain(&error), "a unix listener's name is left to be asked for");
    }
}

/// The answer to a question of a unix hook. The verdict comes first: whoever waits looks for the name's class, then for its row.
pub(super) fn put(maps: &mut Maps, snapshot: &Snapshot, ask: &Ask, verdict: Verdict) {
    let class = class_of(&snapshot.unix_labels(&ask.object));
    let row = RowKey { slot: ask.actor.slot, epoch: ask.actor.epoch, generation: ask.generation, class };
    // Even where nobody waits: the hook that decides cannot wait, so it is the retry that finds it.
    let _ = maps.rows.put(row, verdict);
    if let Some(name) = UnixName::new(ask.object.unix_name())
        && ask.object.class != class
    {
        let _ = maps.unix_asked.put(name, class);
    }
}

impl Daemon {
    /// To be called often; it looks once a second, and only where tasks could ask.
    pub(super) fn refresh_unix_names(&mut self) {
        let due = self.unix_names.looked.is_none_or(|at| at.elapsed() >= REFRESH);
        if !due || !matches!(self.guarding, Guarding::Kernel) || self.table.active().next().is_none() {
            return;
        }
        self.unix_names.looked = Some(Instant::now());
        // At the first look, what an earlier daemon put down by its own catalogue.
        let first = self.unix_names.known.is_none();
        if std::mem::take(&mut self.unix_names.stale) || first {
            self.classify_asked();
        }
        self.put_unix_names(listening_paths());
    }

    /// Another catalogue is in force.
    pub(super) fn unix_listeners_changed(&mut self) {
        self.put_unix_names(Vec::new());
        self.classify_asked();
        (self.unix_names.stale, self.unix_names.looked) = (true, None);
    }

    fn put_unix_names(&mut self, listening: Vec<Vec<u8>>) {
        let listeners = &self.shared.snapshot.load().unix;
        let (mut wanted, mut unknown) = (exact(listeners), HashSet::new());
        let mut classes = BTreeSet::new();
        let room = usize::try_from(MAX_UNIX_NAMES).unwrap_or(usize::MAX);
        for path in listening {
            let Some(name) = UnixName::new(&path) else { continue };
            let class = class_of(&listeners.labels_of(&path));
            classes.insert(class);
            match class {
                UNIX_UNKNOWN if unknown.len() < MAX_UNKNOWN => drop(unknown.insert(name)),
                UNIX_UNKNOWN => {}
                class if wanted.len() < room => drop(wanted.insert(name, class)),
                _ => {}
            }
        }
        self.unix_names.listening = classes;
        self.exchange(wanted);
        for name in unknown.difference(&self.unix_names.unknown) {
            let _ = self.maps.unix_asked.put(*name, UNIX_UNKNOWN);
        }
        self.unix_names.unknown = unknown;
    }

    /// Brings the map of known names to what is wanted.
    fn exchange(&mut self, wanted: HashMap<UnixName, u32>) {
        let maps = &mut self.maps;
        let known = self
            .unix_names
            .known
            .take()
            .unwrap_or_else(|| maps.unix_names.keys().into_iter().map(|name| (name, CLASS_UNIX)).collect());
        known.keys().filter(|name| !wanted.contains_key(*name)).for_each(|name| maps.unix_names.remove(*name));
        for (name, class) in &wanted {
            if known.get(name) != Some(class) {
                put_name(maps, *name, *class);
            }
        }
        self.unix_names.known = Some(wanted);
    }

    /// What tasks asked for has the classes of the catalogue that was in force then.
    fn classify_asked(&mut self) {
        let listeners = &self.shared.snapshot.load().unix;
        for name in self.maps.unix_asked.keys() {
            let _ = self.maps.unix_asked.put(name, class_of(&listeners.labels_of(name.bytes())));
        }
    }
}
