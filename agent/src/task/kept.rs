//! A task as it is written down, so that the next daemon knows it.

use std::sync::Arc;

use agent_common::{DaemonLoss, Mode, TaskStatus};
use serde::{Deserialize, Serialize};

use super::table::{Counts, Task};
use crate::domain::{TaskFacts, UnixMillis};

/// The form of what is written; another one is not read.
const FORM: u32 = 1;

/// One task on paper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    form: u32,
    /// The boot during which it was opened: its deadline is on that boot's clock.
    pub boot: String,
    /// Index into the kernel's `TASKS`.
    pub slot: u32,
    /// Which of the slot's tasks.
    pub epoch: u32,
    facts: TaskFacts,
    argv: Vec<String>,
    mode: String,
    on_daemon_loss: String,
    socket_mark: u32,
    deadline: u64,
    started: UnixMillis,
    /// Set once its end has been recorded.
    pub ended: Option<UnixMillis>,
    allowed: u64,
    denied: u64,
    would_denied: u64,
}

impl Kept {
    /// What there is to write of a task.
    pub fn new(boot: &str, task: &Task) -> Self {
        Self {
            form: FORM,
            boot: boot.to_owned(),
            slot: task.slot,
            epoch: task.epoch,
            facts: TaskFacts::clone(&task.facts),
            argv: task.argv.to_vec(),
            mode: task.mode.as_str().to_owned(),
            on_daemon_loss: task.on_daemon_loss.as_str().to_owned(),
            socket_mark: task.socket_mark,
            deadline: task.deadline,
            started: task.started,
            ended: task.ended,
            allowed: task.counts.allowed,
            denied: task.counts.denied,
            would_denied: task.counts.would_denied,
        }
    }

    /// The task again. `None` if it was written by a version that says things otherwise.
    pub fn task(self, status: TaskStatus) -> Option<Task> {
        let mode = Mode::ALL.iter().copied().find(|mode| mode.as_str() == self.mode)?;
        let on_daemon_loss = DaemonLoss::ALL.iter().copied().find(|loss| loss.as_str() == self.on_daemon_loss)?;
        (self.form == FORM).then(|| Task {
            facts: Arc::new(self.facts),
            argv: self.argv.into(),
            slot: self.slot,
            epoch: self.epoch,
            generation: 0,
            mode,
            on_daemon_loss,
            socket_mark: self.socket_mark,
            deadline: self.deadline,
            status,
            started: self.started,
            ended: self.ended,
            counts: Counts { allowed: self.allowed, denied: self.denied, would_denied: self.would_denied },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{AgentFacts, IntentFacts, LabelSet, TaskId};

    fn facts(parent: Option<Arc<TaskFacts>>) -> TaskFacts {
        TaskFacts {
            id: TaskId::from_number(7),
            agent: AgentFacts { id: "coder".into(), groups: vec!["coding".into()], owner: Some("alice".into()) },
            intent: IntentFacts {
                id: "fix".into(),
                parents: vec![IntentFacts { id: "all".into(), parents: Vec::new() }],
            },
            goal: Some("a \"goal\"\n".into()),
            on_behalf_of: None,
            parent,
            assurance: 2,
            may_read: LabelSet::new(),
            may_connect: ["net/x".parse().unwrap()].into(),
            touched: LabelSet::new(),
            expires_at: 5,
        }
    }

    #[test]
    fn what_is_written_down_is_the_whole_task() {
        let task = Task {
            facts: Arc::new(facts(Some(Arc::new(facts(None))))),
            argv: ["sh".to_owned(), "-c".to_owned()].into(),
            slot: 4,
            epoch: 9,
            generation: 0,
            mode: Mode::Audit,
            on_daemon_loss: DaemonLoss::Allow,
            socket_mark: 7,
            deadline: 77,
            status: TaskStatus::Revoked,
            started: 3,
            ended: Some(4),
            counts: Counts { allowed: 1, denied: 2, would_denied: 3 },
        };
        let text = serde_json::to_string(&Kept::new("boot", &task)).unwrap();
        let read: Kept = serde_json::from_str(&text).unwrap();
        assert_eq!(read.boot, "boot");
        assert_eq!(read.task(TaskStatus::Revoked), Some(task));
        let other: Kept = serde_json::from_str(&text.replace("\"form\":1", "\"form\":2")).unwrap();
        assert_eq!(other.task(TaskStatus::Active), None);
    }
}
