//! `encrypt/:name`.

use std::{borrow::Cow, io::Write};

use super::{
    Transit,
    alg::{KeyType, rsa::Encryption},
    b64,
    batch::{self, Batch, Item, Needs, Tally, push_text},
    ciphertext,
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

/// The batch of a request, if it is one.
pub fn batch_of<'a>(call: &'a Call<'_>, needs: Needs) -> Result<Option<Vec<Item<'a>>>, Failure> {
    match call.body.member("batch_input").filter(|raw| raw.get() != "null") {
        Some(raw) => batch::parse(raw, needs).map(Some),
        None => Ok(None),
    }
}

/// Contexts must be set in all items or in none; tells which.
pub fn contexts_set(items: &[Item<'_>]) -> Result<bool, Failure> {
    let set = items.first().is_some_and(|item| !item.context.is_empty());
    if items.iter().any(|item| item.context.is_empty() == set) {
        return Err(Failure::invalid("context should be set either in all the request blocks or in none"));
    }
    Ok(set)
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
    let batch = batch_of(call, Needs::Plaintext)?;
    let is_batch = batch.is_some();
    let items = match batch {
        Some(items) => items,
        None => vec![Item {
            plaintext: Cow::Borrowed(
                params.plaintext.as_deref().ok_or_else(|| Failure::invalid("missing plaintext to encrypt"))?,
            ),
            context: Cow::Borrowed(&params.context),
            nonce: Cow::Borrowed(&params.nonce),
            associated_data: Cow::Borrowed(&params.associated_data),
            key_version: params.key_version,
            ..Item::default()
        }],
    };
    let derived = contexts_set(&items)?;
    let (key, beforehand) = key_for(engine, call, &params, derived).await?;
    let padding = padding_of("padding_scheme", &params.padding_scheme)?;
    let texts = items.iter().map(|item| to_encrypt(item, padding)).collect();
    let (results, wear) = engine.encrypt_all(&key, texts).await?;
    let mut reply = if is_batch {
        let references = items.iter().map(|item| item.reference.as_ref());
        batch_reply(results, references, |tally, data| tally.reply(data, params.partial_failure_response_code))
    } else {
        single_reply(results)?
    };
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

/// The answer to one text.
pub fn single_reply(results: Vec<Result<Encrypted, ItemError>>) -> Result<Reply, Failure> {
    let missing = || Failure::internal("no text was processed");
    let encrypted = results.into_iter().next().ok_or_else(missing)?.map_err(ItemError::into_failure)?;
    let mut out = Vec::with_capacity(48 + encrypted.payload.len() * 4 / 3);
    out.push(b'{');
    push_encrypted(&encrypted, &mut out);
    out.push(b'}');
    Ok(Reply::raw_data(out))
}

/// The answer to a batch of encryptions; `finish` gives it its status.
pub fn batch_reply<'a>(
    results: Vec<Result<Encrypted, ItemError>>,
    references: impl Iterator<Item = &'a str>,
    finish: impl FnOnce(Tally, Vec<u8>) -> Reply,
) -> Reply {
    let payloads: usize = results.iter().flatten().map(|encrypted| encrypted.payload.len()).sum();
    let mut tally = Tally::default();
    let mut out = Vec::with_capacity(32 + payloads * 4 / 3 + results.len() * 80);
    out.extend_from_slice(b"{\"batch_results\":[");
    for (at, (result, reference)) in results.into_iter().zip(references).enumerate() {
        out.extend_from_slice(if at == 0 { b"{" } else { b",{" });
        match result {
            Ok(encrypted) => {
                tally.good = true;
                push_encrypted(&encrypted, &mut out);
            }
            Err(error) => {
                tally.count(&error);
                out.extend_from_slice(b"\"error\":");
                push_text(&error.text, &mut out);
            }
        }
        out.extend_from_slice(b",\"reference\":");
        push_text(reference, &mut out);
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    finish(tally, out)
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
    if call.operation != Operation::Create {
        return Ok((engine.existing(name, "encryption key not found")?, false));
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
    let level = super::keys::level_param(params.protection_level.as_deref())?;
    let new = NewKey { derived, convergent: params.convergent_encryption, level, ..NewKey::plain(kind) };
    let (key, created) = engine.create(name, &new).await?;
    Ok((key, !created))
}
