//! Encrypting and decrypting with a key: which version, which bytes, in this process or in the HSM.
//!
//! Errors of one text are values ([`ItemError`]): a batch goes on without it. Errors of the server (store, HSM) stop
//! the whole request.

use std::{borrow::Cow, sync::Arc};

use super::{
    Transit,
    alg::{
        KeyType,
        aead::{Cipher, TAG_LEN, hmac_sha256},
        asym::{PrivateKey, PublicKey},
        rsa::{self, Encryption},
        rsa_padding::BadPadding,
    },
    b64,
    ciphertext::Ciphertext,
    gate::Place,
    lifecycle::SOFT_DELETED,
    protect::Level,
    rsa_in_hsm::RsaItem,
    store::{Key, Loaded, LoadedKey},
    turn::Turn,
    usage::Wear,
};
use crate::{
    core::failure::{Failure, Kind},
    hsm::{AeadItem, HsmError, KeySource},
    secret::{SecretBytes, fill_random},
};

/// The text for uses of a derived key without a context.
pub const NO_CONTEXT: &str = "missing 'context' for key derivation; the key was created using a derived key, which means \
                          additional, per-request information must be included in order to perform operations with the key";
/// The text for versions below the oldest that decrypts.
pub const TOO_OLD: &str = "ciphertext or signature version is disallowed by policy (too old)";
const NOT_AUTHENTIC: &str = "cipher: message authentication failed";
const BAD_LENGTH: &str = "invalid ciphertext length";

/// Why one text could not be processed.
#[derive(Debug)]
pub struct ItemError {
    /// What the client reads.
    pub text: Cow<'static, str>,
    /// Whether the API counts it as a fault of the server (500).
    pub internal: bool,
    /// Whether it leaves the status of a batch alone.
    pub silent: bool,
}

impl ItemError {
    /// The caller's mistake.
    pub fn user(text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into(), internal: false, silent: false }
    }

    /// What the API answers with 500, although it is the caller's mistake.
    pub fn internal(text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into(), internal: true, silent: false }
    }

    /// The caller's mistake that, in a batch, leaves the status at 200.
    pub fn silent(text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into(), internal: false, silent: true }
    }

    /// The error as the answer to a request of one text.
    pub fn into_failure(self) -> Failure {
        if self.internal { Failure::listed(Kind::Internal, self.text) } else { Failure::invalid(self.text) }
    }
}

/// A text to encrypt.
pub struct ToEncrypt<'a> {
    /// The plaintext.
    pub plaintext: SecretBytes,
    /// The version asked for; 0 is the latest.
    pub version: i64,
    /// The decoded context, may be empty.
    pub context: Cow<'a, [u8]>,
    /// The decoded nonce, empty but for convergent keys of the first kind.
    pub nonce: Vec<u8>,
    /// Associated data in base64, may be empty.
    pub associated_data: Cow<'a, str>,
    /// How RSA pads it.
    pub padding: Encryption,
}

/// A text to decrypt.
pub struct ToDecrypt<'a> {
    /// The text form.
    pub ciphertext: Cow<'a, str>,
    /// As in [`ToEncrypt`].
    pub context: Cow<'a, [u8]>,
    /// As in [`ToEncrypt`].
    pub nonce: Vec<u8>,
    /// As in [`ToEncrypt`].
    pub associated_data: Cow<'a, str>,
    /// As in [`ToEncrypt`].
    pub padding: Encryption,
}

/// An encrypted text.
#[derive(Debug)]
pub struct Encrypted {
    /// The version used.
    pub version: u32,
    /// Nonce, ciphertext and tag.
    pub payload: Vec<u8>,
}

/// Versions opened for one request, so that each is looked up once.
#[derive(Default)]
pub struct Opened(Vec<(u32, Arc<Loaded>)>);

impl Opened {
    /// A version of the key, opened at most once.
    pub async fn version(&mut self, transit: &Transit, key: &Key, version: u32) -> Result<Option<Arc<Loaded>>, Failure> {
        if let Some((_, loaded)) = self.0.iter().find(|(opened, _)| *opened == version) {
            return Ok(Some(Arc::clone(loaded)));
        }
        let loaded = transit.store.load(&transit.mount.zone, key, version).await?;
        if let Some(loaded) = &loaded {
            self.0.push((version, Arc::clone(loaded)));
        }
        Ok(loaded)
    }
}

