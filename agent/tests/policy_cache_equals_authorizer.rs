//! Cache equals authorizer: an answer that is kept for as long as its lifetime says, and shared by all resources of its
//! class, is at every instant what `cedar-policy`'s plain authorizer says over all policies and all entities.
//!
//! The reference below shares no code with the policy module: it has its own entities (from JSON, each under its own
//! id, with nothing left out), its own context, no index, no classes, no lifetimes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in a test they are how it fails"
)]

mod policy_support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use agent::domain::{
    AgentFacts, Decision, Effect, Endpoint, Hosts, IntentFacts, LabelSet, Lifetime, PolicyRef, Protocol, Reason,
    TaskFacts, TaskId, UnixMillis, UserFacts,
};
use agent::policy::{Class, Policies, shipped};
use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision as Answer, Entities, EntityUid, Policy, PolicyId, PolicySet,
    Request, Schema,
};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use policy_support::{file, labels};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

const SETS: u64 = 100;
const TASKS: usize = 2;
const RESOURCES: usize = 8;
const INSTANTS: usize = 64;

const LABELS: &[&str] = &[
    "net",
    "net/internal",
    "net/external",
    "net/external/unknown",
    "net/llm",
    "net/llm/a",
    "net/llmx",
    "env",
    "env/prod",
    "env/test",
    "secret",
    "secret/ssh",
    "secret/ssh/key",
    "secret/sshd",
    "data/pii",
];
const AGENTS: &[&str] = &["a1", "a2", "a3"];
const GROUPS: &[&str] = &["g1", "g2"];
const INTENTS: &[&str] = &["all", "work", "push"];
const ZONES: &[&str] = &["UTC", "Europe/Berlin", "Europe/London", "Asia/Kathmandu"];

/// Instants that policies and questions speak of: three days around the start of Europe's summer time.
const START: &str = "2026-03-28T00:00:00Z";
const SPAN: i64 = 3 * 86_400_000;

struct Generator {
    random: StdRng,
    /// How many of a hundred policies are only audited.
    audited: u32,
}

/// What a policy is about, for what its conditions may mention.
#[derive(Clone, Copy, PartialEq)]
enum About {
    Endpoints,
    Secrets,
    Both,
}

