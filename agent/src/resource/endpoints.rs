//! The endpoints catalogue: what destinations are called.
//!
//! The question is asked while a process is held, so everything is worked out at load: the addresses are cut into pieces
//! of which each knows the entries that match there, the ports likewise, and an answer is two binary searches.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use crate::domain::cidr::parse_cidr;
use crate::domain::resource::canonical;
use crate::domain::toml_text::{Reader, Table, TextErrors};
use crate::domain::{Hosts, Label, LabelSet, Protocol};

use super::catalogue::{self, Entry, Kind};
use super::hosts::{Bearer, Bearers, Carried, HostPattern};
use super::ranges::Pieces;

/// The shipped catalogue.
pub const SHIPPED: &str = include_str!("../../../policies/catalogue/endpoints.toml");

/// The label of destinations that no entry with addresses matches.
pub const UNKNOWN: &str = "net/external/unknown";

const KIND: Kind = Kind {
    table: "endpoint",
    keys: &["cidrs", "names", "ports", "protocols", "private"],
    shipped_file: "policies/catalogue/endpoints.toml",
};

/// The catalogue in force.
#[derive(Clone, Debug)]
pub struct Endpoints {
    v4: Pieces<Arc<Ports>>,
    v6: Pieces<Arc<Ports>>,
    bearers: Bearers,
    labels: LabelSet,
    unknown: Label,
}

/// The labels of one piece of addresses, by protocol and port.
#[derive(Clone, Debug)]
struct Ports {
    tcp: Pieces<Arc<LabelSet>>,
    udp: Pieces<Arc<LabelSet>>,
}

/// What an entry matches. An empty list matches everything; with names it matches what a task knows under one of them.
#[derive(Clone, Debug, Default)]
struct Match {
    cidrs: Vec<IpNet>,
    names: Vec<HostPattern>,
    private: bool,
    ports: Vec<RangeInclusive<u16>>,
    protocols: Vec<Protocol>,
}

/// Why a text of an entry is refused. Each names the text and ends with the next step.
#[derive(Debug, thiserror::Error)]
enum FieldError {
    #[error("`{0}` is neither a port nor a range of ports; write a number from 0 to 65535, or two as in `8000-8100`")]
    Port(String),
    #[error("`{0}` is no protocol that policies know; write `tcp` or `udp`")]
    Protocol(String),
}

impl Endpoints {
    /// The shipped entries (usually [`SHIPPED`]) that the site's file, named only in errors, does not disable, and the
    /// site's own.
    ///
    /// # Errors
    /// Every fault of both texts.
    pub fn load(shipped: &str, site: Option<(&Path, &str)>) -> Result<Self, TextErrors> {
        Ok(Self::build(&catalogue::load(&KIND, shipped, site, Match::read)?))
    }

