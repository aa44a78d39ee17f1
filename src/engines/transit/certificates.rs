//! `keys/:name/csr` and `keys/:name/set-certificate`.
//!
//! A request for a certificate (PKCS#10, RFC 2986) is put together here and signed like any other text, so that keys
//! inside the HSM can have one too.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{
    Transit,
    alg::{
        KeyType,
        asym::PublicKey,
        ecdsa::Marshaling,
        hash::HashAlgorithm,
        pkcs8::{element, encoded},
        rsa::Salt,
    },
    b64,
    chain::Chain,
    import::pem_contents,
    keys::pem,
    lifecycle::SOFT_DELETED,
    ops::Opened,
    record::{KeyRecord, VersionLine},
    signing::Options,
    store::{Change, Decision, Key},
};
use crate::{
    barrier::Txn,
    core::{
        engine::Call,
        failure::{Failure, Kind},
        reply::Reply,
    },
    params,
};

params! {
    /// Parameters of a request for a certificate.
    pub struct CsrParams {
        /// Name of the key.
        pub name: String,
        /// The version; the latest by default.
        pub version: Option<i64>,
        /// A request in PEM whose subject and attributes are taken over; nothing gives an empty subject.
        pub csr: String,
    }
}

params! {
    /// Parameters of setting certificates.
    pub struct ChainParams {
        /// Name of the key.
        pub name: String,
        /// The version; the latest by default.
        pub version: Option<i64>,
        /// Certificates in PEM, that of the key first.
        pub certificate_chain: String,
    }
}

#[derive(Serialize)]
struct CsrData<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: KeyType,
    csr: String,
}

#[derive(Serialize)]
struct ChainData<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: KeyType,
    certificate_chain: &'a str,
}

fn signing_key(key: &Key) -> Result<(), Failure> {
    let record = &key.record;
    if !record.kind.supports_signing() {
        return Err(Failure::invalid(format!("key type '{}' does not support signing", record.kind.name())));
    }
    if record.derived() {
        return Err(Failure::invalid("operation not supported for keys with derivation enabled"));
    }
    if record.soft_deleted {
        return Err(Failure::listed(Kind::Internal, SOFT_DELETED));
    }
    Ok(())
}

fn version_of(record: &KeyRecord, asked: Option<i64>) -> Result<&VersionLine, &'static str> {
    let version = asked.map_or(Some(record.latest_version), |asked| u32::try_from(asked).ok());
    let shown = version.filter(|version| *version >= record.min_decryption_version);
    shown.and_then(|version| record.line(version)).ok_or("no such key version")
}

/// POST `keys/:name/csr`.
pub async fn csr(engine: &Transit, _: &Call<'_>, params: CsrParams) -> Result<Reply, Failure> {
    let missing = || Failure::invalid(format!("key with provided name '{}' not found", params.name));
    let key = engine.store.key(&params.name)?.ok_or_else(missing)?;
    signing_key(&key)?;
    let (subject, attributes) = template(&params.csr).map_err(Failure::invalid)?;
    let failed = |reason: &str| Failure::invalid(format!("could not create the csr: {reason}"));
    let line = version_of(&key.record, params.version).map_err(failed)?;
    if line.public_only {
        return Err(failed("private key not imported for key version selected"));
    }
    let kind = key.record.kind;
    let public = PublicKey::from_text(kind, line.public_key.as_deref().unwrap_or_default());
    let public = public.and_then(|public| public.to_der()).map_err(Failure::internal)?;
    let body = [&[0x02, 0x01, 0x00], subject.as_slice(), &public, &attributes].concat();
    let body = encoded(0x30, &body);
    let (hash, algorithm) = signature_algorithm(kind);
    let options = Options {
        hash,
        prehashed: false,
        signature_algorithm: "pkcs1v15".to_owned(),
        salt: Salt::Auto,
        marshaling: Marshaling::Asn1,
    };
    // The bound for encryption does not count: a request is no use of the version.
    let signed = engine.sign_with(&key, &mut Opened::default(), line.version, &body, &[], &options).await?;
    let signed = signed.map_err(|error| failed(&error.text))?;
    let text = signed.signature.rsplit(':').next().unwrap_or_default();
    let signature = b64::decode(text).map_err(Failure::internal)?;
    let whole = [body, encoded(0x30, algorithm), encoded(0x03, &[&[0], signature.as_slice()].concat())].concat();
    let text = pem("CERTIFICATE REQUEST", &STANDARD.encode(encoded(0x30, &whole)));
    Reply::data(&CsrData { name: &key.name, kind, csr: format!("{text}\n") })
}

