//! Kernel modules for a guest, with those that they depend on. Debian ships them compressed from 6.12 on.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::initramfs::Initramfs;
use super::kernel::Kernel;
use crate::command::{capture, command};

/// Adds the modules of these names and the list in which the guest is to load them.
pub(crate) fn add(archive: &mut Initramfs<BufWriter<File>>, kernel: &Kernel, names: &[String]) -> Result<()> {
    let directory = kernel.modules()?;
    let dependencies =
        std::fs::read_to_string(directory.join("modules.dep")).context("the kernel has no modules.dep")?;
    let built_in = std::fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    let mut order: Vec<&str> = Vec::new();
    for name in names.iter().filter(|name| !built_in.lines().any(|path| is_module(path, name))) {
        let needed = load_order(&dependencies, name)
            .with_context(|| format!("kernel {} has no module `{name}`", kernel.name))?;
        order.extend(needed);
    }
    let mut list = String::new();
    for path in order {
        let file = file_name(path);
        if !archive.has(&format!("/lab/ko/{file}")) {
            archive.file(&format!("/lab/ko/{file}"), 0o644, &content(&directory.join(path))?)?;
            list.push_str(file);
            list.push('\n');
        }
    }
    archive.file("/lab/modules", 0o644, list.as_bytes())?;
    Ok(())
}

/// Whether the kernel comes with the module, which may be a part of its image.
pub(crate) fn offers(kernel: &Kernel, name: &str) -> Result<bool> {
    let directory = kernel.modules()?;
    let listed = |file: &str| std::fs::read_to_string(directory.join(file)).unwrap_or_default();
    let paths = listed("modules.dep") + &listed("modules.builtin");
    Ok(paths.lines().any(|line| is_module(line.split(':').next().unwrap_or(line), name)))
}

/// The paths of a module and of all that it needs, what is needed first, by the kernel's `modules.dep`.
fn load_order<'a>(dependencies: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let mut lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let (module, needed) = lines.find(|(path, _)| is_module(path, name))?;
    // The file lists what is needed from the nearest to the furthest.
    Some(needed.split_whitespace().rev().chain([module]).collect())
}

/// Whether the file at `path` is the module; `-` and `_` are the same in names of modules.
fn is_module(path: &str, name: &str) -> bool {
    let stem = file_name(path).trim_end_matches(".ko");
    stem.replace('-', "_") == name.replace('-', "_")
}

/// As the guest has it, which is not compressed.
fn file_name(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.trim_end_matches(".xz").trim_end_matches(".zst")
}

fn content(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display())),
    };
    let file: PathBuf = path.to_owned();
    let output = capture(command(program, ["-dqc"]).arg(&file).stderr(Stdio::inherit()))?;
    ensure!(output.status.success(), "`{program}` cannot decompress `{}`", file.display());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_loaded_first() {
        let dependencies = "kernel/net/a.ko.xz:\nkernel/net/b-b.ko.xz: kernel/net/a.ko.xz\n\
                            kernel/c.ko: kernel/net/b-b.ko.xz kernel/net/a.ko.xz\n";
        let order = load_order(dependencies, "c").unwrap();
        assert_eq!(order, ["kernel/net/a.ko.xz", "kernel/net/b-b.ko.xz", "kernel/c.ko"]);
        assert_eq!(load_order(dependencies, "b_b").unwrap().len(), 2);
        assert_eq!(load_order(dependencies, "d"), None);
        assert_eq!(file_name("kernel/net/b-b.ko.xz"), "b-b.ko");
    }
}
