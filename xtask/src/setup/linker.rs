//! bpf-linker, in the one version that borrows the pinned compiler's own LLVM.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::command::{command, progress, read, run};
use crate::repo;

/// From 0.11 on it wants an LLVM of its own.
const VERSION: &str = "0.10.4";

/// The linker to use: this clone's own, else one in `PATH` of the same version.
pub(crate) fn find() -> Option<PathBuf> {
    [repo::tools().join("bin/bpf-linker"), PathBuf::from("bpf-linker")]
        .into_iter()
        .find(|program| read(&mut command(program, ["--version"])).is_ok_and(|said| is_wanted(&said)))
}

/// Builds the linker into this clone unless there is one.
pub(crate) fn ensure() -> Result<()> {
    if find().is_some() {
        return Ok(());
    }
    progress(format!("building bpf-linker {VERSION} (about a minute)"));
    let mut cargo = command("cargo", ["install", "bpf-linker", "--version", VERSION, "--locked", "--quiet", "--root"]);
    run(cargo.arg(repo::tools()).current_dir(repo::root()))
        .context("cannot install bpf-linker: check that a C compiler and crates.io can be had, then run `cargo xtask setup` again")
}

fn is_wanted(version_line: &str) -> bool {
    version_line.split_whitespace().nth(1) == Some(VERSION)
}

#[cfg(test)]
mod tests {
    use super::is_wanted;

    #[test]
    fn only_the_pinned_version_is_wanted() {
        assert!(is_wanted("bpf-linker 0.10.4\n"));
        assert!(!is_wanted("bpf-linker 0.10.40\n"));
        assert!(!is_wanted("bpf-linker 0.13.0\n"));
        assert!(!is_wanted(""));
    }
}
