//! Every key type at every protection level: what each operation answers, and the reason of each refusal.
//!
//! [`answer`] is the table, of a server with SoftHSM 2 as its HSM; the rest of the file asks for everything in it.

use std::sync::Mutex;

use serde_json::{Value, json};

use crate::byok;
use crate::support::{Place, Reply, Server, eventually};

/// A key type and what it can do.
struct Kind {
    name: &'static str,
    encrypts: bool,
    signs: bool,
    derives: bool,
    /// Why it cannot be `hsm`; empty where it can.
    not_hsm: &'static str,
    /// Why it cannot be `hsm-only`; empty where it can.
    not_only: &'static str,
}

const NOT_ALL: &str = "HSMs cannot do all of its operations";
const FAILS: &str = "on this HSM: ";

const fn kind(name: &'static str, can: &'static str, not_hsm: &'static str, not_only: &'static str) -> Kind {
    let (mut encrypts, mut signs, mut derives, mut at) = (false, false, false, 0);
    while at < can.len() {
        match can.as_bytes()[at] {
            b'e' => encrypts = true,
            b's' => signs = true,
            _ => derives = true,
        }
        at += 1;
    }
    Kind { name, encrypts, signs, derives, not_hsm, not_only }
}

/// The slow ones first, so that they do not wait for each other at the end.
const KINDS: [Kind; 12] = [
    kind("rsa-4096", "es", "", ""),
    kind("rsa-3072", "es", "", ""),
    kind("rsa-2048", "es", "", ""),
    kind("ecdsa-p521", "s", "", ""),
    kind("ecdsa-p384", "s", "", ""),
    kind("ecdsa-p256", "s", "", ""),
    kind("ed25519", "sd", FAILS, ""),
    kind("aes128-gcm96", "ed", "", ""),
    kind("aes256-gcm96", "ed", "", ""),
    kind("chacha20-poly1305", "ed", NOT_ALL, NOT_ALL),
    kind("xchacha20-poly1305", "ed", NOT_ALL, NOT_ALL),
    kind("hmac", "", NOT_ALL, NOT_ALL),
];

const LEVELS: [&str; 3] = ["software", "hsm", "hsm-only"];

/// What an operation answers.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// It is done.
    Done,
    /// 400 with a text that holds this reason.
    Refused(&'static str),
    /// 500 with a text that holds this: what Vault answers to this mistake, so clients know it.
    AsVault(&'static str),
}

use Answer::{AsVault, Done, Refused};

/// The table: a type, a level, an operation. `config protection_level=…` is for a key that may be exported, as are all keys
/// here but those at `hsm-only`.
fn answer(operation: &str, kind: &Kind, level: &str) -> Answer {
    let only = level == "hsm-only";
    let why_not = |level: &str| match level {
        "hsm" => kind.not_hsm,
        "hsm-only" => kind.not_only,
        _ => "",
    };
    let unless = |reason: &'static str| if reason.is_empty() { Done } else { Refused(reason) };
    match operation {
        "create" => unless(why_not(level)),
        "create derived" if !kind.derives => AsVault("key derivation and convergent encryption not supported"),
        "create convergent" if !kind.encrypts || !kind.derives => AsVault("convergent encryption not supported for keys of type"),
        "create derived" | "create convergent" if level != "software" => {
            Refused("derivation needs the key material outside the HSM")
        }
        "create exportable" | "create allow_plaintext_backup" if only => Refused("the key never leaves the HSM"),
        "create exportable" | "create allow_plaintext_backup" => unless(why_not(level)),
        "encrypt" | "datakey plaintext" | "datakey wrapped" if !kind.encrypts => {
            Refused("message encryption not supported for key type")
        }
        "decrypt" | "rewrap" if !kind.encrypts => Refused("message decryption not supported for key type"),
        "sign" | "csr" if !kind.signs => Refused("does not support signing"),
        "verify" if !kind.signs => Refused("does not support verification"),
        "export encryption-key" | "export signing-key" | "export hmac-key" | "backup" | "byok-export" if only => {
            Refused("protection_level \"hsm-only\"")
        }
        "export encryption-key" if !kind.encrypts => Refused("encryption not supported for the key"),
        "export signing-key" if !kind.signs => Refused("signing not supported for the key"),
        "export public-key" if !kind.signs => AsVault("unknown key type"),
        "export certificate-chain" if !kind.signs => Refused("do not support signing"),
        "export certificate-chain" => AsVault("does not have a certificate chain imported"),
        "restore at hsm-only" | "import at hsm-only" => Refused("its material has been outside the HSM"),
        "restore at hsm" | "import at hsm" => unless(kind.not_hsm),
        "config exportable" | "config allow_plaintext_backup" if only => Refused("the key never leaves the HSM"),
        "config protection_level=hsm-only" if !only => Refused("only new keys can have protection_level \"hsm-only\""),
        "config protection_level=hsm" | "config protection_level=software" if only => Refused("never leaves its HSM"),
        "config protection_level=hsm" => unless(kind.not_hsm),
        _ => Done,
    }
}

/// One key under test.
struct Bench<'a> {
    server: &'a Server<'a>,
    kind: &'static Kind,
    level: &'static str,
    /// The key of the type at this level.
    name: String,
    /// A backup and a wrapped key of the key.
    backup: Option<Value>,
    wrapped: Option<Value>,
    /// What was encrypted and signed with the first version.
    ciphertext: Value,
    signature: Value,
    asked: usize,
}

