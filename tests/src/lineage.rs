//! Nobody sheds the mark: whatever a process becomes or begets, it is refused like the first.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::daemon::set_mode;
use crate::harness::machine::cgroup_root;
use crate::harness::options::Options;
use crate::harness::wait::until;
use crate::harness::world::{Lab, OPEN, World};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("lineage::fork", |lab| kept(lab, &["fork"])),
        ("lineage::thread", |lab| kept(lab, &["thread"])),
        ("lineage::thread_of_a_child", |lab| kept(lab, &["fork", "thread"])),
        ("lineage::thread_outlives_its_leader", |lab| kept(lab, &["leader-exit"])),
        ("lineage::child_of_a_thread_without_leader", |lab| kept(lab, &["leader-exit", "fork"])),
        ("lineage::double_fork_and_setsid", |lab| kept(lab, &["daemonize"])),
        ("lineage::vfork", |lab| kept(lab, &["vfork"])),
        ("lineage::posix_spawn", |lab| kept(lab, &["spawn"])),
        ("lineage::exec", |lab| kept(lab, &["exec"])),
        ("lineage::exec_in_a_thread", |lab| kept(lab, &["thread", "exec"])),
        ("lineage::clone_parent", |lab| kept(lab, &["clone-parent"])),
        ("lineage::chain_of_50", |lab| kept(lab, &["chain", "50"])),
        ("lineage::setuid_program", setuid_program),
        ("lineage::cgroup_move", cgroup_move),
        ("lineage::bomb_of_200", bomb),
        ("lineage::exit_leaves_no_mark", exit_leaves_no_mark),
        ("lineage::task_lives_while_a_descendant_does", descendant_keeps_the_task),
        ("lineage::reused_pid_inherits_nothing", reused_pid),
    ])
}

pub(crate) fn own_tests() -> Vec<Test> {
    on_every_tier([("lineage::no_unmarked_child_when_marks_are_full", marks_full)])
}

/// Unmarked it connects, marked it does not.
pub(crate) fn kept(lab: &Lab, wrappers: &[&str]) -> Result<()> {
    let world = lab.shared()?;
    let address = world.open.tcp()?;
    expect_kept(&world, &[wrappers, &["tcp", &address]].concat())
}

fn expect_kept(world: &World, words: &[&str]) -> Result<()> {
    world.open.arrived()?;
    world.unmarked(words)?.expect(&["ok"]).context("without a mark")?;
    ensure!(world.open.arrived()? == 1, "the unmarked attempt did not arrive");
    let ran = world.task().run(words)?;
    ran.expect_refused()?;
    ensure!(world.open.arrived()? == 0, "the refused attempt arrived");
    world.decision(ran.task()?, "connect", "deny", "policy")?.expect_policy("baseline/connect-beyond-grant")?;
    // And the descendant has what its task is granted.
    world.task().connect(OPEN).run(words)?.expect(&["ok"]).context("with a grant")
}

fn setuid_program(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let copy = world.daemon.place.path("setuid-probe");
    std::fs::copy(world.machine.program("writ-probe"), &copy)?;
    set_mode(&copy, 0o4755)?;
    let address = world.open.tcp()?;
    expect_kept(&world, &["setuid-exec", &copy.to_string_lossy(), "tcp", &address])
}

/// A cgroup that goes with its test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Result<Self> {
        let path = cgroup_root()?.join(format!("writ-test-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make `{}`", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that have just ended may still be accounted there.
        let gone = until("the end of the cgroup", 5, || Ok(std::fs::remove_dir(&self.0).ok()));
        if let Err(error) = gone {
            eprintln!("{error}: remove `{}` by hand", self.0.display());
        }
    }
}

fn cgroup_move(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let cgroup = Cgroup::new()?;
    let address = world.open.tcp()?;
    expect_kept(&world, &["cgroup", &cgroup.0.to_string_lossy(), "tcp", &address])
}

