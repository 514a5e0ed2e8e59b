//! Tasks as policy and records see them: facts, fixed when the task starts.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{LabelSet, UnixMillis};

/// A task's name in records, on the command line and in Cedar: `t-` and 13 characters of a random 64-bit number.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// The id that `number` names, in Crockford's base 32.
    pub fn from_number(mut number: u64) -> Self {
        const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let mut text = [b'0'; 13];
        for slot in text.iter_mut().rev() {
            let digit = usize::try_from(number % 32).unwrap_or_default();
            *slot = DIGITS.get(digit).copied().unwrap_or(b'0');
            number /= 32;
        }
        Self(format!("t-{}", String::from_utf8_lossy(&text)).into())
    }

    /// A text that somebody says is a task's id.
    pub fn from_text(text: &str) -> Self {
        Self(text.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An agent, as the registry has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentFacts {
    /// Its id; a SPIFFE ID where there is one.
    pub id: Arc<str>,
    /// Groups it is in, those above included.
    pub groups: Vec<Arc<str>>,
    /// Who answers for it.
    pub owner: Option<Arc<str>>,
}

/// A registered purpose, as the registry has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentFacts {
    /// Its id.
    pub id: Arc<str>,
    /// Intents directly above it.
    pub parents: Vec<IntentFacts>,
}

/// The human or service on whose behalf a task runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserFacts {
    /// Name.
    pub id: Arc<str>,
    /// Groups, those above included.
    pub groups: Vec<Arc<str>>,
}

/// One task: the Cedar principal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFacts {
    /// Its id.
    pub id: TaskId,
    /// Who runs it.
    pub agent: AgentFacts,
    /// What for.
    pub intent: IntentFacts,
    /// The free text that came with the intent; logged, never matched.
    pub goal: Option<Arc<str>>,
    /// On whose behalf.
    pub on_behalf_of: Option<UserFacts>,
    /// The task that delegated to this one.
    pub parent: Option<Arc<TaskFacts>>,
    /// How sure we are of the agent's identity: 0 none, 1 uid or path match, 2 verified identity document, 3 verified and measured.
    pub assurance: u8,
    /// Labels that it may read (the grant).
    pub may_read: LabelSet,
    /// Labels that it may connect to (the grant).
    pub may_connect: LabelSet,
    /// Labels of what it has read so far, closed upwards.
    pub touched: LabelSet,
    /// When it ends.
    pub expires_at: UnixMillis,
}

impl TaskFacts {
    /// A task that nobody has granted anything, of an agent and an intent that are in no registry.
    pub fn without_grants(id: TaskId, name: &str, expires_at: UnixMillis) -> Self {
        Self {
            id,
            agent: AgentFacts { id: name.into(), groups: Vec::new(), owner: None },
            intent: IntentFacts { id: name.into(), parents: Vec::new() },
            goal: None,
            on_behalf_of: None,
            parent: None,
            assurance: 0,
            may_read: LabelSet::new(),
            may_connect: LabelSet::new(),
            touched: LabelSet::new(),
            expires_at,
        }
    }

    /// This task, its parent, and so on up to the root.
    pub fn chain(&self) -> impl Iterator<Item = &TaskFacts> {
        std::iter::successors(Some(self), |task| task.parent.as_deref())
    }

    /// How many tasks stand above this one.
    pub fn depth(&self) -> usize {
        self.chain().count() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_ids_have_one_length_and_keep_all_bits() {
        assert_eq!(TaskId::from_number(0).as_str(), "t-0000000000000");
        assert_eq!(TaskId::from_number(u64::MAX).as_str(), "t-fzzzzzzzzzzzz");
        assert_ne!(TaskId::from_number(1 << 63), TaskId::from_number(0));
    }
}
