//! Hands laid on other processes, on programs of the kernel and on disks.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use crate::lineage::beside_child;
use crate::net::errno;
use crate::{Attempt, number};

pub(super) fn attempt(words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["peek", pid] => peek(process(pid)),
        ["peek-child"] => beside_child(peek),
        ["poke", pid] => poke(process(pid)),
        ["memory", pid] => open(&format!("/proc/{pid}/mem")),
        ["environ", pid] => open(&format!("/proc/{pid}/environ")),
        ["maps", pid] => open(&format!("/proc/{pid}/maps")),
        ["descriptor", pid, fd] => open(&format!("/proc/{pid}/fd/{fd}")),
        ["root-of", pid, path] => open(&format!("/proc/{pid}/root{path}")),
        ["take-descriptor", pid, fd] => take_descriptor(number(pid), number(fd)),
        ["signal", pid] => kill(process(pid), None),
        ["signal-continue", pid] => kill(process(pid), Signal::SIGCONT),
        ["signal-thread", pid] => thread_signal(number(pid)),
        ["signal-queued", pid] => queued_signal(number(pid)),
        ["signal-pidfd", pid] => pidfd_signal(number(pid)),
        ["nice", pid] => nice(number(pid)),
        ["scheduler", pid] => scheduler(number(pid)),
        ["affinity", pid] => affinity(process(pid)),
        ["limit", pid] => limit(number(pid)),
        ["bpf", command] => bpf(command),
        ["device", path, major, minor] => device(path, number(major), number(minor)),
        _ => return None,
    })
}

fn process(word: &str) -> Pid {
    Pid::from_raw(number(word))
}

fn open(path: &str) -> Attempt {
    File::open(path).map(drop).map_err(|error| errno(&error))
}

/// Nothing is at address 0, which only those are told who may look.
fn nothing_there(result: Attempt<usize>) -> Attempt {
    match result {
        Ok(_) | Err(Errno::EFAULT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn peek(pid: Pid) -> Attempt {
    let nowhere = [RemoteIoVec { base: 0, len: 1 }];
    nothing_there(process_vm_readv(pid, &mut [IoSliceMut::new(&mut [0])], &nowhere))
}

fn poke(pid: Pid) -> Attempt {
    let nowhere = [RemoteIoVec { base: 0, len: 1 }];
    nothing_there(process_vm_writev(pid, &[IoSlice::new(&[0])], &nowhere))
}

fn pidfd(pid: i32) -> Attempt<OwnedFd> {
    // SAFETY: a plain system call.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: a new descriptor that is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn take_descriptor(pid: i32, fd: i32) -> Attempt {
    let process = pidfd(pid)?;
    // SAFETY: a plain system call on an open descriptor.
    let taken = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })?;
    // SAFETY: a new descriptor that is nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(taken as i32) });
    Ok(())
}

fn thread_signal(pid: i32) -> Attempt {
    // SAFETY: a plain system call; number 0 sends nothing.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, 0) }).map(drop)
}

fn queued_signal(pid: i32) -> Attempt {
    // SAFETY: plain numbers, all of which may be 0.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    info.si_code = libc::SI_QUEUE;
    // SAFETY: one live `siginfo_t`; number 0 sends nothing.
    Errno::result(unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, pid, 0, &raw mut info) }).map(drop)
}

fn pidfd_signal(pid: i32) -> Attempt {
    let process = pidfd(pid)?;
    let nothing = std::ptr::null_mut::<libc::siginfo_t>();
    // SAFETY: a plain system call on an open descriptor; number 0 sends nothing.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), 0, nothing, 0) }).map(drop)
}

/// The priority that it has.
fn nice(pid: u32) -> Attempt {
    Errno::clear();
    // SAFETY: plain system calls.
    unsafe {
        let now = libc::getpriority(libc::PRIO_PROCESS, pid);
        Errno::result(libc::setpriority(libc::PRIO_PROCESS, pid, now)).map(drop)
    }
}

/// The scheduling class that it has.
fn scheduler(pid: i32) -> Attempt {
    // SAFETY: plain system calls, and one live `sched_param`.
    unsafe {
        let mut parameters: libc::sched_param = std::mem::zeroed();
        Errno::result(libc::sched_getparam(pid, &raw mut parameters))?;
        let policy = Errno::result(libc::sched_getscheduler(pid))?;
        Errno::result(libc::sched_setscheduler(pid, policy, &raw const parameters)).map(drop)
    }
}

/// The CPUs that it has.
fn affinity(pid: Pid) -> Attempt {
    let now: CpuSet = sched_getaffinity(pid)?;
    sched_setaffinity(pid, &now)
}

/// The limit on its processor time that it has.
fn limit(pid: i32) -> Attempt {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: one live `rlimit`, read and then written.
    unsafe {
        Errno::result(libc::prlimit(pid, libc::RLIMIT_CPU, std::ptr::null(), &raw mut now))?;
        Errno::result(libc::prlimit(pid, libc::RLIMIT_CPU, &raw const now, std::ptr::null_mut())).map(drop)
    }
}

/// What a program would begin with that looks for the enforcement's objects. What is not there is `ok`: one may look.
fn bpf(command: &str) -> Attempt {
    let path = c"/writ-no-such-pin";
    let number = match command {
        "obj-get" => 7,
        "prog-get-next-id" => 11,
        "map-get-next-id" => 12,
        "link-get-next-id" => 31,
        "link-get-by-id" => 30,
        _ => return Err(Errno::EINVAL),
    };
    // The address of a path for the first; an id that is the highest for the others.
    let attributes = if number == 7 { [path.as_ptr() as u64, 0] } else { [0x7fff_fff0, 0] };
    // SAFETY: the kernel reads and writes attributes of the size that is given, and reads a NUL-terminated path.
    let result = unsafe { libc::syscall(libc::SYS_bpf, number, attributes.as_ptr(), size_of_val(&attributes)) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a node and opens it; one without a driver is `ok`, since one may ask for it.
fn device(path: &str, major: u64, minor: u64) -> Attempt {
    let kind = if major == 7 { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
    // It may be there already.
    let _ = mknod(path, kind, Mode::from_bits_truncate(0o600), makedev(major, minor));
    match File::open(path) {
        Ok(_) => Ok(()),
        Err(error) if [Some(libc::ENXIO), Some(libc::ENODEV)].contains(&error.raw_os_error()) => Ok(()),
        Err(error) => Err(errno(&error)),
    }
}
