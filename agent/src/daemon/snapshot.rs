//! What the decision threads see: immutable, published whole by the main loop.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use agent_common::Facility;
use agent_common::event::{Ask, Object};
use agent_common::maps::{CLASS_FACILITY, ConnectKey, FAMILY_V4, UNIX_AGENT, UNIX_UNNAMED};

use crate::decision::{Judge, TaskKey};
use crate::domain::resource::canonical;
use crate::domain::{
    Decision, Effect, Endpoint, Hosts, Label, LabelSet, Lifetime, Mode, Protocol, Reason, TaskFacts, UnixMillis,
};
use crate::names::{Names, TaskMark};
use crate::policy::{Class, Policies, Prepared};
use crate::resource::{ClassTable, Endpoints, UnixListeners};

/// A task as the decision threads need it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) prepared: Prepared,
    /// What it was prepared from.
    pub(super) facts: Arc<TaskFacts>,
    pub(super) generation: u32,
    pub(super) mode: Mode,
}

/// Where secrets are: to find a class by what fanotify tells, and a path for a record.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// (`st_dev`, inode) -> class, of catalogued files.
    pub(super) files: HashMap<(u64, u64), u32>,
    /// (`st_dev`, inode) -> class, of protected directories.
    pub(super) directories: HashMap<(u64, u64), u32>,
}

/// Everything that a verdict depends on but the clock.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) policies: Arc<Policies>,
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) unix: Arc<UnixListeners>,
    pub(super) classes: Arc<ClassTable>,
    pub(super) places: Arc<Places>,
    pub(super) tasks: HashMap<(u32, u32), Arc<Known>>,
    /// The names that tasks came to know: shared by all snapshots.
    pub(super) names: Arc<Names>,
}

impl Snapshot {
    /// The task that a mark names.
    pub(super) fn task(&self, slot: u32, epoch: u32) -> Option<&Arc<Known>> {
        self.tasks.get(&(slot, epoch))
    }

    /// Whether it has the task that asks, in the generation that it asks in.
    pub(super) fn knows(&self, ask: &Ask) -> bool {
        self.task(ask.actor.slot, ask.actor.epoch).is_some_and(|task| task.generation == ask.generation)
    }

    /// A destination under the names that a task knows it by, with the catalogue's labels for both. `None` for a protocol
    /// that policy has no word for.
    pub(super) fn endpoint(&self, key: &ConnectKey, hosts: Arc<Hosts>) -> Option<Endpoint> {
        let protocol = Protocol::from_number(key.protocol)?;
        let address = canonical(address(key));
        let labels = self.endpoints.labels_of(address, &hosts, key.port, protocol);
        Some(Endpoint { protocol, address, port: key.port, hosts, labels })
    }

    /// The names by which a task knew a destination at an instant of the boot clock.
    pub(super) fn hosts(&self, task: TaskMark, key: &ConnectKey, at: u64) -> Arc<Hosts> {
        self.names.known(task, canonical(address(key)), at).hosts
    }

    /// Where a task would listen, with the catalogue's labels: `0.0.0.0` and `::` are every address of the host, not loopback.
    pub(super) fn listener(&self, key: &ConnectKey) -> Option<Endpoint> {
        let protocol = Protocol::from_number(key.protocol)?;
        let address = address(key).to_canonical();
        let labels = self.endpoints.labels_to_listen(address, key.port, protocol);
        Some(Endpoint { protocol, address, port: key.port, hosts: Arc::default(), labels })
    }

    /// The labels of whoever listens on a unix socket. A name is looked at anew: the catalogue may be another than the one by which
    /// the kernel knows its class.
    pub(super) fn unix_labels(&self, object: &Object) -> Arc<LabelSet> {
        match object.class {
            UNIX_AGENT | UNIX_UNNAMED => self.unix.of_class(object.class),
            _ => self.unix.labels_of(object.unix_name()),
        }
    }

    /// All labels that a task can be granted to connect to.
    pub(super) fn connect_labels(&self) -> LabelSet {
        self.endpoints.labels() | self.unix.labels()
    }

    /// The classes whose verdicts the kernel is given before it asks: without BPF LSM it asks of few facilities only.
    pub(super) fn rows(&self, lsm: bool) -> impl Iterator<Item = (u32, Class)> {
        let secrets = self.classes.numbered().filter(move |_| lsm);
        let facilities = Facility::ALL.iter().filter(move |facility| lsm || EVERYWHERE.contains(facility));
        let facilities = facilities.filter_map(|facility| {
            let class = CLASS_FACILITY | facility.code();
            facility_labels(class).map(|labels| (class, self.policies.facility_class(&labels)))
        });
        let secrets = secrets.map(|(class, labels)| (class, self.policies.secret_class(labels)));
        secrets.chain(facilities)
    }

    /// The labels of a class of secrets.
    pub(super) fn class_labels(&self, class: u32) -> Option<&Arc<LabelSet>> {
        self.classes.labels(class)
    }
}

/// Facilities that programs of every host guard.
const EVERYWHERE: [Facility; 3] = [Facility::SourceRouting, Facility::SocketMark, Facility::Sysctl];

/// The label of a facility of the kernel.
pub(super) fn facility_labels(class: u32) -> Option<Arc<LabelSet>> {
    let facility = Facility::from_code(class & !CLASS_FACILITY)?;
    let label: Label = format!("kernel/{}", facility.as_str()).parse().ok()?;
    Some(Arc::new(LabelSet::from([label])))
}

/// The address of a key as the kernel wrote it.
pub(super) fn address(key: &ConnectKey) -> IpAddr {
    let [a, b, c, d, ..] = key.address;
    if key.family == FAMILY_V4 { Ipv4Addr::new(a, b, c, d).into() } else { Ipv6Addr::from(key.address).into() }
}

impl Judge for Snapshot {
    type Class = Class;

    fn decide(&self, task: TaskKey, class: &Class, at: UnixMillis) -> Decision {
        match self.task(task.slot, task.epoch) {
            Some(known) => self.policies.decide(&known.prepared, class, at),
            None => undecided(Reason::MissingEntity),
        }
    }
}

/// A deny for want of something to decide with; asked anew each time.
pub(super) fn undecided(reason: Reason) -> Decision {
    Decision { effect: Effect::Deny, reason, policies: Vec::new(), hop: 0, shadow: None, lifetime: Lifetime::Ask }
}
