//! A task that asks for more than its share: the others go on, and what it did adds up.

use anyhow::{Context, Result, ensure};

use crate::harness::options::Options;
use crate::harness::run::Ran;
use crate::harness::wait::until;
use crate::harness::world::{Lab, World};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("flood::threads_that_miss_at_once", |lab| at_once(lab)),
        ("flood::others_go_on", |lab| others(lab)),
    ])
}

/// With a daemon of its own.
pub(crate) fn own_tests() -> Vec<Test> {
    on_every_tier([("flood::distinct_destinations", |lab| distinct(lab))])
}

const DESTINATIONS: &str = "10000";
/// So small a share of a second that even an emulated processor asks for more.
const SHARE: &str = "max_contacts_per_second = 50";
const THREADS: &str = "1000";
/// First contacts of the task that does not flood.
const CONTACTS: usize = 40;
/// Where every processor may hold somebody already, an answer is there at the next attempt.
const ATTEMPTS: usize = 3;

fn distinct(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default().setting(SHARE))?;
    world.unmarked(&["scan", "127.64.0.0", "10"])?.expect(&["10 through", "0 refused"])?;
    let ran = world.task().connect("net/loopback").run(&["scan", "127.64.0.0", DESTINATIONS])?;
    let (through, refused) = counts(&ran)?;
    ensure!(through > 0 && refused > 0, "{through} through, {refused} refused");
    world.decision(ran.task()?, "connect", "deny", "rate_limited")?.expect("/source", "structural")?;
    adds_up(&world, &ran)?;
    world.daemon.stop().map(drop)
}

fn at_once(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = world.task().connect("net/loopback").run(&["scan-at-once", "127.65.0.0", THREADS])?;
    let (through, _) = counts(&ran)?;
    ensure!(through > 0, "nothing got through");
    adds_up(&world, &ran)
}

/// A task that has a first contact now and then, beside one that has nothing else.
fn others(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut flood = world.task().connect("net/loopback").session()?;
    let mut other = world.task().connect("net/loopback").session()?;
    flood.tell(&["scan-at-once", "127.66.0.0", THREADS])?;
    for contact in 0..CONTACTS {
        flood.tell(&["scan", &format!("127.67.{contact}.0"), "250"])?;
        let address = format!("127.68.0.{contact}");
        let mut answers = (0..ATTEMPTS).map(|_| other.ask(&["scan", &address, "1"]));
        let through = answers.find_map(|answer| match answer {
            Ok(lines) => lines.iter().any(|line| line == "1 through").then_some(Ok(())),
            Err(error) => Some(Err(error)),
        });
        through.with_context(|| format!("contact {contact} was refused {ATTEMPTS} times"))??;
    }
    Ok(())
}

/// What a scan says of itself.
fn counts(ran: &Ran) -> Result<(u64, u64)> {
    let [through, refused] = ran.lines.as_slice() else { anyhow::bail!("no counts: {ran:?}") };
    let number = |line: &str| line.split(' ').next().and_then(|word| word.parse().ok());
    number(through).zip(number(refused)).with_context(|| format!("no counts: {ran:?}"))
}

/// Whether the records tell of every attempt: as a decision, or in the count of a loss.
fn adds_up(world: &World, ran: &Ran) -> Result<()> {
    let (through, refused) = counts(ran)?;
    let task = ran.task()?;
    world.event(task, "task_ended")?;
    let attempts = through + refused;
    let mut last = (0, 0);
    let result = until("records that add up", 20, || {
        let records = world.daemon.records()?;
        let own = records.iter().filter(|record| record.task() == task);
        let told = own.clone().filter(|r| r.text("/action") == "connect").map(|r| r.number("/count")).sum::<u64>();
        let begun = own.map(|record| record.number("/sequence")).min().unwrap_or_default();
        let losses = records.iter().filter(|r| r.kind() == "loss" && r.number("/sequence") > begun);
        last = (told, losses.map(|record| record.number("/count")).sum());
        ensure!(last.0 + last.1 <= attempts, "{last:?} of {attempts}");
        Ok((last.0 + last.1 == attempts).then_some(()))
    });
    result.map_err(|error| anyhow::anyhow!("{error}: {last:?} recorded and lost of {attempts}"))
}
