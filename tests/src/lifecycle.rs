//! A task from `writ run` to its end.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::run::run;
use crate::harness::wait::until;
use crate::harness::world::{Lab, OPEN};
use crate::lineage::view;
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("lifecycle::exit_status_passes_through", exit_status),
        ("lifecycle::signals_pass_through", signals),
        ("lifecycle::streams_pass_through", streams),
        ("lifecycle::the_command_knows_its_task", knows_its_task),
        ("lifecycle::missing_command", missing_command),
        ("lifecycle::records_of_a_task", records_of_a_task),
        ("lifecycle::task_list", task_list),
        ("lifecycle::status", status),
        ("lifecycle::watch", watch),
        ("lifecycle::revoke", revoke),
        ("lifecycle::expiry", expiry),
        ("lifecycle::labels", labels),
    ])
}

fn exit_status(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    for code in [0, 3, 255] {
        let ran = world.task().run(&["exit", &code.to_string()])?;
        ensure!(ran.status.code() == Some(code), "{code} became {:?}", ran.status);
    }
    Ok(())
}

fn signals(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = world.task().run(&["kill-self", &libc::SIGTERM.to_string()])?;
    ensure!(ran.status.signal() == Some(libc::SIGTERM), "{:?}", ran.status);
    let mut session = world.task().session()?;
    session.task()?;
    // One that no shell has its background jobs ignore.
    kill(Pid::from_raw(session.pid() as i32), Signal::SIGUSR1)?;
    let status = session.wait_for_end()?;
    ensure!(status.signal() == Some(libc::SIGUSR1), "{status:?}");
    Ok(())
}

fn streams(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let (input, mut end) = std::io::pipe()?;
    end.write_all(b"one\ntwo\n")?;
    drop(end);
    world.task().stdin(input).run(&["copy"])?.expect(&["one", "two"])
}

fn knows_its_task(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = world.task().run(&["env", "WRIT_TASK"])?;
    let task = ran.task()?;
    ran.expect(&[task])
}

fn missing_command(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["run", "--agent", "coder", "--intent", "fix-bug", "--", "/nowhere/at-all"];
    let ran = run(world.daemon.writ(&words))?;
    ensure!(ran.status.code() == Some(127), "{:?}", ran.status);
    ensure!(ran.stderr.contains("`/nowhere/at-all` was not found"), "{}", ran.stderr);
    Ok(())
}

fn records_of_a_task(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let task = world.task().connect(OPEN).option("--goal", "make it green");
    let ran = task.run(&["fork", "exec", "tcp", &world.open.tcp()?])?;
    ran.expect(&["ok"])?;
    let id = ran.task()?;
    let started = world.event(id, "task_started")?;
    started.expect("/agent", "coder")?;
    started.expect("/goal", "make it green")?;
    started.expect("/mode", "enforce")?;
    started.expect("/grant_connect/0", OPEN)?;
    ensure!(started.array("/argv").len() == 5, "the command is not in {}", started.0);
    let ended = world.event(id, "task_ended")?;
    ensure!(ended.number("/allowed") == 1, "not one allowed connect in {}", ended.0);
    for kind in ["process_exec", "process_exit"] {
        world.event(id, kind)?;
    }
    world.daemon.record("the last exit", |r| {
        r.task() == id && r.kind() == "process_exit" && r.0.pointer("/remaining") == Some(&Value::from(0))
    })?;
    Ok(())
}

fn task_list(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().connect(OPEN).session()?;
    let id = session.task()?;
    session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    session.expect(&["tcp", &world.more.tcp()?], &["errno EPERM"])?;
    let counted = |status: &str| {
        let list = world.daemon.ask(&["task", "list"])?;
        let tasks = list.pointer("/tasks").and_then(Value::as_array).context("no list")?;
        let own = tasks.iter().find(|task| task.pointer("/id").is_some_and(|own| *own == id)).cloned();
        let own = own.with_context(|| format!("{id} is not in the list"))?;
        Ok((own.pointer("/status").is_some_and(|own| own == status)
            && own.pointer("/counts/allowed") == Some(&Value::from(1))
            && own.pointer("/counts/denied") == Some(&Value::from(1)))
        .then_some(own))
    };
    let own = until("the counts of a live task", 10, || counted("active"))?;
    ensure!(own.pointer("/processes") == Some(&Value::from(1)), "{own}");
    ensure!(own.pointer("/agent").is_some_and(|agent| agent == "coder"), "{own}");
    session.close()?;
    until("the end in the list", 10, || counted("ended"))?;
    let text = run(world.daemon.writ(&["ps"]))?;
    ensure!(text.lines.iter().any(|line| line.contains(&id) && line.contains("ended")), "{text:?}");
    Ok(())
}

