//! What holds for every file: it says what it is for, is no longer than one can read, and leaves nothing undone.

use super::Finding;
use super::source::Source;

/// Lines that are neither blank nor comment, before the unit tests.
const MOST_LINES: usize = 400;
/// The same for files that hold nothing but tests.
const MOST_TEST_LINES: usize = 800;

/// Marks of unfinished work in comments; apart, so that this file has none.
const UNDONE_IN_COMMENTS: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];

/// The same in code.
const UNDONE_IN_CODE: [&str; 2] = ["todo!", "unimplemented!"];

/// Checks one file.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !source.text.starts_with("//!") {
        findings.push(source.finding_in_whole("a file begins with a `//!` line that says what it is for"));
    }
    let lines = source.code_without_tests().lines().filter(|line| !line.trim().is_empty()).count();
    let most =
        if is_for_tests(&source.path) || source.path.ends_with("/tests.rs") { MOST_TEST_LINES } else { MOST_LINES };
    if lines > most {
        findings.push(source.finding_in_whole(format!("{lines} lines of code; {most} are the most: split it")));
    }
    findings.extend(undone(source));
    findings.extend(suppressions(source));
    findings
}

fn undone(source: &Source) -> Vec<Finding> {
    let in_comments = UNDONE_IN_COMMENTS.iter().flat_map(|mark| source.comments.match_indices(mark));
    let in_code = UNDONE_IN_CODE.iter().flat_map(|mark| source.code.match_indices(mark));
    in_comments.chain(in_code).map(|(at, mark)| source.finding(at, format!("unfinished: `{mark}`"))).collect()
}

/// A lint is put aside only by an expectation, which complains when it is no longer needed, and only with a reason. What
/// several test programs share may allow instead: each program uses its own part, so that no expectation holds in all.
fn suppressions(source: &Source) -> Vec<Finding> {
    let starts: &[&str] = if is_for_tests(&source.path) { &[] } else { &["#[allow(", "#![allow("] };
    let allowed = starts.iter().flat_map(|start| source.code.match_indices(start));
    let any = ["#[expect(", "#![expect(", "#[allow(", "#![allow("];
    let attributes = any.into_iter().flat_map(|start| source.code.match_indices(start));
    let bare = attributes.filter(|(at, _)| !has_reason(source, *at));
    let mut places: Vec<usize> = allowed.chain(bare).map(|(at, _)| at).collect();
    places.sort_unstable();
    places.dedup();
    let what = "a lint is put aside with `#[expect(.., reason = \"..\")]`";
    places.into_iter().map(|at| source.finding(at, what)).collect()
}

/// Whether the file is below the directory `tests` of a crate.
fn is_for_tests(path: &str) -> bool {
    path.split('/').nth(1) == Some("tests")
}

fn has_reason(source: &Source, attribute: usize) -> bool {
    let text = source.code.get(attribute..).and_then(|rest| rest.split(']').next());
    text.is_some_and(|text| text.contains("reason"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        check(&Source::new("a.rs", text)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_says_what_it_is_for() {
        assert!(findings("//! What.\nfn a() {}").is_empty());
        assert_eq!(findings("fn a() {}").len(), 1);
    }

    #[test]
    fn a_file_has_an_end() {
        let longest = format!("//! What.\n{}", "x();\n\n// y\n".repeat(MOST_LINES));
        assert!(findings(&longest).is_empty());
        assert_eq!(findings(&format!("{longest}x();\n")).len(), 1);
        assert!(findings(&format!("{longest}#[cfg(test)]\nmod tests {{\nx();\n}}\n")).is_empty());
    }

    #[test]
    fn nothing_is_left_undone() {
        for mark in UNDONE_IN_COMMENTS {
            assert_eq!(findings(&format!("//! What.\n// {mark}: later")), [format!("a.rs:2: unfinished: `{mark}`")]);
            assert!(findings(&format!("//! What.\nlet a = \"{mark}\";")).is_empty());
        }
        for mark in UNDONE_IN_CODE {
            assert_eq!(findings(&format!("//! What.\n{mark}()")).len(), 1);
        }
    }

    #[test]
    fn a_lint_is_put_aside_with_a_reason() {
        assert_eq!(findings("//! What.\n#[allow(dead_code)]").len(), 1);
        assert_eq!(findings("//! What.\n#![allow(dead_code)]").len(), 1);
        assert_eq!(findings("//! What.\n#[expect(dead_code)]\n// reason").len(), 1);
        assert!(findings("//! What.\n#[expect(dead_code, reason = \"why\")]").is_empty());
        assert_eq!(findings("//! What.\n#[allow(dead_code, reason = \"why\")]").len(), 1);
    }

    #[test]
    fn what_test_programs_share_may_be_unused_in_one() {
        let shared = |text: &str| check(&Source::new("agent/tests/shared/mod.rs", text)).len();
        assert_eq!(shared("//! What.\n#![allow(dead_code, reason = \"why\")]"), 0);
        assert_eq!(shared("//! What.\n#![allow(dead_code)]"), 1);
    }
}
