//! Where cgroup v2 is mounted: programs are attached at its root.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no cgroup v2 root to attach to.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The list of mounts could not be read.
    #[error("cannot read `/proc/self/mounts`; is /proc mounted?")]
    Mounts(#[source] io::Error),
    /// cgroup v2 is not mounted anywhere.
    #[error(
        "cgroup v2 is not mounted; mount it with `mount -t cgroup2 none /sys/fs/cgroup` or boot with `systemd.unified_cgroup_hierarchy=1`"
    )]
    NotMounted,
    /// The mount point could not be opened.
    #[error("cannot open the cgroup v2 root `{0}`")]
    Open(PathBuf, #[source] io::Error),
}

/// The root of the cgroup v2 hierarchy: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` in hybrid set-ups.
///
/// # Errors
/// [`CgroupError`] if it is not mounted or cannot be opened.
pub fn root() -> Result<File, CgroupError> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(CgroupError::Mounts)?;
    let path = mount_point(&mounts).ok_or(CgroupError::NotMounted)?;
    File::open(path).map_err(|error| CgroupError::Open(path.to_owned(), error))
}

fn mount_point(mounts: &str) -> Option<&Path> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(Path::new(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_unified_mounts_are_found() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(hybrid), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point("proc /proc proc rw 0 0\n"), None);
    }
}
