//! Reading TOML that people write: every fault in the text is found, each with file, line, reason and next step.
//!
//! A [`Reader`] walks a parsed document and collects faults instead of stopping at the first one; what it returns for a
//! faulty value is a stand-in that lets the walk go on, and [`Reader::finish`] then refuses the whole text.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Largest text that is read, in bytes.
const MAX_TEXT: usize = 4 << 20;

/// One fault in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// Where the text came from.
    pub file: PathBuf,
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// What is wrong; lower-case, user data in backticks.
    pub reason: String,
    /// The next step.
    pub help: String,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, reason, help } = self;
        write!(f, "{}:{line}:{column}: {reason}; {help}", file.display())
    }
}

impl std::error::Error for TextError {}

/// All faults of one or several texts, in the order in which they stand there. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextErrors(pub Vec<TextError>);

impl fmt::Display for TextErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for TextErrors {}

/// A table of the document, with the place where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Table<'t> {
    entries: &'t DeTable<'t>,
    start: usize,
    end: usize,
}

impl Table<'_> {
    /// Where the table stands, for [`Reader::report`].
    pub fn span(&self) -> Range<usize> {
        self.start..self.end
    }

    /// Whether the table has this key.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether the table lacks this key or has an empty list there.
    pub fn is_empty(&self, key: &str) -> bool {
        let list = self.entries.get(key).map(|value| value.get_ref().as_array());
        list.is_none_or(|array| array.is_some_and(|array| array.is_empty()))
    }
}

/// A text being read, and the faults found so far.
#[derive(Debug)]
pub struct Reader<'t> {
    file: &'t Path,
    text: &'t str,
    errors: Vec<TextError>,
}

impl<'t> Reader<'t> {
    /// Reads `text`; `file` is only named in errors.
    pub fn new(file: &'t Path, text: &'t str) -> Self {
        Self { file, text, errors: Vec::new() }
    }

