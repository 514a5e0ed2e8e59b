//! Policies that change while tasks run.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::options::Options;
use crate::harness::run::{Session, run};
use crate::harness::wait::{bound, until};
use crate::harness::world::{Lab, OPEN, World};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("reload::by_signal", |lab| changes(lab, |world| world.daemon.signal(Signal::SIGHUP))),
        ("reload::by_file_change", |lab| changes(lab, |_| Ok(()))),
        ("reload::by_command", |lab| changes(lab, |world| world.daemon.ask(&["reload"]).map(drop))),
        ("reload::broken_policy_keeps_the_last_good_one", broken),
        ("reload::broken_catalogue_keeps_the_last_good_one", broken_catalogue),
        ("reload::named_pipe_keeps_nobody_waiting", named_pipe),
        ("reload::entry_taken_out_frees_its_files", entry_taken_out),
        ("reload::policy_with_a_window_of_time", time_window),
        ("reload::read_verdicts_change_too", reads_change),
    ])
}

const CLOSED: &str = r#"
@id("test/closed")
@reason("closed for today")
forbid (principal, action == Action::"connect", resource in Label::"test/open");
"#;

fn generation(world: &World) -> Result<u64> {
    Ok(world.daemon.status()?.pointer("/generation").and_then(Value::as_u64).unwrap_or_default())
}

fn wait_for_next(world: &World, before: u64) -> Result<()> {
    until("the next generation", 15, || Ok((generation(world)? > before).then_some(())))
}

fn expect_connects(session: &mut Session, world: &World, answer: &str) -> Result<()> {
    session.expect(&["tcp", &world.open.tcp()?], &[answer])
}

/// A running task, with a verdict cached, sees the change at its next connect, and the change back.
fn changes(lab: &Lab, nudge: impl Fn(&World) -> Result<()>) -> Result<()> {
    let world = lab.own(Options::default())?;
    let mut session = world.task().connect(OPEN).session()?;
    let task = session.task()?;
    expect_connects(&mut session, &world, "ok")?;
    let before = generation(&world)?;
    world.daemon.place.write("etc/policies/closed.cedar", CLOSED)?;
    nudge(&world)?;
    wait_for_next(&world, before)?;
    expect_connects(&mut session, &world, "errno EPERM")?;
    world.decision(&task, "connect", "deny", "policy")?.expect_policy("test/closed")?;
    let before = generation(&world)?;
    std::fs::remove_file(world.daemon.place.path("etc/policies/closed.cedar"))?;
    nudge(&world)?;
    wait_for_next(&world, before)?;
    expect_connects(&mut session, &world, "ok")?;
    session.close()?;
    world.daemon.stop().map(drop)
}

fn reads_change(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    let mut session = world.task().read("secret/test/file").session()?;
    let file = world.home("file.key");
    session.expect(&["read", &file], &["ok"])?;
    let before = generation(&world)?;
    let closed =
        r#"@id("test/sealed") forbid (principal, action == Action::"read", resource in Label::"secret/test");"#;
    world.daemon.place.write("etc/policies/sealed.cedar", closed)?;
    world.daemon.signal(Signal::SIGHUP)?;
    wait_for_next(&world, before)?;
    session.expect(&["read", &file], &["errno EPERM"])?;
    session.close()?;
    world.daemon.stop().map(drop)
}

