//! A store that fails at the commit of what is kept in memory too: mounts, policies, audit devices, CORS. What the server does
//! afterwards is what the store holds, without a restart.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Core, Settings,
    clock::Clock,
    request::{Operation, Request},
    testing::{finish_removals, unsealed_core_over},
};
use crate::{
    secret::SecretString,
    storage::faults::{Faulty, Plan, io},
};

struct Server {
    backend: Faulty,
    core: Arc<Core>,
    root: SecretString,
    /// A token of the policy `p`.
    token: SecretString,
    folder: tempfile::TempDir,
}

async fn server() -> Server {
    let backend = Faulty::new();
    let (core, made) = unsealed_core_over(Arc::new(backend.start()), Clock::system(), Settings::default()).await;
    let root = SecretString::new(made.root_token.clone());
    let token = root.duplicate();
    let mut server = Server { backend, core, root, token, folder: tempfile::tempdir().unwrap() };
    server.done("sys/mounts/old", json!({"type": "kv"})).await;
    server.done("old/secret", json!({"x": 1})).await;
    server.done("sys/policies/acl/p", json!({"policy": "path \"old/*\" { capabilities = [\"deny\"] }"})).await;
    server.done("sys/audit/old", json!({"type": "file", "options": {"file_path": server.file("old")}})).await;
    let made = server.done("auth/token/create", json!({"policies": ["p"]})).await;
    server.token = SecretString::new(made["auth"]["client_token"].as_str().unwrap().to_owned());
    server
}

impl Server {
    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    async fn ask(&self, token: &SecretString, operation: Operation, path: &str, body: &Value) -> (u16, Value) {
        let mut request = Request::internal(operation, path, body.to_string());
        request.token = Some(token.duplicate());
        let answer = self.core.handle(request).await;
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
    }

    async fn done(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask(&self.root, Operation::Update, path, &body).await;
        assert!(status < 300, "{path}: {status} {answer}");
        answer
    }

    async fn read(&self, path: &str) -> (u16, Value) {
        let (status, answer) = self.ask(&self.root, Operation::Read, path, &json!({})).await;
        (status, answer["data"].clone())
    }

    /// What changes may have changed, in one line.
    async fn state(&self) -> String {
        let (_, mounts) = self.read("sys/mounts").await;
        let (_, devices) = self.read("sys/audit").await;
        let (_, cors) = self.read("sys/config/cors").await;
        let (_, headers) = self.read("sys/config/auditing/request-headers").await;
        let (secret, _) = self.ask(&self.token, Operation::Read, "old/secret", &json!({})).await;
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        let described = mounts["old/"]["description"].clone();
        let (enabled, headers) = (&cors["enabled"], names(&headers["headers"]));
        format!("{} {described}; {}; {enabled}; {headers}; {secret}", names(&mounts), names(&devices))
    }

    fn changes(&self) -> Vec<(Operation, &'static str, Value)> {
        use Operation::{Delete, Update};
        vec![
            (Update, "sys/mounts/new", json!({"type": "kv"})),
            (Update, "sys/mounts/old/tune", json!({"description": "other"})),
            (Delete, "sys/mounts/old", json!({})),
            (Update, "sys/policies/acl/p", json!({"policy": "path \"old/*\" { capabilities = [\"read\"] }"})),
            (Delete, "sys/policies/acl/p", json!({})),
            (Update, "sys/audit/new", json!({"type": "file", "options": {"file_path": self.file("new")}})),
            (Delete, "sys/audit/old", json!({})),
            (Update, "sys/config/auditing/request-headers/x-one", json!({"hmac": true})),
            (Update, "sys/config/cors", json!({"allowed_origins": "*"})),
        ]
    }
}

fn plan(landed: bool) -> Plan {
    if landed { Plan::Landed(io()) } else { Plan::Lost(io()) }
}

