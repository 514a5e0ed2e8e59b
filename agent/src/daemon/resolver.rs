//! The resolver's thread: what it must know of tasks, policy and catalogue.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use agent_common::Action;
use agent_common::event::{Actor, Object};
use agent_common::maps::ClientKey;
use bytemuck::Zeroable;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval};

use super::DaemonError;
use super::snapshot::Snapshot;
use super::threads::{Note, Shared, effect_of, now, over, task_key};
use crate::config::Config;
use crate::decision::Rows;
use crate::domain::{Effect, Endpoint, Hosts, Mode, Reason};
use crate::kernel::{MapError, Maps};
use crate::names::{Asker, Authority, Permission, Rate, Said, Service, Serving, Sockets, TaskMark, Upstream};
use crate::policy::Class;
use crate::record::Resource;

/// How often the thread looks whether it is to end.
const TURN: Duration = Duration::from_millis(100);
/// Turns between two looks for namespaces that nobody is in any more.
const HOUSEKEEPING: u32 = 100;
/// Stands for the address that a name has not yet (RFC 5737).
const PLACEHOLDER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// How long an address is known by a name at least and at most, seconds, the grace of the configuration left out.
const LEAST_TTL: u32 = 5;
const MOST_TTL: u32 = 3600;
const NANOS: u64 = 1_000_000_000;

/// Starts the thread. The host's own namespace is served when this returns.
///
/// # Errors
/// If sockets, maps or the thread cannot be had.
pub(super) fn start(
    config: &Config,
    shared: &Shared,
    mut maps: Maps,
    opened: mpsc::UnboundedReceiver<Sockets>,
) -> Result<JoinHandle<()>, DaemonError> {
    let failed = |error| DaemonError::System("start the resolver", error);
    let refused = |error: MapError| DaemonError::Kernel(error.into());
    let host = Sockets::here().map_err(failed)?;
    // Those of an earlier daemon are nobody's any more.
    maps.resolvers.keys().into_iter().for_each(|netns| maps.resolvers.remove(netns));
    maps.resolvers.put(host.netns, host.ports()).map_err(refused)?;
    let upstream = Upstream::new(config.dns_servers.clone(), "/etc/resolv.conf".into());
    let rate = Rate { per_second: config.dns_rate, burst: config.dns_burst };
    let rows = Rows::new(Arc::clone(&shared.details), shared.patience);
    let shared = shared.clone();
    let grace = u64::try_from(config.dns_grace.as_nanos()).unwrap_or(u64::MAX);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let run = move || {
        let authority = Tasks { shared, maps: RefCell::new(maps), rows: RefCell::new(rows), grace };
        let service = Rc::new(Service::new(authority, upstream, rate));
        if let Err(error) = LocalSet::new().block_on(&runtime, serve(service, host, opened)) {
            tracing::error!(%error, "the resolver cannot go on");
        }
        runtime.shutdown_background();
    };
    thread::Builder::new().name("resolver".into()).spawn(run).map_err(failed)
}

async fn serve(
    service: Rc<Service<Tasks>>,
    host: Sockets,
    mut opened: mpsc::UnboundedReceiver<Sockets>,
) -> io::Result<()> {
    let _host = Serving::start(&service, host)?;
    let mut served: HashMap<u64, Serving> = HashMap::new();
    let mut tick = interval(TURN);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turns = 0_u32;
    let shared = &service.authority().shared;
    while !shared.stopping() {
        tokio::select! {
            Some(sockets) = opened.recv() => {
                served.insert(sockets.netns, Serving::start(&service, sockets)?);
            }
            _ = tick.tick() => turns = turns.wrapping_add(1),
        }
        if turns >= HOUSEKEEPING {
            turns = 0;
            for netns in shared.namespaces.close_deserted() {
                served.remove(&netns);
            }
            service.authority().tidy();
        }
    }
    Ok(())
}

/// What the resolver is told of tasks, policy and catalogue.
struct Tasks {
    shared: Shared,
    maps: RefCell<Maps>,
    rows: RefCell<Rows<Class>>,
    /// Nanoseconds.
    grace: u64,
}

impl Tasks {
    /// Drops what was decided for tasks and generations that are gone.
    fn tidy(&self) {
        let snapshot = self.shared.snapshot.load();
        self.rows.borrow_mut().retain(|key| generation(&snapshot, (key.slot, key.epoch)) == Some(key.generation));
    }
}

