//! The daemon is killed, ends, and comes back: what it enforced stays enforced.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::time::Instant;

use anyhow::{Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use crate::harness::daemon::{Place, set_mode};
use crate::harness::options::{AGENTS, Options};
use crate::harness::pins;
use crate::harness::record::Record;
use crate::harness::run::{Session, run};
use crate::harness::wait::{bound, slowness, until, until_instant};
use crate::harness::world::{Lab, MORE, OPEN, World};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("outlive::killed", killed),
        ("outlive::recorded_meanwhile", recorded_meanwhile),
        ("outlive::ends_meanwhile", ends_meanwhile),
        ("outlive::a_lost_file_revokes", file_lost),
        ("outlive::policies_changed_meanwhile", changed_meanwhile),
        ("outlive::restarted_under_load", restarted_under_load),
        ("outlive::told_to_end", told_to_end),
        ("outlive::detach_leaves_nothing", detach_leaves_nothing),
        ("outlive::detach_leaves_running_what_it_is_told_to", detach_leave_running),
        ("outlive::detach_waits_for_the_daemon", detach_while_running),
        ("outlive::detach_is_not_for_agents", detach_from_inside),
        ("outlive::another_layout_is_refused", another_layout),
        ("outlive::what_never_took_effect_goes", leftover),
        ("outlive::one_daemon_a_directory", one_daemon),
        ("outlive::no_daemon_from_inside_a_task", daemon_from_inside),
        ("outlive::a_failed_start_leaves_nothing", failed_start),
        ("outlive::no_bpf_file_system", no_file_system),
    ])
}

fn world(lab: &Lab) -> Result<World> {
    lab.own(Options::default().pinned())
}

/// A session of a task with one verdict that is known, and its id.
fn known(world: &World) -> Result<(Session, String)> {
    world.open.arrived()?;
    let mut session = world.task().connect(OPEN).connect(MORE).session()?;
    let task = session.task()?;
    session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    session.expect(&["tcp", &world.shut.tcp()?], &["errno EPERM"])?;
    ensure!(world.open.arrived()? == 1, "the connection did not arrive");
    Ok((session, task))
}

/// Everything that is forbidden, and first contacts, by every way out.
fn expect_shut_in(world: &World, session: &mut Session) -> Result<()> {
    for words in [
        vec!["tcp".to_owned(), world.shut.tcp()?],
        vec!["udp".to_owned(), world.shut.udp()?],
        vec!["tcp".to_owned(), world.more.tcp()?],
        vec!["udp".to_owned(), world.more.udp()?],
        vec!["fork".to_owned(), "tcp".to_owned(), world.shut.tcp()?],
        vec!["fork".to_owned(), "udp".to_owned(), world.more.udp()?],
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        session.expect(&words, &["errno EPERM"])?;
    }
    session.expect(&["socket", "2", "3", "1"], &["errno EPERM"])?;
    let came = world.shut.arrived()? + world.more.arrived()?;
    ensure!(came == 0, "{came} attempts arrived");
    Ok(())
}

fn killed(lab: &Lab) -> Result<()> {
    let mut world = world(lab)?;
    let (mut session, task) = known(&world)?;
    let before = world.daemon.ask(&["task", "show", &task])?;
    // Counts are written down some ten times a second: what was decided since is missing from them, not from the records.
    let file = world.daemon.place.path("state/tasks/0.json");
    until("the counts", 5, || Ok(fs::read_to_string(&file)?.contains("\"allowed\":1,\"denied\":1").then_some(())))?;
    world.daemon.kill()?;
    for _ in 0..3 {
        session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
        expect_shut_in(&world, &mut session)?;
    }
    ensure!(world.open.arrived()? == 3, "what was allowed did not arrive");
    world.daemon.restart()?;
    expect_normal(&world, &mut session)?;
    let after = world.daemon.ask(&["task", "show", &task])?;
    for same in
        ["/agent", "/intent", "/chain", "/argv", "/slot", "/epoch", "/started_at", "/expires_at", "/grant_connect"]
    {
        ensure!(before.pointer(same) == after.pointer(same), "`{same}` differs: {before} {after}");
    }
    ensure!(after.pointer("/processes").and_then(Value::as_u64) == Some(1), "{after}");
    let allowed = |view: &Value| view.pointer("/counts/allowed").and_then(Value::as_u64).unwrap_or_default();
    ensure!(allowed(&after) == allowed(&before) + 5, "{before} {after}");
    let adopted = world.daemon.record("the adoption", |record| record.kind() == "daemon_adopted")?;
    ensure!(adopted.number("/tasks") == 1 && adopted.number("/processes") == 1, "{}", adopted.short());
    ensure!(adopted.number("/decisions/deny timeout") > 0, "{}", adopted.short());
    world.daemon.ask(&["task", "revoke", &task])?;
    session.expect(&["tcp", &world.open.tcp()?], &["errno EPERM"])?;
    world.decision(&task, "socket", "deny", "revoked")?;
    session.close()?;
    world.daemon.stop().map(drop)
}

