//! Outbound connections and datagrams: the address that the caller names.
//!
//! Attached at the root cgroup, since cgroup programs run for the cgroup of a socket's creator; decided on the caller's
//! mark, and refused unless the socket carries the same task's label.

use agent_common::maps::{ConnectKey, FAMILY_V4, FAMILY_V6};
use agent_common::{Action, Reason};
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use bytemuck::Zeroable;

use crate::current;
use crate::decide::{self, decide_flow};
use crate::hooks::dns;
use crate::maps::LABELS;
use crate::ticket;

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

/// `net/ipv4/tcp_ipv4.c: tcp_v4_pre_connect`, `net/ipv4/udp.c: udp_pre_connect`.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    guard(&ctx, FAMILY_V4, 0)
}

/// `net/ipv6/tcp_ipv6.c: tcp_v6_pre_connect`, `net/ipv6/udp.c: udpv6_pre_connect`; IPv4-mapped addresses come here too.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    guard(&ctx, FAMILY_V6, 0)
}

/// `net/ipv4/udp.c: udp_sendmsg` of an unconnected socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: a field of the program's context, which this attach type may read: the source of `IP_PKTINFO`.
    let source = unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).msg_src_ip4) };
    guard(&ctx, FAMILY_V4, source)
}

/// `net/ipv6/udp.c: udpv6_sendmsg` of an unconnected socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    guard(&ctx, FAMILY_V6, 0)
}

#[inline(always)]
fn guard(ctx: &SockAddrContext, family: u8, source: u32) -> i32 {
    let Some(mark) = current::task_mark() else { return ALLOW };
    // SAFETY: `sk` is a field of the program's context, which the verifier checks.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    // SAFETY: a field of the socket, whose type the verifier knows.
    let bound = unsafe { core::ptr::read_volatile(&raw const (*socket).src_ip4) };
    let mut key = destination(ctx, family, if source != 0 { source } else { bound });
    let what = key;
    // SAFETY: as above.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    let label = LABELS.get(socket.cast()).filter(|label| label.slot == mark.slot && label.epoch == mark.epoch);
    let go_on = match label {
        _ if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP => {
            decide::refuse(&mark, Action::Connect, Reason::UnsupportedPath, &what)
        }
        None => decide::refuse(&mark, Action::Connect, Reason::ForeignSocket, &what),
        Some(label) if dns::is_led(label, &key) => decide::admit(&mark, Action::Resolve, &what),
        Some(label) if key.port == dns::PORT => dns::lead(ctx, family, &mark, label, &key),
        Some(label) => match decide_flow(&mark, &mut key, &what) {
            Some(not_after) => {
                ticket::write(label, &key, not_after);
                true
            }
            None => false,
        },
    };
    if go_on { ALLOW } else { DENY }
}

/// The destination as packets will carry it: IPv4-mapped as IPv4, the unspecified address as the socket's own source address
/// if it has one and as loopback else (`net/ipv4/route.c: ip_route_output_key_hash_rcu`). IPv6 knows loopback only
/// (`net/ipv6/tcp_ipv6.c: tcp_v6_connect`).
#[inline(always)]
pub fn destination(ctx: &SockAddrContext, family: u8, source: u32) -> ConnectKey {
    let mut key = ConnectKey { action: Action::Connect.code(), ..ConnectKey::zeroed() };
    let addr = ctx.sock_addr;
    // SAFETY: constant offsets into the program's context. Volatile, one word at a time: the verifier refuses a wider or
    // indexed access.
    unsafe {
        key.port = u16::from_be(core::ptr::read_volatile(&raw const (*addr).user_port) as u16);
        key.protocol = core::ptr::read_volatile(&raw const (*addr).protocol) as u8;
        if family == FAMILY_V4 {
            let word = core::ptr::read_volatile(&raw const (*addr).user_ip4);
            set_v4(&mut key, word, source);
        } else {
            let a = core::ptr::read_volatile(&raw const (*addr).user_ip6[0]);
            let b = core::ptr::read_volatile(&raw const (*addr).user_ip6[1]);
            let c = core::ptr::read_volatile(&raw const (*addr).user_ip6[2]);
            let d = core::ptr::read_volatile(&raw const (*addr).user_ip6[3]);
            set_v6(&mut key, [a, b, c, d], source);
        }
    }
    key
}

/// Fills in where a socket is bound, to be asked about as a place to listen at. The unspecified address stays what it is.
#[inline(always)]
pub fn listener(key: &mut ConnectKey, socket: *const bpf_sock) {
    key.action = Action::Listen.code();
    // SAFETY: fields of the socket, whose type the verifier knows; the address one word at a time, as above.
    unsafe {
        key.port = core::ptr::read_volatile(&raw const (*socket).src_port) as u16;
        if core::ptr::read_volatile(&raw const (*socket).family) == u32::from(FAMILY_V4) {
            key.family = FAMILY_V4;
            key.address = bytemuck::cast([core::ptr::read_volatile(&raw const (*socket).src_ip4), 0, 0, 0]);
        } else {
            let a = core::ptr::read_volatile(&raw const (*socket).src_ip6[0]);
            let b = core::ptr::read_volatile(&raw const (*socket).src_ip6[1]);
            let c = core::ptr::read_volatile(&raw const (*socket).src_ip6[2]);
            let d = core::ptr::read_volatile(&raw const (*socket).src_ip6[3]);
            set_bound_v6(key, [a, b, c, d]);
        }
    }
}

/// IPv4-mapped as IPv4; nothing else is changed.
#[inline(always)]
pub fn set_bound_v6(key: &mut ConnectKey, words: [u32; 4]) {
    let [a, b, c, d] = words;
    let mapped = a == 0 && b == 0 && c == u32::from_be(0xffff);
    key.family = if mapped { FAMILY_V4 } else { FAMILY_V6 };
    key.address = bytemuck::cast(if mapped { [d, 0, 0, 0] } else { words });
}

/// `word` and `source` are in network byte order.
#[inline(always)]
fn set_v4(key: &mut ConnectKey, word: u32, source: u32) {
    let word = match (word, source) {
        (0, 0) => u32::from_ne_bytes([127, 0, 0, 1]),
        (0, source) => source,
        (word, _) => word,
    };
    key.family = FAMILY_V4;
    key.address = bytemuck::cast([word, 0, 0, 0]);
}

#[inline(always)]
fn set_v6(key: &mut ConnectKey, words: [u32; 4], source: u32) {
    let [a, b, c, d] = words;
    if a == 0 && b == 0 && c == u32::from_be(0xffff) {
        return set_v4(key, d, source);
    }
    let d = if a | b | c | d == 0 { u32::from_be(1) } else { d };
    key.family = FAMILY_V6;
    key.address = bytemuck::cast([a, b, c, d]);
}
