//! What a guest consists of: busybox, one command, the files that it needs and the libraries of its programs, all at
//! the paths that they have on the host.

use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::initramfs::Initramfs;
use super::kernel::Kernel;
use super::modules;
use crate::command::{capture, command};
use crate::setup::BUSYBOX;

const INIT: &str = include_str!("init.sh");

/// Files that programs expect on any system. Nobody can log in.
const SYSTEM_FILES: [(&str, u32, &str); 5] = [
    ("/etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
    ("/etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n"),
    ("/etc/shadow", 0o600, "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n"),
    ("/etc/hosts", 0o644, "127.0.0.1 localhost lab\n::1 localhost\n"),
    ("/etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n"),
];

/// A command and what it needs.
#[derive(Debug, Default, Clone)]
pub(crate) struct Guest {
    /// The command and its arguments. If it is a path it is copied into the guest.
    pub(crate) command: Vec<String>,
    /// Variables that the command gets.
    pub(crate) environment: Vec<(String, String)>,
    /// Further files and directories.
    pub(crate) files: Vec<PathBuf>,
    /// Kernel modules to load before the command runs, in this order.
    pub(crate) modules: Vec<String>,
}

impl Guest {
    /// Writes the initramfs for one kernel.
    pub(crate) fn write(&self, kernel: &Kernel, to: &Path) -> Result<()> {
        let file = File::create(to).with_context(|| format!("cannot write `{}`", to.display()))?;
        let mut archive = Initramfs::new(BufWriter::new(file));
        archive.file("/init", 0o755, INIT.as_bytes())?;
        archive.file(BUSYBOX, 0o755, &read(Path::new(BUSYBOX))?)?;
        for (path, permissions, content) in SYSTEM_FILES {
            archive.file(path, permissions, content.as_bytes())?;
        }
        archive.file("/lab/command", 0o644, self.script()?.as_bytes())?;
        modules::add(&mut archive, kernel, &self.modules)?;
        for path in self.program().iter().chain(&self.files) {
            let path = std::path::absolute(path)?;
            ensure!(path.exists(), "`{}` does not exist, it cannot be copied into the guest", path.display());
            add(&mut archive, &path)?;
        }
        archive.finish()?;
        Ok(())
    }

    /// The command's program, if it is named by a path.
    fn program(&self) -> Option<PathBuf> {
        self.command.first().filter(|program| program.contains('/')).map(PathBuf::from)
    }

    /// The guest's shell script that runs the command where this process is on the host.
    fn script(&self) -> Result<String> {
        let here = std::env::current_dir()?;
        let here = quoted(&here.to_string_lossy());
        let exports = self.environment.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value)));
        let words: Vec<String> = self.command.iter().map(|word| quoted(word)).collect();
        Ok(format!("mkdir -p {here} && cd {here} || exit\n{}{}\n", exports.collect::<String>(), words.join(" ")))
    }
}

/// Adds a file, or a directory with all that is in it; links become what they point to.
fn add(archive: &mut Initramfs<BufWriter<File>>, path: &Path) -> Result<()> {
    let shown = path.to_string_lossy();
    if path.is_dir() {
        archive.directory(&shown)?;
        for entry in std::fs::read_dir(path)? {
            add(archive, &entry?.path())?;
        }
        return Ok(());
    }
    if archive.has(&shown) {
        return Ok(());
    }
    let content = read(path)?;
    let permissions = std::fs::metadata(path)?.permissions().mode() & 0o7777;
    archive.file(&shown, permissions, &content)?;
    if content.starts_with(b"\x7fELF") && permissions & 0o111 != 0 {
        for library in libraries(path)? {
            add(archive, &library)?;
        }
    }
    Ok(())
}

/// The shared libraries of a program and its loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = capture(command("ldd", [program]).env("LC_ALL", "C"))?;
    Ok(paths_in(&String::from_utf8_lossy(&output.stdout)))
}

/// The absolute paths in what `ldd` prints: the right side of an arrow, or the loader alone.
fn paths_in(listing: &str) -> Vec<PathBuf> {
    let words = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// A word as a shell takes it literally.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibgone.so => not found\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(paths_in(listing), expected);
        assert!(paths_in("\tstatically linked\n").is_empty());
    }

    #[test]
    fn the_guest_gets_the_very_words() {
        let guest = Guest {
            command: vec!["echo".into(), "it's".into(), "$HOME".into()],
            environment: vec![("A".into(), "b c".into())],
            ..Guest::default()
        };
        let script = guest.script().unwrap();
        assert!(script.ends_with("export A='b c'\n'echo' 'it'\\''s' '$HOME'\n"), "{script}");
        assert_eq!(guest.program(), None);
    }
}
