//! The catalogue of unix listeners: what the names are called that somebody listens on.
//!
//! It is asked while a process is held and looks at nothing but the name: the one that the listener itself bound.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_common::maps::{CLASS_UNIX, UNIX_AGENT, UNIX_NAME_LEN, UNIX_UNKNOWN, UNIX_UNNAMED};
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::domain::toml_text::{Reader, Table, TextErrors};
use crate::domain::{Label, LabelSet};

use super::catalogue::{self, Entry, Kind};

/// The shipped catalogue.
pub const SHIPPED: &str = include_str!("../../../policies/catalogue/unix.toml");

/// The label of names that no entry matches.
pub const UNKNOWN: &str = "net/unix/unknown";
/// The label of sockets that another task made.
pub const AGENT: &str = "net/unix/agent";
/// The label of sockets without a name.
pub const UNNAMED: &str = "net/unix/unnamed";

/// Classes below are those that the kernel programs know by number.
const FIRST_CLASS: u32 = 16;

const KIND: Kind =
    Kind { table: "listener", keys: &["paths", "abstract"], shipped_file: "policies/catalogue/unix.toml" };

/// The catalogue in force.
#[derive(Clone, Debug)]
pub struct UnixListeners {
    rooted: Names,
    /// Patterns that begin with `~`, matched against what comes after a home directory.
    homely: Names,
    homes: HashSet<PathBuf>,
    abstracts: Names,
    /// Paths without a wildcard, and their classes.
    exact: Vec<(Vec<u8>, u32)>,
    classes: HashMap<u32, Arc<LabelSet>>,
    labels: LabelSet,
}

/// Patterns of one kind, each with the labels of its entry.
#[derive(Clone, Debug)]
struct Names {
    set: GlobSet,
    labels: Vec<Arc<LabelSet>>,
}

/// What an entry matches.
#[derive(Clone, Debug)]
struct Match {
    paths: Vec<Pattern>,
    abstracts: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    glob: Glob,
}

/// Why a text of an entry is refused. Each names the text and ends with the next step.
#[derive(Debug, thiserror::Error)]
enum FieldError {
    #[error("`{0}` is not an absolute path; begin it with `/`, or with `~/` for every home directory")]
    Relative(String),
    #[error("`{0}` is not a glob ({1}); correct it, or escape what is meant literally with `\\`")]
    Glob(String, String),
    #[error("`{0}` is longer than the {UNIX_NAME_LEN} bytes that a unix socket's name has; shorten it")]
    TooLong(String),
    #[error("`{0}` begins with `@`, by which tools only show that a name is abstract; leave it out")]
    At(String),
}

impl UnixListeners {
    /// The shipped entries (usually [`SHIPPED`]) that the site's file, named only in errors, does not disable, and the
    /// site's own. `~` stands for each of `homes`.
    ///
    /// # Errors
    /// Every fault of both texts.
    pub fn load(shipped: &str, site: Option<(&Path, &str)>, homes: &[PathBuf]) -> Result<Self, TextErrors> {
        Ok(Self::build(&catalogue::load(&KIND, shipped, site, Match::read)?, homes))
    }

