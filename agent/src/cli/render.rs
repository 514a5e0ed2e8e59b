//! One readable line per record.
//!
//! Times are UTC, as in the records. Most texts are chosen by agents, so everything but plain names is quoted and escaped:
//! no record can command the terminal or pass for a part of the line that it is not.

use std::fmt::{Display, Write};
use std::net::SocketAddr;

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use crate::domain::{Effect, LabelSet, Reason};
use crate::record::{
    Coverage, CoverageChanged, Decision, Event, FlowCut, PolicyNote, Process, ProcessEvent, Record, Resource, Shadow,
    TaskOver, TaskRef, TaskStarted, Tier,
};

const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const ALARM: Style = AnsiColor::Magenta.on_default().bold().invert();
const NOTE: Style = AnsiColor::Cyan.on_default();

/// Widths of the columns that come first.
const WORD: usize = 10;
const RESOURCE: usize = 44;

/// How many of the processes above are shown; the record has them all.
const ABOVE: usize = 3;

/// `record` as one line without its end, with colours: print it through `anstream`, which takes them out where they are not
/// wanted.
pub fn line(record: &Record) -> String {
    let (style, word, rest) = parts(&record.event);
    let time = record.time.strftime("%H:%M:%S%.3f");
    format!("{DIM}{time}{DIM:#} {style}{word:WORD$}{style:#} {rest}")
}

/// A line from a daemon whose records this program cannot read.
pub fn unknown(line: &str) -> String {
    format!("{WARNING}{:WORD$}{WARNING:#} this `writ` is older than the daemon: {line:?}", "UNKNOWN")
}

fn parts(event: &Event) -> (Style, &'static str, String) {
    match event {
        Event::Decision(decision) => decided(decision),
        Event::TaskStarted(started) => (NOTE, "TASK", task_started(started)),
        Event::TaskEnded(over) => (NOTE, "TASK", task_over("ended", over)),
        Event::TaskRevoked(over) => (WARNING, "TASK", task_over("revoked", over)),
        Event::TaskExpired(over) => (WARNING, "TASK", task_over("expired", over)),
        Event::ProcessForked(event) => (DIM, "PROCESS", process_event("forked", event)),
        Event::ProcessExec(event) => (DIM, "PROCESS", process_event("exec", event)),
        Event::ProcessExit(event) => (DIM, "PROCESS", process_event("exit", event)),
        Event::FlowCut(cut) => flow_cut(cut),
        Event::Loss(loss) => (ALARM, "LOSS", format!("{ALARM}{} lost: {}{ALARM:#}", loss.count, loss.cause.as_str())),
        Event::DaemonReady(coverage) => (NOTE, "DAEMON", covered("ready", coverage)),
        Event::CoverageChanged(change) => (ALARM, "COVERAGE", coverage_changed(change)),
        Event::PolicyRejected(no) => (BAD, "POLICY", rejected(&no.error, no.generation)),
        Event::CatalogueRejected(no) => (BAD, "CATALOGUE", rejected(&no.error, no.generation)),
        Event::DaemonStarted(_) | Event::DaemonAdopted(_) | Event::DaemonStopping(_) => (NOTE, "DAEMON", daemon(event)),
        Event::Detached(_) => (ALARM, "DETACHED", daemon(event)),
        Event::PolicyLoaded(_) => (NOTE, "POLICY", daemon(event)),
        Event::CatalogueChanged(_) => (NOTE, "CATALOGUE", daemon(event)),
    }
}

fn daemon(event: &Event) -> String {
    match event {
        Event::DaemonStarted(started) => {
            let (version, kernel) = (shown(&started.version), shown(&started.kernel));
            format!("started  version {version} pid {} kernel {kernel}", started.pid)
        }
        Event::DaemonAdopted(now) => {
            let (tasks, processes, revoked) = (now.tasks, now.processes, now.revoked);
            let decided: u64 = now.decisions.values().sum();
            format!(
                "took over  away {}ms  tasks {tasks} processes {processes} revoked {revoked}  decided meanwhile {decided}",
                now.away_ms
            )
        }
        Event::DaemonStopping(stopping) => {
            let then = if stopping.stays_enforced { "  what is in force stays in force" } else { "" };
            format!("stopping  {}{then}", shown(&stopping.why))
        }
        Event::Detached(gone) => {
            format!("nothing is enforced  processes killed {} left running {}", gone.killed, gone.left_running)
        }
        Event::PolicyLoaded(set) => {
            format!("generation {} in force  policies {} audited {}", set.generation, set.policies, set.audited)
        }
        Event::CatalogueChanged(now) => {
            format!("secrets {} directories {}", now.secrets, now.directories)
        }
        _ => String::new(),
    }
}

