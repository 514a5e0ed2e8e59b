//! The walk behind a scan. It looks at names and their metadata and opens no file.
//!
//! It trusts nothing that it finds, because an agent may have put it there: every pattern has a budget of names to look
//! at, wildcards and subtrees never go through a symbolic link, and a link that is followed because the catalogue spells
//! out its name must belong to root or to the owner of what it leads to. Otherwise any agent could point `~/.netrc` at a
//! library and take it away from all agents.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, FileType, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::domain::LabelSet;

use super::ClassTable;
use super::pattern::{self, Exclude, Part, Pattern};
use super::scan::{Problem, ProblemKind, Protected, Scan};

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

/// What was found so far. Walk every entry with [`Walk::entry`], then [`Walk::finish`].
#[derive(Debug, Default)]
pub(super) struct Walk {
    limits: Limits,
    files: Found,
    directories: Found,
    problems: Vec<Problem>,
    problems_left_out: usize,
    watch: BTreeSet<PathBuf>,
}

type Found = BTreeMap<PathBuf, Finding>;

#[derive(Debug)]
struct Finding {
    labels: LabelSet,
    device: u64,
    inode: u64,
}

/// The walk for one entry of the catalogue.
pub(super) struct EntryWalk<'w> {
    walk: &'w mut Walk,
    name: &'w Arc<str>,
    labels: &'w LabelSet,
    exclude: &'w Exclude,
    /// Names that may still be looked at for the present pattern.
    left: usize,
    /// How many names of the present pattern no exclude is meant for.
    fixed: usize,
}

impl Walk {
    /// A walk with other limits than the usual ones.
    pub(super) fn with_limits(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Begins with an entry.
    pub(super) fn entry<'w>(
        &'w mut self,
        name: &'w Arc<str>,
        labels: &'w LabelSet,
        exclude: &'w Exclude,
    ) -> EntryWalk<'w> {
        EntryWalk { left: self.limits.names, fixed: 0, walk: self, name, labels, exclude }
    }

    /// The findings, with classes from `table`.
    pub(super) fn finish(mut self, table: &mut ClassTable) -> Scan {
        self.unite_labels();
        let (files, directories) = (classed(&self.files, table), classed(&self.directories, table));
        let protects = |path: &Path| {
            let mut places = path.ancestors().take(2);
            self.files.contains_key(path) || places.any(|place| self.directories.contains_key(place))
        };
        let covered = |kind: &ProblemKind| matches!(kind, ProblemKind::LeadsOut(target) if protects(target));
        let problems = self.problems.into_iter().filter(|problem| !covered(&problem.kind)).collect();
        Scan { files, directories, problems, problems_left_out: self.problems_left_out, watch: self.watch }
    }

    /// A file has the labels of the directory that it is in as well, and all names of one file have the same labels.
    fn unite_labels(&mut self) {
        let mut by_identity: BTreeMap<(u64, u64), LabelSet> = BTreeMap::new();
        for (path, finding) in &self.files {
            let directory = path.parent().and_then(|parent| self.directories.get(parent));
            let labels = finding.labels.iter().chain(directory.iter().flat_map(|directory| &directory.labels));
            by_identity.entry((finding.device, finding.inode)).or_default().extend(labels.cloned());
        }
        for finding in self.files.values_mut() {
            finding.labels = by_identity.get(&(finding.device, finding.inode)).cloned().unwrap_or_default();
        }
    }

    fn problem(&mut self, problem: Problem) {
        if self.problems.len() < self.limits.problems {
            self.problems.push(problem);
        } else {
            self.problems_left_out += 1;
        }
    }

    /// Watches the directory in which `path` is or would be: the nearest one that exists.
    fn watch_for(&mut self, path: &Path) {
        let existing = path.ancestors().skip(1).find(|directory| directory.is_dir());
        self.watch.extend(existing.map(Path::to_owned));
    }
}