const INPUT: &str = "b3BlbiBzZXNhbWU=";

impl Bench<'_> {
    /// Holds the answer to an operation against the table; `None` where it was refused as it should be.
    #[track_caller]
    fn judge(&mut self, operation: &str, reply: Reply) -> Option<Value> {
        let (kind, level) = (self.kind, self.level);
        self.asked += 1;
        let (status, reason) = match answer(operation, kind, level) {
            Done => {
                assert!(
                    (200..300).contains(&reply.status),
                    "{operation}, {} at {level}: {} {}",
                    kind.name,
                    reply.status,
                    reply.text
                );
                return Some(reply.body["data"].clone());
            }
            Refused(reason) => (400, reason),
            AsVault(reason) => (500, reason),
        };
        let got = (reply.status, reply.errors());
        assert!(
            got.0 == status && got.1.contains(reason),
            "{operation}, {} at {level}: {got:?} is not {status} {reason:?}",
            kind.name
        );
        None
    }

    #[track_caller]
    fn put(&mut self, operation: &str, path: &str, body: Value) -> Option<Value> {
        let reply = self.server.put(&format!("transit/{path}"), body);
        self.judge(operation, reply)
    }

    #[track_caller]
    fn get(&mut self, operation: &str, path: &str) -> Option<Value> {
        let reply = self.server.get(&format!("transit/{path}"));
        self.judge(operation, reply)
    }

    /// The body that makes a key of the type, at the level.
    fn of_kind(&self, more: Value) -> Value {
        let mut body = json!({"type": self.kind.name, "protection_level": self.level});
        if self.kind.name == "hmac" {
            body["key_size"] = 32.into();
        }
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    }

    fn shown(&self, name: &str) -> Value {
        self.server.get(&format!("transit/keys/{name}")).ok()["data"].clone()
    }

    /// Makes the key; whether the level can be had.
    fn create(&mut self) -> bool {
        let name = self.name.clone();
        let may = self.level != "hsm-only";
        let made =
            self.put("create", &format!("keys/{name}"), self.of_kind(json!({"exportable": may, "allow_plaintext_backup": may})));
        for field in ["derived", "convergent", "exportable", "allow_plaintext_backup"] {
            // A key that would be made is made once, in software: RSA keys are slow.
            let operation = format!("create {field}");
            if matches!(answer(&operation, self.kind, self.level), Done) && !matches!(field, "derived" | "convergent") {
                continue;
            }
            let more = if field == "convergent" {
                json!({"derived": true, "convergent_encryption": true})
            } else {
                json!({field: true})
            };
            let other = format!("{name}-{field}");
            let made = self.put(&operation, &format!("keys/{other}"), self.of_kind(more));
            let there = self.server.get(&format!("transit/keys/{other}")).status == 200;
            assert_eq!(there, made.is_some(), "a refused key is not there: {other}");
        }
        if made.is_none() {
            assert_eq!(self.server.get(&format!("transit/keys/{name}")).status, 404);
            return false;
        }
        let shown = self.shown(&name);
        assert_eq!((&shown["type"], &shown["protection_level"]), (&json!(self.kind.name), &json!(self.level)));
        true
    }

    fn encrypt_and_sign(&mut self) {
        let name = self.name.clone();
        let sealed = self.put("encrypt", &format!("encrypt/{name}"), json!({"plaintext": INPUT}));
        self.ciphertext = sealed.map_or(json!("vault:v1:AAAA"), |data| data["ciphertext"].clone());
        self.opens(&name);
        let rewrapped = self.put("rewrap", &format!("rewrap/{name}"), json!({"ciphertext": self.ciphertext}));
        assert!(rewrapped.is_none_or(|data| data["ciphertext"] != self.ciphertext));
        for (form, shown) in [("plaintext", true), ("wrapped", false)] {
            let made = self.put(&format!("datakey {form}"), &format!("datakey/{form}/{name}"), json!({}));
            if let Some(made) = made {
                assert_eq!(made["plaintext"].is_string(), shown);
                let opened = self.server.put(&format!("transit/decrypt/{name}"), json!({"ciphertext": made["ciphertext"]})).ok();
                assert!(!shown || opened["data"]["plaintext"] == made["plaintext"]);
            }
        }
        let signed = self.put("sign", &format!("sign/{name}"), json!({"input": INPUT}));
        self.signature = signed.map_or(json!("vault:v1:AAAA"), |data| data["signature"].clone());
        self.verifies(&name);
        let mac = self.put("hmac", &format!("hmac/{name}"), json!({"input": INPUT})).unwrap();
        let verified = self.put("verify hmac", &format!("verify/{name}"), json!({"input": INPUT, "hmac": mac["hmac"]})).unwrap();
        assert_eq!(verified["valid"], true);
        let csr = self.put("csr", &format!("keys/{name}/csr"), json!({}));
        if let Some(csr) = csr {
            let request = openssl::x509::X509Req::from_pem(csr["csr"].as_str().unwrap().as_bytes()).unwrap();
            assert!(request.verify(&request.public_key().unwrap()).unwrap());
        }
    }

    /// What the first version encrypted is opened by `name`.
    #[track_caller]
    fn opens(&mut self, name: &str) {
        let opened = self.put("decrypt", &format!("decrypt/{name}"), json!({"ciphertext": self.ciphertext}));
        assert!(opened.is_none_or(|data| data["plaintext"] == INPUT), "{name}");
    }

    /// What the first version signed is verified by `name`, which signs as well.
    #[track_caller]
    fn verifies(&mut self, name: &str) {
        let signed = self.put("sign", &format!("sign/{name}"), json!({"input": INPUT}));
        for signature in [Some(self.signature.clone()), signed.map(|data| data["signature"].clone())].into_iter().flatten() {
            let verified = self.put("verify", &format!("verify/{name}"), json!({"input": INPUT, "signature": signature}));
            assert!(verified.is_none_or(|data| data["valid"] == true), "{name}");
        }
    }

    fn export(&mut self) {
        let name = self.name.clone();
        for what in ["encryption-key", "signing-key", "hmac-key", "public-key", "certificate-chain"] {
            if let Some(shown) = self.get(&format!("export {what}"), &format!("export/{what}/{name}")) {
                assert!(shown["keys"]["1"].as_str().is_some_and(|text| !text.is_empty()), "{what} of {name}: {shown}");
            }
        }
        let backup = self.get("backup", &format!("backup/{name}")).map(|data| data["backup"].clone());
        let wrapped = self.get("byok-export", &format!("byok-export/elsewhere/{name}")).map(|data| data["keys"]["1"].clone());
        (self.backup, self.wrapped) = (backup, wrapped);
    }

    /// The key comes back from outside, at every level that can be named.
    fn restore_and_import(&mut self, level: &'static str) {
        let (Some(backup), Some(wrapped)) = (self.backup.clone(), self.wrapped.clone()) else { return };
        for (operation, path, body) in [
            ("restore", "restore/", json!({"backup": backup, "protection_level": level})),
            ("import", "import", json!({"type": self.kind.name, "ciphertext": wrapped, "protection_level": level})),
        ] {
            let name = format!("{}-{operation}-{level}", self.name);
            let path = if operation == "restore" { format!("{path}{name}") } else { format!("keys/{name}/{path}") };
            let done = self.put(&format!("{operation} at {level}"), &path, body);
            let there = self.server.get(&format!("transit/keys/{name}")).status == 200;
            assert_eq!(there, done.is_some(), "a refused key is not there: {name}");
            if there {
                assert_eq!(self.shown(&name)["protection_level"], level, "{name}");
                self.opens(&name);
                self.verifies(&name);
            }
        }
    }

    fn rotate_and_trim(&mut self) {
        let name = self.name.clone();
        let rotated = self.put("rotate", &format!("keys/{name}/rotate"), json!({})).unwrap();
        assert_eq!((&rotated["latest_version"], &rotated["protection_level"]), (&json!(2), &json!(self.level)));
        assert!(rotated["protection_levels"].is_null(), "{rotated}");
        self.opens(&name);
        self.verifies(&name);
        for to in LEVELS {
            let Some(data) = self.put(
                &format!("config protection_level={to}"),
                &format!("keys/{name}/config"),
                json!({"protection_level": to}),
            ) else {
                continue;
            };
            assert_eq!((&data["protection_level"], &data["protection_levels"]), (&json!(to), &Value::Null));
            let moved = data["moved_into_hsm"].as_object().map(|versions| versions.keys().cloned().collect::<Vec<_>>());
            assert_eq!(moved, (to == "hsm").then(|| vec!["1".to_owned(), "2".to_owned()]), "{data}");
            self.opens(&name);
            self.verifies(&name);
        }
        for field in ["exportable", "allow_plaintext_backup", "deletion_allowed"] {
            self.put(&format!("config {field}"), &format!("keys/{name}/config"), json!({field: true}));
        }
        let bounds = json!({"min_decryption_version": 2, "min_encryption_version": 2});
        self.put("config", &format!("keys/{name}/config"), bounds);
        let trimmed = self.put("trim", &format!("keys/{name}/trim"), json!({"min_available_version": 2})).unwrap();
        assert_eq!(trimmed["min_available_version"], 2);
        if self.kind.encrypts {
            let old = self.server.put(&format!("transit/decrypt/{name}"), json!({"ciphertext": self.ciphertext}));
            assert!(old.status == 400 && old.errors().contains("too old"), "{}", old.text);
        }
        let reply = self.server.call("DELETE", &format!("transit/keys/{name}"), None);
        self.judge("delete", reply);
    }
}

