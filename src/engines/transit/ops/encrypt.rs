//! Encrypting the texts of a request: what may be encrypted, with which version, and how often a version has been used.

use std::borrow::Cow;

use super::{
    ItemError, NO_CONTEXT, Opened, Results, check_associated, finish,
    in_hsm::{hsm_encrypt_item, join},
    in_process::seal,
    nonces::Nonces,
};
use crate::{
    core::failure::Failure,
    engines::transit::{
        Transit,
        alg::rsa::Encryption,
        gate::Place,
        lifecycle::SOFT_DELETED,
        protect::Level,
        store::{Key, LoadedKey},
        turn::Turn,
        usage::Wear,
    },
    secret::SecretBytes,
};

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

/// An encrypted text.
#[derive(Debug)]
pub struct Encrypted {
    /// The version used.
    pub version: u32,
    /// Nonce, ciphertext and tag.
    pub payload: Vec<u8>,
}

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

    /// Where a batch is encrypted. RSA needs the public half alone for that.
    pub fn ciphers_of(key: &Key) -> Place {
        match key.record.kind.is_cipher() && Self::level_in_use(key) != Level::Software {
            true => Place::Hsm,
            false => Place::Here,
        }
    }

    /// The level of the version that encrypts now.
    pub fn level_in_use(key: &Key) -> Level {
        key.record.line(key.record.latest_version).map_or(key.record.level, |line| line.level)
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

fn used_up(version: u32) -> ItemError {
    ItemError::user(format!("version {version} of this key has reached its limit of 2^32 encryptions; rotate the key"))
}
