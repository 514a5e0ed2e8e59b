//! `writ`: the command line.

use std::process::ExitCode;

use agent::cli;
use clap::Parser;

fn main() -> ExitCode {
    cli::main(cli::Args::parse()).into()
}