/// Everything there is to ask about a type; how many answers were looked at.
fn walk(server: &Server<'_>, kind: &'static Kind) -> usize {
    let name = String::new();
    let mut bench = Bench {
        server,
        kind,
        level: "software",
        name,
        backup: None,
        wrapped: None,
        ciphertext: Value::Null,
        signature: Value::Null,
        asked: 0,
    };
    for level in LEVELS {
        bench.level = level;
        bench.name = format!("{}-{level}", kind.name);
        if bench.create() {
            bench.encrypt_and_sign();
            bench.export();
            LEVELS.into_iter().for_each(|level| bench.restore_and_import(level));
            bench.rotate_and_trim();
        }
    }
    bench.asked
}

/// Objects on the token, which SoftHSM keeps in a file each.
fn objects(place: &Place) -> usize {
    let tokens = std::fs::read_dir(place.path("hsm/tokens")).unwrap().flatten();
    let files = tokens.flat_map(|token| std::fs::read_dir(token.path()).unwrap().flatten());
    files.filter(|file| file.path().extension().is_some_and(|kind| kind == "object")).count()
}

#[test]
fn every_type_at_every_level_does_or_refuses_with_the_reason() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    // What byok-export wraps to this key is for this mount's own import.
    let elsewhere = byok::wrapping_key(&server, "transit");
    server.put("transit/keys/elsewhere/import", json!({"type": "rsa-4096", "public_key": elsewhere})).ok();
    let before = objects(&place);
    let left = Mutex::new(KINDS.iter());
    let asked: usize = std::thread::scope(|scope| {
        let work = || {
            let mut asked = 0;
            loop {
                let next = left.lock().unwrap().next();
                let Some(kind) = next else { return asked };
                asked += walk(&server, kind);
            }
        };
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert!(asked > 1000, "only {asked} answers were looked at");
    eventually("the objects of deleted keys have left the token", || objects(&place) == before);
}
