//! `rewrap/:name`.

use std::borrow::Cow;

use super::{
    Transit,
    alg::rsa::Encryption,
    batch::{Batch, Item, Needs},
    decrypt::{MISSING, to_decrypt},
    encrypt::{Sealed, decoded, items_of, padding_of, worn},
    ops::{ItemError, ToEncrypt},
    usage::Wear,
};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply},
    params,
    secret::SecretBytes,
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
    let (mut items, _) = items_of(engine, call, Needs::Nothing, || {
        if params.ciphertext.is_empty() {
            return Err(Failure::invalid(MISSING));
        }
        Ok(Item {
            ciphertext: Cow::Borrowed(&params.ciphertext),
            context: Cow::Borrowed(&params.context),
            nonce: Cow::Borrowed(&params.nonce),
            key_version: params.key_version,
            ..Item::default()
        })
    })
    .await?;
    let key = engine.existing(&params.name, "encryption key not found")?;
    let decrypt_padding = padding_of("decrypt_padding_scheme", &params.decrypt_padding_scheme)?;
    let padding = padding_of("encrypt_padding_scheme", &params.encrypt_padding_scheme)?;
    let (mut sealed, mut from) = (Sealed::of(&items), 0);
    items.work_in(Transit::private_of(&key));
    loop {
        let mut window = items.window().await?;
        if window.is_empty() {
            break;
        }
        // Rewrapping has no associated data: the plaintext could not be told from one with other data.
        window.iter_mut().for_each(|item| item.associated_data = Cow::Borrowed(""));
        let texts = window.iter().map(|item| to_decrypt(item, decrypt_padding)).collect();
        let opened = engine.decrypt_all(&key, from, texts).await?;
        let texts = window.iter().zip(opened).map(|(item, opened)| again(item, opened, padding));
        let texts = texts.collect::<Result<_, Failure>>()?;
        sealed.push(&window, engine.encrypt_all(&key, from, texts).await?)?;
        from += window.len();
    }
    let (mut reply, wear) = sealed.reply(|_, data| Reply::raw_data(data))?;
    if wear == Wear::Worn {
        reply.warnings.push(worn(&key));
    }
    reply.warnings.extend(input.notes(RewrapParams::FIELDS));
    Ok(reply)
}

/// What was opened, to be encrypted again. What is not the caller's mistake stops a rewrap, unlike other batches.
fn again<'a>(
    item: &'a Item<'_>,
    opened: Result<SecretBytes, ItemError>,
    padding: Encryption,
) -> Result<Result<ToEncrypt<'a>, ItemError>, Failure> {
    let plaintext = match opened {
        Ok(plaintext) => plaintext,
        Err(error) if error.internal => return Err(error.into_failure()),
        Err(error) => return Ok(Err(error)),
    };
    Ok(Ok(ToEncrypt {
        plaintext,
        version: item.key_version,
        context: Cow::Owned(decoded(&item.context).map_err(ItemError::into_failure)?),
        nonce: decoded(&item.nonce).map_err(ItemError::into_failure)?,
        associated_data: Cow::Borrowed(""),
        padding,
    }))
}
