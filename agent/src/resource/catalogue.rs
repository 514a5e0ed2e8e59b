//! What both catalogues have in common: named, labelled entries, of which a site adds its own and disables shipped ones.

use std::path::Path;
use std::sync::Arc;

use toml::Spanned;

use crate::domain::toml_text::{Reader, Table, TextErrors, did_you_mean};
use crate::domain::{Label, LabelSet};

/// One kind of catalogue.
pub(super) struct Kind {
    /// Entries are headed `[[table]]`.
    pub(super) table: &'static str,
    /// The keys of an entry besides `name` and `labels`.
    pub(super) keys: &'static [&'static str],
    /// Where the shipped catalogue stands in the repository, for errors in it.
    pub(super) shipped_file: &'static str,
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Entry<T> {
    /// Unique in shipped and site catalogue together.
    pub(super) name: Arc<str>,
    /// At least one.
    pub(super) labels: Arc<LabelSet>,
    /// What it stands for.
    pub(super) body: T,
}

/// The shipped entries without those that the site disables, then the site's own. `read` reads an entry's own keys.
///
/// # Errors
/// Every fault of both texts.
pub(super) fn load<T>(
    kind: &Kind,
    shipped: &str,
    site: Option<(&Path, &str)>,
    read: impl Fn(&mut Reader<'_>, Table<'_>) -> T,
) -> Result<Vec<Entry<T>>, TextErrors> {
    let mut entries = Vec::new();
    let mut faults = Vec::new();
    for (file, text) in std::iter::once((Path::new(kind.shipped_file), shipped)).chain(site) {
        let mut reader = Reader::new(file, text);
        read_file(kind, &mut reader, &mut entries, &read);
        faults.extend(reader.finish().err().map_or_else(Vec::new, |errors| errors.0));
    }
    if faults.is_empty() { Ok(entries) } else { Err(TextErrors(faults)) }
}

/// All labels of the entries, and the labels above them.
pub(super) fn labels<T>(entries: &[Entry<T>]) -> LabelSet {
    let own = entries.iter().flat_map(|entry| entry.labels.iter());
    own.flat_map(|label| label.ancestors().chain([label.clone()])).collect()
}

fn read_file<T>(
    kind: &Kind,
    reader: &mut Reader<'_>,
    entries: &mut Vec<Entry<T>>,
    read: &impl Fn(&mut Reader<'_>, Table<'_>) -> T,
) {
    let document = reader.parse();
    let root = reader.root(&document);
    reader.check_keys(root, &[kind.table, "disable"]);
    for name in reader.texts(root, "disable") {
        disable(reader, entries, &name);
    }
    let keys: Vec<&str> = ["name", "labels"].iter().chain(kind.keys).copied().collect();
    for table in reader.tables(root, kind.table) {
        reader.check_keys(table, &keys);
        let name = reader.required_text(table, "name");
        let labels = read_labels(reader, table);
        let body = read(reader, table);
        let Some(name) = name.filter(|name| is_free(reader, entries, name)) else { continue };
        entries.push(Entry { name: name.into_inner().into(), labels: Arc::new(labels), body });
    }
}

fn disable<T>(reader: &mut Reader<'_>, entries: &mut Vec<Entry<T>>, name: &Spanned<String>) {
    let before = entries.len();
    entries.retain(|entry| *entry.name != **name.get_ref());
    if entries.len() == before {
        let near = did_you_mean(name.get_ref(), entries.iter().map(|entry| &*entry.name));
        let help = near.map_or("remove it from `disable`".to_owned(), |near| format!("did you mean `{near}`?"));
        reader.report(name.span(), format!("no shipped entry is named `{}`", name.get_ref()), help);
    }
}

fn read_labels(reader: &mut Reader<'_>, table: Table<'_>) -> LabelSet {
    if table.is_empty("labels") {
        let help = "add `labels = [\"...\"]`: policies speak in labels";
        reader.report(table.span(), "the entry has no `labels`", help);
    }
    reader.parsed_list(table, "labels", str::parse::<Label>).into_iter().collect()
}

fn is_free<T>(reader: &mut Reader<'_>, entries: &[Entry<T>], name: &Spanned<String>) -> bool {
    if name.get_ref().trim().is_empty() {
        reader.report(name.span(), "the name is empty", "name the entry: `disable` and problems call it by its name");
        return false;
    }
    let taken = entries.iter().any(|entry| *entry.name == **name.get_ref());
    if taken {
        let reason = format!("an entry named `{}` exists already", name.get_ref());
        reader.report(name.span(), reason, "choose another name, or list the shipped entry in `disable` to replace it");
    }
    !taken
}
