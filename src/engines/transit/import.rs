//! `wrapping_key`, `keys/:name/import` and `keys/:name/import_version`: keys that were made elsewhere.
//!
//! A key arrives as RSA-OAEP over a fresh AES-256 key, and AES-KWP (RFC 5649) under that key over the material: raw bytes
//! for ciphers and HMAC, PKCS#8 DER for the others. The wrapping key is a Transit key of the mount under a name that no
//! path reaches.

use std::sync::Arc;

use aes_kw::{KeyInit, KwpAes256};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    Transit,
    alg::{
        HMAC_KEY_BYTES, KeyType,
        asym::{AsymError, PrivateKey, PublicKey},
        hash::HashAlgorithm,
        kdf::Kdf,
        rsa::{self, Encryption},
        rsa_padding::BadPadding,
    },
    b64,
    damaged::is_damaged,
    given::Given,
    keys::level_param,
    lifecycle::{NewKey, SOFT_DELETED, nanos},
    protect::{Level, Material, VersionId},
    record::{KeyRecord, VersionLine, auto_path},
    store::{Change, Decision, Key, LoadedKey},
};
use crate::{
    barrier::{Entry, Txn},
    core::{
        engine::Call,
        failure::{Failure, Kind},
        reply::Reply,
    },
    params,
    secret::SecretBytes,
    wire::field::{Params, Seconds},
};

/// The wrapping key's name.
const WRAPPING_KEY: &str = "import/wrapping-key";
/// The folder of names that lists leave out.
pub const HIDDEN: &str = "import/";
/// Bytes of an RSA-4096 ciphertext.
const RSA_BLOCK: usize = 512;

params! {
    /// Parameters of an import.
    pub struct ImportParams {
        /// Name of the new key.
        pub name: String,
        /// Its type; aes256-gcm96 by default.
        pub kind as "type": Option<String>,
        /// The wrapped key in base64.
        pub ciphertext: String,
        /// A public key in PEM, in place of a wrapped key.
        pub public_key: String,
        /// The hash of RSA-OAEP: SHA1, SHA224, SHA256 (the default), SHA384 or SHA512.
        pub hash_function: Option<String>,
        /// Whether the key may be rotated here.
        pub allow_rotation: bool,
        /// Whether contexts derive the keys in use.
        pub derived: bool,
        /// Whether the key may be exported.
        pub exportable: bool,
        /// Whether plaintext backups may be taken.
        pub allow_plaintext_backup: bool,
        /// Context in base64; not used.
        pub context: String,
        /// Time between automatic rotations; 0 is off.
        pub auto_rotate_period: Seconds,
        /// `hsm` or `software`.
        pub protection_level: Option<String>,
    }
}

params! {
    /// Parameters of the import of a version.
    pub struct VersionParams {
        /// Name of the key.
        pub name: String,
        /// The wrapped key in base64.
        pub ciphertext: String,
        /// A public key in PEM, in place of a wrapped key.
        pub public_key: String,
        /// The hash of RSA-OAEP.
        pub hash_function: Option<String>,
        /// The version whose private half is given.
        pub version: Option<i64>,
    }
}

#[derive(Serialize)]
struct WrappingKey<'a> {
    public_key: &'a str,
}

fn stop(text: impl Into<String>) -> Failure {
    Failure::listed(Kind::Internal, text)
}

/// What a caller hands in.
enum Handed {
    /// Unwrapped material of a type, as it is stored, or why it is none.
    Private(KeyType, Result<Half, String>),
    /// A public key in PEM.
    Public(String),
}

/// Material as it is stored, and its public half.
type Half = (SecretBytes, Option<String>);

impl Transit {
    /// The key that wraps imports, made on first use.
    async fn wrapping_key(&self) -> Result<Arc<Key>, Failure> {
        match self.store.key(WRAPPING_KEY) {
            Ok(Some(key)) => return Ok(key),
            Ok(None) => {}
            // No path of the API reaches it, and nothing is kept under it: clients ask for it before they wrap.
            Err(failure) if is_damaged(&failure) => drop(self.delete_damaged(WRAPPING_KEY).await?),
            Err(failure) => return Err(failure),
        }
        let new = NewKey::plain(KeyType::Rsa4096);
        let level = self.wrapping_level(&new)?;
        Ok(self.create_at(WRAPPING_KEY, &new, level).await?.0)
    }

    /// The best level that the HSM's self-test allows. What the mount requires of its keys is for those that clients use.
    fn wrapping_level(&self, new: &NewKey) -> Result<Level, Failure> {
        if !self.store.protection.hsm.as_ref().is_some_and(|hsm| hsm.in_use()) {
            return Ok(Level::Software);
        }
        for level in [Level::Hsm, Level::HsmOnly] {
            if self.store.protection.objection(level, &self.mount.zone, new.demands())?.is_none() {
                return Ok(level);
            }
        }
        Ok(Level::Software)
    }

