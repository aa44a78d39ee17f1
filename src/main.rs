//! The `sos` program: parse the command line, run the command, end with its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(sos::cli::run(std::env::args_os()))
}
