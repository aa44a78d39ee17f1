//! Response wrapping: the whole answer is put into the cubbyhole of a token of one use, and the caller gets that token.
//!
//! Records in the wrapping token's cubbyhole, written in the commit that makes the token:
//!
//! ```text
//! <hash>/response   {"response": "<the answer's JSON>"}, as `GET cubbyhole/response` shows it
//! <hash>/wrapinfo   WrapRecord as JSON
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    failure::{Failure, Kind},
    reply::WrapInfo,
    request::Request,
    tokens::{TokenEntry, TokenSpec, TokenStore, WRAPPING_POLICY},
};
use crate::{
    barrier::Txn,
    secret::SecretString,
    wire::{field::Input, json::RawObject, query::NO_QUERY, time::rfc3339},
};

/// What `sys/wrapping/lookup` tells, and what a later unwrap needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrapRecord {
    /// Seconds.
    pub creation_ttl: u64,
    /// RFC 3339.
    pub creation_time: String,
    /// The path whose answer is inside.
    pub creation_path: String,
    /// The answer's status, where it is not 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Accessor of a token inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrapped_accessor: Option<String>,
}

/// A wrapped answer, taken out.
#[derive(Debug)]
pub struct Unwrapped {
    /// The whole JSON of the answer.
    pub envelope: Vec<u8>,
    /// How it was wrapped.
    pub record: WrapRecord,
}

#[derive(Serialize, Deserialize)]
struct Response<T> {
    response: T,
}

/// Makes a wrapping token for an answer: one commit.
pub async fn wrap(
    tokens: &TokenStore,
    envelope: Vec<u8>,
    status: Option<u16>,
    ttl: Duration,
    creation_path: &str,
    wrapped_accessor: Option<String>,
) -> Result<WrapInfo, Failure> {
    let response = Response { response: String::from_utf8(envelope).map_err(Failure::internal)? };
    let response = serde_json::to_vec(&response).map_err(Failure::internal)?;
    let record = WrapRecord {
        creation_ttl: ttl.as_secs(),
        creation_time: rfc3339(tokens.clock().now()),
        creation_path: creation_path.to_owned(),
        status,
        wrapped_accessor,
    };
    let info = serde_json::to_vec(&record).map_err(Failure::internal)?;
    let spec = TokenSpec {
        policies: vec![WRAPPING_POLICY.into()],
        path: creation_path.to_owned(),
        ttl,
        explicit_max_ttl: ttl,
        num_uses: 1,
        ..TokenSpec::default()
    };
    let cubbyhole =
        |hash: &str| Txn::new().put(format!("{hash}/response"), response.clone()).put(format!("{hash}/wrapinfo"), info.clone());
    let (grant, _) = tokens.issue_with(spec, cubbyhole).await?;
    Ok(WrapInfo {
        token: grant.client_token,
        accessor: grant.accessor,
        ttl: record.creation_ttl,
        creation_time: record.creation_time,
        creation_path: record.creation_path,
        wrapped_accessor: record.wrapped_accessor.filter(|accessor| !accessor.is_empty()),
    })
}

/// The token that a request to `sys/wrapping/{lookup,unwrap,rewrap}` names, in the body or as its own: these paths refuse
/// bad ones with words of their own, before anything else.
pub fn named_token(request: &Request, body: &RawObject<'_>) -> Result<SecretString, Failure> {
    let refused = |reason: &str| Failure::plain(Kind::Denied, format!("error validating wrapping token: {reason}"));
    let given: Option<String> = match body.member("token").filter(|raw| raw.get() != "null") {
        Some(_) => Some(named(body).ok_or_else(|| refused("could not decode token in request body"))?),
        None => None,
    };
    match (given, &request.token) {
        (Some(text), _) if text.is_empty() => Err(refused("empty token in request body")),
        (Some(text), _) => Ok(SecretString::new(text)),
        (None, Some(own)) if !own.is_empty() => Ok(own.duplicate()),
        (None, _) => Err(refused("token is empty")),
    }
}

/// Says whether the token wraps an answer.
pub fn validate(tokens: &TokenStore, token: &SecretString) -> Result<(), Failure> {
    match tokens.lookup(token)? {
        Some(entry) if entry.is_wrapping() => Ok(()),
        _ => Err(invalid_token()),
    }
}

fn named(body: &RawObject<'_>) -> Option<String> {
    Input { captures: &[], body, query: &NO_QUERY }.field("token").ok()
}

/// 400 for what is no wrapping token, or no longer.
pub fn invalid_token() -> Failure {
    Failure::invalid("wrapping token is not valid or does not exist")
}

/// How an answer was wrapped; the token stays good.
pub fn lookup(tokens: &TokenStore, entry: &TokenEntry) -> Result<WrapRecord, Failure> {
    let record = tokens.cubbyhole().get(&format!("{}/wrapinfo", entry.hash))?.ok_or_else(invalid_token)?;
    serde_json::from_slice(record.value.expose()).map_err(Failure::internal)
}

/// Takes the answer out. The caller has counted the token's use, and ends the token afterwards.
pub async fn open(tokens: &TokenStore, entry: &TokenEntry) -> Result<Unwrapped, Failure> {
    let record = lookup(tokens, entry)?;
    let response = tokens.cubbyhole().get_long(&format!("{}/response", entry.hash)).await?.ok_or_else(invalid_token)?;
    let response: Response<String> = serde_json::from_slice(response.value.expose()).map_err(Failure::internal)?;
    Ok(Unwrapped { envelope: response.response.into_bytes(), record })
}

/// Takes the answer out of a wrapping token that somebody else presents, and uses the token up.
pub async fn unwrap(tokens: &TokenStore, token: &SecretString) -> Result<Unwrapped, Failure> {
    let entry = tokens.lookup(token)?.filter(|entry| entry.is_wrapping()).ok_or_else(invalid_token)?;
    tokens.count_use(&entry).await.map_err(|failure| if failure.kind() == Kind::Denied { invalid_token() } else { failure })?;
    let unwrapped = open(tokens, &entry).await;
    if let Err(failure) = tokens.finish_use(&entry).await {
        // The token is dead already; the answer must not be lost with it.
        tracing::warn!(error = ?failure, "a used-up wrapping token is removed later");
    }
    unwrapped
}

#[cfg(test)]
#[path = "wrapping_tests.rs"]
mod tests;
