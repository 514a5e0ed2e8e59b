//! Connections of a task that may not have them any more: the program is told at once, the record says which, and no other
//! connection is touched. And whose a connection is, for who asks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::meeting::Meeting;
use crate::harness::options::Options;
use crate::harness::record::Record;
use crate::harness::run::run;
use crate::harness::server::{expect_silence, expect_text};
use crate::harness::wait::{slowness, until};
use crate::harness::world::{Lab, MORE, OPEN, World};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("flows::blocked_read_ends_when_revoked", |lab| tcp(lab, Cause::Revoked, false, "live-read")),
        ("flows::blocked_write_ends_when_revoked", |lab| tcp(lab, Cause::Revoked, false, "live-fill")),
        ("flows::blocked_read_ends_when_expired", |lab| tcp(lab, Cause::Expired, false, "live-read")),
        ("flows::ipv6_ends_when_revoked", |lab| tcp(lab, Cause::Revoked, true, "live-read")),
        ("flows::udp_ends_when_revoked", udp),
        ("flows::hundred_end_when_revoked", hundred),
        ("flows::left_to_others_end_after_the_drain", drained),
        ("flows::other_network_namespace", other_namespace),
        ("flows::audit_mode_is_told_and_left_alone", audited),
        ("flows::whois_names_the_agent_behind_a_proxy", whois),
        ("flows::whois_of_nobody", whois_nobody),
    ])
}

/// With daemons of their own.
pub(crate) fn own_tests() -> Vec<Test> {
    on_every_tier([
        ("flows::policy_cuts_what_it_forbids_and_nothing_else", policy),
        ("flows::many_reloads_lose_no_byte_of_a_live_flow", reloads),
        ("flows::sockets_carry_their_agents_mark", marks),
    ])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Revoked,
    Expired,
}

