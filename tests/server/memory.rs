//! Key material and request data are gone from memory once they are deleted: of the server and of its HSM worker.

use base64::{Engine, prelude::BASE64_STANDARD};
use openssl::pkey::{Id, PKey, Private};
use serde_json::{Value, json};
use sos::secret::random_array;

use crate::byok;
use crate::canary::{Canaries, Trace};
use crate::connections::{self, Talk};
use crate::listeners::Authority;
use crate::support::{Place, Server, left_out};
use crate::{memory_derived, memory_refused};

/// Types with their exports, and whether SoftHSM can hold them.
const TYPES: [(&str, &[&str], bool); 12] = [
    ("aes128-gcm96", &["encryption-key", "hmac-key"], true),
    ("aes256-gcm96", &["encryption-key", "hmac-key"], true),
    ("chacha20-poly1305", &["encryption-key", "hmac-key"], false),
    ("xchacha20-poly1305", &["encryption-key", "hmac-key"], false),
    ("ed25519", &["signing-key", "hmac-key"], false),
    ("ecdsa-p256", &["signing-key", "hmac-key"], true),
    ("ecdsa-p384", &["signing-key", "hmac-key"], true),
    ("ecdsa-p521", &["signing-key", "hmac-key"], true),
    ("rsa-2048", &["encryption-key", "hmac-key"], true),
    ("rsa-3072", &["encryption-key", "hmac-key"], true),
    ("rsa-4096", &["encryption-key", "hmac-key"], true),
    ("hmac", &["hmac-key"], false),
];

const PIN: &str = "the PIN";

/// Whether this process may read the memory of others; says loudly when it may not.
pub fn may_look(server: &Server<'_>) -> bool {
    let readable = server.pids().iter().all(|pid| std::fs::File::open(format!("/proc/{pid}/mem")).is_ok());
    if !readable {
        left_out("reading the memory of other processes needs root with CAP_SYS_PTRACE");
    }
    readable
}

pub fn traces(server: &Server<'_>, canaries: &Canaries) -> Vec<Trace> {
    server.pids().iter().flat_map(|pid| canaries.traces(*pid)).collect()
}