    /// Opens a wrapped key.
    async fn unwrap_import(&self, ciphertext: &[u8], hash: HashAlgorithm) -> Result<SecretBytes, Failure> {
        let parts = ciphertext.split_at_checked(RSA_BLOCK).filter(|(_, rest)| !rest.is_empty());
        let (wrapped, rest) = parts.ok_or_else(|| stop("provided ciphertext is too short"))?;
        let key = self.wrapping_key().await?;
        let loaded = self.store.load(&self.mount.zone, &key, key.record.latest_version).await?;
        let loaded = loaded.ok_or_else(|| Failure::internal("the wrapping key is missing"))?;
        let ephemeral = match &loaded.key {
            LoadedKey::Private(PrivateKey::Rsa(private)) => rsa::decrypt_oaep(private, wrapped, hash).map_err(|_| BadPadding),
            _ => self.decrypt_one_in_hsm(&loaded, wrapped, Encryption::Oaep, hash).await?,
        };
        let ephemeral = ephemeral.map_err(|error| stop(error.to_string()))?;
        if ephemeral.len() != 32 {
            return Err(stop("expected ephemeral AES key to be 256-bit"));
        }
        let kwp = KwpAes256::new_from_slice(ephemeral.expose()).map_err(|_| stop("expected ephemeral AES key to be 256-bit"))?;
        let mut room = Zeroizing::new(vec![0; rest.len()]);
        let opened = kwp.unwrap_key(rest, &mut room).map_err(|_| stop("unwrapping the key failed: integrity check failed"))?;
        Ok(SecretBytes::new(opened.to_vec()))
    }

    async fn handed(
        &self,
        call: &Call<'_>,
        kind: KeyType,
        ciphertext: &str,
        public_key: &str,
        hash: Option<&str>,
    ) -> Result<Handed, Failure> {
        if call.body.member("ciphertext").is_none() {
            if !kind.is_asymmetric() {
                return Err(stop("provided type does not support public_key import"));
            }
            return Ok(Handed::Public(public_key.to_owned()));
        }
        let hash = oaep_hash(hash.unwrap_or("SHA256")).map_err(Failure::invalid)?;
        let ciphertext = b64::decode(ciphertext).map_err(|error| stop(error.to_string()))?;
        let material = self.unwrap_import(&ciphertext, hash).await?;
        let half = tokio::task::spawn_blocking(move || private_half(kind, &material)).await.map_err(Failure::internal)?;
        Ok(Handed::Private(kind, half))
    }

    fn given(&self, kind: KeyType, derived: bool, handed: &Handed) -> Result<Given, String> {
        let (key, public_key) = match handed {
            Handed::Public(_) if kind == KeyType::Ed25519 && derived => {
                return Err("unable to import only public key for derived Ed25519 key: imported key should not be an Ed25519 \
                            key pair but is instead an HKDF key"
                    .to_owned());
            }
            Handed::Public(text) => (SecretBytes::default(), Some(public_half(kind, text)?)),
            Handed::Private(of, half) => half_of(kind, *of, half)?,
        };
        let hmac_key = if kind == KeyType::Hmac { key.duplicate() } else { SecretBytes::random(32) };
        Ok(Given {
            created: nanos(self.clock.now()),
            material: Material { key, hmac_key },
            public_key,
            convergent_version: 0,
            certificate_chain: Vec::new(),
            encryptions: 0,
        })
    }
}

/// The hash of RSA-OAEP by its name in the API.
pub fn oaep_hash(name: &str) -> Result<HashAlgorithm, String> {
    Ok(match name.to_uppercase().as_str() {
        "SHA1" => HashAlgorithm::Sha1,
        "SHA224" => HashAlgorithm::Sha2_224,
        "SHA256" => HashAlgorithm::Sha2_256,
        "SHA384" => HashAlgorithm::Sha2_384,
        "SHA512" => HashAlgorithm::Sha2_512,
        _ => return Err(format!("unknown hash function: {name}")),
    })
}

/// A public key in PEM as it is stored.
pub(super) fn public_half(kind: KeyType, text: &str) -> Result<String, String> {
    let der = pem_contents(text).ok_or("error parsing public key: not in PEM format")?;
    let key = PublicKey::from_der(kind, &der).and_then(PublicKey::sound).and_then(|key| key.to_text());
    key.map_err(|error| error.to_string())
}

