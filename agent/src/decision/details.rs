//! Numbers for what records say of a verdict, small enough to travel through the kernel.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::{Decision, PolicyRef, Shadow};

/// Distinct details at most: beyond it a verdict has number 0 and its record names no policies.
pub const MAX_DETAILS: usize = 1 << 16;

/// What a record adds to effect and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detail {
    /// The policies that determined the verdict.
    pub policies: Vec<PolicyRef>,
    /// How many tasks up the chain a deny came from.
    pub hop: usize,
    /// The audited policies' answer where it differs.
    pub shadow: Option<Shadow>,
}

/// All details met so far. Numbers are never given twice, so that a late record still finds its own.
///
/// The lock is held for a look-up or an insert and nothing else; the decision threads and the main loop share it.
#[derive(Debug, Default)]
pub struct Details {
    /// The numbers up to here are another daemon's: records of what the kernel decided by them may still come.
    before: u32,
    table: Mutex<Table>,
    overflowed: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    numbers: HashMap<Key, u32>,
    details: Vec<Arc<Detail>>,
}

/// Policies by id, since their texts follow from it within one policy set, and by reason where two sets differ.
type Key = (Vec<PolicyRef>, usize, Option<(agent_common::Effect, agent_common::Reason, Vec<PolicyRef>)>);

impl Details {
    /// A table whose numbers are all higher than `last`.
    pub fn after(last: u32) -> Self {
        Self { before: last, ..Self::default() }
    }

    /// The number of a decision's detail; 0 for none (no policies, no shadow) and when the table is full.
    pub fn number(&self, decision: &Decision) -> u32 {
        if decision.policies.is_empty() && decision.shadow.is_none() && decision.hop == 0 {
            return 0;
        }
        let number = self.table.lock().unwrap_or_else(PoisonError::into_inner).number(decision);
        number.map(|number| number.wrapping_add(self.before)).unwrap_or_else(|| {
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            0
        })
    }

    /// How many decisions had a detail that there was no room for since this was last asked.
    pub fn take_overflowed(&self) -> u64 {
        self.overflowed.swap(0, Ordering::Relaxed)
    }

    /// What a number stands for.
    pub fn get(&self, number: u32) -> Option<Arc<Detail>> {
        let index = usize::try_from(number.checked_sub(self.before)?).ok()?.checked_sub(1)?;
        self.table.lock().unwrap_or_else(PoisonError::into_inner).details.get(index).cloned()
    }
}

impl Table {
    /// `None` if there is no room.
    fn number(&mut self, decision: &Decision) -> Option<u32> {
        let shadow = decision.shadow.clone();
        let key: Key = (decision.policies.clone(), decision.hop, shadow.map(|s| (s.effect, s.reason, s.policies)));
        if let Some(&number) = self.numbers.get(&key) {
            return Some(number);
        }
        if self.details.len() >= MAX_DETAILS {
            return None;
        }
        let Decision { policies, hop, shadow, .. } = decision.clone();
        self.details.push(Arc::new(Detail { policies, hop, shadow }));
        let number = u32::try_from(self.details.len()).ok()?;
        self.numbers.insert(key, number);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Effect, Lifetime, Reason};

    fn decision(id: &str) -> Decision {
        let policies = vec![PolicyRef { id: id.into(), reason: None, advice: None }];
        let (effect, reason) = (Effect::Deny, Reason::Policy);
        Decision { effect, reason, policies, hop: 0, shadow: None, lifetime: Lifetime::Forever }
    }

    #[test]
    fn equal_details_share_a_number_and_it_leads_back() {
        let details = Details::default();
        let (a, b) = (details.number(&decision("a")), details.number(&decision("b")));
        assert_eq!(details.number(&decision("a")), a);
        assert_ne!(a, b);
        assert_eq!(details.get(b).unwrap().policies, decision("b").policies);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let details = Details::default();
        for hop in 1..=MAX_DETAILS {
            assert_ne!(details.number(&Decision { hop, ..decision("a") }), 0);
        }
        assert_eq!(details.take_overflowed(), 0);
        assert_eq!(details.number(&decision("a")), 0);
        assert_ne!(details.number(&Decision { hop: 1, ..decision("a") }), 0, "what is there keeps its number");
        assert_eq!((details.take_overflowed(), details.take_overflowed()), (1, 0));
    }

    #[test]
    fn numbers_of_a_daemon_before_lead_nowhere() {
        let details = Details::after(1 << 16);
        let number = details.number(&decision("a"));
        assert_eq!((number, details.number(&decision("a"))), ((1 << 16) + 1, number));
        assert!(details.get(number).is_some() && details.get(1).is_none() && details.get(1 << 16).is_none());
    }

    #[test]
    fn nothing_to_say_has_no_number() {
        let details = Details::default();
        let empty = Decision { policies: Vec::new(), ..decision("a") };
        assert_eq!(details.number(&empty), 0);
        assert!(details.get(0).is_none() && details.get(7).is_none());
    }
}
