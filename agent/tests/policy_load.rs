//! What loading refuses, and how it says so; what it warns of; how fast it is.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "in a test they are how it fails")]

mod policy_support;

use agent::policy::{Policies, read_dir, shipped};
use jiff::tz::TimeZone;
use policy_support::{at, errors, file, policies_directory, with};

const PERMIT: &str = "permit (principal, action == Action::\"read\", resource);";

#[test]
fn what_ships_is_valid_and_permits_nothing() {
    let policies = with("");
    assert_eq!(policies.number_of_policies(), 8);
    assert!(policies.warnings(at("2026-11-23T00:00:00Z")).is_empty());
}

#[test]
fn each_example_is_valid_alone_and_all_together() {
    let examples = read_dir(&policies_directory().join("examples")).unwrap();
    assert!(examples.len() >= 5);
    for example in examples.iter().map(std::slice::from_ref).chain([&*examples]) {
        let policies = Policies::load(&shipped(), example, TimeZone::UTC).unwrap_or_else(|errors| panic!("{errors}"));
        assert!(policies.number_of_policies() > 5);
        assert_eq!(policies.warnings(at("2026-11-23T00:00:00Z")), []);
    }
}

#[test]
fn a_syntax_error_shows_file_line_and_caret() {
    let text = errors("@id(\"a\")\npermit (principal, action, resource)\nwhen { 1 < };");
    assert!(text.contains("site.cedar:3:12"), "{text}");
    assert!(text.contains("when { 1 < };"), "{text}");
    assert!(text.contains("unexpected token `}`") && text.contains('┬'), "{text}");
}

#[test]
fn a_policy_that_is_not_valid_shows_file_line_and_caret() {
    let site = file(
        "site.cedar",
        &format!(
            "@id(\"fine\")\n{PERMIT}\n@id(\"a\")\npermit (principal, action == Action::\"read\", resource)\nwhen {{ principal.assurence > 1 }};"
        ),
    );
    let errors = Policies::load(&shipped(), &[site], TimeZone::UTC).unwrap_err();
    let [problem] = errors.problems() else { panic!("{errors}") };
    assert_eq!((problem.file.as_str(), problem.line), ("site.cedar", Some(5)));
    let text = errors.to_string();
    assert!(text.contains("`assurence`") && text.contains("site.cedar:5:8"), "{text}");
    assert!(text.contains("did you mean `assurance`?") && text.contains("───"), "{text}");
}

#[test]
fn every_problem_of_every_file_is_listed_in_order() {
    let unknown = "permit (principal, action == Action::\"read\", resource) when { principal.x };";
    let site = [
        file("a.cedar", "permit"),
        file("b.cedar", &format!("@id(\"b1\") {unknown}\n{PERMIT}\n@id(\"b2\") {unknown}")),
        file("c.cedar", "@id(\"c\") @moed(\"audit\") permit (principal, action, resource);"),
    ];
    let errors = Policies::load(&shipped(), &site, TimeZone::UTC).unwrap_err();
    let places: Vec<(&str, Option<usize>)> = errors.problems().iter().map(|p| (&*p.file, p.line)).collect();
    assert_eq!(
        places,
        [("a.cedar", Some(1)), ("b.cedar", Some(1)), ("b.cedar", Some(2)), ("b.cedar", Some(3)), ("c.cedar", Some(1))]
    );
}

#[test]
fn annotations_are_a_closed_list() {
    let text = errors(&format!("@id(\"a\")\n@moed(\"audit\")\n{PERMIT}"));
    assert!(text.contains("unknown annotation `@moed`") && text.contains("did you mean `@mode`?"), "{text}");
    assert!(text.contains("site.cedar:1:1"), "{text}");
}

#[test]
fn an_id_is_required() {
    let text = errors(&format!("\n{PERMIT}"));
    assert!(text.contains("no `@id`") && text.contains("site.cedar:2:1"), "{text}");
}

