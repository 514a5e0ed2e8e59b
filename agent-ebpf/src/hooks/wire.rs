//! What leaves a labelled socket must match what was decided for it: the address on the packet, not the one that the caller
//! named. Routing headers, options and translation change it after the caller was asked.
//!
//! The calling process says nothing here: retransmissions run in soft interrupts. The socket's label does.

use agent_common::event::Object;
use agent_common::maps::{
    CLASS_FACILITY, ConnectKey, FAMILY_V4, FAMILY_V6, RECORDED_LISTEN, RECORDED_TRANSLATION, RowKey, SocketLabel,
    TaskState,
};
use agent_common::{Action, Counter, Effect, Facility, Mode, Reason, Source, TaskStatus};
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::lpm_trie::Key as Prefix;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use bytemuck::Zeroable;

use crate::decide::{self, Flow, Key as _};
use crate::hooks::dns;
use crate::hooks::net;
use crate::hooks::socket::Maker;
use crate::instance;
use crate::maps::{LABELS, TASKS, TRANSLATE_FROM, TRANSLATE_TO, count, count_for};
use crate::record::{self, Describe, Outcome, structural};
use crate::ticket;

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_DSTOPTS: u8 = 60;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// `net/ipv4/ip_output.c: ip_finish_output`, `net/ipv6/ip6_output.c: ip6_finish_output`: every packet that has a socket,
/// before it is cut into fragments. The answer to a SYN comes with the listener's socket (Linux 6.6 and later).
#[cgroup_skb]
pub fn egress(ctx: SkBuffContext) -> i32 {
    // SAFETY: `sk` is a field of the program's context.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return ALLOW;
    }
    let Some(label) = LABELS.get(socket.cast()) else { return ALLOW };
    if !instance::acts() {
        return ALLOW;
    }
    let time = decide::now();
    dns::note_client(&ctx, label, time);
    let mut packet = Packet::zeroed();
    packet.read(&ctx);
    let mut mode = Mode::Enforce.code();
    let ruling = match TASKS.get(label.slot) {
        None => Ruling::stays(Reason::Undecidable),
        Some(task) => {
            if task.epoch == label.epoch {
                mode = task.mode;
            }
            match decide::over(task, label.epoch, time) {
                Some(_) if drains(task, label, &packet, time) => Ruling::Goes,
                Some(reason) => Ruling::stays(reason),
                None => judge(&mut packet, socket, label, task, time),
            }
        }
    };
    carry_out(ruling, &packet, label, mode, time)
}

/// What becomes of a packet.
enum Ruling {
    Goes,
    /// It goes, and the first of its socket is recorded under this bit.
    Told(u32),
    /// Dropped without a record: the answer is on its way, and serves the next one.
    Missed,
    Stays(Outcome),
}

impl Ruling {
    #[inline(always)]
    const fn stays(reason: Reason) -> Self {
        Self::Stays(structural(Effect::Deny, reason))
    }
}

/// A packet, as far as it is looked at, and what was decided for its socket.
#[derive(Zeroable, Clone, Copy)]
#[repr(C)]
struct Packet {
    to: ConnectKey,
    /// The ticket's; zero without one.
    decided: ConnectKey,
    not_after: u64,
    source: u16,
    /// TCP's flags.
    flags: u8,
    /// Not 0 if anything stands between the address and the ports, or the ports cannot be told.
    headers: u8,
    /// Not 0 if records are to show both addresses.
    both: u8,
    pad: [u8; 3],
}

impl Describe for Packet {
    #[inline(always)]
    fn describe(&self, object: &mut Object) {
        if self.listens() {
            object.connect = self.decided;
            return;
        }
        object.connect = self.to;
        if self.both != 0 {
            object.decided = self.decided;
        }
    }
}

impl Packet {
    /// The program's data begins at the network header.
    #[inline(always)]
    fn read(&mut self, ctx: &SkBuffContext) {
        let first: u8 = ctx.load(0).unwrap_or(0);
        self.to.action = Action::Connect.code();
        let ports = if first >> 4 == 4 { self.read_v4(ctx, first) } else { self.read_v6(ctx) };
        match self.to.protocol {
            IPPROTO_TCP => self.flags = ctx.load(ports + 13).unwrap_or(0),
            IPPROTO_UDP => {}
            _ => self.headers = 1,
        }
        let [source, port]: [u16; 2] = ctx.load(ports).unwrap_or_default();
        (self.source, self.to.port) = (u16::from_be(source), u16::from_be(port));
    }

