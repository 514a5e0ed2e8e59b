//! Options of sockets that make packets leave for other addresses than they are sent to, or that hide whose they are.
//!
//! The wire is looked at too (`wire.rs`): the same can be asked for with each message, which passes no hook but that one.

use agent_common::Facility;
use agent_common::event::Object;
use agent_common::maps::{CLASS_FACILITY, RowKey};
use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use bytemuck::Zeroable;

use crate::current;
use crate::decide::decide;
use crate::record::Describe;

const ALLOW: i32 = 1;
const DENY: i32 = 0;
/// The kernel copies what a caller gives up to this size; of what is longer the programs see the beginning.
const PAGE: i32 = 4096;

const SOL_IP: i32 = 0;
const SOL_SOCKET: i32 = 1;
const SOL_IPV6: i32 = 41;
const SO_MARK: i32 = 36;
const IP_OPTIONS: i32 = 4;
const IP_IPSEC_POLICY: i32 = 16;
const IP_XFRM_POLICY: i32 = 17;
const IPV6_2292HOPOPTS: i32 = 3;
const IPV6_2292DSTOPTS: i32 = 4;
const IPV6_2292RTHDR: i32 = 5;
const IPV6_2292PKTOPTIONS: i32 = 6;
const IPV6_FLOWLABEL_MGR: i32 = 32;
const IPV6_IPSEC_POLICY: i32 = 34;
const IPV6_XFRM_POLICY: i32 = 35;
const IPV6_HOPOPTS: i32 = 54;
const IPV6_RTHDRDSTOPTS: i32 = 55;
const IPV6_RTHDR: i32 = 57;
const IPV6_DSTOPTS: i32 = 59;
/// `struct in6_flowlabel_req`: what follows it are headers for every packet of the flow.
const FLOWLABEL_REQUEST: i32 = 32;
/// `IPT_BASE_CTL` and its like: iptables, ip6tables, arptables and ebtables replace their rules through any socket.
const TABLES: [i32; 6] = [64, 65, 96, 97, 128, 129];

/// `net/socket.c: do_sock_setsockopt`.
#[cgroup_sockopt(setsockopt)]
pub fn setsockopt(ctx: SockoptContext) -> i32 {
    let (level, name, length) = asked(&ctx);
    if length > PAGE {
        // The caller's own bytes go on, not the beginning that programs were shown.
        // SAFETY: a field of the program's context that may be written.
        unsafe { (*ctx.sockopt).optlen = 0 }
    }
    let Some(facility) = facility(level, name, length) else { return ALLOW };
    let mut verdict = i64::from(use_option(facility.code(), level as u32, name as u32));
    // The verifier wants to see that it is 0 or 1; the compiler knows, and would leave this out.
    // SAFETY: an operation on one register.
    unsafe { core::arch::asm!("{verdict} &= 1", verdict = inout(reg) verdict) }
    verdict as i32
}

/// By itself, and exported, so that the verifier looks at it once for whatever it is given, and not once for each option: that
/// would be more than kernels before 6.6 look at.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn use_option(facility: u32, level: u32, name: u32) -> i32 {
    let Some(mark) = current::task_mark() else { return ALLOW };
    let class = CLASS_FACILITY | facility;
    let what = SocketOption { class, level, name };
    if decide(&mark, &mut RowKey { class, ..RowKey::zeroed() }, &what) { ALLOW } else { DENY }
}

/// Level, name and length.
#[inline(always)]
fn asked(ctx: &SockoptContext) -> (i32, i32, i32) {
    // SAFETY: fields of the program's context.
    unsafe {
        (
            core::ptr::read_volatile(&raw const (*ctx.sockopt).level),
            core::ptr::read_volatile(&raw const (*ctx.sockopt).optname),
            core::ptr::read_volatile(&raw const (*ctx.sockopt).optlen),
        )
    }
}

/// What an option is a way to, if it is one that is guarded.
#[inline(always)]
fn facility(level: i32, name: i32, length: i32) -> Option<Facility> {
    match (level, name) {
        (SOL_SOCKET, SO_MARK) => Some(Facility::SocketMark),
        (SOL_IP, IP_OPTIONS)
        | (
            SOL_IPV6,
            IPV6_2292HOPOPTS | IPV6_2292DSTOPTS | IPV6_2292RTHDR | IPV6_2292PKTOPTIONS | IPV6_HOPOPTS
            | IPV6_RTHDRDSTOPTS | IPV6_RTHDR | IPV6_DSTOPTS,
        ) => Some(Facility::SourceRouting),
        (SOL_IPV6, IPV6_FLOWLABEL_MGR) if length > FLOWLABEL_REQUEST => Some(Facility::SourceRouting),
        (SOL_IP, IP_IPSEC_POLICY | IP_XFRM_POLICY) | (SOL_IPV6, IPV6_IPSEC_POLICY | IPV6_XFRM_POLICY) => {
            Some(Facility::NetAdmin)
        }
        (SOL_IP, name) if TABLES.contains(&name) => Some(Facility::NetAdmin),
        (SOL_IPV6, 64 | 65) => Some(Facility::NetAdmin),
        _ => None,
    }
}

/// An option, by its numbers.
struct SocketOption {
    class: u32,
    level: u32,
    name: u32,
}

impl Describe for SocketOption {
    #[inline(always)]
    fn describe(&self, object: &mut Object) {
        (object.class, object.family, object.socket_type) = (self.class, self.level, self.name);
    }
}
