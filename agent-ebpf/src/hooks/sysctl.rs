//! Kernel settings below /proc/sys: a marked process changes none that policy does not permit, and some never.
//!
//! The program runs at each read and write, whoever opened the file and by whichever mount of procfs.

use agent_common::event::{NAME_LEN, Object};
use agent_common::maps::{CLASS_FACILITY, RowKey};
use agent_common::{Action, Facility, Reason};
use aya_ebpf::helpers::generated::bpf_sysctl_get_name;
use aya_ebpf::macros::cgroup_sysctl;
use aya_ebpf::programs::SysctlContext;
use bytemuck::Zeroable;

use crate::current;
use crate::decide::{self, decide};
use crate::record::Describe;
use crate::text::padded;

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const CLASS: u32 = CLASS_FACILITY | Facility::Sysctl.code();

/// A name in words, to be compared without a loop. Longer ones than any of `FORBIDDEN` are cut.
type Name = [u64; 5];
const LEN: usize = size_of::<Name>();

/// What no policy can permit, since it would disable the enforcement or have the kernel start a program that is no task's.
const FORBIDDEN: [Name; 9] = [
    // Switches BPF LSM off, silently.
    padded("kernel/ftrace_enabled"),
    padded("kernel/core_pattern"),
    padded("kernel/modprobe"),
    padded("kernel/hotplug"),
    padded("kernel/poweroff_cmd"),
    padded("kernel/sysrq"),
    padded("kernel/unprivileged_bpf_disabled"),
    padded("kernel/yama/ptrace_scope"),
    padded("kernel/sched_rt_runtime_us"),
];

/// A setting, by its name below /proc/sys.
struct Setting<'a>(&'a SysctlContext);

impl Describe for Setting<'_> {
    #[inline(always)]
    fn describe(&self, object: &mut Object) {
        object.class = CLASS;
        // SAFETY: the helper writes at most the length that is given, and what does not fit is cut.
        unsafe { bpf_sysctl_get_name(self.0.sysctl, (&raw mut object.name).cast(), NAME_LEN as u64, 0) };
    }
}

/// `fs/proc/proc_sysctl.c: proc_sys_call_handler`.
#[cgroup_sysctl]
pub fn sysctl(ctx: SysctlContext) -> i32 {
    // SAFETY: a field of the program's context, which the verifier checks.
    if unsafe { (*ctx.sysctl).write } == 0 {
        return ALLOW;
    }
    let Some(mark) = current::task_mark() else { return ALLOW };
    let what = Setting(&ctx);
    if is_forbidden(&ctx) {
        decide::forbid(&mark, Action::Use, Reason::Tamper, &what);
        return DENY;
    }
    if decide(&mark, &mut RowKey { class: CLASS, ..RowKey::zeroed() }, &what) { ALLOW } else { DENY }
}

#[inline(always)]
fn is_forbidden(ctx: &SysctlContext) -> bool {
    let mut name: Name = Zeroable::zeroed();
    // SAFETY: the helper writes at most the length that is given.
    unsafe { bpf_sysctl_get_name(ctx.sysctl, name.as_mut_ptr().cast(), LEN as u64, 0) };
    FORBIDDEN.contains(&name)
}
