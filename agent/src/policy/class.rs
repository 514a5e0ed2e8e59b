//! Classes: what policies can tell apart about a resource. Two resources of one class get one answer.

use std::net::IpAddr;
use std::sync::Arc;

use super::reads::Attributes;
use crate::domain::{Endpoint, Hosts, LabelSet, Protocol};

/// Everything that the loaded policies can tell about a resource: its type, its labels, and those attributes that some
/// policy reads. It means nothing to other [`Policies`](super::Policies) than those that made it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Class {
    pub(super) policies: u64,
    pub(super) kind: Kind,
    pub(super) labels: Arc<LabelSet>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Secret,
    /// An attribute that no policy reads is `None`.
    Endpoint {
        ip: Option<IpAddr>,
        port: Option<u16>,
        proto: Option<Protocol>,
        hosts: Option<Arc<Hosts>>,
    },
    /// An endpoint of this host, to listen at.
    Listen {
        ip: Option<IpAddr>,
        port: Option<u16>,
        proto: Option<Protocol>,
    },
    Unix,
    Facility,
}

impl Kind {
    pub(super) fn endpoint(endpoint: &Endpoint, read: Attributes) -> Self {
        Self::Endpoint {
            ip: read.ip.then_some(endpoint.address),
            port: read.port.then_some(endpoint.port),
            proto: read.proto.then_some(endpoint.protocol),
            hosts: read.hosts.then(|| Arc::clone(&endpoint.hosts)),
        }
    }

    pub(super) fn listen(endpoint: &Endpoint, read: Attributes) -> Self {
        Self::Listen {
            ip: read.ip.then_some(endpoint.address),
            port: read.port.then_some(endpoint.port),
            proto: read.proto.then_some(endpoint.protocol),
        }
    }
}
