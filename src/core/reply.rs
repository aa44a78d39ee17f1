//! What an endpoint answers, before the envelope is put around it.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::failure::Failure;
use crate::{backup::Download, secret::SecretString, wire::json::push_text};

/// The payload of an answer.
#[derive(Debug, Default)]
pub enum Body {
    /// Nothing: 204 unless there is something else to say.
    #[default]
    None,
    /// `data`, as JSON bytes.
    Data(Vec<u8>),
    /// `data`, and the same members at the top level too (`sys/mounts` and other old endpoints).
    Mirrored(Vec<u8>),
    /// No envelope at all (`sys/health`, `sys/seal-status` …).
    Bare {
        /// Content type.
        content_type: &'static str,
        /// The whole body.
        bytes: Vec<u8>,
    },
    /// No envelope, and sent while it is made (`sys/storage/raft/snapshot`).
    Stream {
        /// Content type.
        content_type: &'static str,
        /// The body.
        download: Download,
    },
}

impl Body {
    /// Bytes that are there already.
    pub fn len(&self) -> usize {
        match self {
            Self::None | Self::Stream { .. } => 0,
            Self::Data(bytes) | Self::Mirrored(bytes) | Self::Bare { bytes, .. } => bytes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An answer of an endpoint.
#[derive(Debug, Default)]
pub struct Reply {
    /// A status other than 200 (or 204 for an empty answer).
    pub status: Option<u16>,
    /// The payload.
    pub body: Body,
    /// `warnings`.
    pub warnings: Vec<String>,
    /// `lease_duration` of a secret without a lease of its own (KV v1).
    pub lease_duration: Option<Duration>,
    /// `auth`.
    pub auth: Option<Box<Grant>>,
    /// `wrap_info` made by the endpoint itself (`sys/wrapping/wrap`).
    pub wrap_info: Option<Box<WrapInfo>>,
    /// Response headers of the endpoint.
    pub headers: Vec<(String, String)>,
}

impl Reply {
    /// 204.
    pub fn empty() -> Self {
        Self::default()
    }

    /// 200 with `data`.
    pub fn data(data: &impl Serialize) -> Result<Self, Failure> {
        Ok(Self::raw_data(serde_json::to_vec(data).map_err(Failure::internal)?))
    }

    /// 200 with `data` that is JSON already.
    pub fn raw_data(json: Vec<u8>) -> Self {
        Self { body: Body::Data(json), ..Self::default() }
    }

    /// 200 with `data` repeated at the top level.
    pub fn mirrored(data: &impl Serialize) -> Result<Self, Failure> {
        Ok(Self { body: Body::Mirrored(serde_json::to_vec(data).map_err(Failure::internal)?), ..Self::default() })
    }

    /// JSON without an envelope.
    pub fn bare(json: &impl Serialize) -> Result<Self, Failure> {
        let bytes = serde_json::to_vec(json).map_err(Failure::internal)?;
        Ok(Self { body: Body::Bare { content_type: "application/json", bytes }, ..Self::default() })
    }

    /// A list answer: `{"keys": [...]}`; nothing to list is a 404.
    pub fn keys<S: AsRef<str>>(keys: impl IntoIterator<Item = S>) -> Result<Self, Failure> {
        let mut json = b"{\"keys\":[".to_vec();
        let begin = json.len();
        for key in keys {
            push_text(&mut json, key.as_ref());
            json.push(b',');
        }
        if json.len() == begin {
            return Err(Failure::not_found());
        }
        json.pop();
        json.extend_from_slice(b"]}");
        Ok(Self::raw_data(json))
    }

    /// With another status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// With a warning.
    #[must_use]
    pub fn with_warning(mut self, warning: impl Into<String>) -> Self {
        self.warnings.push(warning.into());
        self
    }

    /// With `auth`.
    #[must_use]
    pub fn with_auth(mut self, grant: Grant) -> Self {
        self.auth = Some(Box::new(grant));
        self
    }

    /// Whether there is nothing to put into an envelope.
    pub fn is_empty(&self) -> bool {
        matches!(self.body, Body::None)
            && self.warnings.is_empty()
            && self.auth.is_none()
            && self.wrap_info.is_none()
            && self.lease_duration.is_none()
            && self.status.is_none_or(|status| matches!(status, 202 | 204))
    }
}

/// The `auth` member: a token that was just issued or renewed. Shown once; never stored in this form.
#[derive(Debug)]
pub struct Grant {
    /// The token itself.
    pub client_token: SecretString,
    /// Its accessor; empty for batch tokens.
    pub accessor: String,
    /// All policies.
    pub policies: Vec<String>,
    /// Policies of the token itself.
    pub token_policies: Vec<String>,
    /// Policies from the identity, absent where there are none.
    pub identity_policies: Vec<String>,
    /// Metadata; `null` when empty.
    pub metadata: BTreeMap<String, String>,
    /// TTL granted.
    pub lease_duration: Duration,
    /// Whether it can be renewed.
    pub renewable: bool,
    /// Entity, or empty.
    pub entity_id: String,
    /// `service` or `batch`.
    pub token_type: &'static str,
    /// Whether it has no parent.
    pub orphan: bool,
    /// Uses left, 0 for unlimited.
    pub num_uses: i64,
}

/// The `wrap_info` member.
#[derive(Debug)]
pub struct WrapInfo {
    /// The wrapping token (or a JWT that carries it).
    pub token: SecretString,
    /// Its accessor.
    pub accessor: String,
    /// Its life in seconds.
    pub ttl: u64,
    /// When it was made, RFC 3339.
    pub creation_time: String,
    /// The path whose answer is inside.
    pub creation_path: String,
    /// Accessor of the token inside, when a login was wrapped.
    pub wrapped_accessor: Option<String>,
}