    fn build(entries: &[Entry<Match>]) -> Self {
        let unknown = unknown_label();
        let mut labels = catalogue::labels(entries);
        labels.extend(unknown.ancestors().chain([unknown.clone()]));
        let (named, addressed): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| !entry.body.names.is_empty());
        let mut builder =
            Builder { entries: addressed, unknown: &unknown, ports: HashMap::new(), sets: HashMap::new() };
        let (v4, v6) = (builder.family(Ipv4Addr::UNSPECIFIED.into()), builder.family(Ipv6Addr::UNSPECIFIED.into()));
        let mut bearers = Bearers::default();
        named.iter().for_each(|entry| bearers.add(&entry.body.names, entry.bearer()));
        Self { v4, v6, bearers, labels, unknown }
    }

    /// What the catalogue says of a name: lower case, without the final dot.
    pub fn carried(&self, name: &str) -> Carried {
        let mut carried = self.bearers.carried(name);
        if carried.labels.is_empty() {
            carried.labels.insert(self.unknown.clone());
        }
        carried
    }

    /// The labels of a destination that a task knows under some names: those of the address and those of the names, of which
    /// one that the catalogue carries makes the destination known.
    pub fn labels_of(&self, address: IpAddr, hosts: &Hosts, port: u16, protocol: Protocol) -> Arc<LabelSet> {
        let by_address = self.labels_for(address, port, protocol);
        let by_name: LabelSet = hosts.iter().flat_map(|host| self.bearers.labels_at(host, port, protocol)).collect();
        if by_name.is_empty() {
            return by_address;
        }
        let known = by_address.iter().filter(|label| **label != self.unknown).cloned();
        Arc::new(by_name.into_iter().chain(known).collect())
    }

    /// Whether an address is one that names of the Internet do not have: this host's, a private network's, a metadata
    /// service's, or none at all. What the catalogue calls so, and what is so whatever the catalogue says.
    pub fn is_private(&self, address: IpAddr) -> bool {
        let named_so = |label: &Label| PRIVATE.iter().any(|above| is_within(label, above));
        let inside = embedded(canonical(address)).map(IpAddr::from);
        is_never_public(address)
            || inside.is_some_and(is_never_public)
            || [443, 80].iter().any(|&port| self.labels_for(address, port, Protocol::Tcp).iter().any(named_so))
    }

    /// All labels that a destination can have, and the labels above them.
    pub fn labels(&self) -> &LabelSet {
        &self.labels
    }

    /// The labels of a destination: those of all entries that match, and [`UNKNOWN`] if none of those has addresses.
    /// Never empty. Allocates nothing, but for IPv6 addresses that stand for an IPv4 address: they have the labels of both.
    pub fn labels_for(&self, address: IpAddr, port: u16, protocol: Protocol) -> Arc<LabelSet> {
        let address = canonical(address);
        let own = self.look_up(address, port, protocol);
        match embedded(address) {
            Some(inner) => Arc::new(self.unite(&own, &self.look_up(canonical(inner.into()), port, protocol))),
            None => own,
        }
    }

    /// The labels of an address of this host to listen at. Unlike for a destination, the unspecified address is not loopback:
    /// it stands for all of the host's.
    pub fn labels_to_listen(&self, address: IpAddr, port: u16, protocol: Protocol) -> Arc<LabelSet> {
        self.look_up(address.to_canonical(), port, protocol)
    }

    fn look_up(&self, address: IpAddr, port: u16, protocol: Protocol) -> Arc<LabelSet> {
        let pieces = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let found = pieces.at(number(address)).and_then(|ports| ports.of(protocol).at(port.into()));
        found.map_or_else(|| Arc::new(LabelSet::from([self.unknown.clone()])), Arc::clone)
    }

    /// What either address is known as makes the destination known.
    fn unite(&self, a: &LabelSet, b: &LabelSet) -> LabelSet {
        let mut both = a | b;
        if !a.contains(&self.unknown) || !b.contains(&self.unknown) {
            both.remove(&self.unknown);
        }
        both
    }
}

impl Ports {
    fn of(&self, protocol: Protocol) -> &Pieces<Arc<LabelSet>> {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }
}

#[expect(clippy::expect_used, reason = "the constant is a label, as every test that loads a catalogue shows")]
fn unknown_label() -> Label {
    UNKNOWN.parse().expect("UNKNOWN is a label")
}

/// The IPv4 address to which gateways translate an IPv6 one: NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056) and the old
/// IPv4-compatible form. Without it, a metadata service or an internal host could be reached under an unknown address.
fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    let (bits, last) = (v6.to_bits(), Ipv4Addr::from_bits((v6.to_bits() & 0xffff_ffff) as u32));
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => Some(last),
        [0x2002, ..] => Some(Ipv4Addr::from_bits(((bits >> 80) & 0xffff_ffff) as u32)),
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => Some(last),
        _ => None,
    }
}

/// Labels of addresses that a name may have only where the catalogue says so.
const PRIVATE: [&str; 8] = [
    "net/any",
    "net/broadcast",
    "net/internal",
    "net/link-local",
    "net/loopback",
    "net/metadata",
    "net/multicast",
    "net/reserved",
];

fn is_within(label: &Label, above: &str) -> bool {
    label.as_str().strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_never_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let own = v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.octets().first() == Some(&0);
            own || v4.is_multicast() || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            let own = v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_unspecified();
            own || v6.is_multicast()
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Works out the pieces, each different answer once.
struct Builder<'e> {
    entries: Vec<&'e Entry<Match>>,
    unknown: &'e Label,
    ports: HashMap<Vec<usize>, Arc<Ports>>,
    sets: HashMap<LabelSet, Arc<LabelSet>>,
}

