//! The `sos` program: parse the command line, run the command, end with its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The worker must come first: it loads a vendor's library, and no thread may exist before that.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "hsm-worker") {
        return sos::hsm::worker::main();
    }
    ExitCode::from(sos::cli::run(std::env::args_os()))
}
