//! The `sos` program: parse the command line, run the command, end with its exit code.

use std::{alloc::System, process::ExitCode};

use zeroizing_alloc::ZeroAlloc;

/// Every piece of memory is overwritten when it is given back: secrets pass through buffers of libraries (sockets,
/// JSON, TLS) that do not know what they hold.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    sos::startup::process::keep_private();
    if !sos::startup::memory::overwrite_what_libcrypto_frees() {
        eprintln!("warning: libcrypto was in use before the program began; copies of keys that it frees are not overwritten");
    }
    // The worker must come first: it loads a vendor's library, and no thread may exist before that.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "hsm-worker") {
        return sos::hsm::worker::main();
    }
    ExitCode::from(sos::cli::run(std::env::args_os()))
}