/// Nothing is found, at the latest when the stacks of all threads were overwritten, which happens every two seconds.
#[track_caller]
pub fn assert_gone(server: &Server<'_>, canaries: &Canaries, when: &str) {
    let began = std::time::Instant::now();
    loop {
        let mut traces = traces(server, canaries);
        // The worker keeps the PIN, as text: it logs in again by itself when the device was lost and came back.
        traces.retain(|trace| !(trace.canary == PIN && trace.form == "text" && trace.place.starts_with("worker ")));
        if traces.is_empty() {
            return;
        }
        assert!(
            began.elapsed() < std::time::Duration::from_secs(8),
            "{when} there are {} traces in memory:\n{traces:#?}",
            traces.len()
        );
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
}

/// The secret numbers of a private key, or its seed.
fn plant_private(canaries: &mut Canaries, name: &str, key: &PKey<Private>) {
    match key.id() {
        Id::RSA => {
            let rsa = key.rsa().unwrap();
            let parts = [rsa.p(), rsa.q(), rsa.dmp1(), rsa.dmq1(), rsa.iqmp(), Some(rsa.d())];
            for (part, number) in ["p", "q", "dp", "dq", "qinv", "d"].iter().zip(parts) {
                canaries.number(&format!("{name} {part}"), &number.unwrap().to_vec());
            }
        }
        Id::EC => canaries.number(name, &key.ec_key().unwrap().private_key().to_vec()),
        Id::ED25519 => canaries.bytes(name, &key.raw_private_key().unwrap()),
        other => panic!("{other:?}"),
    }
}

/// Plants what an export shows.
fn plant_exported(canaries: &mut Canaries, name: &str, text: &str) {
    if text.starts_with("-----") {
        plant_private(canaries, name, &PKey::private_key_from_pem(text.as_bytes()).unwrap());
    } else {
        let bytes = BASE64_STANDARD.decode(text).unwrap();
        // An Ed25519 key ends with its public half.
        canaries.bytes(name, if bytes.len() == 64 { &bytes[..32] } else { &bytes });
    }
}

pub fn text(reply: &Value, field: &str) -> String {
    reply["data"][field].as_str().unwrap_or_else(|| panic!("no {field} in {reply}")).to_owned()
}

/// Does with a key whatever its type can do, with secret texts.
fn use_key(server: &Server<'_>, canaries: &mut Canaries, name: &str, kind: &str) {
    let secret: [u8; 48] = random_array();
    canaries.bytes(&format!("text for {name}"), &secret);
    let input = BASE64_STANDARD.encode(secret);
    if kind.contains("rsa") || kind.contains("poly1305") || kind.contains("gcm") {
        let sealed = text(&server.put(&format!("transit/encrypt/{name}"), json!({"plaintext": input})).ok(), "ciphertext");
        let opened = server.put(&format!("transit/decrypt/{name}"), json!({"ciphertext": sealed})).ok();
        assert_eq!(text(&opened, "plaintext"), input);
        server.put(&format!("transit/rewrap/{name}"), json!({"ciphertext": sealed})).ok();
        let batch = json!({"batch_input": vec![json!({"ciphertext": sealed}); 3]});
        server.put(&format!("transit/decrypt/{name}"), batch).ok();
        let made = server.put(&format!("transit/datakey/plaintext/{name}"), json!({"bits": 512})).ok();
        canaries.bytes(&format!("data key of {name}"), &BASE64_STANDARD.decode(text(&made, "plaintext")).unwrap());
    }
    if kind.contains("rsa") || kind.contains("ec") || kind.contains("ed25519") {
        let signed = server.put(&format!("transit/sign/{name}"), json!({"input": input})).ok();
        let body = json!({"input": input, "signature": text(&signed, "signature")});
        assert_eq!(server.put(&format!("transit/verify/{name}"), body).ok()["data"]["valid"], true);
    }
    server.put(&format!("transit/hmac/{name}"), json!({"input": input})).ok();
}

pub fn delete_key(server: &Server<'_>, name: &str) {
    server.put(&format!("transit/keys/{name}/config"), json!({"deletion_allowed": true})).ok();
    server.call("DELETE", &format!("transit/keys/{name}"), None).ok();
}

/// Makes keys of all types at all levels, exports and uses them. Answers their names.
fn make_keys(server: &Server<'_>, canaries: &mut Canaries, levels: &[&str]) -> Vec<(String, &'static str)> {
    let mut names = Vec::new();
    for level in levels {
        for (kind, exports, in_hsm) in TYPES {
            if *level == "hsm" && !in_hsm {
                continue;
            }
            let name = format!("{kind}-{level}");
            let mut settings =
                json!({"type": kind, "protection_level": level, "exportable": true, "allow_plaintext_backup": true});
            if kind == "hmac" {
                settings["key_size"] = 64.into();
            }
            server.put(&format!("transit/keys/{name}"), settings).ok();
            for export in exports {
                let shown = server.get(&format!("transit/export/{export}/{name}")).ok();
                let shown = shown["data"]["keys"]["1"].as_str().unwrap();
                plant_exported(canaries, &format!("{export} of {name}"), shown);
            }
            server.get(&format!("transit/byok-export/elsewhere/{name}")).ok();
            use_key(server, canaries, &name, kind);
            names.push((name, kind));
        }
    }
    names
}

/// Backs keys up, deletes them, restores them under other names, uses them and deletes them again.
fn restore_keys(server: &Server<'_>, canaries: &mut Canaries, names: &[(String, &'static str)]) {
    for (name, kind) in names {
        let backup = text(&server.get(&format!("transit/backup/{name}")).ok(), "backup");
        canaries.text(&format!("backup of {name}"), &backup);
        delete_key(server, name);
        let restored = format!("{name}-restored");
        server.put(&format!("transit/restore/{restored}"), json!({"backup": backup})).ok();
        use_key(server, canaries, &restored, kind);
        delete_key(server, &restored);
    }
}

