//! A whole core over redb in a temporary folder, unsealed by a share, and what is asked of it.

#[path = "../../src/core/in_process.rs"]
mod in_process;

use std::{collections::BTreeMap, sync::Arc};

use in_process::unsealed_core_over;
use sos::{
    audit::{DeviceRecord, Exchange},
    barrier::Barrier,
    core::{
        Active, Core, Settings,
        clock::Clock,
        engine::Caller,
        reply::Reply,
        request::{Operation, Request},
    },
    secret::SecretString,
    storage::{Options, Redb},
};
use tokio::runtime::Runtime;

const POLICY: &str = r#"path "kv/*" { capabilities = ["read", "list"] } path "kv/data/+/own" { capabilities = ["create", "update"] }
path "transit/encrypt/*" { capabilities = ["update"] } path "kv/data/hot" { capabilities = ["read"] }"#;

/// The core, the runtime of its tasks, and a token of few rights.
pub struct Made {
    pub core: Arc<Core>,
    pub runtime: Runtime,
    pub token: String,
    _folder: tempfile::TempDir,
}

impl Made {
    fn request(&self, operation: Operation, path: &str, body: &str) -> Request {
        let mut request = Request::internal(operation, path, body.to_owned());
        request.token = Some(SecretString::new(self.token.clone()));
        request
    }

    pub fn ask(&self, operation: Operation, path: &str, body: &str) -> serde_json::Value {
        let answer = self.runtime.block_on(self.core.handle(self.request(operation, path, body)));
        assert!(answer.status < 300, "{path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
        serde_json::from_slice(&answer.body).unwrap_or_default()
    }

    pub fn active(&self) -> Arc<Active> {
        self.core.active().expect("the core is unsealed")
    }
}

/// All of it, with what the stages read.
pub fn make() -> Made {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let store = Redb::open(folder.path().join("store"), Options::default()).expect("a store");
    let settings = Settings { audit_paths: vec!["/dev/null".into()], ..Settings::default() };
    let (core, made) = runtime.block_on(unsealed_core_over(Arc::new(store), Clock::system(), settings));
    let token = made.root_token.clone();
    let mut made = Made { core, runtime, token, _folder: folder };
    made.ask(Operation::Update, "sys/mounts/kv", r#"{"type":"kv","options":{"version":"2"}}"#);
    made.ask(Operation::Update, "sys/mounts/transit", r#"{"type":"transit"}"#);
    made.ask(Operation::Update, "transit/keys/aes", "{}");
    made.ask(Operation::Update, "kv/data/hot", r#"{"data":{"dek":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","disk":"1"}}"#);
    for number in 0..1000 {
        made.ask(Operation::Update, &format!("kv/data/disk/{number}"), r#"{"data":{"disk":"1"}}"#);
    }
    let policy = serde_json::json!({ "policy": POLICY }).to_string();
    made.ask(Operation::Update, "sys/policies/acl/bench", &policy);
    let limited = made.ask(Operation::Update, "auth/token/create", r#"{"policies":["bench"],"ttl":"24h"}"#);
    made.token = limited["auth"]["client_token"].as_str().unwrap_or_default().to_owned();
    made
}

/// Some stored record of the mount.
pub fn record_of(barrier: &Barrier) -> String {
    let found = barrier.raw().scan("logical/", None, 1).expect("a store");
    found.into_iter().next().expect("a record").0
}

/// The record of the request and that of its answer, to a device that throws them away; with its writer's thread.
pub fn audited(made: Arc<Made>, token: Arc<sos::core::tokens::TokenEntry>, acl: Arc<sos::core::policy::Acl>) -> Box<dyn FnMut()> {
    let broker = sos::audit::Broker::new(Clock::system(), vec!["/dev/null".into()]);
    let view = sos::barrier::View::new(Arc::clone(&made.core.barrier), "bench/").expect("a view");
    broker.load(view).expect("an empty view");
    let device = DeviceRecord {
        uuid: "bench".into(),
        path: "bench/".into(),
        kind: "file".into(),
        description: String::new(),
        options: BTreeMap::from([("file_path".into(), "/dev/null".into())]),
        local: false,
    };
    made.runtime.block_on(broker.enable(device)).expect("a device");
    let request = made.request(Operation::Read, "kv/data/hot", "");
    let caller = Caller { token: Some(token), acl: Some(acl), remote: None };
    let reply = Reply::raw_data(br#"{"data":{"dek":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}}"#.to_vec());
    Box::new(move || {
        let exchange =
            Exchange { request: &request, operation: Operation::Read, caller: Some(&caller), mount: None, remote: None };
        let mut held = broker.hold();
        made.runtime.block_on(async {
            held.request(exchange, None).expect("formatted").written().await.expect("recorded");
            let answered = held.response(exchange, sos::audit::Outcome::Reply(&reply)).expect("formatted");
            answered.written().await.expect("recorded");
        });
    })
}
