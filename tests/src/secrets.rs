//! Secret reads, by every way to a file's content. The same tests on both tiers.

use anyhow::{Context, Result, ensure};

use crate::harness::machine::Tier;
use crate::harness::wait::until;
use crate::harness::world::{Lab, World};
use crate::{Test, on_every_tier};

const FILE: &str = "secret/test/file";
const GLOB: &str = "secret/test/glob";
const DIRECTORY: &str = "secret/test/directory";

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("secrets::open", |lab| on_file(lab, |file| vec!["read", file])),
        ("secrets::open_read_write", |lab| on_file(lab, |file| vec!["read-write", file])),
        ("secrets::openat2", |lab| on_file(lab, |file| vec!["openat2", file])),
        ("secrets::mmap", |lab| on_file(lab, |file| vec!["mmap", file])),
        ("secrets::o_path_reopened", |lab| on_file(lab, |file| vec!["reopen", file])),
        ("secrets::proc_self_root", |lab| on_file(lab, |file| vec!["self-root", file])),
        ("secrets::open_in_a_descendant", |lab| on_file(lab, |file| vec!["daemonize", "read", file])),
        ("secrets::open_in_a_thread", |lab| on_file(lab, |file| vec!["thread", "read", file])),
        ("secrets::open_in_namespaces", |lab| on_file(lab, |file| vec!["userns", "mountns", "read", file])),
        ("secrets::symlink", |lab| named(lab, FILE, "symlink")),
        ("secrets::hardlink_made_before", |lab| named(lab, FILE, "hardlink")),
        ("secrets::glob", |lab| named(lab, GLOB, "keys/one.pem")),
        ("secrets::directory", |lab| named(lab, DIRECTORY, "vault/inside")),
        ("secrets::directory_below", |lab| named(lab, DIRECTORY, "vault/deep/er")),
        ("secrets::dot_dot", |lab| named(lab, FILE, "keys/../file.key")),
        ("secrets::relative", relative),
        ("secrets::hardlink", hardlink),
        ("secrets::rename_and_back", rename_and_back),
        ("secrets::unlinked", unlinked),
        ("secrets::bind_mount", bind_mount),
        ("secrets::exec", exec),
        ("secrets::new_file_in_a_directory", new_file),
        ("secrets::new_file_of_a_glob", new_glob_file),
        ("secrets::replaced_atomically", replaced),
        ("secrets::other_files_are_free", others_are_free),
        ("secrets::record_names_everything", record_names_everything),
        ("secrets::audit_mode_lets_through", audit),
    ])
}

fn on_file(lab: &Lab, words: impl Fn(&str) -> Vec<&str>) -> Result<()> {
    let world = lab.shared()?;
    let file = world.home("file.key");
    refused_and_allowed(&world, FILE, &words(&file))
}

fn named(lab: &Lab, label: &str, name: &str) -> Result<()> {
    let world = lab.shared()?;
    refused_and_allowed(&world, label, &["read", &world.home(name)])
}

/// Unmarked it reads; marked it does not; with a grant it does again. Each with its record.
fn refused_and_allowed(world: &World, label: &str, words: &[&str]) -> Result<()> {
    world.unmarked(words)?.expect(&["ok"]).context("without a mark")?;
    refused(world, label, words)?;
    let allowed = world.task().read(label).run(words)?;
    allowed.expect(&["ok"]).context("with a grant")?;
    world.decision(allowed.task()?, "read", "allow", "policy")?.expect_policy("test/read")
}

fn refused(world: &World, label: &str, words: &[&str]) -> Result<()> {
    let ran = world.task().run(words)?;
    ran.expect_refused().context("without a grant")?;
    let record = world.decision(ran.task()?, "read", "deny", "policy")?;
    let labels: Vec<_> = record.array("/resource/labels").iter().filter_map(|label| label.as_str()).collect();
    ensure!(labels.contains(&label), "labels {labels:?} lack {label}");
    record.expect_policy("baseline/read-beyond-grant")
}

fn relative(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    refused_and_allowed(&world, FILE, &["chdir", &world.home(""), "read", "file.key"])?;
    refused_and_allowed(&world, DIRECTORY, &["chdir", &world.home("vault"), "read", "inside"])
}

fn hardlink(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["link-read", &world.home("file.key"), &world.home("elsewhere/link")];
    let ran = world.task().run(&words)?;
    // Who may not link may not read by it either.
    let _ = std::fs::remove_file(world.home("elsewhere/link"));
    ran.expect_refused()
}

