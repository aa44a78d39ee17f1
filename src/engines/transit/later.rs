//! Endpoints whose operations do not exist yet.

use super::Transit;
use crate::core::{engine::Call, failure::Failure, reply::Reply};

/// Endpoints that Vault has and this server does not.
pub async fn absent(_: &Transit, call: &Call<'_>) -> Result<Reply, Failure> {
    let endpoint = call.path.split('/').next().unwrap_or(call.path);
    Err(Failure::not_implemented(format_args!("the transit endpoint {endpoint} ({})", call.path)))
}
