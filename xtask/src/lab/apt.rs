//! APT, as the host has it set up, or with Debian sources of the lab's own that leave the host's alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{command, progress, read, run};
use crate::{repo, setup};

/// Debian's own mirror, for hosts that have none.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Releases that have the kernels of the lab. Backports carry what is newer than the release.
const SUITES: [&str; 4] = ["bookworm", "bookworm-backports", "trixie", "trixie-backports"];
const SECURITY_SUITES: [&str; 2] = ["bookworm-security", "trixie-security"];

/// A way to call APT.
pub(crate) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// With the sources of the host.
    pub(crate) fn host() -> Self {
        Self { options: Vec::new() }
    }

    /// With the lab's own sources, kept below `target/lab/apt`, whose lists are fetched the first time.
    pub(crate) fn debian() -> Result<Self> {
        let directory = repo::lab().join("apt");
        let apt = Self { options: private_options(&directory) };
        setup::ensure_keyring(Path::new(KEYRING))?;
        let sources = sources(&mirror(&Self::host()));
        let (file, complete) = (directory.join("sources.list"), directory.join("complete"));
        if complete.is_file() && std::fs::read_to_string(&file).is_ok_and(|old| old == sources) {
            return Ok(apt);
        }
        for sub in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(directory.join(sub)).context("cannot make the lab's APT directory")?;
        }
        std::fs::write(&file, &sources).context("cannot write the lab's package sources")?;
        match apt.update() {
            Ok(()) => std::fs::write(&complete, "").context("cannot write to the lab's APT directory")?,
            // A mirror may lack one suite; what the others have is still of use, and the next call tries again.
            Err(error) => progress(format!("not all of Debian's package lists can be had: {error:#}")),
        }
        Ok(apt)
    }

    /// Fetches the package lists anew.
    pub(crate) fn update(&self) -> Result<()> {
        progress("fetching package lists");
        run(&mut self.command("apt-get", &["-qq", "update"]))
    }

    /// The names of the packages that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = read(&mut self.command("apt-cache", &["pkgnames", prefix]))?;
        Ok(names.lines().map(ToOwned::to_owned).collect())
    }

    /// Downloads packages into `directory`.
    pub(crate) fn download(&self, directory: &Path, packages: &[&str]) -> Result<()> {
        progress(format!("downloading {}", packages.join(" ")));
        let mut apt_get = self.command("apt-get", &["-qq", "-o", "APT::Sandbox::User=root", "download"]);
        run(apt_get.args(packages).current_dir(directory))
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = command(program, &self.options);
        command.args(arguments);
        command
    }
}

/// Options rather than a configuration file: a file would take the place of the host's own `APT_CONFIG`.
fn private_options(directory: &Path) -> Vec<String> {
    let at = |sub: &str| -> PathBuf { directory.join(sub) };
    let settings = [
        format!("Dir::Etc::sourcelist={}", at("sources.list").display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", at("lists").display()),
        format!("Dir::Cache={}", at("cache").display()),
        "Dir::State::status=/dev/null".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        "Acquire::Languages=none".to_owned(),
    ];
    settings.into_iter().flat_map(|setting| ["-o".to_owned(), setting]).collect()
}

/// The mirror that the host uses, if it is a Debian host.
fn mirror(host: &Apt) -> String {
    let arguments =
        ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian"];
    let listed = read(&mut host.command("apt-get", &arguments)).unwrap_or_default();
    let first = listed.lines().find(|line| line.starts_with("http"));
    first.unwrap_or(DEFAULT_MIRROR).trim_end_matches('/').to_owned()
}

/// The lab's sources. The security archive stands beside the main one on every mirror that has both.
fn sources(mirror: &str) -> String {
    let line = |uri: &str, suite: &str| format!("deb [signed-by={KEYRING} arch=amd64] {uri} {suite} main\n");
    let main = SUITES.iter().map(|suite| line(mirror, suite));
    let security = format!("{mirror}-security");
    main.chain(SECURITY_SUITES.iter().map(|suite| line(&security, suite))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_name_the_mirror_and_every_suite() {
        let text = sources("http://mirror.example/debian");
        assert_eq!(text.lines().count(), SUITES.len() + SECURITY_SUITES.len());
        assert!(text.contains("http://mirror.example/debian bookworm main\n"));
        assert!(text.contains("http://mirror.example/debian-security bookworm-security main\n"));
    }
}
