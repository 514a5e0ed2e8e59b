//! From what the kernel and the decision threads say to records.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agent_common::event::{Actor, Decided, Executed, Exited, Forked, Object};
use agent_common::maps::{CLASS_FACILITY, SLOT_CANARY};
use agent_common::{Action, Counter, Event as KernelEvent, Facility};

use super::snapshot::address;
use super::state::Daemon;
use super::threads::{Note, effect_of};
use crate::domain::resource::canonical;
use crate::domain::{self, Effect, Protocol, Reason, Source};
use crate::process::{Lineage, snapshot};
use crate::record::{Cause, Decision, Event, PolicyNote, Process, ProcessEvent, Resource, Shadow, UNKNOWN_UID};

/// Kernel counters that are losses.
const LOSSES: [Counter; 7] = [
    Counter::UpcallRingFull,
    Counter::RecordLostAllow,
    Counter::RecordLostDeny,
    Counter::RecordLostWouldDeny,
    Counter::LifecycleLost,
    Counter::MarksFull,
    Counter::LabelFailed,
];

impl Daemon {
    /// One item of the record ring.
    pub(super) fn kernel_event(&mut self, event: KernelEvent) {
        match event {
            KernelEvent::Decided(decided) => self.decided(&decided),
            KernelEvent::Forked(forked) => self.forked(&forked),
            KernelEvent::Executed(executed) => self.executed(&executed),
            KernelEvent::Exited(exited) => self.exited(&exited),
            // Questions have a ring of their own.
            KernelEvent::Ask(_) => self.lost(Cause::Undecodable, 1),
        }
    }

    fn decided(&mut self, decided: &Decided) {
        let codes = (
            Action::from_code(decided.action),
            Effect::from_code(decided.effect),
            Reason::from_code(decided.reason),
            Source::from_code(decided.source),
        );
        let (Some(action), Some(effect), Some(reason), Some(source)) = codes else {
            return self.lost(Cause::Undecodable, 1);
        };
        let shadow =
            self.shared.details.get(decided.detail).and_then(|detail| detail.shadow.as_ref().map(|s| s.effect));
        self.decision(&Note {
            actor: decided.actor,
            object: decided.object,
            action,
            // What was let through by an audited policy's leave is what audit mode calls it.
            effect: if effect == Effect::Allow {
                effect_of(effect, shadow, agent_common::Mode::Enforce)
            } else {
                effect
            },
            reason,
            source,
            detail: decided.detail,
            generation: decided.generation,
            time: decided.time,
            latency: decided.latency,
            resource: None,
        });
    }

    /// A decision that the kernel has neither recorded nor counted.
    pub(super) fn noted(&mut self, note: &Note) {
        if note.actor.slot != SLOT_CANARY {
            *self.noted.entry(note.effect).or_default() += 1;
        }
        self.decision(note);
    }

    /// Records one decision.
    pub(super) fn decision(&mut self, note: &Note) {
        let Actor { slot, epoch, .. } = note.actor;
        if slot == SLOT_CANARY {
            return;
        }
        let by_policy = matches!(note.reason, Reason::Policy | Reason::NoPermit | Reason::Error);
        if note.action == Action::Send && note.effect == Effect::Deny && by_policy {
            // The connection's packets are dropped, for instance since a time window closed; its program is to be told.
            self.flows.verdicts_changed();
        }
        let Some(task) = self.reference(slot, epoch) else { return self.lost(Cause::Undecodable, 1) };
        self.table.count(slot, epoch, note.effect, 1);
        self.unwritten.insert((slot, epoch));
        let detail = self.shared.details.get(note.detail);
        let policies =
            detail.as_ref().map_or_else(Vec::new, |detail| detail.policies.iter().map(PolicyNote::from).collect());
        let shadow =
            detail.as_ref().and_then(|detail| detail.shadow.as_ref()).map(|shadow| Arc::new(Shadow::from(shadow)));
        let decision = Decision {
            task,
            process: self.process(&note.actor),
            action: note.action,
            resource: note.resource.as_deref().cloned().unwrap_or_else(|| self.resource(note)),
            effect: note.effect,
            reason: note.reason,
            policies: policies.into(),
            hop: detail.map_or(0, |detail| detail.hop),
            shadow,
            generation: note.generation,
            source: note.source,
            latency_us: note.latency / 1000,
            tier: self.coverage.tier,
            count: 1,
            repeat_of: None,
            first_time: None,
            last_time: None,
        };
        self.recorder.record(self.clock.wall(note.time), Event::Decision(Box::new(decision)));
    }

