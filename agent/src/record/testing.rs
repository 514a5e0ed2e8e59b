//! Sample records for tests.

use std::sync::Arc;

use super::*;
use crate::domain::{Action, Ancestor, Effect, Label, LabelSet, Mode, Protocol, Reason, Source, TaskId};

pub(crate) fn time() -> Timestamp {
    "2026-01-02T03:04:05.123456789Z".parse().unwrap()
}

pub(crate) fn labels(all: &[&str]) -> LabelSet {
    all.iter().map(|label| label.parse::<Label>().unwrap()).collect()
}

pub(crate) fn task() -> Arc<TaskRef> {
    let root = TaskId::from_number(1);
    let task = TaskId::from_number(2);
    Arc::new(TaskRef {
        task: task.clone(),
        agent: "coder".into(),
        intent: "fix-build".into(),
        goal: Some("make it green".into()),
        chain: vec![root, task],
        on_behalf_of: Some("alice".into()),
    })
}

pub(crate) fn process() -> Process {
    let above = |pid: u32, comm: &str| Ancestor { pid, start: u64::from(pid), exe: None, comm: comm.into() };
    Process {
        pid: 4242,
        tid: 4243,
        start: 99_000,
        exe: Some("/usr/bin/curl".into()),
        comm: "curl".into(),
        uid: 1000,
        cgroup: Some("/user.slice".into()),
        cgroup_id: 77,
        lineage: [above(4240, "sh"), above(4200, "python")].into(),
    }
}

pub(crate) fn decision() -> Decision {
    Decision {
        task: task(),
        process: process(),
        action: Action::Connect,
        resource: Resource::Endpoint {
            address: "10.0.0.5".parse().unwrap(),
            port: 443,
            protocol: Protocol::Tcp,
            hosts: Arc::default(),
            labels: Arc::new(labels(&["net/internal"])),
            decided: None,
        },
        effect: Effect::Deny,
        reason: Reason::Policy,
        policies: [PolicyNote { id: "no-internal".into(), reason: Some("not for agents".into()), advice: None }].into(),
        hop: 0,
        shadow: None,
        generation: 3,
        source: Source::Upcall,
        latency_us: 27,
        tier: Tier::Full,
        count: 1,
        repeat_of: None,
        first_time: None,
        last_time: None,
    }
}

pub(crate) fn over() -> Box<TaskOver> {
    let why = "its last process has gone".to_owned();
    Box::new(TaskOver { task: task(), why, allowed: 5, denied: 2, would_denied: 0 })
}

pub(crate) fn started() -> TaskStarted {
    TaskStarted {
        task: task(),
        mode: Mode::Enforce,
        grant_read: labels(&["secret/git"]),
        grant_connect: labels(&["net/llm"]),
        expires_at: time(),
        socket_mark: None,
        process: Some(process()),
        argv: Some(vec!["curl".into(), "x".into()]),
    }
}

pub(crate) fn cut() -> FlowCut {
    FlowCut {
        task: task(),
        process: Some(process()),
        protocol: Protocol::Tcp,
        local: Some("10.0.0.9:40412".parse().unwrap()),
        remote: Some("10.0.0.5:443".parse().unwrap()),
        effect: Effect::Deny,
        reason: Reason::Revoked,
        policies: Arc::from([]),
        destroyed: true,
        error: None,
        bytes_acked: Some(5120),
        count: 1,
    }
}
