//! Paths and globs as the catalogue writes them, name by name.
//!
//! A glob is matched one name at a time, so that a scan reads only directories that the glob itself speaks of, and `*`
//! never crosses a `/`. `**` stands for any number of directories.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};

/// Why a text is no pattern of the catalogue. Each names the text and ends with the next step.
#[derive(Debug, thiserror::Error)]
pub(super) enum PatternError {
    #[error("`{0}` is not an absolute path; begin it with `/`, or with `~/` for every home directory")]
    Relative(String),
    #[error("`{0}` has a `..` or a NUL character in it; write the path as it really is")]
    Component(String),
    #[error("`{0}` would search the whole file system; begin it with a directory, such as `/srv/` or `~/`")]
    Unbounded(String),
    #[error("`{0}` has a wildcard; list it under `globs`")]
    Wildcard(String),
    #[error("`{text}` is not a glob ({cause}); note that `[..]` and `{{..}}` must lie within one name")]
    Glob { text: String, cause: String },
    #[error("`{0}` has `**` more than once; write one entry per place")]
    TwoDeep(String),
    #[error("`{0}` ends in `**`; list the directory under `directories` to protect everything below it")]
    EndsDeep(String),
    #[error("`{0}` is neither one name nor an absolute path; write `*.pub`, `/etc/x/*.pub` or `~/x/*.pub`")]
    Exclude(String),
}

/// One name of a pattern.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// Exactly this name.
    Name(OsString),
    /// Names that match.
    Glob(Arc<GlobMatcher>),
    /// `**`: any number of directories, none included.
    Deep,
}

/// An absolute glob.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    parts: Vec<Part>,
}

/// The paths that a catalogued path means, one per home if it begins with `~`.
pub(super) fn paths(text: &str, homes: &[PathBuf]) -> Result<Vec<PathBuf>, PatternError> {
    if text.contains(['*', '?']) {
        return Err(PatternError::Wildcard(text.to_owned()));
    }
    let (bases, rest) = split_home(text, homes)?;
    let names = names(text, rest)?;
    let paths: Vec<PathBuf> =
        bases.iter().map(|base| base.iter().chain(names.iter().map(OsStr::new)).collect()).collect();
    if paths.iter().any(|path| path.parent().is_none()) {
        return Err(PatternError::Unbounded(text.to_owned()));
    }
    Ok(paths)
}

/// The patterns that a catalogued glob means, one per home if it begins with `~`.
pub(super) fn globs(text: &str, homes: &[PathBuf]) -> Result<Vec<Pattern>, PatternError> {
    let patterns = matchers(text, homes)?;
    if !text.starts_with('~') && patterns.iter().any(|pattern| !matches!(pattern.parts.first(), Some(Part::Name(_)))) {
        return Err(PatternError::Unbounded(text.to_owned()));
    }
    Ok(patterns)
}

/// What an entry's `exclude` takes out.
#[derive(Clone, Debug, Default)]
pub(super) struct Exclude {
    names: Vec<Arc<GlobMatcher>>,
    paths: Vec<Pattern>,
}

impl Exclude {
    /// Adds one text of the list.
    pub(super) fn parse(text: &str, homes: &[PathBuf]) -> Result<Self, PatternError> {
        if text.starts_with(['/', '~']) {
            return Ok(Self { names: Vec::new(), paths: matchers(text, homes)? });
        }
        if text.contains('/') || text.is_empty() {
            return Err(PatternError::Exclude(text.to_owned()));
        }
        Ok(Self { names: vec![Arc::new(glob(text, text)?)], paths: Vec::new() })
    }

    /// Adds what `other` takes out.
    pub(super) fn extend(&mut self, other: Self) {
        self.names.extend(other.names);
        self.paths.extend(other.paths);
    }

    /// Whether `path` or a directory on the way there is taken out. Its first `fixed` names are those that the
    /// catalogue spells out, which no exclude is meant for: `exclude = ["build"]` has nothing to do with `/home/build`.
    pub(super) fn excludes_below(&self, path: &Path, fixed: usize) -> bool {
        path.ancestors().take(count(path).saturating_sub(fixed)).any(|place| self.excludes(place))
    }

