//! The Rust toolchain of `rust-toolchain.toml`, with the components that it names.

use anyhow::{Context, Result};

use crate::command::{command, exists, progress, read, run};
use crate::repo;

const COMPONENTS: [&str; 3] = ["rust-src", "rustfmt", "clippy"];

/// Installs what is missing. Where rustup may install by itself it has done so by now; with `RUSTUP_AUTO_INSTALL=0` it
/// has not.
pub(crate) fn ensure() -> Result<()> {
    if has_components() {
        return Ok(());
    }
    anyhow::ensure!(exists("rustup"), "rustup is missing: install it from https://rustup.rs and run this again");
    progress(format!("installing {}", COMPONENTS.join(" ")));
    let add = run(command("rustup", ["component", "add"]).args(COMPONENTS).current_dir(repo::root()));
    if add.is_ok() && has_components() {
        return Ok(());
    }
    // Without an argument this installs what rust-toolchain.toml asks for.
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
