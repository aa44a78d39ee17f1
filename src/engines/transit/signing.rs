//! Signing and verifying with a key: which version, how the input is hashed and the signature written. Private keys are
//! used in this process or in the HSM; public ones always here.

use std::{borrow::Cow, collections::BTreeMap};

use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::{
    Transit,
    alg::{
        KeyType,
        asym::{AsymError, PrivateKey, PublicKey},
        ecdsa::{self, Marshaling},
        hash::HashAlgorithm,
        kdf::Kdf,
        rsa::{self, Salt, Scheme},
    },
    b64,
    lifecycle::SOFT_DELETED,
    ops::{ItemError, NO_CONTEXT, Opened, TOO_OLD, source},
    store::{Key, Loaded, LoadedKey},
    turn::Turn,
};
use crate::{
    core::failure::Failure,
    hsm::{HsmError, SignScheme},
    secret::SecretBytes,
};

/// URL-safe base64 without padding, non-zero trailing bits accepted.
const URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// How a request signs or verifies.
#[derive(Clone, Debug)]
pub struct Options {
    /// The hash of the input, or the one it was hashed with.
    pub hash: HashAlgorithm,
    /// Whether the input is a digest already.
    pub prehashed: bool,
    /// How RSA pads: `pss` (also ""), `pkcs1v15`, or what the type does not know.
    pub signature_algorithm: String,
    /// The salt of PSS.
    pub salt: Salt,
    /// How signatures are written.
    pub marshaling: Marshaling,
}

impl Options {
    /// What is signed in place of the input.
    fn digest<'a>(&self, kind: KeyType, input: &'a [u8]) -> Result<Cow<'a, [u8]>, ItemError> {
        if !kind.hashes_input() || self.prehashed {
            return Ok(Cow::Borrowed(input));
        }
        self.hash.digest(input).map(Cow::Owned).map_err(|error| ItemError::internal(error.to_string()))
    }

    fn scheme(&self) -> Result<Scheme, ItemError> {
        match self.signature_algorithm.as_str() {
            "" | "pss" => Ok(Scheme::Pss(self.salt)),
            "pkcs1v15" => Ok(Scheme::Pkcs1v15),
            other => Err(ItemError::internal(format!("unsupported rsa signature algorithm {other}"))),
        }
    }
}

/// A signature in text form.
#[derive(Debug)]
pub struct Signed {
    /// `vault:v<version>:<base64>`.
    pub signature: String,
    /// The version that signed.
    pub version: u32,
    /// The public key that a context derived, for derived keys.
    pub public_key: Option<String>,
}

/// One use of a key: an error of the item, or of the server.
type Outcome<T> = Result<Result<T, ItemError>, Failure>;

impl Transit {
    /// Signs one input. `version` 0 is the latest; every mistake counts as the server's, as in the API.
    pub async fn sign_one(
        &self,
        key: &Key,
        opened: &mut Opened,
        version: i64,
        input: &[u8],
        context: &[u8],
        options: &Options,
    ) -> Outcome<Signed> {
        match signing_version(key, version) {
            Ok(version) => self.sign_with(key, opened, version, input, context, options).await,
            Err(error) => Ok(Err(error)),
        }
    }

    /// Signs one input with a version that is there and has a private half, whatever bounds the key sets for clients.
    pub async fn sign_with(
        &self,
        key: &Key,
        opened: &mut Opened,
        version: u32,
        input: &[u8],
        context: &[u8],
        options: &Options,
    ) -> Outcome<Signed> {
        let kind = key.record.kind;
        let Some(loaded) = opened.version(self, key, version).await? else {
            return Ok(Err(ItemError::internal("no such key version")));
        };
        let digest = match options.digest(kind, input) {
            Ok(digest) => digest,
            Err(error) => return Ok(Err(error)),
        };
        let made = match &loaded.key {
            LoadedKey::Wrapped(_) | LoadedKey::Token(_) => self.sign_in_hsm(kind, &loaded, &digest, options).await?,
            _ => sign_here(kind, &loaded, &digest, context, options),
        };
        Ok(made.map(|(signature, public_key)| {
            let encoded = match options.marshaling {
                Marshaling::Asn1 => b64::encode(&signature),
                Marshaling::Jws => URL.encode(&signature),
            };
            Signed { signature: format!("vault:v{version}:{encoded}"), version, public_key }
        }))
    }

