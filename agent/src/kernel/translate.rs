//! The operator's translations, as the egress program looks them up.

use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::MapData;
use aya::maps::lpm_trie::{Key, LpmTrie};
use ipnet::IpNet;

use super::MapError;

/// Puts ranges down, each with the number of its translation; what an earlier daemon put down goes.
pub(super) fn write(ebpf: &mut Ebpf, name: &'static str, ranges: &[(IpNet, u32)]) -> Result<(), MapError> {
    let map = ebpf.map_mut(name).ok_or(MapError::Unusable(name))?;
    let mut trie: LpmTrie<&mut MapData, [u8; 16], u32> =
        LpmTrie::try_from(map).map_err(|_| MapError::Unusable(name))?;
    let wanted: Vec<(u32, [u8; 16], u32)> = ranges.iter().map(|(range, number)| key(range, *number)).collect();
    let refused = |error| MapError::Refused(name, error);
    let old: Vec<Key<[u8; 16]>> = trie.keys().filter_map(Result::ok).collect();
    for key in old
        .iter()
        .filter(|key| !wanted.iter().any(|(length, data, _)| (key.prefix_len(), key.data()) == (*length, *data)))
    {
        trie.remove(key).map_err(refused)?;
    }
    wanted
        .iter()
        .try_for_each(|(length, data, number)| trie.insert(&Key::new(*length, *data), number, 0).map_err(refused))
}

/// IPv4 as IPv4-mapped.
fn key(range: &IpNet, number: u32) -> (u32, [u8; 16], u32) {
    let length = u32::from(range.prefix_len());
    match range.network() {
        IpAddr::V4(address) => (length + 96, address.to_ipv6_mapped().octets(), number),
        IpAddr::V6(address) => (length, address.octets(), number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_is_looked_up_as_mapped() {
        let (length, data, number) = key(&"10.96.0.0/12".parse().unwrap(), 7);
        assert_eq!((length, number), (108, 7));
        assert_eq!(data, "::ffff:10.96.0.0".parse::<std::net::Ipv6Addr>().unwrap().octets());
        assert_eq!(key(&"fd00::/8".parse().unwrap(), 1).0, 8);
    }
}