impl Generator {
    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from.choose(&mut self.random).unwrap()
    }

    fn label(&mut self) -> String {
        format!("Label::\"{}\"", self.pick(LABELS))
    }

    fn labels(&mut self, most: usize) -> LabelSet {
        let count = self.random.random_range(0..=most);
        labels(&(0..count).map(|_| self.pick(LABELS)).collect::<Vec<_>>())
    }

    fn grant(&mut self) -> LabelSet {
        if self.chance(50) { labels(&["net", "env", "secret"]) } else { self.labels(4) }
    }

    fn principal_group(&mut self) -> String {
        match self.random.random_range(0..3) {
            0 => format!("Agent::\"{}\"", self.pick(AGENTS)),
            1 => format!("AgentGroup::\"{}\"", self.pick(GROUPS)),
            _ => format!("Intent::\"{}\"", self.pick(INTENTS)),
        }
    }

    fn instant(&mut self) -> UnixMillis {
        let start: Timestamp = START.parse().unwrap();
        // Half of them on full quarters of an hour, so that boundaries meet.
        let after = self.random.random_range(0..SPAN);
        start.as_millisecond() + if self.chance(50) { after - after % 900_000 } else { after }
    }

    fn datetime(&mut self) -> String {
        format!("datetime(\"{}\")", instant_text(self.instant()))
    }

    fn policy(&mut self, number: usize) -> String {
        let about = [About::Endpoints, About::Secrets, About::Both][self.random.random_range(0..3)];
        let mut text = format!("@id(\"p{number}\")\n");
        if self.chance(self.audited) {
            text += "@mode(\"audit\")\n";
        }
        if self.chance(10) {
            text += &format!("@expires(\"2026-03-{}\")\n", self.random.random_range(27..31));
        }
        let effect = if self.chance(60) { "permit" } else { "forbid" };
        let (action, resource) = self.scope(about);
        text += &format!("{effect} ({}, {action}, {resource})", self.principal_scope());
        for _ in 0..self.random.random_range(0..=2) {
            let clause = if self.chance(70) { "when" } else { "unless" };
            text += &format!("\n{clause} {{ {} }}", self.condition(about, 2));
        }
        text + ";\n"
    }

    fn principal_scope(&mut self) -> String {
        match self.random.random_range(0..8) {
            0 => "principal is Task".to_owned(),
            1 => format!("principal == Task::\"t{}\"", self.random.random_range(0..TASKS)),
            2 => format!("principal is Task in {}", self.principal_group()),
            3 | 4 => format!("principal in {}", self.principal_group()),
            _ => "principal".to_owned(),
        }
    }

    fn scope(&mut self, about: About) -> (String, String) {
        let label = self.label();
        let (action, kind) = match about {
            About::Endpoints => ("connect", "Endpoint"),
            About::Secrets => ("read", "Secret"),
            About::Both => ("", ""),
        };
        if about == About::Both {
            let action = self.pick(&[
                "action",
                "action in Action::\"access\"",
                "action in [Action::\"read\", Action::\"connect\"]",
            ]);
            let resource = if self.chance(50) { "resource".to_owned() } else { format!("resource in {label}") };
            return (action.to_owned(), resource);
        }
        match self.random.random_range(0..4) {
            0 => ("action".to_owned(), format!("resource is {kind}")),
            1 => ("action in Action::\"access\"".to_owned(), format!("resource is {kind} in {label}")),
            2 => (format!("action == Action::\"{action}\""), "resource".to_owned()),
            _ => (format!("action == Action::\"{action}\""), format!("resource in {label}")),
        }
    }

    fn condition(&mut self, about: About, depth: u32) -> String {
        if depth == 0 || self.chance(40) {
            return self.atom(about);
        }
        let mut below = || self.condition(about, depth - 1);
        let (a, b, c) = (below(), below(), below());
        match self.random.random_range(0..6) {
            0 | 1 => format!("({a} && {b})"),
            2 | 3 => format!("({a} || {b})"),
            4 => format!("!({a})"),
            _ => format!("(if {a} then {b} else {c})"),
        }
    }

    fn atom(&mut self, about: About) -> String {
        match self.random.random_range(0..10) {
            0..=3 => self.time_atom(),
            4..=6 if about == About::Endpoints => self.endpoint_atom(),
            _ => self.task_atom(),
        }
    }

    fn task_atom(&mut self) -> String {
        let label = self.label();
        match self.random.random_range(0..15) {
            0 => format!("principal.depth < {}", self.random.random_range(0..3)),
            1 => format!("principal.assurance >= {}", self.random.random_range(0..4)),
            2 => "principal has parent && principal.parent.assurance > 1".to_owned(),
            3 => "principal has onBehalfOf && principal.onBehalfOf in UserGroup::\"ug\"".to_owned(),
            4 => format!("principal.touched.contains({label})"),
            5 => format!("principal.mayRead.contains({label})"),
            6 => "resource in principal.mayConnect".to_owned(),
            7 => format!("{label} in principal.mayRead"),
            8 => format!("principal in {}", self.principal_group()),
            9 => format!("principal.actors.contains(Agent::\"{}\")", self.pick(AGENTS)),
            // Fails for every task but the root.
            10 => "principal.depth + 9223372036854775807 > 0".to_owned(),
            11 => "principal.assurance * 4611686018427387904 > 5".to_owned(),
            12 => "principal.agent has owner && principal.agent.owner like \"*team\"".to_owned(),
            13 => format!("principal.mayRead.containsAny([{label}, {}])", self.label()),
            _ => format!("resource in [{label}, {}]", self.label()),
        }
    }

    fn endpoint_atom(&mut self) -> String {
        let atoms = [
            "resource.ip.isInRange(ip(\"10.0.0.0/8\"))",
            "resource.ip.isLoopback()",
            "resource.ip.isIpv6()",
            "resource.port == 443",
            "resource.port < 1024",
            "resource.port * 4611686018427387904 > 0",
            "resource.proto == \"udp\"",
            "resource.hosts.isEmpty()",
            "resource.hosts.contains(\"a.example.com\")",
            "[80, 443].contains(resource.port)",
        ];
        self.pick(&atoms).to_owned()
    }

    fn time_atom(&mut self) -> String {
        let compare = self.pick(&["<", "<=", ">", ">=", "==", "!="]);
        let order = self.pick(&["<", "<=", ">", ">="]);
        let (instant, other) = (self.datetime(), self.datetime());
        let of_day = format!("duration(\"{}m\")", self.random.random_range(0..96) * 15);
        match self.random.random_range(0..36) {
            0 | 1 => format!("context.env.now {compare} {instant}"),
            2 => format!("{instant} {compare} context.env.now"),
            3 => format!("context.env.now {order} principal.expiresAt"),
            4 => format!("principal.expiresAt.offset(duration(\"-90m\")) {order} context.env.now"),
            5 | 6 | 14..=16 => format!("context.env.localTime {compare} {of_day}"),
            7 => format!("{of_day} {order} context.env.localTime"),
            8 | 17 | 18 => format!("context.env.weekday {order} {}", self.random.random_range(1..8)),
            9 => "[6, 7].contains(context.env.weekday)".to_owned(),
            10 => format!("context.env.now {order} (if principal.depth > 0 then {instant} else {other})"),
            // Fails whenever it is evaluated.
            11 => "context.env.now < principal.expiresAt.offset(duration(\"9223372036854775807ms\"))".to_owned(),
            12 => "context.env.now.toTime() < duration(\"12h\")".to_owned(),
            13 => format!("context.env.now.durationSince({instant}) {order} duration(\"1h\")"),
            _ => format!("context.env.now {order} {instant}"),
        }
    }

    fn task(&mut self, id: &str, depth: usize) -> TaskFacts {
        let intent = |id: &str, parents| IntentFacts { id: id.into(), parents };
        let work = intent("work", vec![intent("all", Vec::new())]);
        TaskFacts {
            id: TaskId::from_text(id),
            agent: self.agent(),
            intent: if self.chance(50) { intent("push", vec![work]) } else { work },
            goal: None,
            on_behalf_of: self.chance(60).then(|| UserFacts { id: "u".into(), groups: vec!["ug".into()] }),
            parent: (depth > 0).then(|| Arc::new(self.task(&format!("{id}-above"), depth - 1))),
            assurance: self.random.random_range(0..4),
            may_read: self.grant(),
            may_connect: self.grant(),
            touched: self.labels(3),
            expires_at: self.instant(),
        }
    }

    /// An agent's facts follow from its id: it is one entity wherever it turns up.
    fn agent(&mut self) -> AgentFacts {
        match self.pick(AGENTS) {
            "a1" => AgentFacts { id: "a1".into(), groups: vec!["g1".into()], owner: Some("x team".into()) },
            "a2" => AgentFacts { id: "a2".into(), groups: vec!["g1".into(), "g2".into()], owner: Some("y".into()) },
            other => AgentFacts { id: other.into(), groups: Vec::new(), owner: None },
        }
    }

    fn resource(&mut self) -> Resource {
        // Few labels and addresses, so that several resources fall into one class.
        let mut of = self.labels(1);
        of.insert(["net/external/unknown", "net/llm/a", "env/prod"][self.random.random_range(0..3)].parse().unwrap());
        if self.chance(30) {
            return Resource::Secret(Arc::new(of));
        }
        let address = self.pick(&["10.0.0.1", "127.0.0.1", "192.0.2.7", "2001:db8::1"]).parse().unwrap();
        Resource::Endpoint(Endpoint {
            protocol: if self.chance(50) { Protocol::Tcp } else { Protocol::Udp },
            address,
            port: [80, 443, 8080][self.random.random_range(0..3)],
            hosts: Arc::new(self.hosts()),
            labels: Arc::new(of),
        })
    }

    fn hosts(&mut self) -> Hosts {
        let known = ["a.example.com", "b.example.com", "example.org"].map(Arc::from);
        known.into_iter().filter(|_| self.chance(25)).collect()
    }

    /// Ascending, with the milliseconds around everything that might matter.
    fn instants(&mut self, text: &str, zone: &TimeZone) -> Vec<UnixMillis> {
        let mut edges: Vec<UnixMillis> =
            text.split('"').filter_map(|part| part.parse::<Timestamp>().ok()).map(|t| t.as_millisecond()).collect();
        let start: Timestamp = START.parse().unwrap();
        let last = start.as_millisecond() + SPAN;
        for day in 0..4 {
            let date = start.to_zoned(zone.clone()).date().checked_add(jiff::Span::new().days(day)).unwrap();
            edges.push(date.to_zoned(zone.clone()).unwrap().timestamp().as_millisecond());
        }
        // The hours around where the zone's clocks are set forward: what lives too long there is caught within the next.
        for change in zone.following(start).take_while(|change| change.timestamp().as_millisecond() < last).take(1) {
            let quarters = -6..=6;
            edges.extend(quarters.map(|quarter| change.timestamp().as_millisecond() + quarter * 900_000));
        }
        let mut instants: Vec<UnixMillis> = (0..INSTANTS)
            .map(|number| match number % 2 {
                0 => edges.choose(&mut self.random).unwrap() + self.random.random_range(-1..=1),
                _ => self.instant() + self.random.random_range(-1..=1),
            })
            .collect();
        instants.sort_unstable();
        instants
    }
}

