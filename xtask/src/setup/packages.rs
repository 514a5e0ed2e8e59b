//! The host's packages that the lab uses, on Debian and Ubuntu. Only those are installed whose program is missing.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::command::{capture, command, exists, progress, read, run};

const PACKAGES: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    ("dpkg-deb", "dpkg"),
    ("lz4", "lz4"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// Where `busybox-static` puts it; the package `busybox` puts one there that needs libraries.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Installs what is missing; needs root only then.
pub(crate) fn ensure() -> Result<()> {
    let mut missing: Vec<&str> =
        PACKAGES.iter().filter(|(program, _)| !exists(program)).map(|(_, package)| *package).collect();
    if !is_static(Path::new(BUSYBOX)) {
        missing.push("busybox-static");
    }
    ensure_packages(&missing)
}

/// Installs the keys by which Debian's package lists are checked, on a host that is not Debian.
pub(crate) fn ensure_keyring(keyring: &Path) -> Result<()> {
    if keyring.is_file() { Ok(()) } else { ensure_packages(&["debian-archive-keyring"]) }
}

fn ensure_packages(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    ensure!(exists("apt-get"), "missing for the lab: {names}; there is no apt-get here, install them by hand");
    if !is_root()? {
        bail!("missing for the lab: {names}; run `sudo apt-get install {names}`, or this as root");
    }
    progress(format!("installing {names}"));
    install(missing).with_context(|| format!("cannot install {names}: try `apt-get install {names}` by hand"))
}

/// Whether this process may install packages and load programs into the kernel.
pub(crate) fn is_root() -> Result<bool> {
    Ok(read(&mut command("id", ["-u"]))?.trim() == "0")
}

/// Installs packages; a second time with fresh lists, and a third from the release's backports: a host that has one
/// package of a family from there cannot take the others from elsewhere.
fn install(packages: &[&str]) -> Result<()> {
    let known = packages.iter().all(|package| is_known(package));
    if known && run(&mut apt_get_install(&[], packages)).is_ok() {
        return Ok(());
    }
    run(&mut command("apt-get", ["-qq", "update"]))?;
    let Err(error) = run(&mut apt_get_install(&[], packages)) else {
        return Ok(());
    };
    let Some(codename) = codename() else {
        return Err(error);
    };
    progress("that did not work; trying the release's backports");
    run(&mut apt_get_install(&["-t", &format!("{codename}-backports")], packages))
}

fn apt_get_install(options: &[&str], packages: &[&str]) -> Command {
    let mut apt_get =
        command("apt-get", ["-qq", "--yes", "-o", "Dpkg::Use-Pty=0", "--no-install-recommends", "install"]);
    apt_get.args(options).args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    apt_get
}

fn is_known(package: &str) -> bool {
    capture(&mut command("apt-cache", ["show", package])).is_ok_and(|output| output.status.success())
}

/// The host's release, as in `bookworm`.
fn codename() -> Option<String> {
    let release = std::fs::read_to_string("/etc/os-release").ok()?;
    release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).map(ToOwned::to_owned)
}

/// Whether a program exists and asks for no dynamic loader.
fn is_static(program: &Path) -> bool {
    std::fs::read(program).is_ok_and(|bytes| has_no_interpreter(&bytes).unwrap_or(false))
}

fn has_no_interpreter(elf: &[u8]) -> Result<bool> {
    let header = object::elf::FileHeader64::<object::Endianness>::parse(elf)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, elf)?;
    Ok(segments.iter().all(|segment| segment.p_type(endian) != object::elf::PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!has_no_interpreter(&own).unwrap());
        assert!(has_no_interpreter(b"#!/bin/sh").is_err());
    }
}