    fn forked(&mut self, forked: &Forked) {
        self.lineage.forked(forked);
        let refused = self.lineage.take_refused();
        self.lost(Cause::LineageFull, refused);
    }

    fn executed(&mut self, executed: &Executed) {
        self.lineage.executed(executed);
        self.process_event(&executed.actor, executed.time, None, Event::ProcessExec);
    }

    fn exited(&mut self, exited: &Exited) {
        self.process_event(&exited.actor, exited.time, Some(exited.remaining), Event::ProcessExit);
        self.lineage.exited(exited);
        if exited.remaining <= 0 && exited.actor.slot != SLOT_CANARY {
            self.last_process_gone(exited.actor.slot, exited.actor.epoch);
        }
    }

    fn process_event(
        &mut self,
        actor: &Actor,
        time: u64,
        remaining: Option<i64>,
        kind: fn(Box<ProcessEvent>) -> Event,
    ) {
        if actor.slot == SLOT_CANARY {
            return;
        }
        let Some(task) = self.reference(actor.slot, actor.epoch) else { return self.lost(Cause::Undecodable, 1) };
        let process = self.process(actor);
        self.recorder.record(self.clock.wall(time), kind(Box::new(ProcessEvent { task, process, remaining })));
    }

    /// Who acted: as the kernel saw it, with what lineage knows.
    pub(super) fn process(&mut self, actor: &Actor) -> Process {
        // fanotify tells a process id and nothing else; the kernel's programs fill in all of it.
        let bare = actor.cgroup == 0 && actor.comm().is_empty();
        if !bare {
            self.lineage.acted(actor);
        }
        let (uid, cgroup_id, cgroup) =
            if bare { owner(&self.lineage, actor.tgid) } else { (actor.uid, actor.cgroup, None) };
        let known = self.lineage.get(actor.tgid);
        let comm = if actor.comm().is_empty() {
            known.map_or_else(|| Arc::from(""), |known| Arc::clone(&known.comm))
        } else {
            Arc::from(String::from_utf8_lossy(actor.comm()))
        };
        Process {
            pid: actor.tgid,
            tid: actor.tid,
            start: known.map_or(0, |known| known.start),
            exe: known.and_then(|known| known.exe.clone()),
            comm,
            uid,
            lineage: known.map_or_else(|| Arc::from([]), |known| Arc::clone(&known.ancestors)),
            cgroup: cgroup.or_else(|| self.cgroups.resolve(cgroup_id)),
            cgroup_id,
        }
    }

    /// A process that has not acted yet, as procfs sees it.
    pub(super) fn process_of(&mut self, pid: u32, uid: u32) -> Process {
        let facts = snapshot(pid).ok();
        let known = self.lineage.get(pid);
        Process {
            pid,
            tid: pid,
            start: known.map_or(0, |known| known.start),
            exe: known.and_then(|known| known.exe.clone()),
            comm: known.map_or_else(|| Arc::from(""), |known| Arc::clone(&known.comm)),
            uid,
            cgroup: facts.and_then(|facts| facts.cgroup),
            cgroup_id: known.map_or(0, |known| known.cgroup),
            lineage: known.map_or_else(|| Arc::from([]), |known| Arc::clone(&known.ancestors)),
        }
    }

    fn resource(&self, note: &Note) -> Resource {
        let object = &note.object;
        match note.action {
            Action::Connect | Action::Send | Action::Resolve | Action::Receive => self.endpoint(note),
            Action::Listen => endpoint_shown(object, self.shared.snapshot.load().listener(&object.connect)),
            Action::ConnectUnix => self.unix(object),
            Action::Use => facility(object),
            Action::Read => self.secret(object),
            Action::Socket => Resource::Socket {
                family: u16::try_from(object.family).unwrap_or(u16::MAX),
                socket_type: u8::try_from(object.socket_type).unwrap_or(u8::MAX),
                protocol: object.protocol,
            },
        }
    }

    fn endpoint(&self, note: &Note) -> Resource {
        let key = &note.object.connect;
        let snapshot = self.shared.snapshot.load();
        let hosts = snapshot.hosts((note.actor.slot, note.actor.epoch), key, note.time);
        endpoint_shown(&note.object, snapshot.endpoint(key, hosts))
    }

    fn unix(&self, object: &Object) -> Resource {
        let name = object.unix_name();
        let name = (!name.is_empty()).then(|| Arc::from(socket_name(name)));
        Resource::Unix { name, labels: self.shared.snapshot.load().unix_labels(object) }
    }

