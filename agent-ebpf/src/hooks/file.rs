//! Secret reads, where BPF LSM works: the file is known by device and inode, never by its path.

use agent_common::event::{NAME_LEN, Object};
use agent_common::maps::{FileKey, LEARNED_FILES, Mark, RowKey, SLOT_DAEMON};
use agent_common::{Action, Counter, Reason};
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use bytemuck::Zeroable;
use core::ffi::c_void;

use crate::current;
use crate::decide::{self, decide};
use crate::maps::{DIRECTORIES, LEARNED, SECRETS, SETTINGS, count};
use crate::offsets::{self, address_of, member};
use crate::record::Describe;

const EPERM: i32 = 1;
/// `__O_TMPFILE` (include/uapi/asm-generic/fcntl.h), the same on x86-64 and arm64.
const O_TMPFILE: u32 = 0o20_000_000;
/// Directories above a file that are looked at; a file deeper than this is refused.
const MAX_DEPTH: u32 = 64;

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
    // SAFETY: the hook's first argument is a `file`; each pointer is a member of the one before.
    let (key, dentry): (FileKey, *const c_void) = unsafe {
        let inode: *const c_void = member(file, &offsets::file__f_inode);
        let path = address_of(file, &offsets::file__f_path);
        (key_of(inode), member(path, &offsets::path__dentry))
    };
    if mark.slot == SLOT_DAEMON {
        learn(key);
        return true;
    }
    let mut what = Secret { file: key, directory: FileKey::zeroed(), class: 0, dentry };
    match classify(&mut what, file) {
        Class::Free => true,
        Class::Unknown => decide::refuse(mark, Action::Read, Reason::Undecidable, &what),
        Class::Secret => decide(mark, &mut RowKey { class: what.class, ..RowKey::zeroed() }, &what),
    }
}

/// A file that may be a secret.
struct Secret {
    file: FileKey,
    directory: FileKey,
    class: u32,
    dentry: *const c_void,
}

impl Describe for Secret {
    #[inline(always)]
    fn describe(&self, object: &mut Object) {
        (object.file, object.directory, object.class) = (self.file, self.directory, self.class);
        let qstr = address_of(self.dentry, &offsets::dentry__d_name);
        // SAFETY: `d_name` is a `qstr` inside the dentry; the string read is bounded and faults read as an error.
        unsafe {
            let text: *const c_void = member(qstr, &offsets::qstr__name);
            bpf_probe_read_kernel_str((&raw mut object.name).cast(), NAME_LEN as u32, text);
        }
    }
}

enum Class {
    Free,
    Secret,
    Unknown,
}

/// By the inode itself, then by the directories above it.
#[inline(always)]
fn classify(what: &mut Secret, file: *const c_void) -> Class {
    // SAFETY: the value is copied at once.
    if let Some(class) = unsafe { SECRETS.get(what.file).copied() } {
        what.class = class;
        return Class::Secret;
    }
    let guarded = has_secrets(what.file.device);
    // SAFETY: `file` is the hook's argument, and `f_inode` one of its members.
    if guarded && unsafe { is_unlinked(file) } {
        // It may have been a secret until a moment ago: a descriptor opened with O_PATH outlives the name.
        return Class::Unknown;
    }
    let mut at = what.dentry;
    for _ in 0..MAX_DEPTH {
        // SAFETY: `at` is a `dentry`, as are its parents; all of them share the file's super block.
        let (inode, parent): (*const c_void, *const c_void) =
            unsafe { (member(at, &offsets::dentry__d_inode), member(at, &offsets::dentry__d_parent)) };
        // SAFETY: as above.
        let number: u64 = unsafe { member(inode, &offsets::inode__i_ino) };
        let directory = FileKey { device: what.file.device, inode: number };
        // SAFETY: the value is copied at once.
        if let Some(class) = unsafe { DIRECTORIES.get(directory).copied() } {
            (what.directory, what.class) = (directory, class);
            return Class::Secret;
        }
        if parent == at {
            // Without a path from the root (`open_by_handle_at`), nobody can tell what it is below.
            // SAFETY: `at` is a `dentry`, and its super block one of its members.
            return if guarded && !unsafe { is_root(at) } { Class::Unknown } else { Class::Free };
        }
        at = parent;
    }
    count(Counter::WalkTooDeep);
    Class::Unknown
}

/// Whether the catalogue has anything on a device: the daemon notes each under inode 0, which no file has.
#[inline(always)]
fn has_secrets(device: u64) -> bool {
    // SAFETY: only its being there counts.
    unsafe { SECRETS.get(FileKey { device, inode: 0 }).is_some() }
}

/// Whether no name is left, and the file is not one that never had any (`O_TMPFILE`).
///
/// # Safety
/// `file` must be a `file` to the verifier.
#[inline(always)]
unsafe fn is_unlinked(file: *const c_void) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        let inode: *const c_void = member(file, &offsets::file__f_inode);
        let links: u32 = member(inode, &offsets::inode__i_nlink);
        let flags: u32 = member(file, &offsets::file__f_flags);
        links == 0 && flags & O_TMPFILE == 0
    }
}

/// # Safety
/// `dentry` must be a `dentry` to the verifier.
#[inline(always)]
unsafe fn is_root(dentry: *const c_void) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        let sb: *const c_void = member(dentry, &offsets::dentry__d_sb);
        let root: *const c_void = member(sb, &offsets::super_block__s_root);
        root == dentry
    }
}

/// # Safety
/// `inode` must be an `inode` to the verifier.
#[inline(always)]
unsafe fn key_of(inode: *const c_void) -> FileKey {
    // SAFETY: as the caller promises.
    unsafe {
        let sb: *const c_void = member(inode, &offsets::inode__i_sb);
        let device: u32 = member(sb, &offsets::super_block__s_dev);
        FileKey { device: u64::from(device), inode: member(inode, &offsets::inode__i_ino) }
    }
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
