//! Classes: as few as policies allow, and never one for two resources that they tell apart.

#![allow(clippy::panic, clippy::unwrap_used, reason = "in a test they are how it fails")]

mod policy_support;

use std::sync::Arc;

use agent::domain::{Effect, Endpoint, Lifetime, Protocol};
use agent::policy::{Class, Policies, Prepared};
use policy_support::{at, endpoint, labels, task, with};

fn permit(condition: &str) -> Policies {
    with(&format!("@id(\"a\") permit (principal, action == Action::\"connect\", resource) when {{ {condition} }};"))
}

/// Endpoints that differ from the first in one thing each, by that thing's name.
fn variants() -> [(&'static str, Endpoint); 5] {
    let plain = endpoint("192.0.2.1:443", &["net/external"]);
    [
        ("", plain.clone()),
        ("ip", Endpoint { address: "192.0.2.2".parse().unwrap(), ..plain.clone() }),
        ("port", Endpoint { port: 80, ..plain.clone() }),
        ("proto", Endpoint { protocol: Protocol::Udp, ..plain.clone() }),
        ("hosts", Endpoint { hosts: Arc::new(["example.com".into()].into()), ..plain }),
    ]
}

#[test]
fn only_attributes_that_policies_read_make_classes() {
    for (condition, read) in [
        ("true", &[][..]),
        ("resource in Label::\"net\"", &[]),
        ("resource.ip.isLoopback()", &["ip"]),
        ("resource.port == 443 || resource.proto == \"tcp\"", &["port", "proto"]),
        ("resource.hosts.isEmpty()", &["hosts"]),
        ("resource.hosts.contains(\"example.com\")", &["hosts"]),
        ("(if true then resource else resource).port == 1", &["port"]),
        ("context.env.localTime < (if resource.port == 80 then duration(\"1h\") else duration(\"2h\"))", &["port"]),
    ] {
        let policies = permit(condition);
        let [(_, plain), others @ ..] = variants();
        let plain = policies.endpoint_class(&plain);
        for (what, other) in others {
            assert_eq!(policies.endpoint_class(&other) != plain, read.contains(&what), "{condition}: {what}");
        }
    }
}

#[test]
fn labels_always_make_classes() {
    let policies = permit("true");
    let class = |label| policies.endpoint_class(&endpoint("192.0.2.1:443", &[label]));
    assert_ne!(class("net/internal"), class("net/external"));
    let secret = |label| policies.secret_class(&labels(&[label]).into());
    assert_ne!(secret("secret/a"), secret("secret/b"));
    assert_eq!(secret("secret/a"), secret("secret/a"));
}

#[test]
fn what_a_bound_depends_on_bounds_the_answer() {
    let policies =
        permit("context.env.localTime < (if resource.port == 80 then duration(\"1h\") else duration(\"2h\"))");
    let mut facts = task("t", "a");
    facts.may_connect = labels(&["net"]);
    let prepared = policies.prepare(&facts).unwrap();
    let ask = |port, now| {
        let class = policies.endpoint_class(&Endpoint { port, ..endpoint("192.0.2.1:1", &["net"]) });
        let decision = policies.decide(&prepared, &class, at(now));
        (decision.effect, decision.lifetime)
    };
    let until = |text| Lifetime::Until(at(text));
    assert_eq!(ask(80, "2026-11-23T00:30:00Z"), (Effect::Allow, until("2026-11-23T00:59:59.999Z")));
    assert_eq!(ask(81, "2026-11-23T00:30:00Z"), (Effect::Allow, until("2026-11-23T01:59:59.999Z")));
    assert_eq!(ask(80, "2026-11-23T01:30:00Z"), (Effect::Deny, until("2026-11-23T23:59:59.999Z")));
}

#[test]
fn a_label_that_a_policy_places_is_known_wherever_it_stands() {
    let policies = permit("Label::\"net/llm/vendor\" in principal.mayConnect");
    let mut facts = task("t", "a");
    let class = policies.endpoint_class(&endpoint("192.0.2.1:443", &["net/llm"]));
    facts.may_connect = labels(&["net/llm"]);
    let answer = policies.decide(&policies.prepare(&facts).unwrap(), &class, 0);
    assert_eq!(answer.effect, Effect::Allow);
}

#[test]
fn time_in_a_shape_that_is_not_recognized_is_asked_each_time() {
    for condition in [
        "context.env.now.toTime() < duration(\"1h\")",
        "context.env.now.durationSince(principal.expiresAt) < duration(\"1h\")",
        "context.env.localTime.toHours() < 12",
        "context.env.now < context.env.now.offset(duration(\"1h\"))",
        "context has env",
        "context.env has now",
    ] {
        let policies = permit(condition);
        let prepared = policies.prepare(&task("t", "a")).unwrap();
        let class = policies.endpoint_class(&endpoint("192.0.2.1:443", &["net"]));
        assert_eq!(policies.decide(&prepared, &class, 0).lifetime, Lifetime::Ask, "{condition}");
    }
}

#[test]
fn several_threads_can_decide_with_one_set() {
    fn shared<T: Send + Sync>() {}
    shared::<Policies>();
    shared::<Prepared>();
    shared::<Class>();
}
