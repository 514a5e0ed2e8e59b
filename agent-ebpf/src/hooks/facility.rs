//! What opens a way around other guards, where BPF LSM works: capabilities, user namespaces, io_uring, userfaultfd, tun.
//!
//! The daemon fills in the verdicts when a task starts, so that hooks in which nobody may wait find one.

use agent_common::event::Object;
use agent_common::maps::{CLASS_FACILITY, Mark, RowKey};
use agent_common::{Facility, Reason};
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use bytemuck::Zeroable;
use core::ffi::c_void;

use crate::current;
use crate::decide::{decide, decide_now, decide_quietly};
use crate::offsets::{self, member};
use crate::record::Describe;
use crate::text::padded;

const EPERM: i32 = 1;
/// Capabilities are the facilities from here on: this plus their number.
const CAPABILITIES: u32 = 0x100;
/// `CAP_OPT_NOAUDIT` (include/linux/security.h): the kernel wants to know, and refuses nothing by name.
const NO_AUDIT: u32 = 1 << 1;
/// Bit n for each guarded capability n.
const GUARDED: u64 = guarded();

const fn guarded() -> u64 {
    let (mut bits, mut at) = (0, 0);
    while at < Facility::ALL.len() {
        let code = Facility::ALL[at].code();
        if code >= CAPABILITIES {
            bits |= 1 << (code - CAPABILITIES);
        }
        at += 1;
    }
    bits
}

/// A facility, with its row's key.
struct Used(u32);

impl Used {
    #[inline(always)]
    fn new(facility: Facility) -> Self {
        Self(CLASS_FACILITY | facility.code())
    }

    #[inline(always)]
    fn key(&self) -> RowKey {
        RowKey { class: self.0, ..RowKey::zeroed() }
    }
}

impl Describe for Used {
    #[inline(always)]
    fn describe(&self, object: &mut Object) {
        object.class = self.0;
    }
}

#[inline(always)]
fn errno(go_on: bool) -> i32 {
    if go_on { 0 } else { -EPERM }
}

/// `kernel/capability.c`, everywhere: modules are asked in order, and the module `capability` first, so that only who has the
/// capability comes here. It counts in whatever user namespace: inside its own, a process has them all.
#[lsm(hook = "capable")]
pub fn capable(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(4);
    if earlier != 0 {
        return earlier;
    }
    let (capability, options): (i32, u32) = (ctx.arg(2), ctx.arg(3));
    let number = capability as u32 & 63;
    if GUARDED >> number & 1 == 0 {
        return 0;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    let what = Used(CLASS_FACILITY | (CAPABILITIES + number));
    // Spin locks may be held here.
    errno(if options & NO_AUDIT != 0 {
        decide_quietly(&mark, &mut what.key())
    } else {
        decide_now(&mark, &mut what.key(), &what, Reason::Timeout)
    })
}

/// `kernel/user_namespace.c: create_user_ns`, for clone(2) and unshare(2).
#[lsm(hook = "userns_create")]
pub fn userns_create(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(1);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    held(&mark, Facility::UserNamespace)
}

/// `fs/anon_inodes.c`: descriptors of io_uring_setup(2) and userfaultfd(2), each ring and each handler anew.
#[lsm(hook = "inode_init_security_anon")]
pub fn inode_init_security_anon(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    let name = name_of(ctx.arg(1));
    if name == padded("[io_uring]") {
        held(&mark, Facility::IoUring)
    } else if name == padded("[userfaultfd]") {
        held(&mark, Facility::Userfaultfd)
    } else {
        0
    }
}

#[inline(always)]
fn name_of(qstr: *const c_void) -> [u64; 2] {
    let mut name = [0_u64; 2];
    // SAFETY: `qstr` is the hook's second argument; the string read is bounded and faults read as an error.
    unsafe {
        let text: *const c_void = member(qstr, &offsets::qstr__name);
        bpf_probe_read_kernel_str(name.as_mut_ptr().cast(), size_of_val(&name) as u32, text);
    }
    name
}

/// `drivers/net/tun.c: tun_set_iff`, a new device.
#[lsm(hook = "tun_dev_create")]
pub fn tun_dev_create(ctx: LsmContext) -> i32 {
    tun(ctx.arg(0))
}

/// The same for a device that is there: its owner needs no capability.
#[lsm(hook = "tun_dev_open")]
pub fn tun_dev_open(ctx: LsmContext) -> i32 {
    tun(ctx.arg(1))
}

#[inline(always)]
fn tun(earlier: i32) -> i32 {
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    // The lock of all network devices is held here.
    let what = Used::new(Facility::Tun);
    errno(decide_now(&mark, &mut what.key(), &what, Reason::Timeout))
}

#[inline(always)]
fn held(mark: &Mark, facility: Facility) -> i32 {
    let what = Used::new(facility);
    errno(decide(mark, &mut what.key(), &what))
}