enum Resource {
    Secret(Arc<LabelSet>),
    Endpoint(Endpoint),
}

impl Resource {
    fn class(&self, policies: &Policies) -> Class {
        match self {
            Self::Secret(labels) => policies.secret_class(labels),
            Self::Endpoint(endpoint) => policies.endpoint_class(endpoint),
        }
    }

    fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::Secret(_) => ("Secret", "read"),
            Self::Endpoint(_) => ("Endpoint", "connect"),
        }
    }

    fn labels(&self) -> &LabelSet {
        match self {
            Self::Secret(labels) => labels,
            Self::Endpoint(endpoint) => &endpoint.labels,
        }
    }

    fn attributes(&self) -> Value {
        let Self::Endpoint(endpoint) = self else { return json!({}) };
        json!({
            "ip": { "__extn": { "fn": "ip", "arg": endpoint.address.to_string() } },
            "port": endpoint.port,
            "proto": endpoint.protocol.as_str(),
            "hosts": endpoint.hosts.iter().map(|host| &**host).collect::<Vec<&str>>(),
        })
    }
}

fn instant_text(at: UnixMillis) -> String {
    Timestamp::from_millisecond(at).unwrap().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// The plain authorizer over everything.
struct Reference {
    authorizer: Authorizer,
    schema: Schema,
    zone: TimeZone,
    policies: Vec<Policy>,
    store: Entities,
    /// Sets by which permits have expired and whether audited policies count.
    sets: HashMap<(Vec<bool>, bool), PolicySet>,
}

/// What can be compared of a decision.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    effect: Effect,
    reason: Reason,
    policies: BTreeSet<String>,
}

