//! Files that are no files: disks behind the file systems' back, and those by which the kernel is told what to do.

use agent_common::Facility;
use core::ffi::c_void;

use crate::offsets::{self, address_of, member};

const FORMAT: u16 = 0o170_000;
const BLOCK: u16 = 0o060_000;
const CHARACTER: u16 = 0o020_000;
const REGULAR: u16 = 0o100_000;
/// `FMODE_WRITE` (include/linux/fs.h).
const WRITE: u32 = 2;

// include/uapi/linux/magic.h
const BPF: u64 = 0xcafe_4a11;
const CGROUP: u64 = 0x0027_e0eb;
const CGROUP2: u64 = 0x6367_7270;
const CONFIGFS: u64 = 0x6265_6570;
const DEBUGFS: u64 = 0x6462_6720;
const EFIVARFS: u64 = 0xde5e_81e4;
const PROC: u64 = 0x9fa0;
const PSTORE: u64 = 0x6165_676c;
const SECURITYFS: u64 = 0x7363_6673;
const SYSFS: u64 = 0x6265_6572;
const TRACEFS: u64 = 0x7472_6163;

/// The facility that a file is, if it is one.
///
/// # Safety
/// `file` must be a `file` to the verifier, and `inode` its inode.
#[inline(always)]
pub unsafe fn facility(file: *const c_void, inode: *const c_void) -> Option<Facility> {
    // SAFETY: as the caller promises.
    let mode: u16 = unsafe { member(inode, &offsets::inode__i_mode) };
    match mode & FORMAT {
        BLOCK => Some(Facility::RawDevice),
        // SAFETY: as the caller promises.
        CHARACTER => is_raw(unsafe { member(inode, &offsets::inode__i_rdev) }).then_some(Facility::RawDevice),
        // SAFETY: as the caller promises.
        REGULAR => unsafe { of_the_kernel(file, inode) },
        _ => None,
    }
}

/// /dev/mem, /dev/kmem and /dev/port (`drivers/char/mem.c`), and SCSI pass-through (`drivers/scsi/sg.c`).
#[inline(always)]
fn is_raw(device: u32) -> bool {
    // `MKDEV` (include/linux/kdev_t.h).
    let (major, minor) = (device >> 20, device & 0x000f_ffff);
    (major == 1 && (minor == 1 || minor == 2 || minor == 4)) || major == 21
}

/// # Safety
/// As for [`facility`].
#[inline(always)]
unsafe fn of_the_kernel(file: *const c_void, inode: *const c_void) -> Option<Facility> {
    // SAFETY: as the caller promises; each pointer is a member of the one before.
    let (mode, magic): (u32, u64) = unsafe {
        let sb: *const c_void = member(inode, &offsets::inode__i_sb);
        (member(file, &offsets::file__f_mode), member(sb, &offsets::super_block__s_magic))
    };
    let writes = mode & WRITE != 0;
    match magic {
        BPF => Some(Facility::BpfObjects),
        // What is only read here may tell of others' memory, or switch something on.
        DEBUGFS | TRACEFS => Some(Facility::KernelFiles),
        CGROUP | CGROUP2 | CONFIGFS | EFIVARFS | PSTORE | SECURITYFS | SYSFS if writes => Some(Facility::KernelFiles),
        // SAFETY: as the caller promises.
        PROC if writes && unsafe { is_at_the_top(file) } => Some(Facility::KernelFiles),
        _ => None,
    }
}

/// Such as /proc/sysrq-trigger: what lies deeper belongs to a process, or is a setting (`sysctl.rs`).
///
/// # Safety
/// As for [`facility`].
#[inline(always)]
unsafe fn is_at_the_top(file: *const c_void) -> bool {
    // SAFETY: as the caller promises; each pointer is a member of the one before.
    unsafe {
        let path = address_of(file, &offsets::file__f_path);
        let dentry: *const c_void = member(path, &offsets::path__dentry);
        let sb: *const c_void = member(dentry, &offsets::dentry__d_sb);
        let parent: *const c_void = member(dentry, &offsets::dentry__d_parent);
        let root: *const c_void = member(sb, &offsets::super_block__s_root);
        parent == root
    }
}
