//! What the demo shows, as data: under which task an agent runs, what it is after, and what must come of it.

use super::goals::{Counts, Goal};

/// One run of the agent.
pub(super) struct Scene {
    pub(super) title: &'static str,
    /// The options of `writ run`; `None` for a process that belongs to no task.
    pub(super) task: Option<&'static str>,
    pub(super) how: How,
    /// In this order.
    pub(super) goals: &'static [Goal],
    /// Those of the goals that the task may reach.
    pub(super) granted: &'static [Goal],
}

/// How the agent goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Each goal once.
    Once,
    /// Each goal once, by a grandchild that outlives the processes above it.
    Orphan,
    /// The only goal, while it can be reached: until the task's time is over.
    UntilExpired,
    /// The same, until an operator revokes the task.
    UntilRevoked,
}

pub(super) const SCENES: [Scene; 7] = [
    Scene {
        title: "No task: a process that belongs to no agent does as it likes, and nothing is recorded",
        task: None,
        how: How::Once,
        goals: &Goal::ALL,
        granted: &Goal::ALL,
    },
    Scene {
        title: "Granted the web server and ~/.netrc: this and nothing else",
        task: Some("--agent coder --intent fix-build --grant-connect net/internal/web --grant-read secret/netrc"),
        how: How::Once,
        goals: &Goal::ALL,
        granted: &[Goal::Web4, Goal::Web6, Goal::Netrc],
    },
    Scene {
        title: "Granted the proxy: a proxy is a destination like any other",
        task: Some("--agent coder --intent fix-build --grant-connect net/internal/proxy"),
        how: How::Once,
        goals: &[Goal::Proxy, Goal::Web4],
        granted: &[Goal::Proxy],
    },
    Scene {
        title: "Granted nothing, and trying to get away: fork twice, new session, parent gone, exec",
        task: Some("--agent coder --intent fix-build --on-behalf-of alice"),
        how: How::Orphan,
        goals: &Goal::ALL,
        granted: &[],
    },
    Scene {
        title: "The same in audit mode: nothing is refused, and what would be is recorded",
        task: Some("--agent coder --intent fix-build --mode audit"),
        how: How::Once,
        goals: &Goal::ALL,
        granted: &[],
    },
    Scene {
        title: "Two seconds to live: the kernel ends what worked, open connections included",
        task: Some("--agent coder --intent fix-build --grant-connect net/internal/web --ttl 2s"),
        how: How::UntilExpired,
        goals: &[Goal::Web4],
        granted: &[Goal::Web4],
    },
    Scene {
        title: "Revoked by an operator while it runs",
        task: Some("--agent coder --intent fix-build --grant-connect net/internal/web"),
        how: How::UntilRevoked,
        goals: &[Goal::Web4],
        granted: &[Goal::Web4],
    },
];

impl Scene {
    /// Whether these counts are what must come of a goal.
    pub(super) fn expects(&self, goal: Goal, counts: Counts) -> bool {
        if !self.goals.contains(&goal) {
            return counts == Counts::default();
        }
        match self.how {
            // The read of a secret that goes through is several decisions where it is guarded by fanotify.
            How::Once | How::Orphan if goal.is_secret() && counts.would_denied > 1 => {
                Counts { would_denied: 1, ..counts } == self.exactly(goal)
            }
            How::Once | How::Orphan => counts == self.exactly(goal),
            // The connection that was open when the end came, and never used before, is allowed and reaches nobody.
            How::UntilExpired | How::UntilRevoked => {
                counts.denied > 0 && counts.would_denied == 0 && counts.reached > 0 && counts.reached < counts.allowed
            }
        }
    }

    fn exactly(&self, goal: Goal) -> Counts {
        let granted = self.granted.contains(&goal);
        let audit = self.task.is_some_and(|options| options.contains("--mode audit"));
        let none = Counts::default();
        match (self.task, granted) {
            (None, _) => Counts { reached: 1, ..none },
            (Some(_), true) => Counts { allowed: 1, reached: 1, ..none },
            (Some(_), false) if audit => Counts { would_denied: 1, reached: 1, ..none },
            (Some(_), false) => Counts { denied: 1, ..none },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(allowed: u64, denied: u64, would_denied: u64, reached: u64) -> Counts {
        Counts { allowed, denied, would_denied, reached }
    }

    #[test]
    fn a_leak_is_never_what_a_scene_expects() {
        for scene in &SCENES[1..] {
            for goal in Goal::ALL.into_iter().filter(|goal| !scene.granted.contains(goal)) {
                let audit = scene.task.unwrap().contains("audit");
                assert!(audit || !scene.expects(goal, counts(0, 1, 0, 1)), "{}: {}", scene.title, goal.name());
                assert!(!scene.expects(goal, counts(1, 0, 0, 1)), "{}: {}", scene.title, goal.name());
            }
        }
    }

    #[test]
    fn what_ends_must_have_worked_before_and_been_refused_after() {
        let scene = SCENES.iter().find(|scene| scene.how == How::UntilRevoked).unwrap();
        assert!(scene.expects(Goal::Web4, counts(9, 1, 0, 8)));
        assert!(!scene.expects(Goal::Web4, counts(9, 0, 0, 8)), "never refused");
        assert!(!scene.expects(Goal::Web4, counts(0, 1, 0, 0)), "never worked");
        assert!(!scene.expects(Goal::Web4, counts(9, 1, 0, 9)), "the open connection went on");
        assert!(!scene.expects(Goal::Udp, counts(1, 0, 0, 0)), "not asked for");
    }
}
