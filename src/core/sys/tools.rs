//! `sys/tools/hash`, `sys/tools/random` and `sys/decode-token`.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/tools>

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use serde::Serialize;

use super::System;
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
        tools::{self, RandomRequest},
    },
    op,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["tools/hash", "tools/hash/{urlalgorithm:path}"],
        access: Access::Token,
        help: "Hashes data.",
        exists: None,
        operations: &[op!(Write, "Hash data", hash, HashParams).computing()],
    },
    Route {
        patterns: &[
            "tools/random",
            "tools/random/{source}",
            "tools/random/{source}/{urlbytes:path}",
            "tools/random/{urlbytes:path}",
        ],
        access: Access::Token,
        help: "Gives random bytes.",
        exists: None,
        operations: &[op!(Write, "Random bytes", random, RandomParams).computing()],
    },
    Route {
        patterns: &["decode-token"],
        access: Access::Anyone,
        help: "Decodes the root token that generate-root gave, with its one-time password.",
        exists: None,
        operations: &[op!(Write, "Decode a root token", decode_token, DecodeParams).computing()],
    },
];

crate::params! {
    /// Data to hash.
    struct HashParams {
        /// The data in base64.
        input: String,
        /// sha2-224, sha2-256, sha2-384, sha2-512, sha3-224, sha3-256, sha3-384 or sha3-512.
        algorithm: Option<String>,
        /// The same in the path.
        urlalgorithm: String,
        /// hex or base64.
        format: Option<String>,
    }
}

crate::params! {
    /// How many random bytes.
    struct RandomParams {
        /// Number of bytes.
        bytes: Option<i64>,
        /// Number of bytes in the path.
        urlbytes: String,
        /// platform, seal or all.
        source: String,
        /// hex or base64.
        format: Option<String>,
    }
}

crate::params! {
    /// A root token as generate-root gives it.
    struct DecodeParams {
        /// The encoded token.
        encoded_token: String,
        /// The one-time password.
        otp: String,
    }
}

async fn hash(_: &System, _: &Call<'_>, params: HashParams) -> Result<Reply, Failure> {
    tools::hash(&params.urlalgorithm, params.algorithm.as_deref(), &params.input, params.format.as_deref())
}

async fn random(_: &System, _: &Call<'_>, params: RandomParams) -> Result<Reply, Failure> {
    tools::random(RandomRequest {
        source: &params.source,
        url_bytes: &params.urlbytes,
        bytes: params.bytes,
        format: params.format.as_deref(),
    })
}

async fn decode_token(_: &System, _: &Call<'_>, params: DecodeParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Token {
        token: String,
    }
    if params.encoded_token.is_empty() || params.otp.is_empty() {
        return Err(Failure::invalid("missing required parameter: encoded_token and otp must be given"));
    }
    let decoded = STANDARD_NO_PAD.decode(&params.encoded_token).or_else(|_| STANDARD.decode(&params.encoded_token));
    let mut token = decoded.map_err(|error| Failure::invalid(format!("error decoding the token: {error}")))?;
    if token.len() != params.otp.len() {
        return Err(Failure::invalid("error decoding the token: the one-time password has another length"));
    }
    token.iter_mut().zip(params.otp.bytes()).for_each(|(byte, mask)| *byte ^= mask);
    let token = String::from_utf8(token).map_err(|_| Failure::invalid("error decoding the token: wrong one-time password"))?;
    Reply::data(&Token { token })
}
