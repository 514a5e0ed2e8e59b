//! The eBPF object: compiled for the kernel's target, then freed of DWARF while its BTF stays.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::build::elf::{Builder, SectionData};

use crate::command::{command, progress, run};
use crate::{repo, setup};

const TARGET: &str = "bpfel-unknown-none";

/// Builds the object, with debug messages if asked, and puts it where the daemon's build looks for it.
pub(crate) fn build(with_log: bool) -> Result<()> {
    progress("building the eBPF object");
    let features = if with_log { "log" } else { "" };
    run(cargo("build")?.args(["--quiet", "--release", "--bin", "writ", "--features", features]))?;
    let built = repo::at("target/ebpf").join(TARGET).join("release/writ");
    let object = std::fs::read(&built).with_context(|| format!("cannot read `{}`", built.display()))?;
    let stripped = without_dwarf(&object)?;
    progress(format!("the eBPF object has {} bytes, {} without DWARF", object.len(), stripped.len()));
    write_if_changed(&repo::ebpf_object(), &stripped)
}

/// Lints the kernel side for its own target; every warning is an error.
pub(crate) fn clippy() -> Result<()> {
    run(cargo("clippy")?.args(["--quiet", "--release", "--", "-D", "warnings"]))
}

/// A cargo command for the kernel side, which is no member of the workspace: built together with the daemon, it would
/// get the features of std that the daemon asks of the crates that both use.
fn cargo(verb: &str) -> Result<Command> {
    let linker = setup::linker::find().context("bpf-linker is missing: run `cargo xtask setup`")?;
    let flags = ["-Cdebuginfo=2", "-Clink-arg=--btf", &format!("-Clinker={}", linker.display())].join("\x1f");
    let mut cargo = command("cargo", [verb, "--target", TARGET, "-Zbuild-std=core", "--target-dir"]);
    cargo.arg(repo::at("target/ebpf")).current_dir(repo::at("agent-ebpf"));
    // The pinned stable compiler builds core for a target without a prebuilt one only if told that it may.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags);
    Ok(cargo)
}

/// The object without its `.debug_*` sections; an error if it then lacks the BTF that the kernel asks for.
fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the eBPF object is no ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    builder.delete_orphans();
    for kept in [".BTF", ".BTF.ext"] {
        let has = builder.sections.iter().any(|section| !section.delete && section.name.to_string() == kept);
        ensure!(has, "the eBPF object has no `{kept}` section: was it linked with `--btf`?");
    }
    add_section_names(&mut builder);
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the eBPF object")?;
    Ok(stripped)
}

/// LLVM keeps the sections' names among the symbols' names; the writer wants a table of their own.
fn add_section_names(builder: &mut Builder<'_>) {
    if builder.sections.iter().all(|section| !matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = object::elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
}

/// Leaves an equal file alone, so that the daemon is not compiled again for nothing.
fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    std::fs::write(path, content).with_context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with these sections, named in the way of LLVM: within `.strtab`.
    fn object_with(sections: &[&str]) -> Vec<u8> {
        let mut builder = Builder::new(object::Endianness::Little, true);
        builder.header.e_type = object::elf::ET_REL;
        builder.header.e_machine = object::elf::EM_BPF;
        add_section_names(&mut builder);
        for name in sections {
            let section = builder.sections.add();
            section.name = name.as_bytes().into();
            section.sh_type = object::elf::SHT_PROGBITS;
            section.data = SectionData::Data(b"content".as_slice().into());
        }
        let mut bytes = Vec::new();
        builder.set_section_sizes();
        builder.write(&mut bytes).unwrap();
        bytes
    }

    fn section_names(object: &[u8]) -> Vec<String> {
        Builder::read(object).unwrap().sections.iter().map(|section| section.name.to_string()).collect()
    }

    #[test]
    fn stripping_removes_dwarf_and_keeps_btf() {
        let object = object_with(&["cgroup/connect4", ".debug_info", ".BTF", ".debug_line", ".BTF.ext"]);
        let names = section_names(&without_dwarf(&object).unwrap());
        assert_eq!(names, [".shstrtab", "cgroup/connect4", ".BTF", ".BTF.ext"]);
    }

    #[test]
    fn an_object_without_btf_is_refused() {
        let error = without_dwarf(&object_with(&["cgroup/connect4", ".BTF"])).unwrap_err();
        assert!(error.to_string().contains("`.BTF.ext`"), "{error}");
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(without_dwarf(b"no object").is_err());
    }
}
