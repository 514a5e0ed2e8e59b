//! Sockets: which kinds a marked process may make, and the label that they carry.

use agent_common::event::{Actor, Object};
use agent_common::maps::{Mark, SocketLabel};
use agent_common::{Action, Counter, Reason};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::{cgroup_sock, lsm};
use aya_ebpf::programs::{LsmContext, SockContext};
use bytemuck::Zeroable;

use crate::current;
use crate::decide;
use crate::maps::{LABELS, TASKS, count};
use crate::record::{Describe, Who};

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
const NETLINK_ROUTE: i32 = 0;
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
pub struct Maker {
    slot: u32,
    epoch: u32,
    tgid: u32,
}

impl Maker {
    #[inline(always)]
    pub fn of(label: &SocketLabel) -> Self {
        Self { slot: label.slot, epoch: label.epoch, tgid: label.tgid }
    }
}

impl Who for Maker {
    #[inline(always)]
    fn describe(&self, actor: &mut Actor) {
        (actor.slot, actor.epoch, actor.tgid) = (self.slot, self.epoch, self.tgid);
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
    // SAFETY: the helper takes the program's own context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let tgid = current::tgid();
    let mut label = SocketLabel { slot: mark.slot, epoch: mark.epoch, tgid, netns, ..SocketLabel::zeroed() };
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
        // Other bits may be somebody else's, such as another program's.
        // SAFETY: `mark` is a readable and writable field of the program's context.
        unsafe { (*ctx.sock).mark |= task.socket_mark }
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
    // Interfaces and routes are read by netlink, too; other protocols of it reach the firewall, IPsec, or any other module.
    let harmless = matches!((family, protocol), (AF_UNIX | AF_INET | AF_INET6, _) | (AF_NETLINK, NETLINK_ROUTE));
    if kernel != 0 || harmless {
        return 0;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    let what = Socket { family: family as u32, kind: kind as u32, protocol: protocol as u32 };
    if decide::refuse(&mark, Action::Socket, Reason::UnsupportedPath, &what) { 0 } else { -EPERM }
}