impl Builder<'_> {
    /// The pieces of the family that `sample` is of.
    fn family(&mut self, sample: IpAddr) -> Pieces<Arc<Ports>> {
        let mut owned = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let own = entry.body.cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == sample.is_ipv4());
            owned.extend(own.map(|cidr| (index, number(cidr.network())..=number(cidr.broadcast()))));
            if entry.body.cidrs.is_empty() {
                owned.push((index, 0..=u128::MAX));
            }
        }
        let (owners, ranges): (Vec<usize>, Vec<_>) = owned.into_iter().unzip();
        Pieces::new(&ranges, |indices| {
            let mut entries: Vec<usize> = indices.iter().filter_map(|&index| owners.get(index).copied()).collect();
            entries.dedup();
            self.ports(entries)
        })
    }

    fn ports(&mut self, entries: Vec<usize>) -> Arc<Ports> {
        if let Some(known) = self.ports.get(&entries) {
            return Arc::clone(known);
        }
        let (tcp, udp) = (self.protocol(&entries, Protocol::Tcp), self.protocol(&entries, Protocol::Udp));
        let ports = Arc::new(Ports { tcp, udp });
        self.ports.insert(entries, Arc::clone(&ports));
        ports
    }

    fn protocol(&mut self, entries: &[usize], protocol: Protocol) -> Pieces<Arc<LabelSet>> {
        let mut owned = Vec::new();
        for entry in entries.iter().filter_map(|&index| self.entries.get(index).copied()) {
            if entry.body.takes(protocol) {
                owned.extend(entry.body.port_ranges().map(|range| (entry, range)));
            }
        }
        let (owners, ranges): (Vec<&Entry<Match>>, Vec<_>) = owned.into_iter().unzip();
        Pieces::new(&ranges, |indices| {
            let matching: Vec<&Entry<Match>> = indices.iter().filter_map(|&index| owners.get(index).copied()).collect();
            self.set(labels_of(&matching, self.unknown))
        })
    }

    fn set(&mut self, labels: LabelSet) -> Arc<LabelSet> {
        let shared = self.sets.entry(labels).or_insert_with_key(|labels| Arc::new(labels.clone()));
        Arc::clone(shared)
    }
}

fn labels_of(matching: &[&Entry<Match>], unknown: &Label) -> LabelSet {
    let mut labels: LabelSet = matching.iter().flat_map(|entry| entry.labels.iter().cloned()).collect();
    if matching.iter().all(|entry| entry.body.cidrs.is_empty()) {
        labels.insert(unknown.clone());
    }
    labels
}

impl Match {
    fn read(reader: &mut Reader<'_>, table: Table<'_>) -> Self {
        if KIND.keys.iter().all(|key| table.is_empty(key)) {
            let help = "add at least one of `cidrs`, `names`, `ports` and `protocols`";
            reader.report(table.span(), "the entry matches every destination", help);
        }
        let cidrs = reader.parsed_list(table, "cidrs", parse_cidr);
        let ports = reader.texts_or_integers(table, "ports");
        let ports = ports.iter().filter_map(|text| reader.parse_text(text, parse_ports)).collect();
        let names = reader.parsed_list(table, "names", HostPattern::parse);
        let private = reader.boolean(table, "private").unwrap_or(false);
        if !table.is_empty("names") && !table.is_empty("cidrs") {
            let help = "write two entries with the same labels";
            reader.report(table.span(), "the entry has both `names` and `cidrs`", help);
        }
        if private && table.is_empty("names") {
            let help = "remove it: it lets the entry's `names` have private addresses";
            reader.report(table.span(), "the entry has `private` and no `names`", help);
        }
        Self { cidrs, names, private, ports, protocols: reader.parsed_list(table, "protocols", parse_protocol) }
    }

    fn takes(&self, protocol: Protocol) -> bool {
        self.protocols.is_empty() || self.protocols.contains(&protocol)
    }

    fn port_ranges(&self) -> impl Iterator<Item = RangeInclusive<u128>> {
        let every = self.ports.is_empty().then_some(0..=u16::MAX.into());
        self.ports.iter().map(|range| u128::from(*range.start())..=u128::from(*range.end())).chain(every)
    }
}

impl Entry<Match> {
    fn bearer(&self) -> Bearer {
        let Match { ports, protocols, private, .. } = self.body.clone();
        Bearer { labels: Arc::clone(&self.labels), ports, protocols, private }
    }
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, FieldError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let bounds = first.trim().parse::<u16>().ok().zip(last.trim().parse::<u16>().ok());
    let range = bounds.filter(|(first, last)| first <= last).map(|(first, last)| first..=last);
    range.ok_or_else(|| FieldError::Port(text.to_owned()))
}

fn parse_protocol(text: &str) -> Result<Protocol, FieldError> {
    let known = [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.as_str() == text);
    known.ok_or_else(|| FieldError::Protocol(text.to_owned()))
}

#[cfg(test)]
mod tests;
