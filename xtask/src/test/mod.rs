//! `cargo xtask test`: every layer of tests, from units to virtual machines, and one table of what came out.

mod layers;
mod results;
mod table;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow};

use self::layers::{Plan, Tier};
use self::results::Layer;
use crate::command::progress;
use crate::lab::kernel::{self, DEFAULT_SERIES, FURTHER_SERIES, Kernel};
use crate::{build, repo, setup};

/// Run all tests: units, this host (as root), and virtual machines.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run the units and the privileged suite on this host only.
    #[arg(long, conflicts_with = "vm_only")]
    host_only: bool,
    /// Run the privileged suite in virtual machines only.
    #[arg(long)]
    vm_only: bool,
    /// Which kernels to boot: `default` (6.1, 6.12), `all` (newer ones too, where they can be had), or a list.
    #[arg(long, default_value = "default")]
    kernels: String,
    /// What this host is declared to offer; what it then lacks is a failure.
    #[arg(long, value_enum, default_value_t = Tier::Reduced)]
    host_tier: Tier,
    /// Run only tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,
}

/// Sets up, builds, runs every layer and prints the table; fails if anything did.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    std::env::set_current_dir(repo::root()).context("cannot enter the repository")?;
    let guests = if options.host_only { Vec::new() } else { guests(&options.kernels)? };
    build::run(&build::Options { ebpf_only: true, ..build::Options::default() })?;
    let plan = Plan::new(options.filter.clone(), (!options.vm_only).then_some(options.host_tier))?;
    let mut layers = if options.vm_only { Vec::new() } else { on_host(&plan, options.host_tier)? };
    if !guests.is_empty() {
        plan.strip()?;
    }
    // Each guest is emulated on one processor.
    let workers = thread::available_parallelism().map_or(1, usize::from);
    layers.extend(at_once(workers, guests.into_iter().map(|guest| job(&plan, guest)).collect())?);
    print!("{}", table::render(&layers));
    let good = layers.iter().all(Layer::is_good);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Units and the privileged suite on this host, with nothing beside them: what they time is not another layer's load.
fn on_host(plan: &Plan, tier: Tier) -> Result<Vec<Layer>> {
    Ok(vec![plan.units()?, plan.on_host(tier)?])
}

type Job<'a> = Box<dyn FnOnce() -> Result<Layer> + Send + 'a>;

fn job(plan: &Plan, guest: GuestPlan) -> Job<'_> {
    Box::new(move || guest.run(plan))
}

/// The layers come back in the order of the jobs.
fn at_once(workers: usize, jobs: Vec<Job<'_>>) -> Result<Vec<Layer>> {
    let waiting = Mutex::new(jobs.into_iter().enumerate());
    let done = Mutex::new(BTreeMap::new());
    let work = || -> Result<()> {
        // Taken in a statement of its own, so that the lock is not held while the job runs.
        while let Some((number, job)) = { waiting.lock().unwrap_or_else(PoisonError::into_inner).next() } {
            let layer = job()?;
            done.lock().unwrap_or_else(PoisonError::into_inner).insert(number, layer);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a test thread panicked"))?)
    })?;
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect())
}

/// A virtual machine to test in.
struct GuestPlan {
    name: String,
    tier: Tier,
    /// The kernel, or why it cannot be had although it may be missing.
    kernel: Result<Kernel, String>,
}

impl GuestPlan {
    fn run(self, plan: &Plan) -> Result<Layer> {
        match self.kernel {
            Ok(kernel) => plan.guest(kernel, self.tier),
            Err(reason) => Ok(Layer::skipped(&self.name, reason)),
        }
    }
}

/// The machines for what `--kernels` says, with their kernels at hand.
fn guests(kernels: &str) -> Result<Vec<GuestPlan>> {
    setup::lab_programs()?;
    let mut plans = Vec::new();
    for series in required(kernels) {
        let kernel = kernel::find_or_fetch(series)?;
        plans.push(GuestPlan { name: series.to_owned(), tier: Tier::Full, kernel: Ok(kernel.clone()) });
        if series == WITHOUT_BPF {
            plans.push(GuestPlan { name: series.to_owned(), tier: Tier::Reduced, kernel: Ok(kernel) });
        }
    }
    for series in if kernels == "all" { FURTHER_SERIES.as_slice() } else { &[] } {
        let kernel = kernel::find_or_fetch(series).map_err(|error| format!("{error:#}"));
        if let Err(reason) = &kernel {
            progress(format!("going on without kernel {series}: {reason}"));
        }
        plans.push(GuestPlan { name: (*series).to_owned(), tier: Tier::Full, kernel });
    }
    Ok(plans)
}

/// The kernel that is booted a second time, with a list of security modules that lacks `bpf`.
const WITHOUT_BPF: &str = "6.12";

fn required(kernels: &str) -> Vec<&str> {
    match kernels {
        "default" | "all" => DEFAULT_SERIES.to_vec(),
        list => list.split(',').map(str::trim).filter(|series| !series.is_empty()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_keep_the_order_of_their_jobs() {
        let layer = |name: &str| Layer::skipped(name, String::new());
        let names = ["slow", "b", "c", "d", "e", "f"];
        let (done, wait) = std::sync::mpsc::channel();
        let mut jobs: Vec<Job<'_>> = Vec::new();
        for name in names {
            let done = done.clone();
            jobs.push(Box::new(move || done.send(()).map(|()| layer(name)).map_err(Into::into)));
        }
        // The first ends after all others.
        jobs[0] = Box::new(move || {
            wait.iter().take(names.len() - 1).count();
            Ok(layer("slow"))
        });
        let layers = at_once(2, jobs).unwrap();
        assert_eq!(layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), names);
    }

    #[test]
    fn a_job_that_cannot_run_fails_the_whole() {
        let failed: Job<'_> = Box::new(|| Err(anyhow!("no such thing")));
        assert!(at_once(1, vec![failed]).is_err());
    }

    #[test]
    fn kernels_are_a_word_or_a_list() {
        assert_eq!(required("default"), ["6.1", "6.12"]);
        assert_eq!(required("all"), ["6.1", "6.12"]);
        assert_eq!(required("6.12, 6.18,"), ["6.12", "6.18"]);
    }
}
