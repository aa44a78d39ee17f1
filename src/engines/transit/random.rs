//! `random`.

use super::Transit;
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        tools::{self, RandomRequest},
    },
    params,
};

params! {
    /// Parameters of `random`.
    pub struct RandomParams {
        /// Number of bytes, 32 by default.
        pub bytes: Option<i64>,
        /// `base64` (the default) or `hex`.
        pub format: Option<String>,
        /// In the path: `platform`, `seal` or `all`, which all are the operating system's source here; `seal` is answered with a
        /// warning.
        pub source: String,
        /// Number of bytes in the path.
        pub urlbytes: String,
    }
}

/// The handler.
pub async fn random(_: &Transit, _: &Call<'_>, params: RandomParams) -> Result<Reply, Failure> {
    tools::random(RandomRequest {
        source: &params.source,
        url_bytes: &params.urlbytes,
        bytes: params.bytes,
        format: params.format.as_deref(),
    })
}
