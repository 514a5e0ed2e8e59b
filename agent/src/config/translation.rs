//! `[[translation]]`: where this host translates addresses, so that what tasks connect to in one range leaves as an address in
//! another.

use std::ops::Range;

use ipnet::IpNet;

use crate::domain::cidr::parse_cidr;
use crate::domain::toml_text::{Reader, Table};

/// Ranges at most, each of `from` and `to`, all translations together.
const MAX_RANGES: usize = agent_common::maps::MAX_TRANSLATIONS as usize;

/// What a task connects to in `from` may leave as an address in `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// What the operator calls it.
    pub name: String,
    /// Addresses of services, or those that a container engine publishes.
    pub from: Vec<IpNet>,
    /// Addresses behind them.
    pub to: Vec<IpNet>,
}

/// Where a range stands, and in which translation.
type Placed = (IpNet, Range<usize>, String);

/// All of them; faults are reported.
pub(super) fn read(reader: &mut Reader<'_>, root: Table<'_>) -> Vec<Translation> {
    let (mut from, mut to) = (Vec::new(), Vec::new());
    let tables = reader.tables(root, "translation");
    let read = tables.iter().filter_map(|&table| read_one(reader, table, &mut from, &mut to)).collect();
    for (key, ranges) in [("from", &from), ("to", &to)] {
        check_overlap(reader, key, ranges);
        if ranges.len() > MAX_RANGES {
            let reason = format!("all `{key}` together have {} ranges; {MAX_RANGES} are the most", ranges.len());
            reader.report(root.span(), reason, "write wider ranges");
        }
    }
    read
}

fn read_one(
    reader: &mut Reader<'_>,
    table: Table<'_>,
    all_from: &mut Vec<Placed>,
    all_to: &mut Vec<Placed>,
) -> Option<Translation> {
    reader.check_keys(table, &["name", "from", "to"]);
    let name = reader.required_text(table, "name")?.into_inner();
    let from = ranges(reader, table, "from", &name, all_from);
    let to = ranges(reader, table, "to", &name, all_to);
    Some(Translation { name, from, to })
}

fn ranges(reader: &mut Reader<'_>, table: Table<'_>, key: &str, name: &str, all: &mut Vec<Placed>) -> Vec<IpNet> {
    if table.is_empty(key) {
        reader.report(table.span(), format!("the translation `{name}` has no `{key}`"), "list its ranges of addresses");
    }
    let texts = reader.texts(table, key);
    let placed = texts.iter().filter_map(|text| {
        let range = reader.parse_text(text, parse_cidr)?;
        Some((range, text.span(), name.to_owned()))
    });
    let placed: Vec<Placed> = placed.collect();
    let ranges = placed.iter().map(|(range, _, _)| *range).collect();
    all.extend(placed);
    ranges
}

/// The kernel finds one translation for an address, not several.
fn check_overlap(reader: &mut Reader<'_>, key: &str, ranges: &[Placed]) {
    for (index, (range, at, _)) in ranges.iter().enumerate() {
        let earlier = ranges.iter().take(index).find(|(other, _, _)| other.contains(range) || range.contains(other));
        if let Some((other, _, name)) = earlier {
            let reason = format!("`{range}` overlaps `{other}` in `{key}` of `{name}`");
            reader.report(at.clone(), reason, "write each address once, in one translation");
        }
    }
}
