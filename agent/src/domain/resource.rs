//! What tasks act upon.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::LabelSet;

/// Transport protocol of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
}

impl Protocol {
    /// From an IP protocol number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// `tcp` or `udp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Names of a destination: lower case, without the final dot.
pub type Hosts = BTreeSet<Arc<str>>;

/// A destination and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Transport.
    pub protocol: Protocol,
    /// Address; never an IPv4-mapped IPv6 address (see [`canonical`]).
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// The names under which this task came to know the address.
    pub hosts: Arc<Hosts>,
    /// The catalogue's labels for it. Never empty: what the catalogue does not know is `net/external/unknown`.
    pub labels: Arc<LabelSet>,
}

/// The address that packets will leave for: IPv4-mapped IPv6 as IPv4, and the unspecified address as loopback, which is
/// what `connect(2)` makes of it (`net/ipv4/route.c: ip_route_output_key_hash_rcu`, `net/ipv6/tcp_ipv6.c: tcp_v6_connect`).
pub fn canonical(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", std::net::SocketAddr::new(self.address, self.port), self.protocol.as_str())
    }
}
