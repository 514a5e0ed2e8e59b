//! What a walk of the file system found for the secrets catalogue, and how two findings differ.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::class::NO_CLASS;

/// A protected file, or a directory whose files are protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// Where it really is: no symbolic link leads there.
    pub path: PathBuf,
    /// Its class in the table that the scan was given.
    pub class: u32,
    /// `st_dev`. Only tells that the path leads to another file now; the kernel's own device number may differ.
    pub device: u64,
    /// `st_ino`, likewise.
    pub inode: u64,
}

/// Why something that the catalogue speaks of is not protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// It could not be looked at: the system's words.
    Unreadable(String),
    /// It is neither a file nor a directory: which kind it is.
    NotAFile(&'static str),
    /// A symbolic link inside a protected directory leads to this place outside of it.
    LeadsOut(PathBuf),
    /// Reached through this symbolic link, whose owner is neither root nor the owner of what it leads to.
    ForeignLink(PathBuf),
    /// More than this many names had to be looked at for one pattern.
    TooMany(usize),
    /// More than this many directories below the pattern's start.
    TooDeep(usize),
}

/// Something that the catalogue speaks of and that is not protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The catalogue's entry.
    pub entry: Arc<str>,
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub kind: ProblemKind,
}

/// What a scan found. Two scans with the same [`super::ClassTable`] can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Protected files that patterns name, by path. Their class goes before that of the directory they are in.
    pub files: Vec<Protected>,
    /// The other files in protected directories, by path. Their directory protects them already; knowing them one by one
    /// keeps them protected when they are moved out of it.
    pub inside: Vec<Protected>,
    /// Every directory whose files are protected, sub-directories included, by path.
    pub directories: Vec<Protected>,
    /// What could not be protected, in the catalogue's order.
    pub problems: Vec<Problem>,
    /// Further problems, beyond the number that is kept.
    pub problems_left_out: usize,
    /// The directories in which a change may alter the findings: watch them (not what is below) and scan again.
    pub watch: BTreeSet<PathBuf>,
}

/// What has to be done to get from one scan to the next.
///
/// A path in `gone` no longer leads to a secret, but the file that it led to may live on under another name (an agent may
/// rename what it cannot read): drop its protection only once the file itself is gone, or if the catalogue was reloaded
/// and the path still leads to it, so that it was the operator who took it out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Files that are new, were replaced by another file, or have another class.
    pub files: Vec<Protected>,
    /// Other files in protected directories, likewise.
    pub inside: Vec<Protected>,
    /// Directories likewise.
    pub directories: Vec<Protected>,
    /// What the earlier scan has under paths that this one lacks or where another file or directory is now.
    pub gone: Vec<Protected>,
    /// Directories to watch from now on.
    pub watch: Vec<PathBuf>,
    /// Directories that need no watch any more.
    pub unwatch: Vec<PathBuf>,
}

impl Scan {
    /// What changed since `earlier`.
    pub fn changes_since(&self, earlier: &Scan) -> Changes {
        let here: HashSet<_> = self.all().map(Protected::place).collect();
        Changes {
            files: changed(&earlier.files, &self.files),
            inside: changed(&earlier.inside, &self.inside),
            directories: changed(&earlier.directories, &self.directories),
            gone: earlier.all().filter(|old| !here.contains(&old.place())).cloned().collect(),
            watch: self.watch.difference(&earlier.watch).cloned().collect(),
            unwatch: earlier.watch.difference(&self.watch).cloned().collect(),
        }
    }

    /// Everything that is protected.
    pub fn all(&self) -> impl Iterator<Item = &Protected> {
        self.files.iter().chain(&self.inside).chain(&self.directories)
    }

    /// Drops what could not be protected, so that the next scan brings it up again.
    pub fn forget(&mut self, paths: &HashSet<PathBuf>) {
        for found in [&mut self.files, &mut self.inside, &mut self.directories] {
            found.retain(|protected| !paths.contains(&protected.path));
        }
    }

