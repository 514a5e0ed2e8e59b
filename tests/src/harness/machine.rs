//! The machine as it was declared, and where the programs are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// What the machine must offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    Reduced,
    Full,
}

impl Tier {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Reduced => "reduced",
            Self::Full => "full",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) tier: Tier,
    bin: PathBuf,
}

impl Machine {
    /// Programs are in `WRIT_BIN_DIR`, else beside this one.
    pub(crate) fn new(tier: Tier) -> Result<Self> {
        ensure!(nix::unistd::Uid::effective().is_root(), "these tests load eBPF programs; run them as root");
        let bin = match std::env::var_os("WRIT_BIN_DIR") {
            Some(directory) => PathBuf::from(directory),
            None => std::env::current_exe()?.parent().context("a program has a directory")?.to_owned(),
        };
        let bin = bin.canonicalize().with_context(|| format!("`{}`", bin.display()))?;
        for name in ["writ", "writd", "writ-probe"] {
            let path = bin.join(name);
            ensure!(path.is_file(), "there is no `{}`; build it, or set WRIT_BIN_DIR", path.display());
        }
        Ok(Self { tier, bin })
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// A daemon that a test left behind.
    pub(crate) fn check_no_daemon(&self) -> Result<()> {
        let daemon = self.program("writd");
        match processes_of(&daemon)?.first() {
            Some(pid) => bail!("process {pid} still runs `{}`", daemon.display()),
            None => Ok(()),
        }
    }
}

/// Processes that run the program at `path`.
fn processes_of(path: &Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may go at any moment; kernel threads have no program.
        if std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == path) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The mount point of cgroup v2.
pub(crate) fn cgroup_root() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    let found = fields.find_map(|mut fields| {
        let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    });
    found.context("cgroup v2 is not mounted")
}
