//! `cargo xtask demo`: the real daemon on this host, a real agent, and what came of it.
//!
//! The demo is also a test of itself: the servers count who reached them, and each scene says what must have happened.

mod agent;
mod goals;
mod host;
mod records;
mod scenes;
mod servers;
mod wait;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anstream::{print, println};
use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, bail};

use self::agent::Tools;
use self::goals::{Counts, Goal, Tally, reached};
use self::host::{Host, SECRET};
use self::records::Record;
use self::scenes::{How, SCENES, Scene};
use self::servers::Servers;
use crate::command::read;
use crate::{build, setup};

const DIM: Style = Style::new().dimmed();
const TITLE: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Records may lag so far behind what they speak of.
const LAG: Duration = Duration::from_secs(10);

/// Show an agent being allowed and refused by the real daemon on this host (as root).
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Use the binaries that are there.
    #[arg(long)]
    no_build: bool,
}

/// Builds, shows, checks what it shows, and cleans up.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if !options.no_build {
        build::run(&build::Options::default())?;
    }
    if !setup::is_root()? {
        let program = std::env::current_exe().context("this program has no path")?;
        bail!("the demo loads programs into the kernel: run `sudo {} demo --no-build`", program.display());
    }
    wait::take_signals()?;
    let servers = Servers::start()?;
    let host = Host::start(&servers)?;
    let demo = Demo { servers, host, tools: Tools::find() };
    let begun = Instant::now();
    let tier = demo.introduce()?;
    let mut failures = Vec::new();
    let mut total = Goal::ALL.map(|goal| (goal, Counts::default()));
    for (number, scene) in (1..).zip(&SCENES) {
        let (tally, wrong) = demo.show(number, scene)?;
        failures.extend(wrong.into_iter().map(|what| format!("scene {number}: {what}")));
        if scene.task.is_some() {
            total.iter_mut().zip(tally).for_each(|((_, sum), (_, counts))| *sum += counts);
        }
    }
    let directory = demo.host.home();
    drop(demo);
    if directory.exists() {
        failures.push(format!("`{}` is left behind", directory.display()));
    }
    Ok(sum_up(&total, &failures, &tier, begun.elapsed()))
}

struct Demo {
    /// Dropped first: while the servers last, an agent that got away would be seen.
    host: Host,
    servers: Servers,
    tools: Tools,
}

impl Demo {
    /// Says what is there, and returns the tier.
    fn introduce(&self) -> Result<String> {
        let status = self.host.status()?;
        let tier = status.get("tier").and_then(|tier| tier.as_str()).context("`writ status` names no tier")?.to_owned();
        let Servers { web, proxy, echo, .. } = self.servers;
        println!("\n{TITLE}Writ on this host, with the shipped policies and catalogues: tier {tier}{TITLE:#}");
        println!("  web server   127.0.0.1:{web} and [::1]:{web}   labelled net/internal/web");
        println!("  proxy        127.0.0.1:{proxy}   labelled net/internal/proxy");
        println!("  UDP server   127.0.0.1:{echo}   labelled net/internal/echo");
        println!("  agent.sh     {}; its home has .ssh/id_ed25519 .aws/credentials .env .netrc", self.tools.names());
        if !self.servers.ipv6 {
            println!("  not shown    IPv6, which this host does not have");
        }
        Ok(tier)
    }

