//! Policy: what Cedar's authorizer says about a task and a resource, and for how long.
//!
//! Nothing here approximates Cedar. A question is put to `cedar_policy::Authorizer` with the policies whose scope can
//! match (`index`), the task's entities, built once when it starts (`entity`), and one entity for the resource's class
//! (`class`). What is added to its answer: a policy that fails denies, every task of the chain must be allowed
//! (`decide`), and how long nothing that the policies read can change (`reads`, `time`).

mod annotation;
mod class;
mod decide;
mod entity;
mod index;
mod load;
mod problem;
mod reads;
mod source;
mod time;

use std::sync::Arc;

use cedar_policy::{Authorizer, Entities, Entity, EntityUid, Policy, Schema};
use jiff::tz::TimeZone;

pub use self::class::Class;
pub use self::problem::{LoadErrors, Problem};
pub use self::source::{LoadError, PolicyText, read_dir, shipped};

use self::annotation::Annotations;
use self::class::Kind;
use self::index::{ByResource, Index};
use self::reads::{Attributes, Reads};
use crate::domain::{Endpoint, LabelSet, TaskFacts, UnixMillis};

/// A checked set of policies, ready to decide with.
#[derive(Debug)]
pub struct Policies {
    /// Tells sets apart within this process.
    id: u64,
    authorizer: Authorizer,
    schema: Schema,
    zone: TimeZone,
    rules: Vec<Rule>,
    index: Index,
    attributes: Attributes,
    /// Labels that policies ask the place of.
    labels: Vec<Entity>,
    warnings: Vec<Problem>,
}

/// One policy and what was found out about it.
#[derive(Debug)]
struct Rule {
    policy: Policy,
    permits: bool,
    file: Arc<str>,
    annotations: Annotations,
    reads: Reads,
}

/// A task, ready to be decided for; made when it starts and again when its facts or the policies change.
#[derive(Debug)]
pub struct Prepared {
    policies: u64,
    store: Entities,
    /// The task itself, its parent, and so on up to the root.
    hops: Vec<Hop>,
}

#[derive(Debug)]
struct Hop {
    principal: EntityUid,
    /// The policies whose principal scope can match, for each action.
    rules: [(EntityUid, ByResource); entity::ACTIONS.len()],
}

/// Why a task's facts are no Cedar entities.
#[derive(Debug, thiserror::Error)]
#[error("task `{task}` cannot be put to the policies; end it and start it anew")]
pub struct PrepareError {
    task: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Policies {
    /// How many policies there are, the shipped ones included.
    pub fn number_of_policies(&self) -> usize {
        self.rules.len()
    }

    /// How many of them are audited only (`@mode("audit")`).
    pub fn number_of_audited(&self) -> usize {
        self.rules.iter().filter(|rule| rule.annotations.audit).count()
    }

    /// What is not wrong but deserves a look: Cedar's own warnings, and policies that have expired by `at`.
    pub fn warnings(&self, at: UnixMillis) -> Vec<Problem> {
        let expired = self.rules.iter().filter(|rule| rule.annotations.expires.is_some_and(|end| end <= at));
        self.warnings.iter().cloned().chain(expired.map(Rule::expired)).collect()
    }

    /// A task and the tasks above it as entities, checked against the schema, with the policies that can match them.
    ///
    /// # Errors
    /// Facts that are no valid entities, such as intents that lie above themselves.
    pub fn prepare(&self, task: &TaskFacts) -> Result<Prepared, PrepareError> {
        let store = self.store(task).map_err(|source| PrepareError { task: task.id.to_string(), source })?;
        let hops = task.chain().map(|hop| self.hop(entity::task(hop), &store)).collect();
        Ok(Prepared { policies: self.id, store, hops })
    }

    /// The class of an endpoint.
    pub fn endpoint_class(&self, endpoint: &Endpoint) -> Class {
        let kind = Kind::endpoint(endpoint, self.attributes);
        Class { policies: self.id, kind, labels: Arc::clone(&endpoint.labels) }
    }

    /// The class of an endpoint of this host, to listen at.
    pub fn listen_class(&self, endpoint: &Endpoint) -> Class {
        let kind = Kind::listen(endpoint, self.attributes);
        Class { policies: self.id, kind, labels: Arc::clone(&endpoint.labels) }
    }

    /// The class of a unix socket whose listener has these labels.
    pub fn unix_class(&self, labels: &Arc<LabelSet>) -> Class {
        Class { policies: self.id, kind: Kind::Unix, labels: Arc::clone(labels) }
    }

    /// The class of a facility of the kernel with these labels.
    pub fn facility_class(&self, labels: &Arc<LabelSet>) -> Class {
        Class { policies: self.id, kind: Kind::Facility, labels: Arc::clone(labels) }
    }

    /// The class of a secret with these labels.
    pub fn secret_class(&self, labels: &Arc<LabelSet>) -> Class {
        Class { policies: self.id, kind: Kind::Secret, labels: Arc::clone(labels) }
    }

    /// Everything that a request of this task can refer to, but for the resource and its labels. Granted and touched
    /// labels need no entities of their own: nothing can ask for the place of a set's elements.
    fn store(&self, task: &TaskFacts) -> Result<Entities, Box<dyn std::error::Error + Send + Sync>> {
        let entities = entity::chain(task)?.into_iter().chain(self.labels.iter().cloned());
        Ok(Entities::from_entities(entities, Some(&self.schema))?)
    }

    fn hop(&self, principal: EntityUid, store: &Entities) -> Hop {
        let mut within: Vec<EntityUid> = store.ancestors(&principal).into_iter().flatten().cloned().collect();
        within.push(principal.clone());
        let rules = entity::actions().map(|action| {
            let rules = self.index.for_principal(&action, &within);
            (action, rules)
        });
        Hop { principal, rules }
    }
}

impl Rule {
    fn expired(&self) -> Problem {
        let id = &self.annotations.reference.id;
        let consequence = if self.permits { "and permits nothing any more" } else { "but goes on forbidding" };
        Problem::general(&self.file, format!("policy `{id}` has expired {consequence}; renew or remove it"))
    }
}
