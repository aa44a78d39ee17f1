//! Two HSMs of two vendors in parallel: SoftHSM and Kryoptic.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::faults::kill_workers;
use crate::support::{Place, Server, eventually, request};

/// Keys of the levels `hsm` and `software` with a ciphertext each: path and body of the decryption.
#[track_caller]
pub fn ciphertexts(server: &Server<'_>, tag: &str) -> Vec<(String, Value)> {
    if server.get("sys/mounts/transit").status != 200 {
        server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    }
    let kinds = [("hsm", "aes256-gcm96"), ("software", "aes256-gcm96"), ("software", "rsa-2048")];
    let one = |(level, kind): (&str, &str)| {
        let name = format!("{tag}-{level}-{kind}");
        server.put(&format!("transit/keys/{name}"), json!({"protection_level": level, "type": kind})).ok();
        let sealed = server.put(&format!("transit/encrypt/{name}"), json!({"plaintext": "YQ=="})).ok();
        (format!("transit/decrypt/{name}"), json!({"ciphertext": sealed["data"]["ciphertext"]}))
    };
    kinds.into_iter().map(one).collect()
}

#[track_caller]
pub fn all_open(server: &Server<'_>, ciphertexts: &[(String, Value)]) {
    for (path, body) in ciphertexts {
        assert_eq!(server.put(path, body.clone()).ok()["data"]["plaintext"], "YQ==", "{path}");
    }
}

fn seal(server: &Server<'_>, name: &str) -> Value {
    server.get(&format!("sys/sos/seals/{name}")).ok()["data"].clone()
}

#[track_caller]
fn wait_state(server: &Server<'_>, name: &str, state: &str) {
    server.wait(&format!("{name} {state}"), |_| seal(server, name)["state"] == state);
}

#[track_caller]
fn wait_nothing_pending(server: &Server<'_>, name: &str) {
    server.wait("nothing pending", |_| seal(server, name)["pending"] == json!([]));
}

