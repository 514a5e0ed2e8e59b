//! `writ task` and `writ ps`.

use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;

use super::block_on;
use super::exit::Failure;
use super::output::Output;
use super::table::{cut, list, pairs, plain, table, time};
use crate::api::Client;
use crate::api::types::{TaskView, TasksView};
use crate::domain::UnixMillis;
use crate::domain::duration::format_duration;
use agent_common::TaskStatus;

/// Longest command in a list, characters.
const MAX_COMMAND: usize = 40;

#[derive(Debug, Subcommand)]
pub(super) enum TaskVerb {
    /// List tasks: the active ones, then those that ended lately
    List,
    /// Show one task
    Show {
        /// The task's id or a unique beginning of it
        id: String,
    },
    /// Take a task back: from now on everything that its processes try is refused
    Revoke {
        /// The task's id or a unique beginning of it
        id: String,
    },
}

pub(super) fn execute(verb: TaskVerb, client: &Client, output: Output) -> Result<(), Failure> {
    let now = Timestamp::now().as_millisecond();
    match verb {
        TaskVerb::List => output.show(&block_on(client.tasks())?, |tasks| list_text(tasks, now)),
        TaskVerb::Show { id } => output.show(&block_on(client.task(&id))?, |task| show_text(task, now)),
        TaskVerb::Revoke { id } => output.show(&block_on(client.revoke_task(&id))?, revoked_text),
    }
}

fn list_text(tasks: &TasksView, now: UnixMillis) -> String {
    let head = ["TASK", "AGENT", "INTENT", "STATUS", "MODE", "LEFT", "PROCS", "ALLOWED", "DENIED", "COMMAND"];
    let rows: Vec<Vec<String>> = tasks.tasks.iter().map(|task| row(task, now)).collect();
    table(&head, &rows)
}

fn row(task: &TaskView, now: UnixMillis) -> Vec<String> {
    vec![
        plain(&task.id),
        plain(&task.agent),
        plain(&task.intent),
        task.status.as_str().to_owned(),
        task.mode.as_str().to_owned(),
        left(task, now),
        task.processes.to_string(),
        task.counts.allowed.to_string(),
        (task.counts.denied + task.counts.would_denied).to_string(),
        cut(&command(task), MAX_COMMAND),
    ]
}

fn show_text(task: &TaskView, now: UnixMillis) -> String {
    let or_dash = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), plain);
    let counts = task.counts;
    let mut lines = vec![
        ("task", plain(&task.id)),
        ("status", task.status.as_str().to_owned()),
        ("agent", plain(&task.agent)),
        ("intent", plain(&task.intent)),
        ("goal", or_dash(&task.goal)),
        ("on behalf of", or_dash(&task.on_behalf_of)),
        ("chain", list(&task.chain)),
        ("may read", list(&task.grant_read)),
        ("may connect", list(&task.grant_connect)),
        ("mode", task.mode.as_str().to_owned()),
        ("daemon lost", task.on_daemon_loss.as_str().to_owned()),
        ("started", time(task.started_at)),
        ("expires", format!("{} (left: {})", time(task.expires_at), left(task, now))),
        ("processes", task.processes.to_string()),
        (
            "decisions",
            format!("{} allowed, {} denied, {} would be denied", counts.allowed, counts.denied, counts.would_denied),
        ),
        ("command", command(task)),
    ];
    lines.extend((task.socket_mark != 0).then(|| ("socket mark", format!("{:#x}", task.socket_mark))));
    lines.extend(task.ended_at.map(|at| ("ended", time(at))));
    pairs(&lines)
}

fn revoked_text(task: &TaskView) -> String {
    format!("task {} is {}; {} of its processes are left\n", plain(&task.id), task.status.as_str(), task.processes)
}

fn left(task: &TaskView, now: UnixMillis) -> String {
    match u64::try_from(task.expires_at.saturating_sub(now)) {
        Ok(millis) if task.status == TaskStatus::Active => format_duration(Duration::from_secs(millis.div_ceil(1000))),
        _ => "-".to_owned(),
    }
}

fn command(task: &TaskView) -> String {
    plain(&task.argv.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::task;

    #[test]
    fn a_list_has_one_line_per_task() {
        let ended = TaskView { status: TaskStatus::Expired, argv: vec!["x".repeat(50), "\u{1b}[2J".into()], ..task() };
        let text = list_text(&TasksView { tasks: vec![task(), ended] }, task().started_at);
        let expected = format!(
            "\
TASK             AGENT  INTENT   STATUS   MODE     LEFT  PROCS  ALLOWED  DENIED  COMMAND
t-0000000000001  coder  fix-bug  active   enforce  30m   2      3        1       sh -c make test
t-0000000000001  coder  fix-bug  expired  enforce  -     2      3        1       {}…
",
            "x".repeat(40)
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn one_task_is_shown_whole() {
        let ended = TaskView { ended_at: Some(task().started_at), goal: Some("a\u{7}b".into()), ..task() };
        let text = show_text(&ended, task().started_at);
        for line in [
            "on behalf of: alice",
            "goal:         a\\u{7}b",
            "expires:      2023-11-14T22:43:20Z (left: 30m)",
            "chain:        -",
            "socket mark:  0x20000",
            "ended:        2023-11-14T22:13:20Z",
            "command:      sh -c make test",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}\nlacks {line}");
        }
    }

    #[test]
    fn a_revocation_tells_what_is_left() {
        let text = revoked_text(&TaskView { status: TaskStatus::Revoked, ..task() });
        assert_eq!(text, "task t-0000000000001 is revoked; 2 of its processes are left\n");
    }
}