impl EntryWalk<'_> {
    /// A path that the catalogue spells out: a file, or a directory with everything below it.
    pub(super) fn path(&mut self, path: &Path) {
        self.begin(pattern::count(path).saturating_sub(1));
        if let Some((real, metadata)) = self.resolve(path) {
            match metadata.is_dir() {
                true => self.subtree(&real, path),
                false => self.file(real, &metadata),
            }
        }
    }

    /// The files that a glob names.
    pub(super) fn glob(&mut self, pattern: &Pattern) {
        self.begin(pattern.fixed());
        self.descend(Path::new("/"), pattern.parts(), 0);
    }

    fn begin(&mut self, fixed: usize) {
        self.left = self.walk.limits.names;
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
        if let Some((real, metadata)) = self.resolve(&path).filter(|(_, metadata)| !metadata.is_dir()) {
            self.file(real, &metadata);
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

    /// Every directory below `real`. `shown` is the same place in the catalogue's words, in which excludes speak.
    fn subtree(&mut self, real: &Path, shown: &Path) {
        let mut waiting = vec![(real.to_owned(), shown.to_owned(), 0)];
        while let Some((directory, shown, depth)) = waiting.pop() {
            self.directory(&directory);
            for (name, kind) in self.read(&directory) {
                let (below, shown) = (directory.join(&name), shown.join(&name));
                if kind.is_symlink() {
                    self.check_link(real, &below);
                } else if kind.is_dir() && !self.exclude.excludes(&shown) && self.may_go_deeper(&below, depth) {
                    waiting.push((below, shown, depth + 1));
                }
            }
        }
    }

    fn may_go_deeper(&mut self, directory: &Path, depth: usize) -> bool {
        let most = self.walk.limits.depth;
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
        self.walk.watch.insert(directory.to_owned());
        let mut names = Vec::new();
        for entry in entries {
            if self.left == 0 {
                self.problem(directory, ProblemKind::TooMany(self.walk.limits.names));
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
    fn resolve(&mut self, path: &Path) -> Option<(PathBuf, Metadata)> {
        if self.exclude.excludes_below(path, self.fixed) {
            return None;
        }
        self.walk.watch_for(path);
        let found = fs::canonicalize(path).and_then(|real| Ok((fs::symlink_metadata(&real)?, real)));
        let (metadata, real) = found.inspect_err(|error| self.missing(path, error)).ok()?;
        if real != path {
            self.walk.watch_for(&real);
            if let Some(link) = foreign_link(path, metadata.uid()) {
                self.problem(path, ProblemKind::ForeignLink(link));
                return None;
            }
        }
        Some((real, metadata))
    }

    /// What is not there, or has just gone, needs no protection, but watching; everything else is a problem.
    fn missing(&mut self, path: &Path, error: &io::Error) {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => self.walk.watch_for(path),
            _ => self.problem(path, ProblemKind::Unreadable(error.to_string())),
        }
    }

    /// Sockets are passed over: they cannot be opened.
    fn file(&mut self, path: PathBuf, metadata: &Metadata) {
        let kind = metadata.file_type();
        if kind.is_file() {
            note(&mut self.walk.files, path, metadata, self.labels);
        } else if !kind.is_socket() {
            self.problem(&path, ProblemKind::NotAFile(if kind.is_fifo() { "named pipe" } else { "device" }));
        }
    }

    fn directory(&mut self, path: &Path) {
        match fs::symlink_metadata(path) {
            Ok(metadata) => note(&mut self.walk.directories, path.to_owned(), &metadata, self.labels),
            Err(error) => self.missing(path, &error),
        }
    }

    fn problem(&mut self, path: &Path, kind: ProblemKind) {
        self.walk.problem(Problem { entry: Arc::clone(self.name), path: path.to_owned(), kind });
    }
}

fn note(found: &mut Found, path: PathBuf, metadata: &Metadata, labels: &LabelSet) {
    let (device, inode) = (metadata.dev(), metadata.ino());
    let finding = found.entry(path).or_insert_with(|| Finding { labels: LabelSet::new(), device, inode });
    finding.labels.extend(labels.iter().cloned());
}

fn classed(found: &Found, table: &mut ClassTable) -> Vec<Protected> {
    let class = |(path, finding): (&PathBuf, &Finding)| Protected {
        path: path.clone(),
        class: table.intern(&finding.labels),
        device: finding.device,
        inode: finding.inode,
    };
    found.iter().map(class).collect()
}

/// The first symbolic link on the way along `path` that its owner may not lay.
fn foreign_link(path: &Path, target_owner: u32) -> Option<PathBuf> {
    let mut links = path.ancestors().filter_map(|place| Some((place, fs::symlink_metadata(place).ok()?)));
    let foreign = links.find(|(_, link)| link.is_symlink() && !may_lead(link.uid(), target_owner));
    foreign.map(|(place, _)| place.to_owned())
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