/// Random nonces for the texts of one request. A batch asks the operating system for many at a time; what is left goes with the
/// request, so that a machine that is copied or restored while it runs gives no nonce twice.
struct Nonces {
    /// Nonces that are still to be taken.
    expected: usize,
    pool: [u8; 24 * 32],
    left: usize,
}

impl Nonces {
    fn for_texts(count: usize) -> Self {
        Self { expected: count, pool: [0; 24 * 32], left: 0 }
    }

    /// Fills a nonce of at most 24 bytes.
    fn take(&mut self, nonce: &mut [u8]) {
        if self.left < nonce.len() {
            self.left = (self.expected.max(1) * nonce.len()).min(self.pool.len());
            fill_random(&mut self.pool[..self.left]);
        }
        self.expected = self.expected.saturating_sub(1);
        let from = self.left - nonce.len();
        nonce.copy_from_slice(&self.pool[from..self.left]);
        self.left = from;
    }
}

/// Texts that go to the HSM together: places in the request, and what to do.
struct HsmBatch {
    version: u32,
    loaded: Arc<Loaded>,
    places: Vec<usize>,
    items: Vec<AeadItem>,
}

fn join(batches: &mut Vec<HsmBatch>, version: u32, loaded: &Arc<Loaded>, place: usize, item: AeadItem) {
    match batches.iter_mut().find(|batch| batch.version == version) {
        Some(batch) => {
            batch.places.push(place);
            batch.items.push(item);
        }
        None => batches.push(HsmBatch { version, loaded: Arc::clone(loaded), places: vec![place], items: vec![item] }),
    }
}

/// The result for each text in its place; `None` while it is under way.
type Results<T> = Vec<Option<Result<T, ItemError>>>;

impl Transit {
    /// Encrypts texts that are not in error already; also tells whether a version is near its bound. `from` is the first one's
    /// place in the request.
    pub async fn encrypt_all(
        &self,
        key: &Key,
        from: usize,
        mut texts: Vec<Result<ToEncrypt<'_>, ItemError>>,
    ) -> Result<(Vec<Result<Encrypted, ItemError>>, Wear), Failure> {
        let mut wear = Wear::Fresh;
        let mut opened = Opened::default();
        let mut results: Results<Encrypted> = Vec::with_capacity(texts.len());
        let mut batches = Vec::new();
        let mut nonces = Nonces::for_texts(texts.len());
        self.count(key, &mut texts, &mut opened, &mut wear).await?;
        let mut turn = Turn::begin();
        for (place, text) in texts.into_iter().enumerate() {
            match &text {
                Ok(text) if key.record.kind.is_cipher() => turn.give_way_for(text.plaintext.len()).await,
                _ => turn.give_way().await,
            }
            let text = match text.and_then(|text| check_encrypt(key, from + place, text)) {
                Ok(text) => text,
                Err(error) => {
                    results.push(Some(Err(error)));
                    continue;
                }
            };
            let (text, version) = text;
            let loaded = opened.version(self, key, version).await?;
            let result = match loaded {
                None => Some(Err(ItemError::user("no such key version"))),
                Some(loaded) => match &loaded.key {
                    LoadedKey::Wrapped(_) | LoadedKey::Token(_) if key.record.kind.is_cipher() => {
                        match hsm_encrypt_item(text, &mut nonces) {
                            Err(error) => Some(Err(error)),
                            Ok(item) => {
                                join(&mut batches, version, &loaded, place, item);
                                None
                            }
                        }
                    }
                    _ => Some(seal(key, &loaded, version, &text, &mut nonces)),
                },
            };
            results.push(result);
        }
        for batch in batches {
            self.encrypt_in_hsm(batch, &mut results).await?;
        }
        Ok((finish(results), wear))
    }

