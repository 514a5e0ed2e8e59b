//! Bad input: one clear error each, and nothing is left half done.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::harness::daemon::{Place, set_mode};
use crate::harness::machine::Tier;
use crate::harness::options::{AGENTS, Options, POLICIES};
use crate::harness::run::{Ran, run};
use crate::harness::world::Lab;
use crate::{Test, on_every_tier};

/// What the machine was declared to offer, it offers.
pub(crate) fn tier() -> Vec<Test> {
    on_every_tier([("input::the_declared_tier_is_there", declared_tier)])
}

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("input::writd_toml", |lab| {
            bad_file(lab, "writd.toml", "hold_buget = \"5ms\"\n", &["writd.toml:1:1", "hold_budget"])
        }),
        ("input::agents_toml", |lab| {
            bad_file(lab, "agents.toml", "[[agent]]\nid = \"a b\"\n", &["agents.toml:2:", "`a b`"])
        }),
        ("input::secrets_toml", |lab| {
            bad_file(
                lab,
                "secrets.toml",
                "[[secret]]\nname = \"x\"\nlabels = [\"No\"]\npaths = [\"/x\"]\n",
                &["secrets.toml:3:", "`No`"],
            )
        }),
        ("input::endpoints_toml", |lab| {
            let text = "[[endpoint]]\nname = \"x\"\nlabels = [\"x\"]\ncidrs = [\"10.0.0.0/99\"]\n";
            bad_file(lab, "endpoints.toml", text, &["endpoints.toml:4:", "10.0.0.0/99"])
        }),
        ("input::toml_that_is_none", |lab| bad_file(lab, "agents.toml", "[[agent\n", &["agents.toml:1:"])),
        ("input::policy_that_does_not_parse", |lab| {
            bad_file(lab, "policies/bad.cedar", "\npermit (principal, action, resource) when {\n", &["bad.cedar"])
        }),
        ("input::policy_that_does_not_validate", bad_policy),
        ("input::policies_directory_missing", |lab| {
            let options = Options::default().setting("policies_dir = \"/nowhere/policies\"");
            refuses(lab, &options, &["/nowhere/policies"])
        }),
        ("input::config_directory_missing", config_missing),
        ("input::socket_path_is_a_file", socket_is_a_file),
        ("input::second_daemon", second_daemon),
        ("input::not_root", not_root),
        ("input::full_is_required_on_less", require_full),
        ("input::check_changes_nothing", check),
        ("input::run_arguments", run_arguments),
        ("input::no_daemon", no_daemon),
        ("input::not_from_inside_a_task", from_inside),
    ])
}

fn declared_tier(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let status = world.daemon.status()?;
    let tier = status.pointer("/tier").and_then(Value::as_str).unwrap_or_default();
    ensure!(
        tier == lab.machine.tier.as_str(),
        "the machine is declared {:?} and gives {tier}: {status}",
        lab.machine.tier
    );
    Ok(())
}

/// A place with sound files.
fn place() -> Result<Place> {
    let place = Place::new()?;
    place.write("etc/agents.toml", AGENTS)?;
    place.write("etc/policies/test.cedar", POLICIES)?;
    Ok(place)
}

/// The daemon's end, which must come by itself and with an error.
fn expect_refusal(lab: &Lab, command: Command, place: &Place, words: &[&str]) -> Result<Ran> {
    let ran = run(command)?;
    let code = ran.status.code();
    ensure!(code.is_some_and(|code| code != 0 && code != 101), "it ended with {}: {}", ran.status, ran.stderr);
    for word in words {
        ensure!(ran.stderr.contains(word), "`{word}` is not in the error: {}", ran.stderr);
    }
    ensure!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    ensure!(!place.socket().exists() || place.socket().is_file(), "it left a socket");
    lab.machine.check_no_daemon()?;
    Ok(ran)
}

fn refuses(lab: &Lab, options: &Options, words: &[&str]) -> Result<()> {
    lab.close();
    let place = place()?;
    let command = place.command(&lab.machine, options)?;
    expect_refusal(lab, command, &place, words).map(drop)
}

fn bad_file(lab: &Lab, name: &str, text: &str, words: &[&str]) -> Result<()> {
    refuses(lab, &Options::default().file(name, text), words)
}

/// Cedar's own words, with file, line and a mark under the place.
fn bad_policy(lab: &Lab) -> Result<()> {
    let text =
        "@id(\"x\")\npermit (principal, action == Action::\"connect\", resource)\nwhen { resource.prt == 80 };\n";
    lab.close();
    let place = place()?;
    let command = place.command(&lab.machine, &Options::default().file("policies/bad.cedar", text))?;
    let ran = expect_refusal(lab, command, &place, &["bad.cedar", "prt"])?;
    let marked = ["^", "─", "┬", "╰"].iter().any(|mark| ran.stderr.contains(mark));
    ensure!(marked, "no mark under the place: {}", ran.stderr);
    ensure!(ran.stderr.contains("3"), "no line: {}", ran.stderr);
    Ok(())
}

fn config_missing(lab: &Lab) -> Result<()> {
    lab.close();
    let place = Place::new()?;
    let mut command = Command::new(lab.machine.program("writd"));
    command.args(["--config-dir", "/nowhere/writ", "--runtime-dir"]).arg(place.path("run"));
    command.arg("--records").arg(place.path("records.jsonl"));
    expect_refusal(lab, command, &place, &["/nowhere/writ"]).map(drop)
}

