//! Facilities of the kernel that open a way around other guards: refused unless policy permits them.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::Test;
use crate::harness::machine::Tier;
use crate::harness::record;
use crate::harness::skip;
use crate::harness::world::{Lab, World};

/// With its wrapper, or with the errno that perf_event_open(2) has for the want of a capability.
const REFUSALS: [&str; 3] = ["errno EPERM", "setup EPERM", "errno EACCES"];

pub(crate) fn tests() -> Vec<Test> {
    let named: [(&'static str, crate::Body); 24] = [
        ("facility::io_uring", |lab| refused(lab, "io_uring", &["ring"])),
        ("facility::io_uring_in_a_thread", |lab| refused(lab, "io_uring", &["thread", "ring"])),
        ("facility::userfaultfd", |lab| refused(lab, "userfaultfd", &["userfault"])),
        ("facility::user_namespace", |lab| refused(lab, "user_namespace", &["unshare", "user"])),
        ("facility::user_namespace_of_a_child", |lab| refused(lab, "user_namespace", &["fork", "unshare", "user"])),
        ("facility::net_namespace", |lab| refused(lab, "cap_sys_admin", &["unshare", "net"])),
        ("facility::net_namespace_in_a_user_namespace", in_user_namespace),
        ("facility::entering_a_net_namespace", |lab| refused(lab, "cap_sys_admin", &["setns", "/proc/self/ns/net"])),
        ("facility::mount_namespace", |lab| refused(lab, "cap_sys_admin", &["unshare", "mount"])),
        ("facility::host_name", |lab| refused(lab, "cap_sys_admin", &["capability", "sys_admin"])),
        ("facility::net_admin", |lab| refused(lab, "cap_net_admin", &["capability", "net_admin"])),
        ("facility::new_route", |lab| refused(lab, "cap_net_admin", &["new-route"])),
        ("facility::interface_flags", |lab| refused(lab, "cap_net_admin", &["netns-up", "ring"])),
        ("facility::sys_module", |lab| refused(lab, "cap_sys_module", &["capability", "sys_module"])),
        ("facility::sys_boot", |lab| refused(lab, "cap_sys_boot", &["capability", "sys_boot"])),
        ("facility::sys_rawio", |lab| refused(lab, "cap_sys_rawio", &["capability", "sys_rawio"])),
        ("facility::perfmon", perfmon),
        ("facility::open_by_handle", |lab| refused(lab, "cap_dac_read_search", &["capability", "dac_read_search"])),
        ("facility::ptrace_of_another_user", ptrace),
        ("facility::tun", tun),
        ("facility::tun_of_who_may_administer_networks", tun_alone),
        ("facility::chosen_process_id", |lab| refused(lab, "cap_checkpoint_restore", &["with-pid", "31999", "ring"])),
        ("facility::probes_are_not_recorded", probes),
        ("facility::over_with_the_task", over),
    ];
    named.map(|(name, body)| Test { name, needs: Tier::Full, body }).into()
}

/// Unmarked it does something, a task is refused and that is recorded, an audited one is not, and neither is one that policy
/// permits it.
pub(crate) fn refused(lab: &Lab, facility: &str, words: &[&str]) -> Result<()> {
    let world = lab.shared()?;
    let control = world.unmarked(words)?;
    if ["ENOSYS", "ENODEV", "EPERM", "ENXIO"].iter().any(|no| control.lines.concat().ends_with(no)) {
        return Err(skip(format!("this kernel does not do it unmarked: {}", control.lines.concat())));
    }
    let expected: Vec<&str> = control.lines.iter().map(String::as_str).collect();
    let ran = world.task().intent("review").run(words)?;
    ensure!(ran.lines.iter().all(|line| REFUSALS.contains(&line.as_str())) && !ran.lines.is_empty(), "{ran:?}");
    expect_record(&world, ran.task()?, facility, "deny", "no_permit")?;
    let audited = world.task().intent("review").audit().run(words)?;
    audited.expect(&expected).context("in audit mode")?;
    expect_record(&world, audited.task()?, facility, "would_deny", "no_permit")?;
    let permitted = world.task().intent("administer").run(words)?;
    permitted.expect(&expected).context("with a permit")?;
    expect_record(&world, permitted.task()?, facility, "allow", "policy")
}

/// There may be others of the same task: an operation can take more than one capability.
pub(crate) fn expect_record(world: &World, task: &str, facility: &str, effect: &str, reason: &str) -> Result<()> {
    let what = format!("use {effect} {reason} of {facility} by {task}");
    let found = world.daemon.record(&what, |record| {
        record.task() == task && record.is_decision("use", effect, reason) && record.text("/resource/name") == facility
    })?;
    found.expect("/resource/type", "facility")
}

/// Who may make a user namespace has all capabilities in it, and uses none.
fn in_user_namespace(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["then", "unshare+user", "unshare", "net"];
    world.unmarked(&words)?.expect(&["ok"])?;
    let ran = world.task().intent("sandbox").run(&words)?;
    ran.expect_refused()?;
    expect_record(&world, ran.task()?, "user_namespace", "allow", "policy")?;
    expect_record(&world, ran.task()?, "cap_sys_admin", "deny", "no_permit")
}

/// Debian's kernels ask for more than the capability where `perf_event_paranoid` is above what other kernels know.
fn perfmon(lab: &Lab) -> Result<()> {
    let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").context("perf_event_paranoid")?;
    let stricter = paranoid.trim().parse::<i32>()? > 2;
    refused(lab, if stricter { "cap_sys_admin" } else { "cap_perfmon" }, &["capability", "perfmon"])
}

const TUN: [&str; 2] = ["tun", "writ-test0"];

fn tun(lab: &Lab) -> Result<()> {
    with_tun_devices(lab)?;
    refused(lab, "cap_net_admin", &TUN)
}

/// The capability is not all that it takes.
fn tun_alone(lab: &Lab) -> Result<()> {
    with_tun_devices(lab)?;
    let world = lab.shared()?;
    let ran = world.task().run(&TUN)?;
    ran.expect_refused()?;
    expect_record(&world, ran.task()?, "cap_net_admin", "allow", "policy")?;
    expect_record(&world, ran.task()?, "tun", "deny", "no_permit")
}

fn with_tun_devices(lab: &Lab) -> Result<()> {
    match lab.shared()?.unmarked(&TUN)?.lines.concat() {
        made if made == "ok" => Ok(()),
        other => Err(skip(format!("this kernel has no tun devices: {other}"))),
    }
}

fn ptrace(lab: &Lab) -> Result<()> {
    let mut command = Command::new(lab.machine.program("writ-probe"));
    let mut child = command.arg("serve").uid(65534).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let done = refused(lab, "cap_sys_ptrace", &["attach", &child.id().to_string()]);
    child.kill()?;
    child.wait()?;
    done
}

/// What the kernel asks at each mmap and fork of root says nothing about anybody.
fn probes(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = world.task().intent("review").run(&["fork", "fork", "socket", "2", "1", "0"])?;
    ran.expect(&["ok"])?;
    let task = ran.task()?;
    world.event(task, "task_ended")?;
    let records = record::read(&world.daemon.place.path("records.jsonl"))?;
    let used: Vec<String> = records
        .iter()
        .filter(|record| record.task() == task && record.text("/action") == "use")
        .map(record::Record::short)
        .collect();
    ensure!(used.is_empty(), "recorded: {used:?}");
    Ok(())
}

/// A permit ends with the task.
fn over(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().intent("administer").session()?;
    session.expect(&["ring"], &["ok"])?;
    session.expect(&["capability", "net_admin"], &["ok"])?;
    let task = session.task()?;
    world.daemon.ask(&["task", "revoke", &task])?;
    for (words, facility) in [(&["ring"][..], "io_uring"), (&["capability", "net_admin"], "cap_net_admin")] {
        session.expect(words, &["errno EPERM"])?;
        expect_record(&world, &task, facility, "deny", "revoked")?;
    }
    Ok(())
}
