//! `encrypt/:name`.

use std::{borrow::Cow, io::Write};

use super::{
    Transit,
    alg::{KeyType, rsa::Encryption},
    b64,
    batch::{Batch, Item, Items, Needs, Results, Tally, push_text},
    ciphertext,
    keys::{check_named, level_param},
    lifecycle::NewKey,
    ops::{Encrypted, ItemError, ToEncrypt},
    record::KeysConfig,
    store::Key,
    usage::Wear,
};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply, request::Operation},
    params,
    secret::SecretBytes,
    wire::field::Params,
};

params! {
    /// Parameters of `encrypt`.
    pub struct EncryptParams {
        /// Name of the key.
        pub name: String,
        /// Plaintext in base64.
        pub plaintext: Option<String>,
        /// Context for derived keys, in base64.
        pub context: String,
        /// Nonce in base64, for convergent keys of version 1 only.
        pub nonce: String,
        /// Associated data in base64, authenticated but not part of the ciphertext.
        pub associated_data: String,
        /// Version of the key to use; 0 is the latest.
        pub key_version: i64,
        /// Type of the key, where it has to be made.
        pub kind as "type": Option<String>,
        /// Whether a key that has to be made is convergent.
        pub convergent_encryption: bool,
        /// Status of a batch of which only a part succeeded.
        pub partial_failure_response_code: Option<i64>,
        /// How RSA keys pad: `oaep` (the default) or `pkcs1v15`.
        pub padding_scheme: String,
        /// Items to encrypt, each with the parameters above and a `reference`.
        pub batch_input: Batch,
        /// Protection level of a key that has to be made.
        pub protection_level: Option<String>,
    }
}

/// Whether the key exists: encrypting with a new name needs the right to create.
pub async fn exists(engine: &Transit, call: &Call<'_>) -> Result<bool, Failure> {
    Ok(engine.store.key(call.capture("name"))?.is_some())
}

/// Contexts must be set in all items or in none.
#[derive(Default)]
pub struct Contexts {
    set: bool,
    missing: bool,
}

impl Contexts {
    /// Looks at an item.
    pub fn see(&mut self, item: &Item<'_>) {
        if item.context.is_empty() {
            self.missing = true;
        } else {
            self.set = true;
        }
    }

    /// Tells whether they are set.
    pub fn judge(&self) -> Result<bool, Failure> {
        if self.set && self.missing {
            return Err(Failure::invalid("context should be set either in all the request blocks or in none"));
        }
        Ok(self.set)
    }
}

/// The batch of a request or the one item that it is, which `single` makes; contexts are judged.
pub async fn items_of<'a>(
    engine: &'a Transit,
    call: &'a Call<'_>,
    needs: Needs,
    single: impl FnOnce() -> Result<Item<'a>, Failure>,
) -> Result<(Items<'a, Item<'a>>, bool), Failure> {
    let mut contexts = Contexts::default();
    let items = match Items::of_call(engine, call, needs, |item| contexts.see(item)).await? {
        Some(items) => items,
        None => {
            let item = single()?;
            contexts.see(&item);
            Items::one(item)
        }
    };
    Ok((items, contexts.judge()?))
}

/// Base64 of a caller; the error is the item's.
pub fn decoded(text: &str) -> Result<Vec<u8>, ItemError> {
    b64::decode(text).map_err(|error| ItemError::user(error.to_string()))
}

/// A padding scheme parameter.
pub fn padding_of(field: &str, text: &str) -> Result<Encryption, Failure> {
    Encryption::parse(text).ok_or_else(|| Failure::invalid(format!("invalid {field} {text:?}: must be oaep or pkcs1v15")))
}

/// The handler.
pub async fn encrypt(engine: &Transit, call: &Call<'_>) -> Result<Reply, Failure> {
    let input = call.input();
    let params = EncryptParams::decode(&input)?;
    let (mut items, derived) = items_of(engine, call, Needs::Plaintext, || {
        Ok(Item {
            plaintext: Cow::Borrowed(
                params.plaintext.as_deref().ok_or_else(|| Failure::invalid("missing plaintext to encrypt"))?,
            ),
            context: Cow::Borrowed(&params.context),
            nonce: Cow::Borrowed(&params.nonce),
            associated_data: Cow::Borrowed(&params.associated_data),
            key_version: params.key_version,
            ..Item::default()
        })
    })
    .await?;
    let (key, beforehand) = key_for(engine, call, &params, derived).await?;
    let padding = padding_of("padding_scheme", &params.padding_scheme)?;
    let (mut sealed, mut from) = (Sealed::of(&items), 0);
    items.work_in(Transit::ciphers_of(&key));
    loop {
        let window = items.window().await?;
        if window.is_empty() {
            break;
        }
        let texts = window.iter().map(|item| to_encrypt(item, padding)).collect();
        sealed.push(&window, engine.encrypt_all(&key, from, texts).await?)?;
        from += window.len();
    }
    let (mut reply, wear) = sealed.reply(|tally, data| tally.reply(data, params.partial_failure_response_code))?;
    if wear == Wear::Worn {
        reply.warnings.push(worn(&key));
    }
    if beforehand {
        reply
            .warnings
            .push("Attempted creation of the key during the encrypt operation, but it was created beforehand".to_owned());
    }
    reply.warnings.extend(input.notes(EncryptParams::FIELDS));
    Ok(reply)
}

