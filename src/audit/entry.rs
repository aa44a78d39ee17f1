//! The shape of a record: Vault's JSON, one object per line.
//!
//! ```text
//! {"time":"…","type":"request","auth":{…},"request":{…}}
//! {"time":"…","type":"response","auth":{…},"request":{…},"response":{…},"error":"…"}
//! ```

use std::{borrow::Cow, collections::BTreeMap};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{Exchange, Outcome, device::Device, redact};
use crate::{
    core::{
        engine::Caller,
        failure::{Failure, Kind},
        mounts::{MountEntry, Table},
        reply::{Body, Grant, Reply, WrapInfo},
        request::{Operation, Request},
    },
    wire::time::rfc3339,
};

/// Room made at once: for what both records of a request say, for a line's own members, and for those with an answer.
const COMMON_LEN: usize = 1024;
const FRAME_LEN: usize = 128;
const RESPONSE_LEN: usize = 768;

/// What a record says member by member of data that anyone can make the server record, because they are a stranger's or the request
/// is refused; of more it shows one HMAC. Every string becomes one of 77 bytes, so that what is cheap to send or to ask for would fill
/// a disk otherwise, and memory before that.
const BOUNDED_LEN: usize = 2048;
/// The same for a stranger's path or a refused one, and for the reason of a failure.
const BOUNDED_TEXT: usize = 1024;

/// What a record says member by member of all other data: so many times as much as they are, within these bounds.
const SHOWN_TIMES: usize = 8;
const SHOWN_LEAST: usize = 64 << 10;
const SHOWN_MOST: usize = 1 << 20;

/// Vault's name for a body that is not shown member by member.
const RAW_BODY: &str = "http_raw_body";

/// Names of headers that are recorded, and whether as HMAC.
pub type AuditedHeaders = BTreeMap<String, bool>;

#[derive(Default, Serialize)]
struct Auth<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    client_token: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    accessor: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    display_name: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    policies: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    token_policies: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    identity_policies: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_results: Option<PolicyResults>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "is_zero")]
    remaining_uses: i64,
    #[serde(skip_serializing_if = "is_zero")]
    num_uses: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    entity_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    token_type: &'a str,
    #[serde(skip_serializing_if = "is_none_or_zero")]
    token_ttl: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_issue_time: Option<String>,
}

#[derive(Serialize)]
struct PolicyResults {
    allowed: bool,
}

#[derive(Serialize)]
struct Namespace {
    id: &'static str,
}

#[derive(Serialize)]
struct RequestPart<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    operation: &'a str,
    #[serde(flatten)]
    mount: Option<MountPart<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    client_token: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client_token_accessor: &'a str,
    namespace: Namespace,
    path: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_port: Option<u16>,
    #[serde(skip_serializing_if = "is_none_or_zero")]
    wrap_ttl: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, Vec<String>>,
}

#[derive(Serialize)]
struct MountPart<'a> {
    mount_point: String,
    mount_type: &'a str,
    mount_accessor: &'a str,
    mount_class: &'a str,
}

#[derive(Serialize)]
struct ResponsePart<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<Auth<'a>>,
    #[serde(flatten)]
    mount: Option<MountPart<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    wrap_info: Option<WrapPart<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, Vec<String>>,
}

#[derive(Serialize)]
struct WrapPart<'a> {
    ttl: u64,
    token: String,
    accessor: String,
    creation_time: &'a str,
    creation_path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapped_accessor: Option<String>,
}

// serde hands the field over by reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn is_none_or_zero(number: &Option<u64>) -> bool {
    number.is_none_or(|number| number == 0)
}

/// A caller's token and accessor as the device shows them.
struct Shown {
    token: String,
    accessor: String,
}

/// Makes the lines of one device.
pub struct Formatter<'a> {
    device: &'a Device,
    headers: &'a AuditedHeaders,
}

impl<'a> Formatter<'a> {
    /// For a device, with the headers that are recorded.
    pub fn new(device: &'a Device, headers: &'a AuditedHeaders) -> Self {
        Self { device, headers }
    }

    /// What the records of a request and of its answer both say: the members `auth` and `request`, without braces.
    pub fn common(&self, exchange: Exchange<'_>, allowed: bool) -> serde_json::Result<Vec<u8>> {
        let caller = self.caller(exchange);
        let mut members = Vec::with_capacity(COMMON_LEN);
        members.extend_from_slice(b"\"auth\":");
        serde_json::to_writer(&mut members, &Self::auth(exchange, &caller, allowed))?;
        members.extend_from_slice(b",\"request\":");
        serde_json::to_writer(&mut members, &self.request_part(exchange, &caller, allowed)?)?;
        Ok(members)
    }

