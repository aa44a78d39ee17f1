//! The engine over a store in memory, without HTTP: requests go through the same table as real ones.

mod convergent;
mod counts;
mod damage;
mod forms;
mod hsm;
mod races;
mod restores;
mod types;
mod vectors;
mod waiting;

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use serde_json::{Value, json};

use super::*;
use crate::{
    barrier::{Barrier, Txn, View},
    core::{
        engine::{Call, Caller, Engine},
        failure::Kind,
        mounts::{MountConfig, MountEntry, MountRecord, Table},
        reply::{Body, Reply},
        request::{Operation, Request},
        wanted::Wanted,
    },
    engines::Services,
    hsm::{Hsm, fake::FakeHsm},
    seal::{Seal, SealSettings, wire::InitRequest},
    secret::SecretBytes,
    storage::InMem,
    wire::json::RawObject,
    zones::Zones,
};

/// A mount on a fresh store.
struct Bench {
    barrier: Arc<Barrier>,
    clock: Clock,
    services: Arc<Services>,
    options: BTreeMap<String, String>,
    transit: Arc<Transit>,
}

fn context(barrier: &Arc<Barrier>, clock: &Clock, services: &Arc<Services>, options: &BTreeMap<String, String>) -> MountContext {
    let entry = MountEntry {
        table: Table::Secret,
        path: "transit/".into(),
        kind: "transit".into(),
        uuid: "uuid".into(),
        accessor: "transit_1".into(),
        description: String::new(),
        options: options.clone(),
        config: MountConfig::default(),
        local: false,
        seal_wrap: false,
        external_entropy_access: false,
    };
    let view = View::new(Arc::clone(barrier), "logical/uuid").unwrap();
    let record = MountRecord::new(&View::new(Arc::clone(barrier), "core").unwrap(), &entry.uuid);
    MountContext {
        entry,
        record,
        view,
        clock: clock.clone(),
        system_default_ttl: 0,
        system_max_ttl: 0,
        services: Arc::clone(services),
    }
}

/// The same once the mount is written down so.
fn mounted(barrier: &Arc<Barrier>, clock: &Clock, services: &Arc<Services>, options: &BTreeMap<String, String>) -> MountContext {
    let context = context(barrier, clock, services, options);
    let txn = Txn::new().put("core/mounts/uuid", serde_json::to_vec(&context.entry).unwrap());
    let commit = || tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(barrier.commit(txn)).unwrap();
    // On a thread of its own: this one is in a runtime already.
    std::thread::scope(|scope| scope.spawn(commit).join().unwrap());
    context
}

/// An initialised cluster, its services around `hsm` where there is one.
async fn cluster(hsm: Option<Arc<FakeHsm>>) -> (Arc<Barrier>, Arc<Services>) {
    let barrier = Arc::new(Barrier::new(Arc::new(InMem::open().unwrap())));
    let hsm = hsm.map(|hsm| hsm as Arc<dyn Hsm>);
    let seal = Seal::new(Arc::clone(&barrier), hsm.clone(), SealSettings { escrow: true, ..SealSettings::default() });
    let shares = InitRequest { secret_shares: 1, secret_threshold: 1, ..InitRequest::default() };
    let escrow = InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() };
    let request = if hsm.is_some() { escrow } else { shares };
    let zones = Arc::new(Zones::new(Arc::clone(&barrier), hsm.clone(), "test"));
    let made = seal.init(request, Clock::system().now()).await.unwrap();
    if let Some(share) = made.keys.first() {
        let request = serde_json::from_value(json!({ "key": share })).unwrap();
        seal.unseal(request).await.unwrap();
    }
    let services = Services { hsm, zones, default_protection: None, transit: Arc::default() };
    (barrier, Arc::new(services))
}

impl Bench {
    async fn new() -> Self {
        Self::with(None, &[]).await
    }

    async fn with(hsm: Option<Arc<FakeHsm>>, options: &[(&str, &str)]) -> Self {
        let (barrier, services) = cluster(hsm).await;
        let clock = Clock::movable();
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let transit = Arc::new(Transit::new(&mounted(&barrier, &clock, &services, &options)).unwrap());
        Self { barrier, clock, services, options, transit }
    }

    /// The same store after the process died: nothing of memory is left.
    fn restart(&mut self) {
        let hsm = self.services.hsm.clone();
        let zones = Arc::new(Zones::new(Arc::clone(&self.barrier), hsm.clone(), "test"));
        self.services = Arc::new(Services { hsm, zones, default_protection: None, transit: Arc::default() });
        self.transit = Arc::new(Transit::new(&mounted(&self.barrier, &self.clock, &self.services, &self.options)).unwrap());
    }

