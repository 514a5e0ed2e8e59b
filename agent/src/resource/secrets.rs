//! The secrets catalogue: which files are secrets, and their labels.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::domain::toml_text::{Reader, Table, TextErrors};
use crate::domain::{Label, LabelSet};

use super::catalogue::{self, Entry, Kind};
use super::findings::{Findings, SEVERAL_NAMES};
use super::pattern::{self, Exclude, Pattern};
use super::walk::{EntryWalk, Limits};
use super::{ClassTable, Scan};

/// The shipped catalogue.
pub const SHIPPED: &str = include_str!("../../../policies/catalogue/secrets.toml");

const KIND: Kind = Kind {
    table: "secret",
    keys: &["paths", "globs", "directories", "exclude"],
    shipped_file: "policies/catalogue/secrets.toml",
};

/// The catalogue in force.
#[derive(Clone, Debug)]
pub struct Secrets {
    entries: Vec<Entry<Places>>,
}

#[derive(Clone, Debug, Default)]
struct Places {
    paths: Vec<PathBuf>,
    globs: Vec<Pattern>,
    directories: Vec<PathBuf>,
    exclude: Exclude,
}

impl Secrets {
    /// The shipped entries (usually [`SHIPPED`]) that the site's file, named only in errors, does not disable, and the
    /// site's own. `~` stands for each of `homes`.
    ///
    /// # Errors
    /// Every fault of both texts.
    pub fn load(shipped: &str, site: Option<(&Path, &str)>, homes: &[PathBuf]) -> Result<Self, TextErrors> {
        let entries = catalogue::load(&KIND, shipped, site, |reader, table| Places::read(reader, table, homes))?;
        Ok(Self { entries })
    }

    /// All labels that a secret can have, and the labels above them.
    pub fn labels(&self) -> LabelSet {
        let mut labels = catalogue::labels(&self.entries);
        labels.extend(SEVERAL_NAMES.parse::<Label>());
        labels.extend("secret".parse::<Label>());
        labels
    }

    /// Looks for everything that the catalogue speaks of. It opens no file, but may block on a file system that does not
    /// answer (network, FUSE): run it on a thread that nothing waits for.
    pub fn scan(&self, table: &mut ClassTable) -> Scan {
        self.scan_within(Limits::default(), table)
    }

    fn scan_within(&self, limits: Limits, table: &mut ClassTable) -> Scan {
        let mut findings = Findings::default();
        for Entry { name, labels, body } in &self.entries {
            let mut entry = EntryWalk::new(limits, &mut findings, name, labels, &body.exclude);
            body.paths.iter().chain(&body.directories).for_each(|path| entry.path(path));
            body.globs.iter().for_each(|pattern| entry.glob(pattern));
        }
        findings.finish(table)
    }

    /// The class that the catalogue's words alone give a path, whether there is such a file or not. It knows nothing of
    /// symbolic and hard links: for a file that exists ask [`Scan::class_of`] first.
    pub fn class_of_path(&self, path: &Path, table: &mut ClassTable) -> u32 {
        let speaking = self.entries.iter().filter(|entry| entry.body.contains(path));
        let labels: LabelSet = speaking.flat_map(|entry| entry.labels.iter().cloned()).collect();
        table.intern(&labels)
    }

    /// The names of the entries that speak of a path, likewise.
    pub fn entries_of_path<'s>(&'s self, path: &'s Path) -> impl Iterator<Item = &'s Arc<str>> {
        self.entries.iter().filter(|entry| entry.body.contains(path)).map(|entry| &entry.name)
    }
}

impl Places {
    fn read(reader: &mut Reader<'_>, table: Table<'_>, homes: &[PathBuf]) -> Self {
        let paths = |text: &str| pattern::paths(text, homes);
        let mut exclude = Exclude::default();
        let excluded = reader.parsed_list(table, "exclude", |text| Exclude::parse(text, homes));
        excluded.into_iter().for_each(|one| exclude.extend(one));
        if ["paths", "globs", "directories"].iter().all(|key| table.is_empty(key)) {
            let help = "add at least one of `paths`, `globs` and `directories`";
            reader.report(table.span(), "the entry protects nothing", help);
        }
        Self {
            paths: reader.parsed_list(table, "paths", paths).concat(),
            globs: reader.parsed_list(table, "globs", |text| pattern::globs(text, homes)).concat(),
            directories: reader.parsed_list(table, "directories", paths).concat(),
            exclude,
        }
    }

    fn contains(&self, path: &Path) -> bool {
        let spelled_out = self.paths.iter().any(|own| own == path) && !self.exclude.excludes(path);
        let matched = |glob: &Pattern| glob.matches(path) && !self.exclude.excludes_below(path, glob.fixed());
        let below = |root: &PathBuf| self.is_below(root, path);
        spelled_out || self.globs.iter().any(matched) || self.paths.iter().chain(&self.directories).any(below)
    }

    /// Whether `path` is in a directory of the subtree at `root`. Excludes take out sub-directories only: a file in a
    /// protected directory could be renamed to whatever is excluded.
    fn is_below(&self, root: &Path, path: &Path) -> bool {
        let directory = path.parent().filter(|directory| directory.starts_with(root));
        directory
            .is_some_and(|directory| !self.exclude.excludes_below(directory, pattern::count(root).saturating_sub(1)))
    }
}

#[cfg(test)]
mod tests;