    /// The line of a request.
    pub fn request(common: &[u8], refused: Option<&Failure>, now: OffsetDateTime) -> serde_json::Result<Vec<u8>> {
        line("request", now, common, None, &refused.map(error_text).unwrap_or_default())
    }

    /// The line of an answer.
    pub fn response(
        &self,
        common: &[u8],
        exchange: Exchange<'_>,
        outcome: Outcome<'_>,
        now: OffsetDateTime,
    ) -> serde_json::Result<Vec<u8>> {
        match outcome {
            Outcome::Reply(reply) => line("response", now, common, Some(&self.response_part(exchange, reply)?), ""),
            Outcome::Failure(failure) => line("response", now, common, None, &error_text(failure)),
        }
    }

    /// The record that shows that the device can be written to.
    pub fn probe(&self, id: &str, now: OffsetDateTime) -> serde_json::Result<Vec<u8>> {
        let request = Request { id: id.to_owned(), ..Request::internal(Operation::Update, "sys/audit/test", "") };
        let exchange = Exchange { request: &request, operation: Operation::Update, caller: None, mount: None, remote: None };
        Self::request(&self.common(exchange, true)?, None, now)
    }

    fn hidden(&self, text: &str) -> String {
        if text.is_empty() || self.device.options.log_raw { text.to_owned() } else { self.device.salt.identify(text.as_bytes()) }
    }

    fn accessor(&self, text: &str) -> String {
        if self.device.options.hmac_accessor { self.hidden(text) } else { text.to_owned() }
    }

    /// Data member by member, or as a whole where that is too long.
    fn data(&self, json: &[u8], clear: &[String], bounded: bool) -> serde_json::Result<Option<Box<RawValue>>> {
        let json = json.trim_ascii();
        if json.is_empty() || json == b"null" {
            return Ok(None);
        }
        let most = if bounded { BOUNDED_LEN } else { most_shown(json.len()) };
        let shown = if json.len() > most && (bounded || self.device.options.log_raw) {
            None
        } else if self.device.options.log_raw {
            // A record is one line: line breaks between the tokens of a client's JSON are blanks (inside strings they are escapes).
            Some(json.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect())
        } else {
            redact::strings(json, &self.device.salt, clear, most)
        };
        let Some(shown) = shown else { return self.whole(json) };
        let text = String::from_utf8(shown).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        RawValue::from_string(text).map(Some)
    }

    /// A document as one HMAC, whatever the device's options: whoever has it can see that it was this one.
    fn whole(&self, document: &[u8]) -> serde_json::Result<Option<Box<RawValue>>> {
        let hash = self.device.salt.identify(document);
        to_raw_value(&BTreeMap::from([(RAW_BODY, hash)])).map(Some)
    }

    /// What a record says twice of the caller.
    fn caller(&self, exchange: Exchange<'_>) -> Shown {
        let token = exchange.caller.and_then(|caller| caller.token.as_ref());
        Shown {
            token: exchange.request.token.as_ref().map(|token| self.hidden(token.expose())).unwrap_or_default(),
            accessor: token.map(|token| self.accessor(&token.accessor)).unwrap_or_default(),
        }
    }

    fn auth<'b>(exchange: Exchange<'b>, shown: &'b Shown, allowed: bool) -> Auth<'b> {
        let policy_results = Some(PolicyResults { allowed });
        let Some(token) = exchange.caller.and_then(|caller| caller.token.as_ref()) else {
            return Auth { policy_results, ..Auth::default() };
        };
        Auth {
            client_token: Cow::Borrowed(&shown.token),
            accessor: Cow::Borrowed(&shown.accessor),
            display_name: &token.display_name,
            policies: &token.policies,
            token_policies: &token.policies,
            policy_results,
            metadata: Some(&token.meta).filter(|metadata| !metadata.is_empty()),
            remaining_uses: token.num_uses.max(0),
            entity_id: &token.entity_id,
            token_type: token.kind.word(),
            token_ttl: Some(token.creation_ttl),
            token_issue_time: OffsetDateTime::from_unix_timestamp(token.creation_time).ok().map(rfc3339),
            ..Auth::default()
        }
    }

