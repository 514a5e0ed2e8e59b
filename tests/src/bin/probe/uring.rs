//! Calls through io_uring, with bare system calls.

use std::ffi::CString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::socket::SockaddrLike;

use crate::Attempt;
use crate::net::{socket_for, storage};

const OP_SENDMSG: u8 = 9;
const OP_CONNECT: u8 = 16;
const OP_OPENAT: u8 = 18;
const OP_READ: u8 = 22;
const OP_SEND: u8 = 26;
const OP_SOCKET: u8 = 45;
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

/// `struct io_uring_sqe`: `rest` is length and flags, user data, the ring's own numbers, and two more.
#[repr(C)]
#[derive(Default)]
struct Submission {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    off: u64,
    addr: u64,
    rest: [u64; 5],
}

/// Makes a ring and lets it go.
pub(super) fn ring() -> Attempt {
    set_up().map(drop)
}

pub(super) fn connect(to: SocketAddr, asynchronous: bool) -> Attempt {
    let socket = socket_for(to, libc::SOCK_STREAM)?;
    let target = storage(to);
    submit(Submission {
        opcode: OP_CONNECT,
        flags: if asynchronous { ASYNC } else { 0 },
        fd: socket.as_raw_fd(),
        off: u64::from(target.len()),
        addr: target.as_ptr() as u64,
        ..Submission::default()
    })
    .map(drop)
}

/// sendmsg(2) of a datagram, to an address that the message names.
pub(super) fn send_message(to: SocketAddr) -> Attempt {
    let socket = socket_for(to, libc::SOCK_DGRAM)?;
    let target = storage(to);
    let mut part = libc::iovec { iov_base: c"x".as_ptr().cast_mut().cast(), iov_len: 1 };
    // SAFETY: plain numbers and null pointers, all of which may be 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_name, message.msg_namelen) = (target.as_ptr().cast_mut().cast(), target.len());
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    let addr = (&raw const message) as u64;
    let (opcode, fd) = (OP_SENDMSG, socket.as_raw_fd());
    submit(Submission { opcode, fd, addr, rest: [1, 0, 0, 0, 0], ..Submission::default() }).map(drop)
}

/// send(2) of a datagram, to an address that the submission names (Linux 6.0 and later).
pub(super) fn send_to(to: SocketAddr) -> Attempt {
    let socket = socket_for(to, libc::SOCK_DGRAM)?;
    let target = storage(to);
    submit(Submission {
        opcode: OP_SEND,
        fd: socket.as_raw_fd(),
        off: target.as_ptr() as u64,
        addr: c"x".as_ptr() as u64,
        // One byte; and the address's length, two bytes after the ring's own numbers.
        rest: [1, 0, u64::from(target.len()) << 32, 0, 0],
        ..Submission::default()
    })
    .map(drop)
}

/// socket(2), and a connection of what it gives.
pub(super) fn socket_and_connect(to: SocketAddr) -> Attempt {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let (opcode, off) = (OP_SOCKET, libc::SOCK_STREAM as u64);
    let fd = submit(Submission { opcode, fd: family, off, ..Submission::default() })?;
    // SAFETY: a new descriptor that is nobody else's.
    crate::net::connect(&unsafe { OwnedFd::from_raw_fd(fd) }, to)
}

/// socket(2) of any kind.
pub(super) fn socket(family: i32, kind: i32, protocol: i32) -> Attempt {
    let fd = submit(Submission {
        opcode: OP_SOCKET,
        fd: family,
        off: kind as u64,
        rest: [protocol as u64, 0, 0, 0, 0],
        ..Submission::default()
    })?;
    // SAFETY: a new descriptor that is nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Opens a file and reads one byte of it.
pub(super) fn open_and_read(path: &str, asynchronous: bool) -> Attempt {
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    let fd = submit(Submission {
        opcode: OP_OPENAT,
        flags: if asynchronous { ASYNC } else { 0 },
        fd: libc::AT_FDCWD,
        addr: path.as_ptr() as u64,
        // A mode of 0, and the flags.
        rest: [flags << 32, 0, 0, 0, 0],
        ..Submission::default()
    })?;
    // SAFETY: a new descriptor that is nobody else's.
    read(unsafe { OwnedFd::from_raw_fd(fd) }.as_fd(), asynchronous)
}

/// Reads one byte from what is open.
pub(super) fn read(fd: BorrowedFd<'_>, asynchronous: bool) -> Attempt {
    let mut byte = 0_u8;
    let count = submit(Submission {
        opcode: OP_READ,
        flags: if asynchronous { ASYNC } else { 0 },
        fd: fd.as_raw_fd(),
        addr: (&raw mut byte) as u64,
        rest: [1, 0, 0, 0, 0],
        ..Submission::default()
    })?;
    if count == 1 { Ok(()) } else { Err(Errno::ENODATA) }
}

fn set_up() -> Attempt<(OwnedFd, Params)> {
    let mut params = Params::default();
    // SAFETY: the kernel reads and writes one live `io_uring_params`, which has the size of `Params`.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) })?;
    // SAFETY: a new descriptor that is nobody else's.
    Ok((unsafe { OwnedFd::from_raw_fd(fd as i32) }, params))
}

/// Lets a ring of its own carry out one submission, whose memory lives until then.
fn submit(submission: Submission) -> Attempt<i32> {
    let (ring, params) = set_up()?;
    let sq = map(&ring, OFF_SQ)?;
    let cq = map(&ring, OFF_CQ)?;
    let entry = map(&ring, OFF_SQES)?.cast::<Submission>();
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
    if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(result) }
}

/// Maps one area of a ring with a single entry: each fits a page.
fn map(ring: &OwnedFd, offset: i64) -> Attempt<NonNull<libc::c_void>> {
    let size = NonZeroUsize::MIN.saturating_add(4095);
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new shared mapping of the ring, of which nothing in this program knows yet.
    unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE, ring.as_fd(), offset) }
}
