//! Runs `policies/cases/*.json`: what is asked, of which policies, and what must come of it.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "in a test they are how it fails")]

mod policy_support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use agent::domain::{
    AgentFacts, Endpoint, IntentFacts, Label, LabelSet, Lifetime, PolicyRef, Protocol, TaskFacts, TaskId, UserFacts,
};
use agent::policy::{Class, Policies, PolicyText, shipped};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use policy_support::{file, policies_directory};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CaseFile {
    /// Example files by name.
    #[serde(default)]
    examples: Vec<String>,
    /// Policies of this file's own, line by line.
    #[serde(default)]
    site: Vec<String>,
    zone: Option<String>,
    tasks: BTreeMap<String, Task>,
    cases: Vec<Case>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Task {
    agent: String,
    groups: Vec<String>,
    intent: Vec<String>,
    on_behalf_of: Option<String>,
    parent: Option<String>,
    assurance: u8,
    may_read: LabelSet,
    may_connect: LabelSet,
    touched: LabelSet,
    expires_at: Timestamp,
}

impl Default for Task {
    fn default() -> Self {
        Self {
            agent: "agent".to_owned(),
            groups: Vec::new(),
            intent: vec!["work".to_owned()],
            on_behalf_of: None,
            parent: None,
            assurance: 1,
            may_read: LabelSet::new(),
            may_connect: LabelSet::new(),
            touched: LabelSet::new(),
            expires_at: "2030-01-01T00:00:00Z".parse().unwrap(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Case {
    name: String,
    task: String,
    /// Labels of a secret.
    read: Option<Vec<Label>>,
    connect: Option<Connect>,
    /// Labels of whoever listens on a unix socket.
    connect_unix: Option<Vec<Label>>,
    /// Where to listen, as `connect` says where to.
    listen: Option<Connect>,
    /// Labels of a facility.
    #[serde(rename = "use")]
    facility: Option<Vec<Label>>,
    #[serde(default = "monday_morning")]
    at: Timestamp,
    expect: Expect,
}

fn monday_morning() -> Timestamp {
    "2026-11-23T09:30:00Z".parse().unwrap()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Connect {
    to: std::net::SocketAddr,
    protocol: Option<Protocol>,
    #[serde(default)]
    hosts: BTreeSet<Arc<str>>,
    labels: Vec<Label>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Expect {
    effect: String,
    reason: String,
    #[serde(default)]
    policies: Vec<String>,
    #[serde(default)]
    hop: usize,
    shadow: Option<ExpectShadow>,
    /// `forever`, `ask`, or the last instant.
    #[serde(default = "forever")]
    lifetime: String,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct ExpectShadow {
    effect: String,
    reason: String,
    #[serde(default)]
    policies: Vec<String>,
}

fn forever() -> String {
    "forever".to_owned()
}

impl CaseFile {
    fn load(&self, name: &str) -> Policies {
        let mut site: Vec<PolicyText> = Vec::new();
        for example in &self.examples {
            let path = policies_directory().join("examples").join(example);
            site.push(file(example, &fs::read_to_string(path).unwrap()));
        }
        site.push(file(name, &self.site.join("\n")));
        let zone = self.zone.as_deref().map_or(TimeZone::UTC, |zone| TimeZone::get(zone).unwrap());
        Policies::load(&shipped(), &site, zone).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn facts(&self, id: &str) -> TaskFacts {
        let task = self.tasks.get(id).unwrap_or_else(|| panic!("there is no task `{id}`"));
        TaskFacts {
            id: TaskId::from_text(id),
            agent: AgentFacts {
                id: (*task.agent).into(),
                groups: task.groups.iter().map(|group| (**group).into()).collect(),
                owner: None,
            },
            intent: intent(&task.intent),
            goal: None,
            on_behalf_of: task.on_behalf_of.as_deref().map(|user| UserFacts { id: user.into(), groups: Vec::new() }),
            parent: task.parent.as_deref().map(|parent| Arc::new(self.facts(parent))),
            assurance: task.assurance,
            may_read: task.may_read.clone(),
            may_connect: task.may_connect.clone(),
            touched: task.touched.clone(),
            expires_at: task.expires_at.as_millisecond(),
        }
    }
}

/// An intent, the one above it, and so on.
fn intent(path: &[String]) -> IntentFacts {
    let (id, above) = path.split_first().expect("an intent");
    let parents = if above.is_empty() { Vec::new() } else { vec![intent(above)] };
    IntentFacts { id: (**id).into(), parents }
}

impl Case {
    fn class(&self, policies: &Policies) -> Class {
        match (&self.read, &self.connect, &self.listen, &self.connect_unix, &self.facility) {
            (None, None, None, Some(labels), None) => policies.unix_class(&Arc::new(labels.iter().cloned().collect())),
            (None, None, None, None, Some(labels)) => {
                policies.facility_class(&Arc::new(labels.iter().cloned().collect()))
            }
            (Some(labels), None, None, None, None) => {
                policies.secret_class(&Arc::new(labels.iter().cloned().collect()))
            }
            (None, Some(connect), None, None, None) => policies.endpoint_class(&connect.endpoint()),
            (None, None, Some(listen), None, None) => policies.listen_class(&listen.endpoint()),
            _ => panic!("`{}` asks for one of `read`, `connect`, `listen`, `connectUnix` and `use`", self.name),
        }
    }
}

impl Connect {
    fn endpoint(&self) -> Endpoint {
        Endpoint {
            protocol: self.protocol.unwrap_or(Protocol::Tcp),
            address: self.to.ip(),
            port: self.to.port(),
            hosts: Arc::new(self.hosts.clone()),
            labels: Arc::new(self.labels.iter().cloned().collect()),
        }
    }
}

fn ids(policies: &[PolicyRef]) -> Vec<String> {
    policies.iter().map(|policy| policy.id.to_string()).collect()
}

fn answer(policies: &Policies, file: &CaseFile, case: &Case) -> Expect {
    let task = policies.prepare(&file.facts(&case.task)).unwrap();
    let decision = policies.decide(&task, &case.class(policies), case.at.as_millisecond());
    Expect {
        effect: decision.effect.as_str().to_owned(),
        reason: decision.reason.as_str().to_owned(),
        policies: ids(&decision.policies),
        hop: decision.hop,
        shadow: decision.shadow.map(|shadow| ExpectShadow {
            effect: shadow.effect.as_str().to_owned(),
            reason: shadow.reason.as_str().to_owned(),
            policies: ids(&shadow.policies),
        }),
        lifetime: match decision.lifetime {
            Lifetime::Forever => forever(),
            Lifetime::Ask => "ask".to_owned(),
            Lifetime::Until(last) => Timestamp::from_millisecond(last).unwrap().to_string(),
        },
    }
}

#[test]
fn every_case_comes_out_as_written() {
    let mut paths: Vec<_> =
        fs::read_dir(policies_directory().join("cases")).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let (mut count, mut wrong) = (0, Vec::new());
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let cases: CaseFile =
            serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let policies = cases.load(&name);
        for case in &cases.cases {
            count += 1;
            let got = answer(&policies, &cases, case);
            if got != case.expect {
                wrong.push(format!("{name}: {}\n  expected {:?}\n  got      {got:?}", case.name, case.expect));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 15, "only {count} cases were found");
    println!("{count} cases");
}
