//! cgroup ids, which the kernel speaks of, and paths, which people do.

use std::collections::HashMap;
use std::ffi::c_int;
use std::fs::{File, read_link};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use procfs::process::Process;

/// Paths remembered at most; when there are more, all are looked up again.
const MAX_KNOWN: usize = 4096;
/// `FILEID_KERNFS`, `include/linux/exportfs.h`: the handle is the cgroup's 64-bit id. Since Linux 5.5.
const FILEID_KERNFS: c_int = 0xfe;

/// Finds the path of a cgroup by its id and remembers it.
pub struct CgroupPaths {
    mount: Option<Mount>,
    known: HashMap<u64, Arc<str>>,
}

struct Mount {
    point: PathBuf,
    directory: File,
}

/// `struct file_handle` with room for a kernfs id.
#[repr(C)]
struct Handle {
    head: libc::file_handle,
    id: [u8; 8],
}

impl CgroupPaths {
    /// For the first cgroup v2 mount that this process sees. Where there is none, nothing will be resolved.
    pub fn find() -> Self {
        Self { mount: Mount::find(), known: HashMap::new() }
    }

    /// The path below the cgroup v2 root of the cgroup `id`; `None` if it has been removed or lies outside of the mount.
    pub fn resolve(&mut self, id: u64) -> Option<Arc<str>> {
        if let Some(path) = self.known.get(&id) {
            return Some(path.clone());
        }
        let path = self.mount.as_ref()?.path_of(id)?;
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(id, path.clone());
        Some(path)
    }
}

impl Mount {
    fn find() -> Option<Self> {
        let mounts = Process::myself().and_then(|process| process.mountinfo()).ok()?;
        let point = mounts.0.into_iter().find(|mount| mount.fs_type == "cgroup2")?.mount_point;
        let directory = File::open(&point).ok()?;
        Some(Self { point, directory })
    }

    fn path_of(&self, id: u64) -> Option<Arc<str>> {
        let held = self.open(id)?;
        let path = read_link(format!("/proc/self/fd/{}", held.as_raw_fd())).ok()?;
        let below = path.strip_prefix(&self.point).ok()?;
        Some(Path::new("/").join(below).to_string_lossy().into())
    }

    fn open(&self, id: u64) -> Option<OwnedFd> {
        let head = libc::file_handle { handle_bytes: 8, handle_type: FILEID_KERNFS, f_handle: [] };
        let mut handle = Handle { head, id: id.to_ne_bytes() };
        let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: the pointer is to the whole `Handle`, whose head announces the 8 bytes that follow it; it outlives the call.
        let fd = unsafe { libc::open_by_handle_at(self.directory.as_raw_fd(), (&raw mut handle).cast(), flags) };
        // SAFETY: the call returned a new descriptor that nobody else owns.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_handle_is_laid_out_as_the_kernel_reads_it() {
        assert_eq!((size_of::<Handle>(), std::mem::offset_of!(Handle, id)), (16, 8));
    }

    #[test]
    fn without_a_mount_and_for_unknown_ids_there_is_no_path() {
        let mut nowhere = CgroupPaths { mount: None, known: HashMap::new() };
        assert_eq!(nowhere.resolve(1), None);
        assert_eq!(CgroupPaths::find().resolve(u64::MAX), None);
    }

    #[test]
    fn what_is_known_is_not_asked_for_again() {
        let mut paths = CgroupPaths { mount: None, known: HashMap::from([(7, "/a".into())]) };
        assert_eq!(paths.resolve(7).as_deref(), Some("/a"));
    }

    /// Opening by handle needs CAP_DAC_READ_SEARCH, so this asserts the answer where one is given and else that none is made up.
    #[test]
    fn the_root_is_found_by_its_inode() {
        let root = Mount::find().map(|mount| mount.directory.metadata().unwrap().ino());
        let expected = root.filter(|_| nix::unistd::geteuid().is_root()).map(|_| "/");
        let id = root.unwrap_or(1);
        assert_eq!(CgroupPaths::find().resolve(id).as_deref(), expected);
    }
}
