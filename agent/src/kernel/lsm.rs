//! Which security modules the kernel runs. Loading says nothing: without `bpf` in the list, LSM programs load, attach and
//! never run.

use std::fs;

/// What `/sys/kernel/security/lsm` says of BPF LSM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BpfLsm {
    /// `bpf` is in the list.
    Listed,
    /// It is not; the list is given.
    NotListed(String),
    /// The list cannot be read (securityfs not mounted, or no LSM at all).
    Unknown,
}

/// Reads the kernel's list.
pub fn bpf_lsm() -> BpfLsm {
    fs::read_to_string("/sys/kernel/security/lsm").map_or(BpfLsm::Unknown, |list| listed(list.trim()))
}

fn listed(list: &str) -> BpfLsm {
    if list.split(',').any(|name| name == "bpf") { BpfLsm::Listed } else { BpfLsm::NotListed(list.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_word_counts() {
        assert_eq!(listed("lockdown,yama,bpf"), BpfLsm::Listed);
        assert_eq!(listed("lockdown,bpfilter"), BpfLsm::NotListed("lockdown,bpfilter".into()));
    }
}