#[test]
fn a_second_hsm_of_another_vendor_serves_when_the_first_is_gone() {
    let Some(place) = Place::two_hsms() else { return };
    // Begun with one stanza without a name; the names come with the second one.
    let both = fs::read_to_string(place.path("sos.hcl")).unwrap();
    place.configure(&format!("{}\n{}\n", place.plain_config("sled"), place.seal_stanza()));
    let mut server = place.start();
    let made = server.init(3, 2);
    let old = ciphertexts(&server, "old");
    server.terminate();
    place.configure(&both);
    let mut server = place.start();
    server.token = Some(made.root.clone());
    server.wait_unsealed();
    all_open(&server, &old);
    assert_eq!(seal(&server, "softhsm")["enrolled"], true);
    wait_state(&server, "kryoptic", "ready");
    assert_eq!(seal(&server, "kryoptic")["enrolled"], false);

    // Shares that are too few, wrong or absent.
    assert_eq!(server.put("sys/sos/seals/kryoptic", json!({})).status, 400);
    assert_eq!(server.put("sys/sos/seals/kryoptic", json!({"keys": [made.shares[0]]})).status, 400);
    let wrong = server.put("sys/sos/seals/kryoptic", json!({"keys": [made.shares[0], made.root]}));
    assert_eq!(wrong.status, 400, "{}", wrong.text);
    let (code, out, errors) = server.operator(&["seal", "add", "kryoptic", "-"], &made.shares[1..].join("\n"));
    assert_eq!(code, Some(0), "{errors}");
    assert!(out.contains("default/v1"), "{out}");
    let (code, out, errors) = server.operator(&["seal", "list"], "");
    assert_eq!(code, Some(0), "{errors}");
    assert!(out.contains("softhsm   yes") && out.contains("kryoptic  yes"), "{out}");
    let refused = server.call("DELETE", "sys/sos/seals/nobody", None);
    assert_eq!(refused.status, 400, "{}", refused.text);

    // Without the first HSM everything goes on, and what it misses is shown.
    fs::rename(place.path("hsm/tokens"), place.path("hsm/away")).unwrap();
    fs::create_dir(place.path("hsm/tokens")).unwrap();
    server.terminate();
    let mut server = place.start();
    server.token = Some(made.root.clone());
    server.wait_unsealed();
    all_open(&server, &old);
    let refused = server.call("DELETE", "sys/sos/seals/kryoptic?force=true", None);
    assert!(refused.errors().contains("no other HSM opens the root key"), "{}", refused.text);
    server.put("sys/rotate", json!({})).ok();
    server.put("transit/keys/old-hsm-aes256-gcm96/rotate", json!({})).ok();
    server.put("sys/sos/zones/default/rotate", json!({})).ok();
    let new = ciphertexts(&server, "new");
    all_open(&server, &new);
    assert_eq!(seal(&server, "softhsm")["state"], "hsm-token-missing");
    assert_eq!(seal(&server, "softhsm")["pending"], json!([{"key": "default/v2", "way": "by-itself"}]));
    // New shares: the root key follows when the absent HSM is back, and that is said.
    let begun = server.put("sys/rekey-recovery-key/init", json!({"secret_shares": 1, "secret_threshold": 1})).ok();
    let (nonce, shares) = (begun["nonce"].as_str().unwrap().to_owned(), &made.shares[..2]);
    let give = |share: &String| server.put("sys/rekey-recovery-key/update", json!({"key": share, "nonce": nonce})).ok();
    give(&shares[0]);
    let done = give(&shares[1]);
    assert!(done["warnings"][0].as_str().unwrap().contains("softhsm (hsm-token-missing)"), "{done}");
    let awaited = server.get("sys/sos/seals").ok()["data"]["root_key_renewal_awaits"].clone();
    assert_eq!(awaited, json!([{"name": "softhsm", "reason": "hsm-token-missing"}]));
    let (_, out, errors) = server.operator(&["status"], "");
    assert!(errors.contains("still the one of the shares before"), "{out}{errors}");
    assert!(server.get("sys/health").text.contains("still the one of the shares before"));

    // It comes back and gets what it missed; now the other one may go.
    fs::remove_dir(place.path("hsm/tokens")).unwrap();
    fs::rename(place.path("hsm/away"), place.path("hsm/tokens")).unwrap();
    wait_state(&server, "softhsm", "ready");
    wait_nothing_pending(&server, "softhsm");
    assert_eq!(server.get("sys/sos/seals").ok()["data"]["root_key_renewal_awaits"], Value::Null);
    assert!(!server.get("sys/health").text.contains("shares before"));
    fs::rename(place.path("kryoptic/token.sql"), place.path("kryoptic/away.sql")).unwrap();
    server.terminate();
    let mut server = place.start();
    server.token = Some(made.root.clone());
    server.wait_unsealed();
    all_open(&server, &old);
    all_open(&server, &new);
    let removed = server.call("DELETE", "sys/sos/seals/kryoptic", None).ok();
    assert_eq!(removed["data"]["pending"], true, "{removed}");
    server.terminate();
}

/// The second token is made anew and its worker restarted at once: what was seen on the old one must not cost the first
/// one's keys.
#[test]
fn a_token_made_anew_is_no_second_copy() {
    let Some(place) = Place::two_hsms() else { return };
    let mut server = place.start();
    let made = server.init(3, 2);
    let sealed = ciphertexts(&server, "k");
    wait_state(&server, "kryoptic", "ready");
    let keys = json!({"keys": made.shares[..2]});
    server.put("sys/sos/seals/kryoptic", keys.clone()).ok();
    wait_nothing_pending(&server, "kryoptic");
    place.make_kryoptic_token();
    kill_workers(&server);
    server.wait("seal key missing", |_| seal(&server, "kryoptic")["pending"][0]["key"] == "seal key");
    wait_state(&server, "softhsm", "ready");
    server.put("sys/sos/seals/kryoptic/rewrap", json!({}));
    let refused = server.call("DELETE", "sys/sos/seals/softhsm", None);
    assert!(refused.errors().contains("default/v1 (the shares bring them back"), "{}", refused.text);
    assert_eq!(seal(&server, "kryoptic")["pending"], json!([{"key": "default/v1", "way": "with-shares"}]));
    server.put("sys/sos/seals/kryoptic", keys).ok();
    wait_nothing_pending(&server, "kryoptic");
    server.call("DELETE", "sys/sos/seals/softhsm", None).ok();
    all_open(&server, &sealed);
}

