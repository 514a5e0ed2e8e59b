//! Directory entries that a marked process makes, links, moves and removes: a secret is not to be had under another name, and what
//! is the daemon's stays as it is.

use agent_common::Reason;
use agent_common::maps::{CLASS_DAEMON, Mark};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use core::ffi::c_void;

use crate::current;
use crate::decide::decide_now;
use crate::found::{End, Found, carries_the_daemon, directory_of, is_listed, walk};
use crate::hooks::file::forbid;
use crate::offsets::{self, member};

const EPERM: i32 = 1;

/// `fs/namei.c: vfs_link`.
#[lsm(hook = "inode_link")]
pub fn inode_link(ctx: LsmContext) -> i32 {
    guard(ctx.arg(3), |mark| may_take(mark, ctx.arg(0)) && may_change(mark, ctx.arg(2)))
}

/// `fs/namei.c: vfs_rename`; an exchange comes twice, once for each direction.
#[lsm(hook = "inode_rename")]
pub fn inode_rename(ctx: LsmContext) -> i32 {
    guard(ctx.arg(4), |mark| may_take(mark, ctx.arg(1)) && may_change(mark, ctx.arg(3)))
}

/// `fs/namei.c: vfs_unlink`.
#[lsm(hook = "inode_unlink")]
pub fn inode_unlink(ctx: LsmContext) -> i32 {
    guard(ctx.arg(2), |mark| may_remove(mark, ctx.arg(1)))
}

/// `fs/namei.c: vfs_rmdir`.
#[lsm(hook = "inode_rmdir")]
pub fn inode_rmdir(ctx: LsmContext) -> i32 {
    guard(ctx.arg(2), |mark| may_remove(mark, ctx.arg(1)))
}

/// `fs/namei.c: vfs_create`, open(2) with `O_CREAT` among its callers.
#[lsm(hook = "inode_create")]
pub fn inode_create(ctx: LsmContext) -> i32 {
    guard(ctx.arg(3), |mark| may_change(mark, ctx.arg(1)))
}

/// `fs/namei.c: vfs_mkdir`.
#[lsm(hook = "inode_mkdir")]
pub fn inode_mkdir(ctx: LsmContext) -> i32 {
    guard(ctx.arg(3), |mark| may_change(mark, ctx.arg(1)))
}

/// `fs/namei.c: vfs_symlink`.
#[lsm(hook = "inode_symlink")]
pub fn inode_symlink(ctx: LsmContext) -> i32 {
    guard(ctx.arg(3), |mark| may_change(mark, ctx.arg(1)))
}

/// `fs/namei.c: vfs_mknod`, bind(2) of a unix socket among its callers.
#[lsm(hook = "inode_mknod")]
pub fn inode_mknod(ctx: LsmContext) -> i32 {
    guard(ctx.arg(4), |mark| may_change(mark, ctx.arg(1)))
}

/// `fs/open.c: vfs_truncate`, which opens nothing.
#[lsm(hook = "path_truncate")]
pub fn path_truncate(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's first argument is a `path`.
    guard(ctx.arg(1), |mark| may_remove(mark, unsafe { member(ctx.arg(0), &offsets::path__dentry) }))
}

#[inline(always)]
fn guard(earlier: i32, allows: impl FnOnce(&Mark) -> bool) -> i32 {
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = current::lsm_task_mark() else { return 0 };
    if allows(&mark) { 0 } else { -EPERM }
}

/// What is to be had under another name from now on. Directories are locked here, so nobody is held.
#[inline(always)]
fn may_take(mark: &Mark, dentry: *const c_void) -> bool {
    let mut what = behind(dentry);
    if carries_the_daemon(&what) {
        return refused(mark, what);
    }
    if !is_listed(&mut what) && walk(&mut what) != End::Found {
        return true;
    }
    if what.is_the_daemons() { refused(mark, what) } else { decide_now(mark, &mut what.row(), &what, Reason::Timeout) }
}

/// A place where something begins to be, or is replaced.
#[inline(always)]
fn may_change(mark: &Mark, dentry: *const c_void) -> bool {
    // SAFETY: the hooks' argument is a `dentry`.
    let mut directory = unsafe { directory_of(dentry) };
    if walk(&mut directory) == End::Found && directory.is_the_daemons() { refused(mark, directory) } else { true }
}

#[inline(always)]
fn may_remove(mark: &Mark, dentry: *const c_void) -> bool {
    let mut what = behind(dentry);
    let found = is_listed(&mut what) || walk(&mut what) == End::Found;
    if (found && what.is_the_daemons()) || carries_the_daemon(&what) { refused(mark, what) } else { true }
}

#[inline(always)]
fn refused(mark: &Mark, mut what: Found) -> bool {
    what.class = CLASS_DAEMON;
    forbid(mark, &what)
}

#[inline(always)]
fn behind(dentry: *const c_void) -> Found {
    // SAFETY: the hooks' argument is a `dentry` that stands for something.
    unsafe { Found::new(dentry, member(dentry, &offsets::dentry__d_inode)) }
}
