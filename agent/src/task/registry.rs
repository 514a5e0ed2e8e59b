//! `agents.toml`: the agents, intents, groups and users that this host knows.
//!
//! ```toml
//! [[group]]
//! id = "engineering"
//!
//! [[intent]]
//! id = "fix-bug"
//! description = "change code until a failing test passes"
//!
//! [[agent]]
//! id = "coder"
//! groups = ["engineering"]
//! owner = "alice"
//! intents = ["fix-bug"]   # left out: any intent
//! socket_mark = 2         # its number within the bits of `socket_mark_mask`; left out: none
//!
//! [[user]]
//! id = "alice"
//! groups = ["engineering"]
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::hierarchy::{Entry, Hierarchy, report_twice};
use crate::domain::toml_text::{Reader, Table, TextErrors, did_you_mean};
use crate::domain::{AgentFacts, IntentFacts, UserFacts};

/// Longest id in bytes.
pub const MAX_ID_LEN: usize = 256;

/// Who and what for, as the operator declared it.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    path: PathBuf,
    agents: BTreeMap<Arc<str>, Agent>,
    intents: BTreeMap<Arc<str>, IntentFacts>,
    users: BTreeMap<Arc<str>, UserFacts>,
}

#[derive(Clone, Debug)]
struct Agent {
    facts: AgentFacts,
    intents: Option<Vec<Arc<str>>>,
    socket_mark: Option<u32>,
}

/// A name that the registry does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} `{id}`; {near}add it to {} under `[[{kind}]]`", path.display())]
pub struct RegistryError {
    /// `agent`, `intent` or `user`.
    pub kind: &'static str,
    /// What was asked for.
    pub id: String,
    /// `did you mean ..? or `, or nothing.
    pub near: String,
    /// The registry's file.
    pub path: PathBuf,
}

impl Registry {
    /// A registry without entries: what a missing file at `path` means.
    pub fn empty(path: &Path) -> Self {
        Self { path: path.to_owned(), ..Self::default() }
    }

    /// Reads the text of the file at `path`, which is only named in errors.
    ///
    /// # Errors
    /// Every fault of the text.
    pub fn load(path: &Path, text: &str) -> Result<Self, TextErrors> {
        let mut reader = Reader::new(path, text);
        let document = reader.parse();
        let root = reader.root(&document);
        let registry = Self::read(&mut reader, root, path);
        reader.finish()?;
        Ok(registry)
    }

    fn read(reader: &mut Reader<'_>, root: Table<'_>, path: &Path) -> Self {
        reader.check_keys(root, &["agent", "group", "intent", "user"]);
        let groups = hierarchy(reader, root, "group", &["id", "parents"]);
        let intents = hierarchy(reader, root, "intent", &["id", "parents", "description"]);
        let agents = agents(reader, root, &groups, &intents);
        let users = users(reader, root, &groups);
        let intents = intents.ids().filter_map(|id| intents.facts(id)).map(|facts| (facts.id.clone(), facts)).collect();
        Self { path: path.to_owned(), agents, intents, users }
    }

    /// The agent with this id.
    ///
    /// # Errors
    /// [`RegistryError`] with the nearest id there is.
    pub fn agent(&self, id: &str) -> Result<AgentFacts, RegistryError> {
        let found = self.agents.get(id).map(|agent| agent.facts.clone());
        found.ok_or_else(|| self.unknown("agent", id, self.agents.keys()))
    }

    /// The intents that the agent may have; `None` for any.
    pub fn intents_of(&self, agent: &str) -> Option<&[Arc<str>]> {
        self.agents.get(agent)?.intents.as_deref()
    }

    /// The agent's number within the bits of SO_MARK that are writ's.
    pub fn socket_mark(&self, agent: &str) -> Option<u32> {
        self.agents.get(agent)?.socket_mark
    }

    /// The intent with this id.
    ///
    /// # Errors
    /// [`RegistryError`] with the nearest id there is.
    pub fn intent(&self, id: &str) -> Result<IntentFacts, RegistryError> {
        let found = self.intents.get(id).cloned();
        found.ok_or_else(|| self.unknown("intent", id, self.intents.keys()))
    }

    /// The user with this id.
    ///
    /// # Errors
    /// [`RegistryError`] with the nearest id there is.
    pub fn user(&self, id: &str) -> Result<UserFacts, RegistryError> {
        let found = self.users.get(id).cloned();
        found.ok_or_else(|| self.unknown("user", id, self.users.keys()))
    }

    fn unknown<'a>(&self, kind: &'static str, id: &str, known: impl Iterator<Item = &'a Arc<str>>) -> RegistryError {
        let near = did_you_mean(id, known.map(AsRef::as_ref));
        let near = near.map(|near| format!("did you mean `{near}`? otherwise ")).unwrap_or_default();
        RegistryError { kind, id: id.to_owned(), near, path: self.path.clone() }
    }
}

