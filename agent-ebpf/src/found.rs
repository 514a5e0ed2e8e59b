//! What the catalogue has on a file: by the inode itself, then by the directories above it.

use agent_common::Counter;
use agent_common::event::{NAME_LEN, Object};
use agent_common::maps::{CLASS_ABOVE, CLASS_DAEMON, FileKey, RowKey};
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel_str};
use bytemuck::Zeroable;
use core::ffi::c_void;

use crate::maps::{DIRECTORIES, SECRETS, SETTINGS, count};
use crate::offsets::{self, address_of, member};
use crate::record::Describe;

/// `__O_TMPFILE` (include/uapi/asm-generic/fcntl.h), the same on x86-64 and arm64.
const O_TMPFILE: u32 = 0o20_000_000;
/// Directories above a file that are looked at; a file deeper than this is refused.
const MAX_DEPTH: u32 = 64;

/// A file that may be a secret.
pub struct Found {
    file: FileKey,
    directory: FileKey,
    /// Only after it was found, else 0.
    pub class: u32,
    dentry: *const c_void,
}

impl Found {
    /// What is behind a directory entry.
    ///
    /// # Safety
    /// `dentry` must be a `dentry` to the verifier, and `inode` an `inode`.
    #[inline(always)]
    pub unsafe fn new(dentry: *const c_void, inode: *const c_void) -> Self {
        // SAFETY: as the caller promises.
        Self { file: unsafe { key_of(inode) }, directory: FileKey::zeroed(), class: 0, dentry }
    }

    /// How the kernel knows it.
    #[inline(always)]
    pub fn key(&self) -> FileKey {
        self.file
    }

    /// Its class for policy, to be decided.
    #[inline(always)]
    pub fn row(&self) -> RowKey {
        RowKey { class: self.class, ..RowKey::zeroed() }
    }

    /// Whether it belongs to the daemon: no policy decides that.
    #[inline(always)]
    pub fn is_the_daemons(&self) -> bool {
        self.class == CLASS_DAEMON
    }
}

impl Describe for Found {
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

/// What the catalogue says of a file that is opened.
pub enum Class {
    Free,
    Secret,
    Unknown,
}

/// By the inode itself, then by the directories above it.
#[inline(always)]
pub fn classify(what: &mut Found, file: *const c_void) -> Class {
    if is_listed(what) {
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

/// Whether the catalogue has the file itself.
#[inline(always)]
pub fn is_listed(what: &mut Found) -> bool {
    // SAFETY: the value is copied at once.
    let class = unsafe { SECRETS.get(what.file).copied() };
    what.class = class.unwrap_or_default();
    class.is_some()
}

/// How a walk up the directories ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
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
pub fn walk(what: &mut Found) -> End {
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
    if let Some(class) = unsafe { DIRECTORIES.get(walk.directory).copied() }
        && class != CLASS_ABOVE
    {
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
pub fn has_secrets(device: u64) -> bool {
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

/// The directory that an entry lies in: the entry itself may stand for nothing yet.
///
/// # Safety
/// `dentry` must be a `dentry` to the verifier.
#[inline(always)]
pub unsafe fn directory_of(dentry: *const c_void) -> Found {
    // SAFETY: as the caller promises; each pointer is a member of the one before.
    unsafe {
        let parent: *const c_void = member(dentry, &offsets::dentry__d_parent);
        Found::new(parent, member(parent, &offsets::dentry__d_inode))
    }
}

/// Whether an entry is a directory above something of the daemon's, or that itself: its name must stay.
#[inline(always)]
pub fn carries_the_daemon(what: &Found) -> bool {
    // SAFETY: only its being there counts.
    let class = unsafe { DIRECTORIES.get(what.file).copied() };
    class.is_some_and(|class| class == CLASS_ABOVE || class == CLASS_DAEMON)
}