#[test]
fn from_shares_to_an_hsm_and_on_to_one_of_another_vendor() {
    let Some(place) = Place::two_hsms() else { return };
    let both = fs::read_to_string(place.path("sos.hcl")).unwrap();
    place.configure(&place.plain_config("sled"));
    let mut server = place.start();
    let made = server.init_shamir(3, 2);
    server.mount_kv("kv");
    server.put("kv/data/a", json!({"data": {"x": "1"}})).ok();
    let old: Vec<_> = {
        server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
        server.put("transit/keys/plain", json!({})).ok();
        let sealed = server.put("transit/encrypt/plain", json!({"plaintext": "YQ=="})).ok();
        vec![("transit/decrypt/plain".to_owned(), json!({"ciphertext": sealed["data"]["ciphertext"]}))]
    };
    server.terminate();

    place.configure(&both);
    let mut server = place.start();
    server.token = Some(made.root.clone());
    server.unseal(&made.shares[..2]);
    wait_state(&server, "softhsm", "ready");
    let (code, out, errors) = server.operator(&["seal", "add", "softhsm", "-"], &made.shares[..2].join("\n"));
    assert_eq!(code, Some(0), "{errors}");
    assert!(out.contains("under an HSM seal now"), "{out}");
    assert_eq!(server.status()["type"], "pkcs11");
    server.wait("master key in the HSM", |_| {
        let zone = server.get("sys/sos/zones/default").ok();
        zone["data"]["versions"]["2"]["place"] == "hsm" && zone["data"]["rewrap"]["finished"] == true
    });
    all_open(&server, &old);
    let held = ciphertexts(&server, "held");
    server.terminate();

    let mut server = place.start();
    server.token = Some(made.root.clone());
    server.wait_unsealed();
    wait_state(&server, "kryoptic", "ready");
    server.put("sys/sos/seals/kryoptic", json!({"keys": made.shares[1..]})).ok();
    server.put("transit/keys/stays", json!({"protection_level": "hsm-only"})).ok();
    let refused = server.call("DELETE", "sys/sos/seals/softhsm", None);
    assert!(refused.errors().contains("transit/stays v1"), "{}", refused.text);
    server.call("DELETE", "transit/keys/stays", None);
    let (code, _, errors) = server.operator(&["seal", "rewrap"], "");
    assert_eq!(code, Some(0), "{errors}");
    let (code, _, errors) = server.operator(&["seal", "remove", "-force", "softhsm"], "");
    assert_eq!(code, Some(0), "{errors}");
    server.terminate();

    fs::remove_dir_all(place.path("hsm/tokens")).unwrap();
    let mut server = place.start();
    server.token = Some(made.root);
    server.wait_unsealed();
    all_open(&server, &old);
    all_open(&server, &held);
    assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "1");
}

/// `sos` against this server, which must succeed; its output.
#[track_caller]
fn sos(server: &Server<'_>, arguments: &[&str]) -> String {
    let (code, out, errors) = server.operator(arguments, "");
    assert_eq!(code, Some(0), "{arguments:?}: {out}{errors}");
    out
}

