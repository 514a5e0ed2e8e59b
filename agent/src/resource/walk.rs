//! The walk behind a scan. It looks at names and their metadata and opens no file.
//!
//! It trusts nothing that it finds, because an agent may have put it there: every pattern has a budget of names to look
//! at, wildcards and subtrees never go through a symbolic link, and a link that is followed because the catalogue spells
//! out its name must belong to root or to the owner of what it leads to. Otherwise any agent could point `~/.netrc` at a
//! library and take it away from all agents.

use std::ffi::OsString;
use std::fs::{self, FileType, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::domain::LabelSet;

use super::findings::{Findings, Reached};
use super::pattern::{self, Exclude, Part, Pattern};
use super::scan::{Problem, ProblemKind};

/// How much one walk may look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Names per pattern and home.
    pub(super) names: usize,
    /// Directories below the place where a subtree or `**` begins.
    pub(super) depth: usize,
    /// Problems that are kept.
    pub(super) problems: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { names: 20_000, depth: 32, problems: 256 }
    }
}

/// The walk for one entry of the catalogue.
pub(super) struct EntryWalk<'w> {
    limits: Limits,
    findings: &'w mut Findings,
    name: &'w Arc<str>,
    labels: &'w LabelSet,
    exclude: &'w Exclude,
    /// Names that may still be looked at for the present pattern.
    left: usize,
    /// How many names of the present pattern no exclude is meant for.
    fixed: usize,
}

/// What a path leads to.
struct Target {
    real: PathBuf,
    metadata: Metadata,
    /// A link that is not root's is on the way.
    by_link: bool,
}

impl<'w> EntryWalk<'w> {
    /// Begins with an entry.
    pub(super) fn new(
        limits: Limits,
        findings: &'w mut Findings,
        name: &'w Arc<str>,
        labels: &'w LabelSet,
        exclude: &'w Exclude,
    ) -> Self {
        Self { limits, findings, name, labels, exclude, left: limits.names, fixed: 0 }
    }

    /// A path that the catalogue spells out: a file, or a directory with everything below it.
    pub(super) fn path(&mut self, path: &Path) {
        self.begin(pattern::count(path).saturating_sub(1));
        if let Some(target) = self.resolve(path) {
            if target.metadata.is_dir() { self.subtree(&target, path) } else { self.file(target) }
        }
    }

    /// The files that a glob names.
    pub(super) fn glob(&mut self, pattern: &Pattern) {
        self.begin(pattern.fixed());
        self.descend(Path::new("/"), pattern.parts(), 0);
    }

    fn begin(&mut self, fixed: usize) {
        self.left = self.limits.names;
        self.fixed = fixed;
    }

    /// Follows the names spelled out in a glob up to its next wildcard.
    fn descend(&mut self, base: &Path, parts: &[Part], depth: usize) {
        let mut path = base.to_owned();
        for (index, part) in parts.iter().enumerate() {
            let rest = parts.get(index + 1..).unwrap_or_default();
            match part {
                Part::Name(name) => path.push(name),
                Part::Glob(_) => return self.fan_out(&path, part, rest, depth),
                Part::Deep => return self.deepen(&path, rest, depth),
            }
        }
        if let Some(target) = self.resolve(&path).filter(|target| !target.metadata.is_dir()) {
            self.file(target);
        }
    }

    fn fan_out(&mut self, directory: &Path, part: &Part, rest: &[Part], depth: usize) {
        for (name, kind) in self.read(directory) {
            // Below a wildcard only real directories count: a link may lead anywhere.
            if part.matches(&name) && (rest.is_empty() || kind.is_dir()) {
                self.descend(&directory.join(name), rest, depth);
            }
        }
    }

    /// `**`: the rest of the glob begins here or in any directory below.
    fn deepen(&mut self, directory: &Path, rest: &[Part], depth: usize) {
        self.descend(directory, rest, depth);
        for (name, kind) in self.read(directory) {
            let below = directory.join(name);
            if kind.is_dir() && !self.exclude.excludes(&below) && self.may_go_deeper(&below, depth) {
                self.deepen(&below, rest, depth + 1);
            }
        }
    }

    /// Every directory below the target, and the files in them. `shown` is the same place in the catalogue's words, in
    /// which excludes speak.
    fn subtree(&mut self, root: &Target, shown: &Path) {
        let reached = Reached { labels: self.labels, by_link: root.by_link };
        let mut waiting = vec![(root.real.clone(), shown.to_owned(), 0)];
        while let Some((directory, shown, depth)) = waiting.pop() {
            let Some(metadata) = self.look_at(&directory).filter(Metadata::is_dir) else { continue };
            self.findings.directory(directory.clone(), &metadata, reached);
            for (name, kind) in self.read(&directory) {
                let (below, shown) = (directory.join(&name), shown.join(&name));
                if kind.is_symlink() {
                    self.check_link(&root.real, &below);
                } else if kind.is_file() {
                    self.inside(below, reached);
                } else if kind.is_dir() && !self.exclude.excludes(&shown) && self.may_go_deeper(&below, depth) {
                    waiting.push((below, shown, depth + 1));
                }
            }
        }
    }