    fn request_part<'b>(&self, exchange: Exchange<'b>, shown: &'b Shown, allowed: bool) -> serde_json::Result<RequestPart<'b>> {
        let request = exchange.request;
        let bounded = !allowed || is_stranger(exchange);
        let data = match self.request_data(exchange, bounded) {
            // What is refused may be no JSON.
            Err(_) if !allowed => None,
            data => data?,
        };
        Ok(RequestPart {
            id: &request.id,
            client_id: exchange.caller.and_then(client_id),
            operation: exchange.operation.word(),
            mount: exchange.mount.map(mount_part),
            client_token: &shown.token,
            client_token_accessor: &shown.accessor,
            namespace: Namespace { id: "root" },
            path: if bounded { beginning(&request.path) } else { Cow::Borrowed(&request.path) },
            data,
            remote_address: exchange.remote.map(|address| address.to_string()),
            remote_port: exchange.remote.map(|_| request.remote_port),
            wrap_ttl: request.wrap_ttl.map(|ttl| ttl.as_secs()),
            headers: self.audited(request.headers.iter()),
        })
    }

    /// Parameters of body and query. Of writes the query means nothing to most endpoints, and is shown where no body is.
    fn request_data(&self, exchange: Exchange<'_>, bounded: bool) -> serde_json::Result<Option<Box<RawValue>>> {
        let request = exchange.request;
        let clear = exchange.mount.map_or(&[][..], |mount| &mount.config.audit_non_hmac_request_keys);
        let body = self.data(&request.body, clear, bounded)?;
        if request.query.is_empty() || (exchange.operation.is_write() && body.is_some()) {
            return Ok(body);
        }
        let query = self.data(&serde_json::to_vec(&request.query.to_object())?, clear, bounded)?;
        match (body, query) {
            (Some(body), Some(query)) => to_raw_value(&BTreeMap::from([("body", body), ("query", query)])).map(Some),
            (body, query) => Ok(body.or(query)),
        }
    }

    fn audited<'b>(&self, headers: impl Iterator<Item = &'b (String, String)>) -> BTreeMap<&'b str, Vec<String>> {
        let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        if self.headers.is_empty() {
            return found;
        }
        for (name, value) in headers {
            if let Some(hmac) = self.headers.get(&name.to_ascii_lowercase()) {
                found.entry(name).or_default().push(if *hmac { self.hidden(value) } else { value.clone() });
            }
        }
        found
    }

    fn response_part<'b>(&self, exchange: Exchange<'b>, reply: &'b Reply) -> serde_json::Result<ResponsePart<'b>> {
        let clear = exchange.mount.map_or(&[][..], |mount| &mount.config.audit_non_hmac_response_keys);
        let data = match &reply.body {
            // A stream is encrypted records, far too many for a log.
            Body::None | Body::Stream { .. } => None,
            Body::Data(json) | Body::Mirrored(json) if self.elides(exchange.operation) => Some(elided(json)?),
            Body::Data(json) | Body::Mirrored(json) => self.data(json, clear, is_stranger(exchange))?,
            // Documents about the server, but for the answer that was wrapped: of that an auditor looks for each value.
            Body::Bare { content_type: "application/json", bytes } => {
                self.data(bytes, clear, exchange.request.path != "sys/wrapping/unwrap")?
            }
            Body::Bare { bytes, .. } if bytes.len() > most_shown(bytes.len()) => self.whole(bytes)?,
            Body::Bare { bytes, .. } => {
                let text = self.hidden(&String::from_utf8_lossy(bytes));
                Some(to_raw_value(&BTreeMap::from([(RAW_BODY, text)]))?)
            }
        };
        Ok(ResponsePart {
            auth: reply.auth.as_deref().map(|grant| self.grant(grant)),
            mount: exchange.mount.map(mount_part),
            data,
            warnings: &reply.warnings,
            wrap_info: reply.wrap_info.as_deref().map(|info| self.wrapped(info)),
            headers: self.audited(reply.headers.iter()),
        })
    }

    fn elides(&self, operation: Operation) -> bool {
        self.device.options.elide_list_responses && matches!(operation, Operation::List | Operation::Scan)
    }

    fn grant<'b>(&self, grant: &'b Grant) -> Auth<'b> {
        Auth {
            client_token: self.hidden(grant.client_token.expose()).into(),
            accessor: self.accessor(&grant.accessor).into(),
            policies: &grant.policies,
            token_policies: &grant.token_policies,
            identity_policies: &grant.identity_policies,
            metadata: Some(&grant.metadata).filter(|metadata| !metadata.is_empty()),
            num_uses: grant.num_uses,
            entity_id: &grant.entity_id,
            token_type: grant.token_type,
            token_ttl: Some(grant.lease_duration.as_secs()),
            ..Auth::default()
        }
    }

    fn wrapped<'b>(&self, info: &'b WrapInfo) -> WrapPart<'b> {
        WrapPart {
            ttl: info.ttl,
            token: self.hidden(info.token.expose()),
            accessor: self.accessor(&info.accessor),
            creation_time: &info.creation_time,
            creation_path: &info.creation_path,
            wrapped_accessor: info.wrapped_accessor.as_deref().map(|accessor| self.accessor(accessor)),
        }
    }
}

