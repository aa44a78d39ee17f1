//! `decrypt/:name`.

use std::borrow::Cow;

use super::{
    Transit,
    alg::rsa::Encryption,
    b64,
    batch::{Batch, Item, Items, Needs, Results, Tally, push_text},
    encrypt::{decoded, items_of, padding_of},
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
    let (mut items, _) = items_of(engine, call, Needs::Ciphertext, || {
        if params.ciphertext.is_empty() {
            return Err(Failure::invalid(MISSING));
        }
        Ok(Item {
            ciphertext: Cow::Borrowed(&params.ciphertext),
            context: Cow::Borrowed(&params.context),
            nonce: Cow::Borrowed(&params.nonce),
            associated_data: Cow::Borrowed(&params.associated_data),
            ..Item::default()
        })
    })
    .await?;
    let key = engine.existing(&params.name, "encryption key not found")?;
    let padding = padding_of("padding_scheme", &params.padding_scheme)?;
    let (mut opened, mut from) = (OpenedTexts::of(&items), 0);
    items.work_in(Transit::private_of(&key));
    loop {
        let window = items.window().await?;
        if window.is_empty() {
            break;
        }
        let texts = window.iter().map(|item| to_decrypt(item, padding)).collect();
        opened.push(&window, engine.decrypt_all(&key, from, texts).await?)?;
        from += window.len();
    }
    let mut reply = opened.reply(params.partial_failure_response_code)?;
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

fn push_plaintext(plaintext: &[u8], before: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(before);
    b64::push(plaintext, out);
    out.push(b'"');
}

/// The answer to decryptions: of one text, or of a batch.
struct OpenedTexts {
    results: Option<Results>,
    single: Vec<u8>,
    tally: Tally,
}

impl OpenedTexts {
    fn of(items: &Items<'_, Item<'_>>) -> Self {
        let results = items.is_batch().then(|| Results::of(items.total()));
        Self { results, single: Vec::new(), tally: Tally::default() }
    }

    /// Appends what became of a window. The error of a request of one text is the request's.
    fn push(&mut self, items: &[Item<'_>], results: Vec<Result<SecretBytes, ItemError>>) -> Result<(), Failure> {
        for (result, item) in results.into_iter().zip(items) {
            let Some(batch) = &mut self.results else {
                let plaintext = result.map_err(ItemError::into_failure)?;
                self.single.reserve(24 + plaintext.len() * 4 / 3);
                push_plaintext(plaintext.expose(), b"{\"plaintext\":\"", &mut self.single);
                self.single.push(b'}');
                continue;
            };
            let out = batch.next();
            match result {
                Ok(plaintext) => {
                    self.tally.good = true;
                    push_plaintext(plaintext.expose(), b"{\"plaintext\":\"", out);
                }
                Err(error) => {
                    self.tally.count(&error);
                    out.extend_from_slice(b"{\"plaintext\":\"\",\"error\":");
                    push_text(&error.text, out);
                }
            }
            out.extend_from_slice(b",\"reference\":");
            push_text(&item.reference, out);
            out.push(b'}');
        }
        Ok(())
    }

    fn reply(self, override_code: Option<i64>) -> Result<Reply, Failure> {
        match self.results {
            Some(results) => Ok(self.tally.reply(results.finish(), override_code)),
            None if self.single.is_empty() => Err(Failure::internal("no text was processed")),
            None => Ok(Reply::raw_data(self.single)),
        }
    }
}