    async fn sign_in_hsm(
        &self,
        kind: KeyType,
        loaded: &Loaded,
        digest: &[u8],
        options: &Options,
    ) -> Outcome<(Vec<u8>, Option<String>)> {
        if kind.rsa_bits().is_some() {
            let scheme = match options.scheme() {
                Ok(scheme) => scheme,
                Err(error) => return Ok(Err(error)),
            };
            let signed = self.sign_rsa_in_hsm(loaded, digest, options.hash, scheme).await?;
            return Ok(signed.map(|signature| (signature, None)).map_err(internal));
        }
        let hsm = self.store.protection.hsm()?;
        let (scheme, digest) = match kind {
            KeyType::Ed25519 => (SignScheme::Eddsa, digest),
            // The leftmost bits of a digest longer than the curve's order count (FIPS 186-5, section 6.4.1).
            _ => (SignScheme::Ecdsa, digest.get(..digest.len().min(order_bytes(kind))).unwrap_or(digest)),
        };
        let raw = match hsm.sign(source(loaded)?, scheme, digest).await {
            Ok(raw) => raw,
            Err(HsmError::BadInput(text)) => return Ok(Err(ItemError::internal(text))),
            Err(error) => return Err(error.into()),
        };
        if scheme == SignScheme::Eddsa {
            return Ok(Ok((raw, None)));
        }
        Ok(ecdsa::from_raw(&raw, options.marshaling).map(|signature| (signature, None)).map_err(internal))
    }

    /// Whether a signature in text form is right.
    pub async fn verify_one(
        &self,
        key: &Key,
        opened: &mut Opened,
        input: &[u8],
        signature: &str,
        context: &[u8],
        options: &Options,
    ) -> Outcome<bool> {
        let (version, signature) = match parse_signature(key, signature, options.marshaling) {
            Ok(parsed) => parsed,
            Err(error) => return Ok(Err(error)),
        };
        let Some(loaded) = opened.version(self, key, version).await? else {
            return Ok(Err(ItemError::user("no such key version")));
        };
        Ok(verify_here(key.record.kind, &loaded, input, &signature, context, options))
    }
}

/// Bytes of an EC group's order.
fn order_bytes(kind: KeyType) -> usize {
    match kind {
        KeyType::EcdsaP256 => 32,
        KeyType::EcdsaP384 => 48,
        _ => 66,
    }
}

fn internal(error: AsymError) -> ItemError {
    ItemError::internal(error.to_string())
}

/// The version to sign with.
fn signing_version(key: &Key, asked: i64) -> Result<u32, ItemError> {
    let record = &key.record;
    let refuse = |text: &'static str| Err(ItemError::internal(text));
    if record.soft_deleted {
        return refuse(SOFT_DELETED);
    }
    if asked < 0 {
        return refuse("requested version for signing is negative");
    }
    if asked > i64::from(record.latest_version) {
        return refuse("requested version for signing is higher than the latest key version");
    }
    let version = if asked == 0 { record.latest_version } else { u32::try_from(asked).unwrap_or(0) };
    if asked != 0 && version < record.min_encryption_version {
        return refuse("requested version for signing is less than the minimum encryption key version");
    }
    match record.line(version) {
        Some(line) if version >= record.min_decryption_version => {
            if line.public_only {
                return refuse("requested version for signing does not contain a private part");
            }
            Ok(version)
        }
        _ => refuse("no such key version"),
    }
}

/// Signature and, for derived keys, public key.
fn sign_here(
    kind: KeyType,
    loaded: &Loaded,
    digest: &[u8],
    context: &[u8],
    options: &Options,
) -> Result<(Vec<u8>, Option<String>), ItemError> {
    match &loaded.key {
        LoadedKey::Derived(kdf, secret) => {
            let key = derived_key(*kdf, secret, context)
                .map_err(|error| ItemError::internal(format!("error deriving key: {}", error.text)))?;
            let public = key.public().and_then(|public| public.to_text()).map_err(internal)?;
            // The API shows bytes here, which JSON carries in base64: the text form of an Ed25519 key.
            Ok((key.sign_message(digest).map_err(internal)?, Some(public)))
        }
        LoadedKey::Private(PrivateKey::Ec(key)) => Ok((ecdsa::sign(key, digest, options.marshaling).map_err(internal)?, None)),
        LoadedKey::Private(PrivateKey::Rsa(key)) => {
            Ok((rsa::sign(key, digest, options.hash, options.scheme()?).map_err(internal)?, None))
        }
        LoadedKey::Private(key @ PrivateKey::Ed(_)) => Ok((key.sign_message(digest).map_err(internal)?, None)),
        _ => Err(ItemError::internal(format!("message signing not supported for key type {}", kind.name()))),
    }
}