    /// The document, of which broken lines are reported and left out. Hand it to [`Self::root`].
    pub fn parse(&mut self) -> Spanned<DeTable<'t>> {
        if self.text.len() > MAX_TEXT {
            self.report(0..0, format!("the file is larger than {MAX_TEXT} bytes"), "split or shorten it");
            return Spanned::new(0..0, DeTable::new());
        }
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let reason = error.message().lines().collect::<Vec<_>>().join(", ");
            self.report(error.span().unwrap_or(0..0), reason, "correct the TOML syntax");
        }
        document
    }

    /// The document's top level.
    pub fn root<'d>(&self, document: &'d Spanned<DeTable<'d>>) -> Table<'d> {
        Table { entries: document.get_ref(), start: document.span().start, end: document.span().end }
    }

    /// Notes a fault at a byte range of the text.
    pub fn report(&mut self, at: Range<usize>, reason: impl Into<String>, help: impl Into<String>) {
        let (line, column) = position(self.text, at.start);
        let (reason, help) = (reason.into(), help.into());
        self.errors.push(TextError { file: self.file.to_owned(), line, column, reason, help });
    }

    /// Reports each key that `known` lacks, with the nearest known one.
    pub fn check_keys(&mut self, table: Table<'_>, known: &[&str]) {
        for (key, _) in table.entries {
            if !known.contains(&key.get_ref().as_ref()) {
                let help = help_for_unknown(key.get_ref(), known);
                self.report(key.span(), format!("unknown key `{}`", key.get_ref()), help);
            }
        }
    }

    /// The text under `key`, if there is any.
    pub fn text(&mut self, table: Table<'_>, key: &str) -> Option<Spanned<String>> {
        let value = table.entries.get(key)?;
        self.text_value(key, value)
    }

    /// The text under `key`, which must be there.
    pub fn required_text(&mut self, table: Table<'_>, key: &str) -> Option<Spanned<String>> {
        if !table.has(key) {
            self.report(table.span(), format!("the key `{key}` is missing"), format!("add `{key} = \"...\"`"));
        }
        self.text(table, key)
    }

    /// The text under `key`, read by `parse`, whose error is the reason that is reported.
    pub fn parsed<T, E: fmt::Display>(
        &mut self,
        table: Table<'_>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(table, key)?;
        self.parse_text(&text, parse)
    }

    /// The list of texts under `key`; empty if there is none.
    pub fn texts(&mut self, table: Table<'_>, key: &str) -> Vec<Spanned<String>> {
        let Some(value) = table.entries.get(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_kind(key, value, "a list of texts", &format!("write `{key} = [\"...\"]`"));
            return Vec::new();
        };
        array.iter().filter_map(|item| self.text_value(key, item)).collect()
    }

    /// The list of texts and whole numbers under `key`, numbers as they are written; empty if there is none.
    pub fn texts_or_integers(&mut self, table: Table<'_>, key: &str) -> Vec<Spanned<String>> {
        let Some(array) = table.entries.get(key).and_then(|value| value.get_ref().as_array()) else {
            return self.texts(table, key);
        };
        let item_text = |reader: &mut Self, item: &Spanned<DeValue<'_>>| match item.get_ref().as_integer() {
            Some(number) => Some(Spanned::new(item.span(), number.to_string())),
            None => reader.text_value(key, item),
        };
        array.iter().filter_map(|item| item_text(self, item)).collect()
    }

    /// The list of texts under `key`, each read by `parse`, whose error is the reason that is reported.
    pub fn parsed_list<T, E: fmt::Display>(
        &mut self,
        table: Table<'_>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        let texts = self.texts(table, key);
        texts.iter().filter_map(|text| self.parse_text(text, &parse)).collect()
    }

    /// The whole number under `key`, if there is one and it lies in `range`.
    pub fn integer(&mut self, table: Table<'_>, key: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let value = table.entries.get(key)?;
        let number = value.get_ref().as_integer().and_then(|n| i64::from_str_radix(n.as_str(), n.radix()).ok());
        let (low, high) = (range.start(), range.end());
        match number.filter(|number| range.contains(number)) {
            None => {
                self.wrong_kind(key, value, &format!("a whole number from {low} to {high}"), "write such a number");
                None
            }
            found => found,
        }
    }

    /// The truth value under `key`, if there is one.
    pub fn boolean(&mut self, table: Table<'_>, key: &str) -> Option<bool> {
        let value = table.entries.get(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_kind(key, value, "`true` or `false`", "write one of the two, without quotes");
        }
        found
    }

    /// The tables of `[[key]]`; empty if there is none.
    pub fn tables<'d>(&mut self, table: Table<'d>, key: &str) -> Vec<Table<'d>> {
        let Some(value) = table.entries.get(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_kind(key, value, "a list of tables", &format!("head each with `[[{key}]]`"));
            return Vec::new();
        };
        array.iter().filter_map(|item| self.table_value(key, item)).collect()
    }

    /// The table of `[key]`, if there is one.
    pub fn table<'d>(&mut self, table: Table<'d>, key: &str) -> Option<Table<'d>> {
        self.table_value(key, table.entries.get(key)?)
    }

    /// Refuses the text if anything was wrong with it.
    ///
    /// # Errors
    /// Every fault, in the order of the text.
    pub fn finish(mut self) -> Result<(), TextErrors> {
        self.errors.sort_by_key(|error| (error.line, error.column));
        if self.errors.is_empty() { Ok(()) } else { Err(TextErrors(self.errors)) }
    }

    fn text_value(&mut self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<Spanned<String>> {
        let found = value.get_ref().as_str().map(|text| Spanned::new(value.span(), text.to_owned()));
        if found.is_none() {
            self.wrong_kind(key, value, "a text", "put it in double quotes");
        }
        found
    }

    fn table_value<'d>(&mut self, key: &str, value: &'d Spanned<DeValue<'_>>) -> Option<Table<'d>> {
        let Some(entries) = value.get_ref().as_table() else {
            self.wrong_kind(key, value, "a table", &format!("head it with `[{key}]` or `[[{key}]]`"));
            return None;
        };
        Some(Table { entries, start: value.span().start, end: value.span().end })
    }

    /// What `parse` makes of a text of this document; its error is the reason that is reported.
    pub fn parse_text<T, E: fmt::Display>(
        &mut self,
        text: &Spanned<String>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        match parse(text.get_ref()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.report_sentence(text.span(), &error.to_string());
                None
            }
        }
    }

    /// Our own errors end with the next step after a semicolon.
    fn report_sentence(&mut self, at: Range<usize>, sentence: &str) {
        let (reason, help) = sentence.rsplit_once("; ").unwrap_or((sentence, "correct this value"));
        self.report(at, reason, help);
    }

    fn wrong_kind(&mut self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str, help: &str) {
        let found = self.text.get(value.span()).unwrap_or_default().lines().next().unwrap_or_default();
        let found: String = found.chars().take(40).collect();
        self.report(value.span(), format!("`{key}` has `{found}` where {wanted} is needed"), help);
    }
}

