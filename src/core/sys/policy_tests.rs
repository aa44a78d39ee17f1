//! The endpoints of policies, asked as the pipeline asks them but without tokens: the caller's rights are given.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{
    core::{
        engine::{Call, Caller, Engine},
        mounts::MountConfig,
        policy::{Acl, Policy, parse},
        reply::{Body, Reply},
        request::{Operation, Request},
    },
    wire::json::RawObject,
};

struct Server {
    core: Arc<Core>,
    system: System,
}

impl Server {
    async fn start() -> Self {
        let core = crate::core::testing::unsealed_core().await;
        Self { system: System::new(&core), core }
    }

    /// Runs one operation on a path below `sys/` for a caller with this access list.
    async fn ask(&self, acl: &Arc<Acl>, operation: Operation, path: &str, body: Value) -> Result<Reply, Failure> {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::internal(operation, &format!("sys/{path}"), bytes);
        let body = RawObject::parse(&request.body).unwrap();
        let found = self.system.resolve(path);
        let caller = Caller { token: None, acl: Some(acl.clone()), remote: None };
        let call = Call {
            request: &request,
            operation,
            path,
            captures: found.as_ref().map_or(&[], |found| &found.captures),
            body: &body,
            caller: &caller,
            mount: mount_entry(),
            now: self.core.clock.now(),
        };
        self.system.run(found.as_ref().map(|found| found.route), &call).await
    }

    async fn data(&self, operation: Operation, path: &str, body: Value) -> Value {
        data(&self.ask(&root(), operation, path, body).await.unwrap())
    }

    async fn errors(&self, operation: Operation, path: &str, body: Value) -> Vec<String> {
        self.ask(&root(), operation, path, body).await.unwrap_err().errors()
    }
}

fn data(reply: &Reply) -> Value {
    match &reply.body {
        Body::Data(bytes) | Body::Mirrored(bytes) => serde_json::from_slice(bytes).unwrap(),
        _ => Value::Null,
    }
}

fn root() -> Arc<Acl> {
    Arc::new(Acl::new(&[Arc::new(Policy::root())]))
}

fn acl(document: &str) -> Arc<Acl> {
    Arc::new(Acl::new(&[Arc::new(parse("p", document).unwrap())]))
}

const READ_A: &str = r#"path "a" { capabilities = ["read"] }"#;

#[tokio::test]
async fn policies_are_written_read_listed_and_deleted() {
    let server = Server::start().await;
    let reply = server.ask(&root(), Operation::Update, "policies/acl/p", json!({"policy": READ_A, "bogus": 1})).await;
    assert!(reply.unwrap().is_empty());
    let read = server.data(Operation::Read, "policies/acl/p", Value::Null).await;
    assert_eq!((&read["name"], &read["policy"], &read["version"]), (&json!("p"), &json!(READ_A), &json!(1)));
    let keys = json!(["default", "p", "root"]);
    assert_eq!(server.data(Operation::List, "policies/acl/", Value::Null).await, json!({"keys": keys}));
    for operation in [Operation::Read, Operation::List] {
        let path = if operation == Operation::List { "policy/" } else { "policy" };
        assert_eq!(server.data(operation, path, Value::Null).await, json!({"keys": keys, "policies": keys}));
    }
    let detailed = server.data(Operation::List, "policies/detailed/acl/", Value::Null).await;
    assert_eq!(detailed["key_info"]["p"]["policy"], READ_A);
    for _ in 0..2 {
        assert!(server.ask(&root(), Operation::Delete, "policies/acl/p", Value::Null).await.unwrap().is_empty());
    }
    assert_eq!(server.errors(Operation::Read, "policies/acl/p", Value::Null).await, Vec::<String>::new());
    assert_eq!(
        server.errors(Operation::Delete, "policies/acl", Value::Null).await,
        ["1 error occurred:\n\t* unsupported operation\n\n"]
    );
}

