//! What a daemon pinned, as the kernel has it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::programs::links::{FdLink, PinnedLink};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A BPF file system, unmounted when this goes; what is pinned there and nowhere else goes with it.
#[derive(Debug)]
pub(crate) struct BpfFs(PathBuf);

impl BpfFs {
    pub(crate) fn mount(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>).context("cannot mount a bpffs")?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // Its directory is removed next, which fails where this did.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The sets of programs that are pinned.
pub(crate) fn instances(pins: &Path) -> Result<Vec<u32>> {
    let entries = std::fs::read_dir(pins.join("links"))?;
    let mut found: Vec<u32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    Ok(found)
}

fn links(pins: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for instance in instances(pins)? {
        for entry in std::fs::read_dir(pins.join("links").join(instance.to_string()))? {
            found.push(entry?.path());
        }
    }
    Ok(found)
}

/// Ids of all pinned links.
pub(crate) fn link_ids(pins: &Path) -> Result<HashSet<u32>> {
    links(pins)?.iter().map(|path| Ok(FdLink::from(PinnedLink::from_pin(path)?).info()?.id())).collect()
}

/// Those of the links that the kernel still has.
pub(crate) fn still_attached(ids: &HashSet<u32>) -> Vec<u32> {
    let all = aya::programs::loaded_links().filter_map(|link| Some(link.ok()?.id()));
    all.filter(|id| ids.contains(id)).collect()
}

/// What a daemon leaves that was killed before its programs took effect: the program of one guard, pinned once more.
pub(crate) fn pin_again(pins: &Path, instance: u32, program: &str, under: u32) -> Result<()> {
    let from = pins.join("links").join(instance.to_string()).join(program);
    let to = pins.join("links").join(under.to_string());
    std::fs::create_dir(&to)?;
    FdLink::from(PinnedLink::from_pin(from)?).pin(to.join(program))?;
    Ok(())
}
