//! What a walk has found so far, and how names that agents can make must not change what others are called.
//!
//! A grant is met by any one label of a secret, so an agent must not be able to add one. It could lay a link from a place
//! with a label that it is granted: `ln -s ~/.aws/credentials ~/app/.env`. Therefore a symbolic link that is not root's
//! gives labels only to what has none of its own, and a file with several names (hard links) of different labels has all
//! of them and [`SEVERAL_NAMES`], which the shipped policies forbid. Renames are the [`super::Ledger`]'s part.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::domain::{Label, LabelSet};

use super::ClassTable;
use super::scan::{Problem, ProblemKind, Protected, Scan};

/// The label of a file whose names disagree about its labels.
pub const SEVERAL_NAMES: &str = "secret/several-names";

/// Collects what a walk finds.
#[derive(Debug, Default)]
pub(super) struct Findings {
    files: Found,
    inside: Found,
    directories: Found,
    problems: Vec<Problem>,
    problems_left_out: usize,
    watch: BTreeSet<PathBuf>,
}

type Found = BTreeMap<PathBuf, Finding>;

#[derive(Debug)]
struct Finding {
    own: LabelSet,
    linked: LabelSet,
    identity: (u64, u64),
}

/// With what labels something was reached, and whether by a link that is not to be trusted with giving them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached<'l> {
    pub(super) labels: &'l LabelSet,
    pub(super) by_link: bool,
}

impl Findings {
    /// Notes a file that a pattern names.
    pub(super) fn file(&mut self, path: PathBuf, metadata: &Metadata, reached: Reached<'_>) {
        note(&mut self.files, path, metadata, reached);
    }

    /// Notes a file in a protected directory.
    pub(super) fn inside(&mut self, path: PathBuf, metadata: &Metadata, reached: Reached<'_>) {
        note(&mut self.inside, path, metadata, reached);
    }

    /// Notes a protected directory.
    pub(super) fn directory(&mut self, path: PathBuf, metadata: &Metadata, reached: Reached<'_>) {
        note(&mut self.directories, path, metadata, reached);
    }

    /// Notes a problem, if it is not one too many.
    pub(super) fn problem(&mut self, problem: Problem, most: usize) {
        if self.problems.len() < most {
            self.problems.push(problem);
        } else {
            self.problems_left_out += 1;
        }
    }

    /// Watches the directory in which `path` is or would be, and those above it.
    pub(super) fn watch_for(&mut self, path: &Path) {
        path.parent().into_iter().for_each(|directory| self.watch(directory));
    }

    /// Watches a directory and those above it: one that is put in the place of another is told only from above.
    pub(super) fn watch(&mut self, directory: &Path) {
        for place in directory.ancestors() {
            if self.watch.contains(place) {
                break;
            }
            if place.is_dir() {
                self.watch.insert(place.to_owned());
            }
        }
    }

    /// The findings, with classes from `table`.
    pub(super) fn finish(mut self, table: &mut ClassTable) -> Scan {
        self.inside.retain(|path, _| !self.files.contains_key(path));
        let labels = self.labels_by_identity();
        let mut classed = |found: &Found| -> Vec<Protected> {
            let mut class = |finding: &Finding| labels.get(&finding.identity).map_or(0, |labels| table.intern(labels));
            found.iter().map(|(path, finding)| finding.protected(path, class(finding))).collect()
        };
        let (files, inside, directories) = (classed(&self.files), classed(&self.inside), classed(&self.directories));
        let problems = self.problems.iter().filter(|problem| !self.is_settled(&problem.kind)).cloned().collect();
        Scan { files, inside, directories, problems, problems_left_out: self.problems_left_out, watch: self.watch }
    }

    /// One file has one set of labels, whatever its names.
    fn labels_by_identity(&self) -> BTreeMap<(u64, u64), LabelSet> {
        let mut united: BTreeMap<(u64, u64), LabelSet> = BTreeMap::new();
        let every = self.files.iter().chain(&self.inside).chain(&self.directories);
        for (path, finding) in every {
            let labels = self.labels_of(path, finding);
            match united.get_mut(&finding.identity) {
                None => drop(united.insert(finding.identity, labels)),
                Some(others) if *others == labels => {}
                Some(others) => {
                    others.extend(labels);
                    others.extend(SEVERAL_NAMES.parse::<Label>());
                }
            }
        }
        united
    }

    /// A file has the labels of the directory that it is in as well.
    fn labels_of(&self, path: &Path, finding: &Finding) -> LabelSet {
        let directory = path.parent().and_then(|parent| self.directories.get(parent));
        let own: LabelSet = finding.own.iter().chain(directory.iter().flat_map(|above| &above.own)).cloned().collect();
        let linked =
            || finding.linked.iter().chain(directory.iter().flat_map(|above| &above.linked)).cloned().collect();
        if own.is_empty() { linked() } else { own }
    }

    /// Whether what a link leads out to is protected by itself.
    fn is_settled(&self, kind: &ProblemKind) -> bool {
        let ProblemKind::LeadsOut(target) = kind else { return false };
        let mut places = target.ancestors().take(2);
        self.files.contains_key(target) || places.any(|place| self.directories.contains_key(place))
    }
}

impl Finding {
    fn protected(&self, path: &Path, class: u32) -> Protected {
        let (device, inode) = self.identity;
        Protected { path: path.to_owned(), class, device, inode }
    }
}

fn note(found: &mut Found, path: PathBuf, metadata: &Metadata, reached: Reached<'_>) {
    let identity = (metadata.dev(), metadata.ino());
    let new = || Finding { own: LabelSet::new(), linked: LabelSet::new(), identity };
    let finding = found.entry(path).or_insert_with(new);
    let labels = if reached.by_link { &mut finding.linked } else { &mut finding.own };
    labels.extend(reached.labels.iter().cloned());
}
