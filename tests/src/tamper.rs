//! Hands off: processes that are not the task's, the daemon, what it consists of in the kernel, and what lies beneath files.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::Test;
use crate::facility::{expect_record, refused};
use crate::harness::machine::Tier;
use crate::harness::options::Options;
use crate::harness::run::Ran;
use crate::harness::wait::until;
use crate::harness::world::{Lab, World};

pub(crate) fn tests() -> Vec<Test> {
    let named: [(&'static str, crate::Body); 41] = [
        ("tamper::reading_memory", |lab| on_stranger(lab, &["peek", PID])),
        ("tamper::writing_memory", |lab| on_stranger(lab, &["poke", PID])),
        ("tamper::tracing", |lab| on_stranger(lab, &["attach", PID])),
        ("tamper::procfs_memory", |lab| on_stranger(lab, &["memory", PID])),
        ("tamper::procfs_environment", |lab| on_stranger(lab, &["environ", PID])),
        ("tamper::procfs_maps", |lab| on_stranger(lab, &["maps", PID])),
        ("tamper::procfs_descriptor", |lab| on_stranger(lab, &["descriptor", PID, "0"])),
        ("tamper::procfs_root", |lab| on_stranger(lab, &["root-of", PID, "/proc/self/exe"])),
        ("tamper::taking_a_descriptor", |lab| on_stranger(lab, &["take-descriptor", PID, "0"])),
        ("tamper::tracing_in_a_thread", |lab| on_stranger(lab, &["thread", "peek", PID])),
        ("tamper::tracing_as_a_descendant", |lab| on_stranger(lab, &["daemonize", "peek", PID])),
        ("tamper::another_tasks_memory", another_task),
        ("tamper::own_tasks_memory", own_task),
        ("tamper::of_a_task_that_is_over", over),
        ("tamper::what_ps_shows", what_ps_shows),
        ("tamper::daemons_memory", |lab| on_daemon(lab, &["peek", PID])),
        ("tamper::tracing_the_daemon", |lab| on_daemon(lab, &["memory", PID])),
        ("tamper::daemons_descriptors", |lab| on_daemon(lab, &["take-descriptor", PID, "0"])),
        ("tamper::signal", |lab| on_daemon(lab, &["signal", PID])),
        ("tamper::signal_to_go_on", |lab| on_daemon(lab, &["signal-continue", PID])),
        ("tamper::signal_to_a_thread", |lab| on_daemon(lab, &["signal-thread", PID])),
        ("tamper::signal_queued", |lab| on_daemon(lab, &["signal-queued", PID])),
        ("tamper::signal_by_pidfd", |lab| on_daemon(lab, &["signal-pidfd", PID])),
        ("tamper::signal_of_a_descendant", |lab| on_daemon(lab, &["daemonize", "signal", PID])),
        ("tamper::daemons_priority", |lab| on_daemon(lab, &["nice", PID])),
        ("tamper::daemons_scheduler", |lab| on_daemon(lab, &["scheduler", PID])),
        ("tamper::daemons_processors", |lab| on_daemon(lab, &["affinity", PID])),
        ("tamper::daemons_limits", |lab| on_daemon(lab, &["limit", PID])),
        ("tamper::signals_to_others", signals_to_others),
        ("tamper::bpf_commands", bpf_commands),
        ("tamper::sysfs", |lab| refused(lab, "kernel_files", &["write", "/sys/kernel/rcu_expedited"])),
        ("tamper::cgroup_tree", cgroup_tree),
        ("tamper::sysfs_by_another_mount", by_another_mount),
        ("tamper::sysrq_trigger", |lab| refused(lab, "kernel_files", &["write", "/proc/sysrq-trigger"])),
        ("tamper::block_device", |lab| device(lab, "7", "200")),
        ("tamper::scsi_pass_through", |lab| device(lab, "21", "200")),
        ("tamper::own_process_files", own_process_files),
        ("tamper::daemons_files", daemons_files),
        ("tamper::daemons_directories", daemons_directories),
        ("tamper::record_file", record_file),
        ("tamper::new_names_for_a_secret", new_names),
    ];
    named.map(|(name, body)| Test { name, needs: Tier::Full, body }).into()
}

/// Each with daemons of its own.
pub(crate) fn own_tests() -> Vec<Test> {
    let named: [(&'static str, crate::Body); 3] = [
        ("tamper::pinned_object", pinned_object),
        ("tamper::record_file_after_rotation", rotated),
        ("tamper::closed_again_by_the_next_daemon", closed_again),
    ];
    named.map(|(name, body)| Test { name, needs: Tier::Full, body }).into()
}

/// Stands for the process that it is about.
const PID: &str = "PID";

fn about<'a>(words: &[&'a str], pid: &'a str) -> Vec<&'a str> {
    words.iter().map(|&word| if word == PID { pid } else { word }).collect()
}

/// A process of no task, which waits to be told something.
struct Stranger(Child);

impl Stranger {
    fn new(lab: &Lab) -> Result<Self> {
        let mut command = Command::new(lab.machine.program("writ-probe"));
        Ok(Self(command.arg("serve").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn on_stranger(lab: &Lab, words: &[&str]) -> Result<()> {
    let stranger = Stranger::new(lab)?;
    refused(lab, "foreign_process", &about(words, &stranger.pid()))
}

/// Whatever policy says, and in audit mode, too.
fn on_daemon(lab: &Lab, words: &[&str]) -> Result<()> {
    let world = lab.shared()?;
    let pid = world.daemon.pid().to_string();
    never(&world, "foreign_process", &about(words, &pid)).map(drop)
}

fn never(world: &World, facility: &str, words: &[&str]) -> Result<Ran> {
    world.unmarked(words)?.expect(&["ok"]).context("without a mark")?;
    let audited = world.task().intent("administer").audit().run(words)?;
    expect_no(&audited).context("in audit mode")?;
    expect_record(world, audited.task()?, facility, "deny", "tamper")?;
    let ran = world.task().intent("administer").run(words)?;
    expect_no(&ran)?;
    expect_record(world, ran.task()?, facility, "deny", "tamper")?;
    Ok(ran)
}

fn expect_no(ran: &Ran) -> Result<()> {
    let lines = ran.lines.concat();
    ensure!(["errno EPERM", "errno EACCES"].contains(&lines.as_str()), "{ran:?}");
    Ok(())
}

fn another_task(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut other = world.task().intent("review").session()?;
    let pid = other.ask(&["pid"])?.concat();
    refused(lab, "foreign_process", &["peek", &pid])
}

fn own_task(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.task().intent("review").run(&["peek-child"])?.expect(&["ok"])
}

/// A permit ends with the task.
fn over(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let stranger = Stranger::new(lab)?;
    let mut session = world.task().intent("administer").session()?;
    session.expect(&["peek", &stranger.pid()], &["ok"])?;
    let task = session.task()?;
    world.daemon.ask(&["task", "revoke", &task])?;
    session.expect(&["peek", &stranger.pid()], &["errno EPERM"])?;
    expect_record(&world, &task, "foreign_process", "deny", "revoked")
}

/// What everybody may know of a process is free, and not recorded.
fn what_ps_shows(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let (stranger, daemon) = (Stranger::new(lab)?.pid(), world.daemon.pid().to_string());
    let mut session = world.task().intent("review").session()?;
    let task = session.task()?;
    for pid in ["1", &stranger, &daemon] {
        for file in ["stat", "status", "cmdline", "comm"] {
            let path = format!("/proc/{pid}/{file}");
            // The stranger may have gone already; who is refused is told otherwise.
            let answer = session.ask(&["get", &path])?.concat();
            ensure!(["ok", "errno ENOENT", "errno ESRCH"].contains(&answer.as_str()), "{path}: {answer}");
        }
    }
    session.close()?;
    world.event(&task, "task_ended")?;
    let records = world.daemon.records()?;
    let used = records.iter().filter(|record| record.task() == task && record.text("/action") == "use").count();
    ensure!(used == 0, "{used} records");
    Ok(())
}

/// Signals among others are no matter of the enforcement.
fn signals_to_others(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let stranger = Stranger::new(lab)?;
    for verb in ["signal", "signal-continue", "signal-pidfd"] {
        world.task().intent("review").run(&[verb, &stranger.pid()])?.expect(&["ok"]).context(verb)?;
    }
    Ok(())
}

fn bpf_commands(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    for command in ["obj-get", "prog-get-next-id", "map-get-next-id", "link-get-next-id", "link-get-by-id"] {
        never(&world, "bpf", &["bpf", command]).context(command)?;
    }
    never(&world, "bpf", &["capability", "bpf"]).map(drop)
}

/// Opened as a file, which the kernel offers for some kinds only, and asks the guards before it says so.
fn pinned_object(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default().pinned())?;
    let pin = first_file(&world.daemon.place.pins()).context("nothing is pinned")?;
    let ran = world.task().intent("administer").run(&["read", &pin])?;
    expect_no(&ran)?;
    expect_record(&world, ran.task()?, "bpf", "deny", "tamper")?;
    for words in [["unlink", &pin].as_slice(), &["rename", &pin, &format!("{pin}-away")]] {
        closed(&world, words)?;
    }
    world.daemon.stop().map(drop)
}

/// Refused to who may do everything else, and recorded.
fn closed(world: &World, words: &[&str]) -> Result<()> {
    let ran = world.task().intent("administer").read("secret").run(words)?;
    ran.expect_refused().with_context(|| words.join(" "))?;
    expect_record(world, ran.task()?, "enforcement", "deny", "tamper").with_context(|| words.join(" "))
}

/// What each verb does where it may.
fn open_elsewhere(world: &World, words: &[&str]) -> Result<()> {
    let ran = world.task().intent("administer").read("secret").run(words)?;
    ran.expect(&["ok"]).with_context(|| format!("{} elsewhere", words.join(" ")))
}

fn daemons_files(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let (own, policy) = (path(&world, "etc/writd.toml"), path(&world, "etc/policies/test.cedar"));
    let away = world.home("elsewhere/away");
    let here = world.home("elsewhere/here");
    std::fs::write(&here, "plain")?;
    for words in [["read", &here].as_slice(), &["write", &here], &["truncate", &here]] {
        open_elsewhere(&world, words)?;
    }
    for file in [&own, &policy, &path(&world, "etc/secrets.toml")] {
        for verb in ["read", "write", "read-write", "truncate", "unlink", "reopen", "openat2", "mmap"] {
            closed(&world, &[verb, file])?;
        }
        closed(&world, &["link", file, &away])?;
        closed(&world, &["rename", file, &away])?;
        closed(&world, &["rename", &here, file])?;
        closed(&world, &["exchange", &here, file])?;
        closed(&world, &["exchange", file, &here])?;
    }
    ensure!(std::fs::metadata(&policy)?.len() > 0, "the policy is gone");
    std::fs::remove_file(here)?;
    Ok(())
}

fn path(world: &World, name: &str) -> String {
    world.daemon.place.path(name).to_string_lossy().into_owned()
}

fn daemons_directories(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let here = world.home("elsewhere/here");
    for (directory, open) in
        [(world.home("elsewhere"), true), (path(&world, "etc/policies"), false), (path(&world, "state"), false)]
    {
        let new = format!("{directory}/new");
        for words in [
            ["create", &new].as_slice(),
            &["unlink", &new],
            &["make-directory", &new],
            &["remove-directory", &new],
            &["symlink", &here, &new],
            &["unlink", &new],
            &["make-node", &new],
            &["unlink", &new],
        ] {
            match (open, words) {
                (true, _) => open_elsewhere(&world, words)?,
                // Nothing is there.
                (false, ["unlink" | "remove-directory", ..]) => {}
                (false, _) => closed(&world, words)?,
            }
        }
    }
    // What is above it cannot be put out of the way either.
    for name in ["etc", "etc/policies", "run", "state", ""] {
        let directory = path(&world, name);
        let from = directory.trim_end_matches('/').to_owned();
        closed(&world, &["rename", &from, &format!("{from}-away")])?;
    }
    Ok(())
}

fn record_file(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let (file, away) = (path(&world, "records.jsonl"), path(&world, "home/elsewhere/away"));
    for words in [
        ["read", &file].as_slice(),
        &["write", &file],
        &["truncate", &file],
        &["unlink", &file],
        &["rename", &file, &away],
        &["link", &file, &away],
    ] {
        closed(&world, words)?;
    }
    Ok(())
}

/// As logrotate does it.
fn rotated(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    let (file, before) = (path(&world, "records.jsonl"), path(&world, "records.jsonl.1"));
    std::fs::rename(&file, &before)?;
    world.daemon.signal(Signal::SIGHUP)?;
    until("the new record file", 10, || Ok(Path::new(&file).exists().then_some(())))?;
    until("the protection of the new record file", 10, || {
        let ran = world.task().intent("administer").run(&["read", &file])?;
        Ok((ran.lines == ["errno EPERM"]).then_some(()))
    })?;
    closed(&world, &["unlink", &file])?;
    closed(&world, &["unlink", &before])?;
    world.daemon.stop().map(drop)
}

/// A directory protects what is in it, and not under which name.
fn new_names(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let away = world.home("elsewhere/away");
    std::fs::write(&away, "plain")?;
    for (label, name) in [
        ("secret/test/file", "file.key"),
        ("secret/test/directory", "vault/deep/er"),
        ("secret/test/directory", "vault/newer"),
        ("secret/test/directory", "vault/deep"),
    ] {
        let secret = world.home(name);
        if name == "vault/newer" {
            std::fs::write(&secret, "secret")?;
        }
        let moved = format!("{away}-{}", name.replace('/', "-"));
        let mut ways = vec![["rename", &secret, &moved], ["exchange", &secret, &away], ["exchange", &away, &secret]];
        if !Path::new(&secret).is_dir() {
            ways.push(["link", &secret, &moved]);
        }
        for words in ways {
            let ran = world.task().intent("review").run(&words)?;
            ran.expect_refused().with_context(|| words.join(" "))?;
            world.decision(ran.task()?, "read", "deny", "policy")?.expect_policy("baseline/read-beyond-grant")?;
        }
        world.task().intent("review").read(label).run(&["rename", &secret, &moved])?.expect(&["ok"])?;
        std::fs::rename(&moved, &secret)?;
    }
    std::fs::remove_file(away)?;
    std::fs::remove_file(world.home("vault/newer"))?;
    Ok(())
}

/// The programs go on meanwhile, with what the daemon before had closed.
fn closed_again(lab: &Lab) -> Result<()> {
    let mut world = lab.own(Options::default().pinned())?;
    let file = path(&world, "etc/writd.toml");
    let mut session = world.task().intent("administer").session()?;
    session.expect(&["read", &file], &["errno EPERM"])?;
    world.daemon.kill()?;
    for verb in ["read", "unlink", "truncate"] {
        session.expect(&[verb, &file], &["errno EPERM"]).context("without a daemon")?;
    }
    world.daemon.restart()?;
    session.expect(&["read", &file], &["errno EPERM"])?;
    closed(&world, &["unlink", &file])?;
    session.close()?;
    world.daemon.stop().map(drop)
}

fn first_file(directory: &Path) -> Option<String> {
    let mut entries: Vec<_> = std::fs::read_dir(directory).ok()?.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    entries.iter().find_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => first_file(&entry.path()),
        Ok(kind) if kind.is_file() => Some(entry.path().to_string_lossy().into_owned()),
        _ => None,
    })
}

/// By which processes can be frozen, killed and starved.
fn cgroup_tree(lab: &Lab) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let tree = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, path, "cgroup2", ..] => Some(path.to_owned()),
        _ => None,
    });
    let tree = tree.context("no cgroup tree is mounted")?;
    for file in ["cgroup.procs", "cgroup.subtree_control"] {
        refused(lab, "kernel_files", &["write", &format!("{tree}/{file}")]).context(file)?;
    }
    lab.shared()?.task().intent("review").run(&["get", &format!("{tree}/cgroup.controllers")])?.expect(&["ok"])
}

/// It is not the path that counts.
fn by_another_mount(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let directory = world.home("elsewhere");
    let file = format!("{directory}/kernel/rcu_expedited");
    let words = ["bind", "/sys", &directory, "write", &file];
    world.unmarked(&words)?.expect(&["ok"])?;
    // Who may not write there may not mount either: audit mode lets both through, and names both.
    let ran = world.task().intent("review").audit().run(&words)?;
    ran.expect(&["ok"])?;
    expect_record(&world, ran.task()?, "kernel_files", "would_deny", "no_permit")
}

/// Made anew, so that it is not the name that counts either.
fn device(lab: &Lab, major: &str, minor: &str) -> Result<()> {
    let world = lab.shared()?;
    let path = world.home(&format!("elsewhere/node-{major}"));
    refused(lab, "raw_device", &["device", &path, major, minor])
}

/// What a sandbox writes when it sets up itself.
fn own_process_files(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().intent("review").session()?;
    for (file, text) in [("comm", "another"), ("oom_score_adj", "0"), ("coredump_filter", "0x33")] {
        session.expect(&["put", &format!("/proc/self/{file}"), text], &["ok"]).context(file)?;
    }
    session.close().map(drop)
}
