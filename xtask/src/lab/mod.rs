//! The lab: Debian kernels booted in QEMU with one program in them. Nothing is installed and no network is attached.

mod apt;
pub(crate) mod guest;
mod image;
mod initramfs;
pub(crate) mod kernel;
mod log;
pub(crate) mod machine;
pub(crate) mod modules;