/// Hash and algorithm identifier of a type's signature in certificates (RFC 5758, RFC 8017, RFC 8410).
fn signature_algorithm(kind: KeyType) -> (HashAlgorithm, &'static [u8]) {
    match kind {
        KeyType::EcdsaP384 => (HashAlgorithm::Sha2_384, &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03]),
        KeyType::EcdsaP521 => (HashAlgorithm::Sha2_512, &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04]),
        KeyType::Ed25519 => (HashAlgorithm::Sha2_256, &[0x06, 0x03, 0x2b, 0x65, 0x70]),
        kind if kind.rsa_bits().is_some() => {
            (HashAlgorithm::Sha2_256, &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00])
        }
        _ => (HashAlgorithm::Sha2_256, &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]),
    }
}

/// Subject and attributes of a request, as DER elements.
pub(super) fn template(text: &str) -> Result<(Vec<u8>, Vec<u8>), String> {
    if text.is_empty() {
        return Ok((vec![0x30, 0], vec![0xa0, 0]));
    }
    let der = pem_contents(text).ok_or("could not decode PEM CSR")?;
    let parts = || {
        let (whole, _) = element(&der, 0x30)?;
        let (body, _) = element(whole, 0x30)?;
        let (_, rest) = element(body, 0x02)?;
        let (subject, rest) = element(rest, 0x30)?;
        let (_, rest) = element(rest, 0x30)?;
        let attributes = element(rest, 0xa0).map_or(&[][..], |(attributes, _)| attributes);
        Some((encoded(0x30, subject), encoded(0xa0, attributes)))
    };
    parts().ok_or_else(|| "the CSR is malformed".to_owned())
}

/// Reads the certificates of a request.
pub(super) fn parse_chain(text: &str) -> Result<Chain, String> {
    Chain::parse(text)
}

/// POST `keys/:name/set-certificate`.
pub async fn set_certificate(engine: &Transit, _: &Call<'_>, params: ChainParams) -> Result<Reply, Failure> {
    let name = params.name.as_str();
    let missing = || Failure::invalid(format!("key with provided name '{name}' not found"));
    signing_key(engine.store.key(name)?.ok_or_else(missing)?.as_ref())?;
    let chain = parse_chain(&params.certificate_chain).map_err(Failure::invalid)?;
    let failed = |reason: &str| Failure::invalid(format!("failed to persist certificate chain: {reason}"));
    chain.check_order().map_err(failed)?;
    let (chain, version) = (&chain, params.version);
    let (key, ()) = engine
        .change(name, move |key| {
            Box::pin(async move {
                let key = key.ok_or_else(missing)?;
                signing_key(&key)?;
                let line = version_of(&key.record, version).map_err(failed)?;
                chain.check_algorithm(key.record.kind).map_err(|reason| failed(&reason))?;
                if !chain.is_of(line.public_key.as_deref()) {
                    let text = "failed to persist certificate chain: leaf certificate public key does not match the \
                                selected key version";
                    return Err(Failure::listed(Kind::Internal, text));
                }
                let version = line.version;
                let mut record = key.record.clone();
                if let Some(line) = record.versions.iter_mut().find(|line| line.version == version) {
                    line.certificate_chain = chain.stored();
                }
                Ok(Decision::Write(Change { record: Some(record), txn: Txn::new(), outcome: () }))
            })
        })
        .await?;
    let key = key.ok_or_else(|| Failure::unavailable("the key was deleted meanwhile"))?;
    Reply::data(&ChainData { name, kind: key.record.kind, certificate_chain: &params.certificate_chain })
}
