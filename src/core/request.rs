//! A request as `http` hands it to the pipeline.

use std::{cell::RefCell, net::IpAddr, time::Duration};

use bytes::Bytes;

use super::{failure::Failure, wanted::Wanted};
use crate::{
    backup::Upload,
    secret::{SecretString, fill_random},
    wire::query::Query,
};

/// A random UUID. Ids tell requests apart and guard nothing, so each thread takes random bytes for many at a time.
pub fn request_id() -> String {
    const LEN: usize = 16;
    thread_local! {
        static POOL: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let mut bytes = [0; LEN];
    POOL.with_borrow_mut(|pool| {
        if pool.len() < LEN {
            pool.resize(64 * LEN, 0);
            fill_random(pool);
        }
        let left = pool.len() - LEN;
        bytes.copy_from_slice(&pool[left..]);
        pool.truncate(left);
    });
    let mut text = uuid::Uuid::encode_buffer();
    uuid::Builder::from_random_bytes(bytes).into_uuid().hyphenated().encode_lower(&mut text).to_owned()
}

/// What is asked of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A write where nothing was.
    Create,
    /// A write of what exists; every POST and PUT until an endpoint's existence check says otherwise.
    Update,
    /// A JSON merge patch.
    Patch,
    /// A read.
    Read,
    /// A delete.
    Delete,
    /// The names one level below the path.
    List,
    /// All names below the path.
    Scan,
    /// The help text.
    Help,
}

impl Operation {
    /// The word that audit records use.
    pub fn word(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::Update => "update",
            Operation::Patch => "patch",
            Operation::Read => "read",
            Operation::Delete => "delete",
            Operation::List => "list",
            Operation::Scan => "scan",
            Operation::Help => "help",
        }
    }

    /// Whether it writes.
    pub fn is_write(self) -> bool {
        matches!(self, Operation::Create | Operation::Update | Operation::Patch)
    }
}

/// One decoded request.
#[derive(Debug)]
pub struct Request {
    /// `request_id` of the answer, a UUID.
    pub id: String,
    /// What is asked.
    pub operation: Operation,
    /// Decoded path without `/v1/`; a list's path ends in `/`.
    pub path: String,
    /// JSON body, possibly empty.
    pub body: Bytes,
    /// Decoded query parameters.
    pub query: Query,
    /// The client's token.
    pub token: Option<SecretString>,
    /// `X-Vault-Wrap-TTL`.
    pub wrap_ttl: Option<Duration>,
    /// `X-Vault-Wrap-Format: jwt` was asked for.
    pub wrap_as_jwt: bool,
    /// The client's address.
    pub remote: Option<IpAddr>,
    /// The client's port.
    pub remote_port: u16,
    /// The body of the few endpoints that read it while it arrives; `body` is empty then.
    pub upload: Option<Upload>,
    /// Whether its answer is still waited for.
    pub wanted: Wanted,
    /// Whether the listener shows metrics without a token.
    pub open_metrics: bool,
    /// Names (lower case) and values of the headers that audit devices record. Tokens are left out.
    pub headers: Vec<(String, String)>,
    /// Why it is refused, when its form is wrong: it is not carried out, but recorded, as who sent it to where is known.
    pub flaw: Option<Failure>,
}

impl Request {
    /// A request made inside the server (tests, start-up), without token and address.
    pub fn internal(operation: Operation, path: &str, body: impl Into<Bytes>) -> Self {
        Self {
            id: request_id(),
            operation,
            path: path.to_owned(),
            body: body.into(),
            query: Query::default(),
            token: None,
            wrap_ttl: None,
            wrap_as_jwt: false,
            remote: None,
            remote_port: 0,
            upload: None,
            wanted: Wanted::default(),
            open_metrics: false,
            headers: Vec::new(),
            flaw: None,
        }
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_random_uuids_and_never_repeat() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| request_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 36 && id.as_bytes().get(14) == Some(&b'4')));
    }
}
