//! Wrapping a key as `keys/:name/import` takes it.

use aes_kw::{KeyInit, KwpAes256};
use base64::{Engine, prelude::BASE64_STANDARD};
use openssl::{encrypt::Encrypter, hash::MessageDigest, pkey::PKey, rsa::Padding};
use sos::secret::random_array;

use crate::support::Server;

/// The public half of a mount's wrapping key, in PEM.
pub fn wrapping_key(server: &Server<'_>, mount: &str) -> String {
    let reply = server.get(&format!("{mount}/wrapping_key")).ok();
    reply["data"]["public_key"].as_str().unwrap().to_owned()
}

/// `material` under a fresh AES key under the wrapping key, in base64; and the AES key.
pub fn wrap(wrapping_key: &str, material: &[u8]) -> (String, [u8; 32]) {
    let wrapping = PKey::public_key_from_pem(wrapping_key.as_bytes()).unwrap();
    let ephemeral: [u8; 32] = random_array();
    let mut oaep = Encrypter::new(&wrapping).unwrap();
    oaep.set_rsa_padding(Padding::PKCS1_OAEP).unwrap();
    oaep.set_rsa_oaep_md(MessageDigest::sha256()).unwrap();
    oaep.set_rsa_mgf1_md(MessageDigest::sha256()).unwrap();
    let mut blob = vec![0; wrapping.size()];
    oaep.encrypt(&ephemeral, &mut blob).unwrap();
    let mut room = vec![0; material.len().next_multiple_of(8) + 8];
    let kwp = KwpAes256::new_from_slice(&ephemeral).unwrap();
    blob.extend_from_slice(kwp.wrap_key(material, &mut room).unwrap());
    (BASE64_STANDARD.encode(blob), ephemeral)
}