/// With a daemon there again everything is decided as before, and a first contact is answered.
fn expect_normal(world: &World, session: &mut Session) -> Result<()> {
    session.expect(&["tcp", &world.shut.tcp()?], &["errno EPERM"])?;
    session.expect(&["udp", &world.shut.udp()?], &["errno EPERM"])?;
    ensure!(world.shut.arrived()? == 0, "it arrived");
    session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    session.expect(&["tcp", &world.more.tcp()?], &["ok"])?;
    ensure!((world.open.arrived()?, world.more.arrived()?) == (1, 1), "it did not arrive");
    Ok(())
}

/// What happened while nobody was there is in the records, once each and with its own time.
fn recorded_meanwhile(lab: &Lab) -> Result<()> {
    let mut world = world(lab)?;
    let (mut session, task) = known(&world)?;
    let (open, shut) = (world.open.tcp()?, world.shut.udp()?);
    world.daemon.kill()?;
    let killed = Timestamp::now();
    session.expect(&["udp", &shut], &["errno EPERM"])?;
    session.expect(&["fork", "tcp", &open], &["ok"])?;
    let returned = Timestamp::now();
    world.daemon.restart()?;
    let record = world.daemon.record("the child's connection", |record| {
        record.task() == task && record.is_decision("connect", "allow", "policy") && time(record) > Some(killed)
    })?;
    ensure!(time(&record) < Some(returned), "not its own time: {}", record.short());
    ensure!(record.number("/process/pid") != u64::from(session.pid()), "not the child's: {}", record.short());
    let exits = world.daemon.records()?;
    let exit = exits.iter().find(|record| record.kind() == "process_exit" && record.task() == task);
    ensure!(exit.is_some_and(|record| record.number("/remaining") == 1), "the child's end: {exit:?}");
    session.close()?;
    world.event(&task, "task_ended")?;
    world.daemon.stop().map(drop)
}

fn time(record: &Record) -> Option<Timestamp> {
    record.text("/time").parse().ok()
}

/// Its deadline passes, its processes fork and go, and nobody is there.
fn ends_meanwhile(lab: &Lab) -> Result<()> {
    let mut world = world(lab)?;
    let began = Instant::now();
    let mut expiring = world.task().connect(OPEN).ttl(3).session()?;
    let expired = expiring.task()?;
    expiring.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    let (mut leaving, left) = known(&world)?;
    let (mut staying, stays) = known(&world)?;
    world.daemon.kill()?;
    staying.expect(&["fork", "tcp", &world.shut.tcp()?], &["errno EPERM"])?;
    leaving.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    leaving.close()?;
    until_instant(began + bound(3));
    until("the deadline", 3, || Ok((expiring.ask(&["tcp", &world.open.tcp()?])? == ["errno EPERM"]).then_some(())))?;
    world.daemon.restart()?;
    world.event(&expired, "task_expired")?;
    world.event(&left, "task_ended")?;
    let view = world.daemon.ask(&["task", "show", &stays])?;
    ensure!(view.pointer("/processes").and_then(Value::as_u64) == Some(1), "{view}");
    staying.close()?;
    expiring.close()?;
    world.event(&stays, "task_ended")?;
    world.daemon.stop().map(drop)
}

