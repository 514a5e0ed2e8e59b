//! Questions for names: whatever server a marked process asks, the daemon's own resolver answers.
//!
//! The destination is rewritten where the caller names it, and put back where the caller asks who answered: resolvers take
//! answers only from the server that they asked. Who asks is noted where the packet leaves, by its source.

use core::ffi::c_void;

use agent_common::Action;
use agent_common::Reason;
use agent_common::maps::{
    Client, ClientKey, ConnectKey, FAMILY_V4, FAMILY_V6, Mark, Resolver, Server, SocketLabel, Verdict,
};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use bytemuck::Zeroable;

use crate::decide::{self, Hold, Key};
use crate::hooks::net::destination;
use crate::maps::{DNS_CLIENTS, LABELS, RESOLVERS};
use crate::ticket;

/// Where name servers are asked.
pub const PORT: u16 = 53;

const ALLOW: i32 = 1;
const IPPROTO_TCP: u8 = 6;
/// Loopback, and IPv4 mapped into IPv6, in network byte order.
const LOOPBACK_V4: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
const MAPPED: u32 = u32::from_be(0xffff);
const ONE: u32 = u32::from_be(1);
/// Nanoseconds after which a source may be another task's: a socket was closed and its port given away, and what it asked
/// has long been taken in.
const SETTLED: u64 = 100_000_000;

/// `net/ipv4/udp.c: udp_recvmsg`.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    put_back(&ctx, FAMILY_V4)
}

/// `net/ipv6/udp.c: udpv6_recvmsg`.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    put_back(&ctx, FAMILY_V6)
}

/// `net/ipv4/af_inet.c: inet_getname`.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    put_back(&ctx, FAMILY_V4)
}

/// `net/ipv6/af_inet6.c: inet6_getname`.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    put_back(&ctx, FAMILY_V6)
}

/// The resolver of a network namespace, which the daemon sets up when it is asked for the first time.
#[derive(Clone, Copy)]
#[repr(C)]
struct Namespace(u64);

impl Namespace {
    #[inline(always)]
    fn resolver(&self) -> Option<Resolver> {
        // SAFETY: the value is copied at once.
        unsafe { RESOLVERS.get(self.0).copied() }
    }
}

impl Key for Namespace {
    const TURN: unsafe extern "C" fn(u32, *mut c_void) -> i64 = namespace_turn;

    #[inline(always)]
    fn action(&self) -> Action {
        Action::Resolve
    }

    #[inline(always)]
    fn set_owner(&mut self, _: &Mark, _: u32) {}

    #[inline(always)]
    fn verdict(&self) -> Option<Verdict> {
        let effect = agent_common::Effect::Allow.code();
        self.resolver().map(|_| Verdict {
            not_after: u64::MAX,
            effect,
            reason: Reason::Policy.code(),
            ..Verdict::zeroed()
        })
    }

    #[inline(always)]
    fn forget(&self) {}
}

// Not exported: the verifier wants callbacks static.
unsafe extern "C" fn namespace_turn(_turn: u32, hold: *mut c_void) -> i64 {
    // SAFETY: `wait_for` passes a `Hold<Namespace>` on its own stack.
    decide::turn(unsafe { &*hold.cast::<Hold<Namespace>>() })
}

/// Leads a question to the daemon's resolver. True if the call may go on.
#[inline(always)]
pub fn lead(ctx: &SockAddrContext, family: u8, mark: &Mark, label: &mut SocketLabel, key: &ConnectKey) -> bool {
    let what = ConnectKey { action: Action::Resolve.code(), ..*key };
    if !decide::admit(mark, Action::Resolve, &what) {
        return false;
    }
    // SAFETY: the helper takes the program's own context.
    let namespace = Namespace(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) });
    label.netns = namespace.0;
    if namespace.resolver().is_none() && !decide::wait_for(mark, &namespace, &what) {
        return false;
    }
    let Some(resolver) = namespace.resolver() else {
        return decide::refuse(mark, Action::Resolve, Reason::Timeout, &what);
    };
    let port = port_of(&resolver, key.protocol, key.family);
    if port == 0 {
        return decide::refuse(mark, Action::Resolve, Reason::Undecidable, &what);
    }
    label.server = Server { address: key.address, port: key.port, family: key.family, pad: [0; 5] };
    let address = if key.family == FAMILY_V4 { [LOOPBACK_V4, 0, 0, 0] } else { [0, 0, 0, ONE] };
    let mut led = ConnectKey { port, address: bytemuck::cast(address), ..what };
    (led.slot, led.epoch, led.generation) = (mark.slot, mark.epoch, 1);
    ticket::write(label, &led, u64::MAX);
    write(ctx, family, &led);
    true
}

