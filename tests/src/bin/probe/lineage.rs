//! Who acts: a descendant, a thread, another user, another namespace. What follows the wrapper's own words is the action.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, Uid, fork, pipe, setsid, setuid};

use crate::net::errno;
use crate::{Attempt, State, attempt, number, perform, say};

/// `None` if the first word is no wrapper.
pub(super) fn wrap(state: &mut State, words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["fork", ref rest @ ..] => in_child(rest),
        ["thread", ref rest @ ..] => in_thread(rest),
        ["leader-exit", ref rest @ ..] => without_leader(rest),
        ["daemonize", ref rest @ ..] => daemonized(rest),
        ["vfork", ref rest @ ..] => vforked(rest),
        ["spawn", ref rest @ ..] => spawned(rest),
        ["clone-parent", ref rest @ ..] => as_sibling(rest),
        ["with-pid", pid, ref rest @ ..] => with_pid(number(pid), rest),
        ["setuid-exec", path, ref rest @ ..] => setuid_exec(path, rest),
        ["as-root", ref rest @ ..] => as_root(state, rest),
        ["exec", ref rest @ ..] => Err(exec(rest)),
        ["chain", depth, ref rest @ ..] => chain(number(depth), rest),
        ["bomb", count, ref rest @ ..] => bomb(number(count), rest),
        ["storm", count, ref rest @ ..] => storm(number(count), rest),
        _ => return None,
    })
}

/// Ends a child without what the parent would do on its way out.
fn leave() -> ! {
    // SAFETY: ends this process; nothing of it is used afterwards.
    unsafe { libc::_exit(0) }
}

/// Forks are made while one thread runs (others wait for it or are gone), so the child has a whole copy of a program at rest.
fn forked(child: impl FnOnce()) -> Attempt<Pid> {
    // SAFETY: one thread; see above.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            child();
            leave()
        }
    }
}

fn wait_for(child: Pid) -> Attempt {
    waitpid(child, Some(WaitPidFlag::__WALL)).map(drop)
}

/// Waits for a child that does `act`.
pub(super) fn in_child_doing(act: impl FnOnce()) -> Attempt {
    wait_for(forked(act)?)
}

/// Acts on a child, which waits for its end.
pub(super) fn beside_child(act: impl FnOnce(Pid) -> Attempt) -> Attempt {
    let child = forked(|| {
        loop {
            nix::unistd::pause();
        }
    })?;
    let outcome = act(child);
    kill(child, Signal::SIGKILL)?;
    wait_for(child)?;
    outcome
}

fn in_child(rest: &[&str]) -> Attempt {
    in_child_doing(|| perform(&mut State::default(), rest))
}

fn in_thread(rest: &[&str]) -> Attempt {
    std::thread::scope(|scope| {
        scope.spawn(|| perform(&mut State::default(), rest));
    });
    Ok(())
}

/// The group's leader ends; a thread that is left acts once it has.
fn without_leader(rest: &[&str]) -> Attempt {
    let words: Vec<String> = rest.iter().map(|&word| word.to_owned()).collect();
    std::thread::spawn(move || {
        while !leader_is_gone() {
            std::thread::yield_now();
        }
        perform(&mut State::default(), &words.iter().map(String::as_str).collect::<Vec<_>>());
        std::process::exit(0);
    });
    // SAFETY: ends the calling thread alone; its stack holds nothing that the other thread uses.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    Ok(())
}

fn leader_is_gone() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// Double fork with a session of its own: the one that acts has no living ancestor left.
fn daemonized(rest: &[&str]) -> Attempt {
    let (gone, over) = pipe()?;
    let child = forked(|| {
        let _ = setsid();
        let grandchild = forked(|| {
            drop(over);
            // Ends once this process's parent is gone.
            let _ = nix::unistd::read(&gone, &mut [0]);
            perform(&mut State::default(), rest);
        });
        if let Err(error) = grandchild {
            println!("setup {error:?}");
        }
    })?;
    wait_for(child)
}

/// The child borrows this process's memory until it ends, as with vfork(2).
fn vforked(rest: &[&str]) -> Attempt {
    let mut stack = vec![0_u8; 256 << 10];
    let act = || {
        perform(&mut State::default(), rest);
        0
    };
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: the stack lives until the child has ended, since the caller sleeps so long.
    let child = unsafe { clone(Box::new(act), &mut stack, flags, Some(libc::SIGCHLD)) }?;
    wait_for(child)
}

