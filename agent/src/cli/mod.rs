//! `writ`: one file per verb. Data goes to standard output, talk to standard error.

mod doctor;
pub mod exit;
mod labels;
mod output;
mod reload;
pub mod render;
pub mod run;
mod status;
mod table;
mod task;
pub mod watch;
mod whois;

use std::future::Future;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tokio::runtime;

use self::exit::Failure;
use self::output::Output;
use crate::api::Client;

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/writ/writd.sock";

/// Runs AI agents under tasks whose connections and secret reads are decided by policy, and shows what was decided.
#[derive(Debug, Parser)]
#[command(name = "writ", version, after_help = exit::HELP, max_term_width = 120)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb takes.
#[derive(Debug, clap::Args)]
struct Common {
    /// The daemon's socket
    #[arg(long, global = true, display_order = 100, value_name = "PATH")]
    #[arg(env = "WRIT_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// How to print: text for people, or the daemon's answer as JSON
    #[arg(long, global = true, display_order = 100, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Open a task and become the command, which runs as the task's first process
    Run(Box<run::RunArgs>),
    /// List, show and revoke tasks
    #[command(subcommand)]
    Task(task::TaskVerb),
    /// List tasks (the same as `writ task list`)
    Ps,
    /// Show what the daemon enforces, and how it is
    Status,
    /// Measure what the daemon enforces right now; without a daemon, say what the host could give
    Doctor,
    /// List the labels that a grant may name
    Labels,
    /// Show records as they are written
    Watch(watch::Filter),
    /// Tell which agent a live connection belongs to
    Whois(whois::WhoisArgs),
    /// Make the daemon read policies, registry and catalogues again
    Reload,
}

/// Returns from `run` only if the command could not be started.
fn execute(args: Args) -> Result<(), Failure> {
    let Common { socket, output } = args.common;
    let client = Client::new(socket);
    match args.verb {
        Verb::Run(args) => run::run(*args, &client),
        Verb::Task(verb) => task::execute(verb, &client, output),
        Verb::Ps => task::execute(task::TaskVerb::List, &client, output),
        Verb::Status => output.show(&block_on(client.status())?, status::text),
        Verb::Doctor => doctor::examine(&client, output),
        Verb::Labels => output.show(&block_on(client.labels())?, labels::text),
        Verb::Watch(filter) => block_on(watch::follow(&client, &filter, output)),
        Verb::Whois(args) => output.show(&block_on(client.whois(&args.query()))?, whois::text),
        Verb::Reload => output.show(&block_on(client.reload())?, reload::text),
    }
}

/// Carries out the command line and says on standard error what went wrong. Returns the exit code.
pub fn main(args: Args) -> u8 {
    let done = execute(args);
    done.map_or_else(
        |failure| {
            output::say(&failure.to_string());
            failure.code()
        },
        |()| 0,
    )
}

/// Runs `call` on a runtime that has no thread but the calling one, and is gone when this returns.
fn block_on<T, E>(call: impl Future<Output = Result<T, E>>) -> Result<T, Failure>
where
    Failure: From<E>,
{
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    Ok(runtime.block_on(call)?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_well_formed_and_its_help_lists_the_exit_codes() {
        Args::command().debug_assert();
        let help = Args::command().render_long_help().to_string();
        assert!(help.contains("125") && help.contains("no daemon"), "{help}");
    }

    #[test]
    fn global_options_may_follow_the_verb() {
        let args = parse("writ task show t-1 --output json --socket /tmp/s").unwrap();
        assert_eq!(args.common.socket, PathBuf::from("/tmp/s"));
        assert!(matches!(args.common.output, Output::Json));
        assert!(matches!(parse("writ ps").unwrap().verb, Verb::Ps));
    }

    #[test]
    fn misuse_is_a_usage_error() {
        for line in ["writ", "writ tsak", "writ task", "writ task show", "writ status --output xml", "writ ps extra"] {
            let error = parse(line).unwrap_err();
            assert!(
                error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                "{line}"
            );
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
