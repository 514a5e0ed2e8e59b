//! Sockets that change hands, where BPF LSM works: what a task did not make itself it can neither send on, accept on, connect,
//! nor take in. The wire cannot see that: such a socket carries no label, or another task's.

use agent_common::maps::{ConnectKey, FAMILY_V4, FAMILY_V6, Mark};
use agent_common::{Action, Reason};
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::bpf_sock_from_file;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use bytemuck::Zeroable;
use core::ffi::c_void;

use crate::current;
use crate::decide;
use crate::hooks::net;
use crate::maps::LABELS;
use crate::offsets::{self, member};
use crate::sock::Sock;

const EPERM: i32 = 1;
const AF_UNSPEC: u16 = 0;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = FAMILY_V4 as u16;
const AF_INET6: u16 = FAMILY_V6 as u16;
const AF_NETLINK: u16 = 16;

/// What a marked process wants to do with a socket, and whose it is.
enum Standing {
    /// Its own task's, or of a kind that others guard.
    Own,
    /// Of another task, or of none.
    Foreign,
    /// Of a family that policy has no word for.
    Unsupported,
}

#[inline(always)]
fn standing(mark: &Mark, sock: Sock) -> Standing {
    match sock.family() {
        AF_UNIX | AF_NETLINK => Standing::Own,
        AF_INET | AF_INET6 => {
            let label = LABELS.get(sock.as_ptr());
            let ours = label.is_some_and(|label| label.slot == mark.slot && label.epoch == mark.epoch);
            if ours { Standing::Own } else { Standing::Foreign }
        }
        _ => Standing::Unsupported,
    }
}

/// Lets a marked process use its own sockets only. `to` is where it would lead.
#[inline(always)]
fn guard(mark: &Mark, sock: Sock, action: Action, to: &ConnectKey) -> i32 {
    let reason = match standing(mark, sock) {
        Standing::Own => return 0,
        Standing::Foreign => Reason::ForeignSocket,
        Standing::Unsupported => Reason::UnsupportedPath,
    };
    if decide::refuse(mark, action, reason, to) { 0 } else { -EPERM }
}

/// `net/socket.c: __sys_connect_file`. Which address may be connected to is for `connect4` and `connect6`, which come later;
/// kinds that have neither of them come no further than here.
#[lsm(hook = "socket_connect")]
pub fn socket_connect(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    // SAFETY: the hook's first argument is a `socket`.
    let Some(sock) = (unsafe { Sock::of(ctx.arg(0)) }) else { return 0 };
    let mut to = ConnectKey::zeroed();
    let family = named(&mut to, sock, ctx.arg(1));
    if !matches!(family, AF_UNSPEC | AF_UNIX | AF_INET | AF_INET6 | AF_NETLINK) {
        return if decide::refuse(&mark, Action::Connect, Reason::UnsupportedPath, &to) { 0 } else { -EPERM };
    }
    guard(&mark, sock, Action::Connect, &to)
}

/// Fills in the address that a caller names, and returns its family: `AF_UNSPEC` if it cannot be read.
#[inline(always)]
fn named(to: &mut ConnectKey, sock: Sock, address: *const c_void) -> u16 {
    to.action = Action::Connect.code();
    to.protocol = sock.protocol();
    // SAFETY: a kernel copy of the caller's `sockaddr`; a fault reads as an error.
    unsafe {
        let family = bpf_probe_read_kernel(address.cast::<u16>()).unwrap_or(AF_UNSPEC);
        to.port = u16::from_be(bpf_probe_read_kernel(address.byte_add(2).cast::<u16>()).unwrap_or(0));
        if family == AF_INET {
            to.family = FAMILY_V4;
            let word: u32 = bpf_probe_read_kernel(address.byte_add(4).cast::<u32>()).unwrap_or(0);
            to.address = bytemuck::cast([word, 0, 0, 0]);
        } else if family == AF_INET6 {
            net::set_bound_v6(to, bpf_probe_read_kernel(address.byte_add(8).cast::<[u32; 4]>()).unwrap_or_default());
        }
        family
    }
}

/// `net/socket.c: __sock_sendmsg`: every way of sending, but for sendfile(2) and splice(2) before Linux 6.5.
#[lsm(hook = "socket_sendmsg")]
pub fn socket_sendmsg(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    // SAFETY: the hook's first argument is a `socket`.
    let Some(sock) = (unsafe { Sock::of(ctx.arg(0)) }) else { return 0 };
    if matches!(standing(&mark, sock), Standing::Own) {
        return 0;
    }
    let mut to = ConnectKey::zeroed();
    // SAFETY: the hook's second argument is a `msghdr`.
    let name: *const c_void = unsafe { member(ctx.arg(1), &offsets::msghdr__msg_name) };
    if name.is_null() {
        sock.peer(&mut to);
    } else {
        named(&mut to, sock, name);
    }
    guard(&mark, sock, Action::Send, &to)
}

/// `net/socket.c: do_accept`: the listener.
#[lsm(hook = "socket_accept")]
pub fn socket_accept(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    // SAFETY: the hook's first argument is a `socket`.
    let Some(sock) = (unsafe { Sock::of(ctx.arg(0)) }) else { return 0 };
    let mut at = ConnectKey::zeroed();
    sock.bound(&mut at);
    guard(&mark, sock, Action::Listen, &at)
}

/// `fs/file.c: receive_fd`: a descriptor that another process passes on, by whatever way.
#[lsm(hook = "file_receive")]
pub fn file_receive(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(1);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    // SAFETY: the hook's first argument is a `file`; what comes back is a `socket` or null.
    let sock = unsafe {
        let socket: *const c_void = bpf_sock_from_file(ctx.arg::<*mut c_void>(0).cast()).cast();
        if socket.is_null() { None } else { Sock::of(socket) }
    };
    let Some(sock) = sock else { return 0 };
    let mut to = ConnectKey::zeroed();
    sock.peer(&mut to);
    guard(&mark, sock, Action::Receive, &to)
}