#[tokio::test]
async fn older_paths_and_names_in_capitals_warn() {
    let server = Server::start().await;
    let write = async |path: &str, body| server.ask(&root(), Operation::Update, path, body).await.unwrap().warnings;
    assert_eq!(write("policy/p", json!({"rules": READ_A})).await, ["'rules' is deprecated, please use 'policy' instead"]);
    assert_eq!(server.data(Operation::Read, "policy/p", Value::Null).await, json!({"name": "p", "rules": READ_A}));
    assert!(write("policy/p", json!({"policy": READ_A})).await.is_empty());
    assert_eq!(
        write("policies/acl/MiXed", json!({"policy": "cGF0aCAiYSIgeyBwb2xpY3kgPSAicmVhZCIgfQ=="})).await,
        ["policy name was converted to mixed"]
    );
    let read = server.data(Operation::Read, "policies/acl/MIXED", Value::Null).await;
    assert_eq!((&read["name"], &read["policy"]), (&json!("mixed"), &json!(r#"path "a" { policy = "read" }"#)));
}

#[tokio::test]
async fn wrong_documents_and_protected_names_are_refused() {
    let server = Server::start().await;
    for (path, body, text) in [
        ("policies/acl/p", json!({}), "'policy' parameter not supplied or empty"),
        ("policies/acl/p", json!({"rules": READ_A}), "'policy' parameter not supplied or empty"),
        ("policies/acl/p", json!({"policy": "path \"a\" {"}), "failed to parse policy: "),
        ("policies/acl/p", json!({"policy": READ_A, "ttl": "1h"}), "policies that end by themselves"),
        ("policies/acl/p", json!({"policy": READ_A, "cas": 7}), "check-and-set parameter did not match"),
        ("policies/acl/root", json!({"policy": READ_A}), "cannot update \"root\" policy"),
        ("policy/response-wrapping", json!({"policy": READ_A}), "cannot update \"response-wrapping\" policy"),
    ] {
        let errors = server.errors(Operation::Update, path, body.clone()).await;
        assert!(errors.len() == 1 && errors[0].starts_with(text), "{path} {body} {errors:?}");
    }
    for (name, text) in [("root", "cannot delete \"root\" policy"), ("default", "cannot delete default policy")] {
        assert_eq!(server.errors(Operation::Delete, &format!("policy/{name}"), Value::Null).await, [text]);
    }
    let read = server.data(Operation::Read, "policy/root", Value::Null).await;
    assert_eq!(read, json!({"name": "root", "rules": ""}));
}

#[tokio::test]
async fn the_caller_is_told_its_rights() {
    let server = Server::start().await;
    let acl = acl(r#"path "one/a" { policy = "read" } path "two/*" { capabilities = ["deny"] }"#);
    let ask = async |operation, path: &str, body| data(&server.ask(&acl, operation, path, body).await.unwrap());
    assert_eq!(
        ask(Operation::Update, "capabilities-self", json!({"paths": ["one/a"]})).await,
        json!({"one/a": ["list", "read"], "capabilities": ["list", "read"]})
    );
    assert_eq!(
        ask(Operation::Update, "capabilities-self", json!({"path": "one/a,two/b"})).await,
        json!({"one/a": ["list", "read"], "two/b": ["deny"]})
    );
    let resultant = ask(Operation::Read, "internal/ui/resultant-acl", Value::Null).await;
    assert_eq!(resultant["exact_paths"]["one/a"]["capabilities"], json!(["list", "read"]));
    for (path, body, text) in [
        ("capabilities-self", json!({}), "paths must be supplied"),
        ("capabilities", json!({"paths": ["a"]}), "1 error occurred:\n\t* no token found\n\n"),
        ("capabilities", json!({"token": "x", "paths": []}), "paths must be supplied"),
        ("capabilities-accessor", json!({"paths": ["a"]}), "missing accessor"),
    ] {
        assert_eq!(server.errors(Operation::Update, path, body).await, [text], "{path}");
    }
}

#[tokio::test]
async fn mounts_are_shown_without_a_token_only_when_marked() {
    let server = Server::start().await;
    let list = server.data(Operation::Read, "internal/ui/mounts", Value::Null).await;
    assert_eq!(list, json!({"secret": {}, "auth": {}}));
    let visible = MountConfig { listing_visibility: "unauth".into(), ..Default::default() };
    let active = server.core.active().unwrap();
    let change = |entry: &mut MountEntry| {
        entry.config = visible;
        Ok(())
    };
    active.mounts.tune(&server.core, "cubbyhole/", change).await.unwrap();
    let list = server.data(Operation::Read, "internal/ui/mounts", Value::Null).await;
    assert_eq!(list["secret"]["cubbyhole/"]["type"], "cubbyhole");
    assert_eq!(list["secret"]["cubbyhole/"]["uuid"], Value::Null);
    assert_eq!(server.errors(Operation::Read, "internal/ui/mounts/cubbyhole", Value::Null).await, ["permission denied"]);
}
