//! Auth methods. Each is a folder with its routes, parameters and records; this file knows their names.

pub mod token;

use std::sync::Arc;

use crate::{
    core::{engine::Engine, failure::Failure},
    engines::MountContext,
};

/// Whether an auth method of this name can be enabled by clients.
pub fn is_mountable(_kind: &str) -> bool {
    false
}

/// Makes the auth method for a mount.
pub fn build(context: MountContext) -> Result<Arc<dyn Engine>, Failure> {
    let kind = context.entry.kind.as_str();
    Err(Failure::invalid(format!("plugin not found in the catalog: {kind}")))
}