/// The bytes of the first PEM block.
pub fn pem_contents(text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let body: String = body.split_whitespace().collect();
    STANDARD.decode(body).ok()
}

/// What was handed in as a key of type `of`, for a key of type `kind`.
fn half_of(kind: KeyType, of: KeyType, half: &Result<Half, String>) -> Result<Half, String> {
    if of != kind {
        return Err("the key became one of another type meanwhile".to_owned());
    }
    half.as_ref().map(|(key, public)| (key.duplicate(), public.clone())).map_err(Clone::clone)
}

/// Reads material. Takes long for RSA: not for the threads that serve requests.
pub(super) fn private_half(kind: KeyType, material: &SecretBytes) -> Result<Half, String> {
    let size = || Err(format!("invalid key size {} bytes for key type {}", material.len(), kind.name()));
    if kind.is_cipher() || kind == KeyType::Hmac {
        let fits =
            if kind == KeyType::Hmac { HMAC_KEY_BYTES.contains(&material.len()) } else { material.len() == kind.key_len() };
        return if fits { Ok((material.duplicate(), None)) } else { size() };
    }
    let parsed = |key: PrivateKey| -> Result<_, AsymError> { Ok((key.to_stored()?, Some(key.public()?.to_text()?))) };
    PrivateKey::from_pkcs8(kind, material.expose())
        .and_then(PrivateKey::sound)
        .and_then(parsed)
        .map_err(|error| error.to_string())
}

/// GET `wrapping_key`.
pub async fn wrapping_key(engine: &Transit, _: &Call<'_>) -> Result<Reply, Failure> {
    let key = engine.wrapping_key().await?;
    let line = key.record.line(key.record.latest_version);
    let public_key = line.and_then(|line| line.public_key.as_deref());
    Reply::data(&WrappingKey { public_key: public_key.ok_or_else(|| Failure::internal("the wrapping key has no public half"))? })
}

/// POST `keys/:name/import`.
pub async fn import(engine: &Transit, call: &Call<'_>) -> Result<Reply, Failure> {
    let input = call.input();
    let params = ImportParams::decode(&input)?;
    if call.body.member("convergent_encryption").is_some() {
        return Err(stop("import cannot be used on keys with convergent encryption enabled"));
    }
    let period = params.auto_rotate_period.0;
    if period > 0 && !params.allow_rotation {
        return Err(stop("allow_rotation must be set to true if auto-rotation is enabled"));
    }
    let named = params.kind.as_deref().unwrap_or("aes256-gcm96");
    let kind = KeyType::named(&named.to_lowercase()).ok_or_else(|| Failure::invalid(format!("unknown key type: {named}")))?;
    if params.derived && !kind.supports_derivation() {
        let name = kind.name();
        return Err(stop(format!("key derivation and convergent encryption not supported for keys of type {name}")));
    }
    let asked = level_param(params.protection_level.as_deref())?;
    if engine.store.key(&params.name)?.is_some() {
        return Err(exists());
    }
    let hash = params.hash_function.as_deref();
    let handed = engine.handed(call, kind, &params.ciphertext, &params.public_key, hash).await?;
    let failed = |error: String| stop(format!("error importing key: {error}"));
    let given = engine.given(kind, params.derived, &handed).map_err(failed)?;
    let mut record = KeyRecord::empty(kind, Level::Software);
    record.kdf = params.derived.then_some(Kdf::HkdfSha256);
    record.exportable = params.exportable;
    record.allow_plaintext_backup = params.allow_plaintext_backup;
    record.auto_rotate_period = period;
    record.imported = true;
    record.allow_imported_key_rotation = params.allow_rotation;
    record.latest_version = 1;
    record.key_size = size_of(&given, kind);
    record.level = engine.level_of_given(asked, &record)?;
    let name = params.name.as_str();
    let (record, given) = (&record, &given);
    let (key, ()) = engine
        .change(name, move |existing| {
            Box::pin(async move {
                if existing.is_some() {
                    return Err(exists());
                }
                let mut record = record.clone();
                let txn = engine.add_given(&mut record, 1, given, Txn::new()).await?;
                let txn = if period > 0 { txn.put(auto_path(name), Vec::new()) } else { txn };
                Ok(Decision::Write(Change { record: Some(record), txn, outcome: () }))
            })
        })
        .await?;
    if let Some(key) = key {
        engine.reschedule(&key);
    }
    Ok(Reply::empty())
}

fn exists() -> Failure {
    stop("the import path cannot be used with an existing key; use import-version to rotate an existing imported key")
}

fn size_of(given: &Given, kind: KeyType) -> u32 {
    if kind == KeyType::Hmac { u32::try_from(given.material.key.len()).unwrap_or(0) } else { 0 }
}