fn hierarchy(reader: &mut Reader<'_>, root: Table<'_>, kind: &str, keys: &[&str]) -> Hierarchy {
    let mut declared = Vec::new();
    for table in reader.tables(root, kind) {
        reader.check_keys(table, keys);
        if keys.contains(&"description") {
            reader.text(table, "description");
        }
        let parents = reader.texts(table, "parents");
        declared.extend(id(reader, table).map(|id| Entry { id, parents, span: table.span() }));
    }
    Hierarchy::new(reader, kind, declared)
}

fn agents(
    reader: &mut Reader<'_>,
    root: Table<'_>,
    groups: &Hierarchy,
    intents: &Hierarchy,
) -> BTreeMap<Arc<str>, Agent> {
    let mut agents: BTreeMap<Arc<str>, Agent> = BTreeMap::new();
    for table in reader.tables(root, "agent") {
        reader.check_keys(table, &["id", "groups", "owner", "intents", "socket_mark"]);
        let socket_mark = reader.integer(table, "socket_mark", 1..=i64::from(u32::MAX));
        let socket_mark = socket_mark.and_then(|number| u32::try_from(number).ok());
        let owner = reader.text(table, "owner").map(|owner| owner.into_inner().into());
        let groups = listed_groups(reader, table, groups);
        let intents = listed_intents(reader, table, intents);
        let Some(id) = id(reader, table) else { continue };
        let agent = Agent { facts: AgentFacts { id: id.clone(), groups, owner }, intents, socket_mark };
        let same = |other: &Agent| socket_mark.is_some() && other.socket_mark == socket_mark;
        if let Some(other) = agents.values().find(|other| same(other)) {
            let message = format!("the agents `{}` and `{id}` have the same `socket_mark`", other.facts.id);
            reader.report(table.span(), &message, "give each agent a number of its own");
        }
        if agents.insert(id.clone(), agent).is_some() {
            report_twice(reader, "agent", &id, table.span());
        }
    }
    agents
}

fn listed_intents(reader: &mut Reader<'_>, table: Table<'_>, intents: &Hierarchy) -> Option<Vec<Arc<str>>> {
    if !table.has("intents") {
        return None;
    }
    let listed = reader.texts(table, "intents");
    if listed.is_empty() {
        reader.report(
            table.span(),
            "`intents` lists none",
            "name those that the agent may have, or leave it out for any",
        );
    }
    Some(intents.check_all(reader, "intent", &listed))
}

fn users(reader: &mut Reader<'_>, root: Table<'_>, groups: &Hierarchy) -> BTreeMap<Arc<str>, UserFacts> {
    let mut users = BTreeMap::new();
    for table in reader.tables(root, "user") {
        reader.check_keys(table, &["id", "groups"]);
        let groups = listed_groups(reader, table, groups);
        let Some(id) = id(reader, table) else { continue };
        if users.insert(id.clone(), UserFacts { id: id.clone(), groups }).is_some() {
            report_twice(reader, "user", &id, table.span());
        }
    }
    users
}

fn listed_groups(reader: &mut Reader<'_>, table: Table<'_>, groups: &Hierarchy) -> Vec<Arc<str>> {
    let listed = reader.texts(table, "groups");
    groups.closure(&groups.check_all(reader, "group", &listed))
}

