//! `cargo xtask vm`: one command in a guest, and one line that says how it ended.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::command::progress;
use crate::lab::guest::Guest;
use crate::lab::kernel;
use crate::lab::machine::{Ending, LSM, Machine, Verdict};
use crate::setup;

/// Run a command as root in a virtual machine with a Debian kernel.
///
/// The exit status is the command's; 124 if the guest did not end in time, 125 if it died or its kernel complained.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A series such as 6.1 or 6.12, or the name of a package.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// The kernel's list of security modules.
    #[arg(long, default_value = LSM)]
    lsm: String,
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory in MiB.
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Seconds until the guest is ended.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// More words for the kernel's command line.
    #[arg(long)]
    append: Vec<String>,
    /// One more argument for QEMU, as in `--qemu=-icount --qemu=shift=0,sleep=off`.
    #[arg(long, allow_hyphen_values = true, value_name = "ARG")]
    qemu: Vec<String>,
    /// Copy this file or directory into the guest as well, to the same path.
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Load this kernel module first.
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Set a variable for the command.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// The command, copied into the guest with its libraries if it is a path; else one of busybox's.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Boots, runs and reports.
pub(crate) fn run(options: Options) -> Result<ExitCode> {
    setup::lab_programs()?;
    let machine = Machine {
        lsm: options.lsm,
        cpus: options.cpus,
        memory: options.memory,
        limit: Duration::from_secs(options.timeout),
        append: options.append,
        qemu: options.qemu,
        ..Machine::new(kernel::find_or_fetch(&options.kernel)?)
    };
    let guest = Guest {
        command: options.command,
        environment: options.environment,
        files: options.files,
        modules: options.modules,
    };
    let ending = machine.run(&guest)?;
    report(&machine, &ending);
    Ok(ExitCode::from(ending.verdict.exit_code()))
}

/// Shows the end of the log where the kernel is to blame, and one line in any case.
pub(crate) fn report(machine: &Machine, ending: &Ending) {
    if !matches!(ending.verdict, Verdict::Status(_)) {
        eprintln!("{}\n(all of it: {})", ending.log, ending.log_file.display());
    }
    let seconds = ending.duration.as_secs_f64();
    progress(format!("vm {}: {} ({seconds:.1} s)", machine.kernel.name, ending.verdict));
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}
