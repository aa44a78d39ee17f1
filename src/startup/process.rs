//! The process itself: nothing of it for others, the pid file.

use std::{fs, io, path::PathBuf};

use rustix::{
    fs::Mode,
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask},
};

/// What every `sos` process does first, the HSM's worker too: whatever it and its libraries (sled, redb, a vendor's module) write
/// is for its own user alone, and nobody dumps or traces it.
pub fn keep_private() {
    umask(Mode::RWXG | Mode::RWXO);
    forbid_core_dumps();
}

/// Forbids core dumps and tracing by other processes of the same user: they would show keys.
fn forbid_core_dumps() {
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        eprintln!("warning: core dumps could not be switched off: {error}");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        eprintln!("warning: the process could not be protected from being dumped: {error}");
    }
}

/// Logs panics by place only: their messages can quote what was being worked on.
pub fn log_panics_without_message() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, ToString::to_string);
        tracing::error!(%place, "a defect of this program stopped one piece of work; please report it");
    }));
}

/// Raises the limit of open files to what is allowed: every connection takes one.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// The pid file, removed when the server ends.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes this process's id.
    pub fn write(path: PathBuf) -> io::Result<Self> {
        fs::write(&path, format!("{}\n", std::process::id()))?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the pid file could not be removed");
        }
    }
}
