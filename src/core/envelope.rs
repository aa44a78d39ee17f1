//! Vault's answer envelope, written straight into one buffer.

use serde::Serialize;

use super::{
    failure::Failure,
    reply::{Body, Grant, Reply, WrapInfo},
};
use crate::backup::Download;

/// A finished answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Content type of the body.
    pub content_type: &'static str,
    /// The body; empty for 204.
    pub body: Vec<u8>,
    /// Headers of the endpoint.
    pub headers: Vec<(String, String)>,
    /// A body that is sent while it is made, in place of `body`.
    pub download: Option<Download>,
}

impl Answer {
    /// An answer whose body is JSON.
    pub fn json(status: u16, body: Vec<u8>) -> Self {
        Self { status, content_type: "application/json", body, headers: Vec::new(), download: None }
    }
}

/// Puts the envelope around a reply. `mount_type` names the engine that answered.
pub fn render(reply: Reply, request_id: &str, mount_type: &str) -> Result<Answer, Failure> {
    let empty = reply.is_empty();
    let status = reply.status.unwrap_or(if empty { 204 } else { 200 });
    let (content_type, body) = match &reply.body {
        Body::Bare { content_type, bytes } => (*content_type, bytes.clone()),
        Body::Stream { content_type, .. } => (*content_type, Vec::new()),
        _ if empty => ("application/json", Vec::new()),
        _ => ("application/json", envelope(&reply, request_id, mount_type)?),
    };
    let download = match reply.body {
        Body::Stream { download, .. } => Some(download),
        _ => None,
    };
    Ok(Answer { status, content_type, body, headers: reply.headers, download })
}

/// The envelope's JSON.
pub fn envelope(reply: &Reply, request_id: &str, mount_type: &str) -> Result<Vec<u8>, Failure> {
    let data: &[u8] = match &reply.body {
        Body::Data(json) | Body::Mirrored(json) => json,
        Body::None | Body::Bare { .. } | Body::Stream { .. } => b"null",
    };
    let mut out = Vec::with_capacity(data.len() * 2 + 256);
    out.extend_from_slice(b"{\"request_id\":");
    push(&mut out, request_id)?;
    out.extend_from_slice(b",\"lease_id\":\"\",\"renewable\":false,\"lease_duration\":");
    let seconds = reply.lease_duration.map_or(0, |duration| duration.as_secs());
    out.extend_from_slice(seconds.to_string().as_bytes());
    out.extend_from_slice(b",\"data\":");
    out.extend_from_slice(data);
    out.extend_from_slice(b",\"wrap_info\":");
    match &reply.wrap_info {
        Some(info) => push(&mut out, &WrapInfoJson::from(info.as_ref()))?,
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"warnings\":");
    if reply.warnings.is_empty() {
        out.extend_from_slice(b"null");
    } else {
        push(&mut out, &reply.warnings)?;
    }
    out.extend_from_slice(b",\"auth\":");
    match &reply.auth {
        Some(grant) => push(&mut out, &GrantJson::from(grant.as_ref()))?,
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"mount_type\":");
    push(&mut out, mount_type)?;
    if let Body::Mirrored(json) = &reply.body {
        // The members of `data` once more; engines write compact JSON, so the outer braces are the first and last byte.
        let members = json.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}")).unwrap_or(b"");
        if !members.is_empty() {
            out.push(b',');
            out.extend_from_slice(members);
        }
    }
    out.push(b'}');
    Ok(out)
}

/// `{"errors": [...]}`, with `warnings` where there are some.
pub fn errors(failure: &Failure) -> Vec<u8> {
    #[derive(Serialize)]
    struct Errors<'a> {
        errors: Vec<String>,
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        warnings: &'a [String],
    }
    let body = Errors { errors: failure.errors(), warnings: failure.warnings() };
    serde_json::to_vec(&body).unwrap_or_else(|_| b"{\"errors\":[]}".to_vec())
}

fn push(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) -> Result<(), Failure> {
    serde_json::to_writer(out, value).map_err(Failure::internal)
}

#[derive(Serialize)]
struct WrapInfoJson<'a> {
    token: &'a str,
    accessor: &'a str,
    ttl: u64,
    creation_time: &'a str,
    creation_path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapped_accessor: Option<&'a str>,
}

impl<'a> From<&'a WrapInfo> for WrapInfoJson<'a> {
    fn from(info: &'a WrapInfo) -> Self {
        Self {
            token: info.token.expose(),
            accessor: &info.accessor,
            ttl: info.ttl,
            creation_time: &info.creation_time,
            creation_path: &info.creation_path,
            wrapped_accessor: info.wrapped_accessor.as_deref(),
        }
    }
}

#[derive(Serialize)]
struct GrantJson<'a> {
    client_token: &'a str,
    accessor: &'a str,
    policies: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    token_policies: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    identity_policies: &'a [String],
    metadata: Option<&'a std::collections::BTreeMap<String, String>>,
    lease_duration: u64,
    renewable: bool,
    entity_id: &'a str,
    token_type: &'a str,
    orphan: bool,
    mfa_requirement: Option<()>,
    num_uses: i64,
}

impl<'a> From<&'a Grant> for GrantJson<'a> {
    fn from(grant: &'a Grant) -> Self {
        Self {
            client_token: grant.client_token.expose(),
            accessor: &grant.accessor,
            policies: &grant.policies,
            token_policies: &grant.token_policies,
            identity_policies: &grant.identity_policies,
            metadata: (!grant.metadata.is_empty()).then_some(&grant.metadata),
            lease_duration: grant.lease_duration.as_secs(),
            renewable: grant.renewable,
            entity_id: &grant.entity_id,
            token_type: grant.token_type,
            orphan: grant.orphan,
            mfa_requirement: None,
            num_uses: grant.num_uses,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn body(reply: Reply) -> Value {
        serde_json::from_slice(&render(reply, "id", "kv").unwrap().body).unwrap()
    }

    #[test]
    fn every_member_is_present() {
        let got = body(Reply::raw_data(b"{\"a\":1}".to_vec()));
        assert_eq!(
            got,
            json!({"request_id": "id", "lease_id": "", "renewable": false, "lease_duration": 0, "data": {"a": 1},
                   "wrap_info": null, "warnings": null, "auth": null, "mount_type": "kv"})
        );
    }

    #[test]
    fn mirrored_data_stands_at_the_top_too() {
        let got = body(Reply::mirrored(&json!({"keys": [1], "b": 2})).unwrap());
        assert_eq!((&got["b"], &got["data"]["b"], &got["keys"]), (&json!(2), &json!(2), &json!([1])));
        assert_eq!(body(Reply::mirrored(&json!({})).unwrap())["data"], json!({}));
    }

    #[test]
    fn nothing_to_say_is_a_204_and_a_warning_alone_is_not() {
        let answer = render(Reply::empty(), "id", "kv").unwrap();
        assert_eq!((answer.status, answer.body.len()), (204, 0));
        let got = body(Reply::empty().with_warning("w"));
        assert_eq!((&got["data"], &got["warnings"]), (&Value::Null, &json!(["w"])));
    }
}
