//! `writ watch`: records as they are written, filtered and readable.

use std::io::{self, Write};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use tokio_stream::StreamExt;

use super::exit::Failure;
use super::output::Output;
use super::render;
use crate::api::Client;
use crate::domain::{Action, Effect, TaskId};
use crate::record::{Event, Record};

/// Which records to show. Everything that is given must hold; losses are always shown.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Only decisions with this effect; may be given several times
    #[arg(long, value_delimiter = ',', value_parser = effect_parser())]
    pub effect: Vec<Effect>,
    /// Only decisions on this action; may be given several times
    #[arg(long, value_delimiter = ',', value_parser = action_parser())]
    pub action: Vec<Action>,
    /// Only records of the tasks whose id is or begins with this (the leading `t-` may be left out), and of those below them
    #[arg(long, value_name = "ID")]
    pub task: Option<String>,
    /// Only records of this agent's tasks
    #[arg(long, value_name = "ID")]
    pub agent: Option<String>,
}

impl Filter {
    /// Whether `record` is to be shown.
    pub fn matches(&self, record: &Record) -> bool {
        matches!(record.event, Event::Loss(_))
            || self.matches_decision(&record.event) && self.matches_task(&record.event)
    }

    fn matches_decision(&self, event: &Event) -> bool {
        let Event::Decision(decision) = event else { return self.effect.is_empty() && self.action.is_empty() };
        let effect = self.effect.is_empty() || self.effect.contains(&decision.effect);
        effect && (self.action.is_empty() || self.action.contains(&decision.action))
    }

    fn matches_task(&self, event: &Event) -> bool {
        let Some(task) = event.task() else { return self.task.is_none() && self.agent.is_none() };
        let below = |text: &String| task.chain.iter().any(|above| begins(above, text));
        self.task.as_ref().is_none_or(below) && self.agent.as_ref().is_none_or(|agent| **agent == *task.agent)
    }
}

/// Whether `id` is `text` or begins with it, the leading `t-` of both aside: what `writ task show` takes too.
fn begins(id: &TaskId, text: &str) -> bool {
    let text = text.strip_prefix("t-").unwrap_or(text);
    id.as_str().strip_prefix("t-").is_some_and(|id| id.starts_with(text))
}

/// Prints records until the daemon stops or the reader has seen enough.
pub(super) async fn follow(client: &Client, filter: &Filter, output: Output) -> Result<(), Failure> {
    let mut lines = std::pin::pin!(client.records().await?);
    let mut out = anstream::stdout();
    while let Some(line) = lines.next().await {
        match show(&line?, filter, output, &mut out).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(Failure::Output)?,
        }
    }
    Ok(())
}

/// Writes one line of the record stream to `out`, which should be an `anstream` so that colours end up where they are
/// wanted. A line that this program cannot read is always shown.
///
/// # Errors
/// Those of `out`; a broken pipe means that the reader has seen enough.
pub(super) fn show(line: &str, filter: &Filter, output: Output, out: &mut impl Write) -> io::Result<()> {
    let record = serde_json::from_str::<Record>(line);
    if record.as_ref().is_ok_and(|record| !filter.matches(record)) {
        return Ok(());
    }
    match (output, record) {
        (Output::Json, _) => writeln!(out, "{line}"),
        (Output::Text, Ok(record)) => writeln!(out, "{}", render::line(&record)),
        (Output::Text, Err(_)) => writeln!(out, "{}", render::unknown(line)),
    }
}

fn effect_parser() -> impl TypedValueParser<Value = Effect> {
    one_of(Effect::ALL, Effect::as_str)
}

fn action_parser() -> impl TypedValueParser<Value = Action> {
    one_of(Action::ALL, Action::as_str)
}

/// Takes the words of a closed list, and names them all when it is given another.
fn one_of<T>(all: &'static [T], as_str: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().copied().map(as_str)).try_map(move |word| {
        let known = all.iter().copied().find(|&value| as_str(value) == word);
        known.ok_or_else(|| format!("`{word}` is no word of the list"))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::record::testing::{decision, over, time};
    use crate::record::{Cause, DaemonStopping, Loss};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        filter: Filter,
        #[arg(long, default_value = "text")]
        output: Output,
    }

    fn args(words: &[&str]) -> Command {
        Command::try_parse_from([&["watch"], words].concat()).unwrap()
    }

    fn record(event: Event) -> Record {
        Record { time: time(), sequence: 1, event }
    }

    fn denied() -> Record {
        record(Event::Decision(Box::new(decision())))
    }

    fn shown(line: &str, words: &[&str]) -> String {
        let mut out = Vec::new();
        let args = args(words);
        show(line, &args.filter, args.output, &mut out).unwrap();
        anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string()
    }

    #[test]
    fn each_filter_lets_its_own_through_and_nothing_else() {
        let matches = |words: &[&str]| args(words).filter.matches(&denied());
        for yes in [
            &[][..],
            &["--effect", "deny"],
            &["--effect", "allow,deny"],
            &["--action", "connect"],
            &["--task", "t-0000000000002"],
            &["--task", "t-0000000000001"],
            &["--task", "0000000000002"],
            &["--task", "t-00"],
            &["--task", "000"],
            &["--agent", "coder"],
            &["--effect", "deny", "--agent", "coder"],
        ] {
            assert!(matches(yes), "{yes:?}");
        }
        for no in [
            &["--effect", "allow"][..],
            &["--action", "read"],
            &["--task", "t-0000000000003"],
            &["--task", "t-00000000000011"],
            &["--task", "t-1"],
            &["--task", "2"],
            &["--agent", "other"],
            &["--effect", "deny", "--agent", "other"],
        ] {
            assert!(!matches(no), "{no:?}");
        }
    }

    #[test]
    fn losses_are_always_shown_and_other_records_only_where_they_belong() {
        let ended = record(Event::TaskEnded(over()));
        let loss = record(Event::Loss(Loss { cause: Cause::Undecodable, count: 1 }));
        let stopping = record(Event::DaemonStopping(DaemonStopping { why: "SIGTERM".into(), stays_enforced: true }));
        let matches = |words: &[&str], record: &Record| args(words).filter.matches(record);
        assert!(matches(&["--effect", "deny"], &loss) && matches(&["--agent", "x"], &loss));
        assert!(matches(&["--agent", "coder"], &ended) && !matches(&["--effect", "deny"], &ended));
        assert!(matches(&[], &stopping) && !matches(&["--agent", "coder"], &stopping));
    }

    #[test]
    fn a_word_outside_the_list_is_refused_with_the_list() {
        let Err(error) = Command::try_parse_from(["watch", "--effect", "no"]) else { panic!("it was taken") };
        let text = error.to_string();
        assert!(text.contains("allow") && text.contains("would_deny"), "{text}");
    }

    #[test]
    fn json_is_passed_on_and_text_is_rendered() {
        let line = serde_json::to_string(&denied()).unwrap();
        assert_eq!(shown(&line, &["--output", "json"]), format!("{line}\n"));
        assert!(shown(&line, &[]).contains("DENY       connect 10.0.0.5:443/tcp"));
        assert_eq!(shown(&line, &["--effect", "allow"]), "");
    }

    #[test]
    fn lines_of_a_newer_daemon_are_shown_whatever_the_filter() {
        let line = r#"{"time":"2026-01-02T03:04:05Z","sequence":1,"kind":"novelty"}"#;
        assert!(shown(line, &["--effect", "deny"]).contains("novelty"));
        assert_eq!(shown(line, &["--output", "json"]), format!("{line}\n"));
    }
}
