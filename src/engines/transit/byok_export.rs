//! `byok-export/:destination/:source`: a key wrapped for import elsewhere.

use std::collections::BTreeMap;

use aes_kw::{KeyInit, KwpAes256};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    Transit,
    alg::{
        KeyType,
        asym::{PrivateKey, PublicKey},
        hash::HashAlgorithm,
        rsa,
    },
    export::{Exported, Shown, chosen},
    gate::{FEW_VERSIONS, Going, Job},
    given::Brought,
    import::oaep_hash,
    lifecycle::SOFT_DELETED,
    protect::Material,
    store::Key,
};
use crate::{
    core::{
        engine::Call,
        failure::{Failure, Kind},
        reply::Reply,
    },
    params,
    secret::SecretBytes,
};

params! {
    /// Parameters of a wrapped export.
    pub struct WrappedExportParams {
        /// Name of the RSA key that wraps.
        pub destination: String,
        /// Name of the key to export.
        pub source: String,
        /// A version, `latest`, or nothing for all versions.
        pub version: String,
        /// The hash of RSA-OAEP: SHA1, SHA224, SHA256 (the default), SHA384 or SHA512.
        pub hash: Option<String>,
    }
}

fn stop(text: impl Into<String>) -> Failure {
    Failure::listed(Kind::Internal, text)
}

/// GET `byok-export/:destination/:source`.
pub async fn export(engine: &Transit, call: &Call<'_>, params: WrappedExportParams) -> Result<Reply, Failure> {
    let missing = || stop("no such destination key to export to");
    let destination = engine.store.key(&params.destination)?.ok_or_else(missing)?;
    if destination.record.soft_deleted {
        return Err(stop(format!("for destination key: {SOFT_DELETED}")));
    }
    let source = engine.store.key(&params.source)?.ok_or_else(|| stop("no such source key for export"))?;
    Transit::check_leaves(&source.record)?;
    if !source.record.exportable {
        return Err(Failure::invalid("key is not exportable"));
    }
    if source.record.soft_deleted {
        return Err(stop(format!("for source key: {SOFT_DELETED}")));
    }
    let lines = chosen(&source.record, &params.version)?;
    let (going, small) = (Going::of(call, &engine.store.view), lines.len() <= FEW_VERSIONS);
    let hash = oaep_hash(params.hash.as_deref().unwrap_or("SHA256")).map_err(stop)?;
    let public = wrapping_half(&destination)?;
    let versions = engine.bring_all_out(&source, &lines, &going).await?;
    let write = move |job: &mut Job| {
        let mut keys = BTreeMap::new();
        job.expect(versions.len());
        for Brought { version, material, .. } in versions {
            job.version()?;
            let material = prepared(source.record.kind, material)?;
            keys.insert(version, Shown(wrapped(&public, &material, hash)?.into()));
        }
        Reply::data(&Exported { name: &source.name, kind: source.record.kind, keys })
    };
    engine.stores.gate.whole_key(small, going, write).await
}

/// The public half of the destination's latest version.
fn wrapping_half(destination: &Key) -> Result<PublicKey, Failure> {
    let record = &destination.record;
    if !record.kind.supports_signing() {
        return Err(stop(format!("message signing not supported for key type {}", record.kind.name())));
    }
    if record.kind.rsa_bits().is_none() {
        return Err(stop("unsupported key type in use; must be a rsa key"));
    }
    let line = record.line(record.latest_version);
    let text = line.and_then(|line| line.public_key.as_deref()).ok_or_else(|| stop("no such key version"))?;
    PublicKey::from_text(record.kind, text).map_err(Failure::internal)
}

/// What is wrapped: raw bytes, or PKCS#8 DER.
fn prepared(kind: KeyType, material: Material) -> Result<SecretBytes, Failure> {
    if material.key.is_empty() {
        return Err(stop("failed to wrap target key for import: the key version has no private part"));
    }
    if !kind.is_asymmetric() {
        return Ok(material.key);
    }
    PrivateKey::from_stored(kind, material.key.expose()).and_then(|key| key.to_pkcs8()).map_err(Failure::internal)
}

fn wrapped(public: &PublicKey, material: &SecretBytes, hash: HashAlgorithm) -> Result<String, Failure> {
    let PublicKey::Rsa(public) = public else { return Err(stop("unsupported key type in use; must be a rsa key")) };
    let ephemeral = SecretBytes::random(32);
    let failed = |error: &dyn std::fmt::Display| stop(format!("failed to wrap target key for import: {error}"));
    let mut blob = rsa::encrypt_oaep(public, ephemeral.expose(), hash).map_err(|error| failed(&error))?;
    let kwp = KwpAes256::new_from_slice(ephemeral.expose()).map_err(|error| failed(&error))?;
    // RFC 5649: padded to eight bytes, and eight more.
    let mut room = vec![0; material.len().div_ceil(8) * 8 + 8];
    let sealed = kwp.wrap_key(material.expose(), &mut room).map_err(|error| failed(&error))?;
    blob.extend_from_slice(sealed);
    Ok(STANDARD.encode(blob))
}
