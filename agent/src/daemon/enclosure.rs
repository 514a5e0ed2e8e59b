//! What is the daemon's own is closed to every task: configuration, policies, state, records and pins. The kernel's side is
//! `agent-ebpf/src/hooks/entry.rs`.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use agent_common::maps::{CLASS_ABOVE, CLASS_DAEMON, FileKey};

use super::protect::{Guarding, chain};
use crate::config::Config;
use crate::kernel::{Maps, learn};

/// What is closed. Each is held, so that its inode number cannot pass to another.
#[derive(Default)]
pub(super) struct Enclosure {
    directories: Vec<File>,
    /// This record file and those before it that are still there.
    records: Vec<(File, Vec<FileKey>)>,
}

impl Enclosure {
    /// Closes everything, and opens what an earlier daemon had closed and this one has not. Only the kernel's own programs can do
    /// that, and only the thread whose opens they tell about may call it.
    pub(super) fn new(maps: &mut Maps, config: &Config, guarding: &Guarding) -> Self {
        let mut enclosure = Self::default();
        if !matches!(guarding, Guarding::Kernel) {
            return enclosure;
        }
        let (mut closed, mut above) = (HashSet::new(), HashSet::new());
        for directory in directories(config) {
            closed.extend(enclosure.close(maps, &directory, CLASS_DAEMON));
            for parent in directory.ancestors().skip(1) {
                above.extend(enclosure.close(maps, parent, CLASS_ABOVE));
            }
        }
        let stale = |key: &FileKey| match maps.directories.get(*key) {
            Some(CLASS_DAEMON) => !closed.contains(key),
            Some(CLASS_ABOVE) => !above.contains(key),
            _ => false,
        };
        let stale: Vec<FileKey> = maps.directories.keys().into_iter().filter(stale).collect();
        stale.into_iter().for_each(|key| maps.directories.remove(key));
        enclosure.close_records(maps, config, guarding);
        enclosure
    }

    fn close(&mut self, maps: &mut Maps, directory: &Path, class: u32) -> Vec<FileKey> {
        match close(maps, directory, class) {
            Ok((file, keys)) => {
                self.directories.push(file);
                keys
            }
            Err(cause) => {
                tracing::warn!(cause, "`{}` stays open to tasks of root", directory.display());
                Vec::new()
            }
        }
    }

    /// Closes the record file, which is another one after it was moved away. Those that are gone for good are forgotten.
    pub(super) fn close_records(&mut self, maps: &mut Maps, config: &Config, guarding: &Guarding) {
        if !matches!(guarding, Guarding::Kernel) {
            return;
        }
        self.records.retain(|(file, keys)| {
            let there = file.metadata().is_ok_and(|meta| meta.nlink() > 0);
            if !there {
                keys.iter().for_each(|key| maps.secrets.remove(*key));
            }
            there
        });
        match close(maps, &config.records, CLASS_DAEMON) {
            Ok(held) => self.records.push(held),
            Err(cause) => tracing::warn!(cause, "`{}` stays open to tasks of root", config.records.display()),
        }
    }
}

/// As they are, without symlinks: those that are not there are nobody's to close.
fn directories(config: &Config) -> Vec<PathBuf> {
    let own = [&config.config_dir, &config.policies_dir, &config.state_dir, &config.runtime_dir];
    let all = own.into_iter().chain(&config.pin_dir);
    all.filter_map(|path| path.canonicalize().ok()).collect()
}

/// By a descriptor: whoever swaps something on the way changes nothing. What is closed already is not opened a little again.
fn close(maps: &mut Maps, path: &Path, class: u32) -> Result<(File, Vec<FileKey>), String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| error.to_string())?;
    let is_directory = file.metadata().map_err(|error| error.to_string())?.is_dir();
    let held = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let keys = learn::learn(maps, &held).map_err(|error| chain(&error))?;
    for key in &keys {
        let map = if is_directory { &mut maps.directories } else { &mut maps.secrets };
        if class == CLASS_DAEMON || map.get(*key).is_none() {
            map.put(*key, class).map_err(|error| chain(&error))?;
        }
        maps.secrets.put(FileKey { device: key.device, inode: 0 }, 0).map_err(|error| chain(&error))?;
    }
    Ok((file, keys))
}
