//! Builds every part from the configuration and joins them; the only module that knows all concrete types.

pub mod listen;
pub mod logging;
pub mod process;
pub mod tls;

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