    async fn call(&self, operation: Operation, path: &str, body: Value) -> Result<Reply, Failure> {
        self.call_while(Wanted::default(), operation, path, body).await
    }

    /// The same by a client that waits only so long.
    async fn call_while(&self, wanted: Wanted, operation: Operation, path: &str, body: Value) -> Result<Reply, Failure> {
        let request = Request { wanted, ..Request::internal(operation, path, serde_json::to_vec(&body).unwrap()) };
        let object = RawObject::parse(&request.body).unwrap();
        let found = self.transit.resolve(path);
        let captures = found.as_ref().map(|found| found.captures.clone()).unwrap_or_default();
        let mount = context(&self.barrier, &self.clock, &self.services, &self.options).entry;
        let caller = Caller::anyone(None);
        let mut call = Call {
            request: &request,
            operation,
            path,
            captures: &captures,
            body: &object,
            caller: &caller,
            mount: &mount,
            now: self.clock.now(),
        };
        let route = found.as_ref().map(|found| found.route);
        if operation == Operation::Update
            && let Some(route) = route
            && let Some(false) = self.transit.exists(route, &call).await?
        {
            call.operation = Operation::Create;
        }
        self.transit.run(route, &call).await
    }

    /// The mount is being removed from now on.
    async fn remove(&self) {
        self.barrier.commit(Txn::new().put("core/removed/uuid", b"{}".to_vec())).await.unwrap();
    }

    /// One turn of that, of no time at all.
    async fn retire(&self) -> Result<Left, Failure> {
        let removal = Removal::turn(&View::new(Arc::clone(&self.barrier), "core").unwrap(), "uuid", Duration::ZERO);
        Engine::retire(self.transit.as_ref(), &removal).await
    }

    /// All turns of it.
    async fn remove_wholly(&self) {
        self.remove().await;
        while self.retire().await.unwrap() == Left::Something {}
    }

    /// Waits until objects of deleted keys are destroyed, as far as that goes now.
    async fn destroyed(&self) {
        let idle = tokio::time::timeout(Duration::from_secs(60), self.transit.store.destroying.lock());
        drop(idle.await.expect("objects are being destroyed for a minute"));
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        data(self.call(Operation::Update, path, body).await.unwrap())
    }

    async fn refused(&self, path: &str, body: Value) -> String {
        self.call(Operation::Update, path, body).await.unwrap_err().text().to_owned()
    }

    async fn encrypt(&self, name: &str, text: &str) -> String {
        let answer = self.post(&format!("encrypt/{name}"), json!({ "plaintext": b64::encode(text.as_bytes()) })).await;
        answer["ciphertext"].as_str().unwrap().to_owned()
    }

    async fn decrypt(&self, name: &str, ciphertext: &str) -> Result<String, Failure> {
        let body = json!({ "ciphertext": ciphertext });
        let answer = data(self.call(Operation::Update, &format!("decrypt/{name}"), body).await?);
        Ok(String::from_utf8(b64::decode(answer["plaintext"].as_str().unwrap()).unwrap()).unwrap())
    }
}

fn data(reply: Reply) -> Value {
    match reply.body {
        Body::Data(bytes) => serde_json::from_slice(&bytes).unwrap(),
        other => panic!("no data: {other:?}"),
    }
}