/// The candidate that `word` was probably meant to be.
pub fn did_you_mean<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let scored = candidates.into_iter().map(|candidate| (strsim::jaro_winkler(word, candidate), candidate));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(score, _)| *score >= 0.8).map(|(_, candidate)| candidate)
}

fn help_for_unknown(key: &str, known: &[&str]) -> String {
    match did_you_mean(key, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("use one of `{}`", known.join("`, `")),
    }
}

/// Line and column, counted from 1, of a byte of `text`.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
    let column = before.chars().rev().take_while(|&character| character != '\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::Label;

    fn faults(text: &str, read: impl FnOnce(&mut Reader<'_>, Table<'_>)) -> Vec<TextError> {
        let mut reader = Reader::new(Path::new("site.toml"), text);
        let document = reader.parse();
        let root = reader.root(&document);
        read(&mut reader, root);
        reader.finish().err().map_or_else(Vec::new, |errors| errors.0)
    }

    fn places(faults: &[TextError]) -> Vec<(usize, usize)> {
        faults.iter().map(|fault| (fault.line, fault.column)).collect()
    }

    #[test]
    fn a_good_text_gives_its_values() {
        let text = "name = 'x'\nn = 0x10\nyes = true\nlist = ['a', 'b']\n[[entry]]\nlabels = ['net/x']\n[one]\n";
        let found = faults(text, |reader, root| {
            reader.check_keys(root, &["name", "n", "yes", "list", "entry", "one"]);
            assert_eq!(reader.required_text(root, "name").unwrap().get_ref(), "x");
            assert_eq!(reader.integer(root, "n", 0..=16), Some(16));
            assert_eq!(reader.boolean(root, "yes"), Some(true));
            assert_eq!(reader.texts(root, "list").len(), 2);
            let entries = reader.tables(root, "entry");
            let labels: Vec<Label> = reader.parsed_list(entries[0], "labels", str::parse::<Label>);
            assert_eq!(labels, ["net/x".parse().unwrap()]);
            assert!(reader.table(root, "one").is_some() && reader.table(root, "two").is_none());
        });
        assert_eq!(found, []);
    }

    #[test]
    fn every_fault_is_found_with_its_place() {
        let text = "name = 5\n\nlist = ['ok', 7]\n  labals = ['BAD']\n[[entry]]\nlabels = ['ok', 'NOT OK', 'ä']\n";
        let found = faults(text, |reader, root| {
            reader.check_keys(root, &["name", "list", "labels", "entry"]);
            reader.required_text(root, "name");
            reader.texts(root, "list");
            let entry = reader.tables(root, "entry")[0];
            reader.required_text(entry, "name");
            reader.parsed_list(entry, "labels", str::parse::<Label>);
        });
        assert_eq!(places(&found), [(1, 8), (3, 15), (4, 3), (5, 1), (6, 17), (6, 27)]);
        assert_eq!(found[2].to_string(), "site.toml:4:3: unknown key `labals`; did you mean `labels`?");
        assert!(found[4].reason.contains("`NOT OK`") && found[4].help.contains("lower-case"), "{:?}", found[4]);
    }

    #[test]
    fn all_syntax_errors_are_found() {
        let found = faults("a = \nb = 1\nc = 'x\nb = 2\n", |_, _| {});
        let lines: Vec<usize> = found.iter().map(|fault| fault.line).collect();
        assert!(lines.contains(&1) && lines.contains(&3) && lines.contains(&4), "{found:?}");
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(position("ä = 1\nöö x", "ä = 1\nöö ".len()), (2, 4));
        assert_eq!(position("", 9), (1, 1));
    }

    #[test]
    fn only_near_words_are_offered() {
        assert_eq!(did_you_mean("lables", ["labels", "paths"]), Some("labels"));
        assert_eq!(did_you_mean("zebra", ["labels", "paths"]), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([a-c]|\\[|\\]|=|\"|'|#|\n| |\\{|\\}|,|[0-9]|\\.|ä){0,60}") {
            faults(&text, |reader, root| {
                reader.check_keys(root, &["a"]);
                reader.tables(root, "a");
                reader.texts(root, "a");
                reader.integer(root, "a", 0..=1);
            });
        }
    }
}
