//! Tests.
mod common;

fn main() -> std::process::ExitCode {
    common::Suite::new().run()
}
