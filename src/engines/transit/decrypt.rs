//! `decrypt/:name`.

use std::borrow::Cow;

use super::{
    Transit,
    alg::rsa::Encryption,
    b64,
    batch::{Batch, Item, Needs, Tally, push_text},
    encrypt::{batch_of, contexts_set, decoded, padding_of},
    ops::{ItemError, ToDecrypt},
};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply},
    params,
    secret::SecretBytes,
    wire::field::Params,
};

params! {
    /// Parameters of `decrypt`.
    pub struct DecryptParams {
        /// Name of the key.
        pub name: String,
        /// The ciphertext, `vault:v<version>:<base64>`.
        pub ciphertext: String,
        /// Context for derived keys, in base64.
        pub context: String,
        /// Nonce in base64, for convergent keys of version 1 only.
        pub nonce: String,
        /// Associated data in base64, as given on encryption.
        pub associated_data: String,
        /// Status of a batch of which only a part succeeded.
        pub partial_failure_response_code: Option<i64>,
        /// How RSA keys pad: `oaep` (the default) or `pkcs1v15`.
        pub padding_scheme: String,
        /// Items to decrypt, each with the parameters above and a `reference`.
        pub batch_input: Batch,
    }
}

/// The text of a request or item without a ciphertext.
pub const MISSING: &str = "missing ciphertext to decrypt";

/// The handler.
pub async fn decrypt(engine: &Transit, call: &Call<'_>) -> Result<Reply, Failure> {
    let input = call.input();
    let params = DecryptParams::decode(&input)?;
    let batch = batch_of(call, Needs::Ciphertext)?;
    let is_batch = batch.is_some();
    let items = match batch {
        Some(items) => items,
        None if params.ciphertext.is_empty() => return Err(Failure::invalid(MISSING)),
        None => vec![Item {
            ciphertext: Cow::Borrowed(&params.ciphertext),
            context: Cow::Borrowed(&params.context),
            nonce: Cow::Borrowed(&params.nonce),
            associated_data: Cow::Borrowed(&params.associated_data),
            ..Item::default()
        }],
    };
    contexts_set(&items)?;
    let key = engine.existing(&params.name, "encryption key not found")?;
    let padding = padding_of("padding_scheme", &params.padding_scheme)?;
    let texts = items.iter().map(|item| to_decrypt(item, padding)).collect();
    let results = engine.decrypt_all(&key, texts).await?;
    let mut reply = if is_batch {
        let references = items.iter().map(|item| item.reference.as_ref());
        batch_reply(results, references, params.partial_failure_response_code)
    } else {
        single_reply(results)?
    };
    reply.warnings.extend(input.notes(DecryptParams::FIELDS));
    Ok(reply)
}

/// An item taken apart.
pub fn to_decrypt<'a>(item: &'a Item<'_>, padding: Encryption) -> Result<ToDecrypt<'a>, ItemError> {
    if item.ciphertext.is_empty() {
        return Err(ItemError::user(MISSING));
    }
    Ok(ToDecrypt {
        ciphertext: Cow::Borrowed(&item.ciphertext),
        context: Cow::Owned(decoded(&item.context)?),
        nonce: decoded(&item.nonce)?,
        associated_data: Cow::Borrowed(&item.associated_data),
        padding,
    })
}

fn single_reply(results: Vec<Result<SecretBytes, ItemError>>) -> Result<Reply, Failure> {
    let missing = || Failure::internal("no text was processed");
    let plaintext = results.into_iter().next().ok_or_else(missing)?.map_err(ItemError::into_failure)?;
    let mut out = Vec::with_capacity(24 + plaintext.len() * 4 / 3);
    push_plaintext(plaintext.expose(), b"{\"plaintext\":\"", &mut out);
    out.push(b'}');
    Ok(Reply::raw_data(out))
}

fn push_plaintext(plaintext: &[u8], before: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(before);
    b64::push(plaintext, out);
    out.push(b'"');
}

fn batch_reply<'a>(
    results: Vec<Result<SecretBytes, ItemError>>,
    references: impl Iterator<Item = &'a str>,
    override_code: Option<i64>,
) -> Reply {
    let plaintexts: usize = results.iter().flatten().map(SecretBytes::len).sum();
    let mut tally = Tally::default();
    let mut out = Vec::with_capacity(32 + plaintexts * 4 / 3 + results.len() * 64);
    out.extend_from_slice(b"{\"batch_results\":[");
    for (at, (result, reference)) in results.into_iter().zip(references).enumerate() {
        if at > 0 {
            out.push(b',');
        }
        match result {
            Ok(plaintext) => {
                tally.good = true;
                push_plaintext(plaintext.expose(), b"{\"plaintext\":\"", &mut out);
            }
            Err(error) => {
                tally.count(&error);
                out.extend_from_slice(b"{\"plaintext\":\"\",\"error\":");
                push_text(&error.text, &mut out);
            }
        }
        out.extend_from_slice(b",\"reference\":");
        push_text(reference, &mut out);
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    tally.reply(out, override_code)
}