    fn build(entries: &[Entry<Match>], homes: &[PathBuf]) -> Self {
        let fixed = [(UNIX_AGENT, AGENT), (UNIX_UNNAMED, UNNAMED), (UNIX_UNKNOWN, UNKNOWN)];
        let mut classes: HashMap<u32, Arc<LabelSet>> =
            fixed.into_iter().map(|(class, label)| (class, Arc::new(one(label)))).collect();
        classes.extend(entries.iter().map(|entry| (class_of(&entry.labels), Arc::clone(&entry.labels))));
        let mut labels = catalogue::labels(entries);
        labels.extend(fixed.iter().flat_map(|(_, label)| one(label)));
        labels.extend(UNKNOWN.parse::<Label>().iter().flat_map(Label::ancestors).collect::<Vec<_>>());
        let paths = |homely: bool| {
            let of = move |entry: &'_ Match| {
                entry.paths.iter().filter(|path| path.text.starts_with('~') == homely).cloned().collect()
            };
            Names::new(entries, of)
        };
        let mut built = Self {
            rooted: paths(false),
            homely: paths(true),
            homes: homes.iter().cloned().collect(),
            abstracts: Names::new(entries, |entry| entry.abstracts.clone()),
            exact: Vec::new(),
            classes,
            labels,
        };
        built.exact = built.spelled_out(entries);
        built
    }

    /// Every path that an entry spells out, with the class that all entries together give it.
    fn spelled_out(&self, entries: &[Entry<Match>]) -> Vec<(Vec<u8>, u32)> {
        let paths = entries.iter().flat_map(|entry| &entry.body.paths).filter(|path| path.is_exact());
        let under = |path: &Pattern| match path.text.strip_prefix("~/") {
            Some(rest) => self.homes.iter().map(|home| home.join(rest).into_os_string().into_encoded_bytes()).collect(),
            None => other_names(&path.text),
        };
        let fits = |name: &Vec<u8>| name.len() <= UNIX_NAME_LEN;
        paths
            .flat_map(under)
            .filter(fits)
            .map(|name| (class_of(&self.labels_of(&name)), name))
            .map(|(c, n)| (n, c))
            .collect()
    }

    /// All labels that a unix listener can have, and the labels above them.
    pub fn labels(&self) -> &LabelSet {
        &self.labels
    }

    /// The labels of whoever listens under a name: a path, or an abstract name with its leading NUL; no bytes for none.
    pub fn labels_of(&self, name: &[u8]) -> Arc<LabelSet> {
        let found = match name.split_first() {
            None => return self.of_class(UNIX_UNNAMED),
            // Some bind all 108 bytes, most of them NULs.
            Some((0, name)) => self.abstracts.matching(Path::new(OsStr::from_bytes(trimmed(name)))),
            Some(_) => self.matching_path(Path::new(OsStr::from_bytes(name))),
        };
        match found.as_slice() {
            [] => self.of_class(UNIX_UNKNOWN),
            [one] => Arc::clone(one),
            several => Arc::new(several.iter().flat_map(|labels| labels.iter().cloned()).collect()),
        }
    }

    fn matching_path(&self, path: &Path) -> Vec<&Arc<LabelSet>> {
        // Without doubled slashes and dots, and by the name that `/var/run` stands for.
        let path: PathBuf = path.components().collect();
        let path = path.strip_prefix("/var/run").map_or_else(|_| path.clone(), |rest| Path::new("/run").join(rest));
        let mut found = self.rooted.matching(&path);
        let homes = path.ancestors().filter(|above| self.homes.contains(*above));
        found.extend(homes.filter_map(|home| path.strip_prefix(home).ok()).flat_map(|rest| self.homely.matching(rest)));
        found
    }

    /// The labels of a class; those of an unknown name for a class that nothing has.
    pub fn of_class(&self, class: u32) -> Arc<LabelSet> {
        self.classes.get(&class).or_else(|| self.classes.get(&UNIX_UNKNOWN)).cloned().unwrap_or_default()
    }

    /// Every class that one entry gives, and those that the kernel programs give by themselves.
    pub fn classes(&self) -> impl Iterator<Item = (u32, &Arc<LabelSet>)> {
        self.classes.iter().map(|(class, labels)| (*class, labels))
    }

    /// The names that the catalogue spells out, and their classes.
    pub fn exact(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.exact.iter().map(|(name, class)| (name.as_slice(), *class))
    }
}