    /// Counts the encryptions of a request before they happen. Texts for a version that is used up are in error from here on.
    async fn count(
        &self,
        key: &Key,
        texts: &mut [Result<ToEncrypt<'_>, ItemError>],
        opened: &mut Opened,
        wear: &mut Wear,
    ) -> Result<(), Failure> {
        if !key.record.is_counted() || key.record.soft_deleted {
            return Ok(());
        }
        let mut counts: Vec<(u32, u64)> = Vec::new();
        for text in texts.iter().flatten() {
            let Ok(version) = pick_version(key, text.version) else { continue };
            match counts.iter_mut().find(|(counted, _)| *counted == version) {
                Some((_, count)) => *count += 1,
                None => counts.push((version, 1)),
            }
        }
        for (version, count) in counts {
            let Some(loaded) = opened.version(self, key, version).await? else { continue };
            match loaded.usage.take(&self.store.view, &key.name, count).await? {
                // One derived key has many keys; how often each was used is not known, so only the warning counts.
                Wear::Used if !key.record.derived() => {
                    self.note_used_up(key, version, &loaded.usage);
                    let of_it = |text: &&mut Result<ToEncrypt<'_>, _>| {
                        text.as_ref().is_ok_and(|text| pick_version(key, text.version).is_ok_and(|picked| picked == version))
                    };
                    texts.iter_mut().filter(of_it).for_each(|text| *text = Err(used_up(version)));
                }
                Wear::Used | Wear::Worn => {
                    *wear = Wear::Worn;
                    self.note_worn(key, version, &loaded.usage);
                }
                Wear::Fresh => {}
            }
        }
        Ok(())
    }

    async fn encrypt_in_hsm(&self, batch: HsmBatch, results: &mut Results<Encrypted>) -> Result<(), Failure> {
        let limit = self.store.protection.facts()?.map_or(usize::MAX, |facts| facts.max_plaintext);
        let mut places = Vec::with_capacity(batch.places.len());
        let mut items = Vec::with_capacity(batch.items.len());
        for (place, item) in batch.places.into_iter().zip(batch.items) {
            if item.input.len() > limit {
                set(results, place, Err(over_limit(item.input.len(), limit)));
            } else {
                places.push(place);
                items.push(item);
            }
        }
        if items.is_empty() {
            return Ok(());
        }
        let ivs: Vec<[u8; 12]> = items.iter().map(|item| item.iv).collect();
        let sealed = self.store.protection.hsm()?.encrypt(source(&batch.loaded)?, items).await?;
        if sealed.len() != ivs.len() {
            return Err(Failure::internal("the HSM answered another number of texts than it was given"));
        }
        for ((place, iv), sealed) in places.into_iter().zip(ivs).zip(sealed) {
            let mut payload = Vec::with_capacity(iv.len() + sealed.len());
            payload.extend_from_slice(&iv);
            payload.extend_from_slice(&sealed);
            set(results, place, Ok(Encrypted { version: batch.version, payload }));
        }
        Ok(())
    }

    /// Decrypts texts that are not in error already. `from` is the first one's place in the request.
    pub async fn decrypt_all(
        &self,
        key: &Key,
        from: usize,
        texts: Vec<Result<ToDecrypt<'_>, ItemError>>,
    ) -> Result<Vec<Result<SecretBytes, ItemError>>, Failure> {
        let mut opened = Opened::default();
        let mut results: Results<SecretBytes> = Vec::with_capacity(texts.len());
        let (mut batches, mut rsa_items) = (Vec::new(), Vec::new());
        let mut turn = Turn::begin();
        for (place, text) in texts.into_iter().enumerate() {
            match &text {
                Ok(text) if key.record.kind.is_cipher() => turn.give_way_for(text.ciphertext.len()).await,
                _ => turn.give_way().await,
            }
            let checked =
                text.and_then(|text| check_decrypt(key, from + place, &text).map(|(version, sealed)| (text, version, sealed)));
            let (text, version, sealed) = match checked {
                Ok(checked) => checked,
                Err(error) => {
                    results.push(Some(Err(error)));
                    continue;
                }
            };
            let result = match opened.version(self, key, version).await? {
                None => Some(Err(ItemError::user("no such key version"))),
                Some(loaded) => match &loaded.key {
                    LoadedKey::Wrapped(_) | LoadedKey::Token(_) if key.record.kind.rsa_bits().is_some() => {
                        rsa_items.push(RsaItem { place, loaded, sealed, padding: text.padding });
                        None
                    }
                    LoadedKey::Wrapped(_) | LoadedKey::Token(_) => match hsm_decrypt_item(&text, &sealed) {
                        Err(error) => Some(Err(error)),
                        Ok(item) => {
                            join(&mut batches, version, &loaded, place, item);
                            None
                        }
                    },
                    _ => Some(open(key, &loaded, &text, &sealed)),
                },
            };
            results.push(result);
        }
        for batch in batches {
            self.decrypt_in_hsm(batch, &mut results).await?;
        }
        for (place, opened) in self.decrypt_rsa_in_hsm(rsa_items).await? {
            set(&mut results, place, opened.map_err(|error| not_decrypted(&error)));
        }
        Ok(finish(results))
    }