    #[inline(always)]
    fn read_v4(&mut self, ctx: &SkBuffContext, first: u8) -> usize {
        let address: u32 = ctx.load(16).unwrap_or(0);
        self.to.family = FAMILY_V4;
        self.to.protocol = ctx.load(9).unwrap_or(0);
        self.to.address = bytemuck::cast([address, 0, 0, 0]);
        self.headers = u8::from(first != 0x45);
        usize::from(first & 0xf) * 4
    }

    #[inline(always)]
    fn read_v6(&mut self, ctx: &SkBuffContext) -> usize {
        let mut next: u8 = ctx.load(6).unwrap_or(0);
        let mut at = 40;
        self.to.family = FAMILY_V6;
        self.to.address = ctx.load(24).unwrap_or_default();
        // One header is looked behind; what has more is of no protocol that anybody permits.
        if matches!(next, IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS) {
            let header: [u8; 4] = ctx.load(at).unwrap_or_default();
            // The kernel's own header for packets longer than 64 KiB (BIG TCP): one jumbo payload option.
            self.headers = u8::from(next != IPPROTO_HOPOPTS || header != [IPPROTO_TCP, 0, 0xc2, 4]);
            (next, at) = (header[0], at + (usize::from(header[1]) + 1) * 8);
        }
        self.to.protocol = next;
        at
    }

    #[inline(always)]
    fn is_for(&self, action: Action) -> bool {
        self.decided.action == action.code()
    }

    /// Whether it leaves a socket that listens, or one that was accepted: the clone of one that does.
    #[inline(always)]
    fn listens(&self) -> bool {
        self.is_for(Action::Listen)
    }

    /// Whether it is no request for a connection: what a socket that was accepted, or that accepts, sends.
    #[inline(always)]
    fn answers(&self) -> bool {
        self.to.protocol == IPPROTO_TCP && self.flags & (SYN | ACK) != SYN
    }

    /// Whether it goes where the ticket says.
    #[inline(always)]
    fn as_decided(&self) -> bool {
        let (to, key) = (&self.to, &self.decided);
        (to.address, to.port, to.protocol, to.family) == (key.address, key.port, key.protocol, key.family)
    }

    /// Whether the operator's configuration says that what is sent to one address may leave for the other.
    #[inline(always)]
    fn is_translated(&self) -> bool {
        if !self.is_for(Action::Connect) || self.decided.protocol != self.to.protocol {
            return false;
        }
        let from = TRANSLATE_FROM.get(&Prefix::new(128, mapped(&self.decided))).copied();
        from.is_some() && TRANSLATE_TO.get(&Prefix::new(128, mapped(&self.to))).copied() == from
    }

    /// Whether the ticket still holds. Audit mode lets through what was decided in this generation, whatever that was.
    #[inline(always)]
    fn in_time(&self, task: &TaskState, time: u64) -> bool {
        let audit = task.mode == Mode::Audit.code();
        self.decided.generation == self.to.generation && (self.not_after >= time || audit)
    }
}

#[inline(always)]
fn mapped(key: &ConnectKey) -> [u8; 16] {
    let [a, b, c, d]: [u32; 4] = bytemuck::cast(key.address);
    bytemuck::cast(if key.family == FAMILY_V4 { [0, 0, u32::from_be(0xffff), a] } else { [a, b, c, d] })
}

/// Whether this is what a connection of a task that has just ended may still send: nobody is left who could write more,
/// and a new connection by somebody who was given the socket is none of that.
#[inline(always)]
fn drains(task: &TaskState, label: &SocketLabel, packet: &Packet, time: u64) -> bool {
    let draining = task.status == TaskStatus::Draining.code() && task.epoch == label.epoch && time < task.deadline;
    draining && packet.to.protocol == IPPROTO_TCP && packet.flags & SYN == 0 && packet.headers == 0
}

/// Whether policy lets the task put anything before the ports. Where it does, it has said so when the option was set.
#[inline(always)]
fn may_route(owner: &ConnectKey, time: u64) -> bool {
    let class = CLASS_FACILITY | Facility::SourceRouting.code();
    let key = RowKey { slot: owner.slot, epoch: owner.epoch, generation: owner.generation, class };
    key.verdict().is_some_and(|verdict| verdict.effect == Effect::Allow.code() && verdict.flow_not_after >= time)
}