/// An older backup, taken while two keys were being made on the HSM, takes nothing away that a newer one needs.
#[test]
fn going_back_to_an_older_backup_and_forth_to_a_newer_one_loses_no_key() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(3, 2);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    let backup = |name: &str| place.path(name).display().to_string();
    let (older, newer) = (backup("older.backup"), backup("newer.backup"));

    // The HSM's worker stands still with both intents written; meanwhile the backup is taken.
    let workers: Vec<_> = server.pids().into_iter().filter(|pid| *pid != server.pid()).collect();
    let signal = |signal: Signal| {
        workers.iter().for_each(|pid| kill_process(Pid::from_raw((*pid).try_into().unwrap()).unwrap(), signal).unwrap())
    };
    signal(Signal::STOP);
    std::thread::scope(|scope| {
        for (path, body) in
            [("/v1/sys/sos/zones/default/rotate", json!({})), ("/v1/transit/keys/stays", json!({"protection_level": "hsm-only"}))]
        {
            let server = &server;
            scope.spawn(move || {
                let made = request(server.url(), "PUT", path, server.token.as_deref(), Some(&body.to_string())).unwrap();
                assert!(made.status < 300, "{}", made.text);
            });
        }
        std::thread::sleep(Duration::from_millis(500));
        sos(&server, &["backup", "create", &older]);
        signal(Signal::CONT);
    });
    let (code, out, errors) = server.operator(&["hsm", "orphans"], "");
    assert!(code == Some(0) && out.contains("None"), "{out}{errors}");
    let mut sealed = ciphertexts(&server, "under-the-second");
    let stays = server.put("transit/encrypt/stays", json!({"plaintext": "YQ=="})).ok();
    sealed.push(("transit/decrypt/stays".into(), json!({"ciphertext": stays["data"]["ciphertext"]})));
    let out = sos(&server, &["backup", "create", &newer]);
    assert!(out.contains("1 hsm-only key version(s), which live in the HSM alone: transit/stays v1"), "{out}");
    let out = sos(&server, &["backup", "verify", "-format=json", &newer]);
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["header"]["needs"]["hsm_only"][0]["key"], "transit/stays v1", "{out}");
    // A creation that the rotation overtook is made again, and its first object goes with the next periodic work.
    eventually("one object for each key", || place.objects().len() <= 4);
    let before = place.objects();
    assert_eq!(before.len(), 4, "{before:?}");

    sos(&server, &["backup", "restore", "-force", &older]);
    server.wait_unsealed();
    let log = server.log();
    assert!(log.contains("this master key was being made") && log.contains("this object was being made"), "{log}");
    // Two rounds of periodic work.
    std::thread::sleep(Duration::from_millis(4500));
    assert_eq!(place.objects(), before);
    let out = sos(&server, &["hsm", "orphans"]);
    assert!(out.contains("sos/test/zone/default/v2") && out.contains("sos/test/transit/stays/v1"), "{out}");
    assert_eq!(out.lines().count(), 2, "{out}");

    sos(&server, &["backup", "restore", "-force", &newer]);
    server.wait_unsealed();
    all_open(&server, &sealed);
    assert!(sos(&server, &["hsm", "orphans"]).contains("None"));

    // On the operator's word an orphan goes, and nothing else does. What the newer backup loses by it is said by name.
    sos(&server, &["backup", "restore", "-force", &older]);
    server.wait_unsealed();
    let orphans = server.get("sys/sos/hsm/orphans").ok();
    let orphans = orphans["data"]["orphans"].as_array().unwrap();
    let id = orphans.iter().find(|orphan| orphan["label"] == "sos/test/transit/stays/v1").unwrap()["id"].as_str().unwrap();
    assert_eq!(server.call("DELETE", "sys/sos/hsm/orphans/nothing", None).status, 400);
    assert_eq!(server.call("DELETE", &format!("sys/sos/hsm/orphans/{}", "0".repeat(32)), None).status, 400);
    assert!(sos(&server, &["hsm", "orphans", &format!("-destroy={id}")]).contains("sos/test/transit/stays/v1"));
    assert_eq!(place.objects().len(), 3);
    let (code, _, errors) = server.operator(&["backup", "restore", &newer], "");
    assert_eq!(code, Some(2));
    assert!(errors.contains("do not hold these keys") && errors.contains("transit/stays v1"), "{errors}");
    let (code, _, errors) = server.operator(&["backup", "restore", "-force", &newer], "");
    assert!(code == Some(0) && errors.contains("WARNING: ") && errors.contains("transit/stays v1"), "{errors}");
    server.wait_unsealed();
    server.terminate();
    let config = format!("-config={}", place.path("sos.hcl").display());
    let restore = |flags: &[&str]| {
        let mut command = place.command_of(&["backup", "restore", &config]);
        let done = command.args(flags).arg(&newer).output().unwrap();
        (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    fs::remove_dir_all(place.path("store")).unwrap();
    let (done, errors) = restore(&[]);
    assert!(!done && errors.contains("no HSM that answers here holds them: transit/stays v1"), "{errors}");
    let (done, errors) = restore(&["-force"]);
    assert!(done && errors.contains("transit/stays v1"), "{errors}");
    let mut server = place.start();
    server.wait_unsealed();
    server.token = None;
}