impl Outcome {
    fn new(effect: Effect, reason: Reason, policies: &[PolicyRef]) -> Self {
        Self { effect, reason, policies: policies.iter().map(|policy| policy.id.to_string()).collect() }
    }
}

impl Reference {
    fn new(texts: &[String], zone: TimeZone, tasks: &[TaskFacts], resources: &[Resource]) -> Self {
        let schema_text = include_str!("../../policies/schema.cedarschema");
        let schema = Schema::from_cedarschema_str(schema_text).unwrap().0;
        let store = Entities::from_json_value(entities(tasks, resources), Some(&schema)).unwrap();
        let mut policies = Vec::new();
        for text in texts {
            let set: PolicySet = text.parse().unwrap();
            policies.extend(set.policies().map(|p| p.new_id(PolicyId::new(p.annotation("id").unwrap()))));
        }
        Self { authorizer: Authorizer::new(), schema, zone, policies, store, sets: HashMap::new() }
    }

    fn has_audited(&self) -> bool {
        self.policies.iter().any(|policy| policy.annotation("mode") == Some("audit"))
    }

    fn context(&self, at: UnixMillis) -> Context {
        let local = Timestamp::from_millisecond(at).unwrap().to_zoned(self.zone.clone());
        let local_time = local.strftime("%Hh%Mm%Ss").to_string() + &format!("{}ms", local.millisecond());
        let extension = |function: &str, text: String| json!({ "__extn": { "fn": function, "arg": text } });
        let environment = json!({
            "now": extension("datetime", instant_text(at)),
            "localTime": extension("duration", local_time),
            "weekday": local.strftime("%u").to_string().parse::<i64>().unwrap(),
        });
        let action = uid("Action", "read");
        Context::from_json_value(json!({ "env": environment }), Some((&self.schema, &action))).unwrap()
    }

