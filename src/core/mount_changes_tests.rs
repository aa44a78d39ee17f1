//! Mounts that are removed or tuned while a request of theirs makes a key: nothing of it stays, neither in the store nor on the
//! HSM. What the request is at is settled by a barrier in the HSM, not by time.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Core, Settings,
    clock::Clock,
    engine::{Call, Caller},
    envelope::Answer,
    failure::Kind,
    mounts::MountEntry,
    request::{Operation, Request},
    testing::finish_removals,
};
use crate::{
    barrier::{Barrier, Txn, View},
    engines::Services,
    hsm::{Hsm, fake::FakeHsm},
    seal::{Seal, SealSettings, wire::InitRequest},
    secret::SecretString,
    storage::InMem,
    wire::json::RawObject,
    zones::Zones,
};

struct Server {
    core: Arc<Core>,
    root: SecretString,
    share: String,
    hsm: Arc<FakeHsm>,
}

/// A server on an HSM with a Transit mount at `t/`.
/// A write that has passed the pipeline and is about to reach its engine.
fn update<'a>(
    server: &Server,
    mount: &'a MountEntry,
    request: &'a Request,
    (path, captures): (&'a str, &'a [(&'static str, &'a str)]),
    (body, caller): (&'a RawObject<'a>, &'a Caller),
) -> Call<'a> {
    Call { request, operation: request.operation, path, captures, body, caller, mount, now: server.core.clock.now() }
}

async fn server() -> Arc<Server> {
    let hsm = FakeHsm::new();
    let in_use = Some(Arc::clone(&hsm) as Arc<dyn Hsm>);
    let barrier = Arc::new(Barrier::new(Arc::new(InMem::open().unwrap())));
    let zones = Arc::new(Zones::new(Arc::clone(&barrier), in_use.clone(), "test"));
    let services = Services { hsm: in_use.clone(), zones, default_protection: None, transit: Arc::default() };
    let settings = SealSettings { key_label: "test".into(), escrow: true, ..SealSettings::default() };
    let seal = Arc::new(Seal::new(barrier, in_use, settings));
    let core = Core::new(seal, Clock::movable(), Settings::default(), Arc::new(services));
    let request = InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() };
    let made = core.seal.init(request, core.clock.now()).await.unwrap();
    let server = Arc::new(Server {
        core,
        root: SecretString::new(made.root_token.clone()),
        share: made.recovery_keys_base64[0].to_string(),
        hsm,
    });
    assert_eq!(server.post("sys/mounts/t", json!({ "type": "transit" })).await.status, 204);
    server
}

impl Server {
    async fn ask(&self, operation: Operation, path: &str, body: &str) -> Answer {
        let mut request = Request::internal(operation, path, body.to_owned());
        request.token = Some(self.root.duplicate());
        self.core.handle(request).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(Operation::Update, path, &body.to_string()).await
    }

    async fn data(&self, operation: Operation, path: &str, body: Value) -> Value {
        let answer = self.ask(operation, path, &body.to_string()).await;
        assert_eq!(answer.status, 200, "{path}: {}", said(&answer));
        serde_json::from_slice::<Value>(&answer.body).unwrap()["data"].take()
    }

