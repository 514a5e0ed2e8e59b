//! What a host offers, read and not tried: for people who ask why a tier is not given.

use std::fs;
use std::path::{Path, PathBuf};

use super::Fanotify;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The kernel's release.
    pub kernel: String,
    /// The kernel's list of security modules, if it can be read.
    pub lsm: Option<String>,
    /// Whether trampolines run, and with them BPF LSM; unknown on a kernel without the setting.
    pub ftrace: Option<bool>,
    /// Whether the kernel's type information is there.
    pub btf: bool,
    /// Where cgroup v2 is mounted.
    pub cgroup2: Option<PathBuf>,
    /// Where the file system for pinned programs is mounted.
    pub bpffs: Option<PathBuf>,
    /// Whether there are permission events on files; only root can tell.
    pub fanotify: Option<bool>,
    /// CPUs that this process may use.
    pub cpus: usize,
}

/// Looks at this host.
pub fn host() -> Host {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let mounts = read("/proc/self/mounts").unwrap_or_default();
    Host {
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        lsm: read("/sys/kernel/security/lsm"),
        ftrace: read("/proc/sys/kernel/ftrace_enabled").map(|value| value != "0"),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        cgroup2: mount_point(&mounts, "cgroup2"),
        bpffs: mount_point(&mounts, "bpf"),
        fanotify: nix::unistd::geteuid().is_root().then(|| Fanotify::new().is_ok()),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

fn mount_point(mounts: &str, wanted: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == wanted).then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_their_kind() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\nnone /sys/fs/bpf bpf rw 0 0\n";
        assert_eq!(mount_point(mounts, "bpf"), Some("/sys/fs/bpf".into()));
        assert_eq!(mount_point(mounts, "cgroup2"), None);
    }

    #[test]
    fn this_host_has_a_kernel_and_a_cpu() {
        let host = host();
        assert!(!host.kernel.is_empty() && host.cpus > 0);
    }
}
