//! The struct members that the programs read, resolved for the running kernel.

use super::btf::{Btf, BtfError};

/// Globals of `agent-ebpf/src/offsets.rs`, each named `STRUCT__MEMBER`.
const NAMES: [&str; 40] = [
    "task_struct__pid",
    "task_struct__tgid",
    "task_struct__start_boottime",
    "task_struct__signal",
    "task_struct__comm",
    "signal_struct__live",
    "linux_binprm__filename",
    "file__f_inode",
    "file__f_path",
    "file__f_flags",
    "file__f_mode",
    "path__dentry",
    "inode__i_sb",
    "inode__i_ino",
    "inode__i_nlink",
    "inode__i_mode",
    "inode__i_rdev",
    "super_block__s_dev",
    "super_block__s_root",
    "super_block__s_magic",
    "dentry__d_parent",
    "dentry__d_inode",
    "dentry__d_name",
    "dentry__d_sb",
    "qstr__name",
    "socket__sk",
    "sock_common__skc_family",
    "msghdr__msg_name",
    "msghdr__msg_namelen",
    "unix_sock__addr",
    "unix_sock__peer",
    "unix_address__len",
    "unix_address__name",
    "sock_common__skc_num",
    "sock_common__skc_rcv_saddr",
    "sock_common__skc_v6_rcv_saddr",
    "sock__sk_protocol",
    "sock_common__skc_daddr",
    "sock_common__skc_v6_daddr",
    "sock_common__skc_dport",
];

/// Each global's name and value.
///
/// # Errors
/// The first member that this kernel does not have: a missing one is never a zero.
pub fn resolve(btf: &Btf<'_>) -> Result<Vec<(&'static str, u64)>, BtfError> {
    NAMES.iter().map(|&name| Ok((name, offset(btf, name)?))).collect()
}

fn offset(btf: &Btf<'_>, name: &str) -> Result<u64, BtfError> {
    let (structure, member) = name.split_once("__").unwrap_or((name, ""));
    btf.offset_of(structure, member)
}
