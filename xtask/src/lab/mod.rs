//! The lab: Debian kernels booted in QEMU with one program in them. Nothing is installed and no network is attached.

pub(crate) mod apt;
pub(crate) mod image;
pub(crate) mod kernel;