#[tokio::test]
async fn keys_encrypt_rotate_and_decrypt() {
    let bench = Bench::new().await;
    for kind in alg::KeyType::CIPHERS {
        let name = kind.name();
        let key = bench.post(&format!("keys/{name}"), json!({ "type": name })).await;
        assert_eq!((&key["type"], &key["protection_level"]), (&json!(name), &json!("software")));
        let first = bench.encrypt(name, "one").await;
        let key = bench.post(&format!("keys/{name}/rotate"), json!({})).await;
        assert_eq!(key["latest_version"], 2);
        let second = bench.encrypt(name, "two").await;
        assert!(first.starts_with("vault:v1:") && second.starts_with("vault:v2:"));
        assert_eq!(bench.decrypt(name, &first).await.unwrap(), "one");
        assert_eq!(bench.decrypt(name, &second).await.unwrap(), "two");
    }
    let listed = data(bench.call(Operation::List, "keys/", json!({})).await.unwrap());
    assert_eq!(listed["keys"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn recorded_ciphertexts_open_and_deterministic_ones_come_out_the_same() {
    let text = include_str!("../../../fixtures/transit/vectors.json");
    let file: Value = serde_json::from_str(text).unwrap();
    let bench = Bench::new().await;
    for vector in file["vectors"].as_array().unwrap() {
        let text = |name: &str| vector[name].as_str().unwrap().to_owned();
        let kind: alg::KeyType = serde_json::from_value(vector["type"].clone()).unwrap();
        let kdf: Option<alg::kdf::Kdf> = serde_json::from_value(vector["kdf"].clone()).unwrap();
        let convergent = vector["convergent"].as_bool().unwrap();
        let version = u32::try_from(vector["version"].as_u64().unwrap()).unwrap();
        let name = "vector";
        put_key(&bench, name, kind, kdf, convergent, version, &b64::decode(&text("key")).unwrap()).await;
        let rest = json!({ "context": text("context"), "associated_data": text("associated_data") });
        let mut body = rest.clone();
        body["ciphertext"] = json!(text("ciphertext"));
        assert_eq!(bench.post("decrypt/vector", body).await["plaintext"], vector["plaintext"], "{vector}");
        if convergent {
            let mut body = rest;
            body["plaintext"] = json!(text("plaintext"));
            body["key_version"] = json!(version);
            assert_eq!(bench.post("encrypt/vector", body).await["ciphertext"], vector["ciphertext"], "{vector}");
        }
    }
}

/// Stores a key with one version of given material, as a restore does; also what a restore would refuse.
async fn put_key(
    bench: &Bench,
    name: &str,
    kind: alg::KeyType,
    kdf: Option<alg::kdf::Kdf>,
    convergent: bool,
    version: u32,
    material: &[u8],
) {
    let key_size = if kind == alg::KeyType::Hmac { 32 } else { 0 };
    let new = lifecycle::NewKey { derived: kdf.is_some(), convergent, key_size, ..lifecycle::NewKey::plain(kind) };
    let transit = &bench.transit;
    let (key, _) = transit.create("template", &new).await.unwrap();
    let uid = record::KeyUid::random();
    let mut record = key.record.clone();
    (record.uid, record.kdf, record.kind, record.convergent) = (uid, kdf, kind, convergent);
    record.latest_version = version;
    record.versions = vec![record::VersionLine {
        version,
        created: 0,
        level: protect::Level::Software,
        revision: 0,
        moved_into_hsm: None,
        public_key: None,
        public_only: false,
        certificate_chain: vec![],
    }];
    let hmac_key = if kind == alg::KeyType::Hmac { SecretBytes::new(material.to_vec()) } else { SecretBytes::random(32) };
    let stored = transit
        .vault()
        .store(
            protect::VersionId { uid, version },
            0,
            record::StoredKey::Software,
            protect::Material { key: SecretBytes::new(material.to_vec()), hmac_key },
            if convergent { 3 } else { 0 },
        )
        .await
        .unwrap();
    let txn = Txn::new()
        .put_secret(record::key_path(name), record::encode(&record).unwrap())
        .put_secret(record::material_path(uid, version), record::encode(&stored).unwrap());
    transit.store.view.commit(txn).await.unwrap();
    transit.store.refresh(name).unwrap();
}

#[tokio::test]
async fn batches_keep_order_and_references() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({})).await;
    let items: Vec<Value> =
        (0..5000).map(|i| json!({ "plaintext": b64::encode(format!("{i}").as_bytes()), "reference": format!("r{i}") })).collect();
    let answer = bench.post("encrypt/k", json!({ "batch_input": items })).await;
    let results = answer["batch_results"].as_array().unwrap();
    assert_eq!((results.len(), &results[4999]["reference"]), (5000, &json!("r4999")));
    let items: Vec<Value> = results.iter().map(|item| json!({ "ciphertext": item["ciphertext"] })).collect();
    let answer = bench.post("decrypt/k", json!({ "batch_input": items })).await;
    assert_eq!(answer["batch_results"][77]["plaintext"], json!(b64::encode(b"77")));
    let nonces: HashSet<&str> = results.iter().map(|item| &item["ciphertext"].as_str().unwrap()[..25]).collect();
    assert_eq!(nonces.len(), 5000);
}

#[tokio::test]
async fn racing_rotations_give_each_version_once() {
    let bench = Arc::new(Bench::new().await);
    bench.post("keys/k", json!({})).await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move { bench.transit.rotate("k").await.map(|key| key.record.latest_version) })
        })
        .collect();
    let mut versions = Vec::new();
    for task in tasks {
        versions.push(task.await.unwrap().unwrap());
    }
    versions.sort_unstable();
    assert_eq!(versions.last(), Some(&9));
    let key = bench.transit.store.key("k").unwrap().unwrap();
    assert_eq!(key.record.versions.iter().map(|line| line.version).collect::<Vec<_>>(), (1..=9).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_restart_forgets_nothing_and_burns_the_reservation() {
    let mut bench = Bench::new().await;
    bench.post("keys/k", json!({})).await;
    let text = bench.encrypt("k", "kept").await;
    bench.restart();
    assert_eq!(bench.decrypt("k", &text).await.unwrap(), "kept");
    bench.encrypt("k", "more").await;
    let key = bench.transit.store.key("k").unwrap().unwrap();
    let entry = bench.transit.store.view.get(&record::usage_path(key.record.uid, 1)).unwrap().unwrap();
    let usage: record::UsageRecord = record::decode(&entry.value).unwrap();
    assert!(usage.reserved > usage::BLOCK, "{}", usage.reserved);
}

#[tokio::test]
async fn a_version_near_its_bound_warns_and_beyond_it_refuses() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({ "auto_rotate_period": "24h" })).await;
    let key = bench.transit.store.key("k").unwrap().unwrap();
    let loaded = bench.transit.store.load("default", &key, 1).await.unwrap().unwrap();
    loaded.usage.wear(usage::WARN + 1);
    let body = json!({ "plaintext": "" });
    let reply = bench.call(Operation::Update, "encrypt/k", body.clone()).await.unwrap();
    assert_eq!(reply.warnings.len(), 1, "{:?}", reply.warnings);
    // The log has heard of it with that, and hears of it again in an hour.
    let now = bench.clock.now().unix_timestamp();
    assert_eq!([0, 3599, 3600, 3601].map(|later| loaded.usage.is_to_be_told(now + later)), [false, false, true, false]);
    loaded.usage.wear(usage::LIMIT);
    assert!(bench.refused("encrypt/k", body).await.contains("limit of 2^32"));
    Engine::tick(bench.transit.as_ref()).await.unwrap();
    assert!(bench.encrypt("k", "again").await.starts_with("vault:v2:"));
}