fn id(reader: &mut Reader<'_>, table: Table<'_>) -> Option<Arc<str>> {
    let id = reader.required_text(table, "id")?;
    let sound = (1..=MAX_ID_LEN).contains(&id.get_ref().len()) && id.get_ref().bytes().all(|b| b.is_ascii_graphic());
    if !sound {
        let reason = format!("`{}` is not an id", id.get_ref().escape_debug());
        reader.report(id.span(), reason, format!("use 1 to {MAX_ID_LEN} printable ASCII characters without blanks"));
    }
    sound.then(|| id.into_inner().into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"
[[group]]
id = "staff"
[[group]]
id = "engineering"
parents = ["staff"]
[[intent]]
id = "change-code"
[[intent]]
id = "fix-bug"
parents = ["change-code"]
description = "until the test passes"
[[agent]]
id = "coder"
groups = ["engineering"]
owner = "alice"
intents = ["fix-bug"]
[[agent]]
id = "spiffe://example.org/agent/reader"
[[user]]
id = "alice"
groups = ["engineering"]
"#;

    fn load(text: &str) -> Result<Registry, Vec<String>> {
        let loaded = Registry::load(Path::new("/etc/writ/agents.toml"), text);
        loaded.map_err(|errors| errors.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn groups_are_closed_upwards_and_intents_carry_what_is_above_them() {
        let registry = load(GOOD).unwrap();
        let coder = registry.agent("coder").unwrap();
        assert_eq!(coder.groups, ["engineering".into(), "staff".into()]);
        assert_eq!(coder.owner.as_deref(), Some("alice"));
        assert_eq!(registry.user("alice").unwrap().groups, coder.groups);
        let intent = registry.intent("fix-bug").unwrap();
        assert_eq!(intent.parents[0].id.as_ref(), "change-code");
        assert_eq!(registry.intents_of("coder"), Some(["fix-bug".into()].as_slice()));
        assert_eq!(registry.intents_of("spiffe://example.org/agent/reader"), None);
    }

    #[test]
    fn an_unknown_name_offers_the_nearest_and_the_file() {
        let registry = load(GOOD).unwrap();
        assert_eq!(
            registry.agent("codr").unwrap_err().to_string(),
            "unknown agent `codr`; did you mean `coder`? otherwise add it to /etc/writ/agents.toml under `[[agent]]`"
        );
        let empty = Registry::empty(Path::new("/etc/writ/agents.toml"));
        assert_eq!(
            empty.intent("fix-bug").unwrap_err().to_string(),
            "unknown intent `fix-bug`; add it to /etc/writ/agents.toml under `[[intent]]`"
        );
        assert!(empty.user("alice").is_err());
    }

    #[test]
    fn every_bad_entry_is_reported_with_its_line() {
        let text = "[[agent]]\nid = \"a b\"\n[[agent]]\ngroups = [\"enginering\"]\n[[group]]\nid = \"engineering\"\n\
                    [[agent]]\nid = \"x\"\nintents = []\n[[agent]]\nid = \"x\"\nowned = 1\n";
        let errors = load(text).unwrap_err();
        let expected = [
            (2, "`a b` is not an id; use 1 to 256"),
            (3, "the key `id` is missing"),
            (4, "unknown group `enginering`; did you mean `engineering`? declare it under `[[group]]`"),
            (7, "`intents` lists none"),
            (10, "agent `x` is declared twice"),
            (12, "unknown key `owned`; did you mean `owner`?"),
        ];
        assert_eq!(errors.len(), expected.len(), "{errors:#?}");
        for (error, (line, text)) in errors.iter().zip(expected) {
            assert!(error.starts_with(&format!("/etc/writ/agents.toml:{line}:")) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_circle_is_refused_once_and_ends() {
        let text =
            "[[intent]]\nid='a'\nparents=['b']\n[[intent]]\nid='b'\nparents=['a']\n[[group]]\nid='g'\nparents=['g']\n";
        let errors = load(text).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:#?}");
        assert!(errors[0].contains("intent `a` stands above itself"), "{errors:#?}");
        assert!(errors[1].contains("group `g` stands above itself"), "{errors:#?}");
    }

    #[test]
    fn a_lattice_whose_tree_would_fill_memory_is_refused() {
        let mut text = String::from("[[intent]]\nid='i0'\n[[intent]]\nid='j0'\n");
        for n in 1..40 {
            for id in ["i", "j"] {
                text += &format!("[[intent]]\nid='{id}{n}'\nparents=['i{0}','j{0}']\n", n - 1);
            }
        }
        let errors = load(&text).unwrap_err();
        assert!(errors[0].contains("more than 1024 entries above it"), "{errors:#?}");
    }
    /// Which group lies above which, by Warshall's closure.
    fn reaches(parents: &[BTreeSet<usize>]) -> Vec<Vec<bool>> {
        let all = 0..parents.len();
        let mut reaches: Vec<Vec<bool>> =
            parents.iter().map(|above| all.clone().map(|id| above.contains(&id)).collect()).collect();
        for via in all.clone() {
            for below in all.clone() {
                for above in all.clone() {
                    reaches[below][above] |= reaches[below][via] && reaches[via][above];
                }
            }
        }
        reaches
    }

    proptest! {
        #[test]
        fn every_graph_is_closed_or_has_a_circle(edges in prop::collection::vec((0_usize..8, 0_usize..8), 0..12)) {
            let mut parents = vec![BTreeSet::new(); 8];
            for (below, above) in edges {
                parents[below].insert(above);
            }
            let mut text = String::from("[[user]]\nid='u'\ngroups=['g0']\n");
            for (id, above) in parents.iter().enumerate() {
                let above: Vec<String> = above.iter().map(|id| format!("'g{id}'")).collect();
                text += &format!("[[group]]\nid='g{id}'\nparents=[{}]\n", above.join(","));
            }
            let (loaded, reaches) = (load(&text), reaches(&parents));
            prop_assert_eq!(loaded.is_ok(), (0..8).all(|id| !reaches[id][id]));
            if let Ok(registry) = loaded {
                let above_u = (0..8).filter(|&id| id == 0 || reaches[0][id]);
                let expected: Vec<Arc<str>> = above_u.map(|id| format!("g{id}").into()).collect();
                prop_assert_eq!(registry.user("u").unwrap().groups, expected);
            }
        }
    }
}
