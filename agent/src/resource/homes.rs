//! Whose home directories `~` stands for.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Homes that the passwd database gives to accounts that have none.
const PLACEHOLDERS: [&str; 5] = ["/nonexistent", "/dev", "/proc", "/sys", "/var/empty"];

/// Every home: root's, those of `passwd` (the bytes of `/etc/passwd`), each directory in `home_root` (`/home`: accounts
/// of a directory service are not in `/etc/passwd`), and `extra`. In order, each once, whether it exists or not.
pub fn discover(passwd: &[u8], home_root: &Path, extra: &[PathBuf]) -> Vec<PathBuf> {
    let mut homes = BTreeSet::from([PathBuf::from("/root")]);
    homes.extend(passwd.split(|&byte| byte == b'\n').filter_map(home_of_line));
    homes.extend(directories_in(home_root));
    homes.extend(extra.iter().cloned());
    homes.into_iter().collect()
}

/// The sixth field of `name:password:uid:gid:gecos:home:shell`, if it is a home.
fn home_of_line(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|&byte| byte == b':').nth(5)?;
    let home = Path::new(OsStr::from_bytes(field));
    let real = home.is_absolute() && home.parent().is_some() && !PLACEHOLDERS.iter().any(|fake| home.starts_with(fake));
    // Collecting the components drops trailing and doubled slashes, so that one home is one path.
    real.then(|| home.components().collect())
}

fn directories_in(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
        sync:x:4:65534:sync:/:/bin/sync\n\
        alice:x:1000:1000:Alice,,,:/home//alice/:/bin/zsh\n\
        latin:x:1001:1001::/home/\xe9l\xe9:/bin/sh\n\
        broken:x\n\
        relative:x:1:1::home:/bin/sh\n\n";

    #[test]
    fn homes_are_whole_absolute_and_real() {
        let homes = discover(PASSWD, Path::new("/nowhere"), &[PathBuf::from("/srv/agent")]);
        let latin = PathBuf::from(OsStr::from_bytes(b"/home/\xe9l\xe9"));
        assert_eq!(homes, [PathBuf::from("/home/alice"), latin, "/root".into(), "/srv/agent".into()]);
    }

    #[test]
    fn directories_under_the_home_root_count_and_files_do_not() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("carol")).unwrap();
        fs::write(root.path().join("quota.user"), "").unwrap();
        assert_eq!(discover(b"", root.path(), &[]), {
            let mut expected = vec![PathBuf::from("/root"), root.path().join("carol")];
            expected.sort();
            expected
        });
    }
}
