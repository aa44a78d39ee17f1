//! Transit: ciphertexts, signatures and HMACs in their text forms, backups, imported material, bodies of batches.

use super::server::{Server, base64, quoted, with};
use crate::{core::request::Operation, engines::transit::fuzzing as engine};

const KINDS: [&str; 7] =
    ["aes256-gcm96", "aes128-gcm96", "chacha20-poly1305", "xchacha20-poly1305", "ecdsa-p256", "ed25519", "rsa-2048"];

/// One key of each kind, and derived and convergent ones.
fn keys(server: &Server) {
    for kind in KINDS {
        server.must(&format!("transit/keys/{kind}"), &format!(r#"{{"type":"{kind}"}}"#));
        server.must(&format!("transit/keys/{kind}/rotate"), "{}");
    }
    server.must("transit/keys/hmac", r#"{"type":"hmac","key_size":32}"#);
    server.must("transit/keys/derived", r#"{"derived":true}"#);
    server.must("transit/keys/convergent", r#"{"derived":true,"convergent_encryption":true}"#);
}

/// The first byte chooses key and operation; the rest is the text that the operation takes apart.
pub fn ciphertext(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else { return };
    let text = quoted(&String::from_utf8_lossy(text));
    with(keys, |server| {
        let name = match choice >> 4 {
            0..=6 => KINDS[usize::from(choice >> 4)],
            7 => "derived",
            8 => "convergent",
            _ => "hmac",
        };
        let (path, body) = match choice & 7 {
            0 => ("decrypt", format!(r#"{{"ciphertext":{text},"context":"eA=="}}"#)),
            1 => ("rewrap", format!(r#"{{"ciphertext":{text},"context":"eA=="}}"#)),
            2 => ("verify", format!(r#"{{"input":"eA==","signature":{text}}}"#)),
            3 => ("verify", format!(r#"{{"input":"eA==","signature":{text},"marshaling_algorithm":"jws"}}"#)),
            4 => ("verify", format!(r#"{{"input":"eA==","hmac":{text}}}"#)),
            5 => ("decrypt", format!(r#"{{"batch_input":[{{"ciphertext":{text},"associated_data":{text}}}]}}"#)),
            6 => ("encrypt", format!(r#"{{"plaintext":{text},"context":{text}}}"#)),
            _ => ("verify", format!(r#"{{"input":{text},"signature":{text},"prehashed":true,"salt_length":{text}}}"#)),
        };
        let answer = server.try_out(Operation::Update, &format!("transit/{path}/{name}"), body.as_bytes());
        let body = String::from_utf8_lossy(&answer.body);
        // Nobody can have made a signature or an HMAC under these keys.
        assert!(path != "verify" || !body.contains("\"valid\":true"), "{name} {text}: {body}");
    });
}

/// The JSON inside a backup.
pub fn backup(data: &[u8]) {
    with(
        |_| (),
        |server| {
            let body = format!(r#"{{"backup":{},"force":true}}"#, quoted(&base64(data)));
            let answer = server.try_out(Operation::Update, "transit/restore/k", body.as_bytes());
            if answer.status >= 300 {
                return;
            }
            // What was restored can be read, used, backed up and restored again.
            server.try_out(Operation::Read, "transit/keys/k", b"");
            server.try_out(Operation::Update, "transit/encrypt/k", br#"{"plaintext":"eA==","context":"eA=="}"#);
            server.try_out(Operation::Update, "transit/sign/k", br#"{"input":"eA==","context":"eA=="}"#);
            server.try_out(Operation::Update, "transit/hmac/k", br#"{"input":"eA=="}"#);
            for kind in ["encryption-key", "signing-key", "hmac-key", "public-key"] {
                server.try_out(Operation::Read, &format!("transit/export/{kind}/k"), b"");
            }
            let again = server.try_out(Operation::Read, "transit/backup/k", b"");
            if again.status == 200 {
                let text = super::server::member(&again, "backup");
                let body = format!(r#"{{"backup":{},"force":true}}"#, quoted(&text));
                let back = server.try_out(Operation::Update, "transit/restore/k", body.as_bytes());
                assert!(back.status < 300, "a backup of what was restored is refused: {}", String::from_utf8_lossy(&back.body));
            }
        },
    );
}

/// The first byte chooses the type; the rest is unwrapped material, a public key, or a wrapped blob.
pub fn imported(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    engine::material(usize::from(choice >> 4), rest);
    let text = String::from_utf8_lossy(rest);
    engine::public_key(usize::from(choice >> 4), &text);
    // What needs the wrapping key costs a private operation of RSA-4096, so only some inputs pay for it.
    if choice & 0xf == 0 {
        with(
            |_| (),
            |server| {
                let body = format!(r#"{{"ciphertext":{},"hash_function":"SHA1"}}"#, quoted(&base64(rest)));
                server.try_out(Operation::Update, "transit/keys/imported/import", body.as_bytes());
            },
        );
    }
}

/// The first byte chooses the operation and the key; the rest is the whole body.
pub fn batch(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else { return };
    with(keys, |server| {
        let operations = ["encrypt", "decrypt", "rewrap", "sign", "verify", "hmac", "datakey/plaintext", "encrypt"];
        let operation = operations[usize::from(choice & 7)];
        let name = match choice >> 4 {
            0..=6 => KINDS[usize::from(choice >> 4)],
            7..=9 => "derived",
            10..=12 => "convergent",
            _ => "hmac",
        };
        server.try_out(Operation::Update, &format!("transit/{operation}/{name}"), body);
    });
}
