//! Where things are in the repository and in its `target` directory.

use std::path::{Path, PathBuf};

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// `path` under the workspace's root.
pub(crate) fn at(path: impl AsRef<Path>) -> PathBuf {
    root().join(path)
}

/// The eBPF object, without DWARF, as the daemon embeds it. `agent/build.rs` knows the same path.
pub(crate) fn ebpf_object() -> PathBuf {
    at("target/writ-ebpf.o")
}

/// Where tools go that only this clone uses, as `cargo install --root` wants it.
pub(crate) fn tools() -> PathBuf {
    at("target/tools")
}

/// Where downloaded kernels are kept.
pub(crate) fn lab() -> PathBuf {
    at("target/lab")
}

/// Where cargo puts the binaries of a plain build.
pub(crate) fn binaries() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| at("target"), PathBuf::from);
    root().join(target).join("debug")
}