fn own_program() -> Attempt<CString> {
    let path = std::env::current_exe().map_err(|error| errno(&error))?;
    CString::new(path.into_os_string().into_encoded_bytes()).map_err(|_| Errno::EINVAL)
}

fn spawned(rest: &[&str]) -> Attempt {
    let program = own_program()?;
    let words: Vec<CString> = rest.iter().filter_map(|word| CString::new(*word).ok()).collect();
    let own = [program.as_ptr().cast_mut()];
    let mut arguments: Vec<*mut libc::c_char> =
        own.into_iter().chain(words.iter().map(|word| word.as_ptr().cast_mut())).collect();
    arguments.push(std::ptr::null_mut());
    let environment = [std::ptr::null_mut()];
    let mut pid = 0;
    // SAFETY: NUL-terminated strings and null-terminated lists that live through the call.
    let error = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            std::ptr::null(),
            std::ptr::null(),
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    if error != 0 { Err(Errno::from_raw(error)) } else { wait_for(Pid::from_raw(pid)) }
}

/// clone3(2) without a stack of its own behaves like fork.
fn clone3(flags: u64, pid: Option<i32>, child: impl FnOnce()) -> Attempt<Pid> {
    // SAFETY: plain numbers, all of which may be 0.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    // A sibling's parent is told of its end by the signal that its own process group leader chose.
    arguments.exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
    if let Some(pid) = &pid {
        arguments.set_tid = std::ptr::from_ref(pid) as u64;
        arguments.set_tid_size = 1;
    }
    // SAFETY: the kernel reads `clone_args` of the size that is given; one thread, as for `forked`.
    let id = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match Errno::result(id)? {
        0 => {
            child();
            leave()
        }
        id => Ok(Pid::from_raw(id as i32)),
    }
}

/// A child of this process makes a process whose parent is this one.
fn as_sibling(rest: &[&str]) -> Attempt {
    let child = forked(|| {
        let made = clone3(libc::CLONE_PARENT as u64, None, || perform(&mut State::default(), rest));
        if let Err(error) = made {
            println!("setup {error:?}");
        }
    })?;
    wait_for(child)?;
    match waitpid(None, Some(WaitPidFlag::__WALL)) {
        Ok(_) | Err(Errno::ECHILD) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A process with a chosen id.
fn with_pid(pid: i32, rest: &[&str]) -> Attempt {
    wait_for(clone3(0, Some(pid), || perform(&mut State::default(), rest))?)
}

/// Becomes nobody, then executes a program that makes whoever runs it root.
fn setuid_exec(path: &str, rest: &[&str]) -> Attempt {
    setuid(Uid::from_raw(65534))?;
    Err(errno(&Command::new(path).arg("as-root").args(rest).exec()))
}

/// Acts only as root.
fn as_root(state: &mut State, rest: &[&str]) -> Attempt {
    if !Uid::effective().is_root() {
        return Err(Errno::EACCES);
    }
    perform(state, rest);
    Ok(())
}

fn exec(rest: &[&str]) -> Errno {
    match std::env::current_exe() {
        Ok(own) => errno(&Command::new(own).args(rest).exec()),
        Err(error) => errno(&error),
    }
}

/// Each generation forks the next, which executes the program anew.
fn chain(depth: u32, rest: &[&str]) -> Attempt {
    let Some(left) = depth.checked_sub(1) else {
        perform(&mut State::default(), rest);
        return Ok(());
    };
    let left = left.to_string();
    let next: Vec<&str> = ["chain", &left].into_iter().chain(rest.iter().copied()).collect();
    let child = forked(|| println!("setup {:?}", exec(&next)))?;
    wait_for(child)
}

/// `count` children at once.
fn bomb(count: u32, rest: &[&str]) -> Attempt {
    let mut children = Vec::new();
    for _ in 0..count {
        children.push(forked(|| perform(&mut State::default(), rest))?);
    }
    children.into_iter().try_for_each(wait_for)
}

/// As many children as can be had, up to `count`, each of which acts and then stays until this process ends.
fn storm(count: u32, rest: &[&str]) -> Attempt {
    let (stay, end) = pipe()?;
    let end: OwnedFd = end;
    for _ in 0..count {
        let held = end.as_raw_fd();
        let child = forked(|| {
            // SAFETY: the child's own copy, which would keep the pipe open.
            drop(unsafe { OwnedFd::from_raw_fd(held) });
            say(attempt(&mut State::default(), rest));
            let _ = nix::unistd::read(&stay, &mut [0]);
        });
        if let Err(error) = child {
            println!("fork {error:?}");
            break;
        }
    }
    Ok(())
}
