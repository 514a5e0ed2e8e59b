//! Privileged tests: a real daemon, real processes, sockets and files.
//!
//! `writ-tests --tier reduced|full [--only BEGINNING,...] [libtest arguments]`. The tier is what the machine is declared to
//! offer: what it then lacks is a failure. Tests of the full tier on a machine declared reduced are skipped by name.
//! `--only` leaves the tests whose names begin so; a beginning that no test has is an error.

mod doctor;
mod egress;
mod facility;
mod flood;
mod flows;
mod foreign;
mod harness;
mod held;
mod input;
mod kinds;
mod lifecycle;
mod lineage;
mod listen;
mod names;
mod namespaces;
mod net;
mod options;
mod outlive;
mod pinned;
mod policy;
mod records;
mod reload;
mod secrets;
mod stopped;
mod sysctl;
mod tamper;
mod unix;
mod wire;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use harness::Skip;
use harness::machine::{Machine, Tier};
use harness::world::Lab;

type Body = fn(&Lab) -> Result<()>;

/// One test.
struct Test {
    name: &'static str,
    needs: Tier,
    body: Body,
}

/// Tests that every tier passes.
fn on_every_tier<const N: usize>(named: [(&'static str, Body); N]) -> Vec<Test> {
    named.map(|(name, body)| Test { name, needs: Tier::Reduced, body }).into()
}

/// Those that share a daemon come first.
fn all() -> Vec<Test> {
    let areas = [
        input::tier(),
        net::tests(),
        kinds::tests(),
        facility::tests(),
        sysctl::tests(),
        foreign::tests(),
        listen::tests(),
        options::tests(),
        wire::tests(),
        lineage::tests(),
        namespaces::tests(),
        secrets::tests(),
        held::tests(),
        tamper::tests(),
        policy::tests(),
        lifecycle::tests(),
        names::tests(),
        egress::tests(),
        flows::tests(),
        records::tests(),
        flood::tests(),
        unix::tests(),
        // Each with daemons of its own.
        doctor::tests(),
        tamper::own_tests(),
        reload::tests(),
        flows::own_tests(),
        flood::own_tests(),
        names::own_tests(),
        stopped::tests(),
        outlive::tests(),
        pinned::tests(),
        lineage::own_tests(),
        unix::own_tests(),
        input::tests(),
    ];
    areas.into_iter().flatten().collect()
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("writ-tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The tests whose names begin with one of `only`; all if it is empty.
fn chosen(only: &[String]) -> Result<Vec<Test>> {
    let mut tests = all();
    for beginning in only {
        ensure!(tests.iter().any(|test| test.name.starts_with(beginning)), "no test's name begins with `{beginning}`");
    }
    tests.retain(|test| only.is_empty() || only.iter().any(|beginning| test.name.starts_with(beginning)));
    Ok(tests)
}

/// The declared tier, what `--only` says, and everything else for libtest.
fn arguments() -> Result<(Tier, Vec<String>, Arguments)> {
    let mut tier = None;
    let mut only = Vec::new();
    let mut rest = Vec::new();
    let mut words = std::env::args();
    while let Some(word) = words.next() {
        if word == "--only" {
            let list = words.next().context("`--only` takes beginnings of names, with commas between them")?;
            only.extend(list.split(',').map(str::to_owned));
            continue;
        }
        if word != "--tier" {
            rest.push(word);
            continue;
        }
        tier = Some(match words.next().as_deref() {
            Some("reduced") => Tier::Reduced,
            Some("full") => Tier::Full,
            _ => bail!("`--tier` takes `reduced` or `full`"),
        });
    }
    let tier = tier.context("say with `--tier reduced|full` what this machine must offer")?;
    Ok((tier, only, Arguments::from_iter(rest)))
}

/// What the tests leave for the end of the run.
#[derive(Default)]
struct Notes {
    skips: Vec<String>,
    /// Paths and neighbours that were tried, by area.
    passed: BTreeMap<&'static str, usize>,
    /// How long each test took. The first of those that share a daemon pays for its start.
    took: Vec<(Duration, &'static str)>,
}

/// How many of the slowest tests are named.
const SLOWEST: usize = 10;

impl Notes {
    fn print(&mut self) {
        for skip in &self.skips {
            println!("skipped: {skip}");
        }
        let areas: Vec<String> = self.passed.iter().map(|(area, count)| format!("{area} {count}")).collect();
        println!("passed by area: {}", areas.join(", "));
        self.took.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        let named = self.took.iter().take(SLOWEST).map(|(time, name)| format!("{name} {:.1} s", time.as_secs_f64()));
        println!("slowest: {}", named.collect::<Vec<_>>().join(", "));
    }
}

fn run() -> Result<ExitCode> {
    let (tier, only, mut arguments) = arguments()?;
    // One daemon at a time.
    arguments.test_threads = Some(1);
    let lab = Arc::new(Lab::new(Machine::new(tier)?));
    let notes = Arc::<Mutex<Notes>>::default();
    let trials = chosen(&only)?.into_iter().map(|test| trial(test, &lab, &notes)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if arguments.list {
        return Ok(conclusion.exit_code());
    }
    lab.close();
    let left = harness::daemon::left_behind();
    for what in &left {
        println!("left behind: {what}");
    }
    notes.lock().unwrap_or_else(PoisonError::into_inner).print();
    let failed = conclusion.num_failed + left.len() as u64;
    println!("{} passed, {failed} failed, {} skipped", conclusion.num_passed, conclusion.num_ignored);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn trial(test: Test, lab: &Arc<Lab>, notes: &Arc<Mutex<Notes>>) -> Trial {
    let (lab, notes) = (lab.clone(), notes.clone());
    Trial::ignorable_test(test.name, move || {
        let started = Instant::now();
        let outcome = if test.needs == Tier::Full && lab.machine.tier == Tier::Reduced {
            Err(harness::skip("needs the full tier, and the machine is declared reduced"))
        } else {
            (test.body)(&lab)
        };
        let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.took.push((started.elapsed(), test.name));
        match outcome {
            Ok(()) => {
                let area = test.name.split("::").next().unwrap_or(test.name);
                *notes.passed.entry(area).or_default() += 1;
                Ok(Completion::Completed)
            }
            Err(error) => match error.downcast_ref::<Skip>() {
                Some(reason) => {
                    notes.skips.push(format!("{} ({reason})", test.name));
                    Ok(Completion::ignored_with(reason))
                }
                None => {
                    // Said at once, on the line that names the test: a run that is ended from outside prints no list of failures.
                    println!("FAILED: {error:#}");
                    lab.refusals().iter().for_each(|refusal| println!("refused before: {refusal}"));
                    Err(Failed::from(format!("{error:#}")))
                }
            },
        }
    })
}