/// Nobody knows any more whose it is.
fn file_lost(lab: &Lab) -> Result<()> {
    let mut world = world(lab)?;
    let (mut session, _) = known(&world)?;
    let (mut other, _) = known(&world)?;
    let slot = world.daemon.ask(&["task", "list"])?.pointer("/tasks/0/slot").and_then(Value::as_u64);
    world.daemon.kill()?;
    let file = world.daemon.place.path("state/tasks").join(format!("{}.json", slot.unwrap_or_default()));
    fs::remove_file(&file)?;
    world.daemon.restart()?;
    let revoked = world.daemon.record("the revocation", |record| record.kind() == "task_revoked")?;
    ensure!(revoked.task().starts_with("t-unknown-"), "{}", revoked.short());
    session.expect(&["tcp", &world.open.tcp()?], &["errno EPERM"])?;
    world.decision(revoked.task(), "socket", "deny", "revoked")?;
    other.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    let mut third = world.task().connect(OPEN).session()?;
    third.task()?;
    let slots = world.daemon.ask(&["task", "list"])?;
    session.close()?;
    third.close()?;
    other.close()?;
    let slots = slots.pointer("/tasks").and_then(Value::as_array).cloned().unwrap_or_default();
    let distinct: HashSet<_> = slots.iter().filter_map(|task| task.get("slot")?.as_u64()).collect();
    ensure!(distinct.len() == 3, "a slot whose processes live was given to another task: {slots:?}");
    world.daemon.stop().map(drop)
}

/// Policies and registry were changed while nobody was there.
fn changed_meanwhile(lab: &Lab) -> Result<()> {
    let mut world = world(lab)?;
    let (mut session, _) = known(&world)?;
    let mut other = world.daemon.writ(&["run", "--agent", "other", "--intent", "review", "--"]);
    other.arg(world.machine.program("writ-probe")).arg("serve");
    let mut other = Session::new(other)?;
    let unregistered = other.task()?;
    world.daemon.kill()?;
    let closed =
        "@id(\"test/closed\")\nforbid (principal, action == Action::\"connect\", resource in Label::\"test/open\");\n";
    world.daemon.place.write("etc/policies/closed.cedar", closed)?;
    let registry = AGENTS.replace("id = \"other\"", "id = \"another\"");
    world.daemon.place.write("etc/agents.toml", &registry)?;
    session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    world.daemon.restart()?;
    session.expect(&["tcp", &world.open.tcp()?], &["errno EPERM"])?;
    let revoked = world.event(&unregistered, "task_revoked")?;
    ensure!(revoked.text("/why").contains("not registered"), "{}", revoked.short());
    other.expect(&["tcp", &world.open.tcp()?], &["errno EPERM"])?;
    session.close()?;
    other.close()?;
    world.daemon.stop().map(drop)
}

/// Asked to go, it comes back to the same tasks, and nothing is recorded twice or not at all.
fn restarted_under_load(lab: &Lab) -> Result<()> {
    let mut world = world(lab)?;
    let (mut session, task) = known(&world)?;
    let rounds = if slowness() > 1 { 300 } else { 5000 };
    session.tell(&["flood", &rounds.to_string(), &world.shut.tcp()?])?;
    for _ in 0..3 {
        ensure!(world.daemon.terminate()?.success(), "it did not end well");
        world.daemon.restart()?;
    }
    let answer = session.answer()?;
    ensure!(answer == ["ok"], "{answer:?}");
    ensure!(world.shut.arrived()? == 0, "something arrived");
    session.close()?;
    world.event(&task, "task_ended")?;
    world.daemon.terminate()?;
    let records = world.daemon.records()?;
    let refused = records
        .iter()
        .filter(|record| record.task() == task && record.kind() == "decision" && record.text("/effect") == "deny");
    let recorded: u64 = refused.map(|record| record.number("/count")).sum();
    let lost: u64 = records.iter().filter(|record| record.kind() == "loss").map(|record| record.number("/count")).sum();
    // One more than the flood's: `known` was refused once. What runs on a CPU at the moment of the change may be decided by
    // the old programs and by the new.
    let cpus = std::thread::available_parallelism()?.get() as u64;
    let expected = rounds + 1;
    let range = expected..=expected + 3 * cpus;
    ensure!(range.contains(&(recorded + lost)), "{recorded} recorded and {lost} lost of {expected}");
    world.daemon.stop().map(drop)
}

