//! `sys/wrapping/…`: wrap anything, unwrap, look up, rewrap.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/wrapping-wrap>

use std::time::Duration;

use serde::Serialize;

use super::System;
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        reply::{Body, Reply},
        route::{Access, Route},
        tokens::TokenStore,
        wrapping::{self, Unwrapped},
    },
    engines::cubbyhole::object_bytes,
    op,
    secret::SecretString,
};

/// Endpoints of this file.
pub static ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["wrapping/wrap"],
        access: Access::Token,
        help: "Wraps whatever JSON object is sent.",
        exists: None,
        operations: &[op!(Write, "Wrap the body", wrap)],
    },
    Route {
        patterns: &["wrapping/unwrap"],
        access: Access::Token,
        help: "Takes an answer out of a wrapping token, which ends with it.",
        exists: None,
        operations: &[op!(Write, "Unwrap an answer", unwrap, WrappingToken)],
    },
    Route {
        patterns: &["wrapping/lookup"],
        access: Access::Anyone,
        help: "Tells when and by which path an answer was wrapped.",
        exists: None,
        operations: &[
            op!(Read, "Look up the calling wrapping token", lookup, WrappingToken),
            op!(Write, "Look up a wrapping token", lookup, WrappingToken).computing(),
        ],
    },
    Route {
        patterns: &["wrapping/rewrap"],
        access: Access::Token,
        help: "Moves an answer into a fresh wrapping token.",
        exists: None,
        operations: &[op!(Write, "Rewrap an answer", rewrap, WrappingToken)],
    },
];

crate::params! {
    /// The token to act on.
    struct WrappingToken {
        /// The wrapping token; without it the calling token is meant.
        token: String,
    }
}

async fn wrap(_: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    if call.request.wrap_ttl.is_none_or(|ttl| ttl.is_zero()) {
        return Err(Failure::invalid("endpoint requires response wrapping to be used"));
    }
    Ok(Reply::raw_data(object_bytes(call.body)?))
}

async fn unwrap(system: &System, call: &Call<'_>, params: WrappingToken) -> Result<Reply, Failure> {
    let active = system.active()?;
    let unwrapped = take(&active.tokens, call, params).await?;
    Ok(Reply {
        status: unwrapped.record.status,
        body: Body::Bare { content_type: "application/json", bytes: unwrapped.envelope },
        ..Reply::default()
    })
}

/// Takes the answer out of the named token, or of the calling one, whose only use this request was.
async fn take(tokens: &TokenStore, call: &Call<'_>, params: WrappingToken) -> Result<Unwrapped, Failure> {
    if params.token.is_empty() {
        let entry = call.caller.token()?;
        return if entry.is_wrapping() { wrapping::open(tokens, entry).await } else { Err(wrapping::invalid_token()) };
    }
    wrapping::unwrap(tokens, &SecretString::new(params.token)).await
}

#[derive(Serialize)]
struct Lookup<'a> {
    creation_path: &'a str,
    creation_time: &'a str,
    creation_ttl: u64,
}

async fn lookup(system: &System, call: &Call<'_>, params: WrappingToken) -> Result<Reply, Failure> {
    let active = system.active()?;
    let token = match (&params.token, &call.request.token) {
        (given, _) if !given.is_empty() => SecretString::new(given.clone()),
        (_, Some(own)) => own.duplicate(),
        _ => return Err(wrapping::invalid_token()),
    };
    let entry = active.tokens.lookup(&token)?.filter(|entry| entry.is_wrapping()).ok_or_else(wrapping::invalid_token)?;
    let record = wrapping::lookup(&active.tokens, &entry)?;
    Reply::data(&Lookup {
        creation_path: &record.creation_path,
        creation_time: &record.creation_time,
        creation_ttl: record.creation_ttl,
    })
}

async fn rewrap(system: &System, call: &Call<'_>, params: WrappingToken) -> Result<Reply, Failure> {
    let core = system.core()?;
    let active = core.active()?;
    let Unwrapped { envelope, record } = take(&active.tokens, call, params).await?;
    let old = Duration::from_secs(record.creation_ttl.max(1));
    let ttl = call.request.wrap_ttl.filter(|ttl| !ttl.is_zero()).map_or(old, |wanted| wanted.min(old));
    let mut info =
        wrapping::wrap(&active.tokens, envelope, record.status, ttl, &record.creation_path, record.wrapped_accessor).await?;
    if call.request.wrap_as_jwt {
        info.token = active.tokens.wrapping_jwt(&info, &core.settings.api_addr)?;
    }
    Ok(Reply { wrap_info: Some(Box::new(info)), ..Reply::default() })
}
