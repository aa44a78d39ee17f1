//! `hash`.

use super::Transit;
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
    tools::hash(&params.urlalgorithm, params.algorithm.as_deref(), &input, params.format.as_deref())
}