fn told_to_end(lab: &Lab) -> Result<()> {
    let mut world = world(lab)?;
    let (mut session, task) = known(&world)?;
    let status = world.daemon.terminate()?;
    ensure!(status.success(), "the daemon ended with {status}");
    expect_shut_in(&world, &mut session)?;
    session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    let records = world.daemon.records()?;
    let stopping = records.iter().find(|record| record.kind() == "daemon_stopping");
    ensure!(stopping.is_some_and(|record| record.flag("/stays_enforced")), "no word of it: {stopping:?}");
    ensure!(!records.iter().any(|record| record.kind() == "task_ended" && record.task() == task), "the task ended");
    session.close()?;
    world.daemon.stop().map(drop)
}

fn detach_leaves_nothing(lab: &Lab) -> Result<()> {
    let mut world = world(lab)?;
    let (mut session, _) = known(&world)?;
    world.daemon.kill()?;
    let pins = world.daemon.place.pins();
    let ids = pins::link_ids(&pins)?;
    ensure!(ids.len() >= 9 && pins::still_attached(&ids).len() == ids.len(), "{ids:?} should be attached");
    let detached = world.daemon.place.detach(&world.machine, &[])?;
    ensure!(detached.status.success(), "{detached:?}");
    ensure!(detached.lines.iter().any(|line| line.contains("nothing is enforced any more")), "{detached:?}");
    ensure!(!session.wait_for_end()?.success(), "the process of the task goes on");
    ensure!(!pins.exists(), "something is pinned");
    // The kernel frees a link a moment after its last name and descriptor have gone.
    until("the end of every link", 10, || Ok(pins::still_attached(&ids).is_empty().then_some(())))?;
    let again = world.daemon.place.detach(&world.machine, &[])?;
    ensure!(again.status.success() && again.lines == ["nothing is pinned, nothing was done"], "{again:?}");
    world.daemon.record("the detaching", |record| record.kind() == "detached" && record.number("/killed") == 1)?;
    world.daemon.restart()?;
    world.task().connect(OPEN).run(&["tcp", &world.open.tcp()?])?.expect(&["ok"])?;
    world.daemon.stop().map(drop)
}

fn detach_leave_running(lab: &Lab) -> Result<()> {
    let mut world = world(lab)?;
    let (mut session, _) = known(&world)?;
    world.daemon.kill()?;
    let detached = world.daemon.place.detach(&world.machine, &["--leave-running"])?;
    ensure!(detached.status.success() && detached.lines.concat().contains("WARNING: 1 process"), "{detached:?}");
    session.expect(&["tcp", &world.shut.tcp()?], &["ok"])?;
    world
        .daemon
        .record("the detaching", |record| record.kind() == "detached" && record.number("/left_running") == 1)?;
    session.close().map(drop)
}

fn detach_while_running(lab: &Lab) -> Result<()> {
    let world = world(lab)?;
    let (mut session, _) = known(&world)?;
    let refused = world.daemon.place.detach(&world.machine, &[])?;
    ensure!(refused.status.code() == Some(5) && refused.stderr.contains("systemctl stop writd"), "{refused:?}");
    session.expect(&["tcp", &world.shut.tcp()?], &["errno EPERM"])?;
    session.close()?;
    world.daemon.stop().map(drop)
}

/// An agent that is root cannot free itself by the tool that is there for it.
fn detach_from_inside(lab: &Lab) -> Result<()> {
    from_inside(lab, |world| {
        let place = &world.daemon.place;
        format!(
            "detach --leave-running --config-dir {} --runtime-dir {} --records {} --pin-dir {}",
            place.path("etc").display(),
            place.path("other-run").display(),
            place.path("records.jsonl").display(),
            place.pins().display()
        )
    })
}

/// A marked process runs `writd` with these arguments once the daemon has been killed, and is turned away.
fn from_inside(lab: &Lab, arguments: impl Fn(&World) -> String) -> Result<()> {
    let mut world = world(lab)?;
    let writd = world.machine.program("writd");
    let mut inside = world.daemon.writ(&["run", "--agent", "coder", "--intent", "fix-bug", "--", "/bin/sh", "-c"]);
    let (reader, writer) = nix::unistd::pipe()?;
    inside.arg(format!("read line; exec {} {}", writd.display(), arguments(&world))).stdin(reader);
    let running = std::thread::spawn(move || run(inside));
    until("the task", 10, || {
        let tasks = world.daemon.ask(&["task", "list"])?;
        Ok(tasks.pointer("/tasks/0").map(drop))
    })?;
    world.daemon.kill()?;
    fs::File::from(writer).write_all(b"go\n")?;
    let ran = running.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    ensure!(ran.status.code() == Some(4) && ran.stderr.contains("outside of tasks"), "{ran:?}");
    ensure!(pins::instances(&world.daemon.place.pins())? == [1], "something was done");
    world.daemon.stop().map(drop)
}

