//! Where the running kernel keeps what the programs read. The loader sets each from the kernel's own BTF; rustc cannot
//! emit the relocations that would do it otherwise.
//!
//! Names are `STRUCT__MEMBER` in lower case, which `agent/src/kernel/offsets.rs` resolves; `u64::MAX` is what an unset
//! offset would read at, and no program loads with it.

use aya_ebpf::Global;

macro_rules! offsets {
    ($($name:ident)+) => { $(
        #[unsafe(no_mangle)]
        pub static $name: Global<u64> = Global::new(u64::MAX);
    )+ };
}

offsets! {
    task_struct__pid
    task_struct__tgid
    task_struct__start_boottime
    task_struct__signal
    task_struct__comm
    signal_struct__live
    linux_binprm__filename
    file__f_inode
    file__f_path
    file__f_flags
    file__f_mode
    path__dentry
    inode__i_sb
    inode__i_ino
    inode__i_nlink
    inode__i_mode
    inode__i_rdev
    super_block__s_dev
    super_block__s_root
    super_block__s_magic
    dentry__d_parent
    dentry__d_inode
    dentry__d_name
    dentry__d_sb
    qstr__name
    socket__sk
    sock_common__skc_family
    msghdr__msg_name
    msghdr__msg_namelen
    unix_sock__addr
    unix_sock__peer
    unix_address__len
    unix_address__name
    sock_common__skc_num
    sock_common__skc_rcv_saddr
    sock_common__skc_v6_rcv_saddr
    sock__sk_protocol
    sock_common__skc_daddr
    sock_common__skc_v6_daddr
    sock_common__skc_dport
}

/// Reads a member of a kernel struct.
///
/// # Safety
/// `base` must be a pointer that the verifier knows as a pointer to the struct that `offset` belongs to.
#[inline(always)]
pub unsafe fn member<T: Copy>(base: *const core::ffi::c_void, offset: &Global<u64>) -> T {
    // SAFETY: the verifier checks type and offset, and a fault reads as 0 (`BPF_PROBE_MEM`).
    unsafe { core::ptr::read_volatile(base.byte_add(offset.load() as usize).cast::<T>()) }
}

/// A pointer to a member that is itself a struct.
#[inline(always)]
pub fn address_of(base: *const core::ffi::c_void, offset: &Global<u64>) -> *const core::ffi::c_void {
    base.wrapping_byte_add(offset.load() as usize)
}
