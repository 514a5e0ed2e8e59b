//! To come.

#[cfg(not(any(writ_object, clippy, test)))]
compile_error!("the eBPF object that the daemon embeds has not been built: run `cargo xtask build`");

fn main() {}
