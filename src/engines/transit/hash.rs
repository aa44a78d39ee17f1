//! `hash`.

use super::{Transit, b64};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply, tools},
    params,
};

params! {
    /// Parameters of hashing.
    pub struct HashParams {
        /// The input in base64.
        pub input: Option<String>,
        /// The hash algorithm; sha2-256 by default.
        pub algorithm: Option<String>,
        /// The hash algorithm in the path.
        pub urlalgorithm: String,
        /// `hex` (the default) or `base64`.
        pub format: Option<String>,
    }
}

/// POST `hash`.
pub async fn hash(_: &Transit, _: &Call<'_>, params: HashParams) -> Result<Reply, Failure> {
    let input = params.input.ok_or_else(|| Failure::invalid("input missing"))?;
    // Checked here for the API's words about what is no base64.
    b64::decode(&input).map_err(|error| Failure::invalid(format!("unable to decode input as base64: {error}")))?;
    let algorithm = match params.urlalgorithm.as_str() {
        "" => params.algorithm.as_deref().unwrap_or("sha2-256"),
        in_path => in_path,
    };
    tools::hash(algorithm, &input, params.format.as_deref())
}
