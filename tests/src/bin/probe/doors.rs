//! Side doors: facilities of the kernel by which something else than a socket call changes what gets out.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::ptrace;
use nix::sys::socket::{self, MsgFlags};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::net::{errno, plain_socket};
use crate::{Attempt, number, uring};

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const IFF_TUN: libc::c_short = 1;
const IFF_NO_PI: libc::c_short = 0x1000;

pub(super) fn attempt(words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["ring"] => uring::ring(),
        ["userfault"] => userfault(),
        ["unshare", kind] => unshare(namespace(kind)),
        ["setns", path] => enter(path),
        ["mount-procfs", directory] => mount_procfs(directory),
        ["capability", name] => capability(name),
        ["attach", pid] => attach(Pid::from_raw(number(pid))),
        ["new-route"] => new_route(),
        ["tun", name] => tun(name),
        ["put", path, text] => put(path, text),
        ["put-fd", fd, text] => put_fd(number(fd), text),
        ["get", path] => std::fs::read(path).map(drop).map_err(|error| errno(&error)),
        _ => return None,
    })
}

/// Closes the descriptor that a system call gave.
fn owned(fd: libc::c_long) -> Attempt {
    let fd = Errno::result(fd)?;
    // SAFETY: a new descriptor that is nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(())
}

fn userfault() -> Attempt {
    // SAFETY: a plain system call; the flag is `UFFD_USER_MODE_ONLY`.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) })
}

fn namespace(kind: &str) -> CloneFlags {
    match kind {
        "user" => CloneFlags::CLONE_NEWUSER,
        "net" => CloneFlags::CLONE_NEWNET,
        "mount" => CloneFlags::CLONE_NEWNS,
        _ => CloneFlags::empty(),
    }
}

fn enter(path: &str) -> Attempt {
    let file = File::open(path).map_err(|error| errno(&error))?;
    setns(file, CloneFlags::empty())
}

/// A second procfs, in a mount namespace of its own.
fn mount_procfs(directory: &str) -> Attempt {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    mount(Some("proc"), directory, Some("proc"), MsFlags::empty(), nothing)
}

/// Something that takes a capability and changes nothing, or nothing but this process.
fn capability(name: &str) -> Attempt {
    match name {
        "net_admin" => receive_buffer(),
        "sys_module" => remove_module(),
        // SAFETY: no magic number fits, so that the call does nothing.
        "sys_boot" => Errno::result(unsafe { libc::syscall(libc::SYS_reboot, 0, 0, 0, 0) }).map(drop),
        // SAFETY: a port of diagnostics, for this process.
        "sys_rawio" => Errno::result(unsafe { libc::syscall(libc::SYS_ioperm, 0x80, 1, 1) }).map(drop),
        "sys_admin" => host_name(),
        "bpf" => bpf_map(),
        "perfmon" => perf_event(),
        "dac_read_search" => by_handle(),
        _ => Err(Errno::EINVAL),
    }
}

fn receive_buffer() -> Attempt {
    let fd = plain_socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
    socket::setsockopt(&fd, socket::sockopt::RcvBufForce, &4096)
}

fn remove_module() -> Attempt {
    // SAFETY: a NUL-terminated name.
    Errno::result(unsafe { libc::syscall(libc::SYS_delete_module, c"writ_no_such_module".as_ptr(), 0) }).map(drop)
}

/// The name that the host has.
fn host_name() -> Attempt {
    nix::unistd::sethostname(nix::unistd::gethostname()?)
}

/// A map of least recently used keys, which only who has CAP_BPF gets.
fn bpf_map() -> Attempt {
    const MAP_CREATE: libc::c_int = 0;
    const LRU_HASH: u32 = 9;
    let attributes: [u32; 4] = [LRU_HASH, 4, 4, 16];
    // SAFETY: the kernel reads attributes of the size that is given.
    owned(unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, attributes.as_ptr(), size_of_val(&attributes)) })
}

/// What one CPU does, whoever runs there.
fn perf_event() -> Attempt {
    // `struct perf_event_attr` of the first version: type (software), size, and config (CPU clock), the rest 0.
    let mut attributes = [0_u32; 16];
    (attributes[0], attributes[1]) = (1, 64);
    // SAFETY: the kernel reads attributes of the size that they name.
    owned(unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), -1, 0, -1, 8) })
}

/// open_by_handle_at(2) of the root directory.
fn by_handle() -> Attempt {
    #[repr(C, align(8))]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; 128],
    }
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; 128] };
    let mut mount = 0_i32;
    let path = c"/";
    // SAFETY: a NUL-terminated path, and room for a handle of the length that is given.
    let named = unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, libc::AT_FDCWD, path.as_ptr(), &raw mut handle, &raw mut mount, 0)
    };
    Errno::result(named)?;
    let root = File::open("/").map_err(|error| errno(&error))?;
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the handle that the kernel has just filled in.
    owned(unsafe { libc::syscall(libc::SYS_open_by_handle_at, root.as_raw_fd(), &raw mut handle, flags) })
}

fn attach(pid: Pid) -> Attempt {
    ptrace::attach(pid)?;
    waitpid(pid, None)?;
    ptrace::detach(pid, None)
}

/// `RTM_NEWROUTE` with nothing in it: who may make routes is told that this is none.
fn new_route() -> Attempt {
    let fd = plain_socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    let mut request = [0_u8; 28];
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE;
    request[..4].copy_from_slice(&28_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&libc::RTM_NEWROUTE.to_ne_bytes());
    request[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
    request[16] = libc::AF_INET as u8;
    socket::send(fd.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0_u8; 256];
    let length = socket::recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // After the header of 16 bytes an acknowledgement has the error's number, negated.
    let error = answer.get(16..20).filter(|_| length >= 20).and_then(|bytes| bytes.try_into().ok());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(number) => Err(Errno::from_raw(-number)),
        None => Err(Errno::EBADMSG),
    }
}

/// Attaches to a network device of this name, or makes it.
fn tun(name: &str) -> Attempt {
    let file = File::options().read(true).write(true).open("/dev/net/tun").map_err(|error| errno(&error))?;
    // SAFETY: plain numbers, all of which may be 0.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (at, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *at = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = IFF_TUN | IFF_NO_PI;
    // SAFETY: the request takes one live `ifreq`.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) }).map(drop)
}

/// Writes to a file that is there.
fn put(path: &str, text: &str) -> Attempt {
    let mut file = File::options().write(true).open(path).map_err(|error| errno(&error))?;
    file.write_all(text.as_bytes()).map_err(|error| errno(&error))
}

/// Writes to what was open when this program began.
fn put_fd(fd: i32, text: &str) -> Attempt {
    // SAFETY: the descriptor is inherited and stays open until this process ends.
    nix::unistd::write(unsafe { BorrowedFd::borrow_raw(fd) }, text.as_bytes()).map(drop)
}
