//! `packforcing`, the program.

mod bench;
mod chart;
mod check;
mod device;
mod evaluate;
mod generate;
mod judge;
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
    #[command(after_help = "Example:\n  packforcing pack clip.mp4 --seconds 30 --out out")]
    Pack(pack::Options),
    /// Makes a long video with a model that was trained on short clips
    #[command(after_help = "Example:\n  packforcing sample --seconds 120 --out out/sample")]
    Sample(sample::Options),
    /// Makes a video of a prompt, with published weights
    #[command(
        after_help = "Example:\n  packforcing generate --model self_forcing_dmd.pt --model Wan2.1-T2V-1.3B --prompt rain --out film.mp4"
    )]
    Generate(generate::Options),
    /// Tells what a model's files hold, what is missing, and what a video will take
    #[command(
        after_help = "Example:\n  packforcing inspect --model self_forcing_dmd.pt --model Wan2.1-T2V-1.3B --size 832x480"
    )]
    Inspect(generate::inspect::Options),
    /// Writes the embeddings of a prompt, which generate takes in its place
    #[command(
        after_help = "Example:\n  packforcing encode-prompt --model Wan2.1-T2V-1.3B --prompt rain --out prompt.safetensors"
    )]
    EncodePrompt(generate::EncodeOptions),
    /// Trains a small model on short clips
    #[command(after_help = "Example:\n  packforcing train clips --steps 2000 --out out/train")]
    Train(train::Options),
    /// Measures how long videos still show what they began with
    #[command(after_help = "Example:\n  packforcing evaluate --scenes 8 --seconds 30")]
    Evaluate(evaluate::Options),
    /// Times one op
    #[command(after_help = "Example:\n  packforcing bench attention --queries 1560 --keys 6240")]
    Bench(bench::Options),
    /// Looks whether all is right on this machine's GPU, in under a minute
    #[command(after_help = "Example:\n  packforcing check --report check.json")]
    Check(check::Options),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match command {
        // A step's parts have a thread each; threads of candle's own inside them get in each other's way.
        Command::Train(_) => process::settle_threads(1),
        Command::Sample(_) | Command::Evaluate(_) | Command::Generate(_) | Command::EncodePrompt(_) => {
            let here = std::thread::available_parallelism().map_or(1, usize::from);
            process::settle_threads(candle_core::utils::get_num_threads().min(here));
        }
        Command::Pack(_) | Command::Bench(_) | Command::Check(_) | Command::Inspect(_) => {}
    }
    let done = match command {
        Command::Pack(options) => pack::run(&options),
        Command::Sample(options) => sample::run(&options),
        Command::Generate(options) => generate::run(&options),
        Command::Inspect(options) => generate::inspect::run(&options),
        Command::EncodePrompt(options) => generate::encode_prompt(&options),
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn help_shows_an_example_that_is_understood() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = help.strip_prefix("Example:\n  ").unwrap_or_default();
            let words: Vec<&str> = example.split(' ').collect();
            assert_eq!(words.get(1), Some(&command.get_name()), "{example}");
            let parsed = Cli::try_parse_from(&words);
            assert!(parsed.is_ok(), "{example}: {}", parsed.err().unwrap());
        }
    }
}