fn line(
    kind: &str,
    now: OffsetDateTime,
    common: &[u8],
    response: Option<&ResponsePart<'_>>,
    error: &str,
) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(common.len() + if response.is_some() { RESPONSE_LEN } else { FRAME_LEN });
    // A time and a kind hold nothing that JSON escapes.
    for part in [b"{\"time\":\"", rfc3339(now).as_bytes(), b"\",\"type\":\"", kind.as_bytes(), b"\",", common] {
        line.extend_from_slice(part);
    }
    if let Some(response) = response {
        line.extend_from_slice(b",\"response\":");
        serde_json::to_writer(&mut line, response)?;
    }
    if !error.is_empty() {
        line.extend_from_slice(b",\"error\":");
        serde_json::to_writer(&mut line, error)?;
    }
    line.extend_from_slice(b"}\n");
    Ok(line)
}

/// What the client reads, or the kind where that is no text; "nothing is there" is no error. It may repeat what the client wrote.
fn error_text(failure: &Failure) -> String {
    let text = failure.errors().pop().unwrap_or_else(|| match failure.kind() {
        Kind::NotFound => String::new(),
        Kind::UnsupportedPath => "unsupported path".into(),
        Kind::UnsupportedOperation => "unsupported operation".into(),
        other => format!("{other:?}"),
    });
    beginning(&text).into_owned()
}

/// How much of a document of this length is shown member by member when nothing else limits it.
fn most_shown(len: usize) -> usize {
    len.saturating_mul(SHOWN_TIMES).clamp(SHOWN_LEAST, SHOWN_MOST)
}

/// Whether nobody knows who calls.
fn is_stranger(exchange: Exchange<'_>) -> bool {
    exchange.caller.is_none_or(|caller| caller.token.is_none())
}

/// A text as far as a record says it when anyone may have written it.
fn beginning(text: &str) -> Cow<'_, str> {
    if text.len() <= BOUNDED_TEXT {
        return Cow::Borrowed(text);
    }
    let end = (0..=BOUNDED_TEXT).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    Cow::Owned(format!("{}\u{2026}", text.get(..end).unwrap_or_default()))
}

fn mount_part(mount: &MountEntry) -> MountPart<'_> {
    MountPart {
        mount_point: mount.full_path(),
        mount_type: &mount.kind,
        mount_accessor: &mount.accessor,
        mount_class: match mount.table {
            Table::Secret => "secret",
            Table::Auth => "auth",
        },
    }
}

/// The entity, or for tokens without one a hash of their policies, as Vault counts clients.
fn client_id(caller: &Caller) -> Option<String> {
    let token = caller.token.as_ref()?;
    if !token.entity_id.is_empty() {
        return Some(token.entity_id.clone());
    }
    let mut hash = Sha256::new();
    for policy in &token.policies {
        hash.update([0x7f]);
        hash.update(policy);
    }
    hash.update([0]);
    hash.update("root");
    Some(STANDARD.encode(hash.finalize()))
}

/// The answer of a list with numbers of names instead of names.
fn elided(json: &[u8]) -> serde_json::Result<Box<RawValue>> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_slice(json)?;
    let counted: BTreeMap<&str, usize> = members
        .iter()
        .filter_map(|(name, value)| match name.as_str() {
            "keys" => Some(("keys", serde_json::from_str::<Vec<&RawValue>>(value.get()).ok()?.len())),
            "key_info" => Some(("key_info", serde_json::from_str::<BTreeMap<String, &RawValue>>(value.get()).ok()?.len())),
            _ => None,
        })
        .collect();
    to_raw_value(&counted)
}
