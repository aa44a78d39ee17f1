//! A whole server in memory that fuzz targets send requests to.

use std::{cell::RefCell, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::runtime::{Builder, Runtime};

use crate::{
    barrier::{Txn, View},
    core::{
        Core, Settings,
        clock::Clock,
        envelope::Answer,
        in_process::unsealed_core_over,
        request::{Operation, Request},
    },
    secret::SecretString,
    storage::InMem,
};

/// After so many inputs the server is made anew, so that what inputs leave behind does not fill the memory.
const INPUTS: usize = 5_000;

/// An unsealed server with one mount of each kind.
pub struct Server {
    runtime: Runtime,
    core: Arc<Core>,
    root: SecretString,
    served: usize,
}

thread_local! {
    static SERVER: RefCell<Option<Server>> = const { RefCell::new(None) };
}

/// Runs `work` with this thread's server. `prepare` makes what the target needs, once for each server.
pub fn with(prepare: fn(&Server), work: impl FnOnce(&Server)) {
    SERVER.with(|server| {
        let mut server = server.borrow_mut();
        if server.as_ref().is_none_or(|server| server.served >= INPUTS) {
            let fresh = Server::start();
            prepare(&fresh);
            *server = Some(fresh);
        }
        if let Some(server) = server.as_mut() {
            server.served += 1;
            work(server);
        }
    });
}

impl Server {
    #[allow(clippy::expect_used)] // a server that does not start is no finding but a defect of the harness
    fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let store = Arc::new(InMem::open().expect("a store"));
        let (core, made) = runtime.block_on(unsealed_core_over(store, Clock::system(), Settings::default()));
        let root = SecretString::new(made.root_token.clone());
        let server = Self { runtime, core, root, served: 0 };
        for (path, body) in [
            ("sys/mounts/kv1", r#"{"type":"kv","options":{"version":"1"}}"#),
            ("sys/mounts/kv2", r#"{"type":"kv","options":{"version":"2"}}"#),
            ("sys/mounts/transit", r#"{"type":"transit"}"#),
        ] {
            server.must(path, body);
        }
        server
    }

    /// A write that must succeed.
    #[allow(clippy::panic)]
    pub fn must(&self, path: &str, body: &str) -> Answer {
        let answer = self.ask(Operation::Update, path, body.as_bytes());
        assert!(answer.status < 300, "{path}: {}", String::from_utf8_lossy(&answer.body));
        answer
    }

    /// Asks with the root token.
    pub fn ask(&self, operation: Operation, path: &str, body: &[u8]) -> Answer {
        let mut request = Request::internal(operation, path, body.to_vec());
        request.token = Some(self.root.duplicate());
        self.send(request)
    }

    /// Sends a request with the root token.
    pub fn send_as_root(&self, mut request: Request) -> Answer {
        request.token = Some(self.root.duplicate());
        self.send(request)
    }

    /// Sends a request with a token.
    pub fn send_with(&self, token: &str, mut request: Request) -> Answer {
        request.token = Some(SecretString::new(token.to_owned()));
        self.send(request)
    }

    /// How many inputs it was given.
    pub fn served(&self) -> usize {
        self.served
    }

    /// Sends a request as it is.
    pub fn send(&self, request: Request) -> Answer {
        let answer = self.runtime.block_on(self.core.handle(request));
        assert!((200..=599).contains(&answer.status), "status {}", answer.status);
        if answer.content_type == "application/json" && !answer.body.is_empty() {
            let parsed: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(&answer.body);
            assert!(parsed.is_ok(), "the answer is no JSON: {}", String::from_utf8_lossy(&answer.body));
        }
        answer
    }

    /// Asks and insists that a caller's mistake is not answered as a defect of the server.
    pub fn try_out(&self, operation: Operation, path: &str, body: &[u8]) -> Answer {
        let answer = self.ask(operation, path, body);
        assert_no_defect(path, &answer);
        answer
    }

    /// Puts a record where the server will read it; `mount` is the name of a mount, or empty for paths of the barrier.
    pub fn plant(&self, mount: &str, path: &str, record: &[u8]) {
        self.change(mount, path, |txn, path| txn.put(path, record.to_vec()));
    }

    /// Takes a planted record away.
    pub fn remove(&self, mount: &str, path: &str) {
        self.change(mount, path, |txn, path| txn.delete(path));
    }

    #[allow(clippy::expect_used)] // a store in memory that does not take records is a defect of the harness
    fn change(&self, mount: &str, path: &str, change: impl FnOnce(Txn, &str) -> Txn) {
        let (prefix, path) = if mount.is_empty() {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            (format!("{folder}/"), name)
        } else {
            let active = self.core.active().expect("unsealed");
            let (mounted, _) = active.router.find(&format!("{mount}/x")).expect("mounted");
            (format!("logical/{}/", mounted.entry.uuid), path)
        };
        let view = View::new(Arc::clone(&self.core.barrier), &prefix).expect("a view");
        self.runtime.block_on(view.commit(change(Txn::new(), path))).expect("a commit");
    }
}

/// Panics on a 500 that stands for a defect; the API's own 500s name the caller's mistake.
pub fn assert_no_defect(path: &str, answer: &Answer) {
    let text = String::from_utf8_lossy(&answer.body);
    assert!(!(answer.status == 500 && text.contains("internal error")), "{path}: {text}");
}

/// Text as a member of a JSON object.
pub fn quoted(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}

/// Bytes in base64.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The member `name` of an answer's `data`.
pub fn member(answer: &Answer, name: &str) -> String {
    let parsed: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    parsed.get("data").and_then(|data| data.get(name)).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
}
