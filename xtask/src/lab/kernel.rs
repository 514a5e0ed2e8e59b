//! Kernels: which Debian package, where it is kept, and how it is fetched.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::apt::Apt;
use super::image;
use crate::command::{command, progress, read, run};
use crate::repo;

/// The kernels that every test run boots.
pub(crate) const DEFAULT_SERIES: [&str; 2] = ["6.1", "6.12"];

/// Newer ones, booted where their packages can be reached.
pub(crate) const FURTHER_SERIES: [&str; 2] = ["6.18", "7"];

const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-cloud-amd64";

/// A kernel that is unpacked and ready to boot.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// The package's name without what all of them share, as in `6.1.0-56`.
    pub(crate) name: String,
    directory: PathBuf,
}

impl Kernel {
    fn at(package: &str) -> Self {
        let name = package.trim_start_matches(PREFIX).trim_end_matches(SUFFIX).to_owned();
        Self { name, directory: kept().join(package) }
    }

    /// The kernel as an ELF file, which QEMU enters without decompressing anything.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    /// The directory of the kernel's modules.
    pub(crate) fn modules(&self) -> Result<PathBuf> {
        let found = files(&self.directory.join("lib/modules"), |_| true)?;
        found.into_iter().next().with_context(|| format!("kernel {} has no modules", self.name))
    }
}

/// The kernel for a series (`6.1`) or a package (`linux-image-...`): one that is kept, else fetched from Debian.
pub(crate) fn find_or_fetch(wanted: &str) -> Result<Kernel> {
    if let Some(package) = newest_first(kept_packages(), wanted).into_iter().next() {
        return Ok(Kernel::at(&package));
    }
    fetch(wanted).with_context(|| {
        format!(
            "cannot get a kernel {wanted}: look for its package with `apt-cache search '^linux-image-.*cloud-amd64$'`"
        )
    })
}

/// Fetches with the host's sources if they know such a kernel, else with the lab's own.
fn fetch(wanted: &str) -> Result<Kernel> {
    let host = Apt::host();
    let mut names = newest_first(host.names(PREFIX)?, wanted);
    if names.is_empty() && host.names("")?.is_empty() {
        // A fresh machine or container image comes without lists.
        host.update().ok();
        names = newest_first(host.names(PREFIX)?, wanted);
    }
    if !names.is_empty() {
        match fetch_first(&host, &names) {
            Ok(kernel) => return Ok(kernel),
            Err(error) => progress(format!("not from the host's package sources: {error:#}")),
        }
    }
    let debian = Apt::debian()?;
    let names = newest_first(debian.names(PREFIX)?, wanted);
    ensure!(!names.is_empty(), "neither the host's package sources nor Debian's have one");
    fetch_first(&debian, &names)
}