    fn expired(&self, at: UnixMillis) -> Vec<bool> {
        let today = Timestamp::from_millisecond(at).unwrap().to_zoned(self.zone.clone()).date();
        let is_over = |day: &str| today > day.parse::<Date>().unwrap();
        let permits = |policy: &Policy| policy.effect() == cedar_policy::Effect::Permit;
        self.policies.iter().map(|p| permits(p) && p.annotation("expires").is_some_and(is_over)).collect()
    }

    /// The answer for a chain, and the hop it comes from.
    fn ask(
        &mut self,
        task: &TaskFacts,
        resource: (&Resource, usize),
        context: &Context,
        expired: &[bool],
        audited: bool,
    ) -> (Outcome, usize) {
        let mut first = None;
        for (number, hop) in task.chain().enumerate() {
            let outcome = self.ask_hop(hop, resource, context, expired, audited);
            if outcome.effect == Effect::Deny {
                return (outcome, number);
            }
            first.get_or_insert(outcome);
        }
        (first.unwrap(), 0)
    }

    fn ask_hop(
        &mut self,
        hop: &TaskFacts,
        (resource, number): (&Resource, usize),
        context: &Context,
        expired: &[bool],
        audited: bool,
    ) -> Outcome {
        let (kind, action) = resource.kind();
        let request = Request::new(
            uid("Task", hop.id.as_str()),
            uid("Action", action),
            uid(kind, &number.to_string()),
            context.clone(),
            None,
        )
        .unwrap();
        let policies = &self.policies;
        let set = self.sets.entry((expired.to_vec(), audited)).or_insert_with(|| {
            let counts = |policy: &Policy| audited || policy.annotation("mode") != Some("audit");
            let in_force = policies.iter().zip(expired).filter(|(policy, expired)| !**expired && counts(policy));
            PolicySet::from_policies(in_force.map(|(policy, _)| policy.clone())).unwrap()
        });
        let response = self.authorizer.is_authorized(&request, set, &self.store);
        let is_forbid = |id: &PolicyId| set.policy(id).unwrap().effect() == cedar_policy::Effect::Forbid;
        let failed: Vec<PolicyId> = response
            .diagnostics()
            .errors()
            .map(|AuthorizationError::PolicyEvaluationError(error)| error.policy_id().clone())
            .collect();
        let failed_forbids: Vec<PolicyId> = failed.iter().filter(|id| is_forbid(id)).cloned().collect();
        let determining: Vec<PolicyId> = response.diagnostics().reason().cloned().collect();
        let (effect, reason, ids) = match response.decision() {
            Answer::Deny if !determining.is_empty() => (Effect::Deny, Reason::Policy, determining),
            _ if !failed_forbids.is_empty() => (Effect::Deny, Reason::Error, failed_forbids),
            Answer::Allow => (Effect::Allow, Reason::Policy, determining),
            Answer::Deny if !failed.is_empty() => (Effect::Deny, Reason::Error, failed),
            Answer::Deny => (Effect::Deny, Reason::NoPermit, Vec::new()),
        };
        Outcome { effect, reason, policies: ids.iter().map(ToString::to_string).collect() }
    }
}

fn uid(kind: &str, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.parse().unwrap(), cedar_policy::EntityId::new(id))
}

