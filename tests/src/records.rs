//! Nothing is lost silently: what was attempted, counted and recorded adds up.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::harness::wait::until;
use crate::harness::world::{Lab, World};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([("records::flood_adds_up", flood), ("records::sequence_has_no_gap", sequence)])
}

const PROCESSES: u64 = 4;
const EACH: u64 = 25_000;

/// Many processes, 100,000 attempts: none gets through, and each is in the records or in the loss counters.
fn flood(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let before = Counts::now(&world)?;
    let words = ["bomb", &PROCESSES.to_string(), "flood", &EACH.to_string(), &world.open.tcp()?];
    let ran = world.task().run(&words)?;
    ran.expect(&["ok"; PROCESSES as usize])?;
    ensure!(world.open.arrived()? == 0, "an attempt got through");
    let task = ran.task()?.to_owned();
    world.event(&task, "task_ended")?;
    let attempts = PROCESSES * EACH;
    let after = Counts::now(&world)?;
    let denied = after.denied - before.denied;
    ensure!(denied == attempts, "{denied} of {attempts} denials were counted");
    let mut last = String::new();
    let adds_up = until("records that add up", 20, || {
        let lost = Counts::now(&world)?.lost - before.lost;
        let recorded = recorded(&world, &task)?;
        last = format!("{recorded} recorded and {lost} lost of {attempts}");
        ensure!(recorded + lost <= attempts, "{last}");
        Ok((recorded + lost == attempts).then_some(lost))
    });
    let lost = adds_up.map_err(|error| anyhow::anyhow!("{error}: {last}"))?;
    if lost > 0 {
        world
            .daemon
            .record("the loss", |record| record.kind() == "loss" && record.text("/cause") == "record_lost_deny")?;
    }
    Ok(())
}

struct Counts {
    denied: u64,
    lost: u64,
}

impl Counts {
    fn now(world: &World) -> Result<Self> {
        let status = world.daemon.status()?;
        let get = |name: &str| status.pointer(name).and_then(Value::as_u64).unwrap_or_default();
        Ok(Self { denied: get("/counters/denied"), lost: get("/counters/record_lost_deny") })
    }
}

fn recorded(world: &World, task: &str) -> Result<u64> {
    let records = world.daemon.records()?;
    let own = records.iter().filter(|r| r.task() == task && r.kind() == "decision" && r.text("/effect") == "deny");
    Ok(own.map(|record| record.number("/count")).sum())
}

fn sequence(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.task().run(&["tcp", &world.open.tcp()?])?.expect_refused()?;
    let records = world.daemon.records()?;
    for (expected, record) in (1_u64..).zip(&records) {
        ensure!(record.number("/sequence") == expected, "not line {expected}: {}", record.0);
    }
    ensure!(records.len() > 3, "only {} records", records.len());
    Ok(())
}