/// The newest that can be had: lists may be older than what the archive still keeps.
fn fetch_first(apt: &Apt, names: &[String]) -> Result<Kernel> {
    let mut last = None;
    for package in names.iter().take(3) {
        match fetch_package(apt, package) {
            Ok(kernel) => return Ok(kernel),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no package was tried")))
}

/// Fetches and unpacks one package, and puts it in its place only when it is whole.
fn fetch_package(apt: &Apt, package: &str) -> Result<Kernel> {
    let kernel = Kernel::at(package);
    std::fs::create_dir_all(kept()).with_context(|| format!("cannot make `{}`", kept().display()))?;
    let work = tempfile::Builder::new().prefix(".new-").tempdir_in(kept())?;
    apt.download(work.path(), &[package])?;
    let image_package = only_file(work.path(), |name| name.ends_with(".deb"))?;
    let parts = parts(&read(command("dpkg-deb", ["--field"]).arg(&image_package).arg("Depends"))?);
    if !parts.is_empty() {
        apt.download(work.path(), &parts.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    let tree = work.path().join("tree");
    for deb in files(work.path(), |name| name.ends_with(".deb"))? {
        run(command("dpkg-deb", ["--extract"]).arg(&deb).arg(&tree))?;
    }
    let ready = work.path().join("ready");
    std::fs::create_dir(&ready)?;
    image::unpack(&boot_image(&tree)?, &ready.join("vmlinux"))?;
    keep_modules(&tree, &ready)?;
    // Someone who was faster has put the same there.
    if let Err(error) = std::fs::rename(&ready, &kernel.directory)
        && !kernel.vmlinux().is_file()
    {
        bail!("cannot put the kernel to `{}`: {error}", kernel.directory.display());
    }
    Ok(kernel)
}

fn boot_image(tree: &Path) -> Result<PathBuf> {
    let modules = modules_of(tree);
    let places = [tree.join("boot"), tree.join("usr/lib/linux"), tree.to_owned(), modules];
    let mut found = places.iter().filter_map(|place| only_file(place, |name| name.starts_with("vmlinuz")).ok());
    found.next().context("the package has no vmlinuz")
}

/// The one directory of modules in an unpacked package, wherever its release puts it.
fn modules_of(tree: &Path) -> PathBuf {
    let usual = ["lib/modules", "usr/lib/modules"].map(|place| tree.join(place));
    let existing = usual.into_iter().find(|place| place.is_dir()).unwrap_or_default();
    files(&existing, |_| true).ok().and_then(|found| found.into_iter().next()).unwrap_or(existing)
}

fn keep_modules(tree: &Path, ready: &Path) -> Result<()> {
    let modules = modules_of(tree);
    let version = modules.file_name().context("the package has no modules")?;
    let place = ready.join("lib/modules");
    std::fs::create_dir_all(&place)?;
    std::fs::rename(&modules, place.join(version)).context("cannot keep the kernel's modules")?;
    // Its warnings, about lists that some packages leave to others, are of no interest here.
    read(command("depmod", ["-b"]).arg(ready).arg(version)).map(drop)
}

/// Since Linux 6.19 the image's package is empty and depends on these.
fn parts(depends: &str) -> Vec<String> {
    let names = depends.split(',').filter_map(|one| one.split_whitespace().next());
    names
        .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"))
        .map(Into::into)
        .collect()
}

/// The packages that are `wanted`, a package's name or a series, the newest first.
fn newest_first(packages: Vec<String>, wanted: &str) -> Vec<String> {
    let mut fitting: Vec<String> = packages.into_iter().filter(|package| fits(package, wanted)).collect();
    fitting.sort_by_key(|package| Reverse(numbers(package)));
    fitting
}

fn fits(package: &str, wanted: &str) -> bool {
    if package == wanted {
        return true;
    }
    let Some(version) = package.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX)) else {
        return false;
    };
    // A meta package has only the series as its version, and nothing in it.
    let rest = version.strip_prefix(wanted).unwrap_or_default();
    version == wanted && version.matches('.').count() > 1 || (rest.starts_with('.') && version.matches('.').count() > 1)
}

/// The numbers in a version, in their order; enough to tell the newer of two packages of a series.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn kept() -> PathBuf {
    repo::lab().join("kernels")
}

fn kept_packages() -> Vec<String> {
    let directories = files(&kept(), |name| !name.starts_with('.')).unwrap_or_default();
    directories.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
}

/// What is directly in `directory` and has a fitting name.
fn files(directory: &Path, fitting: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("cannot read `{}`", directory.display()))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    Ok(paths.into_iter().filter(|path| path.file_name().is_some_and(|name| fitting(&name.to_string_lossy()))).collect())
}

fn only_file(directory: &Path, fitting: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let found = files(directory, fitting)?;
    let [one] = found.as_slice() else {
        bail!("expected one file in `{}`, there are {}", directory.display(), found.len());
    };
    Ok(one.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(wanted: &str) -> Vec<String> {
        let packages = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-dbg",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-7.3.2+deb13-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        newest_first(packages.map(ToOwned::to_owned).to_vec(), wanted)
    }

    #[test]
    fn the_newest_of_a_series_comes_first() {
        assert_eq!(chosen("6.1"), ["linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64"]);
        assert_eq!(chosen("6.12"), ["linux-image-6.12.117+deb12-cloud-amd64", "linux-image-6.12.99+deb12-cloud-amd64"]);
        assert_eq!(chosen("7"), ["linux-image-7.3.2+deb13-cloud-amd64"]);
        assert!(chosen("6.18").is_empty());
    }

    #[test]
    fn a_package_is_found_by_its_name() {
        assert_eq!(chosen("linux-image-6.1.0-56-amd64"), ["linux-image-6.1.0-56-amd64"]);
        assert_eq!(chosen("6.1.0-9"), ["linux-image-6.1.0-9-cloud-amd64"]);
    }

    #[test]
    fn split_images_name_their_parts() {
        let depends =
            "linux-binary-7.3.2+deb13-cloud-amd64 (= 7.3.2-1), kmod, linux-modules-7.3.2+deb13-cloud-amd64 (= 1)";
        let expected = ["linux-binary-7.3.2+deb13-cloud-amd64", "linux-modules-7.3.2+deb13-cloud-amd64"];
        assert_eq!(parts(depends), expected);
        assert!(parts("kmod, linux-base (>= 4.3~)").is_empty());
    }
}