fn broken(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    let mut session = world.task().connect(OPEN).session()?;
    expect_connects(&mut session, &world, "ok")?;
    let before = generation(&world)?;
    world.daemon.place.write("etc/policies/broken.cedar", "\npermit (principal, action, resource) when {\n")?;
    world.daemon.signal(Signal::SIGHUP)?;
    let record = world.daemon.record("a rejected policy", |record| record.kind() == "policy_rejected")?;
    ensure!(record.text("/error").contains("broken.cedar"), "the file is not named in {}", record.0);
    ensure!(record.number("/generation") == before, "another generation in {}", record.0);
    ensure!(generation(&world)? == before, "the generation changed");
    expect_connects(&mut session, &world, "ok")?;
    session.expect(&["tcp", &world.more.tcp()?], &["errno EPERM"])?;
    let status = world.daemon.status()?;
    let error = status.pointer("/policies/last_error").and_then(Value::as_str).unwrap_or_default();
    ensure!(error.contains("broken.cedar"), "the status does not say it: {status}");
    let reload = run(world.daemon.writ(&["reload"]))?;
    ensure!(reload.status.code() == Some(1) && reload.stderr.contains("broken.cedar"), "{reload:?}");
    // Mended, it is as if nothing had been.
    std::fs::remove_file(world.daemon.place.path("etc/policies/broken.cedar"))?;
    world.daemon.signal(Signal::SIGHUP)?;
    until("a status without an error", 15, || {
        Ok(world.daemon.status()?.pointer("/policies/last_error").is_none_or(Value::is_null).then_some(()))
    })?;
    expect_connects(&mut session, &world, "ok")?;
    session.close()?;
    world.daemon.stop().map(drop)
}

fn broken_catalogue(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    world.daemon.place.write("etc/secrets.toml", "[[secret]]\nname = \"x\"\nlabels = [\"Bad Label\"]\n")?;
    world.daemon.signal(Signal::SIGHUP)?;
    let record = world.daemon.record("a rejected catalogue", |record| record.kind() == "catalogue_rejected")?;
    ensure!(record.text("/error").contains("secrets.toml:3"), "file and line are not named in {}", record.0);
    world.task().run(&["read", &world.home("file.key")])?.expect_refused()?;
    world.daemon.stop().map(drop)
}

fn named_pipe(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    nix::unistd::mkfifo(&world.daemon.place.path("etc/policies/pipe.cedar"), nix::sys::stat::Mode::S_IRUSR)?;
    world.daemon.signal(Signal::SIGHUP)?;
    world.daemon.record("refused policies", |record| record.kind() == "policy_rejected")?;
    world.daemon.status()?;
    world.daemon.stop().map(drop)
}

fn entry_taken_out(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    let mut session = world.task().session()?;
    let file = world.home("file.key");
    session.expect(&["read", &file], &["errno EPERM"])?;
    world.daemon.place.write("etc/secrets.toml", "")?;
    world.daemon.signal(Signal::SIGHUP)?;
    until("a file that is no secret any more", 15, || Ok((session.ask(&["read", &file])? == ["ok"]).then_some(())))?;
    session.close()?;
    world.daemon.stop().map(drop)
}

/// A verdict is not used past the moment at which policy would say something else.
fn time_window(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    let mut session = world.task().connect(OPEN).session()?;
    let task = session.task()?;
    // Far enough ahead that the policy is in force before it bites.
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)? + bound(3) + Duration::from_secs(1);
    let at = Duration::from_secs(at.as_secs());
    let moment = format!("datetime(\"1970-01-01\").offset(duration(\"{}s\"))", at.as_secs());
    let policy = format!(
        "@id(\"test/evening\") forbid (principal, action == Action::\"connect\", resource in Label::\"test/open\")\n\
         when {{ context.env.now >= {moment} }};\n"
    );
    let before = generation(&world)?;
    world.daemon.place.write("etc/policies/evening.cedar", &policy)?;
    world.daemon.signal(Signal::SIGHUP)?;
    wait_for_next(&world, before)?;
    let mut open = 0_u32;
    loop {
        // What is not taken would fill the server's queue.
        world.open.arrived()?;
        let answer = session.ask(&["tcp", &world.open.tcp()?])?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        if answer == ["errno EPERM"] {
            ensure!(now >= at, "refused too early");
            break;
        }
        ensure!(answer == ["ok"], "{answer:?}");
        // One attempt may have begun before the moment and ended after it.
        ensure!(now < at + bound(1), "still allowed {:?} later", now.saturating_sub(at));
        open += 1;
    }
    ensure!(open > 0, "the window was never open");
    world.decision(&task, "connect", "deny", "policy")?.expect_policy("test/evening")?;
    session.close()?;
    world.daemon.stop().map(drop)
}
