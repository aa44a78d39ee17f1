//! What a command leaves behind when it is interrupted: nothing.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};

/// What shells show for a process that SIGINT ended, and for one that SIGTERM did.
const INTERRUPTED: i32 = 130;
const TERMINATED: i32 = 143;

/// As long as it lives, SIGINT and SIGTERM remove a file before they end the process.
pub(super) struct RemovedWhenInterrupted(Arc<Mutex<Option<PathBuf>>>);

impl RemovedWhenInterrupted {
    /// Watches over `file`, which need not be there yet.
    pub(super) fn new(file: PathBuf) -> std::io::Result<Self> {
        let watched = Arc::new(Mutex::new(Some(file)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut interrupt, mut terminate) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let theirs = Arc::clone(&watched);
        std::thread::Builder::new().name("interrupt".into()).spawn(move || {
            let code = runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => INTERRUPTED,
                    _ = terminate.recv() => TERMINATED,
                }
            });
            // Held to the end: what is finished by now has its name, and what is not gets none.
            let watched = theirs.lock();
            if let Some(file) = watched.as_ref() {
                let _ = fs::remove_file(file);
            }
            std::process::exit(code)
        })?;
        Ok(Self(watched))
    }
}

impl Drop for RemovedWhenInterrupted {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}
