//! The two servers of a drill: the rebuilt one, and the running one to compare with.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    core::{
        Core,
        request::{Operation, Request},
    },
    secret::SecretString,
};

/// The running server. It is only read: reads of secrets, decryptions, verifications.
pub trait Live: Send + Sync {
    /// GET; `None` when there is nothing.
    fn read(&self, path: &str) -> Result<Option<Value>, Unasked>;

    /// PUT on an endpoint that changes nothing; `None` when the server cannot do it with what it has.
    fn ask(&self, path: &str, body: &Value) -> Result<Option<Value>, Unasked>;
}

/// The running server does not say, so nothing can be compared with it: it refuses the token, or cannot be reached.
#[derive(Clone, Debug)]
pub struct Unasked(pub String);

/// The rebuilt server, asked by its own request path.
pub struct Rebuilt {
    core: Arc<Core>,
    token: SecretString,
}

impl Rebuilt {
    pub(super) fn new(core: Arc<Core>, token: SecretString) -> Self {
        Self { core, token }
    }

    /// The answer's `data`, or the error's text.
    pub(super) async fn read(&self, path: &str, query: &[(&str, String)]) -> Result<Value, String> {
        let mut request = Request::internal(Operation::Read, path, "");
        request.query = query.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        self.send(request).await
    }

    /// Names one level below; nothing there is an empty list.
    pub(super) async fn list(&self, path: &str) -> Result<Vec<String>, String> {
        let mut request = Request::internal(Operation::List, path, "");
        request.token = Some(self.token.duplicate());
        let answer = self.core.handle(request).await;
        if answer.status == 404 {
            return Ok(Vec::new());
        }
        let data = data_of(answer.status, &answer.body)?;
        let keys = data.get("keys").and_then(Value::as_array).into_iter().flatten();
        Ok(keys.filter_map(Value::as_str).map(str::to_owned).collect())
    }

    pub(super) async fn write(&self, path: &str, body: &Value) -> Result<Value, String> {
        self.send(Request::internal(Operation::Update, path, body.to_string())).await
    }

    async fn send(&self, mut request: Request) -> Result<Value, String> {
        request.token = Some(self.token.duplicate());
        let answer = self.core.handle(request).await;
        data_of(answer.status, &answer.body)
    }
}

fn data_of(status: u16, body: &[u8]) -> Result<Value, String> {
    let parsed: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    if (200..300).contains(&status) {
        return Ok(parsed.get("data").cloned().unwrap_or(Value::Null));
    }
    let errors = parsed.get("errors").and_then(Value::as_array).cloned().unwrap_or_default();
    let errors: Vec<_> = errors.iter().filter_map(Value::as_str).collect();
    Err(format!("{status} {}", errors.join("; ")))
}