/// Whether a socket that was led there goes there again: what a dual-stack socket is connected to under a mapped address is
/// named anew with each packet (`net/ipv6/udp.c: udpv6_sendmsg`).
#[inline(always)]
pub fn is_led(label: &SocketLabel, key: &ConnectKey) -> bool {
    let led = &label.ticket.key;
    led.action == Action::Resolve.code()
        && (led.port, led.protocol, led.family) == (key.port, key.protocol, key.family)
        && led.address == key.address
}

#[inline(always)]
fn port_of(resolver: &Resolver, protocol: u8, family: u8) -> u16 {
    match (protocol == IPPROTO_TCP, family == FAMILY_V4) {
        (false, true) => resolver.udp4,
        (true, true) => resolver.tcp4,
        (false, false) => resolver.udp6,
        (true, false) => resolver.tcp6,
    }
}

/// Puts the server that was asked in the place of the one that answered.
#[inline(always)]
fn put_back(ctx: &SockAddrContext, family: u8) -> i32 {
    // SAFETY: `sk` is a field of the program's context, which the verifier checks.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    let Some(label) = LABELS.get(socket.cast()) else { return ALLOW };
    if label.server.family == 0 {
        return ALLOW;
    }
    let from = destination(ctx, family, 0);
    let Some(resolver) = Namespace(label.netns).resolver() else { return ALLOW };
    let loopback = if from.family == FAMILY_V4 { [LOOPBACK_V4, 0, 0, 0] } else { [0, 0, 0, ONE] };
    let answered = from.port != 0
        && from.port == port_of(&resolver, from.protocol, from.family)
        && from.address == bytemuck::cast::<[u32; 4], [u8; 16]>(loopback);
    if answered && label.server.family == from.family {
        let asked = ConnectKey { port: label.server.port, address: label.server.address, ..from };
        write(ctx, family, &asked);
    }
    ALLOW
}

/// Writes an address in the form that the caller's family has.
#[inline(always)]
fn write(ctx: &SockAddrContext, family: u8, key: &ConnectKey) {
    let addr = ctx.sock_addr;
    let [a, b, c, d]: [u32; 4] = bytemuck::cast(key.address);
    // SAFETY: constant offsets into the program's context, one word at a time.
    unsafe {
        core::ptr::write_volatile(&raw mut (*addr).user_port, u32::from(key.port.to_be()));
        if family == FAMILY_V4 {
            core::ptr::write_volatile(&raw mut (*addr).user_ip4, a);
        } else {
            let mapped = key.family == FAMILY_V4;
            core::ptr::write_volatile(&raw mut (*addr).user_ip6[0], if mapped { 0 } else { a });
            core::ptr::write_volatile(&raw mut (*addr).user_ip6[1], if mapped { 0 } else { b });
            core::ptr::write_volatile(&raw mut (*addr).user_ip6[2], if mapped { MAPPED } else { c });
            core::ptr::write_volatile(&raw mut (*addr).user_ip6[3], if mapped { a } else { d });
        }
    }
}

/// Notes whose question leaves, by its source; nothing for other packets.
#[inline(always)]
pub fn note_client(ctx: &SkBuffContext, label: &SocketLabel, time: u64) {
    if label.ticket.key.action != Action::Resolve.code() {
        return;
    }
    let key = source(ctx, label.netns);
    let mut client = Client { slot: label.slot, epoch: label.epoch, tgid: label.tgid, conflict: 0, time };
    // SAFETY: the value is copied at once.
    if let Some(before) = unsafe { DNS_CLIENTS.get(key).copied() }
        && time.saturating_sub(before.time) < SETTLED
    {
        let other = (before.slot, before.epoch) != (client.slot, client.epoch);
        client.conflict = before.conflict | u32::from(other);
    }
    // An LRU map is never full.
    let _ = DNS_CLIENTS.insert(key, client, 0);
}

/// Where the packet comes from, read off its own header.
#[inline(always)]
fn source(ctx: &SkBuffContext, netns: u64) -> ClientKey {
    let mut key = ClientKey { netns, ..ClientKey::zeroed() };
    let first: u8 = ctx.load(0).unwrap_or(0);
    if first >> 4 == 4 {
        let address: u32 = ctx.load(12).unwrap_or(0);
        key.family = FAMILY_V4;
        key.protocol = ctx.load(9).unwrap_or(0);
        key.address = bytemuck::cast([address, 0, 0, 0]);
        key.port = u16::from_be(ctx.load(usize::from(first & 0xf) * 4).unwrap_or(0));
    } else {
        key.family = FAMILY_V6;
        key.protocol = ctx.load(6).unwrap_or(0);
        key.address = ctx.load(8).unwrap_or([0; 16]);
        key.port = u16::from_be(ctx.load(40).unwrap_or(0));
    }
    key
}
