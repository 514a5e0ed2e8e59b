//! Tells the crate where the eBPF object is that `cargo xtask build` made.
//!
//! Without the object an empty file stands in for it, so that `cargo check --lib`, clippy and the unit tests work on a
//! machine without the eBPF toolchain; the daemon itself refuses to compile then (cfg `writ_object`).

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let object = workspace().join("target/writ-ebpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rustc-check-cfg=cfg(writ_object)");
    let embedded = if object.is_file() {
        println!("cargo::rustc-cfg=writ_object");
        object
    } else {
        empty_file()?
    };
    println!("cargo::rustc-env=WRIT_EBPF_OBJECT={}", embedded.display());
    Ok(())
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn empty_file() -> io::Result<PathBuf> {
    let directory = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo did not set `OUT_DIR`"))?;
    let path = PathBuf::from(directory).join("no-object.o");
    fs::write(&path, [])?;
    Ok(path)
}