    async fn decrypt_in_hsm(&self, batch: HsmBatch, results: &mut Results<SecretBytes>) -> Result<(), Failure> {
        let opened = self.store.protection.hsm()?.decrypt(source(&batch.loaded)?, batch.items).await?;
        if opened.len() != batch.places.len() {
            return Err(Failure::internal("the HSM answered another number of texts than it was given"));
        }
        for (place, opened) in batch.places.into_iter().zip(opened) {
            match opened {
                Ok(plaintext) => set(results, place, Ok(plaintext)),
                Err(HsmError::BadInput(_)) => set(results, place, Err(ItemError::user(NOT_AUTHENTIC))),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Where a batch is encrypted. RSA needs the public half alone for that.
    pub fn ciphers_of(key: &Key) -> Place {
        match key.record.kind.is_cipher() && Self::level_in_use(key) != Level::Software {
            true => Place::Hsm,
            false => Place::Here,
        }
    }

    /// Where a batch is decrypted, whose items may be of any version.
    pub fn private_of(key: &Key) -> Place {
        match key.record.versions.iter().any(|line| line.level != Level::Software) {
            true => Place::Hsm,
            false => Place::Here,
        }
    }

    /// The level of the version that encrypts now.
    pub fn level_in_use(key: &Key) -> Level {
        key.record.line(key.record.latest_version).map_or(key.record.level, |line| line.level)
    }
}

/// Where the HSM finds the key of a version.
pub fn source(loaded: &Loaded) -> Result<KeySource<'_>, Failure> {
    match &loaded.key {
        LoadedKey::Wrapped(wrapped) => Ok(KeySource::Wrapped(wrapped)),
        LoadedKey::Token(id) => Ok(KeySource::Token(*id)),
        _ => Err(Failure::internal("the key is not in the HSM")),
    }
}

fn set<T>(results: &mut Results<T>, place: usize, result: Result<T, ItemError>) {
    if let Some(slot) = results.get_mut(place) {
        *slot = Some(result);
    }
}

fn finish<T>(results: Results<T>) -> Vec<Result<T, ItemError>> {
    let missing = || Err(ItemError::internal("the text was not processed"));
    results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
}

/// An RSA ciphertext that does not decrypt, whatever is wrong with it.
fn not_decrypted(error: &BadPadding) -> ItemError {
    ItemError::internal(format!("failed to RSA decrypt the ciphertext: {error}"))
}

fn over_limit(len: usize, limit: usize) -> ItemError {
    ItemError::user(format!("the plaintext has {len} bytes; the HSM takes at most {limit} bytes in one operation"))
}

fn used_up(version: u32) -> ItemError {
    ItemError::user(format!("version {version} of this key has reached its limit of 2^32 encryptions; rotate the key"))
}

/// The version to encrypt with.
fn pick_version(key: &Key, asked: i64) -> Result<u32, ItemError> {
    let record = &key.record;
    if asked == 0 {
        return Ok(record.latest_version);
    }
    let refuse = |text: &'static str| Err(ItemError::user(text));
    match u32::try_from(asked) {
        Err(_) if asked < 0 => refuse("requested version for encryption is negative"),
        Ok(version) if version <= record.latest_version => {
            if version < record.min_encryption_version {
                return refuse("requested version for encryption is less than the minimum encryption key version");
            }
            // Numbers between two versions were given before a restore and are lost.
            if version < record.min_decryption_version || record.line(version).is_none() {
                return refuse("no such key version");
            }
            Ok(version)
        }
        _ => refuse("requested version for encryption is higher than the latest key version"),
    }
}

fn check_encrypt<'a>(key: &Key, place: usize, text: ToEncrypt<'a>) -> Result<(ToEncrypt<'a>, u32), ItemError> {
    if key.record.soft_deleted {
        return Err(ItemError::user(SOFT_DELETED));
    }
    let kind = key.record.kind;
    check_associated(kind, place, &text.associated_data)?;
    if !kind.supports_encryption() {
        return Err(ItemError::user(format!("message encryption not supported for key type {}", kind.name())));
    }
    let version = pick_version(key, text.version)?;
    if key.record.derived() && text.context.is_empty() {
        return Err(ItemError::user(NO_CONTEXT));
    }
    if !key.record.convergent && !text.nonce.is_empty() {
        return Err(ItemError::user("nonce provided when not allowed"));
    }
    Ok((text, version))
}

/// The version that a ciphertext names, and its payload.
fn check_decrypt(key: &Key, place: usize, text: &ToDecrypt<'_>) -> Result<(u32, Vec<u8>), ItemError> {
    let record = &key.record;
    if record.soft_deleted {
        return Err(ItemError::user(SOFT_DELETED));
    }
    check_associated(record.kind, place, &text.associated_data)?;
    if !record.kind.supports_encryption() {
        return Err(ItemError::user(format!("message decryption not supported for key type {}", record.kind.name())));
    }
    let parsed = Ciphertext::parse(&text.ciphertext).map_err(|error| ItemError::user(error.to_string()))?;
    if parsed.version > i64::from(record.latest_version) {
        return Err(ItemError::user("invalid ciphertext: version is too new"));
    }
    let version = u32::try_from(parsed.version).unwrap_or(0);
    if version < record.min_decryption_version {
        return Err(ItemError::user(TOO_OLD));
    }
    let sealed = b64::decode(parsed.payload).map_err(|_| ItemError::user("invalid ciphertext: could not decode base64"))?;
    if record.derived() && text.context.is_empty() {
        return Err(ItemError::user(NO_CONTEXT));
    }
    Ok((version, sealed))
}

/// Only ciphers have associated data.
fn check_associated(kind: KeyType, place: usize, data: &str) -> Result<(), ItemError> {
    if data.is_empty() || kind.is_cipher() {
        return Ok(());
    }
    let name = kind.name();
    Err(ItemError::silent(format!("'[{place}].associated_data' provided for non-AEAD cipher suite {name}")))
}

fn associated(data: &str) -> Result<Vec<u8>, ItemError> {
    b64::decode(data)
        .map_err(|error| ItemError::internal(format!("unable to get associated_data/additional_data from factory[0]: {error}")))
}

/// A cipher for one use: that of the version, or one derived from the context.
enum InUse<'a> {
    Shared(&'a Cipher),
    Own(Cipher),
}

impl InUse<'_> {
    fn cipher(&self) -> &Cipher {
        match self {
            InUse::Shared(cipher) => cipher,
            InUse::Own(cipher) => cipher,
        }
    }
}

