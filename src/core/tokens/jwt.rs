//! Wrapping tokens in the form of a signed token (`X-Vault-Wrap-Format: jwt`): an ES512 JWT whose `jti` is the token.
//!
//! The signature lets whoever receives one see that this cluster made it; the rights are those of the token inside.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P521_SHA512_FIXED, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{
    core::{failure::Failure, reply::WrapInfo},
    secret::{SecretBytes, SecretString},
};

const HEADER: &[u8] = br#"{"alg":"ES512","typ":"JWT"}"#;
const WRAPPING: &str = "wrapping";

#[derive(Serialize, Deserialize)]
struct Claims<'a> {
    accessor: &'a str,
    creation_path: &'a str,
    exp: i64,
    iat: i64,
    jti: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
}

#[derive(Deserialize)]
struct Inner {
    jti: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Signs and checks.
pub(super) struct JwtKey(EcdsaKeyPair);

impl JwtKey {
    /// A fresh key as PKCS #8.
    pub(super) fn generate() -> Result<SecretBytes, Failure> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P521_SHA512_FIXED_SIGNING, &SystemRandom::new());
        let document = document.map_err(|_| Failure::internal("no P-521 key could be generated"))?;
        Ok(SecretBytes::new(document.as_ref().to_vec()))
    }

    /// The key from PKCS #8.
    pub(super) fn new(document: &SecretBytes) -> Result<Self, Failure> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P521_SHA512_FIXED_SIGNING, document.expose());
        pair.map(Self).map_err(|_| Failure::internal("the key of wrapping JWTs is unusable"))
    }

    /// The JWT that carries a wrapping token issued at `iat` (Unix seconds).
    pub(super) fn sign(&self, info: &WrapInfo, iat: i64) -> Result<SecretString, Failure> {
        let claims = Claims {
            accessor: &info.accessor,
            creation_path: &info.creation_path,
            exp: iat.saturating_add(i64::try_from(info.ttl).unwrap_or(i64::MAX)),
            iat,
            jti: info.token.expose(),
            kind: WRAPPING,
        };
        let claims = SecretBytes::new(serde_json::to_vec(&claims).map_err(Failure::internal)?);
        let mut text = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims.expose()));
        let signature = self.0.sign(&SystemRandom::new(), text.as_bytes());
        let signature = signature.map_err(|_| Failure::internal("a wrapping JWT could not be signed"))?;
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(SecretString::new(text))
    }

    /// The token inside; `None` for what this key did not sign.
    pub(super) fn open(&self, text: &str) -> Option<SecretString> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let public = UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, self.0.public_key().as_ref());
        public.verify(signed.as_bytes(), &signature).ok()?;
        // Nothing else is signed with this key, so header and type can only be what `sign` wrote.
        if URL_SAFE_NO_PAD.decode(header).ok()? != HEADER {
            return None;
        }
        let claims = SecretBytes::new(URL_SAFE_NO_PAD.decode(claims).ok()?);
        let inner: Inner = serde_json::from_slice(claims.expose()).ok()?;
        (inner.kind == WRAPPING).then(|| SecretString::new(inner.jti))
    }
}

/// Whether a text has the form of a JWT; tokens have at most one dot.
pub(super) fn is_jwt(token: &str) -> bool {
    token.bytes().filter(|&byte| byte == b'.').count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> WrapInfo {
        WrapInfo {
            token: SecretString::new("hvs.abc".into()),
            accessor: "acc".into(),
            ttl: 60,
            creation_time: String::new(),
            creation_path: "kv/a".into(),
            wrapped_accessor: None,
        }
    }

    #[test]
    fn only_what_this_key_signed_opens() {
        let key = JwtKey::new(&JwtKey::generate().unwrap()).unwrap();
        let jwt = key.sign(&info(), 1_700_000_000).unwrap();
        assert!(is_jwt(jwt.expose()) && !is_jwt("hvs.abc"));
        assert!(key.open(jwt.expose()).unwrap().same_as("hvs.abc"));
        let other = JwtKey::new(&JwtKey::generate().unwrap()).unwrap();
        assert!(other.open(jwt.expose()).is_none());
        let mut forged = jwt.expose().to_owned();
        let at = forged.find('.').unwrap() + 5;
        forged.replace_range(at..=at, if &forged[at..=at] == "A" { "B" } else { "A" });
        assert!(key.open(&forged).is_none());
        for text in ["", "..", "a.b.c", "hvs.a.b"] {
            assert!(key.open(text).is_none(), "{text:?}");
        }
    }
}