fn status(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let status = world.daemon.status()?;
    ensure!(status.pointer("/tier").is_some_and(|tier| tier == world.machine.tier.as_str()), "{status}");
    ensure!(status.pointer("/pid") == Some(&Value::from(world.daemon.pid().as_raw())), "{status}");
    let memory = status.pointer("/memory_kib").and_then(Value::as_u64).unwrap_or_default();
    ensure!((1024..60 * 1024).contains(&memory), "{memory} KiB of memory");
    let coverage = status.pointer("/coverage").and_then(Value::as_array).context("no coverage")?;
    let enforced = coverage.iter().filter(|row| row.pointer("/state").is_some_and(|state| state == "enforced"));
    ensure!(enforced.count() >= 5, "{status}");
    ensure!(status.pointer("/policies/last_error").is_none_or(Value::is_null), "{status}");
    let text = run(world.daemon.writ(&["status"]))?;
    ensure!(text.status.success() && text.lines.iter().any(|line| line.starts_with("tier:")), "{text:?}");
    Ok(())
}

/// What `writ watch` shows of a denial, raw and readable.
fn watch(lab: &Lab) -> Result<()> {
    use std::io::{BufRead, BufReader};
    let world = lab.shared()?;
    let mut json = world.daemon.writ(&["watch", "--output", "json", "--effect", "deny"]);
    let mut child = json.stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("a pipe was asked for")?;
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    // Until the stream is open a denial is not shown, so there are several.
    let shown = until("a denial in the stream", 15, || {
        world.task().run(&["tcp", &world.open.tcp()?])?.expect_refused()?;
        Ok(lines.try_recv().ok())
    });
    child.kill()?;
    child.wait()?;
    let record: Value = serde_json::from_str(&shown?)?;
    ensure!(record.pointer("/effect").is_some_and(|effect| effect == "deny"), "{record}");
    ensure!(record.pointer("/kind").is_some_and(|kind| kind == "decision"), "{record}");
    Ok(())
}

fn revoke(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().connect(OPEN).session()?;
    let id = session.task()?;
    session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    world.open.arrived()?;
    let answer = world.daemon.ask(&["task", "revoke", &id])?;
    ensure!(answer.pointer("/status").is_some_and(|status| status == "revoked"), "{answer}");
    // A cached verdict, a first contact, a new socket: nothing goes any more.
    session.expect(&["tcp", &world.open.tcp()?], &["errno EPERM"])?;
    session.expect(&["udp", &world.open.udp()?], &["errno EPERM"])?;
    session.expect(&["read", &world.home("file.key")], &["errno EPERM"])?;
    session.expect(&["fork", "tcp", &world.open.tcp()?], &["errno EPERM"])?;
    ensure!(world.open.arrived()? == 0, "something of a revoked task arrived");
    world.event(&id, "task_revoked")?;
    world.decision(&id, "socket", "deny", "revoked")?;
    world.decision(&id, "read", "deny", "revoked")?;
    let again = run(world.daemon.writ(&["task", "revoke", &id]))?;
    ensure!(!again.status.success() && again.stderr.contains(&id), "{again:?}");
    Ok(())
}

fn expiry(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().connect(OPEN).ttl(2).session()?;
    let id = session.task()?;
    session.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    world.event(&id, "task_expired")?;
    world.open.arrived()?;
    session.expect(&["tcp", &world.open.tcp()?], &["errno EPERM"])?;
    session.expect(&["read", &world.home("file.key")], &["errno EPERM"])?;
    ensure!(world.open.arrived()? == 0, "something of an expired task arrived");
    world.decision(&id, "socket", "deny", "expired")?;
    let view = view(&world, &id)?;
    ensure!(view.pointer("/status").is_some_and(|status| status == "expired"), "{view}");
    Ok(())
}

fn labels(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let labels = world.daemon.ask(&["labels"])?;
    let has = |list: &str, label: &str| {
        let list = labels.pointer(list).and_then(Value::as_array);
        list.is_some_and(|list| list.iter().any(|own| own == label))
    };
    ensure!(has("/connect", OPEN) && has("/read", "secret/test/file"), "{labels}");
    ensure!(
        has("/read", "secret/ssh/key") && has("/connect", "net/metadata"),
        "the shipped ones are missing: {labels}"
    );
    Ok(())
}
