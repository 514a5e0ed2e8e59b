//! What is pinned: who may take it over, who may take it down, and what then is left.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};

use crate::harness::daemon::{Place, set_mode};
use crate::harness::machine::Tier;
use crate::harness::options::Options;
use crate::harness::pins;
use crate::harness::run::run;
use crate::harness::wait::until;
use crate::harness::world::{Lab, OPEN, World};
use crate::outlive::{expect_normal, expect_shut_in, known, world};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("pinned::detach_leaves_nothing", detach_leaves_nothing),
        ("pinned::detach_leaves_running_what_it_is_told_to", detach_leave_running),
        ("pinned::detach_waits_for_the_daemon", detach_while_running),
        ("pinned::detach_is_not_for_agents", detach_from_inside),
        ("pinned::another_layout_is_refused", another_layout),
        ("pinned::what_never_took_effect_goes", leftover),
        ("pinned::one_daemon_a_directory", one_daemon),
        ("pinned::no_daemon_from_inside_a_task", daemon_from_inside),
        ("pinned::a_failed_start_leaves_nothing", failed_start),
        ("pinned::no_bpf_file_system", no_file_system),
    ])
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
    // The full tier does not even let it look.
    let full = world.machine.tier == Tier::Full;
    let why = if full { "Operation not permitted" } else { "outside of tasks" };
    ensure!(!ran.status.success() && ran.stderr.contains(why), "{ran:?}");
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