impl Cause {
    fn word(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

fn revoke(world: &World, task: &str) -> Result<()> {
    world.daemon.ask(&["task", "revoke", task]).map(drop)
}

/// What a program may be told of a connection that is no more.
fn expect_told(answer: &[String]) -> Result<()> {
    let told = ["errno ECONNABORTED", "errno ECONNRESET", "errno EPIPE"];
    ensure!(answer.len() == 1 && told.contains(&answer.concat().as_str()), "the program was told {answer:?}");
    Ok(())
}

/// The records of connections of this task that were cut.
fn cuts(world: &World, task: &str) -> Result<Vec<Record>> {
    let records = world.daemon.records()?.into_iter();
    Ok(records.filter(|record| record.kind() == "flow_cut" && record.task() == task).collect())
}

fn cut(world: &World, task: &str, reason: &str, remote: &str) -> Result<Record> {
    let record = world.daemon.record(&format!("flow_cut of {task}"), |record| {
        record.kind() == "flow_cut" && record.task() == task && record.text("/remote") == remote
    })?;
    record.expect("/reason", reason)?;
    record.expect("/effect", "deny")?;
    ensure!(record.0.pointer("/destroyed") == Some(&Value::Bool(true)), "not destroyed: {}", record.0);
    ensure!(record.number("/process/pid") > 0, "no process in {}", record.0);
    Ok(record)
}

fn tcp(lab: &Lab, cause: Cause, ipv6: bool, blocked: &str) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let server = if ipv6 { &world.open.tcp6 } else { &world.open.tcp4 };
    let address = server.address()?.to_string();
    let task = world.task().connect(OPEN);
    let mut session = if cause == Cause::Expired { task.ttl(2) } else { task }.session()?;
    session.expect(&["live-tcp", &address, "1"], &["ok"])?;
    let mut stream = server.next()?;
    session.expect(&["live-send", "0", "before"], &["ok"])?;
    expect_text(&mut stream, "before")?;
    let mut free = world.unmarked_session()?;
    free.expect(&["live-tcp", &address, "1"], &["ok"])?;
    let mut free_stream = server.next()?;
    let task = session.task()?;
    session.tell(&[blocked, "0"])?;
    if cause == Cause::Revoked {
        revoke(&world, &task)?;
    }
    expect_told(&session.answer()?)?;
    let record = cut(&world, &task, cause.word(), &address)?;
    record.expect("/protocol", "tcp")?;
    ensure!(record.number("/bytes_acked") >= 6, "the peer acknowledged six bytes: {}", record.0);
    if blocked == "live-read" {
        expect_silence(&mut stream)?;
    }
    free.expect(&["live-send", "0", "still"], &["ok"])?;
    expect_text(&mut free_stream, "still")
}

fn udp(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    for address in [world.open.udp()?, world.open.udp6.address()?.to_string()] {
        let mut session = world.task().connect(OPEN).session()?;
        session.expect(&["live-udp", &address, "1"], &["ok"])?;
        session.expect(&["live-send", "0", "before"], &["ok"])?;
        let task = session.task()?;
        session.tell(&["live-read", "0"])?;
        revoke(&world, &task)?;
        expect_told(&session.answer()?)?;
        cut(&world, &task, "revoked", &address)?.expect("/protocol", "udp")?;
    }
    ensure!(world.open.arrived()? == 2, "not the two datagrams from before");
    Ok(())
}

fn hundred(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let mut session = world.task().connect(OPEN).session()?;
    session.expect(&["live-tcp", &world.open.tcp()?, "100"], &["ok"])?;
    let task = session.task()?;
    revoke(&world, &task)?;
    until("a hundred errors", 10, || Ok((session.ask(&["live-dead"])? == ["100", "ok"]).then_some(())))?;
    until("a hundred records", 10, || Ok((cuts(&world, &task)?.len() >= 100).then_some(())))?;
    let records = cuts(&world, &task)?;
    ensure!(records.len() == 100, "{} records", records.len());
    let mut ends: Vec<&str> = records.iter().map(|record| record.text("/local")).collect();
    ends.sort_unstable();
    ends.dedup();
    ensure!(ends.len() == 100, "some connection was recorded twice");
    world.open.arrived().map(drop)
}

/// A connection that a process outside of the task holds lives for as long as it drains, and no longer.
fn drained(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let meeting = Meeting::new(&world)?;
    let mut session = world.task().connect(OPEN).session()?;
    let task = session.task()?;
    session.tell(&["give-connected", &meeting.path(), &world.open.tcp()?])?;
    let mut held = TcpStream::from(meeting.take()?);
    session.answer()?;
    session.close()?;
    world.event(&task, "task_ended")?;
    held.set_read_timeout(Some(crate::harness::wait::bound(10)))?;
    let error = held.read(&mut [0]).err().context("the connection ended without an error")?;
    ensure!(error.raw_os_error() == Some(libc::ECONNABORTED), "{error}");
    cut(&world, &task, "ended", &world.open.tcp()?)?;
    world.open.arrived().map(drop)
}

fn other_namespace(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().connect("net/loopback").session()?;
    let task = session.task()?;
    session.tell(&["netns", "netns-up", "live-alone"])?;
    let record = world.decision(&task, "connect", "allow", "policy")?;
    let remote = format!("127.0.0.1:{}", record.number("/resource/port"));
    // It may still be on its way from there to its read.
    revoke(&world, &task)?;
    expect_told(&session.answer()?)?;
    cut(&world, &task, "revoked", &remote).map(drop)
}

fn audited(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let mut session = world.task().audit().session()?;
    session.expect(&["live-tcp", &world.open.tcp()?, "1"], &["ok"])?;
    let mut stream = world.open.tcp4.next()?;
    let task = session.task()?;
    revoke(&world, &task)?;
    let record = world.event(&task, "flow_cut")?;
    record.expect("/effect", "would_deny")?;
    ensure!(record.0.pointer("/destroyed") == Some(&Value::Bool(false)), "destroyed: {}", record.0);
    session.expect(&["live-send", "0", "still"], &["ok"])?;
    expect_text(&mut stream, "still")?;
    // Another task's end makes the daemon look again, and it says nothing twice.
    let mut other = world.task().connect(OPEN).session()?;
    other.expect(&["live-tcp", &world.open.tcp()?, "1"], &["ok"])?;
    let other_task = other.task()?;
    revoke(&world, &other_task)?;
    world.event(&other_task, "flow_cut")?;
    ensure!(cuts(&world, &task)?.len() == 1, "told more than once");
    world.open.arrived().map(drop)
}

const CLOSED: &str = r#"
@id("test/closed")
@reason("closed for today")
forbid (principal, action == Action::"connect", resource in Label::"test/open");
"#;

/// A reload that forbids one of two destinations; the other flow's bytes all come, in their order.
fn policy(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    let mut session = world.task().connect(OPEN).connect(MORE).session()?;
    let task = session.task()?;
    let (open, more) = (world.open.tcp()?, world.more.tcp()?);
    session.expect(&["live-tcp", &open, "1"], &["ok"])?;
    session.expect(&["live-tcp", &more, "1"], &["ok"])?;
    let mut shut = world.open.tcp4.next()?;
    let mut kept = world.more.tcp4.next()?;
    for text in ["one", "two"] {
        session.expect(&["live-send", "1", text], &["ok"])?;
    }
    world.daemon.place.write("etc/policies/closed.cedar", CLOSED)?;
    world.daemon.signal(Signal::SIGHUP)?;
    let record = cut(&world, &task, "policy", &open)?;
    record.expect_policy("test/closed")?;
    expect_told(&session.ask(&["live-send", "0", "late"])?)?;
    expect_silence(&mut shut)?;
    session.expect(&["live-send", "1", "three"], &["ok"])?;
    // A reload that changes nothing for it cuts nothing.
    world.daemon.signal(Signal::SIGHUP)?;
    session.expect(&["live-send", "1", "four"], &["ok"])?;
    expect_text(&mut kept, "onetwothreefour")?;
    ensure!(cuts(&world, &task)?.len() == 1, "something else was cut");
    session.close()?;
    world.daemon.stop().map(drop)
}

fn expect_at(found: &Value, pointer: &str, expected: impl Into<Value>) -> Result<()> {
    let expected = expected.into();
    ensure!(found.pointer(pointer) == Some(&expected), "`{pointer}` is not {expected} in {found}");
    Ok(())
}

/// A proxy asks about the connection that it took in, with the addresses as it sees them.
fn whois(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let mut session = world.task().connect(OPEN).session()?;
    let task = session.task()?;
    session.expect(&["live-tcp", &world.open.tcp()?, "1"], &["ok"])?;
    let accepted = world.open.tcp4.next()?;
    let (own, agent) = (accepted.local_addr()?.to_string(), accepted.peer_addr()?.to_string());
    let found = world.daemon.ask(&["whois", &own, &agent])?;
    expect_at(&found, "/task/id", task.as_str())?;
    expect_at(&found, "/task/agent", "coder")?;
    expect_at(&found, "/side", "remote")?;
    expect_at(&found, "/address", agent.as_str())?;
    expect_at(&found, "/process/comm", "writ-probe")?;
    // As somebody on the agent's side would ask, and by the one end alone.
    expect_at(&world.daemon.ask(&["whois", &agent, &own])?, "/side", "local")?;
    expect_at(&world.daemon.ask(&["whois", &agent])?, "/task/id", task.as_str())?;
    // What the proxy itself opens belongs to no agent, whatever the agent does.
    let upstream = TcpStream::connect(world.more.tcp4.address()?)?;
    let ends = (upstream.local_addr()?.to_string(), upstream.peer_addr()?.to_string());
    expect_refusal(&world, &["whois", &ends.0, &ends.1], "belongs to no agent")?;
    world.more.arrived()?;
    session.expect(&["live-udp", &world.open.udp()?, "1"], &["ok"])?;
    let local = session.ask(&["live-local", "1"])?;
    let local = local.first().context("no address")?;
    expect_at(&world.daemon.ask(&["whois", "--udp", &world.open.udp()?, local])?, "/protocol", "udp")?;
    // A second connection to the same server: its end alone says too little.
    session.expect(&["live-tcp", &world.open.tcp()?, "1"], &["ok"])?;
    expect_refusal(&world, &["whois", &own], "name both ends")?;
    world.open.arrived().map(drop)
}

fn expect_refusal(world: &World, arguments: &[&str], text: &str) -> Result<()> {
    let ran = run(world.daemon.writ(arguments))?;
    ensure!(ran.status.code() == Some(1) && ran.stderr.contains(text), "`{text}` was expected: {ran:?}");
    Ok(())
}

fn whois_nobody(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    // A port that was just free, between two ends that do not speak.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let nobody: SocketAddr = listener.local_addr()?;
    expect_refusal(&world, &["whois", &nobody.to_string(), "127.0.0.1:1"], "there is no connection")?;
    // Those inside of tasks may not ask, as for everything else.
    let mut stream = std::os::unix::net::UnixStream::connect(world.daemon.place.socket())?;
    stream.write_all(b"GET /v1/whois?remote=nonsense HTTP/1.1\r\nHost: writ\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("ADDRESS:PORT"), "{answer}");
    Ok(())
}

/// What was decided goes over to each new generation: a connection that talks all the while loses nothing, and what was met
/// before is answered by the kernel's own table.
fn reloads(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    let mut session = world.task().connect(OPEN).session()?;
    let task = session.task()?;
    let (tcp, udp) = (world.open.tcp()?, world.open.udp()?);
    session.expect(&["live-tcp", &tcp, "1"], &["ok"])?;
    session.expect(&["live-udp", &udp, "1"], &["ok"])?;
    let mut stream = world.open.tcp4.next()?;
    let generation = || -> Result<u64> {
        Ok(world.daemon.status()?.pointer("/generation").and_then(Value::as_u64).unwrap_or_default())
    };
    let asked = world.daemon.counter("upcalls")?;
    for round in 0..5 {
        let before = generation()?;
        world.daemon.signal(Signal::SIGHUP)?;
        until("the next generation", 15, || {
            session.expect(&["live-send", "0", "x"], &["ok"])?;
            expect_text(&mut stream, "x")?;
            session.expect(&["live-send", "1", "x"], &["ok"])?;
            ensure!(world.open.udp4.arrived()? == 1, "a datagram was lost in round {round}");
            Ok((generation()? > before).then_some(()))
        })?;
        session.expect(&["live-tcp", &tcp, "1"], &["ok"])?;
    }
    // Carrying over has a budget of processor time, which an emulated processor spends on its first verdict.
    let again = world.daemon.counter("upcalls")? - asked;
    ensure!(again == 0 || slowness() > 1, "what was decided was asked {again} times again");
    ensure!(cuts(&world, &task)?.is_empty(), "a connection was cut");
    session.close()?;
    world.daemon.stop().map(drop)
}

const MARKED: &str = "[[intent]]\nid = \"fix-bug\"\n[[agent]]\nid = \"coder\"\nsocket_mark = 5\n\
                      [[agent]]\nid = \"plain\"\n[[agent]]\nid = \"large\"\nsocket_mark = 16\n";

fn marks(lab: &Lab) -> Result<()> {
    let options = Options::default().setting("socket_mark_mask = 0x00f00000").file("agents.toml", MARKED);
    let world = lab.own(options)?;
    let mut session = world.task().connect(OPEN).session()?;
    let task = session.task()?;
    session.expect(&["live-tcp", &world.open.tcp()?, "1"], &["ok"])?;
    session.expect(&["live-udp", &world.open.udp()?, "1"], &["ok"])?;
    let mark = 0x0050_0000_u64;
    for flow in ["0", "1"] {
        session.expect(&["live-mark", flow], &[&mark.to_string(), "ok"])?;
    }
    session.expect(&["live-set-mark", "0", "0"], &["errno EPERM"])?;
    session.expect(&["live-mark", "0"], &[&mark.to_string(), "ok"])?;
    ensure!(world.event(&task, "task_started")?.number("/socket_mark") == mark, "the record says otherwise");
    expect_at(&world.daemon.ask(&["task", "show", &task])?, "/socket_mark", mark)?;
    let accepted = world.open.tcp4.next()?;
    let ends = (accepted.local_addr()?.to_string(), accepted.peer_addr()?.to_string());
    expect_at(&world.daemon.ask(&["whois", &ends.0, &ends.1])?, "/mark", mark)?;
    let refused = world.task().agent("large").run(&["env", "WRIT_TASK"])?;
    ensure!(refused.stderr.contains("has no room in the mask 0xf00000"), "{refused:?}");
    let mut plain = world.task().agent("plain").connect(OPEN).session()?;
    plain.expect(&["live-tcp", &world.open.tcp()?, "1"], &["ok"])?;
    plain.expect(&["live-mark", "0"], &["0", "ok"])?;
    session.close()?;
    plain.close()?;
    world.daemon.stop().map(drop)
}
