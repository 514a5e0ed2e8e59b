//! Waiting for connections: policy decides where, and what was not permitted is never answered.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::harness::machine::Tier;
use crate::harness::run::Session;
use crate::harness::server::{expect_silence, expect_text};
use crate::harness::wait::{bound, slowness};
use crate::harness::world::{Lab, OPEN, World};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = on_every_tier([
        ("listen::loopback", |lab| served(lab, &["listen", "127.0.0.1:0"])),
        ("listen::loopback_v6", |lab| served(lab, &["listen", "[::1]:0"])),
        ("listen::loopback_v4_mapped", |lab| served(lab, &["listen", "[::ffff:127.0.0.1]:0"])),
        ("listen::any", |lab| refused_and_granted(lab, &["listen", "0.0.0.0:0"], "127.0.0.1")),
        ("listen::any_v6", |lab| refused_and_granted(lab, &["listen", "[::]:0"], "::1")),
        ("listen::any_v6_for_v4", |lab| refused_and_granted(lab, &["listen", "[::]:0"], "127.0.0.1")),
        ("listen::without_an_address", |lab| refused_and_granted(lab, &["listen-unbound", "0.0.0.0:0"], "127.0.0.1")),
        ("listen::after_it_was_connected", after_connect),
        ("listen::answers_end_when_revoked", revoked),
        ("listen::audit_mode_lets_through", audited),
    ]);
    all.push(Test { name: "listen::inherited", needs: Tier::Full, body: inherited });
    all
}

/// Where a session listens.
fn place(session: &mut Session) -> Result<SocketAddr> {
    let answer = session.ask(&["listen-at"])?;
    let at = answer.first().context("no address was told")?;
    at.parse().with_context(|| format!("`{at}` is no address"))
}

/// As a client reaches it.
fn reached(session: &mut Session, ip: Option<&str>) -> Result<SocketAddr> {
    let at = place(session)?;
    let ip = ip.map_or(Ok(at.ip()), str::parse)?;
    Ok(SocketAddr::new(ip.to_canonical(), at.port()))
}

/// A client gets its answer, without a handshake that had to be sent again (which takes a second).
fn expect_served(session: &mut Session, at: SocketAddr) -> Result<()> {
    let began = Instant::now();
    let mut client = TcpStream::connect_timeout(&at, bound(5)).context("no connection")?;
    session.expect(&["accept"], &["ok"])?;
    expect_text(&mut client, "hello")?;
    let took = began.elapsed();
    ensure!(slowness() > 1 || took < Duration::from_millis(900), "the first client waited for {took:?}");
    Ok(())
}

fn served(lab: &Lab, words: &[&str]) -> Result<()> {
    let world = lab.shared()?;
    let mut free = world.unmarked_session()?;
    free.expect(words, &["ok"])?;
    let at = reached(&mut free, None)?;
    expect_served(&mut free, at).context("without a mark")?;
    let mut session = world.task().session()?;
    session.expect(words, &["ok"])?;
    for turn in ["first", "second"] {
        let at = reached(&mut session, None)?;
        expect_served(&mut session, at).with_context(|| format!("the {turn} client"))?;
    }
    let record = world.decision(&session.task()?, "listen", "allow", "policy")?;
    record.expect_policy("test/listen").or_else(|_| record.expect("/source", "cache"))?;
    let labels: Vec<_> = record.array("/resource/labels").iter().filter_map(|label| label.as_str()).collect();
    ensure!(labels.contains(&"net/loopback"), "labels {labels:?}");
    session.close().map(drop)
}

/// Refused at once where the kernel can, else never answered.
fn expect_unheard(world: &World, session: &mut Session, words: &[&str], ip: &str) -> Result<()> {
    if world.machine.tier == Tier::Full {
        return session.expect(words, &["errno EPERM"]);
    }
    session.expect(words, &["ok"])?;
    expect_no_answer(session, ip)
}

fn expect_no_answer(session: &mut Session, ip: &str) -> Result<()> {
    let at = reached(session, Some(ip))?;
    // Kernels before 6.6 do not show the handshake to the program; the answer itself they do.
    match TcpStream::connect_timeout(&at, Duration::from_millis(1500)) {
        Err(error) => ensure!(error.kind() == ErrorKind::TimedOut, "the client was told {error}"),
        Ok(mut client) => {
            session.ask(&["accept"])?;
            expect_silence(&mut client)?;
        }
    }
    Ok(())
}

fn refused_and_granted(lab: &Lab, words: &[&str], ip: &str) -> Result<()> {
    let world = lab.shared()?;
    let mut free = world.unmarked_session()?;
    free.expect(words, &["ok"])?;
    let at = reached(&mut free, Some(ip))?;
    expect_served(&mut free, at).context("without a mark")?;
    let mut session = world.task().session()?;
    expect_unheard(&world, &mut session, words, ip)?;
    let record = world.decision(&session.task()?, "listen", "deny", "policy")?;
    record.expect_policy("baseline/listen-beyond-grant")?;
    let labels: Vec<_> = record.array("/resource/labels").iter().filter_map(|label| label.as_str()).collect();
    ensure!(labels.contains(&"net/any"), "labels {labels:?}");
    let mut granted = world.task().connect("net/any").session()?;
    granted.expect(words, &["ok"])?;
    let at = reached(&mut granted, Some(ip))?;
    expect_served(&mut granted, at).context("with a grant")?;
    world.decision(&granted.task()?, "listen", "allow", "policy").map(drop)
}

/// What a socket was allowed to connect to says nothing about what it may listen at.
fn after_connect(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().connect(OPEN).session()?;
    let words = ["connect-then-listen", &world.open.tcp()?];
    if world.machine.tier == Tier::Full {
        session.expect(&words, &["ok", "errno EPERM"])?;
    } else {
        session.expect(&words, &["ok", "ok"])?;
        expect_no_answer(&mut session, "127.0.0.1")?;
    }
    world.decision(&session.task()?, "listen", "deny", "policy").map(drop)
}

/// A connection that a task accepted ends with it, as one that it opened does.
fn revoked(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().session()?;
    let task = session.task()?;
    session.expect(&["listen", "127.0.0.1:0"], &["ok"])?;
    let at = reached(&mut session, None)?;
    expect_served(&mut session, at)?;
    let mut client = TcpStream::connect_timeout(&at, bound(5))?;
    world.daemon.ask(&["task", "revoke", &task])?;
    session.ask(&["accept"])?;
    expect_silence(&mut client)?;
    world.decision(&task, "send", "deny", "revoked").map(drop)
}

fn audited(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().audit().session()?;
    session.expect(&["listen", "0.0.0.0:0"], &["ok"])?;
    let at = reached(&mut session, Some("127.0.0.1"))?;
    expect_served(&mut session, at)?;
    world.decision(&session.task()?, "listen", "would_deny", "policy").map(drop)
}

/// A listener that was there before the task belongs to nobody who is asked about.
fn inherited(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let words = ["inherited-accept", "0"];
    let ran = world.task().stdin(listener).run(&words)?;
    ran.expect_refused()?;
    drop(client);
    world.decision(ran.task()?, "listen", "deny", "foreign_socket").map(drop)
}
