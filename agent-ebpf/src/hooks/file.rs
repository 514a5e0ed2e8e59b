//! Secret reads, where BPF LSM works: the file is known by device and inode, never by its path.

use agent_common::event::{NAME_LEN, Object};
use agent_common::maps::{FileKey, LEARNED_FILES, Mark, RowKey, SLOT_DAEMON};
use agent_common::{Action, Counter, Reason};
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel_str};
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
    match walk(what) {
        End::Found => Class::Secret,
        End::Root => Class::Free,
        // Without a path from the root (`open_by_handle_at`), nobody can tell what it is below.
        End::Adrift if !guarded => Class::Free,
        End::Adrift | End::Unreadable => Class::Unknown,
        End::TooDeep => {
            count(Counter::WalkTooDeep);
            Class::Unknown
        }
    }
}

/// How a walk up the directories ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    TooDeep,
    Found,
    Root,
    Adrift,
    Unreadable,
}

/// Where a walk is: what its callback looks at, and what it leaves.
#[repr(C)]
struct Walk {
    /// A `dentry`.
    at: u64,
    directory: FileKey,
    class: u32,
    /// An [`End`].
    end: u32,
}

/// Looks at the directories above a file. The verifier goes through a callback once, through a loop once a turn, which 6.1
/// finds too much; pointers do not keep their types on the way to a callback, so they are read by address.
#[inline(always)]
fn walk(what: &mut Secret) -> End {
    // 0, which the verifier must not know: 6.1 takes what was known before the loop for known after it.
    let Some(unknown) = SETTINGS.get(0).map(|settings| settings.pad) else { return End::Unreadable };
    let directory = FileKey { device: what.file.device, inode: u64::from(unknown) };
    let mut walk = Walk { at: what.dentry as u64, directory, class: unknown, end: unknown };
    // SAFETY: the callback is static and takes what is passed.
    unsafe { bpf_loop(MAX_DEPTH, step as *mut c_void, (&raw mut walk).cast(), 0) };
    // SAFETY: fields of a local that the callback has written to.
    let (class, directory, end) = unsafe {
        (
            core::ptr::read_volatile(&raw const walk.class),
            core::ptr::read_volatile(&raw const walk.directory),
            core::ptr::read_volatile(&raw const walk.end),
        )
    };
    if end == End::Found as u32 {
        (what.directory, what.class) = (directory, class);
        return End::Found;
    }
    match end {
        end if end == End::Root as u32 => End::Root,
        end if end == End::Adrift as u32 => End::Adrift,
        end if end == End::TooDeep as u32 => End::TooDeep,
        _ => End::Unreadable,
    }
}

// Not exported: the verifier wants it static.
unsafe extern "C" fn step(_turn: u32, walk: *mut c_void) -> i64 {
    // SAFETY: `walk` passes a `Walk` on its own stack.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    match look(walk) {
        Some(End::TooDeep) => 0,
        Some(end) => {
            walk.end = end as u32;
            1
        }
        None => {
            walk.end = End::Unreadable as u32;
            1
        }
    }
}

/// One directory; `TooDeep` to go on above it.
#[inline(always)]
fn look(walk: &mut Walk) -> Option<End> {
    let inode = read(walk.at, &offsets::dentry__d_inode)?;
    walk.directory.inode = read(inode, &offsets::inode__i_ino)?;
    // SAFETY: the value is copied at once.
    if let Some(class) = unsafe { DIRECTORIES.get(walk.directory).copied() } {
        walk.class = class;
        return Some(End::Found);
    }
    let parent = read(walk.at, &offsets::dentry__d_parent)?;
    if parent == walk.at {
        let sb = read(walk.at, &offsets::dentry__d_sb)?;
        let root = read(sb, &offsets::super_block__s_root)?;
        return Some(if root == walk.at { End::Root } else { End::Adrift });
    }
    walk.at = parent;
    Some(End::TooDeep)
}

/// A word of a kernel struct, by its address; `None` where there is nothing to read.
#[inline(always)]
fn read(base: u64, offset: &aya_ebpf::Global<u64>) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset.load()) as *const u64).ok() }
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
