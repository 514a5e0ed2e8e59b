//! What takes a daemon of its own: another catalogue, and more names than there is room for.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{OPEN, ear, on_full_tier};
use crate::Test;
use crate::harness::options::{Options, UNIX};
use crate::harness::wait::until;
use crate::harness::world::Lab;

pub(crate) fn own_tests() -> Vec<Test> {
    on_full_tier([("unix::catalogue_is_reloaded", reloaded), ("unix::flood_of_names", flood)])
}

fn reloaded(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    let ear = ear(&world, libc::SOCK_STREAM, "moved")?;
    let mut session = world.task().connect(OPEN).session()?;
    let action = ["unix", "stream", &ear.name];
    session.expect(&action, &["errno EPERM"])?;
    let more = format!("{UNIX}[[listener]]\nname = \"moved\"\nlabels = [\"{OPEN}\"]\npaths = [\"{}\"]\n", ear.name);
    world.daemon.place.write("etc/unix.toml", &more)?;
    until("the new label", 30, || Ok((session.ask(&action)? == ["ok"]).then_some(())))?;
    world.daemon.place.write("etc/unix.toml", UNIX)?;
    until("the old label", 30, || {
        // Who connects waits for as long as the queue is full.
        ear.arrived();
        Ok((session.ask(&action)? == ["errno EPERM"]).then_some(()))
    })
}

/// More names than the kernel remembers: they cost their own task alone.
fn flood(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    let ear = ear(&world, libc::SOCK_STREAM, "open-beside")?;
    let before = world.daemon.status()?;
    let mut flooding = world.task().session()?;
    flooding.tell(&["unix-flood", "20000", "@writ-flood-"])?;
    let mut beside = world.task().connect(OPEN).session()?;
    for _ in 0..50 {
        beside.expect(&["unix", "stream", &ear.name], &["ok"])?;
        ensure!(ear.arrived() == 1, "nothing arrived");
    }
    let answer = until("the end of the flood", 120, || Ok(flooding.answer().ok()))?;
    ensure!(answer == ["ok"], "the flood met {answer:?}");
    let rss = |status: &Value| status.pointer("/memory_kib").and_then(Value::as_u64).context("no memory_kib");
    let (before, after) = (rss(&before)?, rss(&world.daemon.status()?)?);
    ensure!(after < before + 16 * 1024, "{before} KiB grew to {after} KiB");
    Ok(())
}