fn verify_here(
    kind: KeyType,
    loaded: &Loaded,
    input: &[u8],
    signature: &[u8],
    context: &[u8],
    options: &Options,
) -> Result<bool, ItemError> {
    let digest = options.digest(kind, input)?;
    let judged = |result: Result<bool, AsymError>| {
        result.map_err(|error| match error {
            AsymError::Input(text) => ItemError::user(text),
            other => internal(other),
        })
    };
    if let LoadedKey::Derived(kdf, secret) = &loaded.key {
        let key = derived_key(*kdf, secret, context)
            .map_err(|error| ItemError::internal(format!("error deriving key: {}", error.text)))?;
        return judged(key.public().and_then(|public| public.verify_message(&digest, signature)));
    }
    match &loaded.public {
        Some(PublicKey::Ec(key)) => judged(ecdsa::verify(key, &digest, signature, options.marshaling)),
        Some(PublicKey::Rsa(key)) => judged(rsa::verify(key, &digest, signature, options.hash, options.scheme()?)),
        Some(key @ PublicKey::Ed(_)) => judged(key.verify_message(&digest, signature)),
        None => Err(ItemError::internal("the public key is missing")),
    }
}

/// The Ed25519 key of a context.
pub fn derived_key(kdf: Kdf, secret: &SecretBytes, context: &[u8]) -> Result<PrivateKey, ItemError> {
    if context.is_empty() {
        return Err(ItemError::user(NO_CONTEXT));
    }
    let seed = kdf.derive(secret.expose(), context, 32);
    let seed = seed.ok_or_else(|| ItemError::internal("could not derive key, length too small"))?;
    PrivateKey::from_seed(seed.expose()).map_err(internal)
}

/// Version and bytes of a signature's text form.
fn parse_signature(key: &Key, text: &str, form: Marshaling) -> Result<(u32, Vec<u8>), ItemError> {
    let record = &key.record;
    if record.soft_deleted {
        return Err(ItemError::user(SOFT_DELETED));
    }
    let rest = text.strip_prefix("vault:v").ok_or_else(|| ItemError::user("invalid signature: no prefix"))?;
    let fields = rest.split_once(':').ok_or_else(|| ItemError::user("invalid signature: wrong number of fields"))?;
    let version = fields.0.parse::<i64>();
    let version = version.map_err(|_| ItemError::user("invalid signature: version number could not be decoded"))?;
    if version > i64::from(record.latest_version) {
        return Err(ItemError::user("invalid signature: version is too new"));
    }
    let version = u32::try_from(version).unwrap_or(0);
    if version < record.min_decryption_version {
        return Err(ItemError::user(TOO_OLD));
    }
    let decoded = match form {
        Marshaling::Asn1 => b64::decode(fields.1).ok(),
        Marshaling::Jws => URL.decode(fields.1.replace(['\r', '\n'], "")).ok(),
    };
    decoded.map(|signature| (version, signature)).ok_or_else(|| ItemError::user("invalid base64 signature value"))
}

/// The public keys that a context derives, per version; empty without a context and for keys that are not derived.
pub async fn derived_public_keys(engine: &Transit, key: &Key, context: &[u8]) -> Result<BTreeMap<u32, String>, Failure> {
    let record = &key.record;
    let mut keys = BTreeMap::new();
    if context.is_empty() || record.kind != KeyType::Ed25519 || !record.derived() {
        return Ok(keys);
    }
    let mut turn = Turn::begin();
    for line in record.versions.iter().filter(|line| line.version >= record.min_decryption_version) {
        turn.give_way().await;
        let loaded = engine.store.load(&engine.mount.zone, key, line.version).await?;
        if let Some(LoadedKey::Derived(kdf, secret)) = loaded.as_deref().map(|loaded| &loaded.key) {
            let key = derived_key(*kdf, secret, context).map_err(ItemError::into_failure)?;
            let text = key.public().and_then(|public| public.to_text()).map_err(Failure::internal)?;
            keys.insert(line.version, text);
        }
    }
    Ok(keys)
}
