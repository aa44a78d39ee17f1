//! What the pipeline and the mount table do at their edges: sealing and unsealing, paths of the other table, removals
//! that a crash interrupted.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Core,
    envelope::Answer,
    mount_table::new_entry,
    mounts::Table,
    request::{Operation, Request},
    testing::{finish_removals, unsealed_core_over},
};
use crate::{
    audit::DeviceRecord,
    barrier::{Txn, View},
    core::{Settings, clock::Clock},
    secret::SecretString,
    storage::InMem,
};

/// What endpoints without a token take.
const OPEN: usize = 256 << 10;

struct Server {
    core: Arc<Core>,
    share: SecretString,
    root: SecretString,
}

async fn server() -> Server {
    let (core, made) = unsealed_core_over(Arc::new(InMem::open().unwrap()), Clock::system(), Settings::default()).await;
    let share = SecretString::new(made.keys_base64[0].clone());
    Server { core, share, root: SecretString::new(made.root_token.clone()) }
}

impl Server {
    async fn ask(&self, operation: Operation, path: &str, body: &str) -> Answer {
        let mut request = Request::internal(operation, path, body.to_owned());
        request.token = Some(self.root.duplicate());
        self.core.handle(request).await
    }
}

#[tokio::test]
async fn sealing_and_unsealing_leave_audit_records() {
    let server = server().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.log").display().to_string();
    let record = DeviceRecord {
        uuid: "u".into(),
        path: "file/".into(),
        kind: "file".into(),
        description: String::new(),
        options: [("file_path".to_owned(), file.clone())].into(),
        local: false,
    };
    server.core.audit.enable(record).await.unwrap();
    assert_eq!(server.ask(Operation::Update, "sys/seal", "").await.status, 204);
    let body = format!("{{\"key\": {:?}}}", server.share.expose());
    assert_eq!(server.core.handle(Request::internal(Operation::Update, "sys/unseal", body)).await.status, 200);
    let log = std::fs::read_to_string(file).unwrap();
    for path in ["sys/seal", "sys/unseal"] {
        let path = format!("\"path\":{path:?}");
        assert!(log.lines().any(|line| line.contains(&path) && line.contains("\"type\":\"response\"")), "{path} {log}");
    }
    assert!(!log.contains(server.share.expose()));
}