#[tokio::test]
async fn a_version_that_is_used_up_makes_its_key_rotate_and_is_told_of() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({ "auto_rotate_period": "24h" })).await;
    let key = bench.transit.store.key("k").unwrap().unwrap();
    let loaded = bench.transit.store.load("default", &key, 1).await.unwrap().unwrap();
    // As a backup of elsewhere may bring it: nobody was warned before.
    loaded.usage.wear(usage::LIMIT);
    let body = json!({ "plaintext": "" });
    assert!(bench.refused("encrypt/k", body).await.contains("limit of 2^32"));
    assert!(!loaded.usage.is_to_be_told(bench.clock.now().unix_timestamp()), "the log has heard of it");
    Engine::tick(bench.transit.as_ref()).await.unwrap();
    assert!(bench.encrypt("k", "again").await.starts_with("vault:v2:"));
}

#[tokio::test]
async fn rotations_that_take_long_go_on_at_the_next_tick() {
    let bench = Bench::new().await;
    for name in ["a", "b", "c"] {
        bench.post(&format!("keys/{name}"), json!({ "auto_rotate_period": "1h" })).await;
        bench.clock.advance(Duration::from_secs(1));
    }
    bench.clock.advance(Duration::from_secs(2 * 3600));
    let versions = || ["a", "b", "c"].map(|name| bench.transit.store.key(name).unwrap().unwrap().record.latest_version);
    for rotated in [[2, 1, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]] {
        bench.transit.rotate_due(Duration::ZERO).await.unwrap();
        assert_eq!(versions(), rotated);
    }
}