/// A packet of a task that is not over.
#[inline(always)]
fn judge(packet: &mut Packet, socket: *const bpf_sock, label: &mut SocketLabel, task: &TaskState, time: u64) -> Ruling {
    let generation = decide::generation_of(task);
    (packet.to.slot, packet.to.epoch, packet.to.generation) = (label.slot, label.epoch, generation);
    if packet.headers != 0 && !may_route(&packet.to, time) {
        return Ruling::stays(Reason::UnsupportedPath);
    }
    packet.not_after = ticket::read(label, &mut packet.decided);
    if packet.decided.action == 0 && packet.answers() {
        // It did not connect, so it listens or was accepted: it is asked about as a place to listen at.
        (packet.decided.slot, packet.decided.epoch) = (label.slot, label.epoch);
        packet.decided.protocol = IPPROTO_TCP;
        net::listener(&mut packet.decided, socket);
    }
    let translated = !packet.listens() && !packet.as_decided() && packet.is_translated();
    let expected = if packet.listens() {
        packet.answers() && (packet.decided.port == 0 || packet.decided.port == packet.source)
    } else {
        packet.as_decided() || translated
    };
    if expected && (packet.is_for(Action::Resolve) || packet.in_time(task, time)) {
        return as_told(packet, translated, false);
    }
    if packet.listens() && !expected {
        return rerouted(packet);
    }
    look_up(packet, expected, translated, label, task, time)
}

/// Where the operator's configuration lets it go where it was not sent to, records show both addresses. That a socket listens
/// was not recorded yet where no LSM program saw it begin.
#[inline(always)]
fn as_told(packet: &mut Packet, translated: bool, permitted: bool) -> Ruling {
    packet.both = u8::from(translated);
    match (translated, permitted && packet.listens()) {
        (true, _) => Ruling::Told(RECORDED_TRANSLATION),
        (false, true) => Ruling::Told(RECORDED_LISTEN),
        (false, false) => Ruling::Goes,
    }
}

#[inline(always)]
fn rerouted(packet: &mut Packet) -> Ruling {
    count(Counter::Rerouted);
    packet.both = u8::from(packet.decided.action != 0);
    Ruling::stays(Reason::Rerouted)
}

/// The ticket does not tell: what does policy say, of its destination if that is the packet's, else of the packet's own?
#[inline(always)]
fn look_up(
    packet: &mut Packet,
    expected: bool,
    translated: bool,
    label: &mut SocketLabel,
    task: &TaskState,
    time: u64,
) -> Ruling {
    let who = Maker::of(label);
    packet.decided.generation = packet.to.generation;
    let key = if expected { &packet.decided } else { &packet.to };
    // What leaves for elsewhere is told by its own record.
    let audit = expected && task.mode == Mode::Audit.code();
    match decide::decide_packet(&who, task, key, audit, &mut label.asked, time) {
        Flow::Goes(not_after) if expected => {
            ticket::write(label, &packet.decided, not_after);
            // Audit mode and a lost daemon let go what nobody has permitted.
            as_told(packet, translated, not_after != 0)
        }
        Flow::Goes(_) => Ruling::Goes,
        Flow::Stays(outcome) if expected => Ruling::Stays(outcome),
        Flow::Asked if expected => Ruling::Missed,
        _ => rerouted(packet),
    }
}

/// The first packet of a socket and reason is recorded, all are counted. Audit mode lets go what would be dropped.
#[inline(always)]
fn carry_out(ruling: Ruling, packet: &Packet, label: &mut SocketLabel, mode: u32, time: u64) -> i32 {
    let audit = mode == Mode::Audit.code();
    let (mut outcome, bit) = match ruling {
        Ruling::Goes => return ALLOW,
        Ruling::Missed => {
            count(Counter::WireMisses);
            return DENY;
        }
        Ruling::Told(bit) => (Outcome { source: Source::Cache, ..structural(Effect::Allow, Reason::Policy) }, bit),
        Ruling::Stays(outcome) => {
            let effect = if audit { Effect::WouldDeny } else { Effect::Deny };
            (Outcome { effect, ..outcome }, 1 << outcome.reason.code())
        }
    };
    outcome.generation = packet.to.generation;
    if outcome.effect == Effect::Deny {
        count_for(label.slot, Counter::PacketsDropped);
    }
    if label.recorded & bit == 0 {
        label.recorded |= bit;
        let action = if packet.listens() { Action::Listen } else { Action::Send };
        record::decided(label.slot, action, &outcome, time, &Maker::of(label), packet);
    }
    if outcome.effect == Effect::Deny { DENY } else { ALLOW }
}
