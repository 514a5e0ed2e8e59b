//! New namespaces take nothing off a process.

use anyhow::{Context, Result};

use crate::harness::world::Lab;
use crate::lineage::kept;
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("namespaces::user", |lab| kept(lab, &["userns"])),
        ("namespaces::pid", |lab| kept(lab, &["pidns"])),
        ("namespaces::mount", |lab| kept(lab, &["mountns"])),
        ("namespaces::user_and_pid", |lab| kept(lab, &["userns", "pidns"])),
        ("namespaces::net_and_back", |lab| kept(lab, &["netns-back"])),
        ("namespaces::net", |lab| own_loopback(lab, &["netns", "netns-up"])),
        ("namespaces::user_and_net", |lab| own_loopback(lab, &["userns", "netns", "netns-up"])),
    ])
}

/// Inside a network namespace of its own there is only the loopback that it brought up.
fn own_loopback(lab: &Lab, wrappers: &[&str]) -> Result<()> {
    let world = lab.shared()?;
    let words = [wrappers, &["self-connect"]].concat();
    world.unmarked(&words)?.expect(&["ok"]).context("without a mark")?;
    let ran = world.task().run(&words)?;
    ran.expect_refused()?;
    world.decision(ran.task()?, "connect", "deny", "policy")?.expect("/resource/address", "127.0.0.1")?;
    world.task().connect("net/loopback").run(&words)?.expect(&["ok"]).context("with a grant")
}
