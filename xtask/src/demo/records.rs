//! The daemon's records as the demo reads them: from the file, a task at a time, alike decisions as one line.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use serde::Deserialize;

use super::goals::{Effect, Goal};
use super::servers::Servers;

/// A line of the file, as far as the demo is interested.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Record {
    TaskStarted(Started),
    Decision(Box<Decision>),
    TaskEnded(Over),
    TaskExpired(Over),
    TaskRevoked(Over),
    Loss(Loss),
    #[serde(other)]
    Other,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Started {
    task: String,
    process: Process,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Over {
    task: String,
    why: String,
    allowed: u64,
    denied: u64,
    would_denied: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Loss {
    cause: String,
    count: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Decision {
    task: String,
    agent: String,
    on_behalf_of: Option<String>,
    process: Process,
    action: String,
    resource: Resource,
    pub(super) effect: Effect,
    reason: String,
    policies: Vec<Policy>,
    latency_us: u32,
    pub(super) count: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Process {
    pid: u32,
    comm: String,
    lineage: Vec<Ancestor>,
}

#[derive(Clone, Debug, Deserialize)]
struct Ancestor {
    pid: u32,
    comm: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Resource {
    Endpoint { address: std::net::IpAddr, port: u16, protocol: String },
    Secret { path: Option<PathBuf> },
    Socket { family: u16, socket_type: u8 },
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Policy {
    id: String,
    reason: Option<String>,
}

/// The first task that began after the first `skip` lines of the file.
pub(super) fn first_task(file: &Path, skip: usize) -> Result<Option<String>> {
    Ok(read(file, skip)?.into_iter().find_map(|record| match record {
        Record::TaskStarted(started) => Some(started.task),
        _ => None,
    }))
}

/// What was recorded of a task after the first `skip` lines of the file, or of all if it is `None`, and what was lost.
pub(super) fn of_task(file: &Path, skip: usize, task: Option<&str>) -> Result<Vec<Record>> {
    let is_of = |record: &Record| record.task().is_none_or(|of| task.is_none_or(|task| of == task));
    Ok(read(file, skip)?.into_iter().filter(is_of).collect())
}

fn read(file: &Path, skip: usize) -> Result<Vec<Record>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    // The last line may be in the middle of being written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().skip(skip);
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("a record that is none: {line}"))).collect()
}

impl Record {
    fn task(&self) -> Option<&str> {
        match self {
            Self::TaskStarted(started) => Some(&started.task),
            Self::Decision(decision) => Some(&decision.task),
            Self::TaskEnded(over) | Self::TaskExpired(over) | Self::TaskRevoked(over) => Some(&over.task),
            Self::Loss(_) | Self::Other => None,
        }
    }
}

/// Whether the records say how the task ended and, since those that repeat come late, speak of each decision until then.
pub(super) fn are_whole(records: &[Record]) -> bool {
    let decided: u64 = merged(records).iter().map(|decision| decision.count).sum();
    records.iter().any(|record| match record {
        Record::TaskEnded(over) | Record::TaskExpired(over) | Record::TaskRevoked(over) => {
            over.allowed + over.denied + over.would_denied <= decided
        }
        _ => false,
    })
}

/// Records that the file has.
pub(super) fn count(file: &Path) -> Result<usize> {
    Ok(read(file, 0)?.len())
}

/// One line for each kind of decision: the first of its kind, with the number of all.
pub(super) fn merged(records: &[Record]) -> Vec<Decision> {
    let mut merged: Vec<Decision> = Vec::new();
    for record in records {
        let Record::Decision(decision) = record else { continue };
        match merged.iter_mut().find(|known| known.is_like(decision)) {
            Some(known) => known.count += decision.count,
            None => merged.push((**decision).clone()),
        }
    }
    merged
}

impl Decision {
    fn is_like(&self, other: &Self) -> bool {
        let key =
            |of: &Self| (of.effect, of.action.clone(), of.resource.clone(), of.reason.clone(), of.policies.clone());
        key(self) == key(other)
    }

    /// What the agent wanted when this was decided.
    pub(super) fn goal(&self, servers: &Servers) -> Option<Goal> {
        match &self.resource {
            Resource::Endpoint { port, .. } if *port == servers.echo => Some(Goal::Udp),
            Resource::Endpoint { port, .. } if *port == servers.proxy => Some(Goal::Proxy),
            Resource::Endpoint { address, port, .. } if *port == servers.web => {
                Some(if address.is_ipv4() { Goal::Web4 } else { Goal::Web6 })
            }
            Resource::Secret { path: Some(path) } if path.ends_with(".ssh/id_ed25519") => Some(Goal::SshKey),
            Resource::Secret { path: Some(path) } if path.ends_with(".netrc") => Some(Goal::Netrc),
            _ => None,
        }
    }

    /// The record on one line, the processes only as far up as the one whose pid is `root`, with `home` as `~`.
    fn line(&self, root: u32, home: &Path) -> String {
        let (style, word) = self.effect.shown();
        let resource = self.resource.shown(home);
        let on_behalf_of = self.on_behalf_of.as_ref().map(|user| format!(" for {user}")).unwrap_or_default();
        let mut line = format!(
            "{style}{word:10}{style:#} {:7} {resource:22}  {} {}{on_behalf_of}  {}  {}  {}us",
            self.action,
            self.task,
            self.agent,
            self.process.tree(root),
            self.why(),
            self.latency_us,
        );
        if self.count > 1 {
            // Writing to a string does not fail.
            let _ = write!(line, "  {} times", self.count);
        }
        line
    }

    fn why(&self) -> String {
        let named = self.policies.iter().map(|policy| match &policy.reason {
            Some(reason) => format!("{}: {reason}", policy.id),
            None => policy.id.clone(),
        });
        let named: Vec<String> = named.collect();
        if named.is_empty() { format!("{}, before any policy", self.reason) } else { named.join(", ") }
    }
}

impl Resource {
    fn shown(&self, home: &Path) -> String {
        match self {
            Self::Endpoint { address, port, protocol } => {
                format!("{}/{protocol}", std::net::SocketAddr::new(*address, *port))
            }
            Self::Secret { path: None } => "a secret".to_owned(),
            Self::Secret { path: Some(path) } => path
                .strip_prefix(home)
                .map_or_else(|_| path.display().to_string(), |rest| format!("~/{}", rest.display())),
            Self::Socket { family, socket_type } => format!("socket {family}/{socket_type}"),
        }
    }
}

impl Process {
    fn tree(&self, root: u32) -> String {
        let own = (self.pid, &self.comm);
        let all: Vec<_> = std::iter::once(own).chain(self.lineage.iter().map(|up| (up.pid, &up.comm))).collect();
        let end = all.iter().position(|(pid, _)| *pid == root).map_or(all.len(), |at| at + 1);
        all.iter().take(end).map(|(pid, comm)| format!("{comm}({pid})")).collect::<Vec<_>>().join(" < ")
    }
}

/// What the daemon had to say of a task: decisions in their order, then how it ended.
pub(super) fn lines(records: &[Record], home: &Path) -> Vec<String> {
    let root = records.iter().find_map(|record| match record {
        Record::TaskStarted(started) => Some(started.process.pid),
        _ => None,
    });
    let mut lines: Vec<String> =
        merged(records).iter().map(|decision| decision.line(root.unwrap_or_default(), home)).collect();
    lines.extend(records.iter().filter_map(ending));
    lines
}

fn ending(record: &Record) -> Option<String> {
    const NOTE: Style = AnsiColor::Cyan.on_default();
    const ALARM: Style = AnsiColor::Magenta.on_default().bold();
    let (word, over) = match record {
        Record::TaskEnded(over) => ("ENDED", over),
        Record::TaskExpired(over) => ("EXPIRED", over),
        Record::TaskRevoked(over) => ("REVOKED", over),
        Record::Loss(loss) => return Some(format!("{ALARM}LOSS{ALARM:#}       {} lost: {}", loss.count, loss.cause)),
        _ => return None,
    };
    Some(format!("{NOTE}{word:10}{NOTE:#} {}", over.why))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the daemon's own tests say that it writes.
    const GOLDEN: &str = include_str!("../../../agent/src/record/golden.jsonl");

    fn golden() -> Vec<Record> {
        GOLDEN.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_decision_is_shown_with_all_that_matters() {
        let records = golden();
        let line = anstream::adapter::strip_str(&lines(&records, Path::new("/root"))[0]).to_string();
        let words = ["DENY", "10.0.0.5:443/tcp", "t-0000000000002", "coder for alice", "  curl(4242)  "];
        for word in words.into_iter().chain(["no-internal: not for agents"]) {
            assert!(line.contains(word), "{line} lacks {word}");
        }
        let secret = &merged(&records)[1];
        assert!(secret.line(4240, Path::new("/root")).contains("~/.netrc "));
        assert!(secret.process.tree(4240).ends_with("< sh(4240)"), "the lineage ends with the task's first process");
    }

    #[test]
    fn repeats_are_counted_on_the_line_of_the_first() {
        let mut records = golden();
        records.extend(golden());
        let counts: Vec<u64> = merged(&records).iter().map(|decision| decision.count).collect();
        assert_eq!(counts[..2], [2, 24]);
    }

    #[test]
    fn records_are_whole_once_they_speak_of_all_that_the_end_counts() {
        let records = golden();
        assert!(are_whole(&records), "14 decisions, and the end counts 7");
        let without: Vec<Record> =
            records.into_iter().filter(|record| !matches!(record, Record::Decision(_))).collect();
        assert!(!are_whole(&without));
    }
}