fn entities(tasks: &[TaskFacts], resources: &[Resource]) -> Value {
    let mut all: BTreeMap<String, Value> = BTreeMap::new();
    let mut add = |kind: &str, id: &str, attributes: Value, parents: Vec<Value>| {
        let entity = json!({ "uid": name(kind, id), "attrs": attributes, "parents": parents });
        all.insert(format!("{kind} {id}"), entity);
    };
    for label in LABELS.iter().copied().chain(["data"]) {
        let parent = label.rsplit_once('/').map(|(parent, _)| name("Label", parent));
        add("Label", label, json!({}), parent.into_iter().collect());
    }
    add("Agent", "a1", json!({ "owner": "x team" }), vec![name("AgentGroup", "g1")]);
    add("Agent", "a2", json!({ "owner": "y" }), vec![name("AgentGroup", "g1"), name("AgentGroup", "g2")]);
    add("Agent", "a3", json!({}), vec![]);
    add("Intent", "all", json!({}), vec![]);
    add("Intent", "work", json!({}), vec![name("Intent", "all")]);
    add("Intent", "push", json!({}), vec![name("Intent", "work")]);
    add("User", "u", json!({}), vec![name("UserGroup", "ug")]);
    for task in tasks.iter().flat_map(TaskFacts::chain) {
        let parents = vec![name("Agent", &task.agent.id), name("Intent", &task.intent.id)];
        add("Task", task.id.as_str(), task_attributes(task), parents);
    }
    for (number, resource) in resources.iter().enumerate() {
        let parents = resource.labels().iter().map(|label| name("Label", label.as_str())).collect();
        add(resource.kind().0, &number.to_string(), resource.attributes(), parents);
    }
    all.into_values().collect()
}

fn name(kind: &str, id: &str) -> Value {
    json!({ "type": kind, "id": id })
}

fn reference(kind: &str, id: &str) -> Value {
    json!({ "__entity": name(kind, id) })
}

fn task_attributes(task: &TaskFacts) -> Value {
    let set = |labels: &LabelSet| labels.iter().map(|label| reference("Label", label.as_str())).collect::<Value>();
    // Touching a label touches those above it.
    let touched: BTreeSet<String> = task
        .touched
        .iter()
        .flat_map(|label| {
            label
                .as_str()
                .match_indices('/')
                .map(|(end, _)| label.as_str()[..end].to_owned())
                .chain([label.to_string()])
        })
        .collect();
    let mut attributes = json!({
        "agent": reference("Agent", &task.agent.id),
        "intent": reference("Intent", &task.intent.id),
        "depth": task.depth(),
        "actors": task.chain().map(|hop| reference("Agent", &hop.agent.id)).collect::<Value>(),
        "assurance": task.assurance,
        "mayRead": set(&task.may_read),
        "mayConnect": set(&task.may_connect),
        "mayExec": [],
        "touched": touched.iter().map(|label| reference("Label", label)).collect::<Value>(),
        "expiresAt": { "__extn": { "fn": "datetime", "arg": instant_text(task.expires_at) } },
    });
    if task.on_behalf_of.is_some() {
        attributes["onBehalfOf"] = reference("User", "u");
    }
    if let Some(parent) = &task.parent {
        attributes["parent"] = reference("Task", parent.id.as_str());
    }
    attributes
}

#[derive(Debug, Default)]
struct Tally {
    comparisons: u64,
    from_cache: u64,
    of_another_resource: u64,
    allowed: u64,
    failed: u64,
    shadowed: u64,
    up_the_chain: u64,
    forever: u64,
    until: u64,
    ask: u64,
}

impl Tally {
    fn count(&mut self, decision: &Decision) {
        self.comparisons += 1;
        self.allowed += u64::from(decision.effect == Effect::Allow);
        self.failed += u64::from(decision.reason == Reason::Error);
        self.shadowed += u64::from(decision.shadow.is_some());
        self.up_the_chain += u64::from(decision.hop > 0);
        match decision.lifetime {
            Lifetime::Forever => self.forever += 1,
            Lifetime::Until(_) => self.until += 1,
            Lifetime::Ask => self.ask += 1,
        }
    }
}

fn holds(decision: &Decision, at: UnixMillis) -> bool {
    match decision.lifetime {
        Lifetime::Forever => true,
        Lifetime::Until(last) => at <= last,
        Lifetime::Ask => false,
    }
}

