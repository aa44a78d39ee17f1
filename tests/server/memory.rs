//! Key material and request data are gone from memory once they are deleted: of the server and of its HSM worker.

use base64::{Engine, prelude::BASE64_STANDARD};
use openssl::pkey::{Id, PKey, Private};
use serde_json::{Value, json};
use sos::secret::random_array;

use crate::byok;
use crate::canary::{Canaries, Trace};
use crate::support::{Place, Server, left_out};

/// Types with their exports, and whether SoftHSM can hold them. RSA keys of 3072 bits go the way of the others.
const TYPES: [(&str, &[&str], bool); 11] = [
    ("aes128-gcm96", &["encryption-key", "hmac-key"], true),
    ("aes256-gcm96", &["encryption-key", "hmac-key"], true),
    ("chacha20-poly1305", &["encryption-key", "hmac-key"], false),
    ("xchacha20-poly1305", &["encryption-key", "hmac-key"], false),
    ("ed25519", &["signing-key", "hmac-key"], false),
    ("ecdsa-p256", &["signing-key", "hmac-key"], true),
    ("ecdsa-p384", &["signing-key", "hmac-key"], true),
    ("ecdsa-p521", &["signing-key", "hmac-key"], true),
    ("rsa-2048", &["encryption-key", "hmac-key"], false),
    ("rsa-4096", &["encryption-key", "hmac-key"], false),
    ("hmac", &["hmac-key"], false),
];

/// Whether this process may read the memory of others; says loudly when it may not.
fn may_look(server: &Server<'_>) -> bool {
    let readable = server.pids().iter().all(|pid| std::fs::File::open(format!("/proc/{pid}/mem")).is_ok());
    if !readable {
        left_out("reading the memory of other processes needs root with CAP_SYS_PTRACE");
    }
    readable
}

fn traces(server: &Server<'_>, canaries: &Canaries) -> Vec<Trace> {
    server.pids().iter().flat_map(|pid| canaries.traces(*pid)).collect()
}

#[track_caller]
fn assert_gone(server: &Server<'_>, canaries: &Canaries, when: &str) {
    let traces = traces(server, canaries);
    assert!(traces.is_empty(), "{when} there are {} traces in memory:\n{traces:#?}", traces.len());
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

fn text(reply: &Value, field: &str) -> String {
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
        if !kind.contains("rsa") {
            let made = server.put(&format!("transit/datakey/plaintext/{name}"), json!({})).ok();
            canaries.bytes(&format!("data key of {name}"), &BASE64_STANDARD.decode(text(&made, "plaintext")).unwrap());
        }
    }
    if kind.contains("rsa") || kind.contains("ec") || kind.contains("ed25519") {
        let signed = server.put(&format!("transit/sign/{name}"), json!({"input": input})).ok();
        let body = json!({"input": input, "signature": text(&signed, "signature")});
        assert_eq!(server.put(&format!("transit/verify/{name}"), body).ok()["data"]["valid"], true);
    }
    server.put(&format!("transit/hmac/{name}"), json!({"input": input})).ok();
}

fn delete_key(server: &Server<'_>, name: &str) {
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

fn found(traces: &[Trace], canary: &str) -> bool {
    traces.iter().any(|trace| trace.canary == canary && trace.form == "raw")
}

fn plant_use_delete_and_look(server: &mut Server<'_>, levels: &[&str]) {
    let mut canaries = Canaries::default();
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    let names = make_keys(server, &mut canaries, levels);
    // While its key is in use it must be found, or the search proves nothing.
    let now = traces(server, &canaries);
    for kind in ["aes128-gcm96", "aes256-gcm96", "chacha20-poly1305"] {
        assert!(found(&now, &format!("encryption-key of {kind}-software")), "the search does not find the {kind} key in use");
    }
    restore_keys(server, &mut canaries, &names);
    import_keys(server, &mut canaries);
    other_secrets(server, &mut canaries);
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
