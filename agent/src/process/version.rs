//! Which kernel this is.

use procfs::KernelVersion;

/// Whether the running kernel is of this version or later. One whose version cannot be read is not.
pub fn kernel_is_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(major, minor, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_neither_the_first_nor_the_last() {
        assert!(kernel_is_at_least(2, 6));
        assert!(!kernel_is_at_least(u8::MAX, 0));
    }
}