fn compare_set(seed: u64, tally: &mut Tally) {
    let audited = if seed.is_multiple_of(3) { 25 } else { 0 };
    let mut generator = Generator { random: StdRng::seed_from_u64(seed), audited };
    let zone = TimeZone::get(generator.pick(ZONES)).unwrap();
    let site: String = (0..generator.random.random_range(3..8)).map(|number| generator.policy(number)).collect();
    // Under the baseline most is denied, so every other set is without.
    let (schema, baseline) = (shipped().remove(0), shipped().remove(1));
    let built_in = if seed.is_multiple_of(2) { vec![schema, baseline.clone()] } else { vec![schema] };
    let policies = Policies::load(&built_in, &[file("site.cedar", &site)], zone.clone())
        .unwrap_or_else(|errors| panic!("seed {seed}: {errors}"));
    let tasks: Vec<TaskFacts> = (0..TASKS)
        .map(|number| {
            let depth = [0, 0, 1, 2][generator.random.random_range(0..4)];
            generator.task(&format!("t{number}"), depth)
        })
        .collect();
    let resources: Vec<Resource> = (0..RESOURCES).map(|_| generator.resource()).collect();
    let texts = if built_in.len() == 2 { vec![baseline.text, site.clone()] } else { vec![site.clone()] };
    let mut reference = Reference::new(&texts, zone.clone(), &tasks, &resources);
    let shadows = reference.has_audited();
    let prepared: Vec<_> = tasks.iter().map(|task| policies.prepare(task).unwrap()).collect();
    let classes: Vec<Class> = resources.iter().map(|resource| resource.class(&policies)).collect();
    let mut rows: HashMap<(usize, &Class), (Decision, usize)> = HashMap::new();
    for at in generator.instants(&site, &zone) {
        let (context, expired) = (reference.context(at), reference.expired(at));
        for (t, task) in tasks.iter().enumerate() {
            for (r, resource) in resources.iter().enumerate() {
                let kept = rows.get(&(t, &classes[r])).filter(|(decision, _)| holds(decision, at));
                tally.from_cache += u64::from(kept.is_some());
                tally.of_another_resource += u64::from(kept.is_some_and(|(_, made_for)| *made_for != r));
                if kept.is_none() {
                    rows.insert((t, &classes[r]), (policies.decide(&prepared[t], &classes[r], at), r));
                }
                let decision = &rows[&(t, &classes[r])].0;
                let (plain, hop) = reference.ask(task, (resource, r), &context, &expired, false);
                let shadow = shadows.then(|| reference.ask(task, (resource, r), &context, &expired, true).0);
                let expected = (plain.clone(), hop, shadow.filter(|shadow| shadow.effect != plain.effect));
                let got = (
                    Outcome::new(decision.effect, decision.reason, &decision.policies),
                    decision.hop,
                    decision.shadow.as_ref().map(|s| Outcome::new(s.effect, s.reason, &s.policies)),
                );
                assert_eq!(got, expected, "seed {seed}, t{t}, resource {r} at {}:\n{site}", instant_text(at));
                tally.count(decision);
            }
        }
    }
}

#[test]
fn what_is_cached_is_what_the_authorizer_says() {
    let workers = 2;
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || {
                    let mut tally = Tally::default();
                    (worker..SETS).step_by(workers as usize).for_each(|seed| compare_set(seed, &mut tally));
                    tally
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let comparisons = sum(|tally| tally.comparisons);
    println!("{comparisons} comparisons over {SETS} sets of policies: {tallies:#?}");
    assert!(comparisons >= 100_000);
    // A test that never meets a case proves nothing about it.
    for of in [
        (|tally| tally.allowed) as fn(&Tally) -> u64,
        |tally| tally.failed,
        |tally| tally.shadowed,
        |tally| tally.up_the_chain,
        |tally| tally.forever,
        |tally| tally.until,
        |tally| tally.ask,
        |tally| tally.of_another_resource,
    ] {
        assert!(sum(of) >= comparisons / 100, "{tallies:#?}");
    }
    assert!(sum(|tally| tally.from_cache) >= comparisons / 2, "{tallies:#?}");
}