    fn inside(&mut self, file: PathBuf, reached: Reached<'_>) {
        if let Some(metadata) = self.look_at(&file).filter(Metadata::is_file) {
            self.findings.inside(file, &metadata, reached);
        }
    }

    fn may_go_deeper(&mut self, directory: &Path, depth: usize) -> bool {
        let most = self.limits.depth;
        if depth >= most {
            self.problem(directory, ProblemKind::TooDeep(most));
        }
        depth < most
    }

    /// A link in a subtree is not followed; that what it leads to is unprotected has to be said.
    fn check_link(&mut self, root: &Path, link: &Path) {
        if let Ok(target) = fs::canonicalize(link)
            && !target.starts_with(root)
            && (target.is_file() || target.is_dir())
        {
            self.problem(link, ProblemKind::LeadsOut(target));
        }
    }

    /// The names in a directory, in order, as far as the budget goes. One that is missing has none.
    fn read(&mut self, directory: &Path) -> Vec<(OsString, FileType)> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => {
                self.missing(directory, &error);
                return Vec::new();
            }
        };
        self.findings.watch(directory);
        let mut names = Vec::new();
        for entry in entries {
            if self.left == 0 {
                self.problem(directory, ProblemKind::TooMany(self.limits.names));
                break;
            }
            self.left -= 1;
            match entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?))) {
                Ok(found) => names.push(found),
                Err(error) => self.missing(directory, &error),
            }
        }
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        names
    }

    /// What `path` leads to in the end, unless it is excluded, absent, or reached by a link that is not to be trusted.
    fn resolve(&mut self, path: &Path) -> Option<Target> {
        if self.exclude.excludes_below(path, self.fixed) {
            return None;
        }
        self.findings.watch_for(path);
        let real = fs::canonicalize(path).inspect_err(|error| self.missing(path, error)).ok()?;
        let metadata = self.look_at(&real)?;
        let links = if real == path { Vec::new() } else { links_on(path) };
        links.iter().for_each(|(link, _)| self.findings.watch_for(link));
        self.findings.watch_for(&real);
        if let Some((link, _)) = links.iter().find(|(_, owner)| !may_lead(*owner, metadata.uid())) {
            self.problem(path, ProblemKind::ForeignLink(link.clone()));
            return None;
        }
        let by_link = links.iter().any(|(_, owner)| *owner != 0);
        Some(Target { real, metadata, by_link })
    }

    fn look_at(&mut self, path: &Path) -> Option<Metadata> {
        fs::symlink_metadata(path).inspect_err(|error| self.missing(path, error)).ok()
    }

    /// What is not there, or has just gone, needs no protection, but watching; everything else is a problem.
    fn missing(&mut self, path: &Path, error: &io::Error) {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => self.findings.watch_for(path),
            _ => self.problem(path, ProblemKind::Unreadable(error.to_string())),
        }
    }

    /// Sockets are passed over: they cannot be opened.
    fn file(&mut self, target: Target) {
        let kind = target.metadata.file_type();
        let reached = Reached { labels: self.labels, by_link: target.by_link };
        if kind.is_file() {
            self.findings.file(target.real, &target.metadata, reached);
        } else if kind.is_fifo() {
            self.problem(&target.real, ProblemKind::NotAFile("named pipe"));
        } else if kind.is_char_device() || kind.is_block_device() {
            self.problem(&target.real, ProblemKind::NotAFile("device"));
        }
    }

    fn problem(&mut self, path: &Path, kind: ProblemKind) {
        let problem = Problem { entry: Arc::clone(self.name), path: path.to_owned(), kind };
        self.findings.problem(problem, self.limits.problems);
    }
}

/// The symbolic links on the way along `path`, and their owners.
fn links_on(path: &Path) -> Vec<(PathBuf, u32)> {
    let places = path.ancestors().filter_map(|place| Some((place, fs::symlink_metadata(place).ok()?)));
    places.filter(|(_, link)| link.is_symlink()).map(|(place, link)| (place.to_owned(), link.uid())).collect()
}

fn may_lead(link_owner: u32, target_owner: u32) -> bool {
    link_owner == 0 || link_owner == target_owner
}

#[cfg(test)]
mod tests {
    use super::may_lead;

    #[test]
    fn only_root_and_the_owner_lay_links() {
        assert!(may_lead(0, 1000) && may_lead(0, 0) && may_lead(1000, 1000));
        assert!(!may_lead(1000, 0) && !may_lead(1000, 1001));
    }
}
