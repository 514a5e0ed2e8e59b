//! `writd`: the daemon.

use std::ffi::OsString;
use std::process::ExitCode;

use agent::config::Flags;
use agent::daemon;
use clap::Parser;
use tracing_subscriber::EnvFilter;

#[cfg(not(any(writ_object, clippy, test)))]
compile_error!("the eBPF object that the daemon embeds has not been built: run `cargo xtask build`");

/// Decides what each AI agent's task may reach, and enforces it in the kernel.
#[derive(Parser)]
#[command(name = "writd", version, after_help = daemon::HELP, max_term_width = 120)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Be the canary that proves each path (internal)
    #[arg(long, hide = true, num_args = 1.., exclusive = true)]
    canary: Option<Vec<String>>,
    /// Be the canary's child (internal)
    #[arg(long, hide = true, exclusive = true)]
    canary_child: Option<OsString>,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// End the enforcement that a daemon left behind, and with it the processes of enforced tasks
    Detach(daemon::DetachFlags),
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(words) = args.canary {
        return daemon::canary_main(&words).into();
    }
    if let Some(address) = args.canary_child {
        return daemon::canary_child(&address).into();
    }
    let filter = EnvFilter::try_from_env("WRIT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let done = match args.verb {
        Some(Verb::Detach(flags)) => daemon::detach(&flags).map(|detached| println!("{detached}")),
        None => daemon::run(&args.flags),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("writd: {}", report(&error));
            error.code().into()
        }
    }
}

/// The error and its causes on one line.
fn report(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