/// Imports keys that were made here.
fn import_keys(server: &Server<'_>, canaries: &mut Canaries) {
    let wrapping = byok::wrapping_key(server, "transit");
    let rsa = PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap();
    plant_private(canaries, "imported rsa-2048", &rsa);
    let aes: [u8; 32] = random_array();
    canaries.bytes("imported aes256-gcm96", &aes);
    for (kind, material) in [("aes256-gcm96", aes.to_vec()), ("rsa-2048", rsa.private_key_to_pkcs8().unwrap())] {
        let (blob, ephemeral) = byok::wrap(&wrapping, &material);
        canaries.bytes(&format!("ephemeral key of the imported {kind}"), &ephemeral);
        let name = format!("imported-{kind}");
        let body = json!({"type": kind, "ciphertext": blob, "protection_level": "software"});
        server.put(&format!("transit/keys/{name}/import"), body).ok();
        use_key(server, canaries, &name, kind);
        delete_key(server, &name);
    }
}

/// A version that is trimmed away and a key that is raised into the HSM, both opened before; the keys live on. And a key
/// that is lowered from the HSM, raised again and deleted.
fn trim_raise_and_lower(server: &Server<'_>, canaries: &mut Canaries, levels: &[&str]) {
    let make = |canaries: &mut Canaries, name: &str, kind: &str, level: &str| {
        let settings = json!({"type": kind, "protection_level": level, "exportable": true});
        server.put(&format!("transit/keys/{name}"), settings).ok();
        let shown = server.get(&format!("transit/export/encryption-key/{name}")).ok();
        plant_exported(canaries, &format!("encryption-key of {name}"), shown["data"]["keys"]["1"].as_str().unwrap());
        use_key(server, canaries, name, kind);
    };
    make(canaries, "trimmed", "chacha20-poly1305", "software");
    server.put("transit/keys/trimmed/rotate", json!({})).ok();
    server.put("transit/keys/trimmed/config", json!({"min_decryption_version": 2, "min_encryption_version": 2})).ok();
    server.put("transit/keys/trimmed/trim", json!({"min_available_version": 2})).ok();
    if levels.contains(&"hsm") {
        make(canaries, "raised", "aes256-gcm96", "software");
        server.put("transit/keys/raised/config", json!({"protection_level": "hsm"})).ok();
        make(canaries, "lowered", "aes256-gcm96", "hsm");
        for level in ["software", "hsm"] {
            server.put("transit/keys/lowered/config", json!({"protection_level": level})).ok();
            use_key(server, canaries, "lowered", "aes256-gcm96");
        }
        delete_key(server, "lowered");
    }
}

/// A wrapping token for `data`.
fn wrap(server: &Server<'_>, data: &Value) -> String {
    let request = ureq::post(format!("{}/v1/sys/wrapping/wrap", server.url()));
    let request = request.header("X-Vault-Token", server.token.as_deref().unwrap()).header("X-Vault-Wrap-TTL", "60s");
    let reply: Value =
        serde_json::from_str(&request.send(data.to_string()).unwrap().body_mut().read_to_string().unwrap()).unwrap();
    reply["wrap_info"]["token"].as_str().unwrap().to_owned()
}

