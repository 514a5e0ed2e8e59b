//! The documents exist, and what ARCHITECTURE.md calls by a path is there.

use std::path::Path;

use super::Finding;

const DOCUMENTS: [&str; 3] = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"];

/// Checks the documents of a repository.
pub(super) fn check(root: &Path) -> Vec<Finding> {
    let missing = DOCUMENTS.iter().filter(|name| !root.join(name).is_file());
    let mut findings: Vec<Finding> = missing.map(|name| finding(name, 0, "missing".to_owned())).collect();
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap_or_default();
    for (line, path) in paths_in(&text) {
        if !root.join(path).exists() {
            findings.push(finding("ARCHITECTURE.md", line, format!("`{path}` does not exist")));
        }
    }
    findings
}

fn finding(path: &str, line: usize, what: String) -> Finding {
    Finding { path: path.to_owned(), line, what }
}

/// What stands between backticks and looks like a path of the repository, with its line.
fn paths_in(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().zip(1..);
    lines.flat_map(|(line, number)| {
        let quoted = line.split('`').skip(1).step_by(2);
        quoted.filter(|word| looks_like_path(word)).map(move |word| (number, word))
    })
}

/// A relative path to a directory (with its slash) or to a file with an extension. What is built is not looked for.
fn looks_like_path(word: &str) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let relative = !word.starts_with(['/', '-']) && !word.starts_with("..") && !word.starts_with("target/");
    let name = word.rsplit('/').next().unwrap_or_default();
    let names_file = name.rsplit_once('.').is_some_and(|(stem, extension)| {
        !stem.is_empty() && extension.chars().next().is_some_and(|c| c.is_ascii_lowercase())
    });
    plain && relative && word.contains('/') && (name.is_empty() || names_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_other_words() {
        let text = "`agent/src/kernel/` and `cargo xtask`,\n`agent/src/lib.rs`, `/etc/writ.toml`, `connect4/6`, `a::b`, `target/x.o`";
        let found: Vec<_> = paths_in(text).collect();
        assert_eq!(found, [(1, "agent/src/kernel/"), (2, "agent/src/lib.rs")]);
    }

    #[test]
    fn missing_documents_and_paths_are_found() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("ARCHITECTURE.md"), "see\n`agent/gone.rs`").unwrap();
        let found: Vec<String> = check(root.path()).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            ["README.md: missing", "CHANGELOG.md: missing", "ARCHITECTURE.md:2: `agent/gone.rs` does not exist"]
        );
    }
}