/// The number of a set of labels. It is worked out from the labels alone, so that it means the same to a daemon that takes
/// over from another, and to two threads of which neither has asked the other.
///
/// FNV-1a, folded to 30 bits: the sets are the operator's, a few hundred at most.
pub fn class_of(labels: &LabelSet) -> u32 {
    let fixed = [(UNIX_AGENT, AGENT), (UNIX_UNNAMED, UNNAMED), (UNIX_UNKNOWN, UNKNOWN)];
    if let (Some(label), 1) = (labels.first(), labels.len())
        && let Some((class, _)) = fixed.iter().find(|(_, own)| *own == label.as_str())
    {
        return *class;
    }
    let bytes = labels.iter().flat_map(|label| label.as_str().bytes().chain([0]));
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let folded = u32::try_from((hash ^ (hash >> 32)) & u64::from(CLASS_UNIX - 1)).unwrap_or(0);
    CLASS_UNIX | folded.max(FIRST_CLASS)
}

impl Names {
    fn new(entries: &[Entry<Match>], of: impl Fn(&Match) -> Vec<Pattern>) -> Self {
        let (mut builder, mut labels) = (GlobSetBuilder::new(), Vec::new());
        for entry in entries {
            for pattern in of(&entry.body) {
                builder.add(pattern.glob);
                labels.push(Arc::clone(&entry.labels));
            }
        }
        // Each glob was built before; without any there is nothing to match.
        Self { set: builder.build().unwrap_or_else(|_| GlobSet::empty()), labels }
    }

    fn matching(&self, name: &Path) -> Vec<&Arc<LabelSet>> {
        let mut found: Vec<&Arc<LabelSet>> =
            self.set.matches(name).into_iter().filter_map(|index| self.labels.get(index)).collect();
        found.dedup();
        found
    }
}

impl Match {
    fn read(reader: &mut Reader<'_>, table: Table<'_>) -> Self {
        if ["paths", "abstract"].iter().all(|key| table.is_empty(key)) {
            let help = "add at least one of `paths` and `abstract`";
            reader.report(table.span(), "the entry names no listener", help);
        }
        Self {
            paths: reader.parsed_list(table, "paths", Pattern::path),
            abstracts: reader.parsed_list(table, "abstract", Pattern::abstract_name),
        }
    }
}

impl Pattern {
    fn path(text: &str) -> Result<Self, FieldError> {
        if !text.starts_with('/') && !text.starts_with("~/") {
            return Err(FieldError::Relative(text.to_owned()));
        }
        let text = text.strip_prefix("/var/run/").map_or_else(|| text.to_owned(), |rest| format!("/run/{rest}"));
        // `*` stays within one directory.
        Self::new(&text, text.strip_prefix("~/").unwrap_or(&text), true)
    }

    fn abstract_name(text: &str) -> Result<Self, FieldError> {
        if text.starts_with('@') {
            return Err(FieldError::At(text.to_owned()));
        }
        Self::new(text, text, false)
    }

    fn new(text: &str, glob: &str, separated: bool) -> Result<Self, FieldError> {
        if text.len() > UNIX_NAME_LEN && !text.contains(WILD) {
            return Err(FieldError::TooLong(text.to_owned()));
        }
        let built = GlobBuilder::new(glob).literal_separator(separated).backslash_escape(true).build();
        let glob = built.map_err(|error| FieldError::Glob(text.to_owned(), error.kind().to_string()))?;
        Ok(Self { text: text.to_owned(), glob })
    }

    fn is_exact(&self) -> bool {
        !self.text.contains(WILD)
    }
}

const WILD: [char; 5] = ['*', '?', '[', '{', '\\'];

/// `/var/run` is another name of `/run`, and some bind it.
fn other_names(path: &str) -> Vec<Vec<u8>> {
    let old = path.strip_prefix("/run/").map(|rest| format!("/var/run/{rest}").into_bytes());
    std::iter::once(path.as_bytes().to_owned()).chain(old).collect()
}

fn trimmed(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    name.get(..end).unwrap_or(name)
}

fn one(label: &str) -> LabelSet {
    label.parse().into_iter().collect()
}

#[cfg(test)]
mod tests;