    /// Ticks until nothing is left of what is to be destroyed in the HSM, for some seconds at most: it goes on a task of its own.
    async fn tick_until_destroyed(&self) {
        for _ in 0..2000 {
            self.core.tick().await;
            if !self.records().iter().any(|path| path.contains("/token/")) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Everything that any mount has stored.
    fn records(&self) -> Vec<String> {
        let records = self.core.barrier.scan("logical/", None, usize::MAX).unwrap();
        records.into_iter().map(|(path, _)| path).collect()
    }

    /// Objects of Transit keys on the HSM.
    fn objects(&self) -> Vec<String> {
        self.hsm.labels().into_iter().filter(|label| label.contains("/transit/")).collect()
    }

    /// Unmounts `t/` with some `hsm-only` keys of it, up to when one of them is being destroyed.
    async fn removing(&self, keys: usize) -> Arc<tokio::sync::Barrier> {
        for number in 0..keys {
            self.data(Operation::Update, &format!("t/keys/k{number}"), json!({ "protection_level": "hsm-only" })).await;
        }
        assert_eq!(self.objects().len(), keys);
        let barrier = self.hsm.hold_next_destroyed();
        assert_eq!(self.ask(Operation::Delete, "sys/mounts/t", "").await.status, 204);
        barrier.wait().await;
        assert_eq!(self.objects().len(), keys - 1);
        barrier
    }

    /// Begins a request, does `meanwhile` when its key is made but not committed, and gives the request's answer.
    async fn held<T>(self: &Arc<Self>, path: &'static str, body: Value, meanwhile: impl Future<Output = T>) -> (Answer, T) {
        let barrier = self.hsm.hold_next();
        let server = Arc::clone(self);
        let request = tokio::spawn(async move { server.post(path, body).await });
        barrier.wait().await;
        let done = meanwhile.await;
        barrier.wait().await;
        (request.await.unwrap(), done)
    }
}

fn said(answer: &Answer) -> String {
    String::from_utf8(answer.body.clone()).unwrap()
}

#[tokio::test]
async fn a_mount_that_is_removed_takes_what_requests_in_flight_make() {
    for level in ["hsm-only", "hsm", "software"] {
        for path in ["t/keys/new", "t/keys/old/rotate", "t/encrypt/new", "t/restore/new"] {
            let server = server().await;
            let level_of = json!({ "protection_level": level });
            assert_eq!(server.post("t/keys/old", level_of.clone()).await.status, 200);
            let body = match path {
                "t/restore/new" if level == "hsm-only" => continue,
                "t/restore/new" => {
                    let leaves = json!({ "protection_level": level, "exportable": true, "allow_plaintext_backup": true });
                    server.post("t/keys/left", leaves).await;
                    let backup = server.data(Operation::Read, "t/backup/left", json!({})).await;
                    json!({ "backup": backup["backup"], "protection_level": level })
                }
                "t/encrypt/new" => json!({ "plaintext": "YQ==" }),
                _ => level_of,
            };
            let unmount = server.ask(Operation::Delete, "sys/mounts/t", "");
            let (answer, unmounted) = server.held(path, body, unmount).await;
            assert_eq!(unmounted.status, 204);
            assert_eq!(answer.status, 404, "{level} {path}: {}", said(&answer));
            assert!(said(&answer).contains("the mount was removed"), "{}", said(&answer));
            finish_removals(&server.core).await;
            assert_eq!(server.records(), [""; 0], "{level} {path}");
            assert_eq!(server.objects(), [""; 0], "{level} {path}");
        }
    }
}

#[tokio::test]
async fn a_mount_that_is_tuned_to_another_zone_takes_no_key_of_the_former_one() {
    for level in ["hsm-only", "hsm", "software"] {
        let server = server().await;
        assert!(server.post("sys/sos/zones/zz", json!({})).await.status < 300);
        let tune = server.post("sys/mounts/t/tune", json!({ "options": { "zone": "zz" } }));
        let (answer, tuned) = server.held("t/keys/k", json!({ "protection_level": level }), tune).await;
        assert!(tuned.status < 300, "{}", said(&tuned));
        assert_eq!(answer.status, 503, "{level}: {}", said(&answer));
        assert!(said(&answer).contains("try again"), "{}", said(&answer));
        server.tick_until_destroyed().await;
        assert_eq!((server.records(), server.objects()), (vec![], vec![]), "{level}");
        let key = server.data(Operation::Update, "t/keys/k", json!({ "protection_level": level })).await;
        assert_eq!(key["zone"], "zz");
        let refused = server.post("sys/mounts/t/tune", json!({ "options": { "zone": "default" } })).await;
        assert_eq!(refused.status, 400, "{}", said(&refused));
    }
}

#[tokio::test]
async fn other_changes_of_a_mount_keep_no_key_from_being_made() {
    let server = server().await;
    let tune = server.post("sys/mounts/t/tune", json!({ "description": "new" }));
    let (answer, tuned) = server.held("t/keys/k", json!({ "protection_level": "hsm-only" }), tune).await;
    assert_eq!((answer.status, tuned.status / 100), (200, 2), "{}", said(&answer));
    server.tick_until_destroyed().await;
    assert_eq!(server.objects().len(), 1, "what an earlier try made is gone");
    assert!(!server.records().iter().any(|path| path.contains("/token/")));
}

#[tokio::test]
async fn while_the_hsm_destroys_what_a_mount_held_all_else_goes_on() {
    let server = server().await;
    assert_eq!(server.post("sys/mounts/u", json!({ "type": "transit" })).await.status, 204);
    let due = json!({ "auto_rotate_period": "1h", "protection_level": "software" });
    server.data(Operation::Update, "u/keys/due", due).await;
    let barrier = server.removing(3).await;
    // The path is free, and a mount made there is another one.
    assert_eq!(server.ask(Operation::Read, "t/keys/k0", "").await.status, 404);
    assert_eq!(server.post("sys/mounts/t", json!({ "type": "transit" })).await.status, 204);
    let level = json!({ "protection_level": "hsm-only" });
    server.data(Operation::Update, "t/keys/k0", level).await;
    assert_eq!(server.post("sys/mounts/kv", json!({ "type": "kv" })).await.status, 204);
    assert_eq!(server.ask(Operation::Delete, "sys/mounts/kv", "").await.status, 204);
    server.core.clock.advance(std::time::Duration::from_secs(2 * 3600));
    server.core.tick().await;
    assert_eq!(server.data(Operation::Read, "u/keys/due", json!({})).await["latest_version"], 2);
    assert_eq!(server.objects().len(), 3, "two of the removed mount, one of the new one");
    barrier.wait().await;
    finish_removals(&server.core).await;
    assert_eq!(server.objects().len(), 1);
    let text = server.data(Operation::Update, "t/encrypt/k0", json!({ "plaintext": "YQ==" })).await;
    let text = json!({ "ciphertext": text["ciphertext"] });
    assert_eq!(server.data(Operation::Update, "t/decrypt/k0", text).await["plaintext"], "YQ==");
}

#[tokio::test]
async fn a_removal_rests_while_the_server_is_sealed() {
    let server = server().await;
    let barrier = server.removing(3).await;
    assert_eq!(server.ask(Operation::Update, "sys/seal", "").await.status, 204);
    barrier.wait().await;
    for _ in 0..50 {
        server.core.tick().await;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert_eq!(server.objects().len(), 2, "nothing is destroyed while sealed");
    let share = json!({ "key": server.share });
    assert_eq!(server.post("sys/unseal", share).await.status, 200);
    assert_eq!(server.ask(Operation::Read, "t/keys/k0", "").await.status, 404);
    finish_removals(&server.core).await;
    assert_eq!((server.records(), server.objects()), (vec![], vec![]));
}

#[tokio::test]
async fn a_removal_whose_record_is_damaged_holds_up_no_other() {
    let server = server().await;
    let level = json!({ "protection_level": "hsm-only" });
    server.data(Operation::Update, "t/keys/k", level).await;
    let view = View::new(Arc::clone(&server.core.barrier), "core").unwrap();
    view.commit(Txn::new().put("removed/0000", b"garbage".to_vec())).await.unwrap();
    assert_eq!(server.ask(Operation::Delete, "sys/mounts/t", "").await.status, 204);
    for _ in 0..2000 {
        server.core.tick().await;
        if view.list("removed/", None, 9).unwrap() == ["0000"] {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!((server.records(), server.objects()), (vec![], vec![]));
    assert_eq!(view.list("removed/", None, 9).unwrap(), ["0000"], "what cannot be read is kept");
}

/// A request that found its mount and its rights before the mount was removed, and comes to its commit after that.
#[tokio::test]
async fn a_late_write_to_a_removed_mount_leaves_nothing_behind() {
    for (options, path, body) in [
        (json!({ "version": "1" }), "late", r#"{"a": 1}"#),
        (json!({ "version": "2" }), "data/late", r#"{"data": {"a": 1}}"#),
        (json!({ "version": "2" }), "metadata/late", r#"{"max_versions": 3}"#),
        (json!({ "version": "2" }), "config", r#"{"max_versions": 3}"#),
    ] {
        let server = server().await;
        let mount = json!({ "type": "kv", "options": options });
        assert_eq!(server.post("sys/mounts/kv", mount.clone()).await.status, 204);
        assert!(server.ask(Operation::Update, &format!("kv/{}", path.replace("late", "early")), body).await.status < 300);
        let active = server.core.active().unwrap();
        let (mounted, _) = active.router.find(&format!("kv/{path}")).unwrap();
        let request = Request::internal(Operation::Update, &format!("kv/{path}"), body.to_owned());
        let (object, caller) = (RawObject::parse(&request.body).unwrap(), Caller::anyone(None));
        let found = mounted.engine.resolve(path).unwrap();
        let late = update(&server, &mounted.entry, &request, (path, &found.captures), (&object, &caller));
        assert_eq!(server.ask(Operation::Delete, "sys/mounts/kv", "").await.status, 204);
        finish_removals(&server.core).await;
        assert_eq!(server.records(), [""; 0], "all of it is deleted, and so is the note that it is to be");
        let failure = mounted.engine.run(Some(found.route), &late).await.unwrap_err();
        assert!(failure.text().contains("the mount was removed"), "{path}: {failure:?}");
        assert_eq!(server.records(), [""; 0], "{path}");
        // A mount of the same name is another one.
        assert_eq!(server.post("sys/mounts/kv", mount).await.status, 204);
        assert!(mounted.engine.run(Some(found.route), &late).await.is_err());
        server.core.tick().await;
        let records = server.records();
        assert!(records.iter().all(|record| record.ends_with("/versioned")), "{path}: {records:?}");
    }
}

/// The cubbyhole cannot be removed, but the token that writes to it can.
#[tokio::test]
async fn a_late_write_to_the_cubbyhole_of_a_revoked_token_leaves_nothing_behind() {
    let server = server().await;
    let active = server.core.active().unwrap();
    for uses in [0, 5] {
        let body = json!({ "policies": ["default"], "num_uses": uses }).to_string();
        let made = server.ask(Operation::Update, "auth/token/create", &body).await;
        let made: Value = serde_json::from_slice(&made.body).unwrap();
        let token = SecretString::new(made["auth"]["client_token"].as_str().unwrap().to_owned());
        let (mounted, path) = active.router.find("cubbyhole/a").unwrap();
        let request = Request::internal(Operation::Update, "cubbyhole/a", r#"{"b": 1}"#);
        let object = RawObject::parse(&request.body).unwrap();
        let caller = Caller { token: active.tokens.lookup(&token).unwrap(), acl: None, remote: None };
        let found = mounted.engine.resolve(path).unwrap();
        let call = update(&server, &mounted.entry, &request, (path, &found.captures), (&object, &caller));
        mounted.engine.run(Some(found.route), &call).await.unwrap();
        assert_eq!(server.records().len(), 1);
        let revoke = json!({ "token": token.expose() });
        assert_eq!(server.post("auth/token/revoke", revoke).await.status, 204);
        assert_eq!(server.records(), [""; 0]);
        let failure = mounted.engine.run(Some(found.route), &call).await.unwrap_err();
        assert_eq!(failure.kind(), Kind::Denied);
        assert_eq!(server.records(), [""; 0], "{uses}");
    }
}