fn decided(decision: &Decision) -> (Style, &'static str, String) {
    let (style, word) = match decision.effect {
        Effect::Allow => (GOOD, "ALLOW"),
        Effect::Deny => (BAD, "DENY"),
        Effect::WouldDeny => (WARNING, "WOULD_DENY"),
    };
    let mut rest = format!(
        "{:7} {:RESOURCE$}  {}  {}  {}",
        decision.action.as_str(),
        resource(&decision.resource),
        who(&decision.task),
        tree(&decision.process),
        why(decision.reason, &decision.policies),
    );
    push_if(&mut rest, decision.hop > 0, format_args!("{} tasks up", decision.hop));
    if let Some(shadow) = &decision.shadow {
        push_if(&mut rest, true, format_args!("{}", audited(shadow)));
    }
    push_if(&mut rest, true, format_args!("{}us", decision.latency_us));
    match decision.repeat_of {
        Some(first) => push_if(&mut rest, true, format_args!("{} more like {first}", decision.count)),
        None => push_if(&mut rest, decision.count > 1, format_args!("{} times", decision.count)),
    }
    if decision.effect != Effect::Allow {
        let advice = decision.policies.iter().filter_map(|policy| policy.advice.as_ref());
        advice.for_each(|advice| push_if(&mut rest, true, format_args!("(advice: {advice:?})")));
    }
    (style, word, rest)
}

fn push_if(line: &mut String, there: bool, part: impl Display) {
    if there {
        // Writing to a string does not fail.
        let _ = write!(line, "  {part}");
    }
}

fn resource(resource: &Resource) -> String {
    match resource {
        Resource::Endpoint { address, port, protocol, hosts, labels, .. } => {
            let hosts: String = hosts.iter().map(|host| format!(" {}", shown(host))).collect();
            format!("{}/{}{hosts} {}", SocketAddr::new(*address, *port), protocol.as_str(), list(labels))
        }
        Resource::Secret { path: Some(path), labels, .. } => format!("{} {}", shown(path), list(labels)),
        Resource::Secret { path: None, device, inode, labels } => format!("inode {device}:{inode} {}", list(labels)),
        Resource::Unix { name, labels } => {
            format!("unix {} {}", name.as_deref().map_or_else(|| "unnamed".to_owned(), shown), list(labels))
        }
        Resource::Facility { name, detail: None } => shown(name),
        Resource::Facility { name, detail: Some(detail) } => format!("{} {}", shown(name), shown(detail)),
        Resource::Name { name, record_type, labels } => {
            format!("{} {} {}", shown(name), shown(record_type), list(labels))
        }
        Resource::Socket { family, socket_type, protocol } => {
            format!("family {family} type {socket_type} protocol {protocol}")
        }
    }
}

fn who(task: &TaskRef) -> String {
    let mut text = format!("task {} agent {}", shown(task.task.as_str()), shown(&task.agent));
    if let Some(user) = &task.on_behalf_of {
        let _ = write!(text, " for {}", shown(user));
    }
    text
}

/// The process, and the nearest of those above it.
fn tree(process: &Process) -> String {
    let own = format!("{}({})", shown(&process.comm), process.pid);
    let above = process.lineage.iter().take(ABOVE).map(|up| format!("{}({})", shown(&up.comm), up.pid));
    let more = (process.lineage.len() > ABOVE).then(|| "..".to_owned());
    std::iter::once(own).chain(above).chain(more).collect::<Vec<String>>().join(" < ")
}

/// The policies that determined the decision, or else the class of reasons; for `error` both.
fn why(reason: Reason, policies: &[PolicyNote]) -> String {
    let named = policies.iter().map(|policy| match &policy.reason {
        Some(reason) => format!("{}: {reason:?}", shown(&policy.id)),
        None => shown(&policy.id),
    });
    let named = named.collect::<Vec<String>>().join(", ");
    match reason {
        _ if named.is_empty() => reason.as_str().to_owned(),
        Reason::Policy => format!("by {named}"),
        _ => format!("{} by {named}", reason.as_str()),
    }
}

