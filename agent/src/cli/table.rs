//! Plain text in columns, fit for a terminal whoever wrote its content.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::domain::UnixMillis;

/// Columns under their heads, two blanks apart; the last one is not padded.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column, &head, rows)).collect();
    let lines = std::iter::once(&head).chain(rows).map(|row| line(row, &widths));
    lines.collect()
}

fn width(column: usize, head: &[String], rows: &[Vec<String>]) -> usize {
    let cells = std::iter::once(head).chain(rows.iter().map(Vec::as_slice)).filter_map(|row| row.get(column));
    cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
}

fn line(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).map(|(cell, &width)| format!("{cell:width$}"));
    let line = cells.collect::<Vec<_>>().join("  ");
    format!("{}\n", line.trim_end())
}

/// `name: value` lines with the values in one column.
pub(super) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
    pairs.iter().fold(String::new(), |mut text, (name, value)| {
        let head = format!("{name}:");
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}", format_args!("{head:width$} {value}").to_string().trim_end());
        text
    })
}

/// `text` with everything escaped that could move a terminal's cursor or turn the reading order.
pub(super) fn plain(text: &str) -> String {
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut plain, character| {
        if is_unsafe(character) {
            plain.extend(character.escape_default());
        } else {
            plain.push(character);
        }
        plain
    })
}

/// The first `most` characters of `text`, and a mark where there were more.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// A list in one cell; `-` for none.
pub(super) fn list(items: &[String]) -> String {
    if items.is_empty() { "-".to_owned() } else { plain(&items.join(", ")) }
}

/// RFC 3339, UTC.
pub(super) fn time(at: UnixMillis) -> String {
    Timestamp::from_millisecond(at).map_or_else(|_| format!("{at} ms"), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_end_without_blanks() {
        let rows = [vec!["äö".to_owned(), "1".to_owned()], vec!["abcd".to_owned(), String::new()]];
        assert_eq!(table(&["A", "B"], &rows), "A     B\näö    1\nabcd\n");
        assert_eq!(pairs(&[("a", "1".into()), ("long", String::new())]), "a:    1\nlong:\n");
    }

    #[test]
    fn what_would_move_the_cursor_is_escaped() {
        assert_eq!(plain("ok \u{1b}[2J\n\u{202e}ä"), "ok \\u{1b}[2J\\n\\u{202e}ä");
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time(1_700_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(time(i64::MAX), "9223372036854775807 ms");
    }
}