/// POST `keys/:name/import_version`.
pub async fn import_version(engine: &Transit, call: &Call<'_>) -> Result<Reply, Failure> {
    let input = call.input();
    let params = VersionParams::decode(&input)?;
    let name = params.name.as_str();
    let missing = || stop(format!("no key found with name {name}; to import a new key, use the import/ endpoint"));
    let key = engine.store.key(name)?.ok_or_else(missing)?;
    let record = &key.record;
    if !record.imported {
        return Err(stop("the import_version endpoint can only be used with an imported key"));
    }
    if record.convergent {
        return Err(stop("import_version cannot be used on keys with convergent encryption enabled"));
    }
    let hash = params.hash_function.as_deref();
    let handed = engine.handed(call, record.kind, &params.ciphertext, &params.public_key, hash).await?;
    let handed = &handed;
    let version = params.version;
    let (key, ()) = engine
        .change(name, move |existing| {
            Box::pin(async move {
                let Some(existing) = existing.filter(|existing| existing.record.imported) else {
                    return Err(stop("the import_version endpoint can only be used with an imported key"));
                };
                engine.with_version(&existing, handed, version).await
            })
        })
        .await?;
    if let Some(key) = key {
        engine.reschedule(&key);
    }
    Ok(Reply::empty())
}

impl Transit {
    /// The key with the version that was handed in.
    async fn with_version(&self, key: &Key, handed: &Handed, version: Option<i64>) -> Result<Decision<()>, Failure> {
        let mut record = key.record.clone();
        if record.soft_deleted {
            return Err(stop(SOFT_DELETED));
        }
        self.check_required(&key.name, &record)?;
        if let Some(version) = version {
            let txn = self.complete(&key.name, &mut record, version, handed).await?;
            return Ok(Decision::Write(Change { record: Some(record), txn, outcome: () }));
        }
        // A private key that fits the latest public one completes it; any other becomes a version of its own.
        if matches!(handed, Handed::Private(..))
            && record.line(record.latest_version).is_some_and(|line| line.public_only)
            && let Ok(txn) = self.complete(&key.name, &mut record, i64::from(key.record.latest_version), handed).await
        {
            return Ok(Decision::Write(Change { record: Some(record), txn, outcome: () }));
        }
        let given = self.given(record.kind, record.derived(), handed).map_err(stop)?;
        let version = self.store.next_version(&record)?;
        record.latest_version = version;
        record.key_size = size_of(&given, record.kind);
        let txn = self.add_given(&mut record, version, &given, Txn::new()).await?;
        Ok(Decision::Write(Change { record: Some(record), txn, outcome: () }))
    }

    /// Puts a private key beside the public one of a version.
    async fn complete(&self, name: &str, record: &mut KeyRecord, version: i64, handed: &Handed) -> Result<Txn, Failure> {
        let shown = u32::try_from(version).ok().filter(|version| *version >= record.min_decryption_version);
        let line = shown.and_then(|version| record.line(version)).cloned();
        let line = line.ok_or_else(|| stop("no such key version"))?;
        if !record.kind.is_asymmetric() {
            return Err(stop("provided type does not support importing key versions"));
        }
        let (of, half) = match handed {
            Handed::Public(_) if line.public_only => {
                return Err(stop("cannot add a public key to a key version that already has a public key set"));
            }
            _ if !line.public_only => return Err(stop("private key imported, key version cannot be updated")),
            Handed::Public(_) => return Err(stop("no private key was given")),
            Handed::Private(of, half) => (*of, half),
        };
        let (key, public_key) = half_of(record.kind, of, half).map_err(stop)?;
        if public_key != line.public_key {
            return Err(stop("cannot import key, key pair does not match"));
        }
        let (stored, entry) = self.store.version_record(name, record.uid, line.version)?;
        let hmac_key = self.vault().open(VersionId { uid: record.uid, version: line.version }, &stored).await?.hmac_key;
        let given = Given {
            created: line.created,
            material: Material { key, hmac_key },
            public_key,
            convergent_version: stored.convergent_version,
            certificate_chain: line.certificate_chain.clone(),
            encryptions: 0,
        };
        let (changed, level) = self.store_given(record, line.version, &given).await?;
        let id = VersionId { uid: record.uid, version: line.version };
        if let Some(place) = record.versions.iter_mut().find(|place| place.version == line.version) {
            let moved_into_hsm = self.moved(level, &given);
            *place = VersionLine { public_only: false, revision: line.revision + 1, level, moved_into_hsm, ..line };
        }
        self.vault().put(id, changed, Entry::unchanged(Some(&entry)), Txn::new()).await
    }
}