fn bomb(lab: &Lab) -> Result<()> {
    const CHILDREN: usize = 200;
    let world = lab.shared()?;
    let words = ["bomb", &CHILDREN.to_string(), "tcp", &world.open.tcp()?];
    world.open.arrived()?;
    world.unmarked(&words)?.expect(&["ok"; CHILDREN])?;
    ensure!(world.open.arrived()? == CHILDREN, "not every unmarked child arrived");
    let ran = world.task().run(&words)?;
    ran.expect(&["errno EPERM"; CHILDREN])?;
    ensure!(world.open.arrived()? == 0, "a refused child arrived");
    let task = ran.task()?;
    world.event(task, "task_ended")?;
    let sum = until("a record for each child", 15, || {
        let records = world.daemon.records()?;
        let denials = records.iter().filter(|r| r.task() == task && r.text("/effect") == "deny");
        let sum: u64 = denials.map(|record| record.number("/count")).sum();
        Ok((sum >= CHILDREN as u64).then_some(sum))
    })?;
    ensure!(sum == CHILDREN as u64, "{sum} denials are recorded for {CHILDREN}");
    Ok(())
}

/// The task as the daemon shows it.
pub(crate) fn view(world: &World, task: &str) -> Result<Value> {
    world.daemon.ask(&["task", "show", task])
}

pub(crate) fn processes(world: &World, task: &str) -> Result<Option<u64>> {
    Ok(view(world, task)?.pointer("/processes").and_then(Value::as_u64))
}

fn exit_leaves_no_mark(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().session()?;
    let task = session.task()?;
    ensure!(session.ask(&["fork", "pid"])?.len() == 1, "the child said nothing");
    until("one process of the task", 5, || Ok((processes(&world, &task)? == Some(1)).then_some(())))?;
    ensure!(session.close()?.success(), "the session failed");
    let over = world.event(&task, "task_ended")?;
    ensure!(over.text("/why") == "its last process has gone", "{}", over.0);
    ensure!(processes(&world, &task)? == Some(0), "processes are left: {}", view(&world, &task)?);
    until("no marked process at all", 5, || {
        let count = world.daemon.status()?.pointer("/processes").and_then(Value::as_u64);
        Ok((count == Some(0)).then_some(()))
    })
}

fn descendant_keeps_the_task(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    // The first process ends at once; the one that is left tries afterwards.
    let ran = world.task().run(&["daemonize", "tcp", &world.open.tcp()?])?;
    ran.expect_refused()?;
    let record = world.decision(ran.task()?, "connect", "deny", "policy")?;
    let over = world.event(ran.task()?, "task_ended")?;
    ensure!(over.number("/sequence") > record.number("/sequence"), "the task was over before its last process");
    ensure!(over.number("/denied") == 1, "not one denial in {}", over.0);
    Ok(())
}

fn reused_pid(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let mut session = world.task().session()?;
    let pid = session.pid().to_string();
    session.expect(&["tcp", &world.open.tcp()?], &["errno EPERM"])?;
    session.close()?;
    let ran = world.unmarked(&["with-pid", &pid, "tcp", &world.open.tcp()?])?;
    ran.expect(&["ok"])?;
    ensure!(world.open.arrived()? == 1, "it did not arrive");
    Ok(())
}

/// A family that asks for more marks than there are dies or is refused forks; none of it goes unmarked.
fn marks_full(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default().setting("max_processes = 64"))?;
    world.open.arrived()?;
    let ran = world.task().run(&["storm", "200", "tcp", &world.open.tcp()?])?;
    let refused = ran.lines.iter().filter(|line| *line == "errno EPERM").count();
    ensure!(refused >= 32, "only {refused} children got as far as their attempt: {ran:?}");
    let strange: Vec<_> = ran.lines.iter().filter(|line| *line != "errno EPERM" && *line != "fork EAGAIN").collect();
    ensure!(strange.is_empty(), "{strange:?}");
    ensure!(refused <= 80, "{refused} children with 64 marks");
    ensure!(world.open.arrived()? == 0, "a child got through");
    ensure!(world.daemon.counter("marks_full")? >= 1, "nothing was counted");
    // Once the storm is over there is room again.
    world.event(ran.task()?, "task_ended")?;
    world.task().connect(OPEN).run(&["fork", "tcp", &world.open.tcp()?])?.expect(&["ok"])?;
    unmarked_forks_freely(&world)?;
    world.daemon.stop().map(drop)
}

fn unmarked_forks_freely(world: &World) -> Result<()> {
    let ran = world.unmarked(&["bomb", "100", "tcp", &world.open.tcp()?])?;
    ran.expect(&["ok"; 100])
}
