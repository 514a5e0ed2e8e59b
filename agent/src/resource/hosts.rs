//! Catalogue entries by name: which of them carry a name that somebody asks for.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::domain::host::is_name;
use crate::domain::{LabelSet, Protocol};

/// Ports of a range that are listed one by one; of a longer one, its ends.
const MAX_LISTED: u16 = 16;
/// What a name is tried at where its entry says nothing.
const USUAL: [(Protocol, u16); 3] = [(Protocol::Tcp, 443), (Protocol::Tcp, 80), (Protocol::Udp, 443)];

/// A name as the catalogue writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HostPattern {
    /// This name alone.
    Exact(Arc<str>),
    /// Every name below this one, and not this one itself.
    Below(Arc<str>),
}

/// Why a text is no name of the catalogue. Each names the text and ends with the next step.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostError {
    #[error(
        "`{0}` is not a name; write lower-case letters, digits, `-` and `_` in parts parted by `.`, as in `api.example.com`"
    )]
    Malformed(String),
    #[error("`{0}` has a `*` that is not its first part; write `*.example.com` for every name below `example.com`")]
    Wildcard(String),
    #[error("`{0}` is every name there is; write `*.example.com` for every name below `example.com`")]
    Everything(String),
}

impl HostPattern {
    /// `api.example.com`, or `*.example.com` for all names below it.
    pub(super) fn parse(text: &str) -> Result<Self, HostError> {
        if text == "*" {
            return Err(HostError::Everything(text.to_owned()));
        }
        let (below, name) = text.strip_prefix("*.").map_or((false, text), |rest| (true, rest));
        if name.contains('*') {
            return Err(HostError::Wildcard(text.to_owned()));
        }
        if !is_name(name) {
            return Err(HostError::Malformed(text.to_owned()));
        }
        Ok(if below { Self::Below(name.into()) } else { Self::Exact(name.into()) })
    }
}

/// What an entry with names gives them.
#[derive(Clone, Debug)]
pub(super) struct Bearer {
    pub(super) labels: Arc<LabelSet>,
    pub(super) ports: Vec<RangeInclusive<u16>>,
    pub(super) protocols: Vec<Protocol>,
    pub(super) private: bool,
}

/// The entries that have names.
#[derive(Clone, Debug, Default)]
pub(super) struct Bearers {
    bearers: Vec<Bearer>,
    exact: HashMap<Arc<str>, Vec<usize>>,
    below: HashMap<Arc<str>, Vec<usize>>,
}

/// What the catalogue says of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Labels of all entries that carry it, whatever their ports; empty if none does.
    pub labels: LabelSet,
    /// Where to ask policy about it.
    pub ends: Vec<(Protocol, u16)>,
    /// Whether it may have a private address.
    pub private: bool,
    /// Whether an entry spells it out: else its parts are of the asker's choosing.
    pub spelt_out: bool,
}

impl Bearers {
    /// Adds an entry under its names.
    pub(super) fn add(&mut self, names: &[HostPattern], bearer: Bearer) {
        let number = self.bearers.len();
        self.bearers.push(bearer);
        for name in names {
            let (map, name) = match name {
                HostPattern::Exact(name) => (&mut self.exact, name),
                HostPattern::Below(name) => (&mut self.below, name),
            };
            map.entry(Arc::clone(name)).or_default().push(number);
        }
    }

    /// The labels that a name has at a port; nothing if no entry carries it there.
    pub(super) fn labels_at(&self, name: &str, port: u16, protocol: Protocol) -> LabelSet {
        let there = self.of(name).filter(|bearer| bearer.is_at(port, protocol));
        there.flat_map(|bearer| bearer.labels.iter().cloned()).collect()
    }

    pub(super) fn carried(&self, name: &str) -> Carried {
        let mut carried = Carried { spelt_out: self.exact.contains_key(name), ..Carried::default() };
        for bearer in self.of(name) {
            carried.labels.extend(bearer.labels.iter().cloned());
            carried.private |= bearer.private;
            carried.ends.extend(bearer.ends());
        }
        if carried.ends.is_empty() {
            carried.ends = USUAL.to_vec();
        }
        let mut seen = std::collections::HashSet::new();
        carried.ends.retain(|end| seen.insert(*end));
        carried
    }

    fn of<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Bearer> {
        let above = name.match_indices('.').filter_map(|(dot, _)| name.get(dot + 1..));
        let below = above.filter_map(|above| self.below.get(above)).flatten();
        let numbers = self.exact.get(name).into_iter().flatten().chain(below);
        numbers.filter_map(|&number| self.bearers.get(number))
    }
}

impl Bearer {
    fn is_at(&self, port: u16, protocol: Protocol) -> bool {
        (self.ports.is_empty() || self.ports.iter().any(|range| range.contains(&port))) && self.takes(protocol)
    }

    fn takes(&self, protocol: Protocol) -> bool {
        self.protocols.is_empty() || self.protocols.contains(&protocol)
    }

    /// Where policy is asked about a name of this entry.
    fn ends(&self) -> Vec<(Protocol, u16)> {
        if self.ports.is_empty() {
            let usual: Vec<_> = USUAL.into_iter().filter(|(protocol, _)| self.takes(*protocol)).collect();
            return usual;
        }
        let protocols = [Protocol::Tcp, Protocol::Udp].into_iter().filter(|protocol| self.takes(*protocol));
        protocols.flat_map(|protocol| self.listed_ports().map(move |port| (protocol, port))).collect()
    }

    fn listed_ports(&self) -> impl Iterator<Item = u16> {
        self.ports.iter().flat_map(|range| {
            let (first, last) = (*range.start(), *range.end());
            let few = last.saturating_sub(first) < MAX_LISTED;
            let middle = [443, 80].into_iter().filter(|port| range.contains(port));
            if few { range.clone().collect::<Vec<_>>() } else { [first, last].into_iter().chain(middle).collect() }
        })
    }
}
