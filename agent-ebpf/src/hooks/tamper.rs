//! Hands off: processes that are not the task's, and what the enforcement is made of, where BPF LSM works.

use agent_common::event::{NAME_LEN, Object};
use agent_common::maps::{CLASS_FACILITY, Mark, RowKey, SLOT_CANARY, SLOT_DAEMON};
use agent_common::{Action, Facility, Reason};
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use bytemuck::Zeroable;
use core::ffi::c_void;

use crate::current;
use crate::decide::{self, decide_now, decide_quietly};
use crate::maps::PROCESSES;
use crate::offsets::{self, address_of, member};
use crate::record::Describe;

const EPERM: i32 = 1;
const CLASS: u32 = CLASS_FACILITY | Facility::ForeignProcess.code();
/// `PTRACE_MODE_NOAUDIT` (include/linux/ptrace.h): the kernel wants to know, as for what `ps` shows.
const NO_AUDIT: u32 = 4;

/// Whom a marked process wants to lay hands on.
struct Target(*const c_void);

/// Whose it is.
enum Whose {
    /// The same task's.
    Own,
    /// The daemon, or its canary.
    Enforcement,
    /// Another task's, or nobody's.
    Foreign,
}

impl Target {
    #[inline(always)]
    fn whose(&self, mark: &Mark) -> Whose {
        // SAFETY: the hooks' argument is a `task_struct`.
        let tgid: i32 = unsafe { member(self.0, &offsets::task_struct__tgid) };
        // SAFETY: the value is copied at once.
        match unsafe { PROCESSES.get(tgid as u32).copied() } {
            Some(other) if other.slot == mark.slot && other.epoch == mark.epoch => Whose::Own,
            Some(other) if other.slot == SLOT_DAEMON || other.slot == SLOT_CANARY => Whose::Enforcement,
            _ => Whose::Foreign,
        }
    }
}

impl Describe for Target {
    #[inline(always)]
    fn describe(&self, object: &mut Object) {
        object.class = CLASS;
        let comm = address_of(self.0, &offsets::task_struct__comm);
        // SAFETY: `comm` is an array inside the `task_struct`; the string read is bounded and faults read as an error.
        unsafe { bpf_probe_read_kernel_str((&raw mut object.name).cast(), NAME_LEN as u32, comm) };
    }
}

/// `kernel/ptrace.c: __ptrace_may_access`: ptrace(2), process_vm_readv(2), pidfd_getfd(2), and what procfs shows of memory,
/// environment and descriptors. A process may always look at itself.
#[lsm(hook = "ptrace_access_check")]
pub fn ptrace_access_check(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    let (target, mode): (Target, u32) = (Target(ctx.arg(0)), ctx.arg(1));
    let mut key = RowKey { class: CLASS, ..RowKey::zeroed() };
    // Spin locks are held here.
    let go_on = match target.whose(&mark) {
        Whose::Own => true,
        Whose::Foreign if mode & NO_AUDIT != 0 => decide_quietly(&mark, &mut key),
        Whose::Foreign => decide_now(&mark, &mut key, &target, Reason::Timeout),
        Whose::Enforcement => {
            if mode & NO_AUDIT == 0 {
                decide::forbid(&mark, Action::Use, Reason::Tamper, &target);
            }
            false
        }
    };
    if go_on { 0 } else { -EPERM }
}

/// `kernel/signal.c: check_kill_permission`: every signal that a process sends, 0 included.
#[lsm(hook = "task_kill")]
pub fn task_kill(ctx: LsmContext) -> i32 {
    spare(ctx.arg(0), ctx.arg(4))
}

/// `kernel/sched/syscalls.c`: scheduling class, priority and CPUs.
#[lsm(hook = "task_setscheduler")]
pub fn task_setscheduler(ctx: LsmContext) -> i32 {
    spare(ctx.arg(0), ctx.arg(1))
}

/// `kernel/sys.c: set_one_prio`.
#[lsm(hook = "task_setnice")]
pub fn task_setnice(ctx: LsmContext) -> i32 {
    spare(ctx.arg(0), ctx.arg(2))
}

/// `kernel/sys.c: do_prlimit`: a limit on processor time kills, and that signal comes from the kernel.
#[lsm(hook = "task_setrlimit")]
pub fn task_setrlimit(ctx: LsmContext) -> i32 {
    spare(ctx.arg(0), ctx.arg(3))
}

/// Whatever policy says, and in audit mode, too: it is everybody's enforcement that would go.
#[inline(always)]
fn spare(task: *const c_void, earlier: i32) -> i32 {
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    let target = Target(task);
    if !matches!(target.whose(&mark), Whose::Enforcement) {
        return 0;
    }
    decide::forbid(&mark, Action::Use, Reason::Tamper, &target);
    -EPERM
}

/// Programs, maps and links of the kernel.
pub struct BpfObjects;

impl Describe for BpfObjects {
    #[inline(always)]
    fn describe(&self, object: &mut Object) {
        object.class = CLASS_FACILITY | Facility::BpfObjects.code();
    }
}

/// `kernel/bpf/syscall.c: __sys_bpf`, before anything else. What came before is not looked at: where it lies differs between
/// kernels (an argument was added in 6.15), and a program that comes after a refusal is not run at all.
#[lsm(hook = "bpf")]
pub fn bpf(_ctx: LsmContext) -> i32 {
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    decide::forbid(&mark, Action::Use, Reason::Tamper, &BpfObjects);
    -EPERM
}
