//! `cargo xtask bench`: what Writ costs, beside the same without it, and which of its targets that meets.

mod capacity;
mod daemon;
mod guest;
mod host;
mod load;
mod revoke;
mod site;
mod stats;
mod table;
mod targets;
mod work;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use self::daemon::Programs;
use crate::command::{command, run as run_command};
use crate::lab::kernel;
use crate::{build, repo, setup};

/// Measure what the daemon costs, on this host (as root) and in a virtual machine that counts instructions.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Measure this part alone.
    #[arg(value_enum)]
    part: Option<Part>,
    /// Write the numbers to this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often the daemon is switched off and on.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Leave out the virtual machine.
    #[arg(long)]
    no_vm: bool,
    /// The kernels to count instructions on.
    #[arg(long, default_value = "6.12", value_delimiter = ',')]
    kernels: Vec<String>,
    /// Be the part that runs in the virtual machine, with the programs in this directory (internal).
    #[arg(long, hide = true)]
    in_guest: Option<PathBuf>,
}

/// A part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// From a revocation to the last byte that a peer receives.
    Revoke,
    /// What each guard costs in instructions, in a virtual machine.
    Instructions,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    machine: String,
    rounds: u32,
    host: host::Host,
    capacity: capacity::Capacity,
    guests: Vec<guest::Counted>,
    skipped: Vec<String>,
    targets: Vec<targets::Target>,
}

/// Builds, measures and reports. A missed target is reported and no failure.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(programs) = &options.in_guest {
        return guest::measure_here(programs);
    }
    ensure!(setup::is_root()?, "the daemon needs root: run `cargo xtask bench` as root");
    build::run(&build::Options { release: true, ..build::Options::default() })?;
    run_command(
        command("cargo", ["build", "--quiet", "--release", "--package", "tests", "--bin", "writ-load"])
            .current_dir(repo::root()),
    )?;
    if options.part == Some(Part::Revoke) {
        let revoked = revoke::run(&Programs::built())?;
        print!("{}", table::revoked(&revoked) + &table::targets(&[targets::revoked(&revoked)]));
        return write_json(options, &revoked);
    }
    if options.part == Some(Part::Instructions) {
        let guests = count(&options.kernels)?;
        print!("{}", guests.iter().map(table::guest).collect::<String>());
        return write_json(options, &guests);
    }
    let report = measure(options)?;
    print!("{}", table::render(&report));
    write_json(options, &report)
}

fn count(kernels: &[String]) -> Result<Vec<guest::Counted>> {
    setup::lab_programs()?;
    kernels.iter().map(|series| guest::count(kernel::find_or_fetch(series)?)).collect()
}

fn write_json(options: &Options, report: &impl Serialize) -> Result<()> {
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(report)?;
        fs::write(file, text + "\n").with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    Ok(())
}

fn measure(options: &Options) -> Result<Report> {
    let programs = Programs::built();
    let host = host::run(&programs, options.rounds)?;
    let capacity = capacity::run(&programs)?;
    let (mut guests, mut skipped) = (Vec::new(), Vec::new());
    if options.no_vm {
        skipped.push("instruction counts in a virtual machine (--no-vm)".to_owned());
    } else {
        guests = count(&options.kernels)?;
    }
    let targets = targets::of(&host, &capacity);
    Ok(Report { machine: machine(), rounds: options.rounds, host, capacity, guests, skipped, targets })
}

/// What the numbers depend on: kernel, processors, and what else ran.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("unknown");
    format!("kernel {}, {cpus} processors, load average {load} at the end", read("/proc/sys/kernel/osrelease"))
}