    fn secret(&self, object: &Object) -> Resource {
        let path = self.protection.path_of(object);
        Resource::Secret {
            path: path.map(|path| Arc::from(path.to_string_lossy())),
            device: object.file.device,
            inode: object.file.inode,
            labels: self.shared.snapshot.load().class_labels(object.class).cloned().unwrap_or_default(),
        }
    }

    /// Records and counts a loss; nothing if `count` is 0.
    pub(super) fn lost(&mut self, cause: Cause, count: u64) {
        if count > 0 {
            *self.losses.entry(cause.as_str().to_owned()).or_default() += count;
            self.recorder.loss(cause, count);
        }
    }

    /// Records what the kernel and the decision threads lost since this was last called.
    pub(super) fn tell_losses(&mut self) {
        let mut news = false;
        for counter in LOSSES {
            let now = self.maps.counter(counter);
            let before = self.told.insert(counter, now).unwrap_or(0);
            news |= now > before;
            self.lost(Cause::Kernel(counter), now.saturating_sub(before));
        }
        if news {
            self.keeper.note_losses(&self.told);
        }
        let notes = self.shared.lost_notes.swap(0, Ordering::Relaxed);
        self.lost(Cause::QueueFull, notes);
        let details = self.shared.details.take_overflowed();
        self.lost(Cause::DetailsFull, details);
        let items = self.shared.undecodable.swap(0, Ordering::Relaxed);
        self.lost(Cause::Undecodable, items);
    }
}

/// Real uid, cgroup id and, where there is no id, cgroup path of a process, as lineage or else procfs knows them.
fn owner(lineage: &Lineage, tgid: u32) -> (u32, u64, Option<Arc<str>>) {
    if let Some(known) = lineage.get(tgid) {
        return (known.uid, known.cgroup, known.cgroup_path.clone());
    }
    snapshot(tgid).map_or((UNKNOWN_UID, 0, None), |facts| (facts.uid, 0, facts.cgroup))
}

fn endpoint_shown(object: &Object, endpoint: Option<domain::Endpoint>) -> Resource {
    let key = &object.connect;
    let mut shown = match endpoint {
        Some(endpoint) => Resource::from(&endpoint),
        // A protocol that policy has no word for: refused, and shown as far as it can be.
        None => Resource::Endpoint {
            address: canonical(address(key)),
            port: key.port,
            protocol: if key.protocol == Protocol::Udp.number() { Protocol::Udp } else { Protocol::Tcp },
            hosts: Arc::default(),
            labels: Arc::default(),
            decided: None,
        },
    };
    if let Resource::Endpoint { decided, .. } = &mut shown
        && object.decided.family != 0
    {
        *decided = Some(SocketAddr::new(address(&object.decided).to_canonical(), object.decided.port));
    }
    shown
}

/// As `ss(8)` shows it: abstract names begin with `@`.
fn socket_name(name: &[u8]) -> String {
    let (head, rest) = name.split_first().map_or((&0, name), |(head, rest)| (head, rest));
    let end = rest.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let text = String::from_utf8_lossy(rest.get(..end).unwrap_or(rest));
    if *head == 0 { format!("@{text}") } else { format!("{}{text}", char::from(*head)) }
}

fn facility(object: &Object) -> Resource {
    let name = Facility::from_code(object.class & !CLASS_FACILITY).map_or("unknown", Facility::as_str);
    let detail = match (object.name(), object.socket_type) {
        ([], 0) => None,
        // A socket option, as setsockopt(2) takes it: no option that is guarded has number 0.
        ([], option) => Some(Arc::from(format!("option {} of level {}", option, object.family))),
        (text, _) => Some(Arc::from(String::from_utf8_lossy(text))),
    };
    Resource::Facility { name: Arc::from(name), detail }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    #[test]
    fn an_owner_is_what_lineage_says_or_else_procfs_and_never_root_by_default() {
        let mut lineage = Lineage::new(10, 10);
        let own = std::process::id();
        let facts = snapshot(own).unwrap();
        assert_eq!(owner(&lineage, own), (facts.uid, 0, facts.cgroup.clone()));
        assert_eq!(owner(&lineage, u32::MAX), (UNKNOWN_UID, 0, None));
        lineage.adopt(own, 1, 1).unwrap();
        assert_eq!(owner(&lineage, own), (facts.uid, 0, facts.cgroup));
        let actor = Actor { tgid: own, uid: 65_534, cgroup: 7, ..Actor::zeroed() };
        lineage.forked(&Forked { child: 1_000_000, actor, ..Forked::zeroed() });
        assert_eq!(owner(&lineage, 1_000_000), (65_534, 7, None));
    }
}
