//! What each guard costs in instructions: a guest with one processor, whose clock counts them.
//!
//! The guest runs this same program with `--in-guest`, which measures without the daemon and with it and writes one line
//! of JSON for the host to find.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::daemon::{Daemon, Programs};
use super::load::Load;
use super::site::Site;
use super::work::{Effort, Operation, Server, measure};
use crate::command::{command, progress, run};
use crate::lab::guest::Guest;
use crate::lab::kernel::Kernel;
use crate::lab::machine::{Machine, Verdict};
use crate::{repo, vm};

const OPERATIONS: [Operation; 7] = [
    Operation::OpenOrdinary,
    Operation::OpenSecret,
    Operation::ReadOrdinary,
    Operation::ReadSecret,
    Operation::Tcp,
    Operation::Udp,
    Operation::Sendto,
];
/// A batch is shorter than the time between two ticks of the guest's clock, so that some batches see none.
const EFFORT: Effort = Effort { count: 200, batches: 16 };
const LIMIT: Duration = Duration::from_secs(600);
/// Begins the line with the results.
const LINE: &str = "writ-bench: ";

/// Instructions of one operation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Instructions {
    pub(super) operation: String,
    /// Without the daemon.
    pub(super) off: f64,
    /// With it, in a process that belongs to no task.
    pub(super) unmarked: f64,
    /// With it, in a process of a task, the verdict known.
    pub(super) marked: f64,
}

/// What was found on one kernel.
#[derive(Debug, Serialize)]
pub(super) struct Counted {
    pub(super) kernel: String,
    pub(super) tier: String,
    pub(super) operations: Vec<Instructions>,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    tier: String,
    operations: Vec<Instructions>,
}

/// Boots the kernel, measures and switches off.
pub(super) fn count(kernel: Kernel) -> Result<Counted> {
    progress(format!("counting instructions on kernel {}", kernel.name));
    let programs = stripped()?;
    let machine = Machine {
        cpus: 1,
        limit: LIMIT,
        qemu: ["-icount", "shift=0,sleep=off"].map(ToOwned::to_owned).to_vec(),
        ..Machine::new(kernel)
    };
    let own = programs.join("xtask").to_string_lossy().into_owned();
    let guest = Guest {
        command: vec![own, "bench".to_owned(), "--in-guest".to_owned(), programs.to_string_lossy().into_owned()],
        files: vec![programs],
        ..Guest::default()
    };
    let ending = machine.run(&guest)?;
    vm::report(&machine, &ending);
    if ending.verdict != Verdict::Status(0) {
        bail!("kernel {}: {}", machine.kernel.name, ending.verdict);
    }
    let Answer { tier, operations } = answer(&ending.output)?;
    Ok(Counted { kernel: machine.kernel.name, tier, operations })
}

/// The guest's side.
pub(super) fn measure_here(directory: &Path) -> Result<()> {
    let (programs, site) = (Programs::at(directory), Site::new(0)?);
    let mut server = Server::open(programs.unmarked()?)?;
    let mut all = |load: &mut Load| -> Result<Vec<f64>> {
        OPERATIONS.into_iter().map(|operation| measure(load, operation, &site, &mut server, EFFORT)).collect()
    };
    let mut load = programs.unmarked()?;
    let off = all(&mut load)?;
    let daemon = Daemon::start(&programs, &site)?;
    let unmarked = all(&mut load)?;
    let marked = all(&mut daemon.marked()?)?;
    let rows = OPERATIONS.into_iter().zip(off).zip(unmarked).zip(marked);
    let operations = rows.map(|(((operation, off), unmarked), marked)| Instructions {
        operation: operation.name().to_owned(),
        off,
        unmarked,
        marked,
    });
    let answer = Answer { tier: daemon.status.tier.clone(), operations: operations.collect() };
    println!("{LINE}{}", serde_json::to_string(&answer)?);
    Ok(())
}

fn answer(output: &str) -> Result<Answer> {
    let line = output.lines().find_map(|line| line.trim().strip_prefix(LINE));
    Ok(serde_json::from_str(line.context("the guest has written no results")?)?)
}

/// Copies without debug information, which would only fill the guest's memory; this program among them.
fn stripped() -> Result<PathBuf> {
    let directory = repo::lab().join("bench");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make `{}`", directory.display()))?;
    let built = Programs::built();
    let mut programs: Vec<PathBuf> = ["writd", "writ", "writ-load"].map(|name| built.path(name)).to_vec();
    programs.push(std::env::current_exe().context("cannot find this program")?);
    for program in programs {
        let to = directory.join(program.file_name().unwrap_or_default());
        run(command("strip", ["--strip-debug", "-o"]).arg(to).arg(program))?;
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_results_is_found() {
        let output = "talk\r\nwrit-bench: {\"tier\":\"full\",\"operations\":[{\"operation\":\"read\",\"off\":100.5,\
                      \"unmarked\":101.0,\"marked\":120.0}]}\r\nmore\n";
        let answer = answer(output).unwrap();
        assert_eq!(answer.tier, "full");
        assert_eq!(answer.operations.first().map(|row| row.marked), Some(120.0));
        assert!(super::answer("talk").is_err());
        assert!(super::answer("writ-bench: {").is_err());
    }
}
