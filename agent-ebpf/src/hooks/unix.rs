//! Unix sockets: decided by who listens, whatever name the caller gave.
//!
//! A socket that a task made carries that task's label. Of any other the name counts that the listener itself was bound to, so
//! that links, mounts, renamed files and other roots lead nowhere else. The hooks that see the listener hold its lock, so
//! nobody can be held there: the sleepable hooks before them have the daemon classify the name that the caller gives, which
//! nearly always is the listener's own.

use agent_common::event::Object;
use agent_common::maps::{CLASS_UNIX, Mark, RowKey, SocketLabel, UNIX_AGENT, UNIX_NAME_LEN, UNIX_UNNAMED, UnixName};
use agent_common::{Action, Counter, Reason};
use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use bytemuck::Zeroable;
use core::ffi::c_void;

use crate::current;
use crate::decide::{self, Awaited, Hold, Key};
use crate::maps::{LABELS, UNIX_ASKED, UNIX_NAMES, count};
use crate::offsets::{self, member};
use crate::record::Describe;

const EPERM: i32 = 1;
const AF_UNIX: u16 = 1;
/// `offsetof(struct sockaddr_un, sun_path)`.
const PATH_AT: u32 = 2;

/// `net/socket.c: __sock_create`, `sys_socketpair`: what a task makes is its own.
#[lsm(hook = "socket_post_create")]
pub fn unix_label(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(5);
    if earlier != 0 {
        return earlier;
    }
    let (family, kernel): (i32, i32) = (ctx.arg(1), ctx.arg(4));
    if kernel != 0 || family != i32::from(AF_UNIX) {
        return 0;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    // SAFETY: the hook's first argument is a `socket`.
    let sock: *mut c_void = unsafe { member(ctx.arg(0), &offsets::socket__sk) };
    let mut label = SocketLabel { slot: mark.slot, epoch: mark.epoch, tgid: current::tgid(), ..SocketLabel::zeroed() };
    if !sock.is_null() && LABELS.set(sock, &mut label) {
        return 0;
    }
    count(Counter::LabelFailed);
    -EPERM
}

/// `net/socket.c: __sys_connect_file`, before the listener is looked for.
#[lsm(hook = "socket_connect", sleepable)]
pub fn unix_connect(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    // SAFETY: the hook's first argument is a `socket`.
    if unsafe { unix_sock(ctx.arg(0)) }.is_null() {
        return 0;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    let length: i32 = ctx.arg(2);
    announce(&mark, ctx.arg(1), length as u32);
    0
}

/// `net/socket.c: sock_sendmsg`: every datagram and every write to a stream.
#[lsm(hook = "socket_sendmsg", sleepable)]
pub fn unix_send(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    // SAFETY: the hook's first argument is a `socket`.
    let sock = unsafe { unix_sock(ctx.arg(0)) };
    if sock.is_null() {
        return 0;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    // SAFETY: the hook's second argument is a `msghdr`.
    let (name, length): (*const c_void, i32) = unsafe {
        let message: *const c_void = ctx.arg(1);
        (member(message, &offsets::msghdr__msg_name), member(message, &offsets::msghdr__msg_namelen))
    };
    // A stream is decided when it is connected; what is sent on it later meets no other hook.
    if !decide::admit(&mark, Action::ConnectUnix, &PeerOf(sock)) {
        return -EPERM;
    }
    if !name.is_null() {
        announce(&mark, name, length as u32);
    }
    0
}

/// `net/unix/af_unix.c: unix_stream_connect`: stream and seqpacket.
#[lsm(hook = "unix_stream_connect")]
pub fn unix_stream(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    if judge(&mark, ctx.arg(1)) { 0 } else { -EPERM }
}

/// `net/unix/af_unix.c: unix_dgram_connect`, `unix_dgram_sendmsg`: each datagram, connected or not.
#[lsm(hook = "unix_may_send")]
pub fn unix_datagram(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    // SAFETY: the hook's second argument is a `socket`.
    let receiver: *mut c_void = unsafe { member(ctx.arg(1), &offsets::socket__sk) };
    if receiver.is_null() {
        return -EPERM;
    }
    if judge(&mark, receiver) { 0 } else { -EPERM }
}

/// The `sock` of a unix socket, null of any other.
///
/// # Safety
/// `socket` must be a `socket` to the verifier.
#[inline(always)]
unsafe fn unix_sock(socket: *const c_void) -> *const c_void {
    // SAFETY: as the caller promises; a `sock` begins with its `sock_common`.
    unsafe {
        let sock: *const c_void = member(socket, &offsets::socket__sk);
        if !sock.is_null() && member::<u16>(sock, &offsets::sock_common__skc_family) == AF_UNIX {
            sock
        } else {
            core::ptr::null()
        }
    }
}

/// Whoever listens, or would.
#[derive(Clone, Copy)]
#[repr(C)]
struct Listener {
    name: UnixName,
    /// Room for as many bytes as the verifier believes to be read into the name.
    slack: [u8; 16],
    row: RowKey,
}

impl Listener {
    #[inline(always)]
    fn of_class(class: u32) -> Self {
        Self { name: UnixName::zeroed(), slack: [0; 16], row: RowKey { class, ..RowKey::zeroed() } }
    }
}

impl Describe for Listener {
    #[inline(always)]
    fn describe(&self, object: &mut Object) {
        let (head, _) = object.name.split_at_mut(UNIX_NAME_LEN);
        head.copy_from_slice(&self.name.name);
        (object.family, object.class) = (self.name.length, self.row.class);
    }
}

/// The other end of a connected socket, read only where it is told.
struct PeerOf(*const c_void);

impl Describe for PeerOf {
    #[inline(always)]
    fn describe(&self, object: &mut Object) {
        object.class = CLASS_UNIX;
        let peer = read(self.0, &offsets::unix_sock__peer);
        let address = if peer.is_null() { peer } else { read(peer, &offsets::unix_sock__addr) };
        if !address.is_null() {
            let path = address.wrapping_byte_add(offsets::unix_address__name.load() as usize + PATH_AT as usize);
            // SAFETY: the string read is bounded and faults read as an error. Abstract names show as none.
            let length =
                unsafe { bpf_probe_read_kernel_str((&raw mut object.name).cast(), UNIX_NAME_LEN as u32, path) };
            object.family = if length > 0 { (length - 1) as u32 } else { 0 };
        }
    }
}

impl Awaited for Listener {
    const ACTION: Action = Action::ConnectUnix;
    const TURN: unsafe extern "C" fn(u32, *mut c_void) -> i64 = listener_turn;

    #[inline(always)]
    fn set_owner(&mut self, mark: &Mark, generation: u32) {
        self.row.set_owner(mark, generation);
    }

    #[inline(always)]
    fn is_there(&self) -> bool {
        let row = RowKey { class: class_of(&self.name), ..self.row };
        row.class != CLASS_UNIX && row.verdict().is_some_and(|verdict| verdict.not_after >= decide::now())
    }
}

// Not exported: the verifier wants a static callback.
unsafe extern "C" fn listener_turn(_turn: u32, hold: *mut c_void) -> i64 {
    // SAFETY: `prepare` passes a `Hold<Listener>` on its own stack.
    decide::turn_of(unsafe { &*hold.cast::<Hold<Listener>>() })
}

/// Has the name that the caller gives classified. Whoever listens under it is decided later.
#[inline(always)]
fn announce(mark: &Mark, address: *const c_void, length: u32) {
    let mut listener = Listener::of_class(CLASS_UNIX);
    let size = length.wrapping_sub(PATH_AT);
    // No name, or one that the kernel refuses itself.
    if size == 0 || size > UNIX_NAME_LEN as u32 {
        return;
    }
    if read_name(&mut listener, address.wrapping_byte_add(PATH_AT as usize), size) {
        decide::prepare(mark, &listener);
    }
}

/// Decides by the socket of whoever listens, whose lock is held. True if the caller may go on.
#[inline(always)]
fn judge(mark: &Mark, sock: *mut c_void) -> bool {
    let mut listener = Listener::of_class(UNIX_UNNAMED);
    let address = read(sock, &offsets::unix_sock__addr);
    let named = !address.is_null();
    if named && !read_bound_name(&mut listener, address) {
        return decide::refuse(mark, Action::ConnectUnix, Reason::Undecidable, &listener);
    }
    match LABELS.get(sock) {
        // What a task does among its own processes is counted by nobody: it gives away nothing.
        Some(label) if label.slot == mark.slot && label.epoch == mark.epoch => {
            return decide::admit(mark, Action::ConnectUnix, &listener);
        }
        Some(_) => listener.row.class = UNIX_AGENT,
        None if named => listener.row.class = class_of(&listener.name),
        None => {}
    }
    let absent = if listener.row.class == CLASS_UNIX { Reason::Undecidable } else { Reason::Timeout };
    let mut row = listener.row;
    decide::decide_now(mark, &mut row, &listener, absent)
}

/// The class of a name; [`CLASS_UNIX`] alone if the daemon has not said.
#[inline(always)]
fn class_of(name: &UnixName) -> u32 {
    // SAFETY: the values are copied at once.
    let known = unsafe { UNIX_NAMES.get(name).copied().or_else(|| UNIX_ASKED.get(name).copied()) };
    known.unwrap_or(CLASS_UNIX)
}

/// The name in a `unix_address`, which never changes once it is there (`unix_bind`). False if it cannot be read.
#[inline(always)]
fn read_bound_name(listener: &mut Listener, address: *const c_void) -> bool {
    let mut length = 0_i32;
    let at = address.wrapping_byte_add(offsets::unix_address__len.load() as usize);
    // SAFETY: four bytes into a live integer; a fault is an error.
    if unsafe { bpf_probe_read_kernel((&raw mut length).cast(), 4, at) } != 0 {
        return false;
    }
    let path = address.wrapping_byte_add(offsets::unix_address__name.load() as usize + PATH_AT as usize);
    // A path of 108 bytes has its NUL beyond them.
    let size = (length as u32).wrapping_sub(PATH_AT).min(UNIX_NAME_LEN as u32);
    size != 0 && read_name(listener, path, size)
}

/// Takes `size` bytes, from 1 to [`UNIX_NAME_LEN`], of a `sun_path`: up to the NUL of a path, all of an abstract name.
#[inline(always)]
fn read_name(listener: &mut Listener, path: *const c_void, size: u32) -> bool {
    let bytes: *mut c_void = core::ptr::from_mut(listener).cast();
    let size = within_128(u64::from(size)) as u32;
    // SAFETY: `size` bytes and the NUL fit into name and slack. The name's length comes last there, and is set below.
    let told = unsafe { bpf_probe_read_kernel_str(bytes, size + 1, path) };
    if told > 1 {
        listener.name.length = (told - 1) as u32;
        return true;
    }
    // SAFETY: as above.
    let done = told == 1 && unsafe { bpf_probe_read_kernel(bytes, size, path) } == 0;
    listener.name.length = size;
    done
}

/// A number below 128, and known to be so to the verifier: it loses sight of comparisons that the compiler makes elsewhere, and
/// the compiler leaves out what it knows to be of no effect.
#[inline(always)]
fn within_128(number: u64) -> u64 {
    let mut number = number;
    // SAFETY: an operation on one register.
    unsafe { core::arch::asm!("{0} &= 127", inout(reg) number) };
    number
}

/// A pointer of a kernel struct that the verifier does not know as such; null if it cannot be read.
#[inline(always)]
fn read(base: *const c_void, offset: &Global<u64>) -> *const c_void {
    let mut value: *const c_void = core::ptr::null();
    let at = base.wrapping_byte_add(offset.load() as usize);
    // SAFETY: one pointer into a live variable; a fault leaves it null.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), 8, at) };
    value
}
