//! What policy says is what happens, and the record names the policy.

use anyhow::{Result, ensure};

use crate::harness::world::{AUDITED, ERRORING, Lab, OPEN, SHUT};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("policy::explicit_forbid", explicit_forbid),
        ("policy::no_permit", no_permit),
        ("policy::label_above_covers", label_above),
        ("policy::audited_task", audited_task),
        ("policy::audited_policy", audited_policy),
        ("policy::erroring_forbid_denies", erroring),
        ("policy::metadata_is_refused_whatever_the_grant", metadata),
        ("policy::second_contact_is_cached", cached),
    ])
}

fn explicit_forbid(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.shut.arrived()?;
    let ran = world.task().connect(SHUT).run(&["tcp", &world.shut.tcp()?])?;
    ran.expect_refused()?;
    ensure!(world.shut.arrived()? == 0, "the refused attempt arrived");
    let record = world.decision(ran.task()?, "connect", "deny", "policy")?;
    record.expect_policy("test/shut")?;
    record.expect("/policies/0/reason", "this endpoint is shut for everybody")
}

/// Without a grant the shipped baseline forbids; a permit for others changes nothing.
fn no_permit(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = world.task().run(&["tcp", &world.open.tcp()?])?;
    ran.expect_refused()?;
    let record = world.decision(ran.task()?, "connect", "deny", "policy")?;
    record.expect_policy("baseline/connect-beyond-grant")?;
    record.expect("/policies/0/advice", "start the task with `--grant-connect` and a label of this endpoint")
}

fn label_above(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.task().connect("test").run(&["tcp", &world.open.tcp()?])?.expect(&["ok"])?;
    world.task().connect("test").run(&["tcp", &world.shut.tcp()?])?.expect_refused()
}

fn audited_task(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    for words in [["tcp", &world.open.tcp()?], ["udp", &world.open.udp()?], ["tcp-nonblock", &world.open.tcp()?]] {
        let ran = world.task().audit().run(&words)?;
        ran.expect(&["ok"])?;
        ensure!(world.open.arrived()? == 1, "it did not arrive");
        let record = world.decision(ran.task()?, "connect", "would_deny", "policy")?;
        record.expect_policy("baseline/connect-beyond-grant")?;
    }
    Ok(())
}

/// It changes no answer, and the record says what it would have changed.
fn audited_policy(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = world.task().connect(AUDITED).run(&["tcp", &world.audited.tcp()?])?;
    ran.expect(&["ok"])?;
    let task = ran.task()?;
    let record = world.daemon.record("what an audited policy would do", |record| {
        record.task() == task && record.text("/action") == "connect"
    })?;
    ensure!(record.text("/effect") != "deny", "it was refused: {}", record.0);
    record.expect("/shadow/effect", "deny")?;
    record.expect("/shadow/policies/0/id", "test/audited")
}

fn erroring(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.erroring.arrived()?;
    let ran = world.task().connect(ERRORING).run(&["tcp", &world.erroring.tcp()?])?;
    ran.expect_refused()?;
    ensure!(world.erroring.arrived()? == 0, "the refused attempt arrived");
    world.decision(ran.task()?, "connect", "deny", "error")?.expect_policy("test/erroring")
}

/// A connect to an address that nobody here has: the refusal comes before any packet.
fn metadata(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = world.task().connect("net").run(&["udp", "169.254.169.254:80"])?;
    ran.expect_refused()?;
    let record = world.decision(ran.task()?, "connect", "deny", "policy")?;
    ensure!(record.policies().contains(&"baseline/metadata"), "{}", record.0);
    Ok(())
}

fn cached(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut session = world.task().connect(OPEN).session()?;
    let address = world.open.tcp()?;
    let upcalls = world.daemon.counter("upcalls")?;
    for _ in 0..5 {
        session.expect(&["tcp", &address], &["ok"])?;
    }
    let asked = world.daemon.counter("upcalls")? - upcalls;
    ensure!(asked == 1, "{asked} questions for one destination");
    let task = session.task()?;
    let first = world.decision(&task, "connect", "allow", "policy")?;
    first.expect("/source", "upcall")
}
