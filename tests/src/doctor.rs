//! What is enforced is proven every second, and told when it changes.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::machine::Tier;
use crate::harness::options::Options;
use crate::harness::record::Record;
use crate::harness::run::{Ran, run};
use crate::harness::wait::until;
use crate::harness::world::{Lab, OPEN, World};
use crate::{Test, on_every_tier};

/// What is enforced on every tier.
const EVERYWHERE: [&str; 11] = [
    "connect tcp4",
    "connect tcp6",
    "datagram udp4",
    "datagram udp6",
    "raw sockets",
    "flows of ended tasks",
    "process lineage",
    "secret open",
    "kernel settings",
    "names",
    "fork beyond the limit",
];
/// What the full tier enforces beside.
const FULL: [&str; 17] = [
    "other socket families",
    "netlink",
    "io_uring",
    "unix streams",
    "unix datagrams",
    "userfaultfd",
    "user namespaces",
    "capabilities",
    "tun and tap devices",
    "sockets made elsewhere",
    "secrets opened elsewhere",
    "memory of other processes",
    "the daemon's process",
    "BPF objects",
    "the daemon's files",
    "kernel files and raw disks",
    "listening",
];

pub(crate) fn tests() -> Vec<Test> {
    let mut all = on_every_tier([
        ("doctor::measures_what_the_tier_promises", measures),
        ("doctor::without_a_daemon", without_daemon),
        ("doctor::the_canary_leaves_no_trace", unseen),
        ("doctor::a_canary_that_is_gone_is_replaced", |lab| disturbed(lab, Signal::SIGKILL)),
        ("doctor::a_canary_that_is_silent_is_replaced", |lab| disturbed(lab, Signal::SIGSTOP)),
    ]);
    all.push(Test { name: "doctor::ftrace_switched_off_is_told", needs: Tier::Full, body: ftrace });
    all
}

fn doctor(world: &World) -> Result<(Ran, Value)> {
    let ran = run(world.daemon.writ(&["doctor", "--output", "json"]))?;
    let view = serde_json::from_str(&ran.lines.concat()).with_context(|| format!("{ran:?}"))?;
    Ok((ran, view))
}

/// The state of a path in what `writ doctor` or `writ status` says.
fn state<'a>(view: &'a Value, path: &str) -> &'a str {
    let rows = view.pointer("/coverage").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let row = rows.iter().find(|row| row.pointer("/path").and_then(Value::as_str) == Some(path));
    row.and_then(|row| row.pointer("/state")?.as_str()).unwrap_or("missing")
}

fn tier(view: &Value) -> &str {
    view.pointer("/tier").and_then(Value::as_str).unwrap_or_default()
}

fn measures(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let (ran, view) = doctor(&world)?;
    ensure!(ran.status.code() == Some(0), "{ran:?}");
    ensure!(view.pointer("/sound") == Some(&Value::Bool(true)), "{view}");
    ensure!(tier(&view) == world.machine.tier.as_str(), "{view}");
    for path in EVERYWHERE {
        ensure!(state(&view, path) == "enforced", "{path} is {}: {view}", state(&view, path));
    }
    let expected = if world.machine.tier == Tier::Full { "enforced" } else { "not_covered" };
    for path in FULL.iter().filter(|path| world.machine.tier == Tier::Full || **path != "listening") {
        ensure!(state(&view, path) == expected, "{path} is {}: {view}", state(&view, path));
    }
    let text = run(world.daemon.writ(&["doctor"]))?;
    ensure!(text.lines.iter().any(|line| line.starts_with("PATH ")), "{text:?}");
    Ok(())
}

fn without_daemon(lab: &Lab) -> Result<()> {
    let mut command = std::process::Command::new(lab.machine.program("writ"));
    command.args(["--socket", "/nowhere/writd.sock", "doctor"]);
    let ran = run(command)?;
    ensure!(ran.status.code() == Some(3), "{ran:?}");
    ensure!(ran.lines.iter().any(|line| line.starts_with("tier to be had:")), "{ran:?}");
    Ok(())
}

fn rounds(world: &World) -> Result<u64> {
    let (_, view) = doctor(world)?;
    view.pointer("/canary/rounds").and_then(Value::as_u64).context("no rounds")
}

