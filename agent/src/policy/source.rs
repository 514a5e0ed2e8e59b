//! Where policies come from: the shipped files, built in, and a directory of the site's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::domain::text_file::read_text;

/// A policy or schema file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyText {
    /// Its path, or `shipped:` and its name.
    pub name: String,
    /// What is written in it.
    pub text: String,
}

/// Why a directory of policies could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory cannot be listed.
    #[error("cannot list the policy directory `{}`; create it, or name another in the configuration", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file in it cannot be read.
    #[error("cannot read the policy file `{}`; make it a readable file of UTF-8 text, or take it out of the directory", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The schema and the baseline that this build carries.
pub fn shipped() -> Vec<PolicyText> {
    [
        ("shipped:schema.cedarschema", include_str!("../../../policies/schema.cedarschema")),
        ("shipped:baseline.cedar", include_str!("../../../policies/baseline.cedar")),
    ]
    .into_iter()
    .map(|(name, text)| PolicyText { name: name.to_owned(), text: text.to_owned() })
    .collect()
}

/// The `*.cedar` files directly in `directory`, by name. Files whose name starts with a dot are left out: editors keep
/// theirs so.
///
/// # Errors
/// A directory that cannot be listed, a file that cannot be read.
pub fn read_dir(directory: &Path) -> Result<Vec<PolicyText>, LoadError> {
    let of_directory = |source| LoadError::Directory { path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(of_directory)? {
        let entry = entry.map_err(of_directory)?;
        if is_policy(&entry.file_name().to_string_lossy()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    paths.into_iter().map(read_file).collect()
}

fn is_policy(name: &str) -> bool {
    name.ends_with(".cedar") && !name.starts_with('.')
}

fn read_file(path: PathBuf) -> Result<PolicyText, LoadError> {
    match read_text(&path) {
        Ok(text) => Ok(PolicyText { name: path.display().to_string(), text }),
        Err(source) => Err(LoadError::File { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_policy_files_are_read_and_by_name() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b.cedar", "a.cedar", ".#a.cedar", "notes.txt", "c.cedar~"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        let texts: Vec<String> = read_dir(directory.path()).unwrap().into_iter().map(|file| file.text).collect();
        assert_eq!(texts, ["a.cedar", "b.cedar"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        assert!(read_dir(&missing).unwrap_err().to_string().contains(&*missing.to_string_lossy()));
        fs::create_dir(directory.path().join("x.cedar")).unwrap();
        assert!(read_dir(directory.path()).unwrap_err().to_string().contains("x.cedar"));
        fs::remove_dir(directory.path().join("x.cedar")).unwrap();
        fs::write(directory.path().join("x.cedar"), [0xff]).unwrap();
        assert!(read_dir(directory.path()).unwrap_err().to_string().contains("UTF-8"));
    }
}