    /// Runs one scene. Returns what was counted, and what is not as it must be.
    fn show(&self, number: usize, scene: &Scene) -> Result<(Tally, Vec<String>)> {
        let goals = self.goals(scene);
        println!("\n{TITLE}{number}. {}{TITLE:#}\n   {DIM}${DIM:#} {}", scene.title, agent::shown(scene, &goals));
        let skip = records::count(&self.host.records())?;
        let before = self.reached(&[]);
        let output = self.act(scene, &goals, skip)?;
        let task = records::first_task(&self.host.records(), skip)?;
        let mut last = (Vec::new(), before);
        // What is wrong may only be late.
        let settled = wait::until("the records to say what must be said", LAG, || {
            let records = records::of_task(&self.host.records(), skip, task.as_deref())?;
            let tally = self.tally(&records, &output, &before);
            let fits = tally.iter().all(|(goal, counts)| is_expected(scene, &goals, *goal, *counts));
            last = (records, tally);
            Ok((fits && (scene.task.is_none() || records::are_whole(&last.0))).then_some(()))
        });
        wait::check()?;
        let (records, tally) = last;
        for line in records::lines(&records, &self.host.home()) {
            println!("   {line}");
        }
        let wrong = tally.iter().filter(|(goal, counts)| !is_expected(scene, &goals, *goal, *counts)).map(wrong);
        let mut wrong: Vec<String> = wrong.collect();
        if let (Err(error), true) = (settled, wrong.is_empty()) {
            wrong.push(error.to_string());
        }
        wrong.iter().for_each(|what| println!("   {BAD}FAIL{BAD:#} {what}"));
        Ok((tally, wrong))
    }

    fn act(&self, scene: &Scene, goals: &[Goal], skip: usize) -> Result<Vec<String>> {
        let mut must_revoke = scene.how == How::UntilRevoked;
        agent::run(&self.host, &self.servers, &self.tools, scene, goals, |line| {
            println!("   {DIM}|{DIM:#} {line}");
            if std::mem::take(&mut must_revoke) { self.revoke(skip) } else { Ok(()) }
        })
    }

    fn revoke(&self, skip: usize) -> Result<()> {
        let file = self.host.records();
        let task = wait::until("the task's first record", LAG, || records::first_task(&file, skip))?;
        println!("   {DIM}${DIM:#} writ task revoke {task}");
        print!("   {}", read(&mut self.host.writ(["task", "revoke", &task]))?);
        Ok(())
    }

    /// The goals that this host can have.
    fn goals(&self, scene: &Scene) -> Vec<Goal> {
        let has = |goal: &Goal| self.servers.ipv6 || *goal != Goal::Web6;
        scene.goals.iter().copied().filter(has).collect()
    }

    fn reached(&self, output: &[String]) -> Tally {
        reached(&self.servers.hits, output, SECRET)
    }

    fn tally(&self, records: &[Record], output: &[String], before: &Tally) -> Tally {
        let mut tally = self.reached(output);
        tally.iter_mut().zip(before).for_each(|((_, now), (_, before))| now.reached -= before.reached);
        for decision in records::merged(records) {
            let goal = decision.goal(&self.servers);
            if let Some((_, counts)) = tally.iter_mut().find(|(known, _)| Some(*known) == goal) {
                counts.add_decision(decision.effect, decision.count);
            }
        }
        tally
    }
}

/// What this host does not have must not be counted either.
fn is_expected(scene: &Scene, goals: &[Goal], goal: Goal, counts: Counts) -> bool {
    if goals.contains(&goal) { scene.expects(goal, counts) } else { counts == Counts::default() }
}

fn wrong((goal, counts): &(Goal, Counts)) -> String {
    let Counts { allowed, denied, would_denied, reached } = counts;
    let name = goal.name();
    format!("{name}: allowed {allowed}, denied {denied}, would be denied {would_denied}, really reached {reached}")
}

/// The table of all scenes with a task, and the verdict.
fn sum_up(total: &Tally, failures: &[String], tier: &str, took: Duration) -> ExitCode {
    println!(
        "\n{TITLE}{:27}{:>8}{:>8}{:>14}{:>16}{TITLE:#}",
        "by tasks", "allowed", "denied", "would deny", "really reached"
    );
    for (goal, Counts { allowed, denied, would_denied, reached }) in total {
        println!("{:27}{allowed:>8}{denied:>8}{would_denied:>14}{reached:>16}", goal.name());
    }
    let seconds = took.as_secs();
    if failures.is_empty() {
        println!(
            "\n{GOOD}PASS{GOOD:#}  tier {tier}: {} scenes in {seconds} s, all as they must be; nothing is left behind",
            SCENES.len()
        );
        return ExitCode::SUCCESS;
    }
    println!("\n{BAD}FAIL{BAD:#}  tier {tier}: {} of what the demo shows is not as it must be", failures.len());
    failures.iter().for_each(|what| println!("      {what}"));
    ExitCode::FAILURE
}
