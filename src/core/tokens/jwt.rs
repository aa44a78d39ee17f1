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
/// Bytes of a P-521 signature: two numbers of 66.
const SIGNATURE_LEN: usize = 132;

#[derive(Serialize, Deserialize)]
struct Claims<'a> {
    /// Of the token inside, where the answer grants one.
    accessor: &'a str,
    /// Where to unwrap it.
    addr: &'a str,
    creation_path: &'a str,
    exp: i64,
    iat: i64,
    jti: &'a str,
    nbf: i64,
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
pub(super) struct JwtKey {
    pair: EcdsaKeyPair,
    /// How often a signature was verified.
    #[cfg(test)]
    pub(super) verifications: std::sync::atomic::AtomicUsize,
}

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
        let pair = pair.map_err(|_| Failure::internal("the key of wrapping JWTs is unusable"))?;
        Ok(Self {
            pair,
            #[cfg(test)]
            verifications: std::sync::atomic::AtomicUsize::new(0),
        })
    }

    /// The JWT that carries a wrapping token issued at `iat` (Unix seconds), to be unwrapped at `addr`.
    pub(super) fn sign(&self, info: &WrapInfo, iat: i64, addr: &str) -> Result<SecretString, Failure> {
        let claims = Claims {
            accessor: info.wrapped_accessor.as_deref().unwrap_or_default(),
            addr,
            creation_path: &info.creation_path,
            exp: iat.saturating_add(i64::try_from(info.ttl).unwrap_or(i64::MAX)),
            iat,
            jti: info.token.expose(),
            // Clocks differ a little.
            nbf: iat.saturating_sub(5),
            kind: WRAPPING,
        };
        let claims = SecretBytes::new(serde_json::to_vec(&claims).map_err(Failure::internal)?);
        let mut text = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims.expose()));
        let signature = self.pair.sign(&SystemRandom::new(), text.as_bytes());
        let signature = signature.map_err(|_| Failure::internal("a wrapping JWT could not be signed"))?;
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(SecretString::new(text))
    }

    /// Whether this key signed it.
    pub(super) fn verify(&self, claimed: &Claimed<'_>) -> bool {
        #[cfg(test)]
        self.verifications.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let public = UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, self.pair.public_key().as_ref());
        public.verify(claimed.signed.as_bytes(), &claimed.signature).is_ok()
    }
}

/// What a JWT says of itself. Verifying costs hundreds of microseconds, so the token inside is looked up first: who
/// makes JWTs up names none that lives.
pub(super) struct Claimed<'a> {
    /// The token inside.
    pub(super) token: SecretString,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Claimed<'a> {
    /// Reads a JWT without looking at its signature; `None` for what no [`JwtKey::sign`] wrote.
    pub(super) fn read(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        if signature.len() != SIGNATURE_LEN || URL_SAFE_NO_PAD.decode(header).ok()? != HEADER {
            return None;
        }
        let claims = SecretBytes::new(URL_SAFE_NO_PAD.decode(claims).ok()?);
        let inner: Inner = serde_json::from_slice(claims.expose()).ok()?;
        (inner.kind == WRAPPING).then(|| Self { token: SecretString::new(inner.jti), signed, signature })
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
        let open =
            |key: &JwtKey, text: &str| Claimed::read(text).filter(|claimed| key.verify(claimed)).map(|claimed| claimed.token);
        let key = JwtKey::new(&JwtKey::generate().unwrap()).unwrap();
        let jwt = key.sign(&info(), 1_700_000_000, "https://sos:8200").unwrap();
        assert!(is_jwt(jwt.expose()) && !is_jwt("hvs.abc"));
        assert!(open(&key, jwt.expose()).unwrap().same_as("hvs.abc"));
        let claims = URL_SAFE_NO_PAD.decode(jwt.expose().split('.').nth(1).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!((&claims["accessor"], &claims["addr"]), (&"".into(), &"https://sos:8200".into()));
        assert_eq!((&claims["nbf"], &claims["exp"]), (&1_699_999_995_i64.into(), &1_700_000_060_i64.into()));
        let other = JwtKey::new(&JwtKey::generate().unwrap()).unwrap();
        assert!(open(&other, jwt.expose()).is_none());
        let mut forged = jwt.expose().to_owned();
        let at = forged.find('.').unwrap() + 5;
        forged.replace_range(at..=at, if &forged[at..=at] == "A" { "B" } else { "A" });
        assert!(open(&key, &forged).is_none());
        for text in ["", "..", "a.b.c", "hvs.a.b"] {
            assert!(open(&key, text).is_none(), "{text:?}");
        }
    }
}