/// What it is refused is neither recorded nor counted, and costs no task its turn: nothing of it is asked once it has begun.
fn unseen(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    let before = rounds(&world)?;
    let asked = world.daemon.counter("upcalls")?;
    until("more rounds of the canary", 30, || Ok((rounds(&world)? >= before + 5).then_some(())))?;
    let asked = world.daemon.counter("upcalls")? - asked;
    ensure!(asked == 0, "the daemon was asked {asked} times for the canary");
    for counter in ["denied", "allowed"] {
        let counted = until(&format!("no {counter}"), 5, || Ok((world.daemon.counter(counter)? == 0).then_some(())));
        counted.with_context(|| format!("{counter} is {:?}", world.daemon.counter(counter)))?;
    }
    let odd: Vec<String> = world
        .daemon
        .records()?
        .iter()
        .filter(|record| ["decision", "coverage_changed", "process_exec"].contains(&record.kind()))
        .map(Record::short)
        .collect();
    ensure!(odd.is_empty(), "{odd:?}");
    world.daemon.stop().map(drop)
}

fn canary(world: &World) -> Result<Pid> {
    let daemon = world.daemon.pid();
    let children = std::fs::read_dir("/proc")?.flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let path = PathBuf::from(format!("/proc/{pid}"));
        let line = std::fs::read(path.join("cmdline")).ok()?;
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<i32>().ok()?;
        let flag = b"--canary\0";
        (parent == daemon.as_raw() && line.windows(flag.len()).any(|words| words == flag)).then_some(Pid::from_raw(pid))
    });
    children.into_iter().next().context("no canary")
}

fn changed(world: &World, what: &str, is_it: impl Fn(&Record) -> bool) -> Result<Record> {
    world.daemon.record(what, |record| record.kind() == "coverage_changed" && is_it(record))
}

fn path_went(record: &Record, path: &str, to: &str) -> bool {
    let text = |row: &Value, name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    record.array("/paths").iter().any(|row| text(row, "path") == path && text(row, "to") == to)
}

/// Nothing is claimed while nobody proves it; and then another does.
fn disturbed(lab: &Lab, signal: Signal) -> Result<()> {
    let world = lab.own(Options::default())?;
    let first = canary(&world)?;
    kill(first, signal)?;
    changed(&world, "paths that nobody proves", |record| path_went(record, "connect tcp4", "not_covered"))?;
    changed(&world, "paths that another proves", |record| path_went(record, "connect tcp4", "enforced"))?;
    ensure!(canary(&world)? != first, "the same canary");
    let (ran, view) = doctor(&world)?;
    ensure!(ran.status.code() == Some(0), "{view}");
    ensure!(view.pointer("/canary/restarts").and_then(Value::as_u64) == Some(1), "{view}");
    world.daemon.stop().map(drop)
}

const FTRACE: &str = "/proc/sys/kernel/ftrace_enabled";

/// Switches BPF LSM on again, whatever became of the test.
struct Ftrace;

impl Drop for Ftrace {
    fn drop(&mut self) {
        let _ = std::fs::write(FTRACE, "1");
    }
}

/// Only in a guest of its own: the setting is the whole machine's.
fn ftrace(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    world.task().intent("administer").run(&["put", FTRACE, "0"])?.expect_refused().context("by a marked process")?;
    ensure!(tier(&world.daemon.status()?) == "full", "{}", world.daemon.status()?);
    let on = Ftrace;
    std::fs::write(FTRACE, "0")?;
    let told = changed(&world, "the loss of the full tier", |record| record.text("/to") == "reduced")?;
    told.expect("/from", "full")?;
    ensure!(path_went(&told, "secret open", "not_covered"), "{}", told.0);
    let status = world.daemon.status()?;
    ensure!(tier(&status) == "reduced" && state(&status, "secret open") == "not_covered", "{status}");
    let (ran, view) = doctor(&world)?;
    ensure!(ran.status.code() == Some(4) && view.pointer("/sound") == Some(&Value::Bool(false)), "{view}");
    // The layer that needs no trampolines goes on.
    world.task().run(&["tcp", &world.open.tcp()?])?.expect_refused()?;
    world.task().connect(OPEN).run(&["tcp", &world.open.tcp()?])?.expect(&["ok"])?;
    drop(on);
    changed(&world, "the full tier again", |record| record.text("/to") == "full")?;
    let (ran, view) = doctor(&world)?;
    ensure!(ran.status.code() == Some(0) && tier(&view) == "full", "{view}");
    world.daemon.stop().map(drop)
}
