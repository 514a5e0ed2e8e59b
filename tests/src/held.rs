//! Secrets by descriptors that somebody else opened, or this task at another time; and by io_uring.

use std::fs::File;

use anyhow::{Context, Result, anyhow, ensure};

use crate::harness::machine::Tier;
use crate::harness::meeting::Meeting;
use crate::harness::run::Ran;
use crate::harness::world::{Lab, OPEN, World};
use crate::{Body, Test};

const FILE: &str = "secret/test/file";
const DIRECTORY: &str = "secret/test/directory";
/// Of reading without opening.
const WAYS: [&str; 7] = ["read", "readv", "mmap", "sendfile", "splice", "copy", "reopen"];

pub(crate) fn tests() -> Vec<Test> {
    let named: [(&'static str, Body); 13] = [
        ("held::inherited", |lab| inherited(lab, FILE, "file.key")),
        ("held::inherited_of_a_directory", |lab| inherited(lab, DIRECTORY, "vault/deep/er")),
        ("held::inherited_by_a_descendant", inherited_by_a_descendant),
        ("held::inherited_by_io_uring", inherited_by_io_uring),
        ("held::passed", passed),
        ("held::passed_without_a_grant", passed_without),
        ("held::after_revocation", after_revocation),
        ("held::after_expiry", after_expiry),
        ("held::opened_by_io_uring", |lab| by_io_uring(lab, "uring-read")),
        ("held::opened_by_io_uring_worker", |lab| by_io_uring(lab, "uring-async-read")),
        ("held::unlinked_ordinary_file", unlinked_ordinary_file),
        ("held::ordinary_files_are_free", ordinary_files),
        ("held::reads_are_recorded_once", recorded_once),
    ];
    named.map(|(name, body)| Test { name, needs: Tier::Full, body }).into()
}

fn expect_no(world: &World, ran: &Ran, label: &str) -> Result<()> {
    ran.expect_refused()?;
    let record = world.decision(ran.task()?, "read", "deny", "policy")?;
    let labels: Vec<_> = record.array("/resource/labels").iter().filter_map(|label| label.as_str()).collect();
    ensure!(labels.contains(&label), "labels {labels:?} lack {label}");
    record.expect_policy("baseline/read-beyond-grant")
}

/// As standard input, which `writ run` leaves to the command.
fn inherited(lab: &Lab, label: &str, name: &str) -> Result<()> {
    let world = lab.shared()?;
    let open = || File::open(world.home(name));
    for way in WAYS {
        let words = ["descriptor-by", "0", way];
        let refused = world.task().stdin(open()?).run(&words)?;
        expect_no(&world, &refused, label).with_context(|| format!("{way} without a grant"))?;
        let allowed = world.task().read(label).stdin(open()?).run(&words)?;
        allowed.expect(&["ok"]).with_context(|| format!("{way} with a grant"))?;
        let audited = world.task().audit().stdin(open()?).run(&words)?;
        audited.expect(&["ok"]).with_context(|| format!("{way} in audit mode"))?;
        world.decision(audited.task()?, "read", "would_deny", "policy")?;
    }
    Ok(())
}

fn inherited_by_a_descendant(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    for wrapper in ["fork", "thread", "daemonize", "exec"] {
        let file = File::open(world.home("file.key"))?;
        let ran = world.task().stdin(file).run(&[wrapper, "descriptor-by", "0", "read"])?;
        expect_no(&world, &ran, FILE).context(wrapper)?;
    }
    Ok(())
}

fn inherited_by_io_uring(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    for way in ["uring", "uring-async"] {
        let open = || File::open(world.home("file.key"));
        let words = ["descriptor-by", "0", way];
        let ran = world.task().stdin(open()?).run(&words)?;
        expect_no(&world, &ran, FILE).context(way)?;
        world.task().read(FILE).stdin(open()?).run(&words)?.expect(&["ok"]).context(way)?;
    }
    Ok(())
}

fn by_io_uring(lab: &Lab, way: &str) -> Result<()> {
    let world = lab.shared()?;
    let words = [way, &world.home("file.key")];
    world.unmarked(&words)?.expect(&["ok"])?;
    expect_no(&world, &world.task().run(&words)?, FILE)?;
    world.task().read(FILE).run(&words)?.expect(&["ok"])
}

fn taken(world: &World, label: Option<&str>) -> Result<Ran> {
    let meeting = Meeting::new(world)?;
    let file = File::open(world.home("file.key"))?;
    let task = world.task().connect(OPEN);
    let task = if let Some(label) = label { task.read(label) } else { task };
    std::thread::scope(|scope| -> Result<Ran> {
        let client = scope.spawn(|| task.run(&["take-and-read", &meeting.path()]));
        meeting.give(&file)?;
        client.join().map_err(|_| anyhow!("the client's thread died"))?
    })
}

fn passed(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = taken(&world, Some(FILE))?;
    ran.expect(&["ok"])?;
    Ok(())
}

/// The message comes, the descriptor does not.
fn passed_without(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = taken(&world, None)?;
    ran.expect(&["errno ENOBUFS"])?;
    world.decision(ran.task()?, "read", "deny", "policy")?.expect_policy("baseline/read-beyond-grant")
}

/// What was open may be read for as long as the task may read it.
fn after_revocation(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().read(FILE).session()?;
    session.expect(&["hold", &world.home("file.key")], &["ok"])?;
    session.expect(&["held", "read"], &["ok"])?;
    let task = session.task()?;
    world.daemon.ask(&["task", "revoke", &task])?;
    for way in WAYS {
        session.expect(&["held", way], &["errno EPERM"])?;
    }
    world.decision(&task, "read", "deny", "revoked")?.expect("/source", "structural")
}

fn after_expiry(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().read(FILE).ttl(2).session()?;
    session.expect(&["hold", &world.home("file.key")], &["ok"])?;
    let task = session.task()?;
    world.event(&task, "task_expired")?;
    session.expect(&["held", "read"], &["errno EPERM"])?;
    world.decision(&task, "read", "deny", "expired").map(drop)
}

/// A file without a name that this task made is none of the catalogue's.
fn unlinked_ordinary_file(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().session()?;
    let path = world.home("elsewhere/temporary");
    std::fs::write(&path, "plain")?;
    session.expect(&["hold", &path], &["ok"])?;
    std::fs::remove_file(&path)?;
    for way in ["read", "mmap", "sendfile"] {
        session.expect(&["held", way], &["ok"])?;
    }
    Ok(())
}

fn ordinary_files(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    for way in WAYS {
        let file = File::open(world.home("plain.txt"))?;
        world.task().stdin(file).run(&["descriptor-by", "0", way])?.expect(&["ok"]).context(way)?;
    }
    Ok(())
}

/// A secret that may be read costs one record, however often it is read from the same descriptor.
fn recorded_once(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().read(FILE).session()?;
    session.expect(&["hold", &world.home("file.key")], &["ok"])?;
    for _ in 0..10 {
        session.expect(&["held", "read"], &["ok"])?;
    }
    let task = session.task()?;
    session.close()?;
    world.event(&task, "task_ended")?;
    let records = world.daemon.records()?;
    let reads = records.iter().filter(|record| record.task() == task && record.text("/action") == "read");
    let count: u64 = reads.map(|record| record.number("/count")).sum();
    ensure!(count == 1, "{count} reads were recorded");
    Ok(())
}
