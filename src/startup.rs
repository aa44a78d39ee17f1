//! Builds every part of the server from its configuration and joins them.

use crate::cli::ServerArgs;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// This build has no server yet.
    #[error("the server is not built yet")]
    NotBuilt,
}

/// Runs the server until it is told to stop.
pub fn run(_args: ServerArgs) -> Result<(), StartError> {
    Err(StartError::NotBuilt)
}
