//! What surrounds whoever acts: namespaces, mounts, cgroups, a directory.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::lineage::in_child_doing;
use crate::net::{errno, plain_socket};
use crate::{Attempt, State, attempt, perform};

/// `None` if the first word is no wrapper.
pub(super) fn wrap(state: &mut State, words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["userns", ref rest @ ..] => in_new(CloneFlags::CLONE_NEWUSER, rest),
        ["pidns", ref rest @ ..] => in_new(CloneFlags::CLONE_NEWPID, rest),
        ["mountns", ref rest @ ..] => in_new(CloneFlags::CLONE_NEWNS, rest),
        ["netns", ref rest @ ..] => in_new(CloneFlags::CLONE_NEWNET, rest),
        ["netns-up", ref rest @ ..] => loopback_up().map(|()| perform(state, rest)),
        ["netns-ping", ref rest @ ..] => allow_ping().map(|()| perform(state, rest)),
        ["netns-back", ref rest @ ..] => back_in_netns(state, rest),
        ["cgroup", directory, ref rest @ ..] => in_cgroup(state, directory, rest),
        ["chdir", directory, ref rest @ ..] => nix::unistd::chdir(directory).map(|()| perform(state, rest)),
        ["then", first, ref rest @ ..] => then(state, first, rest),
        ["bind", from, to, ref rest @ ..] => bind(state, from, to, rest),
        _ => return None,
    })
}

/// A child that begins in new namespaces; a new network namespace has its loopback brought up.
fn in_new(flags: CloneFlags, rest: &[&str]) -> Attempt {
    unshare(flags)?;
    in_child_doing(|| perform(&mut State::default(), rest))
}

fn loopback_up() -> Attempt {
    let fd = plain_socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
    // SAFETY: plain numbers, all of which may be 0.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (at, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *at = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request takes one live `ifreq`.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(done).map(drop)
}

/// Lets every group of this network namespace make ping sockets.
fn allow_ping() -> Attempt {
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").map_err(|error| errno(&error))
}

/// Goes to a new network namespace and comes back.
fn back_in_netns(state: &mut State, rest: &[&str]) -> Attempt {
    let home = std::fs::File::open("/proc/self/ns/net").map_err(|error| errno(&error))?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    setns(&home, CloneFlags::CLONE_NEWNET)?;
    perform(state, rest);
    Ok(())
}

fn in_cgroup(state: &mut State, directory: &str, rest: &[&str]) -> Attempt {
    std::fs::write(format!("{directory}/cgroup.procs"), "0").map_err(|error| errno(&error))?;
    perform(state, rest);
    Ok(())
}

/// In a mount namespace of its own, `from` mounted over `to`.
fn bind(state: &mut State, from: &str, to: &str, rest: &[&str]) -> Attempt {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    mount(Some(from), to, nothing, MsFlags::MS_BIND, nothing)?;
    perform(state, rest);
    Ok(())
}

/// One action of words joined by `+`, without a line about it if it goes well, and then another.
fn then(state: &mut State, first: &str, rest: &[&str]) -> Attempt {
    attempt(state, &first.split('+').collect::<Vec<_>>())?;
    perform(state, rest);
    Ok(())
}