#[tokio::test]
async fn on_a_restored_store_every_version_counts_a_block_more() {
    let mut bench = Bench::new().await;
    for name in ["k", "l"] {
        bench.post(&format!("keys/{name}"), json!({})).await;
        bench.post(&format!("keys/{name}/rotate"), json!({})).await;
    }
    let uid = bench.transit.store.key("k").unwrap().unwrap().record.uid;
    let reserved = |bench: &Bench, version| {
        let entry = bench.transit.store.view.get(&record::usage_path(uid, version)).unwrap().unwrap();
        record::decode::<record::UsageRecord>(&entry.value).unwrap().reserved
    };
    let before = [1, 2].map(|version| reserved(&bench, version));
    bench.restart();
    let storage = crate::storage::InMem::open().unwrap();
    Engine::restored(bench.transit.as_ref(), &Given::skipping(&storage, 5)).await.unwrap();
    assert_eq!([1, 2].map(|version| reserved(&bench, version)), before.map(|count| count + usage::BLOCK));
    assert!(bench.encrypt("k", "on").await.starts_with("vault:v2:"));
    bench.post("keys/k/rotate", json!({})).await;
    assert!(bench.encrypt("k", "on").await.starts_with("vault:v8:"), "versions 3 to 7 may have been given");
    for body in [json!({"plaintext": "YQ==", "key_version": 5}), json!({"plaintext": "YQ==", "key_version": 3})] {
        assert_eq!(bench.refused("encrypt/k", body).await, "no such key version");
    }
    assert_eq!(
        bench.refused("decrypt/k", json!({"ciphertext": format!("vault:v5:{}", "A".repeat(40))})).await,
        "no such key version"
    );
    assert!(Engine::worn(bench.transit.as_ref()).await.unwrap().is_empty());
}

#[tokio::test]
async fn keys_that_cannot_rotate_now_do_not_hold_up_those_that_can() {
    let bench = Bench::new().await;
    for index in 0..120 {
        bench.post(&format!("keys/a{index:03}"), json!({ "auto_rotate_period": "1h" })).await;
        bench.call(Operation::Delete, &format!("keys/a{index:03}/soft-delete"), json!({})).await.unwrap();
    }
    bench.post("keys/zzz", json!({ "auto_rotate_period": "1h" })).await;
    bench.clock.advance(Duration::from_secs(3601));
    Engine::tick(bench.transit.as_ref()).await.unwrap();
    assert!(bench.encrypt("zzz", "x").await.starts_with("vault:v2:"));
    bench.post("keys/a000/soft-delete-restore", json!({})).await;
    Engine::tick(bench.transit.as_ref()).await.unwrap();
    assert!(bench.encrypt("a000", "x").await.starts_with("vault:v2:"));
}

#[tokio::test]
async fn many_changes_of_one_key_at_once_all_happen() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({ "exportable": true, "allow_plaintext_backup": true })).await;
    let rotations = (0..60).map(|_| bench.call(Operation::Update, "keys/k/rotate", json!({})));
    let backups = (0..20).map(|_| bench.call(Operation::Read, "backup/k", json!({})));
    let (rotated, backed_up) =
        futures_util::future::join(futures_util::future::join_all(rotations), futures_util::future::join_all(backups)).await;
    for answer in rotated.into_iter().chain(backed_up) {
        answer.unwrap();
    }
    assert_eq!(bench.transit.store.key("k").unwrap().unwrap().record.latest_version, 61);
    assert_eq!(bench.transit.store.changing(), 0);
}

#[tokio::test]
async fn backups_that_contradict_themselves_are_refused() {
    let bench = Bench::new().await;
    let leaves = |mut options: Value| {
        options["exportable"] = json!(true);
        options["allow_plaintext_backup"] = json!(true);
        options
    };
    bench.post("keys/plain", leaves(json!({}))).await;
    bench.post("keys/convergent", leaves(json!({ "derived": true, "convergent_encryption": true }))).await;
    let backup = async |name: &str, from: &str, to: &str| {
        let reply = bench.call(Operation::Read, &format!("backup/{name}"), json!({})).await.unwrap();
        let text = String::from_utf8(b64::decode(data(reply)["backup"].as_str().unwrap()).unwrap()).unwrap();
        assert!(text.contains(from), "{from}");
        json!({ "backup": b64::encode(text.replace(from, to).as_bytes()) })
    };
    let said = bench.refused("restore/a", backup("convergent", "\"derived\":true", "\"derived\":false").await).await;
    assert!(said.contains("convergent encryption requires derivation"), "{said}");
    let said = bench.refused("restore/a", backup("convergent", "\"type\":0", "\"type\":1").await).await;
    assert!(said.contains("key derivation is not supported for keys of type ecdsa-p256"), "{said}");
    // An hmac key whose size is not told: a rotation makes another of the same size.
    let unnamed = backup("plain", "\"type\":0", "\"type\":10").await;
    bench.call(Operation::Update, "restore/b", unnamed).await.unwrap();
    bench.post("keys/b/rotate", json!({})).await;
    let made = bench.post("hmac/b", json!({ "input": "" })).await;
    assert!(made["hmac"].as_str().unwrap().starts_with("vault:v2:"), "{made}");
}

