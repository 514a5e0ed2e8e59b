//! Writes an initramfs: a cpio archive in the `newc` format (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::{Result, Write};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// An archive that is being written. Everything in it belongs to root.
pub(crate) struct Initramfs<W> {
    out: W,
    names: BTreeSet<String>,
}

impl<W: Write> Initramfs<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, names: BTreeSet::new() }
    }

    /// Whether the archive has this absolute path.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.names.contains(relative(path))
    }

    /// Adds a directory and those above it, unless they are there.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        let name = relative(path);
        if name.is_empty() || self.has(name) {
            return Ok(());
        }
        self.parent(name)?;
        self.entry(name, DIRECTORY | 0o755, &[])
    }

    /// Adds a file with its permissions and the directories above it, unless there is one.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<()> {
        let name = relative(path);
        if self.has(name) {
            return Ok(());
        }
        self.parent(name)?;
        self.entry(name, FILE | permissions, content)
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parent(&mut self, name: &str) -> Result<()> {
        name.rsplit_once('/').map_or(Ok(()), |(parent, _)| self.directory(parent))
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.names.insert(name.to_owned());
        let inode = u32::try_from(self.names.len()).map_err(std::io::Error::other)?;
        let size = u32::try_from(content.len()).map_err(std::io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(std::io::Error::other)?;
        let (owner, links, time, device, check) = (0, 1, 0, 0, 0);
        let fields = [inode, mode, owner, owner, links, time, size, device, device, device, device, name_size, check];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        let head = format!("070701{header}{name}\0");
        self.padded(head.as_bytes())?;
        self.padded(content)
    }

    /// Headers and contents begin at multiples of four.
    fn padded(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        let missing = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.write_all(&vec![0; missing])
    }
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names, modes and contents of an archive, read by its own headers.
    fn entries(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        while !archive.is_empty() {
            assert_eq!(&archive[..6], b"070701");
            let field = |index: usize| -> usize {
                let digits = std::str::from_utf8(&archive[6 + 8 * index..14 + 8 * index]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = String::from_utf8(archive[110..110 + name_size - 1].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            found.push((name, u32::try_from(mode).unwrap(), archive[start..start + size].to_vec()));
            archive = &archive[(start + size).next_multiple_of(4)..];
        }
        found
    }

    #[test]
    fn parents_come_first_and_nothing_comes_twice() {
        let mut archive = Initramfs::new(Vec::new());
        archive.file("/usr/bin/a", 0o755, b"hello").unwrap();
        archive.file("/usr/bin/a", 0o755, b"again").unwrap();
        archive.file("/usr/b", 0o600, b"").unwrap();
        archive.directory("/usr/bin").unwrap();
        let found = entries(&archive.finish().unwrap());
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/a", "usr/b", "TRAILER!!!"]);
        assert_eq!((found[0].1, found[2].1, found[3].1), (0o040_755, 0o100_755, 0o100_600));
        assert_eq!(found[2].2, b"hello");
    }
}
