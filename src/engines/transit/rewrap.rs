//! `rewrap/:name`.

use std::borrow::Cow;

use super::{
    Transit,
    batch::{Batch, Item, Needs},
    decrypt::{MISSING, to_decrypt},
    encrypt::{batch_of, batch_reply, contexts_set, decoded, padding_of, single_reply, worn},
    ops::{ItemError, ToEncrypt},
    usage::Wear,
};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply},
    params,
    wire::field::Params,
};

params! {
    /// Parameters of `rewrap`.
    pub struct RewrapParams {
        /// Name of the key.
        pub name: String,
        /// The ciphertext, `vault:v<version>:<base64>`.
        pub ciphertext: String,
        /// Context for derived keys, in base64.
        pub context: String,
        /// Nonce in base64, for convergent keys of version 1 only.
        pub nonce: String,
        /// Version of the key to encrypt with; 0 is the latest.
        pub key_version: i64,
        /// How RSA keys pad the new ciphertext: `oaep` (the default) or `pkcs1v15`.
        pub encrypt_padding_scheme: String,
        /// How RSA keys padded the old ciphertext.
        pub decrypt_padding_scheme: String,
        /// Items to rewrap, each with the parameters above and a `reference`.
        pub batch_input: Batch,
    }
}

/// The handler.
pub async fn rewrap(engine: &Transit, call: &Call<'_>) -> Result<Reply, Failure> {
    let input = call.input();
    let params = RewrapParams::decode(&input)?;
    let batch = batch_of(call, Needs::Nothing)?;
    let is_batch = batch.is_some();
    let mut items = match batch {
        Some(items) => items,
        None if params.ciphertext.is_empty() => return Err(Failure::invalid(MISSING)),
        None => vec![Item {
            ciphertext: Cow::Borrowed(&params.ciphertext),
            context: Cow::Borrowed(&params.context),
            nonce: Cow::Borrowed(&params.nonce),
            key_version: params.key_version,
            ..Item::default()
        }],
    };
    // Rewrapping has no associated data: the plaintext could not be told from one with other data.
    items.iter_mut().for_each(|item| item.associated_data = Cow::Borrowed(""));
    contexts_set(&items)?;
    let key = engine.existing(&params.name, "encryption key not found")?;
    let decrypt_padding = padding_of("decrypt_padding_scheme", &params.decrypt_padding_scheme)?;
    let padding = padding_of("encrypt_padding_scheme", &params.encrypt_padding_scheme)?;
    let opened = engine.decrypt_all(&key, items.iter().map(|item| to_decrypt(item, decrypt_padding)).collect()).await?;
    let mut texts = Vec::with_capacity(items.len());
    for (item, opened) in items.iter().zip(opened) {
        let text = match opened {
            Ok(plaintext) => Ok(ToEncrypt {
                plaintext,
                version: item.key_version,
                context: Cow::Owned(decoded(&item.context).map_err(ItemError::into_failure)?),
                nonce: decoded(&item.nonce).map_err(ItemError::into_failure)?,
                associated_data: Cow::Borrowed(""),
                padding,
            }),
            // What is not the caller's mistake stops a rewrap, unlike other batches.
            Err(error) if error.internal => return Err(error.into_failure()),
            Err(error) => Err(error),
        };
        texts.push(text);
    }
    let (results, wear) = engine.encrypt_all(&key, texts).await?;
    let mut reply = if is_batch {
        let references = items.iter().map(|item| item.reference.as_ref());
        batch_reply(results, references, |_, data| Reply::raw_data(data))
    } else {
        single_reply(results)?
    };
    if wear == Wear::Worn {
        reply.warnings.push(worn(&key));
    }
    reply.warnings.extend(input.notes(RewrapParams::FIELDS));
    Ok(reply)
}
