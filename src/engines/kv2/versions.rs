//! `delete/`, `undelete/` and `destroy/`: what happens to numbered versions.

use super::{Kv2, change::Change, params::Versions};
use crate::core::{engine::Call, failure::Failure, reply::Reply};

/// Deletes versions so that they can be brought back.
pub async fn delete(engine: &Kv2, call: &Call<'_>, params: Versions) -> Result<Reply, Failure> {
    let versions = some(params, "No version number provided")?;
    engine.keys.change(call.capture("path"), Change::Delete(versions)).await
}

/// Brings deleted versions back.
pub async fn undelete(engine: &Kv2, call: &Call<'_>, params: Versions) -> Result<Reply, Failure> {
    let versions = some(params, "No version number provided")?;
    engine.keys.change(call.capture("path"), Change::Undelete(versions)).await
}

/// Deletes the data of versions for good.
pub async fn destroy(engine: &Kv2, call: &Call<'_>, params: Versions) -> Result<Reply, Failure> {
    let versions = some(params, "no version number provided")?;
    engine.keys.change(call.capture("path"), Change::Destroy(versions)).await
}

fn some(params: Versions, otherwise: &str) -> Result<Vec<i64>, Failure> {
    let versions = params.versions.0;
    if versions.is_empty() { Err(Failure::invalid(otherwise)) } else { Ok(versions) }
}