/// A secret in both versions of KV, a wrapped answer, and tokens that are made, used and revoked.
fn other_secrets(server: &mut Server<'_>, canaries: &mut Canaries) {
    let secret = || hex::encode(random_array::<32>());
    for (mount, path, version) in [("kv1", "kv1/a", "1"), ("kv2", "kv2/data/a", "2")] {
        server.put(&format!("sys/mounts/{mount}"), json!({"type": "kv", "options": {"version": version}})).ok();
        let password = secret();
        canaries.text(&format!("password in {mount}"), &password);
        let data = json!({"password": password});
        server.put(path, if version == "2" { json!({"data": data}) } else { data }).ok();
        assert!(server.get(path).text.contains(&password));
        let deleted = if version == "2" { "kv2/metadata/a" } else { "kv1/a" };
        server.call("DELETE", deleted, None).ok();
    }
    let wrapped = secret();
    canaries.text("wrapped text", &wrapped);
    let token = wrap(server, &json!({"text": wrapped}));
    canaries.text("wrapping token", &token[4..]);
    assert!(server.put("sys/wrapping/unwrap", json!({"token": token})).text.contains(&wrapped));
    let random = server.put("transit/random/64", json!({"format": "hex"})).ok();
    canaries.bytes("random bytes", &hex::decode(text(&random, "random_bytes")).unwrap());
    let root = server.token.clone();
    for kind in ["service", "batch"] {
        let made = server.put("auth/token/create", json!({"policies": ["default"], "type": kind, "ttl": "1h"})).ok();
        let token = made["auth"]["client_token"].as_str().unwrap().to_owned();
        canaries.text(&format!("{kind} token"), &token[4..]);
        server.token = Some(token.clone());
        server.get("auth/token/lookup-self").ok();
        server.token = root.clone();
        if kind == "service" {
            server.put("auth/token/revoke", json!({"token": token})).ok();
        }
    }
}

/// The PIN, which the server hands to its worker and forgets.
fn plant_pin(server: &Server<'_>, canaries: &mut Canaries) {
    let pin = std::fs::read_to_string(server.place.path("hsm/pin")).unwrap();
    canaries.text(PIN, pin.trim());
}

fn found(traces: &[Trace], canary: &str) -> bool {
    traces.iter().any(|trace| trace.canary == canary && trace.form == "raw")
}

fn plant_use_delete_and_look(server: &mut Server<'_>, levels: &[&str]) {
    let mut canaries = Canaries::default();
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    if levels.contains(&"hsm") {
        plant_pin(server, &mut canaries);
    }
    // What byok-export wraps is for this mount's own wrapping key.
    let elsewhere = byok::wrapping_key(server, "transit");
    server.put("transit/keys/elsewhere/import", json!({"type": "rsa-4096", "public_key": elsewhere})).ok();
    let names = make_keys(server, &mut canaries, levels);
    let derived = memory_derived::make_keys(server, &mut canaries);
    let half_sent = memory_refused::half_sent(server, &mut canaries);
    // While its key is in use it must be found, or the search proves nothing.
    let now = traces(server, &canaries);
    memory_refused::assert_half_sent_is_found(&now);
    for key in &derived {
        let root = format!("root of {}", key.name);
        assert!(found(&now, &root), "the search does not find the {root} in use");
    }
    if levels.contains(&"hsm") {
        let in_worker = |trace: &Trace| trace.canary == PIN && trace.place.starts_with("worker ");
        assert!(now.iter().any(in_worker), "the search does not find the PIN in the worker");
    }
    for (kind, exports, _) in TYPES {
        // Every key that encrypts or signs has an HMAC key beside it; its own is the first.
        let own = format!("{} of {kind}-software", exports[0]);
        assert!(now.iter().any(|trace| trace.canary.starts_with(&own)), "the search does not find the {own} in use");
    }
    memory_refused::refuse(server, &mut canaries, "elsewhere", &derived[0].name);
    restore_keys(server, &mut canaries, &names);
    memory_derived::restore_keys(server, &mut canaries, &derived);
    import_keys(server, &mut canaries);
    trim_raise_and_lower(server, &mut canaries, levels);
    other_secrets(server, &mut canaries);
    drop(half_sent);
    assert_gone(server, &canaries, "after everything was deleted");
}

#[test]
fn deleted_secrets_leave_no_trace_in_memory() {
    let place = Place::shamir();
    let mut server = place.start();
    let made = server.init(1, 1);
    if !may_look(&server) {
        return;
    }
    server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    plant_use_delete_and_look(&mut server, &["software"]);
}

#[test]
fn deleted_secrets_leave_no_trace_in_memory_beside_an_hsm() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    if !may_look(&server) {
        return;
    }
    plant_use_delete_and_look(&mut server, &["software", "hsm"]);
}

