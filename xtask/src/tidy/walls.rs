//! The walls between the daemon's modules: who may know which crate, and who may know whom.

use super::Finding;
use super::source::{Source, identifiers, offset_in};

/// Crates that only one module may name.
const OWNED_CRATES: [(&str, &str); 8] = [
    ("hickory_proto", "names"),
    ("aya", "kernel"),
    ("aya_log", "kernel"),
    ("aya_obj", "kernel"),
    ("cedar_policy", "policy"),
    ("cedar_policy_core", "policy"),
    ("netlink_packet_core", "flow"),
    ("procfs", "process"),
];

/// Modules that do not know each other.
const SIBLINGS: [&str; 10] =
    ["kernel", "process", "task", "policy", "resource", "names", "decision", "record", "api", "flow"];

/// Modules that put the siblings together and may know all of them.
const COMPOSERS: [&str; 4] = ["bin", "cli", "daemon", "lib"];

/// Checks one file; only those of the daemon's crate have walls, and the ABI, which must do without std.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    if source.path.starts_with("agent-common/src/") {
        return check_no_std(source);
    }
    let Some(module) = module_of(&source.path) else {
        return Vec::new();
    };
    let mut findings = check_crates(source, module);
    findings.extend(check_siblings(source, module));
    findings
}

/// The first module below the root of the daemon's crate.
fn module_of(path: &str) -> Option<&str> {
    let inner = path.strip_prefix("agent/src/")?;
    let first = inner.split('/').next()?;
    Some(first.strip_suffix(".rs").unwrap_or(first))
}

fn check_crates(source: &Source, module: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (offset, word) in identifiers(&source.code) {
        if let Some((name, owner)) = OWNED_CRATES.iter().find(|(name, _)| *name == word)
            && *owner != module
        {
            findings.push(source.finding(offset, format!("only `{owner}` may name the crate `{name}`")));
        }
    }
    findings
}

fn check_siblings(source: &Source, module: &str) -> Vec<Finding> {
    if COMPOSERS.contains(&module) {
        return Vec::new();
    }
    let forbidden =
        |name: &str| name != module && (SIBLINGS.contains(&name) || name == "config" || COMPOSERS.contains(&name));
    let named = from_crate_root(source).into_iter().filter(|(_, name)| forbidden(name));
    named.map(|(offset, name)| source.finding(offset, format!("`{module}` must not know `crate::{name}`"))).collect()
}

/// The modules that the file names by a path from the crate's root, each with the place of the path.
fn from_crate_root(source: &Source) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let roots = ["crate::".to_owned(), "super::".repeat(depth(&source.path))];
    for root in roots {
        for (offset, _) in source.code.match_indices(&root) {
            let after = source.code.get(offset + root.len()..).unwrap_or_default();
            found.extend(first_names(after).into_iter().map(|name| (offset, name)));
        }
    }
    found
}

/// How many modules deep a file is below the crate's root.
fn depth(path: &str) -> usize {
    let levels = path.matches('/').count() - 1;
    if path.ends_with("/mod.rs") { levels - 1 } else { levels }
}

/// The first name of a path, or of each path in a braced group.
fn first_names(path: &str) -> Vec<&str> {
    let Some(group) = path.strip_prefix('{') else {
        return identifiers(path).next().into_iter().filter(|(offset, _)| *offset == 0).map(|(_, name)| name).collect();
    };
    let mut depth = 0_usize;
    let mut names = Vec::new();
    let mut expected = true;
    for piece in group.split_inclusive(['{', '}', ',', ';']) {
        if depth == 0 && expected {
            names.extend(identifiers(piece).next().map(|(_, name)| name));
        }
        match piece.chars().next_back() {
            Some('{') => depth += 1,
            Some('}') if depth == 0 => break,
            Some('}') => depth -= 1,
            Some(';') => break,
            _ => {}
        }
        expected = piece.ends_with(',');
    }
    names
}

fn check_no_std(source: &Source) -> Vec<Finding> {
    let code = source.code_without_tests();
    let named = identifiers(code).filter(|(_, word)| *word == "std");
    let mut findings: Vec<Finding> =
        named.map(|(_, word)| source.finding(offset_in(code, word), "the ABI crate must do without `std`")).collect();
    if source.path.ends_with("/lib.rs") && !code.contains("#![no_std]") {
        findings.push(source.finding_in_whole("the ABI crate must declare `#![no_std]`"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_crate_has_one_owner() {
        for (name, owner) in OWNED_CRATES {
            let text = format!("use {name}::X;");
            assert!(findings(&format!("agent/src/{owner}/load.rs"), &text).is_empty());
            assert_eq!(
                findings("agent/src/record/mod.rs", &text),
                [format!("agent/src/record/mod.rs:1: only `{owner}` may name the crate `{name}`")]
            );
            assert_eq!(findings("agent/src/daemon.rs", &text).len(), 1);
        }
    }

    #[test]
    fn a_crate_named_in_text_is_no_import() {
        assert!(findings("agent/src/daemon.rs", "// aya\nlet filter = \"aya=warn\"; // procfs").is_empty());
    }

    #[test]
    fn siblings_do_not_know_each_other() {
        let found = findings("agent/src/task/table.rs", "//! x\nuse crate::domain::Label;\nuse crate::policy::Row;");
        assert_eq!(found, ["agent/src/task/table.rs:3: `task` must not know `crate::policy`"]);
        assert!(findings("agent/src/task/table.rs", "use crate::task::Chain; use crate::domain;").is_empty());
    }

    #[test]
    fn groups_and_supers_are_seen_through() {
        let found = findings("agent/src/task/mod.rs", "use crate::{domain::{Label, policy}, record::{A, B}, api};");
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(findings("agent/src/task/mod.rs", "use super::policy::Row;").len(), 1);
        assert_eq!(findings("agent/src/task/table.rs", "use super::super::policy::Row;").len(), 1);
        assert!(findings("agent/src/task/table.rs", "use super::policy::Row;").is_empty());
    }

    #[test]
    fn only_composers_know_siblings_and_the_configuration() {
        for path in ["agent/src/daemon.rs", "agent/src/daemon/loop.rs", "agent/src/bin/writ.rs", "agent/src/cli/run.rs"]
        {
            assert!(findings(path, "use crate::policy::Row; use crate::config::Config;").is_empty(), "{path}");
        }
        assert_eq!(findings("agent/src/config.rs", "use crate::policy::Row;").len(), 1);
        assert_eq!(findings("agent/src/api/mod.rs", "use crate::config::Config;").len(), 1);
        assert_eq!(findings("agent/src/domain/task.rs", "use crate::task::Table;").len(), 1);
        assert_eq!(findings("agent/src/api/mod.rs", "use crate::daemon::Input;").len(), 1);
    }

    #[test]
    fn the_abi_does_without_std() {
        let path = "agent-common/src/lib.rs";
        assert!(findings(path, "#![no_std]\nuse core::fmt;").is_empty());
        assert_eq!(findings(path, "#![no_std]\nuse std::fmt;").len(), 1);
        assert_eq!(findings(path, "use core::fmt;").len(), 1);
        assert!(findings(path, "#![no_std]\n#[cfg(test)]\nmod tests { use std::fmt; }").is_empty());
        assert!(findings("agent-common/tests/decode.rs", "use std::fmt;").is_empty());
    }
}