fn rename_and_back(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["rename-read", &world.home("file.key"), &world.home("elsewhere/renamed")];
    world.unmarked(&words)?.expect(&["ok", "ok"])?;
    protected_again(&world, FILE, "file.key")?;
    let ran = world.task().run(&words)?;
    // On the full tier it cannot even be renamed.
    let times = if world.machine.tier == Tier::Full { 1 } else { 2 };
    ran.expect(&vec!["errno EPERM"; times])?;
    protected_again(&world, FILE, "file.key")
}

/// Within a bounded time a file is a secret, and stays one.
fn protected_again(world: &World, label: &str, name: &str) -> Result<()> {
    let mut session = world.task().session()?;
    let file = world.home(name);
    until(&format!("the protection of `{name}`"), 10, || {
        Ok((session.ask(&["read", &file])? == ["errno EPERM"]).then_some(()))
    })?;
    refused_and_allowed(world, label, &["read", &file])
}

/// Neither the daemon's tidying up nor time opens what an `O_PATH` descriptor still leads to.
fn unlinked(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let name = "keys/unlinked.pem";
    std::fs::write(world.home(name), "secret")?;
    world.unmarked(&["unlink-reopen", &world.home(name)])?.expect(&["ok"])?;
    std::fs::write(world.home(name), "secret")?;
    protected_again(&world, GLOB, name)?;
    world.task().run(&["unlink-reopen", &world.home(name)])?.expect_refused()
}

fn bind_mount(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let (secret, other) = (world.home("file.key"), world.home("elsewhere/empty"));
    refused_and_allowed(&world, FILE, &["bind", &secret, &other, "read", &other])?;
    let (vault, elsewhere) = (world.home("vault"), world.home("elsewhere"));
    let inside = world.home("elsewhere/inside");
    refused_and_allowed(&world, DIRECTORY, &["bind", &vault, &elsewhere, "read", &inside])
}

fn exec(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let file = world.home("file.key");
    crate::harness::daemon::set_mode(&world.home_path("file.key"), 0o755)?;
    refused_and_allowed(&world, FILE, &["exec-file", &file])
}

fn new_file(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    std::fs::write(world.home_path("vault/new"), "secret")?;
    refused_and_allowed(&world, DIRECTORY, &["read", &world.home("vault/new")])?;
    std::fs::create_dir_all(world.home_path("vault/fresh/below"))?;
    std::fs::write(world.home_path("vault/fresh/below/new"), "secret")?;
    protected_again(&world, DIRECTORY, "vault/fresh/below/new")
}

fn new_glob_file(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    std::fs::write(world.home_path("keys/two.pem"), "secret")?;
    protected_again(&world, GLOB, "keys/two.pem")
}

/// As an editor or a tool that renews keys does it.
fn replaced(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    for name in ["file.key", "keys/one.pem"] {
        let next = world.home_path("elsewhere/next");
        std::fs::write(&next, "another secret")?;
        std::fs::rename(&next, world.home_path(name))?;
        let label = if name == "file.key" { FILE } else { GLOB };
        protected_again(&world, label, name)?;
    }
    // The other tests find what they began with.
    std::fs::remove_file(world.home_path("hardlink"))?;
    std::fs::hard_link(world.home_path("file.key"), world.home_path("hardlink"))?;
    Ok(())
}

fn others_are_free(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let before = world.daemon.counter("denied")?;
    for name in ["plain.txt", "keys/one.pub"] {
        world.task().run(&["read", &world.home(name)])?.expect(&["ok"])?;
        world.task().run(&["read-write", &world.home(name)])?.expect(&["ok"])?;
    }
    world.task().run(&["create", &world.home("elsewhere/made")])?.expect(&["ok"])?;
    ensure!(world.daemon.counter("denied")? == before, "something was refused");
    Ok(())
}

fn record_names_everything(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let file = world.home("file.key");
    let ran = world.task().run(&["fork", "fork", "read", &file])?;
    ran.expect_refused()?;
    let record = world.decision(ran.task()?, "read", "deny", "policy")?;
    for (pointer, expected) in [
        ("/agent", "coder"),
        ("/intent", "fix-bug"),
        ("/process/comm", "writ-probe"),
        ("/resource/type", "secret"),
        ("/resource/path", file.as_str()),
        ("/policies/0/id", "baseline/read-beyond-grant"),
        ("/policies/0/reason", "the secret is not in the task's grant"),
        ("/tier", world.machine.tier.as_str()),
    ] {
        record.expect(pointer, expected)?;
    }
    ensure!(record.number("/resource/inode") != 0, "no inode in {}", record.0);
    ensure!(record.array("/process/lineage").len() >= 2, "two forks are not in the lineage of {}", record.0);
    Ok(())
}

fn audit(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = world.task().audit().run(&["read", &world.home("file.key")])?;
    ran.expect(&["ok"])?;
    world.decision(ran.task()?, "read", "would_deny", "policy")?.expect_policy("baseline/read-beyond-grant")
}
