//! `packforcing`, the program.

mod chart;
mod media;
mod output;
mod pack;
mod report;

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
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Pack(options) => pack::run(&options),
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
