//! `cargo xtask`: sets up, builds and checks the project, and runs its tests here and in virtual machines.

mod bench;
mod build;
mod check;
mod command;
mod demo;
mod ebpf;
mod lab;
mod repo;
mod setup;
mod stream;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sets up, builds, checks and tests Writ.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Setup(setup::Options),
    Build(build::Options),
    /// Check formatting, lints and the walls between modules.
    Check,
    /// Check what the compiler cannot: walls, documents, unfinished work.
    Tidy,
    Vm(vm::Options),
    Test(test::Options),
    Demo(demo::Options),
    Bench(bench::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Setup(options) => setup::run(&options)?,
        Verb::Build(options) => build::run(&options)?,
        Verb::Check => check::run_all()?,
        Verb::Tidy => tidy::run()?,
        Verb::Bench(options) => bench::run(&options)?,
        Verb::Vm(options) => return vm::run(options),
        Verb::Test(options) => return test::run(&options),
        Verb::Demo(options) => return demo::run(&options),
    }
    Ok(ExitCode::SUCCESS)
}