/// The cipher of a version for a context, and the key that convergent nonces come from.
fn cipher_for<'a>(kind: KeyType, loaded: &'a Loaded, context: &[u8]) -> Result<(InUse<'a>, SecretBytes), ItemError> {
    let underivable = || ItemError::internal("could not derive key, length too small");
    match &loaded.key {
        LoadedKey::Cipher(cipher) => Ok((InUse::Shared(cipher), SecretBytes::default())),
        LoadedKey::Derived(kdf, secret) => {
            let mac_len = if loaded.convergent_version > 2 { 32 } else { 0 };
            let derived = kdf.derive(secret.expose(), context, kind.key_len() + mac_len).ok_or_else(underivable)?;
            let (key, mac) = derived.expose().split_at_checked(kind.key_len()).ok_or_else(underivable)?;
            let cipher = Cipher::new(kind, key).ok_or_else(underivable)?;
            Ok((InUse::Own(cipher), SecretBytes::new(mac.to_vec())))
        }
        _ => Err(ItemError::internal("the key is not a cipher in software")),
    }
}

fn seal(key: &Key, loaded: &Loaded, version: u32, text: &ToEncrypt<'_>, nonces: &mut Nonces) -> Result<Encrypted, ItemError> {
    let kind = key.record.kind;
    if let Some(PublicKey::Rsa(public)) = &loaded.public {
        let sealed = rsa::encrypt(public, text.plaintext.expose(), text.padding);
        let failed = |error| ItemError::internal(format!("failed to RSA encrypt the plaintext: {error}"));
        return Ok(Encrypted { version, payload: sealed.map_err(failed)? });
    }
    if loaded.convergent_version != 1 && !text.nonce.is_empty() {
        return Err(ItemError::user("nonce provided when not allowed"));
    }
    let (cipher, mac) = cipher_for(kind, loaded, &text.context)?;
    let aad = associated(&text.associated_data)?;
    let plaintext = text.plaintext.expose();
    let mut room = [0; 24];
    let nonce = room.get_mut(..kind.nonce_len()).unwrap_or_default();
    match loaded.convergent_version {
        0 => nonces.take(nonce),
        1 => {
            if text.nonce.len() != nonce.len() {
                return Err(ItemError::user(format!(
                    "base64-decoded nonce must be {} bytes long when using convergent encryption with this key",
                    nonce.len()
                )));
            }
            nonce.copy_from_slice(&text.nonce);
        }
        convergent => {
            let mac_key = if convergent == 2 { &text.context } else { mac.expose() };
            let sum = hmac_sha256(mac_key, plaintext);
            nonce.iter_mut().zip(sum).for_each(|(to, from)| *to = from);
        }
    }
    let sealed = cipher.cipher().seal(nonce, &aad, plaintext);
    let mut payload = sealed.ok_or_else(|| ItemError::user("the plaintext is too long"))?;
    if loaded.convergent_version == 1 {
        // The caller keeps the nonce.
        payload.drain(..nonce.len());
    }
    Ok(Encrypted { version, payload })
}

