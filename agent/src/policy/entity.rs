//! Domain facts as Cedar entities.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::LazyLock;

use cedar_policy::{Context, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression};

use super::class::{Class, Kind};
use super::time::datetime;
use crate::domain::{AgentFacts, Hosts, IntentFacts, Label, LabelSet, Protocol, TaskFacts, UserFacts};

/// Why facts are no entities.
#[derive(Debug, thiserror::Error)]
#[error("entity `{uid}` cannot be made")]
pub(super) struct BadEntity {
    uid: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

type Attributes = HashMap<String, RestrictedExpression>;

macro_rules! types {
    ($($function:ident $name:literal)+) => {
        $(
            fn $function(id: &str) -> EntityUid {
                static TYPE: LazyLock<EntityTypeName> =
                    LazyLock::new(|| $name.parse().expect("the name of an entity type"));
                EntityUid::from_type_name_and_id(TYPE.clone(), EntityId::new(id))
            }
        )+
    };
}

types! {
    action_uid "Action"
    agent_uid "Agent"
    agent_group_uid "AgentGroup"
    endpoint_uid "Endpoint"
    facility_uid "Facility"
    intent_uid "Intent"
    label_text_uid "Label"
    secret_uid "Secret"
    task_uid "Task"
    unix_uid "UnixSocket"
    user_uid "User"
    user_group_uid "UserGroup"
}

/// The action that a resource of this kind is asked for.
pub(super) fn action(kind: &Kind) -> EntityUid {
    action_uid(match kind {
        Kind::Secret => "read",
        Kind::Endpoint { .. } => "connect",
        Kind::Listen { .. } => "listen",
        Kind::Unix => "connect_unix",
        Kind::Facility => "use",
    })
}

/// The actions that are decided over and over.
pub(super) const ACTIONS: [&str; 5] = ["read", "connect", "listen", "connect_unix", "use"];

/// [`ACTIONS`] as Cedar knows them.
pub(super) fn actions() -> [EntityUid; ACTIONS.len()] {
    ACTIONS.map(action_uid)
}

/// The principal that a task is.
pub(super) fn task(task: &TaskFacts) -> EntityUid {
    task_uid(task.id.as_str())
}

/// Labels and all above them.
pub(super) fn closed(labels: &LabelSet) -> HashSet<EntityUid> {
    labels.iter().flat_map(|label| label.ancestors().chain([label.clone()])).map(|label| label_uid(&label)).collect()
}

fn label_uid(label: &Label) -> EntityUid {
    label_text_uid(label.as_str())
}

/// A label as an entity, with all labels above it as parents.
pub(super) fn label(text: &str) -> Entity {
    let above = text.rmatch_indices('/').filter_map(|(end, _)| text.get(..end)).map(label_text_uid).collect();
    Entity::new_no_attrs(label_text_uid(text), above)
}

/// The one entity of a class. Its id is the same for all: policies cannot name it.
///
/// # Errors
/// An address that Cedar's `ipaddr` does not take.
pub(super) fn resource(class: &Class, parents: HashSet<EntityUid>) -> Result<Entity, BadEntity> {
    match &class.kind {
        Kind::Secret => Ok(Entity::new_no_attrs(secret_uid("any"), parents)),
        Kind::Endpoint { ip, port, proto, hosts } => {
            let hosts = hosts.as_ref().map(|hosts| host_set(hosts));
            entity(endpoint_uid("any"), endpoint(*ip, *port, *proto).chain(hosts), parents)
        }
        Kind::Listen { ip, port, proto } => {
            // No task knows its own host by a name.
            let hosts = [host_set(&Hosts::new())];
            entity(endpoint_uid("any"), endpoint(*ip, *port, *proto).chain(hosts), parents)
        }
        Kind::Unix => Ok(Entity::new_no_attrs(unix_uid("any"), parents)),
        Kind::Facility => Ok(Entity::new_no_attrs(facility_uid("any"), parents)),
    }
}

fn endpoint(
    ip: Option<IpAddr>,
    port: Option<u16>,
    proto: Option<Protocol>,
) -> impl Iterator<Item = (&'static str, RestrictedExpression)> {
    let attributes = [
        ip.map(|ip| ("ip", address(ip))),
        port.map(|port| ("port", RestrictedExpression::new_long(port.into()))),
        proto.map(|proto| ("proto", text(proto.as_str()))),
    ];
    attributes.into_iter().flatten()
}

fn host_set(hosts: &Hosts) -> (&'static str, RestrictedExpression) {
    ("hosts", RestrictedExpression::new_set(hosts.iter().map(|host| text(host))))
}

/// The entities of a task and of the tasks above it. Where two tasks know an agent or an intent differently, as after a
/// change of the registry, the younger task's knowledge counts.
///
/// # Errors
/// See [`BadEntity`]; the facts of a task that started make entities.
pub(super) fn chain(task: &TaskFacts) -> Result<Vec<Entity>, BadEntity> {
    let mut entities: HashMap<EntityUid, Entity> = HashMap::new();
    for hop in task.chain() {
        let made = [Ok(task_entity(hop)?), agent_entity(&hop.agent)];
        let intents = intent_entities(&hop.intent).into_iter().map(Ok);
        let user = hop.on_behalf_of.iter().map(|user| Ok(user_entity(user)));
        for entity in made.into_iter().chain(intents).chain(user) {
            let entity = entity?;
            entities.entry(entity.uid()).or_insert(entity);
        }
    }
    Ok(entities.into_values().collect())
}

fn task_entity(task: &TaskFacts) -> Result<Entity, BadEntity> {
    let depth = i64::try_from(task.depth()).unwrap_or(i64::MAX);
    let actors = task.chain().map(|hop| reference(agent_uid(&hop.agent.id)));
    let always = [
        ("agent", reference(agent_uid(&task.agent.id))),
        ("intent", reference(intent_uid(&task.intent.id))),
        ("depth", RestrictedExpression::new_long(depth)),
        ("actors", RestrictedExpression::new_set(actors)),
        ("assurance", RestrictedExpression::new_long(task.assurance.into())),
        ("mayRead", label_set(&task.may_read)),
        ("mayConnect", label_set(&task.may_connect)),
        ("mayExec", RestrictedExpression::new_set([])),
        ("touched", RestrictedExpression::new_set(closed(&task.touched).into_iter().map(reference))),
        ("expiresAt", datetime(task.expires_at)),
    ];
    let perhaps = [
        task.on_behalf_of.as_ref().map(|user| ("onBehalfOf", reference(user_uid(&user.id)))),
        task.parent.as_ref().map(|parent| ("parent", reference(self::task(parent)))),
    ];
    let parents = HashSet::from([agent_uid(&task.agent.id), intent_uid(&task.intent.id)]);
    entity(self::task(task), always.into_iter().chain(perhaps.into_iter().flatten()), parents)
}

fn agent_entity(agent: &AgentFacts) -> Result<Entity, BadEntity> {
    let owner = agent.owner.as_deref().map(|owner| ("owner", text(owner)));
    entity(agent_uid(&agent.id), owner, agent.groups.iter().map(|group| agent_group_uid(group)).collect())
}

fn intent_entities(intent: &IntentFacts) -> Vec<Entity> {
    let parents = intent.parents.iter().map(|parent| intent_uid(&parent.id)).collect();
    let mut entities = vec![Entity::new_no_attrs(intent_uid(&intent.id), parents)];
    entities.extend(intent.parents.iter().flat_map(intent_entities));
    entities
}

fn user_entity(user: &UserFacts) -> Entity {
    Entity::new_no_attrs(user_uid(&user.id), user.groups.iter().map(|group| user_group_uid(group)).collect())
}

/// A request of nobody for nothing, under which constants are evaluated.
pub(super) fn nobodys_request() -> Option<Request> {
    Request::new(task_uid(""), action_uid("read"), secret_uid("any"), Context::empty(), None).ok()
}

fn entity(
    uid: EntityUid,
    attributes: impl IntoIterator<Item = (&'static str, RestrictedExpression)>,
    parents: HashSet<EntityUid>,
) -> Result<Entity, BadEntity> {
    let attributes: Attributes = attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Entity::new(uid.clone(), attributes, parents)
        .map_err(|source| BadEntity { uid: uid.to_string(), source: Box::new(source) })
}

fn label_set(labels: &LabelSet) -> RestrictedExpression {
    RestrictedExpression::new_set(labels.iter().map(label_uid).map(reference))
}

fn reference(uid: EntityUid) -> RestrictedExpression {
    RestrictedExpression::new_entity_uid(uid)
}

fn text(text: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(text.to_owned())
}

fn address(ip: IpAddr) -> RestrictedExpression {
    RestrictedExpression::new_ip(ip.to_string())
}
