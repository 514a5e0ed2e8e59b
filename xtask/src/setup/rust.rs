//! The Rust toolchain of `rust-toolchain.toml`, with the components that it names.

use anyhow::{Context, Result};

use crate::command::{command, exists, progress, read, run};
use crate::repo;

/// Installs the pinned toolchain's missing parts. Where rustup may install by itself it has done so by now; with
/// `RUSTUP_AUTO_INSTALL=0` it has not.
pub(crate) fn ensure() -> Result<()> {
    if has_components() {
        return Ok(());
    }
    anyhow::ensure!(exists("rustup"), "rustup is missing: install it from https://rustup.rs and run this again");
    progress("installing the components that rust-toolchain.toml names");
    // Without an argument this installs what rust-toolchain.toml asks for, in every rustup since 1.28.
    run(command("rustup", ["toolchain", "install"]).current_dir(repo::root()))
        .context("cannot install the Rust toolchain: check the network and run `cargo xtask setup` again")
}

/// Whether the compiler finds core's source, rustfmt and clippy.
fn has_components() -> bool {
    let Ok(sysroot) = read(command("rustc", ["--print", "sysroot"]).current_dir(repo::root())) else {
        return false;
    };
    let wanted = ["lib/rustlib/src/rust/library/core/src/lib.rs", "bin/rustfmt", "bin/cargo-clippy"];
    wanted.iter().all(|file| std::path::Path::new(sysroot.trim()).join(file).is_file())
}
