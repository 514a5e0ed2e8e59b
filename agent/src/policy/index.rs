//! Which policies can apply to a request, by their scopes. What the index leaves out, the authorizer would find not to
//! match; what it yields too much, the authorizer sorts out.

use std::collections::HashMap;

use cedar_policy::{ActionConstraint, Entities, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};

use super::entity;

/// Numbers of policies by the entity that their resource scope names; `None`: any.
pub(super) type ByResource = HashMap<Option<EntityUid>, Vec<usize>>;

/// For each of [`entity::actions`], by the entity that the principal scope names.
#[derive(Debug, Default)]
pub(super) struct Index(HashMap<EntityUid, HashMap<Option<EntityUid>, ByResource>>);

impl Index {
    /// An index of policies, numbered as they come. `actions` are the schema's action entities.
    pub(super) fn new<'a>(policies: impl IntoIterator<Item = &'a Policy>, actions: &Entities) -> Self {
        let mut index = Self::default();
        for (number, policy) in policies.into_iter().enumerate() {
            let principal = principal_key(policy);
            let resource = resource_key(policy);
            for action in entity::actions().into_iter().filter(|action| is_for(policy, action, actions)) {
                let of_principal = index.0.entry(action).or_default().entry(principal.clone()).or_default();
                of_principal.entry(resource.clone()).or_default().push(number);
            }
        }
        index
    }

    /// The policies that can apply to a principal which is each of `within`.
    pub(super) fn for_principal(&self, action: &EntityUid, within: &[EntityUid]) -> ByResource {
        let mut all = ByResource::new();
        let Some(by_principal) = self.0.get(action) else { return all };
        for key in within.iter().cloned().map(Some).chain([None]) {
            for (resource, numbers) in by_principal.get(&key).into_iter().flatten() {
                all.entry(resource.clone()).or_default().extend(numbers);
            }
        }
        all
    }
}

fn principal_key(policy: &Policy) -> Option<EntityUid> {
    match policy.principal_constraint() {
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => None,
        PrincipalConstraint::In(uid) | PrincipalConstraint::Eq(uid) | PrincipalConstraint::IsIn(_, uid) => Some(uid),
    }
}

fn resource_key(policy: &Policy) -> Option<EntityUid> {
    match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
        ResourceConstraint::In(uid) | ResourceConstraint::Eq(uid) | ResourceConstraint::IsIn(_, uid) => Some(uid),
    }
}

fn is_for(policy: &Policy, action: &EntityUid, actions: &Entities) -> bool {
    let within = |group: &EntityUid| group == action || actions.is_ancestor_of(group, action);
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => uid == *action,
        ActionConstraint::In(uids) => uids.iter().any(within),
    }
}