    /// Whether `path` itself is taken out.
    pub(super) fn excludes(&self, path: &Path) -> bool {
        path.file_name().is_some_and(|name| self.names.iter().any(|glob| glob.is_match(name)))
            || self.paths.iter().any(|pattern| pattern.matches(path))
    }
}

impl Pattern {
    /// The pattern's names, the root left out.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// How many names stand before the first wildcard, the last name left out: it is always matched against excludes.
    pub(super) fn fixed(&self) -> usize {
        let named = self.parts.iter().take_while(|part| matches!(part, Part::Name(_))).count();
        named.min(self.parts.len().saturating_sub(1))
    }

    /// Whether the whole of an absolute path matches.
    pub(super) fn matches(&self, path: &Path) -> bool {
        let names: Vec<&OsStr> = path.iter().skip(1).collect();
        path.is_absolute() && matches(&self.parts, &names)
    }
}

impl Part {
    /// Whether one name matches; `**` is no name.
    pub(super) fn matches(&self, name: &OsStr) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Glob(glob) => glob.is_match(name),
            Self::Deep => false,
        }
    }
}

/// How many names an absolute path has.
pub(super) fn count(path: &Path) -> usize {
    path.iter().skip(1).count()
}

/// At most one `Deep` stands in a pattern, so this is quadratic at worst.
fn matches(parts: &[Part], names: &[&OsStr]) -> bool {
    match (parts.split_first(), names.split_first()) {
        (None, None) => true,
        (Some((Part::Deep, rest)), _) => {
            (0..=names.len()).any(|skip| names.get(skip..).is_some_and(|names| matches(rest, names)))
        }
        (Some((part, parts)), Some((name, names))) => part.matches(name) && matches(parts, names),
        _ => false,
    }
}

fn matchers(text: &str, homes: &[PathBuf]) -> Result<Vec<Pattern>, PatternError> {
    let (bases, rest) = split_home(text, homes)?;
    let own: Vec<Part> = names(text, rest)?.into_iter().map(|name| part(text, name)).collect::<Result<_, _>>()?;
    if own.iter().filter(|part| matches!(part, Part::Deep)).count() > 1 {
        return Err(PatternError::TwoDeep(text.to_owned()));
    }
    if matches!(own.last(), None | Some(Part::Deep)) {
        return Err(PatternError::EndsDeep(text.to_owned()));
    }
    let named = |base: PathBuf| base.iter().skip(1).map(|name| Part::Name(name.to_owned())).collect::<Vec<_>>();
    Ok(bases.into_iter().map(|base| Pattern { parts: [named(base), own.clone()].concat() }).collect())
}

/// The directories that the rest of `text` is relative to: every home for `~`, else the root.
fn split_home<'t>(text: &'t str, homes: &[PathBuf]) -> Result<(Vec<PathBuf>, &'t str), PatternError> {
    match text.strip_prefix('~') {
        Some(rest) if rest.starts_with('/') => Ok((homes.to_vec(), rest)),
        None if text.starts_with('/') => Ok((vec![PathBuf::from("/")], text)),
        _ => Err(PatternError::Relative(text.to_owned())),
    }
}

fn names<'t>(text: &str, rest: &'t str) -> Result<Vec<&'t str>, PatternError> {
    let mut names = Vec::new();
    for component in Path::new(rest).components() {
        match component {
            Component::Normal(name) => names.extend(name.to_str()),
            Component::ParentDir => return Err(PatternError::Component(text.to_owned())),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if rest.contains('\0') { Err(PatternError::Component(text.to_owned())) } else { Ok(names) }
}

fn part(text: &str, name: &str) -> Result<Part, PatternError> {
    if name == "**" {
        Ok(Part::Deep)
    } else if name.contains(['*', '?', '[', '{', '\\']) {
        Ok(Part::Glob(Arc::new(glob(text, name)?)))
    } else {
        Ok(Part::Name(name.into()))
    }
}

fn glob(text: &str, name: &str) -> Result<GlobMatcher, PatternError> {
    let built = GlobBuilder::new(name).backslash_escape(true).build();
    let glob = built.map_err(|error| PatternError::Glob { text: text.to_owned(), cause: error.kind().to_string() })?;
    Ok(glob.compile_matcher())
}