    /// The class that the finding gives a file, by its real path: its own, else that of the directory it is in.
    pub fn class_of(&self, path: &Path) -> u32 {
        let own = find(&self.files, path).or_else(|| find(&self.inside, path));
        let found = own.or_else(|| path.parent().and_then(|parent| find(&self.directories, parent)));
        found.map_or(NO_CLASS, |protected| protected.class)
    }
}

impl Changes {
    /// Whether both scans found the same.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn find<'s>(sorted: &'s [Protected], path: &Path) -> Option<&'s Protected> {
    let index = sorted.binary_search_by(|protected| protected.path.as_path().cmp(path)).ok()?;
    sorted.get(index)
}

/// What is new or different in `now`.
fn changed(before: &[Protected], now: &[Protected]) -> Vec<Protected> {
    now.iter().filter(|new| find(before, &new.path) != Some(new)).cloned().collect()
}

impl Protected {
    fn place(&self) -> (&Path, u64, u64) {
        (&self.path, self.device, self.inode)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "secret entry `{}`: `{path}` is not protected: ", self.entry)?;
        match &self.kind {
            ProblemKind::Unreadable(cause) => write!(f, "it cannot be looked at ({cause}); mend it or exclude it"),
            ProblemKind::NotAFile(kind) => write!(f, "it is a {kind}, not a file; exclude it"),
            ProblemKind::LeadsOut(target) => {
                let target = target.display();
                write!(f, "it is a symbolic link that leads out to `{target}`; catalogue that path too")
            }
            ProblemKind::ForeignLink(link) => {
                let link = link.display();
                write!(f, "the symbolic link `{link}` on the way belongs to somebody else; catalogue what it leads to")
            }
            ProblemKind::TooMany(most) => {
                write!(f, "there are more than {most} names to look at; narrow the pattern or split the entry")
            }
            ProblemKind::TooDeep(most) => {
                write!(f, "it is more than {most} directories deep; catalogue it with an entry of its own")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protected(path: &str, class: u32, inode: u64) -> Protected {
        Protected { path: path.into(), class, device: 1, inode }
    }

    fn scan(files: Vec<Protected>, watch: &[&str]) -> Scan {
        Scan { files, watch: watch.iter().map(PathBuf::from).collect(), ..Scan::default() }
    }

    #[test]
    fn equal_scans_have_no_changes() {
        let found = scan(vec![protected("/a", 1, 1)], &["/"]);
        assert!(found.changes_since(&found).is_empty());
    }

    #[test]
    fn new_replaced_relabelled_and_gone_files_are_told() {
        let same = protected("/same", 1, 9);
        let before =
            vec![protected("/gone", 1, 1), protected("/label", 1, 2), protected("/new-file", 1, 3), same.clone()];
        let after = vec![protected("/added", 1, 4), protected("/label", 2, 2), protected("/new-file", 1, 5), same];
        let changes = scan(after, &["/b"]).changes_since(&scan(before, &["/a"]));
        let paths = |list: &[Protected]| list.iter().map(|found| found.path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(paths(&changes.files), ["/added", "/label", "/new-file"]);
        assert_eq!(paths(&changes.gone), ["/gone", "/new-file"]);
        assert_eq!(changes.gone[1].inode, 3);
        assert_eq!((changes.watch, changes.unwatch), (vec![PathBuf::from("/b")], vec![PathBuf::from("/a")]));
    }

    #[test]
    fn a_file_goes_before_its_directory() {
        let mut found = scan(vec![protected("/d/key", 2, 1)], &[]);
        found.directories = vec![protected("/d", 1, 2)];
        let class = |path: &str| found.class_of(Path::new(path));
        assert_eq!([class("/d/key"), class("/d/other"), class("/d/sub/x"), class("/")], [2, 1, 0, 0]);
    }
}
