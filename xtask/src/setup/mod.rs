//! `cargo xtask setup`: brings what a fresh machine lacks, and leaves alone what is there.

pub(crate) mod linker;
mod packages;
mod rust;

use anyhow::Result;

pub(crate) use self::packages::{BUSYBOX, ensure_keyring, is_root};
use crate::command::progress;
use crate::lab::kernel;

/// Bring what a fresh machine lacks. Can be run again at any time.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Also bring QEMU, its helpers and the kernels for `cargo xtask vm` (as root, where packages are missing).
    #[arg(long)]
    lab: bool,
}

/// Sets up what the options name.
pub(crate) fn run(options: &Options) -> Result<()> {
    toolchain()?;
    if options.lab {
        lab_programs()?;
        for series in kernel::DEFAULT_SERIES {
            kernel::find_or_fetch(series)?;
        }
    }
    progress("set up");
    Ok(())
}

/// What `cargo xtask build` needs.
pub(crate) fn toolchain() -> Result<()> {
    rust::ensure()?;
    linker::ensure()
}

/// What `cargo xtask vm` needs besides kernels.
pub(crate) fn lab_programs() -> Result<()> {
    packages::ensure()
}
