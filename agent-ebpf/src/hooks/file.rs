//! Secret reads, where BPF LSM works: the file is known by device and inode, never by its path.

use agent_common::maps::{CLASS_FACILITY, FileKey, LEARNED_FILES, Mark, SLOT_DAEMON};
use agent_common::{Action, Facility, Reason};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use core::ffi::c_void;

use crate::current;
use crate::decide::{self, decide};
use crate::found::{Class, End, Found, classify, has_secrets, is_listed, walk};
use crate::hooks::special;
use crate::maps::{LEARNED, SETTINGS};
use crate::offsets::{self, address_of, member};

const EPERM: i32 = 1;
/// include/linux/fs.h
const MAY_READ: i32 = 4;
const FORMAT: u16 = 0o170_000;
const REGULAR: u16 = 0o100_000;

/// `fs/open.c: do_dentry_open`: every open but `O_PATH`, which reads nothing.
#[lsm(hook = "file_open")]
pub fn file_open(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(1);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_mark() else { return 0 };
    if open(&mark, ctx.arg(0)) { 0 } else { -EPERM }
}

#[inline(always)]
fn open(mark: &Mark, file: *const c_void) -> bool {
    // SAFETY: the hook's first argument is a `file`.
    let (inode, mut what) = unsafe { opened(file) };
    if mark.slot == SLOT_DAEMON {
        learn(what.key());
        return true;
    }
    // SAFETY: `inode` is that of `file`.
    if let Some(facility) = unsafe { special::facility(file, inode) } {
        return open_special(mark, facility, &mut what);
    }
    match classify(&mut what, file) {
        Class::Free => true,
        Class::Unknown => decide::refuse(mark, Action::Read, Reason::Undecidable, &what),
        Class::Secret if what.is_the_daemons() => forbid(mark, &what),
        Class::Secret => decide(mark, &mut what.row(), &what),
    }
}

/// # Safety
/// `file` must be a `file` to the verifier.
#[inline(always)]
unsafe fn opened(file: *const c_void) -> (*const c_void, Found) {
    // SAFETY: as the caller promises; each pointer is a member of the one before.
    unsafe {
        let inode: *const c_void = member(file, &offsets::file__f_inode);
        let path = address_of(file, &offsets::file__f_path);
        (inode, Found::new(member(path, &offsets::path__dentry), inode))
    }
}

/// What is the daemon's own is nobody's to use, whatever policy says.
#[inline(always)]
pub fn forbid(mark: &Mark, what: &Found) -> bool {
    decide::forbid(mark, Action::Use, Reason::Tamper, what);
    false
}

/// A file that is no file. What is pinned is nobody's to open, whatever policy says.
#[inline(always)]
fn open_special(mark: &Mark, facility: Facility, what: &mut Found) -> bool {
    what.class = CLASS_FACILITY | facility.code();
    if facility == Facility::BpfObjects { forbid(mark, what) } else { decide(mark, &mut what.row(), what) }
}

/// `fs/read_write.c: rw_verify_area`: read(2) and all that reads from a descriptor, whoever opened it, and when.
#[lsm(hook = "file_permission")]
pub fn file_permission(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let mask: i32 = ctx.arg(1);
    if mask & MAY_READ == 0 {
        return 0;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    if read_on(&mark, ctx.arg(0)) { 0 } else { -EPERM }
}

/// `mm/util.c: vm_mmap_pgoff`, before any page can be seen. Memory without a file has none.
#[lsm(hook = "mmap_file")]
pub fn mmap_file(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(4);
    if earlier != 0 {
        return earlier;
    }
    let file: *const c_void = ctx.arg(0);
    if file.is_null() {
        return 0;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    if read_on(&mark, file) { 0 } else { -EPERM }
}

/// `fs/file.c: receive_fd`: a file that another process passes on, by whatever way.
#[lsm(hook = "file_receive")]
pub fn secret_receive(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(1);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    if read_on(&mark, ctx.arg(0)) { 0 } else { -EPERM }
}

/// Reading what is open already. What was allowed is recorded once, when it was opened; and whatever cannot be told of a file
/// was for who opened it to be refused.
#[inline(always)]
fn read_on(mark: &Mark, file: *const c_void) -> bool {
    // SAFETY: the hooks' argument is a `file`, and `inode` its inode.
    let (mode, mut what): (u16, Found) = unsafe {
        let (inode, what) = opened(file);
        (member(inode, &offsets::inode__i_mode), what)
    };
    if mode & FORMAT != REGULAR || !has_secrets(what.key().device) {
        return true;
    }
    if !is_listed(&mut what) && walk(&mut what) != End::Found {
        return true;
    }
    if what.is_the_daemons() {
        return forbid(mark, &what);
    }
    let mut key = what.row();
    decide::is_permitted(mark, &mut key) || decide(mark, &mut key, &what)
}

/// Notes how the kernel knows a file that the daemon opens: `stat(2)` tells another device on btrfs and overlayfs.
#[inline(always)]
fn learn(key: FileKey) {
    if SETTINGS.get(0).is_none_or(|settings| settings.learner != current::tid()) {
        return;
    }
    let Some(learned) = LEARNED.get_ptr_mut(0) else { return };
    // SAFETY: one map value, written here for opens of the daemon's one loading thread only.
    unsafe {
        let at = (*learned).count;
        (*learned).count = at.saturating_add(1);
        if at < LEARNED_FILES as u64 {
            (*learned).files[(at & (LEARNED_FILES as u64 - 1)) as usize] = key;
        }
    }
}
