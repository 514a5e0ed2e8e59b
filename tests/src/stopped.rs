//! The daemon stands still or goes: what is enforced stays enforced.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::harness::options::Options;
use crate::harness::wait::{bound, slowness, until_instant};
use crate::harness::world::{Lab, MORE, OPEN, World};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("stopped::first_contact_is_refused_in_time", first_contact),
        ("stopped::daemon_lost", daemon_lost),
        ("stopped::daemon_lost_may_be_allowed", daemon_lost_allowed),
        ("stopped::cached_verdicts_hold", cached),
        ("stopped::expiry_holds", expiry),
        ("stopped::audit_mode_lets_through", audit),
        ("stopped::tasks_end_with_the_daemon", sigterm),
    ])
}

fn world(lab: &Lab, stale_after: &str) -> Result<World> {
    lab.own(Options::default().setting(&format!("stale_after = \"{stale_after}\"")))
}

/// The answer comes late, so the first contact is refused; the next one finds it.
fn first_contact(lab: &Lab) -> Result<()> {
    let world = world(lab, "1h")?;
    world.open.arrived()?;
    let mut session = world.task().connect(OPEN).session()?;
    let task = session.task()?;
    let frozen = world.daemon.freeze()?;
    let began = Instant::now();
    session.expect(&["tcp", &world.open.tcp()?], &["errno EPERM"])?;
    let held = began.elapsed();
    session.expect(&["udp", &world.open.udp()?], &["errno EPERM"])?;
    drop(frozen);
    ensure!(held < bound(2), "held for {held:?}");
    ensure!(world.open.arrived()? == 0, "the refused attempt arrived");
    let record = world.decision(&task, "connect", "deny", "timeout")?;
    record.expect("/source", "structural")?;
    ensure!(world.daemon.counter("timeouts")? >= 2, "no timeout was counted");
    crate::harness::wait::until("the late answer", 10, || {
        Ok((session.ask(&["tcp", &world.open.tcp()?])? == ["ok"]).then_some(()))
    })?;
    session.close()?;
    world.daemon.stop().map(drop)
}

/// Waits until the last heartbeat is older than `stale_after`, which is how the daemon is lost.
fn lose(stale_after: Duration) {
    until_instant(Instant::now() + stale_after + Duration::from_millis(100));
}

fn stale() -> (Duration, String) {
    let stale = Duration::from_millis(500) * slowness();
    (stale, format!("{}ms", stale.as_millis()))
}

fn daemon_lost(lab: &Lab) -> Result<()> {
    let (stale, text) = stale();
    let world = world(lab, &text)?;
    world.open.arrived()?;
    let mut session = world.task().connect(OPEN).session()?;
    let task = session.task()?;
    let frozen = world.daemon.freeze()?;
    lose(stale);
    session.expect(&["tcp", &world.open.tcp()?], &["errno EPERM"])?;
    drop(frozen);
    ensure!(world.open.arrived()? == 0, "the refused attempt arrived");
    world.decision(&task, "connect", "deny", "daemon_lost")?;
    crate::harness::wait::until("the daemon's return", 10, || {
        Ok((session.ask(&["tcp", &world.open.tcp()?])? == ["ok"]).then_some(()))
    })?;
    session.close()?;
    world.daemon.stop().map(drop)
}

fn daemon_lost_allowed(lab: &Lab) -> Result<()> {
    let (stale, text) = stale();
    let world = world(lab, &text)?;
    let mut session = world.task().option("--on-daemon-loss", "allow").session()?;
    let task = session.task()?;
    let frozen = world.daemon.freeze()?;
    lose(stale);
    session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    drop(frozen);
    world.decision(&task, "connect", "allow", "daemon_lost")?;
    session.close()?;
    world.daemon.stop().map(drop)
}

fn cached(lab: &Lab) -> Result<()> {
    let world = world(lab, "1h")?;
    let mut session = world.task().connect(OPEN).session()?;
    let (open, more) = (world.open.tcp()?, world.more.tcp()?);
    session.expect(&["tcp", &open], &["ok"])?;
    session.expect(&["tcp", &more], &["errno EPERM"])?;
    let timeouts = world.daemon.counter("timeouts")?;
    let frozen = world.daemon.freeze()?;
    for _ in 0..10 {
        session.expect(&["tcp", &open], &["ok"])?;
        session.expect(&["fork", "tcp", &open], &["ok"])?;
        session.expect(&["tcp", &more], &["errno EPERM"])?;
    }
    drop(frozen);
    ensure!(world.daemon.counter("timeouts")? == timeouts, "a cached verdict was not used");
    session.close()?;
    world.daemon.stop().map(drop)
}

fn expiry(lab: &Lab) -> Result<()> {
    let world = world(lab, "1h")?;
    let began = Instant::now();
    let mut session = world.task().connect(OPEN).connect(MORE).ttl(3).session()?;
    let task = session.task()?;
    session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    session.expect(&["flow-tcp", &world.more.tcp()?], &["ok"])?;
    let frozen = world.daemon.freeze()?;
    session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    // The deadline is counted from the moment at which the task was opened, which was after `began`.
    until_instant(began + bound(3));
    crate::harness::wait::until("the deadline", 3, || {
        Ok((session.ask(&["tcp", &world.open.tcp()?])? == ["errno EPERM"]).then_some(()))
    })?;
    world.open.arrived()?;
    session.expect(&["udp", &world.open.udp()?], &["errno EPERM"])?;
    session.ask(&["flow-send", "after"])?;
    let mut stream = world.more.tcp4.next()?;
    crate::harness::server::expect_silence(&mut stream)?;
    ensure!(world.open.arrived()? == 0, "something arrived after the deadline");
    drop(frozen);
    world.decision(&task, "socket", "deny", "expired")?;
    world.event(&task, "task_expired")?;
    session.close()?;
    world.daemon.stop().map(drop)
}

fn audit(lab: &Lab) -> Result<()> {
    let world = world(lab, "1h")?;
    let mut session = world.task().audit().session()?;
    let task = session.task()?;
    let frozen = world.daemon.freeze()?;
    session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    drop(frozen);
    world.decision(&task, "connect", "would_deny", "policy")?;
    session.close()?;
    world.daemon.stop().map(drop)
}

/// Whoever is marked does not go on without the daemon.
fn sigterm(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    world.open.arrived()?;
    let mut session = world.task().session()?;
    let task = session.task()?;
    session.expect(&["tcp", &world.open.tcp()?], &["errno EPERM"])?;
    let World { daemon, open, .. } = world;
    let records = daemon.place.path("records.jsonl");
    let copy = tempfile::NamedTempFile::new()?;
    std::fs::hard_link(&records, copy.path().with_extension("records"))?;
    let kept = copy.path().with_extension("records");
    let status = daemon.stop()?;
    ensure!(status.success(), "the daemon ended with {status}");
    let status = session.wait_for_end()?;
    ensure!(!status.success(), "the marked process ended by itself");
    ensure!(open.arrived()? == 0, "it connected once the daemon had gone");
    let last = crate::harness::record::read(&kept)?;
    std::fs::remove_file(kept)?;
    ensure!(last.iter().any(|record| record.kind() == "daemon_stopping"), "no word of the stop");
    ensure!(last.iter().any(|r| r.task() == task && r.text("/effect") == "deny"), "the denial is not in the records");
    Ok(())
}