/// A long text that is its own canary.
fn long_text(canaries: &mut Canaries, name: &str) -> String {
    let secret: Vec<u8> = (0..40).flat_map(|_| random_array::<32>()).collect();
    canaries.bytes(name, &secret);
    BASE64_STANDARD.encode(secret)
}

/// Keys and texts over one connection, which stays open. A connection's buffers hold its last request and its last answer
/// until the next ones, so a long text that is no secret goes to and fro at the end. Answers what is left to delete.
fn use_connection(talk: &mut dyn Talk, kind: &str, token: &str, canaries: &mut Canaries) -> Vec<String> {
    let mut keys = Vec::new();
    for level in ["software", "hsm"] {
        let name = format!("{kind}-{level}");
        let made = json!({"type": "rsa-2048", "protection_level": level, "exportable": true, "allow_plaintext_backup": true});
        talk.done("PUT", &format!("transit/keys/{name}-rsa"), token, &made);
        let shown = talk.done("GET", &format!("transit/export/encryption-key/{name}-rsa"), token, &Value::Null);
        plant_exported(canaries, &format!("{name}-rsa over {kind}"), shown["keys"]["1"].as_str().unwrap());
        let backup = talk.done("GET", &format!("transit/backup/{name}-rsa"), token, &Value::Null);
        canaries.text(&format!("backup of {name}-rsa over {kind}"), backup["backup"].as_str().unwrap());
        talk.done("PUT", &format!("transit/keys/{name}"), token, &json!({"protection_level": level}));
        let password = long_text(canaries, &format!("password of {name}"));
        talk.done("PUT", &format!("kv/{name}"), token, &json!({"password": password}));
        assert_eq!(talk.done("GET", &format!("kv/{name}"), token, &Value::Null)["password"], password);
        let mut batch = Vec::new();
        for at in 0..5 {
            let plain = long_text(canaries, &format!("text {at} for {name}"));
            batch.push(json!({"plaintext": plain}));
        }
        let sealed = talk.done("PUT", &format!("transit/encrypt/{name}"), token, &json!({"batch_input": batch}));
        let opened =
            talk.done("PUT", &format!("transit/decrypt/{name}"), token, &json!({"batch_input": sealed["batch_results"]}));
        assert_eq!(opened["batch_results"][4]["plaintext"], batch[4]["plaintext"]);
        keys.extend([name.clone(), format!("{name}-rsa")]);
    }
    let filler = "no secret ".repeat(5000);
    talk.done("PUT", "kv/filler", token, &json!({"text": filler}));
    assert_eq!(talk.done("GET", "kv/filler", token, &Value::Null)["text"], filler);
    keys
}

#[test]
fn open_connections_hold_nothing_that_was_deleted() {
    let Some(place) = Place::hsm() else { return };
    let authority = Authority::new();
    authority.serve_tls(&place, &format!("{}\n{}", place.plain_config("sled"), place.seal_stanza()));
    let mut server = place.start();
    server.init(1, 1);
    if !may_look(&server) {
        return;
    }
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    server.put("sys/mounts/kv", json!({"type": "kv"})).ok();
    let token = server.token.clone().unwrap();
    let secure = server.urls.iter().find(|url| url.starts_with("https://")).unwrap().clone();
    let mut talks: Vec<(&str, Box<dyn Talk>)> = vec![
        ("http1", Box::new(connections::plain(server.url()))),
        ("tls", Box::new(connections::tls(&secure, &authority.pem()))),
    ];
    let mut canaries = Canaries::default();
    plant_pin(&server, &mut canaries);
    let mut keys = Vec::new();
    for (kind, talk) in &mut talks {
        keys.extend(use_connection(talk.as_mut(), kind, &token, &mut canaries));
    }
    for name in &keys {
        delete_key(&server, name);
        server.call("DELETE", &format!("kv/{name}"), None).ok();
    }
    assert_gone(&server, &canaries, "with connections open over which it went");
    for (_, talk) in &mut talks {
        talk.done("GET", "auth/token/lookup-self", &token, &Value::Null);
    }
}
