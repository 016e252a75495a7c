//! `packforcing`, the program.

mod bench;
mod chart;
mod check;
mod device;
mod evaluate;
mod media;
mod output;
mod pack;
mod process;
mod progress;
mod sample;
mod train;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Packed history for long videos.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Streams a video through the packed cache and shows what the packing keeps
    Pack(pack::Options),
    /// Makes a long video with a model that was trained on short clips
    Sample(sample::Options),
    /// Trains a small model on short clips
    Train(train::Options),
    /// Measures how long videos still show what they began with
    Evaluate(evaluate::Options),
    /// Times one op
    Bench(bench::Options),
    /// Looks whether all is right on this machine's GPU, in under a minute
    Check(check::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Pack(options) => pack::run(&options),
        Command::Sample(options) => sample::run(&options),
        Command::Train(options) => train::run(&options),
        Command::Evaluate(options) => evaluate::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Check(options) => check::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(error) if error.root_cause().downcast_ref().is_some_and(is_closed_pipe) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}