#[tokio::test]
async fn worn_versions_are_named() {
    let mut bench = Bench::new().await;
    bench.post("keys/k", json!({})).await;
    bench.post("keys/fresh", json!({})).await;
    bench.post("keys/k/rotate", json!({})).await;
    let uid = bench.transit.store.key("k").unwrap().unwrap().record.uid;
    let worn = record::encode(&record::UsageRecord { format: record::FORMAT, reserved: usage::WARN + 1 }).unwrap();
    bench.transit.store.view.commit(Txn::new().put_secret(record::usage_path(uid, 2), worn)).await.unwrap();
    bench.restart();
    assert_eq!(Engine::worn(bench.transit.as_ref()).await.unwrap(), ["k v2"]);
}

#[tokio::test]
async fn keys_rotate_by_age() {
    let mut bench = Bench::new().await;
    bench.post("keys/k", json!({ "auto_rotate_period": "1h" })).await;
    bench.post("keys/other", json!({})).await;
    Engine::tick(bench.transit.as_ref()).await.unwrap();
    assert!(bench.encrypt("k", "x").await.starts_with("vault:v1:"));
    bench.clock.advance(Duration::from_secs(3601));
    Engine::tick(bench.transit.as_ref()).await.unwrap();
    assert!(bench.encrypt("k", "x").await.starts_with("vault:v2:"));
    bench.clock.advance(Duration::from_secs(3601));
    bench.restart();
    Engine::start(bench.transit.as_ref()).await.unwrap();
    Engine::tick(bench.transit.as_ref()).await.unwrap();
    assert!(bench.encrypt("k", "x").await.starts_with("vault:v3:"));
    assert!(bench.encrypt("other", "x").await.starts_with("vault:v1:"));
}

#[tokio::test]
async fn opened_versions_do_not_stay_in_memory() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({})).await;
    let text = bench.encrypt("k", "x").await;
    let store = &bench.transit.store;
    Engine::tick(bench.transit.as_ref()).await.unwrap();
    assert_eq!(store.opened(), 1, "a fresh one stays");
    store.forget_older(Duration::ZERO);
    assert_eq!(store.opened(), 0);
    assert_eq!(bench.decrypt("k", &text).await.unwrap(), "x");
}

#[tokio::test]
async fn a_key_made_again_is_another_key() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({})).await;
    let text = bench.encrypt("k", "x").await;
    bench.post("keys/k/config", json!({ "deletion_allowed": true })).await;
    bench.call(Operation::Delete, "keys/k", json!({})).await.unwrap();
    assert_eq!(bench.refused("decrypt/k", json!({ "ciphertext": text })).await, "encryption key not found");
    bench.post("keys/k", json!({})).await;
    assert!(bench.decrypt("k", &text).await.unwrap_err().text().ends_with("message authentication failed"));
    let left = bench.transit.store.view.scan("material/", None, usize::MAX).unwrap();
    assert_eq!(left.len(), 1);
}

#[tokio::test]
async fn without_an_hsm_everything_is_software_and_asking_for_more_is_refused() {
    let bench = Bench::new().await;
    for level in ["hsm", "hsm-only"] {
        let text = bench.refused("keys/k", json!({ "protection_level": level })).await;
        assert!(text.contains("needs an HSM"), "{text}");
    }
    assert!(bench.refused("keys/k", json!({ "protection_level": "best" })).await.contains("unknown protection_level"));
    assert_eq!(bench.post("keys/k", json!({ "protection_level": "software" })).await["protection_level"], "software");
}

#[tokio::test]
async fn mount_options_are_checked() {
    let ((barrier, services), clock) = (cluster(None).await, Clock::system());
    for (name, value) in [("zone", "nowhere"), ("protection", "best"), ("protection_required", "maybe")] {
        let options = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let failure = Transit::new(&context(&barrier, &clock, &services, &options)).err().unwrap();
        assert_eq!(failure.kind(), Kind::Invalid, "{name}");
    }
    let options = BTreeMap::from([("zone".to_owned(), "default".to_owned()), ("protection".to_owned(), "hsm".to_owned())]);
    assert!(Transit::new(&context(&barrier, &clock, &services, &options)).is_ok());
}
