//! connect(2) through io_uring, with bare system calls.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::socket::SockaddrLike;

use crate::Attempt;
use crate::net::{socket_for, storage};

const OP_CONNECT: u8 = 16;
const ASYNC: u8 = 1 << 4;
const ENTER_GETEVENTS: u32 = 1;
const OFF_SQ: i64 = 0;
const OFF_CQ: i64 = 0x800_0000;
const OFF_SQES: i64 = 0x1000_0000;

/// `struct io_sqring_offsets` and `struct io_cqring_offsets` have their first members alike: head, tail, mask, entries.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: [u32; 8],
    /// head, tail, ring_mask, ring_entries, flags, dropped, array, resv1, user_addr (2)
    sq: [u32; 10],
    /// head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1, user_addr (2)
    cq: [u32; 10],
}

/// `struct io_uring_sqe`, as far as connect needs it.
#[repr(C)]
struct Submission {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    off: u64,
    addr: u64,
    rest: [u64; 5],
}

pub(super) fn connect(to: SocketAddr, asynchronous: bool) -> Attempt {
    let socket = socket_for(to, libc::SOCK_STREAM)?;
    let target = storage(to);
    let mut params = Params::default();
    // SAFETY: the kernel reads and writes one live `io_uring_params`, which has the size of `Params`.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) })?;
    // SAFETY: a new descriptor that is nobody else's.
    let ring = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let sq = map(&ring, OFF_SQ)?;
    let cq = map(&ring, OFF_CQ)?;
    let entry = map(&ring, OFF_SQES)?.cast::<Submission>();
    let submission = Submission {
        opcode: OP_CONNECT,
        flags: if asynchronous { ASYNC } else { 0 },
        ioprio: 0,
        fd: socket.as_raw_fd(),
        off: u64::from(target.len()),
        addr: target.as_ptr() as u64,
        rest: [0; 5],
    };
    let [_, tail, _, _, _, _, array, ..] = params.sq;
    let [_, _, _, _, _, completions, ..] = params.cq;
    // SAFETY: offsets that the kernel gave for these mappings; before `enter` nobody else looks at them.
    unsafe {
        entry.write(submission);
        sq.byte_add(array as usize).cast::<u32>().write(0);
        sq.byte_add(tail as usize).cast::<u32>().write_volatile(1);
    }
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    // SAFETY: integers and a null signal mask.
    let entered =
        unsafe { libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), 1, 1, ENTER_GETEVENTS, 0_usize, 0_usize) };
    Errno::result(entered)?;
    // SAFETY: one completion is there, since `enter` waited for it; `res` follows the 8 bytes of `user_data`.
    let result = unsafe { cq.byte_add(completions as usize + 8).cast::<i32>().read_volatile() };
    if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(()) }
}

/// Maps one area of a ring with a single entry: each fits a page.
fn map(ring: &OwnedFd, offset: i64) -> Attempt<NonNull<libc::c_void>> {
    let size = NonZeroUsize::MIN.saturating_add(4095);
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new shared mapping of the ring, of which nothing in this program knows yet.
    unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE, ring.as_fd(), offset) }
}