/// The warning of a version near its bound.
pub fn worn(key: &Key) -> String {
    format!("the key {} is near its limit of 2^32 encryptions per version; rotate it soon", key.name)
}

fn to_encrypt<'a>(item: &'a Item<'_>, padding: Encryption) -> Result<ToEncrypt<'a>, ItemError> {
    let plaintext = SecretBytes::new(decoded(&item.plaintext)?);
    Ok(ToEncrypt {
        plaintext,
        version: item.key_version,
        context: Cow::Owned(decoded(&item.context)?),
        nonce: decoded(&item.nonce)?,
        associated_data: Cow::Borrowed(&item.associated_data),
        padding,
    })
}

/// The answer to encryptions: of one text, or of a batch.
pub struct Sealed {
    results: Option<Results>,
    single: Vec<u8>,
    tally: Tally,
    wear: Wear,
}

impl Sealed {
    /// To these items.
    pub fn of(items: &Items<'_, Item<'_>>) -> Self {
        let results = items.is_batch().then(|| Results::of(items.total()));
        Self { results, single: Vec::new(), tally: Tally::default(), wear: Wear::Fresh }
    }

    /// Appends what became of a window. The error of a request of one text is the request's.
    pub fn push(
        &mut self,
        items: &[Item<'_>],
        (results, wear): (Vec<Result<Encrypted, ItemError>>, Wear),
    ) -> Result<(), Failure> {
        if wear == Wear::Worn {
            self.wear = wear;
        }
        for (result, item) in results.into_iter().zip(items) {
            let Some(batch) = &mut self.results else {
                let encrypted = result.map_err(ItemError::into_failure)?;
                self.single.reserve(48 + encrypted.payload.len() * 4 / 3);
                self.single.push(b'{');
                push_encrypted(&encrypted, &mut self.single);
                self.single.push(b'}');
                continue;
            };
            let out = batch.next();
            out.push(b'{');
            match result {
                Ok(encrypted) => {
                    self.tally.good = true;
                    push_encrypted(&encrypted, out);
                }
                Err(error) => {
                    self.tally.count(&error);
                    out.extend_from_slice(b"\"error\":");
                    push_text(&error.text, out);
                }
            }
            out.extend_from_slice(b",\"reference\":");
            push_text(&item.reference, out);
            out.push(b'}');
        }
        Ok(())
    }

    /// The answer, whose status in the case of a batch `finish` decides, and whether a version is near its bound.
    pub fn reply(self, finish: impl FnOnce(Tally, Vec<u8>) -> Reply) -> Result<(Reply, Wear), Failure> {
        let reply = match self.results {
            Some(results) => finish(self.tally, results.finish()),
            None if self.single.is_empty() => return Err(Failure::internal("no text was processed")),
            None => Reply::raw_data(self.single),
        };
        Ok((reply, self.wear))
    }
}

fn push_encrypted(encrypted: &Encrypted, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\"ciphertext\":\"");
    ciphertext::push(encrypted.version, &encrypted.payload, out);
    // Writing to a vector cannot fail.
    let _ = write!(out, "\",\"key_version\":{}", encrypted.version);
}

/// The key to encrypt with, made where the request may create it. Tells whether creation was asked for in vain.
async fn key_for(
    engine: &Transit,
    call: &Call<'_>,
    params: &EncryptParams,
    derived: bool,
) -> Result<(std::sync::Arc<Key>, bool), Failure> {
    let name = params.name.as_str();
    let level = level_param(params.protection_level.as_deref())?;
    if call.operation != Operation::Create {
        let key = engine.existing(name, "encryption key not found")?;
        check_named(&key, name, level)?;
        return Ok((key, false));
    }
    if params.convergent_encryption && !derived {
        return Err(Failure::invalid("convergent encryption requires derivation to be enabled, so context is required"));
    }
    let named = params.kind.as_deref().unwrap_or("aes256-gcm96");
    let kind = match KeyType::named(named) {
        Some(kind) if kind.is_cipher() => kind,
        Some(kind) if kind.is_ecdsa() => {
            return Err(Failure::invalid(format!("key type {named} not supported for this operation")));
        }
        _ => return Err(Failure::invalid(format!("unknown key type {named}"))),
    };
    let config: KeysConfig = engine.setting(super::config::KEYS)?;
    if config.disable_upsert {
        return Ok((engine.existing(name, "encryption key not found")?, true));
    }
    let new = NewKey { derived, convergent: params.convergent_encryption, level, ..NewKey::plain(kind) };
    let (key, created) = engine.create(name, &new).await?;
    check_named(&key, name, level)?;
    Ok((key, !created))
}