fn socket_is_a_file(lab: &Lab) -> Result<()> {
    lab.close();
    let place = place()?;
    std::fs::write(place.socket(), "precious")?;
    let command = place.command(&lab.machine, &Options::default())?;
    expect_refusal(lab, command, &place, &["writd.sock"])?;
    ensure!(std::fs::read_to_string(place.socket())? == "precious", "the file was touched");
    Ok(())
}

fn second_daemon(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default())?;
    let second = run(world.daemon.place.command(&lab.machine, &Options::default())?)?;
    ensure!(second.status.code().is_some_and(|code| code != 0), "{second:?}");
    ensure!(second.stderr.contains("another writd is running"), "{}", second.stderr);
    // The first goes on.
    world.task().run(&["tcp", &world.open.tcp()?])?.expect_refused()?;
    world.daemon.stop().map(drop)
}

fn not_root(lab: &Lab) -> Result<()> {
    lab.close();
    let place = place()?;
    // Where nobody may look.
    let copy = place.path("writd");
    std::fs::copy(lab.machine.program("writd"), &copy)?;
    set_mode(&copy, 0o755)?;
    let original = place.command(&lab.machine, &Options::default())?;
    let mut command = Command::new(&copy);
    command.args(original.get_args()).uid(65534).gid(65534);
    expect_refusal(lab, command, &place, &["root"])?;
    ensure!(!place.path("records.jsonl").exists(), "it began to write records");
    Ok(())
}

fn require_full(lab: &Lab) -> Result<()> {
    let options = Options::default().argument("--require").argument("full");
    if lab.machine.tier == Tier::Reduced {
        return refuses(lab, &options, &["full"]);
    }
    let world = lab.own(options)?;
    world.daemon.stop().map(drop)
}

fn check(lab: &Lab) -> Result<()> {
    lab.close();
    let place = place()?;
    let good = run(place.command(&lab.machine, &Options::default().argument("--check"))?)?;
    ensure!(good.status.success(), "{good:?}");
    ensure!(!place.socket().exists(), "a check opened the socket");
    let bad = Options::default().argument("--check").file("secrets.toml", "[[secret]]\nname = 1\n");
    expect_refusal(lab, place.command(&lab.machine, &bad)?, &place, &["secrets.toml:2:"]).map(drop)
}

fn run_arguments(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let denied = |options: &[&str], code: i32, words: &[&str]| -> Result<()> {
        let line = [&["run"], options, &["--", "/bin/true"]].concat();
        let ran = run(world.daemon.writ(&line))?;
        ensure!(ran.status.code() == Some(code), "{options:?} gave {:?}: {}", ran.status, ran.stderr);
        for word in words {
            ensure!(ran.stderr.contains(word), "`{word}` is not in the error: {}", ran.stderr);
        }
        Ok(())
    };
    let who = ["--agent", "coder", "--intent", "fix-bug"];
    let with = |more: &[&'static str]| [&who[..], more].concat();
    denied(&["--agent", "codr", "--intent", "fix-bug"], 125, &["`codr`", "did you mean `coder`", "agents.toml"])?;
    denied(&["--agent", "coder", "--intent", "fix-bugs"], 125, &["`fix-bugs`", "fix-bug"])?;
    denied(&["--agent", "other", "--intent", "fix-bug"], 125, &["`other`", "review"])?;
    denied(&with(&["--grant-read", "secret/test/fil"]), 125, &["`secret/test/fil`", "secret/test/file"])?;
    denied(&with(&["--grant-connect", "No Label"]), 125, &["`No Label`"])?;
    denied(&with(&["--on-behalf-of", "bob"]), 125, &["`bob`"])?;
    denied(&with(&["--ttl", "-5m"]), 2, &["-5m"])?;
    denied(&with(&["--ttl", "soon"]), 2, &["`soon`"])?;
    denied(&with(&["--ttl", "9999h"]), 125, &["`9999h`", "24h"])?;
    denied(&with(&["--mode", "loose"]), 2, &["loose", "audit"])?;
    let active = world.daemon.status()?;
    ensure!(active.pointer("/tasks/active") == Some(&Value::from(0)), "a refused task is open: {active}");
    Ok(())
}

fn no_daemon(lab: &Lab) -> Result<()> {
    let place = Place::new()?;
    let mut command = Command::new(lab.machine.program("writ"));
    command.arg("--socket").arg(place.socket()).arg("status");
    let ran = run(command)?;
    ensure!(ran.status.code() == Some(3), "{ran:?}");
    ensure!(ran.stderr.contains("writd.sock"), "{}", ran.stderr);
    ensure!(!Path::new(&place.socket()).exists(), "it made the socket");
    Ok(())
}

/// Whoever works for a task, root too, gets nothing from the API: no second task, no reload, nobody's records.
fn from_inside(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let writ = lab.machine.program("writ");
    let socket = world.daemon.place.socket();
    let inner = [writ.to_string_lossy(), "--socket".into(), socket.to_string_lossy()].map(|word| word.into_owned());
    for verb in ["ps", "reload", "watch"] {
        let mut command = world.daemon.writ(&["run", "--agent", "coder", "--intent", "fix-bug", "--"]);
        command.args(&inner).arg(verb);
        let ran = run(command)?;
        ensure!(ran.status.code() == Some(1), "{verb}: {ran:?}");
        ensure!(ran.stderr.contains("works for a task"), "{verb}: {}", ran.stderr);
    }
    Ok(())
}