fn audited(shadow: &Shadow) -> String {
    format!("audit: {} {}", shadow.effect.as_str(), why(shadow.reason, &shadow.policies))
}

fn task_started(started: &TaskStarted) -> String {
    let (read, connect) = (list(&started.grant_read), list(&started.grant_connect));
    let mut text = format!(
        "started  {} intent {}  {}  read {read} connect {connect}  until {}",
        who(&started.task),
        shown(&started.task.intent),
        started.mode.as_str(),
        until(started.expires_at),
    );
    if let Some(process) = &started.process {
        push_if(&mut text, true, tree(process));
    }
    if let Some(argv) = &started.argv {
        push_if(&mut text, true, argv.iter().map(|argument| shown(argument)).collect::<Vec<String>>().join(" "));
    }
    text
}

fn until(at: Timestamp) -> impl Display {
    at.strftime("%Y-%m-%dT%H:%M:%SZ")
}

fn task_over(how: &str, over: &TaskOver) -> String {
    let (allowed, denied, would) = (over.allowed, over.denied, over.would_denied);
    let task = who(&over.task);
    format!("{how}  {task}  {:?}  allowed {allowed} denied {denied} would_denied {would}", over.why)
}

fn flow_cut(cut: &FlowCut) -> (Style, &'static str, String) {
    let (style, word) = if cut.effect == Effect::Deny { (BAD, "CUT") } else { (WARNING, "WOULD_CUT") };
    let end = |end: Option<SocketAddr>| end.map_or_else(|| "-".to_owned(), |end| end.to_string());
    let flow = format!("{} > {}/{}", end(cut.local), end(cut.remote), cut.protocol.as_str());
    let mut text = format!("{:7} {flow:RESOURCE$}  {}", "flow", who(&cut.task));
    if let Some(process) = &cut.process {
        push_if(&mut text, true, tree(process));
    }
    push_if(&mut text, true, why(cut.reason, &cut.policies));
    if let Some(bytes) = cut.bytes_acked {
        push_if(&mut text, true, format_args!("{bytes} bytes acknowledged"));
    }
    push_if(&mut text, cut.count > 1, format_args!("{} more", cut.count));
    if let Some(error) = &cut.error {
        push_if(&mut text, true, format_args!("not destroyed: {error:?}"));
    }
    (style, word, text)
}

fn process_event(how: &str, event: &ProcessEvent) -> String {
    let exe = event.process.exe.as_deref().map_or_else(|| "-".to_owned(), shown);
    let mut text = format!("{how}  {exe}  {}  {}", who(&event.task), tree(&event.process));
    if let Some(left) = event.remaining {
        push_if(&mut text, true, format_args!("{left} left"));
    }
    text
}

fn coverage_changed(change: &CoverageChanged) -> String {
    let tier = if change.from == change.to {
        format!("tier {} as before", tier_word(change.to))
    } else {
        format!("tier {} -> {}", tier_word(change.from), tier_word(change.to))
    };
    change.paths.iter().fold(tier, |mut text, path| {
        let (name, from, to) = (shown(&path.path), shown(&path.from), shown(&path.to));
        push_if(&mut text, true, format_args!("{name} {from} -> {to}"));
        text
    })
}

fn tier_word(tier: Tier) -> &'static str {
    match tier {
        Tier::Full => "full",
        Tier::Reduced => "reduced",
    }
}

fn covered(how: &str, coverage: &Coverage) -> String {
    let tier = tier_word(coverage.tier);
    let mut text = format!("{how}  tier {tier}  generation {}", coverage.generation);
    for path in &coverage.paths {
        push_if(&mut text, true, format_args!("{} {}", shown(&path.path), shown(&path.state)));
    }
    text
}

fn rejected(error: &str, generation: u32) -> String {
    format!("rejected, generation {generation} stays  {error:?}")
}

fn list(labels: &LabelSet) -> String {
    let labels: Vec<String> = labels.iter().map(|label| shown(label.as_str())).collect();
    format!("[{}]", labels.join(" "))
}

