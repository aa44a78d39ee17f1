//! Seals while the server serves: stanzas that come and go with SIGHUP, disabled ones, new shares while an HSM is away, and
//! shares that are wrong.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::seals::{all_open, ciphertexts};
use crate::support::{Made, Place, Server, eventually};

fn seal(server: &Server<'_>, name: &str) -> Value {
    server.get(&format!("sys/sos/seals/{name}")).body["data"].clone()
}

fn names(server: &Server<'_>) -> Vec<String> {
    let all = server.get("sys/sos/seals").ok()["data"]["seals"].clone();
    all.as_array().unwrap().iter().map(|seal| seal["name"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn wait_ready(server: &Server<'_>, name: &str) {
    server.wait(name, |_| seal(server, name)["state"] == "ready");
}

/// The two seal stanzas of [`Place::two_hsms`], SoftHSM's first, and what stands before them.
fn stanzas(place: &Place) -> (String, String, String) {
    let text = fs::read_to_string(place.path("sos.hcl")).unwrap();
    let line = |name: &str| text.lines().find(|line| line.contains(&format!("name = \"{name}\""))).unwrap().to_owned();
    (place.plain_config("sled"), line("softhsm"), line("kryoptic"))
}

#[track_caller]
fn reload(place: &Place, server: &Server<'_>, config: &str, said: &str) {
    place.configure(config);
    let before = server.log().matches(said).count();
    server.signal(Signal::HUP);
    eventually(said, || server.log().matches(said).count() > before);
}

fn gauge(server: &Server<'_>, hsm: &str) -> Option<String> {
    let text = server.get("sys/metrics?format=prometheus").text;
    let line = text.lines().find(|line| line.starts_with("sos_hsm_ready{") && line.contains(&format!("hsm=\"{hsm}\"")))?;
    line.rsplit(' ').next().map(str::to_owned)
}

fn lose_softhsm(place: &Place) {
    fs::rename(place.path("hsm/tokens"), place.path("hsm/away")).unwrap();
    fs::create_dir(place.path("hsm/tokens")).unwrap();
}

fn softhsm_is_back(place: &Place) {
    fs::remove_dir(place.path("hsm/tokens")).unwrap();
    fs::rename(place.path("hsm/away"), place.path("hsm/tokens")).unwrap();
}

#[test]
fn stanzas_come_and_go_with_sighup() {
    let Some(place) = Place::two_hsms() else { return };
    let (plain, first, second) = stanzas(&place);
    // From plain shares ...
    place.configure(&plain);
    let mut server = place.start();
    let made = server.init_shamir(3, 2);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    server.put("transit/keys/plain", json!({})).ok();
    let sealed = server.put("transit/encrypt/plain", json!({"plaintext": "YQ=="})).ok();
    let mut old = vec![("transit/decrypt/plain".to_owned(), json!({"ciphertext": sealed["data"]["ciphertext"]}))];
    assert_eq!(names(&server), [""; 0]);
    // ... with a file that is wrong at first ...
    reload(&place, &server, &format!("{plain}\nseal \"pkcs11\" {{ lib = 5"), "log level and seals stay as they are");
    all_open(&server, &old);
    // ... to an HSM ...
    reload(&place, &server, &format!("{plain}\n{first}\n"), "a new seal stanza");
    wait_ready(&server, "softhsm");
    assert_eq!(seal(&server, "softhsm")["enrolled"], false);
    server.put("sys/sos/seals/softhsm", json!({"keys": made.shares[..2]})).ok();
    assert_eq!(server.status()["type"], "pkcs11");
    server.wait("master key in the HSM", |_| {
        server.get("sys/sos/zones/default").ok()["data"]["rewrap"]["finished"] == true
            && server.get("sys/sos/zones/default").ok()["data"]["versions"]["2"]["place"] == "hsm"
    });
    old.extend(ciphertexts(&server, "held"));
    let labels = place.objects();
    assert!(labels.iter().all(|label| label.starts_with("sos/test/")), "{labels:?}");
    // ... and to a second one, with the server never stopped.
    reload(&place, &server, &format!("{plain}\n{first}\n{second}\n"), "a new seal stanza");
    wait_ready(&server, "kryoptic");
    assert_eq!(names(&server), ["softhsm", "kryoptic"]);
    server.put("sys/sos/seals/kryoptic", json!({"keys": made.shares[1..]})).ok();
    server.wait("nothing pending", |_| seal(&server, "kryoptic")["pending"] == json!([]));
    assert_eq!((gauge(&server, "softhsm"), gauge(&server, "kryoptic")), (Some("1".into()), Some("1".into())));

    lose_softhsm(&place);
    server.wait("served by the second HSM", |_| server.put(&old[1].0, old[1].1.clone()).status == 200);
    all_open(&server, &old);
    old.extend(ciphertexts(&server, "later"));
    eventually("the loss is seen", || gauge(&server, "softhsm") == Some("0".into()));
    assert_eq!(gauge(&server, "kryoptic"), Some("1".into()));
    let status = server.get("sys/sos/status").ok()["data"].clone();
    let states: Vec<_> = status["hsms"].as_array().unwrap().iter().map(|hsm| (&hsm["name"], hsm["state"] == "ready")).collect();
    assert_eq!(states, [(&json!("softhsm"), false), (&json!("kryoptic"), true)]);
    assert!(status["warnings"].to_string().contains("softhsm"), "{status}");
    let (_, out, _) = server.operator(&["status"], "");
    assert!(out.contains("HSM softhsm") && out.contains("HSM kryoptic"), "{out}");

    // One of two keys is enough for a backup to be opened here; its restore has nothing to complain of.
    let file = place.path("two.backup").display().to_string();
    let (code, _, errors) = server.operator(&["backup", "create", &file], "");
    assert_eq!(code, Some(0), "{errors}");
    let (code, _, errors) = server.operator(&["backup", "restore", "-force", &file], "");
    assert!(code == Some(0) && !errors.contains("WARNING"), "{errors}");
    server.wait_unsealed();
    all_open(&server, &old);

    // A stanza that is gone does not take an enrolled HSM away; `remove` does.
    reload(&place, &server, &format!("{plain}\n{second}\n"), "its seal stanza is gone, but it is enrolled");
    assert_eq!(seal(&server, "softhsm")["enrolled"], true);
    server.call("DELETE", "sys/sos/seals/softhsm?force=true", None).ok();
    reload(&place, &server, &format!("{plain}\n{second}\n"), "its seal stanza is gone: the HSM is not used any more");
    eventually("one seal", || names(&server) == ["kryoptic"]);
    all_open(&server, &old);
    server.terminate();
    let mut server = place.start();
    server.token = Some(made.root.clone());
    server.wait_unsealed();
    all_open(&server, &old);
}

/// A cluster with both HSMs enrolled.
fn on_both(place: &Place) -> (Server<'_>, Made) {
    let mut server = place.start();
    let made = server.init(3, 2);
    wait_ready(&server, "kryoptic");
    server.put("sys/sos/seals/kryoptic", json!({"keys": made.shares[..2]})).ok();
    (server, made)
}

#[test]
fn a_disabled_hsm_gets_nothing_new_and_opens_what_it_sealed() {
    let Some(place) = Place::two_hsms() else { return };
    let (server, made) = on_both(&place);
    let old = ciphertexts(&server, "old");
    let (plain, first, second) = stanzas(&place);
    let disabled = format!("{plain}\n{first}\n{}\n", second.replace("priority = 2", "priority = 2 disabled = true"));
    place.configure(&disabled);
    server.signal(Signal::HUP);
    server.wait("disabled", |_| seal(&server, "kryoptic")["disabled"] == true);
    let before = place.objects_on_kryoptic();
    server.put("sys/sos/zones/default/rotate", json!({})).ok();
    server.put("transit/keys/only", json!({"protection_level": "hsm-only"})).ok();
    let refused = server.put("sys/sos/seals/kryoptic", json!({"keys": made.shares[..2]}));
    assert!(refused.status == 400 && refused.errors().contains("says disabled = true"), "{}", refused.text);
    assert_eq!(server.put("sys/sos/seals/kryoptic/rewrap", json!({})).status, 400);
    // Two rounds of periodic work.
    std::thread::sleep(std::time::Duration::from_millis(4500));
    assert_eq!(place.objects_on_kryoptic(), before);
    assert_eq!(seal(&server, "kryoptic")["pending"][0]["key"], "default/v2");
    server.terminate();

    lose_softhsm(&place);
    let mut server = place.start();
    server.token = Some(made.root.clone());
    server.wait_unsealed();
    let one = &old[2];
    assert_eq!(server.put(&one.0, one.1.clone()).status, 503, "moved under the new master key, which it was not given");
    assert_eq!(server.get("sys/mounts").status, 200);
    softhsm_is_back(&place);
    wait_ready(&server, "softhsm");
    all_open(&server, &old);
    // Enabled again it gets what it missed.
    place.configure(&format!("{plain}\n{first}\n{second}\n"));
    server.signal(Signal::HUP);
    server.wait("nothing pending", |_| seal(&server, "kryoptic")["pending"] == json!([]));
}

/// New shares for old ones; `None` where the old ones are refused.
fn rekeyed(server: &Server<'_>, old: &[String]) -> Result<Vec<String>, String> {
    let begun = server.put("sys/rekey-recovery-key/init", json!({"secret_shares": 3, "secret_threshold": 2})).ok();
    let nonce = begun["nonce"].as_str().or(begun["data"]["nonce"].as_str()).unwrap().to_owned();
    let mut last = Value::Null;
    for share in old {
        let reply = server.put("sys/rekey-recovery-key/update", json!({"nonce": nonce, "key": share}));
        if reply.status != 200 {
            server.call("DELETE", "sys/rekey-recovery-key/init", None).ok();
            return Err(reply.errors());
        }
        last = reply.body;
    }
    let keys = last["keys_base64"].as_array().or(last["data"]["keys_base64"].as_array()).unwrap();
    Ok(keys.iter().map(|key| key.as_str().unwrap().to_owned()).collect())
}

#[test]
fn new_shares_while_an_hsm_is_away_and_shares_that_are_wrong() {
    let (Some(place), Some(other)) = (Place::two_hsms(), Place::hsm()) else { return };
    let foreign = other.start().init(3, 2).shares;
    let (server, made) = on_both(&place);
    let old = ciphertexts(&server, "old");
    let mixed = vec![made.shares[0].clone(), foreign[1].clone()];
    lose_softhsm(&place);
    server.wait("the loss is seen", |_| seal(&server, "softhsm")["state"] == "hsm-token-missing");

    for shares in [&foreign[..2], &mixed] {
        let refused = rekeyed(&server, shares).unwrap_err();
        assert!(refused.contains("invalid key"), "{refused}");
        let refused = server.put("sys/sos/seals/kryoptic", json!({"keys": shares}));
        assert!(refused.status == 400 && refused.errors().contains("or those of another cluster"), "{}", refused.text);
        let refused = server.put("sys/sos/hsm/recover", json!({"keys": shares}));
        assert!(refused.status == 400 && refused.errors().contains("or those of another cluster"), "{}", refused.text);
    }
    for path in ["sys/sos/seals/kryoptic", "sys/sos/hsm/recover"] {
        let refused = server.put(path, json!({"keys": made.shares[..1]}));
        assert!(
            refused.status == 400 && refused.errors().contains("1 share(s) were given, and 2 are needed"),
            "{}",
            refused.text
        );
        let refused = server.put(path, json!({"keys": ["no share", made.shares[1]]}));
        assert_eq!(refused.status, 400, "{}", refused.text);
    }
    let new = rekeyed(&server, &made.shares[1..]).unwrap();
    assert!(server.log().contains("the root key is still the one of the shares before"), "{}", server.log());
    let refused = server.put("sys/sos/seals/kryoptic", json!({"keys": made.shares[..2]}));
    assert!(refused.status == 400, "old shares are good for nothing: {}", refused.text);
    server.put("sys/sos/seals/kryoptic", json!({"keys": new[..2]})).ok();
    server.terminate();

    // The one that was away opens the root key as before, alone.
    softhsm_is_back(&place);
    fs::rename(place.path("kryoptic/token.sql"), place.path("kryoptic/away.sql")).unwrap();
    let mut server = place.start();
    server.token = Some(made.root.clone());
    server.wait_unsealed();
    all_open(&server, &old);
    server.terminate();

    // And without both the new shares do, and no others.
    lose_softhsm(&place);
    let mut server = place.start();
    server.token = Some(made.root.clone());
    server.wait("sealed", |status| status["sealed"] == true && status["sealed_reason"] != "hsm-starting");
    for shares in [&made.shares[..2], &foreign[..2]] {
        server.put("sys/unseal", json!({"key": shares[0]})).ok();
        let refused = server.put("sys/unseal", json!({"key": shares[1]}));
        assert!(refused.status == 400 && refused.errors().contains("invalid key"), "{}", refused.text);
    }
    server.unseal(&new[1..]);
}
