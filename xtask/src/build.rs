//! `cargo xtask build`: the eBPF object, then the two binaries that need it.

use anyhow::Result;

use crate::command::{self, command, progress};
use crate::{ebpf, repo, setup};

/// Build the eBPF object and both binaries.
#[derive(Default, clap::Args)]
pub(crate) struct Options {
    /// Build the binaries optimised.
    #[arg(long)]
    pub(crate) release: bool,
    /// Compile the kernel side's debug messages in.
    #[arg(long)]
    pub(crate) ebpf_log: bool,
    /// Build the eBPF object only.
    #[arg(long)]
    pub(crate) ebpf_only: bool,
}

/// Builds what the options name, after setting up the toolchain where it is incomplete.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::toolchain()?;
    ebpf::build(options.ebpf_log)?;
    if options.ebpf_only {
        return Ok(());
    }
    progress("building writd and writ");
    let mut cargo = command("cargo", ["build", "--package", "agent", "--bins"]);
    if options.release {
        cargo.arg("--release");
    }
    command::run(cargo.current_dir(repo::root()))
}
