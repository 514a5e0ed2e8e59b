//! One line of each kind, as it must stay: readers of the records depend on it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::testing::{cut, decision, labels, over, process, started, task, time};
use super::*;
use crate::domain::{Action, Effect, Reason};

const GOLDEN: &str = include_str!("golden.jsonl");

fn repeats() -> Event {
    let mut all = decision();
    all.resource = Resource::Secret {
        path: Some("/root/.netrc".into()),
        device: 2049,
        inode: 12,
        labels: Arc::new(labels(&["secret/net"])),
    };
    all.shadow = Some(Arc::new(Shadow { effect: Effect::Allow, reason: Reason::Policy, policies: Arc::from([]) }));
    all.process.exe = None;
    all.process.cgroup = None;
    all.count = 12;
    all.action = Action::Read;
    all.repeat_of = Some(1);
    all.first_time = Some(time());
    all.last_time = Some(time());
    Event::Decision(Box::new(all))
}

fn socket() -> Event {
    let mut one = decision();
    one.resource = Resource::Socket { family: 17, socket_type: 3, protocol: 768 };
    one.policies = Arc::from([]);
    Event::Decision(Box::new(one))
}

fn coverage() -> Coverage {
    let path = |path: &str, state: &str| PathCoverage { path: path.into(), state: state.into(), detail: None };
    Coverage { tier: Tier::Reduced, paths: vec![path("tcp_connect", "enforced"), path("mmap", "none")], generation: 3 }
}

fn process_event(remaining: Option<i64>) -> Box<ProcessEvent> {
    Box::new(ProcessEvent { task: task(), process: process(), remaining })
}

fn events() -> Vec<Event> {
    let rejected = Rejected { error: "policies/a.cedar:3: unexpected `}`".into(), generation: 3 };
    vec![
        Event::Decision(Box::new(decision())),
        repeats(),
        socket(),
        Event::TaskStarted(Box::new(started())),
        Event::TaskEnded(over()),
        Event::TaskRevoked(over()),
        Event::TaskExpired(over()),
        Event::ProcessForked(process_event(None)),
        Event::ProcessExec(process_event(None)),
        Event::ProcessExit(process_event(Some(0))),
        Event::Loss(Loss { cause: Cause::Kernel(agent_common::Counter::RecordLostDeny), count: 4 }),
        Event::DaemonStarted(DaemonStarted { version: "0.1.0".into(), pid: 1, kernel: "6.12.1".into() }),
        Event::DaemonReady(coverage()),
        Event::CoverageChanged(CoverageChanged {
            from: Tier::Full,
            to: Tier::Reduced,
            paths: vec![PathChange {
                path: "secret open".into(),
                from: "enforced".into(),
                to: "not_covered".into(),
                detail: "the canary was not refused".into(),
            }],
        }),
        Event::DaemonStopping(DaemonStopping { why: "SIGTERM".into(), stays_enforced: true }),
        Event::PolicyLoaded(PolicyLoaded { generation: 3, policies: 12, audited: 1 }),
        Event::PolicyRejected(rejected.clone()),
        Event::CatalogueChanged(CatalogueChanged { secrets: 40, directories: 3 }),
        Event::CatalogueRejected(rejected),
        Event::Detached(Detached { killed: 3, left_running: 0 }),
        Event::FlowCut(Box::new(cut())),
        Event::DaemonAdopted(DaemonAdopted {
            away_ms: 1500,
            tasks: 2,
            revoked: 1,
            processes: 7,
            decisions: [("deny daemon_lost".to_owned(), 4)].into(),
        }),
    ]
}

fn records() -> Vec<Record> {
    let numbered = (1..).zip(events());
    numbered.map(|(sequence, event)| Record { time: words::to_micros(time()), sequence, event }).collect()
}

#[test]
fn every_kind_is_written_as_before() {
    let lines: Vec<String> = records().iter().map(|record| serde_json::to_string(record).unwrap()).collect();
    let golden: Vec<&str> = GOLDEN.lines().collect();
    assert_eq!(lines, golden, "the schema changed; if that is meant, golden.jsonl must read:\n{}\n", lines.join("\n"));
}

#[test]
fn every_kind_is_read_back() {
    let read: Vec<Record> = GOLDEN.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (read, made) in read.iter().zip(&records()) {
        assert_eq!(serde_json::to_string(read).unwrap(), serde_json::to_string(made).unwrap());
    }
    assert_eq!(read[0], records()[0]);
}

#[test]
fn the_documented_kinds_are_those_that_exist() {
    let rows = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//! | `"));
    let documented: BTreeSet<&str> = rows
        .flat_map(|row| row.split(" | ").next().unwrap_or_default().split(", "))
        .map(|kind| kind.trim_matches('`'))
        .collect();
    let lines: Vec<serde_json::Value> = GOLDEN.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let written: BTreeSet<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(documented, written);
}

#[test]
fn unknown_fields_are_ignored_and_unknown_words_are_named() {
    let mut line: serde_json::Value = serde_json::from_str(GOLDEN.lines().next().unwrap()).unwrap();
    line["new_field"] = 1.into();
    line["process"]["new_field"] = 1.into();
    assert_eq!(serde_json::from_value::<Record>(line.clone()).unwrap(), records()[0]);
    line["effect"] = "perhaps".into();
    let error = serde_json::from_value::<Record>(line).unwrap_err().to_string();
    assert!(error.contains("`perhaps`"), "{error}");
}