#[test]
fn an_id_is_unique_across_files_and_both_places_are_named() {
    let policy = format!("// first\n@id(\"a\") {PERMIT}");
    let site = [file("a.cedar", &policy), file("b.cedar", &format!("\n{policy}"))];
    let text = Policies::load(&shipped(), &site, TimeZone::UTC).unwrap_err().to_string();
    assert!(text.contains("another policy with `@id(\"a\")`"), "{text}");
    assert!(text.contains("b.cedar:3:1") && text.contains("the first is at a.cedar:2"), "{text}");
    let text = errors(&format!("@id(\"baseline/metadata\") {PERMIT}"));
    assert!(text.contains("the first is at shipped:baseline.cedar:"), "{text}");
}

#[test]
fn templates_are_refused() {
    let text = errors("@id(\"a\") permit (principal == ?principal, action, resource);");
    assert!(text.contains("`?principal`") && text.contains("template"), "{text}");
}

#[test]
fn resources_have_no_names() {
    for policy in [
        "permit (principal, action == Action::\"read\", resource == Secret::\"any\");",
        "permit (principal, action == Action::\"connect\", resource) when { resource != Endpoint::\"any\" };",
    ] {
        let text = errors(&format!("@id(\"a\") {policy}"));
        assert!(text.contains("names the resource") && text.contains("by label"), "{text}");
    }
}

#[test]
fn the_baseline_only_forbids() {
    let mut built_in = shipped();
    built_in.push(file("shipped:more.cedar", &format!("@id(\"a\") {PERMIT}")));
    let text = Policies::load(&built_in, &[], TimeZone::UTC).unwrap_err().to_string();
    assert!(text.contains("the shipped policy `a` permits") && text.contains("shipped:more.cedar:1:1"), "{text}");
}

#[test]
fn one_schema_is_needed() {
    let errors = Policies::load(&[], &[], TimeZone::UTC).unwrap_err().to_string();
    assert!(errors.contains("0 schemas"), "{errors}");
    let broken = file("shipped:schema.cedarschema", "entity ;");
    let errors = Policies::load(&[broken], &[], TimeZone::UTC).unwrap_err().to_string();
    assert!(errors.contains("shipped:schema.cedarschema:1:8"), "{errors}");
}

#[test]
fn expired_policies_and_cedars_own_doubts_are_warnings() {
    let policies = with(
        "@id(\"over\") @expires(\"2026-11-22\") permit (principal, action == Action::\"read\", resource);
         @id(\"never\") forbid (principal, action == Action::\"read\", resource) when { principal is Agent };",
    );
    let messages = |at| policies.warnings(at).into_iter().map(|w| w.message).collect::<Vec<_>>();
    let before = messages(at("2026-11-22T23:59:59Z"));
    assert!(before.len() == 1 && before.iter().all(|message| message.contains("impossible")), "{before:?}");
    let after = messages(at("2026-11-23T00:00:00Z"));
    assert!(after.len() == 2 && after.iter().any(|message| message.contains("policy `over` has expired")), "{after:?}");
}

/// Policies as a large site would have them: by group and label, with conditions.
fn many(number: usize) -> String {
    (0..number)
        .map(|n| {
            format!(
                "@id(\"site/{n}\") @reason(\"reason {n}\")
                 {} (principal in AgentGroup::\"g{}\", action == Action::\"connect\", resource in Label::\"net/site/{n}\")
                 when {{ resource.port == {n} && principal.assurance >= 1 && !principal.touched.contains(Label::\"data/{n}\") }};\n",
                if n % 4 == 0 { "forbid" } else { "permit" },
                n % 50,
            )
        })
        .collect()
}

#[test]
fn a_thousand_policies_load() {
    let site = [file("site.cedar", &many(1000))];
    let policies = Policies::load(&shipped(), &site, TimeZone::UTC).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(policies.number_of_policies(), 1008);
}
