//! Sockets: which kinds a marked process may make, the label that they carry, and the end of what they send.

use agent_common::event::{Actor, Object};
use agent_common::maps::{ConnectKey, FAMILY_V4, FAMILY_V6, Mark, SocketLabel, TaskState};
use agent_common::{Action, Counter, Effect, Mode, Reason, Source, TaskStatus};
use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{cgroup_skb, cgroup_sock, lsm};
use aya_ebpf::programs::{LsmContext, SkBuffContext, SockContext};
use bytemuck::Zeroable;

use crate::current;
use crate::decide;
use crate::hooks::net::Destination;
use crate::instance;
use crate::maps::{LABELS, TASKS, count};
use crate::record::{self, Describe, Outcome, Who};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_IP: u32 = 0;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;
const EPERM: i32 = 1;

/// A kind of socket.
struct Socket {
    family: u32,
    kind: u32,
    protocol: u32,
}

impl Describe for Socket {
    #[inline(always)]
    fn describe(&self, object: &mut Object) {
        (object.family, object.socket_type, object.protocol) = (self.family, self.kind, self.protocol);
    }
}

/// Whoever made a socket.
struct Maker<'a>(&'a SocketLabel);

impl Who for Maker<'_> {
    #[inline(always)]
    fn describe(&self, actor: &mut Actor) {
        (actor.slot, actor.epoch, actor.tgid) = (self.0.slot, self.0.epoch, self.0.tgid);
    }
}

/// `net/ipv4/af_inet.c: inet_create`, `net/ipv6/af_inet6.c: inet6_create`: for sockets that user space makes.
#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    let Some(mark) = current::task_mark() else { return ALLOW };
    // SAFETY: fields of the program's context, which the verifier checks.
    let (family, kind, protocol) = unsafe { ((*ctx.sock).family, (*ctx.sock).type_, (*ctx.sock).protocol) };
    let what = Socket { family, kind, protocol };
    let supported =
        matches!((kind, protocol), (SOCK_STREAM, IPPROTO_IP | IPPROTO_TCP) | (SOCK_DGRAM, IPPROTO_IP | IPPROTO_UDP));
    let go_on = if supported {
        decide::admit(&mark, Action::Socket, &what)
    } else {
        decide::refuse(&mark, Action::Socket, Reason::UnsupportedPath, &what)
    };
    if !go_on {
        return DENY;
    }
    let mut label = SocketLabel { slot: mark.slot, epoch: mark.epoch, tgid: current::tgid(), ..SocketLabel::zeroed() };
    if !LABELS.set(ctx.as_ptr(), &mut label) {
        count(Counter::LabelFailed);
        return DENY;
    }
    set_socket_mark(&ctx, &mark);
    ALLOW
}

/// SO_MARK, so that a firewall or a gateway can tell tasks apart.
#[inline(always)]
fn set_socket_mark(ctx: &SockContext, mark: &Mark) {
    if let Some(task) = TASKS.get(mark.slot)
        && task.socket_mark != 0
    {
        // SAFETY: `mark` is a writable field of the program's context.
        unsafe { (*ctx.sock).mark = task.socket_mark }
    }
}

/// `net/socket.c: __sock_create`: every address family. What policy has no word for is refused.
#[lsm(hook = "socket_create")]
pub fn socket_create(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(4);
    if earlier != 0 {
        return earlier;
    }
    let (family, kind, protocol, kernel): (i32, i32, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3));
    if kernel != 0 || matches!(family, AF_UNIX | AF_INET | AF_INET6 | AF_NETLINK) {
        return 0;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    let what = Socket { family: family as u32, kind: kind as u32, protocol: protocol as u32 };
    if decide::refuse(&mark, Action::Socket, Reason::UnsupportedPath, &what) { 0 } else { -EPERM }
}

/// `net/ipv4/ip_output.c: ip_finish_output`, `net/ipv6/ip6_output.c`: nothing leaves a labelled socket whose task is over.
///
/// The calling process says nothing here: retransmissions run in soft interrupts. The label does.
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
    let (reason, mode) = match TASKS.get(label.slot) {
        Some(task) => match decide::over(task, label.epoch, time) {
            None => return ALLOW,
            Some(_) if drains(&ctx, task, label, time) => return ALLOW,
            Some(reason) => (reason, if task.epoch == label.epoch { task.mode } else { Mode::Enforce.code() }),
        },
        None => (Reason::Undecidable, Mode::Enforce.code()),
    };
    drop_packet(&ctx, label, reason, mode, time)
}

/// Whether this is what a connection of a task that has just ended may still send: nobody is left who could write more,
/// and a new connection by somebody who was given the socket is none of that.
#[inline(always)]
fn drains(ctx: &SkBuffContext, task: &TaskState, label: &SocketLabel, time: u64) -> bool {
    let draining = task.status == TaskStatus::Draining.code() && task.epoch == label.epoch && time < task.deadline;
    draining && is_tcp_without_syn(ctx)
}

#[inline(always)]
fn is_tcp_without_syn(ctx: &SkBuffContext) -> bool {
    const SYN: u8 = 2;
    let first: u8 = ctx.load(0).unwrap_or(0);
    let (protocol, header) = if first >> 4 == 4 {
        (ctx.load::<u8>(9).unwrap_or(0), usize::from(first & 0xf) * 4)
    } else {
        // Extension headers would come before TCP's: such a packet is none of a plain connection's.
        (ctx.load::<u8>(6).unwrap_or(0), 40)
    };
    protocol == IPPROTO_TCP as u8 && ctx.load::<u8>(header + 13).is_ok_and(|flags| flags & SYN == 0)
}

#[inline(always)]
fn drop_packet(ctx: &SkBuffContext, label: &mut SocketLabel, reason: Reason, mode: u32, time: u64) -> i32 {
    let (verdict, effect) = if mode == Mode::Audit.code() { (ALLOW, Effect::WouldDeny) } else { (DENY, Effect::Deny) };
    if verdict == DENY {
        count(Counter::PacketsDropped);
    }
    if label.drop_recorded == 0 {
        label.drop_recorded = 1;
        let what = Destination(packet_destination(ctx, label));
        let outcome = Outcome { effect, reason, source: Source::Structural, detail: 0, generation: 0, latency: 0 };
        record::decided(Action::Send, &outcome, time, &Maker(label), &what);
    }
    verdict
}

/// Where the packet goes, read off its own header; the program's data begins at the network header.
#[inline(always)]
fn packet_destination(ctx: &SkBuffContext, label: &SocketLabel) -> ConnectKey {
    let mut key = ConnectKey { slot: label.slot, epoch: label.epoch, ..ConnectKey::zeroed() };
    let first: u8 = ctx.load(0).unwrap_or(0);
    if first >> 4 == 4 {
        key.family = FAMILY_V4;
        key.protocol = ctx.load(9).unwrap_or(0);
        let address: u32 = ctx.load(16).unwrap_or(0);
        key.address = bytemuck::cast([address, 0, 0, 0]);
        key.port = u16::from_be(ctx.load(usize::from(first & 0xf) * 4 + 2).unwrap_or(0));
    } else {
        key.family = FAMILY_V6;
        key.protocol = ctx.load(6).unwrap_or(0);
        key.address = ctx.load(24).unwrap_or([0; 16]);
        key.port = u16::from_be(ctx.load(42).unwrap_or(0));
    }
    key
}
