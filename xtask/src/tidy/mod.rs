//! `cargo xtask tidy`: what the compiler and clippy cannot check, with one line for each thing that is wrong.

mod docs;
mod files;
mod source;
mod walls;

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use self::source::Source;
use crate::command::progress;
use crate::repo;

/// The crates, kernel side included.
const CRATES: [&str; 5] = ["agent", "agent-common", "agent-ebpf", "tests", "xtask"];

/// Something that is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// From 1; 0 where it is about the whole file.
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(formatter, "{}: {}", self.path, self.what),
            line => write!(formatter, "{}:{line}: {}", self.path, self.what),
        }
    }
}

/// Checks the whole repository.
pub(crate) fn run() -> Result<()> {
    progress("tidy");
    let sources = sources()?;
    let mut findings: Vec<Finding> = sources.iter().flat_map(walls::check).collect();
    findings.extend(sources.iter().flat_map(files::check));
    findings.extend(docs::check(repo::root()));
    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("tidy found {} in {} files", findings.len(), sources.len())
}

fn sources() -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for name in CRATES {
        collect(&repo::at(name), &mut sources)?;
    }
    Ok(sources)
}

/// Adds the Rust files below `directory`, in the order of their names.
fn collect(directory: &Path, sources: &mut Vec<Source>) -> Result<()> {
    let shown = directory.display();
    let entries = std::fs::read_dir(directory).with_context(|| format!("cannot read `{shown}`"))?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if !path.ends_with("target") {
                collect(&path, sources)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            let relative = path.strip_prefix(repo::root()).unwrap_or(&path);
            sources.push(Source::new(relative.to_string_lossy(), text));
        }
    }
    Ok(())
}
