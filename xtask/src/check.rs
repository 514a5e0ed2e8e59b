//! `cargo xtask check`: layout of the code, lints of every crate on its own target, and tidy.

use anyhow::Result;

use crate::command::{command, progress, run};
use crate::{ebpf, repo, setup, tidy};

/// Formats, lints and walls, without running any test. The cheapest comes first.
pub(crate) fn run_all() -> Result<()> {
    setup::toolchain()?;
    tidy::run()?;
    progress("cargo fmt");
    run(command("cargo", ["fmt", "--all", "--check"]).current_dir(repo::root()))?;
    run(command("cargo", ["fmt", "--check"]).current_dir(repo::at("agent-ebpf")))?;
    progress("clippy on the kernel side");
    ebpf::clippy()?;
    progress("clippy on the workspace");
    let arguments = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run(command("cargo", arguments).current_dir(repo::root()))
}