#[tokio::test]
async fn a_change_whose_sync_failed_is_answered_as_it_ended() {
    for landed in [true, false] {
        for change in 0..server().await.changes().len() {
            let server = server().await;
            let (operation, path, body) = server.changes().swap_remove(change);
            let before = server.state().await;
            server.backend.plan(plan(landed));
            let (status, answer) = server.ask(&server.root, operation, path, &body).await;
            let after = server.state().await;
            assert_eq!(status < 300, landed, "{path}: {status} {answer}");
            // Without the policy its token may do no more than with it.
            let shows = (operation, path) != (Operation::Delete, "sys/policies/acl/p");
            assert_eq!(after != before, landed && shows, "{path}: {before}, then {after}");
        }
    }
}

#[tokio::test]
async fn what_the_store_holds_after_a_change_of_unknown_end_counts_once_it_answers() {
    for landed in [true, false] {
        for change in 0..server().await.changes().len() {
            // What the change does where nothing fails.
            let well = server().await;
            let (operation, path, body) = well.changes().swap_remove(change);
            let (before, removed) = (well.state().await, operation == Operation::Delete && path == "sys/mounts/old");
            assert!(well.ask(&well.root, operation, path, &body).await.0 < 300);
            let expected = if landed { well.state().await } else { before };

            let server = server().await;
            let (operation, path, body) = server.changes().swap_remove(change);
            server.backend.plan(plan(landed));
            server.backend.stay_closed(u32::MAX);
            let (status, answer) = server.ask(&server.root, operation, path, &body).await;
            assert!(status >= 500, "{path}: {status} {answer}");
            server.core.tick().await;
            server.backend.stay_closed(0);
            server.core.tick().await;
            assert_eq!(server.state().await, expected, "{path}, landed: {landed}");
            finish_removals(&server.core).await;
            let kept = server.core.barrier.scan("logical/", None, 100).unwrap();
            let kept = kept.iter().any(|(path, _)| path.ends_with("/secret"));
            assert_eq!(kept, !(removed && landed), "the data of a mount goes with it, and only with it");
            // It can be changed again.
            server.done("sys/mounts/other", json!({"type": "kv"})).await;
            server.done("sys/policies/acl/p", json!({"policy": "path \"old/*\" { capabilities = [\"read\"] }"})).await;
        }
    }
}

/// What failed at its sync and shows only once the store is open again is not taken for absent, and not for present, meanwhile.
#[tokio::test]
async fn what_finds_nothing_to_do_while_a_write_is_in_doubt_is_not_done() {
    use Operation::{Delete, Update};
    let cases = [
        ("old/new", json!({"x": 1}), Delete, "old/new", json!({})),
        ("two/data/new", json!({"data": {"x": 1}}), Delete, "two/data/new", json!({})),
        ("two/data/new", json!({"data": {"x": 1}}), Delete, "two/metadata/new", json!({})),
        ("two/data/new", json!({"data": {"x": 1}}), Update, "two/destroy/new", json!({"versions": [1]})),
        ("two/delete/there", json!({"versions": [1]}), Update, "two/undelete/there", json!({"versions": [1]})),
        ("cubbyhole/new", json!({"x": 1}), Delete, "cubbyhole/new", json!({})),
        (
            "transit/keys/k/config",
            json!({"deletion_allowed": true}),
            Update,
            "transit/keys/k/config",
            json!({"deletion_allowed": false}),
        ),
        ("auth/token/roles/new", json!({"orphan": true}), Delete, "auth/token/roles/new", json!({})),
    ];
    for (written, body, operation, path, change) in cases {
        let server = server().await;
        server.done("sys/mounts/two", json!({"type": "kv", "options": {"version": "2"}})).await;
        server.done("sys/mounts/transit", json!({"type": "transit"})).await;
        server.done("two/data/there", json!({"data": {"x": 1}})).await;
        server.done("transit/keys/k", json!({})).await;
        server.backend.plan(Plan::Hidden(io()));
        server.backend.stay_closed(u32::MAX);
        let (status, _) = server.ask(&server.root, Update, written, &body).await;
        assert!(status >= 500, "{written}: {status}");
        let (status, answer) = server.ask(&server.root, operation, path, &change).await;
        assert!(status >= 500, "{path}: {status} {answer}");
        server.backend.stay_closed(0);
        let again = async || server.ask(&server.root, operation, path, &change).await;
        for _ in 0..100 {
            if again().await.0 < 300 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let (status, answer) = again().await;
        assert!(status < 300, "{path}: {status} {answer}");
    }
}
