//! What people do with shares: unseal, generate a root token, make new shares.

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use serde_json::{Value, json};

use crate::support::{Place, Server};

#[test]
fn shamir_unseals_with_progress_nonce_and_reset() {
    let place = Place::shamir();
    let mut server = place.start();
    let made = server.init(5, 3);
    let status = server.status();
    assert_eq!(
        (&status["type"], &status["sealed"], &status["t"], &status["n"]),
        (&json!("shamir"), &json!(true), &json!(3), &json!(5))
    );
    assert_eq!(status["sealed_reason"], "waiting-for-shares");

    let one = server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    assert_eq!(one["progress"], 1);
    assert_ne!(one["nonce"], "");
    let same = server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    assert_eq!((&same["progress"], &same["nonce"]), (&json!(1), &one["nonce"]));
    let reset = server.put("sys/unseal", json!({"reset": true})).ok();
    assert_eq!((&reset["progress"], &reset["nonce"]), (&json!(0), &json!("")));

    for (index, progress) in [(4, 1), (1, 2)] {
        assert_eq!(server.put("sys/unseal", json!({"key": made.shares[index]})).ok()["progress"], progress);
    }
    assert_eq!(server.put("sys/unseal", json!({"key": made.shares[2]})).ok()["sealed"], false);
    assert_eq!(server.get("auth/token/lookup-self").status, 200);
    server.put("sys/seal", json!({})).ok();
    assert_eq!(server.status()["sealed"], true);
    server.kill();

    // Through the command line after a restart; a share comes over the standard input.
    let server = place.start();
    server.wait_reason("waiting-for-shares");
    for share in &made.shares[..3] {
        let (code, _, err) = server.operator(&["operator", "unseal", "-"], share);
        assert_eq!(code, Some(0), "{err}");
    }
    assert_eq!(server.status()["sealed"], false);
}

#[test]
fn wrong_shares_do_not_unseal() {
    let place = Place::shamir();
    let mut server = place.start();
    let made = server.init(3, 2);
    let other = Place::shamir();
    let mut stranger = other.start();
    let foreign = stranger.init(3, 2);
    server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    let refused = server.put("sys/unseal", json!({"key": foreign.shares[1]}));
    assert_eq!(refused.status, 400, "{}", refused.text);
    let status = server.status();
    assert_eq!((&status["sealed"], &status["progress"]), (&json!(true), &json!(0)));
    for share in &made.shares[1..] {
        server.put("sys/unseal", json!({"key": share})).ok();
    }
    assert_eq!(server.status()["sealed"], false);
}

/// Undoes the one-time pad.
fn decode(encoded: &Value, otp: &str) -> String {
    let bytes = BASE64_STANDARD_NO_PAD.decode(encoded.as_str().unwrap()).unwrap();
    bytes.iter().zip(otp.bytes()).map(|(byte, pad)| char::from(byte ^ pad)).collect()
}

/// Gives shares until the operation is complete; answers the last reply.
fn enter(server: &Server<'_>, path: &str, nonce: &Value, shares: &[String]) -> Value {
    let mut last = Value::Null;
    for share in shares {
        last = server.put(path, json!({"key": share, "nonce": nonce})).ok();
    }
    assert_eq!(last["complete"], true, "{last}");
    last
}

#[test]
fn a_root_token_from_escrow_shares() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    let made = server.init(3, 2);
    server.token = None;
    let begun = server.put("sys/generate-root/attempt", json!({})).ok();
    let otp = begun["otp"].as_str().unwrap().to_string();
    let wrong = server.put("sys/generate-root/update", json!({"key": made.shares[0], "nonce": "other"}));
    assert_eq!(wrong.status, 400, "{}", wrong.text);
    let done = enter(&server, "sys/generate-root/update", &begun["nonce"], &made.shares[1..]);
    server.token = Some(decode(&done["encoded_root_token"], &otp));
    let own = server.get("auth/token/lookup-self").ok();
    assert_eq!(own["data"]["policies"], json!(["root"]));
}

#[test]
fn new_escrow_shares_replace_the_old() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    let made = server.init(3, 2);
    let begun = server.put("sys/rekey-recovery-key/init", json!({"secret_shares": 4, "secret_threshold": 3})).ok();
    let done = enter(&server, "sys/rekey-recovery-key/update", &begun["nonce"], &made.shares[..2]);
    let shares: Vec<String> =
        done["keys_base64"].as_array().unwrap().iter().map(|share| share.as_str().unwrap().into()).collect();
    assert_eq!(shares.len(), 4);
    assert_eq!((&server.status()["t"], &server.status()["n"]), (&json!(3), &json!(4)));

    // Only the new ones open the server without its HSM.
    server.terminate();
    std::fs::remove_file(place.path("module.so")).unwrap();
    let server = place.start();
    server.wait_reason("hsm-module-missing");
    let mut last = 200;
    for share in made.shares.iter() {
        last = server.put("sys/unseal", json!({"key": share})).status;
    }
    assert_eq!(last, 400);
    for share in &shares[1..] {
        server.put("sys/unseal", json!({"key": share})).ok();
    }
    assert_eq!(server.status()["sealed"], false);
}