/// A text as it is if it is a plain name or path, else quoted, with everything escaped that is not a printable character.
fn shown(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@+=%,~".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::record::testing::{cut, decision, over, process, started, task, time};
    use crate::record::{Cause, Loss};

    fn plain(event: Event) -> String {
        let record = Record { time: time(), sequence: 9, event };
        bare(&line(&record))
    }

    /// Takes out the colours of this file, and no other escape.
    fn bare(line: &str) -> String {
        let ours = [DIM, GOOD, BAD, WARNING, ALARM, NOTE].map(|style| style.render().to_string());
        ours.iter().fold(line.replace("\u{1b}[0m", ""), |text, colour| text.replace(colour.as_str(), ""))
    }

    fn of(change: impl FnOnce(&mut Decision)) -> String {
        let mut made = decision();
        change(&mut made);
        plain(Event::Decision(Box::new(made)))
    }

    #[test]
    fn a_denied_connection_says_who_what_and_why() {
        assert_eq!(
            of(|_| {}),
            "03:04:05.123 DENY       connect 10.0.0.5:443/tcp [net/internal]               task t-0000000000002 \
             agent coder for alice  curl(4242) < sh(4240) < python(4200)  by no-internal: \"not for agents\"  27us"
        );
    }

    #[test]
    fn resources_of_every_type_are_readable() {
        let labels = Arc::new(crate::record::testing::labels(&["secret/ssh"]));
        let endpoint = of(|d| {
            let address = "2001:db8::1".parse().unwrap();
            let hosts = Arc::new(["api.example".into()].into());
            let protocol = crate::domain::Protocol::Udp;
            d.resource =
                Resource::Endpoint { address, port: 53, protocol, hosts, labels: labels.clone(), decided: None };
        });
        assert!(endpoint.contains("[2001:db8::1]:53/udp api.example [secret/ssh]"), "{endpoint}");
        let secret = |path: Option<&str>| Resource::Secret {
            path: path.map(Arc::from),
            device: 8,
            inode: 99,
            labels: labels.clone(),
        };
        assert!(of(|d| d.resource = secret(Some("/root/.ssh/id"))).contains(" /root/.ssh/id [secret/ssh]"));
        assert!(of(|d| d.resource = secret(None)).contains(" inode 8:99 [secret/ssh]"));
        let socket = of(|d| d.resource = Resource::Socket { family: 17, socket_type: 3, protocol: 768 });
        assert!(socket.contains(" family 17 type 3 protocol 768 "), "{socket}");
    }

    #[test]
    fn hops_repeats_audits_and_missing_policies_are_told() {
        let line = of(|d| {
            d.effect = Effect::WouldDeny;
            d.policies = Arc::from([]);
            d.hop = 2;
            d.count = 7;
            d.repeat_of = Some(3);
            d.reason = Reason::Timeout;
            let reason = Reason::NoPermit;
            d.shadow = Some(Arc::new(Shadow { effect: Effect::Deny, reason, policies: Arc::from([]) }));
        });
        assert!(line.contains(" WOULD_DENY connect "), "{line}");
        assert!(
            line.ends_with("python(4200)  timeout  2 tasks up  audit: deny no_permit  27us  7 more like 3"),
            "{line}"
        );
        assert!(of(|d| d.count = 4).ends_with("27us  4 times"));
        let failed = of(|d| d.reason = Reason::Error);
        assert!(failed.contains("  error by no-internal: \"not for agents\"  "), "{failed}");
    }

    #[test]
    fn denials_end_with_the_advice_and_permissions_have_none() {
        let advised = |effect| {
            of(|d| {
                let note = |id: &str, advice: Option<&str>| {
                    let advice = advice.map(Arc::from);
                    PolicyNote { id: id.into(), reason: None, advice }
                };
                d.effect = effect;
                d.policies = [note("a", Some("ask \u{1b}")), note("b", None)].into();
            })
        };
        for effect in [Effect::Deny, Effect::WouldDeny] {
            let line = advised(effect);
            assert!(line.ends_with("  by a, b  27us  (advice: \"ask \\u{1b}\")"), "{line}");
        }
        assert!(advised(Effect::Allow).ends_with("  by a, b  27us"));
    }

    #[test]
    fn only_the_nearest_of_many_ancestors_are_shown() {
        let up = |count| {
            let mut process = process();
            let first = process.lineage[0].clone();
            process.lineage = std::iter::repeat_n(first, count).collect();
            of(|d| d.process = process)
        };
        assert!(up(0).contains("  curl(4242)  by "));
        assert!(up(3).contains("  curl(4242) < sh(4240) < sh(4240) < sh(4240)  by "));
        assert!(up(4).contains("  curl(4242) < sh(4240) < sh(4240) < sh(4240) < ..  by "));
    }

    #[test]
    fn lifecycle_and_losses_have_their_words() {
        let started = plain(Event::TaskStarted(Box::new(started())));
        assert!(started.starts_with("03:04:05.123 TASK       started  task t-0000000000002 agent coder"), "{started}");
        assert!(started.contains("read [secret/git] connect [net/llm]  until 2026-01-02T03:04:05Z"), "{started}");
        assert!(started.ends_with("  curl x"), "{started}");
        let ended = plain(Event::TaskRevoked(over()));
        assert!(ended.contains("revoked") && ended.ends_with("allowed 5 denied 2 would_denied 0"), "{ended}");
        let exit = ProcessEvent { task: task(), process: process(), remaining: Some(0) };
        let exit = plain(Event::ProcessExit(Box::new(exit)));
        assert!(exit.contains("PROCESS    exit  /usr/bin/curl") && exit.ends_with("0 left"), "{exit}");
        let line = plain(Event::FlowCut(Box::new(cut())));
        let flow = "CUT        flow    10.0.0.9:40412 > 10.0.0.5:443/tcp";
        assert!(line.contains(flow) && line.ends_with("  revoked  5120 bytes acknowledged"), "{line}");
        let loss = plain(Event::Loss(Loss { cause: Cause::Undecodable, count: 4 }));
        assert_eq!(loss, "03:04:05.123 LOSS       4 lost: undecodable");
    }

    #[test]
    fn effects_are_coloured_and_losses_stand_out() {
        let coloured = |event| line(&Record { time: time(), sequence: 9, event });
        assert!(coloured(Event::Decision(Box::new(decision()))).contains(&format!("{BAD}DENY")));
        assert!(
            coloured(Event::Loss(Loss { cause: Cause::Undecodable, count: 4 })).contains(&format!("{ALARM}4 lost"))
        );
    }

    #[test]
    fn what_agents_choose_cannot_command_the_terminal_or_forge_the_line() {
        let evil = "x\u{1b}[2J\u{9b}31m\u{7f}\r\n\u{202e}\u{200b}\u{2066}\u{feff}\\";
        let harmless = |text: &str| {
            let odd = |c: char| c.is_control() || "\u{202e}\u{200b}\u{2066}\u{feff}".contains(c);
            assert!(!text.contains(odd), "{text:?}");
        };
        harmless(&of(|d| {
            let mut process = process();
            process.comm = evil.into();
            let mut above = process.lineage[0].clone();
            above.comm = evil.into();
            process.lineage = [above].into();
            d.process = process;
            let (device, inode, labels) = (1, 2, Arc::default());
            d.resource = Resource::Secret { path: Some(evil.into()), device, inode, labels };
            d.policies = [PolicyNote { id: evil.into(), reason: Some(evil.into()), advice: Some(evil.into()) }].into();
            d.task = Arc::new(TaskRef { agent: evil.into(), on_behalf_of: Some(evil.into()), ..(*task()).clone() });
        }));
        let mut begun = started();
        begun.argv = Some(vec![evil.into()]);
        begun.task = Arc::new(TaskRef { intent: evil.into(), ..(*task()).clone() });
        harmless(&plain(Event::TaskStarted(Box::new(begun))));
        harmless(&plain(Event::TaskEnded(Box::new(TaskOver { why: evil.into(), ..*over() }))));
        harmless(&plain(Event::PolicyRejected(crate::record::Rejected { error: evil.into(), generation: 1 })));
        harmless(&bare(&unknown(evil)));
        let process = Process { comm: "curl(1) < init".into(), ..process() };
        assert!(of(|d| d.process = process).contains("\"curl(1) < init\"(4242) <"));
    }
}
