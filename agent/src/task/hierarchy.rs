//! Entries that stand above one another: groups and intents, as `agents.toml` declares them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;

use crate::domain::IntentFacts;
use crate::domain::toml_text::{Reader, did_you_mean};

/// Most entries above one entry, counted once per way that leads to them: [`IntentFacts`] is a tree.
const MAX_ABOVE: usize = 1024;

/// Most entries of one kind: it bounds how deep the walks below go.
const MAX_ENTRIES: usize = 4096;

/// One declared entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: Arc<str>,
    pub(super) parents: Vec<Spanned<String>>,
    pub(super) span: Range<usize>,
}

/// All entries of one kind.
#[derive(Debug, Default)]
pub(super) struct Hierarchy {
    entries: BTreeMap<Arc<str>, Entry>,
}

impl Hierarchy {
    /// Takes the entries in; reports those declared twice, unknown parents, cycles, and trees that are too large.
    pub(super) fn new(reader: &mut Reader<'_>, kind: &str, declared: Vec<Entry>) -> Self {
        let mut whole = Self::default();
        for entry in declared {
            if whole.entries.len() == MAX_ENTRIES {
                reader.report(
                    entry.span,
                    format!("more than {MAX_ENTRIES} of `[[{kind}]]`"),
                    "remove what is not used",
                );
                break;
            }
            if whole.entries.contains_key(&entry.id) {
                report_twice(reader, kind, &entry.id, entry.span);
            } else {
                whole.entries.insert(entry.id.clone(), entry);
            }
        }
        for entry in whole.entries.values() {
            whole.check_all(reader, kind, &entry.parents);
        }
        whole.break_cycles(reader, kind);
        whole.bound_size(reader, kind);
        whole
    }

    /// Reports each id that is not declared, and returns the others.
    pub(super) fn check_all(&self, reader: &mut Reader<'_>, kind: &str, ids: &[Spanned<String>]) -> Vec<Arc<str>> {
        let known = ids.iter().filter_map(|id| self.check(reader, kind, id));
        known.collect()
    }

    fn check(&self, reader: &mut Reader<'_>, kind: &str, id: &Spanned<String>) -> Option<Arc<str>> {
        let found = self.entries.get(id.get_ref().as_str()).map(|entry| entry.id.clone());
        if found.is_none() {
            let near = did_you_mean(id.get_ref(), self.ids());
            let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
            let help = format!("{near}declare it under `[[{kind}]]`, or correct it");
            reader.report(id.span(), format!("unknown {kind} `{}`", id.get_ref()), help);
        }
        found
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(AsRef::as_ref)
    }

    /// These entries and all above them, each once, in order.
    pub(super) fn closure(&self, ids: &[Arc<str>]) -> Vec<Arc<str>> {
        let mut found = BTreeSet::new();
        let mut open = ids.to_vec();
        while let Some(id) = open.pop() {
            open.extend(self.parents(&id).filter(|above| !found.contains(above)));
            found.insert(id);
        }
        found.into_iter().collect()
    }

    /// The entry with everything above it.
    pub(super) fn facts(&self, id: &str) -> Option<IntentFacts> {
        let entry = self.entries.get(id)?;
        let parents = self.parents(id).filter_map(|above| self.facts(&above)).collect();
        Some(IntentFacts { id: entry.id.clone(), parents })
    }

    fn parents(&self, id: &str) -> impl Iterator<Item = Arc<str>> {
        let listed = self.entries.get(id).into_iter().flat_map(|entry| &entry.parents);
        listed.filter_map(|above| self.entries.get(above.get_ref().as_str()).map(|entry| entry.id.clone()))
    }

    /// Reports each cycle once, at one of its entries, whose parents are then dropped so that later walks end.
    fn break_cycles(&mut self, reader: &mut Reader<'_>, kind: &str) {
        let ids: Vec<Arc<str>> = self.entries.keys().cloned().collect();
        for id in ids {
            let above: Vec<Arc<str>> = self.parents(&id).collect();
            if !self.closure(&above).contains(&id) {
                continue;
            }
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.parents.clear();
                let help = "take one of the `parents` out of the circle";
                reader.report(entry.span.clone(), format!("{kind} `{id}` stands above itself"), help);
            }
        }
    }

    /// Reports each entry that stands under too many, and drops its parents.
    fn bound_size(&mut self, reader: &mut Reader<'_>, kind: &str) {
        let mut sizes = BTreeMap::new();
        for id in self.entries.keys() {
            self.size(id, &mut sizes);
        }
        for entry in self.entries.values_mut().filter(|entry| sizes.get(&entry.id).is_some_and(|n| *n > MAX_ABOVE)) {
            entry.parents.clear();
            let reason = format!("{kind} `{}` has more than {MAX_ABOVE} entries above it", entry.id);
            reader.report(entry.span.clone(), reason, "give it fewer `parents`");
        }
    }

    fn size(&self, id: &Arc<str>, sizes: &mut BTreeMap<Arc<str>, usize>) -> usize {
        if let Some(size) = sizes.get(id) {
            return *size;
        }
        let above = self.parents(id).map(|parent| self.size(&parent, sizes));
        let size = above.fold(1_usize, usize::saturating_add);
        sizes.insert(id.clone(), size);
        size
    }
}

/// Reports an id that is declared a second time.
pub(super) fn report_twice(reader: &mut Reader<'_>, kind: &str, id: &str, span: Range<usize>) {
    reader.report(span, format!("{kind} `{id}` is declared twice"), "merge the two entries into one");
}
