//! Waiting for connections: decided when it begins where BPF LSM works, else before the first answer leaves (`wire.rs`).

use agent_common::maps::{ConnectKey, RECORDED_LISTEN, SocketLabel, TaskState};
use agent_common::{Action, Reason};
use aya_ebpf::bindings::{BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock};
use aya_ebpf::macros::{lsm, sock_ops};
use aya_ebpf::programs::{LsmContext, SockOpsContext};
use bytemuck::Zeroable;

use crate::current;
use crate::decide::{self, Key as _, decide_flow};
use crate::hooks::net;
use crate::hooks::socket::Maker;
use crate::instance;
use crate::maps::{LABELS, TASKS};
use crate::sock::Sock;
use crate::ticket;

const EPERM: i32 = 1;
const IPPROTO_TCP: u8 = 6;

/// `net/socket.c: __sys_listen`. A socket without an address gets any address and a port that the kernel chooses: port 0.
#[lsm(hook = "socket_listen")]
pub fn socket_listen(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    // SAFETY: the hook's first argument is a `socket`.
    let Some(sock) = (unsafe { Sock::of(ctx.arg(0)) }) else { return 0 };
    if !sock.is_inet() {
        return 0;
    }
    let mut key = ConnectKey::zeroed();
    sock.bound(&mut key);
    let what = key;
    let label = LABELS.get(sock.as_ptr()).filter(|label| label.slot == mark.slot && label.epoch == mark.epoch);
    let go_on = match label {
        None => decide::refuse(&mark, Action::Listen, Reason::ForeignSocket, &what),
        Some(label) => match decide_flow(&mark, &mut key, &what) {
            Some(not_after) => {
                label.recorded |= RECORDED_LISTEN;
                ticket::write(label, &key, not_after);
                true
            }
            None => false,
        },
    };
    if go_on { 0 } else { -EPERM }
}

/// `net/ipv4/af_inet.c: __inet_listen_sk`, once the socket listens: asks ahead, so that the first client need not wait for the
/// answer. Refuses nothing.
#[sock_ops]
pub fn listening(ctx: SockOpsContext) -> u32 {
    const CONTINUE: u32 = 1;
    if ctx.op() != BPF_SOCK_OPS_TCP_LISTEN_CB {
        return CONTINUE;
    }
    // SAFETY: `sk` is a field of the program's context.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if !socket.is_null()
        && let Some(label) = LABELS.get(socket.cast())
        && instance::acts()
        && let Some(task) = TASKS.get(label.slot)
        && decide::over(task, label.epoch, decide::now()).is_none()
    {
        prepare(label, task, socket);
    }
    CONTINUE
}

#[inline(always)]
fn prepare(label: &mut SocketLabel, task: &TaskState, socket: *const bpf_sock) {
    let (slot, epoch, generation) = (label.slot, label.epoch, decide::generation_of(task));
    let mut key = ConnectKey { slot, epoch, generation, protocol: IPPROTO_TCP, ..ConnectKey::zeroed() };
    net::listener(&mut key, socket);
    let mut earlier = ConnectKey::zeroed();
    ticket::read(label, &mut earlier);
    if earlier.action == key.action
        && earlier.generation == generation
        && (earlier.port == 0 || earlier.port == key.port)
    {
        // `socket_listen` has just decided.
        return;
    }
    // Whatever it was connected to before, it is not any more.
    ticket::clear(label);
    if key.verdict().is_none() {
        decide::ask_ahead(&Maker::of(label), &key);
    }
}
