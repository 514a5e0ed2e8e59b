//! What policy answers.

use std::sync::Arc;

use super::{Effect, Reason, UnixMillis};

/// How long an answer holds while neither task nor policies change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until something changes.
    Forever,
    /// Up to and including this instant.
    Until(UnixMillis),
    /// For this one question.
    Ask,
}

impl Lifetime {
    /// The shorter of two.
    pub fn min(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ask, _) | (_, Self::Ask) => Self::Ask,
            (Self::Forever, life) | (life, Self::Forever) => life,
            (Self::Until(a), Self::Until(b)) => Self::Until(a.min(b)),
        }
    }
}

/// A policy that determined an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PolicyRef {
    /// Its `@id`.
    pub id: Arc<str>,
    /// Its `@reason`.
    pub reason: Option<Arc<str>>,
    /// Its `@advice`.
    pub advice: Option<Arc<str>>,
}

/// What the policies in `@mode("audit")` would have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shadow {
    /// `Allow` or `Deny`: the answer with the audited policies counted in.
    pub effect: Effect,
    /// Its reason.
    pub reason: Reason,
    /// The policies that determine it.
    pub policies: Vec<PolicyRef>,
}

/// An answer: for one task (its whole chain) and one resource, at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// `Allow` or `Deny`.
    pub effect: Effect,
    /// `Policy`, `NoPermit`, `Error` or `MissingEntity`.
    pub reason: Reason,
    /// The policies that determined it; for `Error` those that failed.
    pub policies: Vec<PolicyRef>,
    /// For a deny, how many tasks up the chain it came from: 0 is the task itself.
    pub hop: usize,
    /// The audited policies' answer where it differs from `effect`.
    pub shadow: Option<Shadow>,
    /// How long the answer, shadow included, holds.
    pub lifetime: Lifetime,
}
