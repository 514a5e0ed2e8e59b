//! What several policy tests share: facts made in one line.

#![allow(dead_code, reason = "each test program uses its own part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::domain::{AgentFacts, Endpoint, IntentFacts, LabelSet, Protocol, TaskFacts, TaskId, UnixMillis};
use agent::policy::{Policies, PolicyText, shipped};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The repository's `policies/`.
pub(crate) fn policies_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies")
}

/// A file of a site.
pub(crate) fn file(name: &str, text: &str) -> PolicyText {
    PolicyText { name: name.to_owned(), text: text.to_owned() }
}

/// The shipped policies with a site's `text`, in UTC.
pub(crate) fn with(text: &str) -> Policies {
    match Policies::load(&shipped(), &[file("site.cedar", text)], TimeZone::UTC) {
        Ok(policies) => policies,
        Err(errors) => panic!("{errors}"),
    }
}

/// What is wrong with a site's `text`, as it is printed.
pub(crate) fn errors(text: &str) -> String {
    Policies::load(&shipped(), &[file("site.cedar", text)], TimeZone::UTC).unwrap_err().to_string()
}

/// Labels.
pub(crate) fn labels(labels: &[&str]) -> LabelSet {
    labels.iter().map(|label| label.parse().unwrap()).collect()
}

/// An instant.
pub(crate) fn at(text: &str) -> UnixMillis {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

/// A task of an agent, with an empty grant.
pub(crate) fn task(id: &str, agent: &str) -> TaskFacts {
    TaskFacts {
        id: TaskId::from_text(id),
        agent: AgentFacts { id: agent.into(), groups: Vec::new(), owner: None },
        intent: IntentFacts { id: "work".into(), parents: Vec::new() },
        goal: None,
        on_behalf_of: None,
        parent: None,
        assurance: 1,
        may_read: LabelSet::new(),
        may_connect: LabelSet::new(),
        touched: LabelSet::new(),
        expires_at: at("2030-01-01T00:00:00Z"),
    }
}

/// A TCP endpoint.
pub(crate) fn endpoint(address: &str, of: &[&str]) -> Endpoint {
    let address: std::net::SocketAddr = address.parse().unwrap();
    Endpoint {
        protocol: Protocol::Tcp,
        address: address.ip(),
        port: address.port(),
        hosts: Arc::default(),
        labels: Arc::new(labels(of)),
    }
}