#[tokio::test]
async fn auth_methods_are_not_reached_by_the_paths_of_secrets_engines() {
    let server = server().await;
    for (operation, path, body) in [
        (Operation::Read, "sys/mounts/auth/token", ""),
        (Operation::Read, "sys/mounts//auth/token/tune", ""),
        (Operation::Update, "sys/mounts//auth/token/tune", r#"{"description": "x"}"#),
    ] {
        assert_eq!(server.ask(operation, path, body).await.status, 400, "{path}");
    }
    assert_eq!(server.ask(Operation::Read, "sys/mounts/auth/token/tune", "").await.status, 200);
}

#[tokio::test]
async fn policies_judge_the_same_parameters_that_endpoints_read() {
    let server = server().await;
    let root = server.root.duplicate();
    let send = async |token: &SecretString, operation, path: &str, query: &[(&str, &str)], body: &str| {
        let mut request = Request::internal(operation, path, body.to_owned());
        request.query = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        request.token = Some(token.duplicate());
        let answer = server.core.handle(request).await;
        (answer.status, serde_json::from_slice::<Value>(&answer.body).unwrap_or_default())
    };
    let write = async |path, body: &str| send(&root, Operation::Update, path, &[], body).await;
    write("sys/mounts/kv", r#"{"type": "kv", "options": {"version": "2"}}"#).await;
    for value in ["old", "new"] {
        assert_eq!(write("kv/data/x", &format!(r#"{{"data": {{"k": "{value}"}}}}"#)).await.0, 200);
    }
    let rules = r#"
        path "kv/data/x" { capabilities = ["read"] allowed_parameters = { version = ["1"] } required_parameters = ["version"] }
        path "sys/policies/acl/p" { capabilities = ["update", "create"] allowed_parameters = { policy = ["good"] } }
    "#;
    write("sys/policies/acl/limited", &serde_json::json!({"policy": rules}).to_string()).await;
    let (_, made) = write("auth/token/create", r#"{"policies": ["limited"]}"#).await;
    let token = SecretString::new(made["auth"]["client_token"].as_str().unwrap().to_owned());
    let read = async |query: &[(&str, &str)]| {
        let (status, body) = send(&token, Operation::Read, "kv/data/x", query, "").await;
        (status, body["data"]["data"]["k"].clone())
    };
    assert_eq!(read(&[("version", "1")]).await, (200, "old".into()));
    // Whichever of several the endpoint or the policy would take, alone or in whatever order.
    for query in [&["2"][..], &["2", "1"], &["1", "2"], &["1", "1"], &["1", ""], &["", "1"], &[]] {
        let query: Vec<(&str, &str)> = query.iter().map(|value| ("version", *value)).collect();
        assert_eq!(read(&query).await, (403, Value::Null), "{query:?}");
    }
    assert_eq!(read(&[("Version", "1"), ("version", "2")]).await.0, 403);
    // Who may do everything is told what is wrong.
    let (status, answer) = send(&root, Operation::Read, "kv/data/x", &[("version", "2"), ("version", "1")], "").await;
    assert!(status == 400 && answer["errors"][0].as_str().unwrap().contains("send it once"), "{status} {answer}");
    // Of members of the same name the last counts, for both.
    let put = async |body: &str| send(&token, Operation::Update, "sys/policies/acl/p", &[], body).await.0;
    assert_eq!(put(r#"{"policy": "good", "policy": "path \"x\" {}"}"#).await, 403);
    assert_eq!(put(r#"{"policy": "path \"x\" {}", "policy": "good"}"#).await, 400, "allowed, and no policy");
}

#[tokio::test]
async fn long_bodies_are_parsed_only_for_good_tokens_and_short_ones_taken_without() {
    let server = server().await;
    let write = async |path: &str, token: Option<&str>, body: &str| {
        let mut request = Request::internal(Operation::Update, path, body.to_owned());
        request.token = token.map(|token| SecretString::new(token.to_owned()));
        let answer = server.core.handle(request).await;
        (answer.status, String::from_utf8(answer.body).unwrap())
    };
    let root = server.root.expose();
    write("sys/mounts/kv1", Some(root), r#"{"type": "kv"}"#).await;
    let object = |members: usize| format!("{{{}\"a\": 1}}", "\"a\":1,".repeat(members - 1));
    let broken = |length: usize| object(length / 6)[1..].to_owned();
    for (length, stranger) in [(60 << 10, 400), (70 << 10, 403)] {
        assert_eq!(write("kv1/x", None, &broken(length)).await.0, stranger, "{length}");
        assert_eq!(write("kv1/x", Some("hvs.000000000000000000000000"), &broken(length)).await.0, stranger, "{length}");
        assert_eq!(write("kv1/x", Some(root), &broken(length)).await.0, 400, "{length}");
    }
    assert_eq!(write("kv1/x", Some(root), &object(500_000)).await.0, 204);
    for path in ["sys/unseal", "sys/wrapping/unwrap", "sys/decode-token"] {
        let (status, text) = write(path, Some(root), &object(1001)).await;
        assert!(status == 400 && text.contains("more than 1000 members"), "{path} {status} {text}");
        let (status, text) = write(path, Some(root), &format!("{{\"key\": \"{}\"}}", "x".repeat(OPEN))).await;
        assert!(status == 413 && text.contains("at most 262144 bytes"), "{path} {status} {text}");
    }
    assert_eq!(write("sys/wrapping/wrap", Some(root), &format!("{{\"x\": \"{}\"}}", "x".repeat(OPEN))).await.0, 400);
}

#[tokio::test]
async fn removals_that_were_interrupted_are_finished() {
    let server = server().await;
    let view = |prefix: &str| View::new(Arc::clone(&server.core.barrier), prefix).unwrap();
    let entry = new_entry(Table::Secret, "old/", "kv");
    let data = view(&format!("logical/{}/", entry.uuid));
    data.commit(Txn::new().put("v1/a", b"x".to_vec())).await.unwrap();
    let removed = Txn::new().put(format!("removed/{}", entry.uuid), serde_json::to_vec(&entry).unwrap());
    view("core/").commit(removed).await.unwrap();
    finish_removals(&server.core).await;
    assert!(data.get("v1/a").unwrap().is_none());
}