fn open(key: &Key, loaded: &Loaded, text: &ToDecrypt<'_>, sealed: &[u8]) -> Result<SecretBytes, ItemError> {
    let kind = key.record.kind;
    if kind.rsa_bits().is_some() {
        let LoadedKey::Private(PrivateKey::Rsa(private)) = &loaded.key else {
            return Err(ItemError::internal("cannot decrypt ciphertext, key version does not have a private counterpart"));
        };
        // The library's reason would tell which part of the padding is wrong.
        return rsa::decrypt(private, sealed, text.padding).map_err(|_| not_decrypted(&BadPadding));
    }
    let (cipher, _) = cipher_for(kind, loaded, &text.context)?;
    let aad = associated(&text.associated_data)?;
    let bad_length = || ItemError::user(BAD_LENGTH);
    if loaded.convergent_version == 1 && text.nonce.is_empty() {
        return Err(ItemError::user("invalid convergent nonce supplied"));
    }
    let (nonce, rest) = sealed.split_at_checked(kind.nonce_len()).ok_or_else(bad_length)?;
    // A caller who chose the nonce keeps it; it is not in the ciphertext.
    let (nonce, sealed) = if loaded.convergent_version == 1 { (text.nonce.as_slice(), sealed) } else { (nonce, rest) };
    if nonce.len() != kind.nonce_len() {
        return Err(ItemError::user("invalid nonce: a convergent key of version 1 needs the nonce of the encryption"));
    }
    cipher.cipher().open(nonce, &aad, sealed).ok_or_else(|| ItemError::user(NOT_AUTHENTIC))
}

fn hsm_encrypt_item(text: ToEncrypt<'_>, nonces: &mut Nonces) -> Result<AeadItem, ItemError> {
    let mut iv = [0; 12];
    nonces.take(&mut iv);
    Ok(AeadItem { iv, aad: associated(&text.associated_data)?, input: text.plaintext })
}

fn hsm_decrypt_item(text: &ToDecrypt<'_>, sealed: &[u8]) -> Result<AeadItem, ItemError> {
    let aad = associated(&text.associated_data)?;
    let Some((iv, rest)) = sealed.split_first_chunk::<12>() else { return Err(ItemError::user(BAD_LENGTH)) };
    if rest.len() < TAG_LEN {
        return Err(ItemError::user(NOT_AUTHENTIC));
    }
    Ok(AeadItem { iv: *iv, aad, input: SecretBytes::new(rest.to_vec()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_nonce_of_a_request_is_given_twice() {
        for len in [12, 24] {
            let mut nonces = Nonces::for_texts(3);
            let mut seen = std::collections::HashSet::new();
            for _ in 0..200 {
                let mut nonce = vec![0; len];
                nonces.take(&mut nonce);
                assert!(seen.insert(nonce));
            }
        }
    }
}