fn another_layout(lab: &Lab) -> Result<()> {
    let mut world = world(lab)?;
    let (mut session, _) = known(&world)?;
    world.daemon.kill()?;
    let pins = world.daemon.place.pins();
    let own = fs::read_link(pins.join("layout"))?;
    fs::remove_file(pins.join("layout"))?;
    symlink("v0-0123456789abcdef", pins.join("layout"))?;
    let refused = run(world.daemon.place.command(&world.machine, &Options::default().pinned())?)?;
    let own = own.to_string_lossy();
    ensure!(refused.status.code() == Some(7), "{refused:?}");
    for word in ["v0-0123456789abcdef", &own, "writd detach"] {
        ensure!(refused.stderr.contains(word), "`{word}` is not in {}", refused.stderr);
    }
    expect_shut_in(&world, &mut session)?;
    session.close()?;
    world.daemon.stop().map(drop)
}

fn leftover(lab: &Lab) -> Result<()> {
    let mut world = world(lab)?;
    let (mut session, _) = known(&world)?;
    world.daemon.kill()?;
    let pins = world.daemon.place.pins();
    let before = pins::instances(&pins)?;
    ensure!(before == [1], "{before:?}");
    pins::pin_again(&pins, 1, "egress", 7)?;
    let old = pins::link_ids(&pins)?;
    world.daemon.restart()?;
    let after = pins::instances(&pins)?;
    ensure!(after == [2], "{after:?}");
    until("the end of the old links", 10, || Ok(pins::still_attached(&old).is_empty().then_some(())))?;
    expect_normal(&world, &mut session)?;
    session.close()?;
    world.daemon.stop().map(drop)
}

fn one_daemon(lab: &Lab) -> Result<()> {
    let world = world(lab)?;
    let place = Place::new()?;
    let second = run(place.command(&world.machine, &Options::default().pinned_at(&world.daemon.place.pins()))?)?;
    ensure!(second.status.code() == Some(5) && second.stderr.contains("another writd"), "{second:?}");
    world.task().connect(OPEN).run(&["tcp", &world.open.tcp()?])?.expect(&["ok"])?;
    world.daemon.stop().map(drop)
}

/// A marked process that becomes the daemon would lose its mark.
fn daemon_from_inside(lab: &Lab) -> Result<()> {
    let other = Place::new()?;
    from_inside(lab, |world| {
        format!(
            "--config-dir {} --runtime-dir {} --state-dir {} --records {} --home {} --pin-dir {}",
            other.path("etc").display(),
            other.path("run").display(),
            other.path("state").display(),
            other.path("records.jsonl").display(),
            other.path("home").display(),
            world.daemon.place.pins().display()
        )
    })
}

fn failed_start(lab: &Lab) -> Result<()> {
    lab.close();
    let place = Place::new()?.with_bpffs()?;
    // A file that is no directory, met only after everything was attached.
    place.write("run/canary-secret/in-the-way", "")?;
    let failed = run(place.command(&lab.machine, &Options::default().pinned())?)?;
    ensure!(failed.status.code() == Some(1), "{failed:?}");
    ensure!(!place.pins().exists(), "something is pinned");
    Ok(())
}

fn no_file_system(lab: &Lab) -> Result<()> {
    lab.close();
    let place = Place::new()?;
    let refused = run(place.command(&lab.machine, &Options::default().pinned())?)?;
    ensure!(refused.status.code() == Some(7), "{refused:?}");
    for word in ["mount -t bpf bpf", "--no-pin"] {
        ensure!(refused.stderr.contains(word), "`{word}` is not in {}", refused.stderr);
    }
    let place = place.with_bpffs()?;
    fs::create_dir(place.pins())?;
    set_mode(&place.pins(), 0o777)?;
    let refused = run(place.command(&lab.machine, &Options::default().pinned())?)?;
    ensure!(refused.status.code() == Some(7) && refused.stderr.contains("root's alone"), "{refused:?}");
    Ok(())
}
