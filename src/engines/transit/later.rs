//! Endpoints whose operations do not exist yet: they tell apart a missing key, a key that could never do it, and what
//! this server cannot do.

use super::{Transit, store::Key};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply},
    params,
    wire::field::AnyJson,
};

params! {
    /// Parameters of signing, verifying and HMACs.
    pub struct AnyParams {
        /// Name of the key.
        pub name: String,
        /// Hash algorithm in the path.
        pub urlalgorithm: String,
        /// The input in base64.
        pub input: AnyJson,
        /// The signature to verify.
        pub signature: AnyJson,
        /// The HMAC to verify.
        pub hmac: Option<AnyJson>,
        /// The hash algorithm.
        pub algorithm: AnyJson,
        /// The hash algorithm.
        pub hash_algorithm: AnyJson,
        /// Items.
        pub batch_input: AnyJson,
        /// The key version.
        pub key_version: AnyJson,
        /// The context of a derived key.
        pub context: AnyJson,
    }
}

fn refuse(key: &Key, what: &str) -> Failure {
    Failure::invalid(format!("key type {} does not support {what}", key.record.kind.name()))
}

/// Endpoints that Vault has and this server does not.
pub async fn absent(_: &Transit, call: &Call<'_>) -> Result<Reply, Failure> {
    let endpoint = call.path.split('/').next().unwrap_or(call.path);
    Err(Failure::not_implemented(format_args!("the transit endpoint {endpoint} ({})", call.path)))
}

/// POST `sign/:name`.
pub async fn sign(engine: &Transit, _: &Call<'_>, params: AnyParams) -> Result<Reply, Failure> {
    let key = engine.existing(&params.name, "signing key not found")?;
    Err(refuse(&key, "signing"))
}

/// POST `verify/:name`.
pub async fn verify(engine: &Transit, _: &Call<'_>, params: AnyParams) -> Result<Reply, Failure> {
    if params.hmac.is_some() {
        engine.existing(&params.name, "encryption key not found")?;
        return Err(Failure::not_implemented("verifying HMACs with transit keys"));
    }
    let key = engine.existing(&params.name, "signature verification key not found")?;
    Err(refuse(&key, "verification"))
}

/// POST `hmac/:name`.
pub async fn hmac(engine: &Transit, _: &Call<'_>, params: AnyParams) -> Result<Reply, Failure> {
    let key = engine.existing(&params.name, "encryption key not found")?;
    if key.record.soft_deleted {
        return Err(Failure::invalid(super::lifecycle::SOFT_DELETED));
    }
    Err(Failure::not_implemented("HMACs with transit keys"))
}