fn generation(snapshot: &Snapshot, (slot, epoch): TaskMark) -> Option<u32> {
    snapshot.task(slot, epoch).map(|task| task.generation)
}

impl Authority for Tasks {
    fn client(&self, from: ClientKey) -> Option<Asker> {
        let maps = self.maps.borrow();
        let client = maps.clients.get(from)?;
        let state = maps.tasks.get(client.slot);
        let ended = over(&state, client.epoch, now().boot);
        let audit = state.epoch == client.epoch && Mode::from_code(state.mode) == Some(Mode::Audit);
        let task = (client.slot, client.epoch);
        Some(Asker { task, tgid: client.tgid, conflict: client.conflict != 0, audit, over: ended })
    }

    /// Whether some endpoint that carries the name is permitted: the first that is, or else the first refusal.
    fn permits(&self, asker: &Asker, name: &str) -> Permission {
        let snapshot = self.shared.snapshot.load_full();
        let (slot, epoch) = asker.task;
        let carried = snapshot.endpoints.carried(name);
        let mut permission = Permission {
            effect: Effect::Deny,
            reason: Reason::MissingEntity,
            detail: 0,
            generation: 0,
            labels: Arc::new(carried.labels),
            private: carried.private,
            spelt_out: carried.spelt_out,
        };
        let Some(known) = snapshot.task(slot, epoch) else { return permission };
        permission.generation = known.generation;
        let hosts: Arc<Hosts> = Arc::new(Hosts::from([Arc::from(name)]));
        let at = now();
        for (index, (protocol, port)) in carried.ends.iter().copied().enumerate() {
            let labels = snapshot.endpoints.labels_of(PLACEHOLDER, &hosts, port, protocol);
            let endpoint = Endpoint { protocol, address: PLACEHOLDER, port, hosts: Arc::clone(&hosts), labels };
            let class = snapshot.policies.endpoint_class(&endpoint);
            let answer = self.rows.borrow_mut().answer(&*snapshot, task_key(slot, epoch, known), class, at);
            let allowed = answer.decision.effect == Effect::Allow;
            if allowed || index == 0 {
                let shadow = answer.decision.shadow.as_ref().map(|shadow| shadow.effect);
                permission.effect = effect_of(answer.decision.effect, shadow, known.mode);
                (permission.reason, permission.detail) = (answer.decision.reason, answer.verdict.detail);
            }
            if allowed {
                break;
            }
        }
        permission
    }

    fn is_private(&self, address: IpAddr) -> bool {
        self.shared.snapshot.load().endpoints.is_private(address)
    }

    fn learn(&self, asker: &Asker, name: &Arc<str>, addresses: &[IpAddr], ttl: u32) {
        let snapshot = self.shared.snapshot.load();
        if generation(&snapshot, asker.task).is_none() {
            return;
        }
        let at = now().boot;
        let told = u64::from(ttl.clamp(LEAST_TTL, MOST_TTL)).saturating_mul(NANOS);
        let until = at.saturating_add(told).saturating_add(self.grace);
        let addresses: Vec<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
        let mut maps = self.maps.borrow_mut();
        for key in snapshot.names.learn(asker.task, name, &addresses, at, until) {
            maps.connect.remove(key);
        }
    }

    fn record(&self, asker: &Asker, said: Said<'_>) {
        let labels = said.permission.map_or_else(Arc::default, |permission| Arc::clone(&permission.labels));
        let name = Arc::clone(said.name);
        let resource = Resource::Name { name, record_type: said.record_type, labels };
        let (slot, epoch) = asker.task;
        let generation = generation(&self.shared.snapshot.load(), asker.task).unwrap_or(0);
        self.shared.note(Note {
            actor: Actor { slot, epoch, tgid: asker.tgid, tid: asker.tgid, ..Actor::zeroed() },
            object: Object::zeroed(),
            action: Action::Resolve,
            effect: said.effect,
            reason: said.reason,
            source: said.source,
            detail: said.permission.map_or(0, |permission| permission.detail),
            generation: said.permission.map_or(generation, |permission| permission.generation),
            time: now().boot,
            latency: u32::try_from(said.came.elapsed().as_nanos()).unwrap_or(u32::MAX),
            resource: Some(Box::new(resource)),
        });
    }
}
