//! Kernel settings below /proc/sys: no marked process changes one that policy does not permit, and some never.

use std::fs::File;

use anyhow::{Context, Result, ensure};

use crate::facility::expect_record;
use crate::harness::machine::Tier;
use crate::harness::world::{Lab, World};
use crate::{Test, on_every_tier};

/// No kernel since 5.18 looks at it.
const FREE: &str = "kernel/random/urandom_min_reseed_secs";

/// What would blind the enforcement, or have the kernel start a program that is no task's.
const FORBIDDEN: [&str; 9] = [
    "kernel/ftrace_enabled",
    "kernel/core_pattern",
    "kernel/modprobe",
    "kernel/hotplug",
    "kernel/poweroff_cmd",
    "kernel/sysrq",
    "kernel/unprivileged_bpf_disabled",
    "kernel/yama/ptrace_scope",
    "kernel/sched_rt_runtime_us",
];

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("sysctl::refused_unless_permitted", unless_permitted),
        ("sysctl::reading_is_free", reading),
        ("sysctl::forbidden_whatever_policy_says", forbidden),
        ("sysctl::opened_before_the_mark", opened_before),
        ("sysctl::by_a_child_and_a_thread", by_others),
        ("sysctl::by_another_procfs", by_another_procfs),
        ("sysctl::forwarding_in_a_net_namespace", forwarding),
        ("sysctl::over_with_the_task", over),
    ])
}

fn path(name: &str) -> String {
    format!("/proc/sys/{name}")
}

/// What is there: writing it again changes nothing.
fn value(name: &str) -> Result<String> {
    let text = std::fs::read_to_string(path(name)).with_context(|| format!("cannot read {name}"))?;
    Ok(text.trim().to_owned())
}

fn unless_permitted(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["put", &path(FREE), &value(FREE)?];
    world.unmarked(&words)?.expect(&["ok"]).context("without a mark")?;
    let refused = world.task().intent("review").run(&words)?;
    refused.expect_refused()?;
    let record = world.decision(refused.task()?, "use", "deny", "no_permit")?;
    record.expect("/resource/name", "sysctl")?;
    record.expect("/resource/detail", FREE)?;
    let audited = world.task().intent("review").audit().run(&words)?;
    audited.expect(&["ok"])?;
    expect_record(&world, audited.task()?, "sysctl", "would_deny", "no_permit")?;
    let permitted = world.task().intent("administer").run(&words)?;
    permitted.expect(&["ok"])?;
    expect_record(&world, permitted.task()?, "sysctl", "allow", "policy")
}

fn reading(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    for name in [FREE, "kernel/core_pattern", "net/ipv4/ip_forward"] {
        world.task().intent("review").run(&["get", &path(name)])?.expect(&["ok"])?;
    }
    Ok(())
}

/// In audit mode, too: it is everybody's enforcement that would go.
fn forbidden(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut there = 0;
    for name in FORBIDDEN {
        let Ok(value) = value(name) else { continue };
        there += 1;
        // Elsewhere than in a guest of its own no setting of the host is written, not even with what is there.
        if world.machine.tier == Tier::Full {
            world.unmarked(&["put", &path(name), &value])?.expect(&["ok"]).with_context(|| name.to_owned())?;
        }
        let words = ["put", &path(name), &value];
        let ran = world.task().intent("administer").run(&words)?;
        ran.expect_refused().with_context(|| name.to_owned())?;
        expect_tamper(&world, ran.task()?, name)?;
        let audited = world.task().intent("administer").audit().run(&words)?;
        audited.expect_refused().with_context(|| format!("{name} in audit mode"))?;
        expect_tamper(&world, audited.task()?, name)?;
    }
    ensure!(there >= 3, "this kernel has {there} of these settings");
    Ok(())
}

fn expect_tamper(world: &World, task: &str, name: &str) -> Result<()> {
    let record = world.decision(task, "use", "deny", "tamper")?;
    record.expect("/source", "structural")?;
    record.expect("/resource/detail", name)
}

/// The write counts, not the open.
fn opened_before(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let value = value(FREE)?;
    let open = || File::options().write(true).open(path(FREE));
    let words = ["put-fd", "0", &value];
    world.task().intent("administer").stdin(open()?).run(&words)?.expect(&["ok"])?;
    let ran = world.task().intent("review").stdin(open()?).run(&words)?;
    ran.expect_refused()?;
    expect_record(&world, ran.task()?, "sysctl", "deny", "no_permit")
}

fn by_others(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let (path, value) = (path(FREE), value(FREE)?);
    for wrapper in ["fork", "thread", "daemonize", "exec"] {
        let ran = world.task().intent("review").run(&[wrapper, "put", &path, &value])?;
        ran.expect_refused().context(wrapper)?;
        expect_record(&world, ran.task()?, "sysctl", "deny", "no_permit")?;
    }
    Ok(())
}

fn by_another_procfs(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let directory = world.home("elsewhere");
    let mount = format!("mount-procfs+{directory}");
    let name = "kernel/core_pattern";
    let setting = format!("{directory}/sys/{name}");
    let read = ["then", &mount, "get", &setting];
    world.task().intent("administer").run(&read)?.expect(&["ok"])?;
    let ran = world.task().intent("administer").run(&["then", &mount, "put", &setting, "core"])?;
    ran.expect_refused()?;
    expect_tamper(&world, ran.task()?, name)
}

/// Settings of a network namespace of its own.
fn forwarding(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    for name in ["net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv4/conf/all/route_localnet"] {
        let (path, value) = (path(name), value(name)?);
        let words = ["netns", "put", &path, "1"];
        world.unmarked(&words)?.expect(&["ok"]).context("without a mark")?;
        world.task().intent("administer").run(&words)?.expect(&["ok"])?;
        // Who may make the namespace without more is refused the setting.
        let ran = world.task().intent("sandbox").run(&["put", &path, &value])?;
        ran.expect_refused()?;
        world.decision(ran.task()?, "use", "deny", "no_permit")?.expect("/resource/detail", name)?;
    }
    Ok(())
}

fn over(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().intent("administer").session()?;
    let (path, value) = (path(FREE), value(FREE)?);
    session.expect(&["put", &path, &value], &["ok"])?;
    let task = session.task()?;
    world.daemon.ask(&["task", "revoke", &task])?;
    session.expect(&["put", &path, &value], &["errno EPERM"])?;
    expect_record(&world, &task, "sysctl", "deny", "revoked")
}
