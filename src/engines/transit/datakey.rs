//! `datakey/plaintext/:name` and `datakey/wrapped/:name`.

use std::borrow::Cow;

use super::{
    Transit, b64, ciphertext,
    encrypt::{padding_of, worn},
    ops::{ItemError, ToEncrypt},
    usage::Wear,
};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply},
    params,
    secret::SecretBytes,
};

params! {
    /// Parameters of `datakey`.
    pub struct DatakeyParams {
        /// `plaintext` shows the data key beside its ciphertext, `wrapped` does not.
        pub plaintext: String,
        /// Name of the key.
        pub name: String,
        /// Context for derived keys, in base64.
        pub context: String,
        /// Nonce in base64, for convergent keys of version 1 only.
        pub nonce: String,
        /// Length of the data key: 128, 256 (the default) or 512.
        pub bits: Option<i64>,
        /// Version of the key to encrypt with; 0 is the latest.
        pub key_version: i64,
        /// Associated data in base64.
        pub associated_data: String,
        /// How RSA keys pad: `oaep` (the default) or `pkcs1v15`.
        pub padding_scheme: String,
    }
}

/// The handler.
pub async fn datakey(engine: &Transit, _: &Call<'_>, params: DatakeyParams) -> Result<Reply, Failure> {
    let shown = match params.plaintext.as_str() {
        "plaintext" => true,
        "wrapped" => false,
        _ => return Err(Failure::invalid("Invalid path, must be 'plaintext' or 'wrapped'")),
    };
    let context = b64::decode(&params.context).map_err(|_| Failure::invalid("failed to base64-decode context"))?;
    let nonce = b64::decode(&params.nonce).map_err(|_| Failure::invalid("failed to base64-decode nonce"))?;
    let key = engine.existing(&params.name, "encryption key not found")?;
    let len = match params.bits.unwrap_or(256) {
        128 => 16,
        256 => 32,
        512 => 64,
        _ => return Err(Failure::invalid("invalid bit length")),
    };
    if !params.associated_data.is_empty() && !key.record.kind.is_cipher() {
        let name = key.record.kind.name();
        return Err(Failure::invalid(format!("'associated_data' provided for non-AEAD cipher suite {name}")));
    }
    let data_key = SecretBytes::random(len);
    let text = ToEncrypt {
        plaintext: data_key.duplicate(),
        version: params.key_version,
        context: Cow::Owned(context),
        nonce,
        associated_data: Cow::Borrowed(&params.associated_data),
        padding: padding_of("padding_scheme", &params.padding_scheme)?,
    };
    let (results, wear) = engine.encrypt_all(&key, 0, vec![Ok(text)]).await?;
    let missing = || Failure::internal("no text was processed");
    let encrypted = results.into_iter().next().ok_or_else(missing)?.map_err(ItemError::into_failure)?;
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"ciphertext\":\"");
    ciphertext::push(encrypted.version, &encrypted.payload, &mut out);
    out.extend_from_slice(format!("\",\"key_version\":{}", encrypted.version).as_bytes());
    if shown {
        out.extend_from_slice(b",\"plaintext\":\"");
        b64::push(data_key.expose(), &mut out);
        out.push(b'"');
    }
    out.push(b'}');
    let reply = Reply::raw_data(out);
    Ok(if wear == Wear::Worn { reply.with_warning(worn(&key)) } else { reply })
}
