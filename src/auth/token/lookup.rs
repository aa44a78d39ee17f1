//! `auth/token/lookup`, `lookup-self`, `lookup-accessor` and `accessors`.

use std::collections::BTreeMap;

use serde::Serialize;
use time::OffsetDateTime;

use super::{TokenAuth, given_accessor, invalid_accessor, own_token};
use crate::{
    core::{
        engine::Call,
        failure::{Failure, Kind},
        reply::Reply,
        route::{Access, Route},
        tokens::TokenEntry,
    },
    op,
    secret::SecretString,
    wire::time::rfc3339,
};

/// Endpoints of this file.
pub(super) static ROUTES: &[Route<TokenAuth>] = &[
    Route {
        patterns: &["lookup-self"],
        access: Access::Token,
        help: "Shows the calling token.",
        exists: None,
        operations: &[
            op!(Read, "Look up the calling token", lookup_self, TokenParam),
            op!(Write, "Look up the calling token", lookup_self, TokenParam).computing(),
        ],
    },
    Route {
        patterns: &["lookup-accessor"],
        access: Access::Token,
        help: "Shows a token by its accessor.",
        exists: None,
        operations: &[op!(Write, "Look up a token by accessor", lookup_accessor, AccessorParam).computing()],
    },
    Route {
        patterns: &["lookup"],
        access: Access::Token,
        help: "Shows a token.",
        exists: None,
        operations: &[
            op!(Read, "Look up a token", lookup, TokenParam),
            op!(Write, "Look up a token", lookup, TokenParam).computing(),
        ],
    },
    Route {
        patterns: &["accessors/?"],
        access: Access::Sudo,
        help: "Lists the accessors of all service tokens.",
        exists: None,
        operations: &[op!(List, "List accessors", accessors)],
    },
];

crate::params! {
    /// A token.
    struct TokenParam {
        /// The token; without it the calling token is meant.
        token: String,
    }
}

crate::params! {
    /// An accessor.
    struct AccessorParam {
        /// The accessor.
        accessor: String,
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    accessor: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    bound_cidrs: &'a [String],
    creation_time: i64,
    creation_ttl: u64,
    display_name: &'a str,
    entity_id: &'a str,
    expire_time: Option<String>,
    explicit_max_ttl: u64,
    id: &'a str,
    issue_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_renewal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_renewal_time: Option<i64>,
    meta: Option<&'a BTreeMap<String, String>>,
    num_uses: i64,
    orphan: bool,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    period: Option<u64>,
    policies: &'a [String],
    renewable: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    role: &'a str,
    ttl: i64,
    #[serde(rename = "type")]
    kind: &'static str,
}

/// The entry as clients see it; the parent stays unsaid, since its hash helps nobody.
fn show(call: &Call<'_>, entry: &TokenEntry, id: &str) -> Result<Reply, Failure> {
    let now = i64::try_from(call.now.unix_timestamp_nanos()).unwrap_or(i64::MAX);
    Reply::data(&Shown {
        accessor: &entry.accessor,
        bound_cidrs: &entry.bound_cidrs,
        creation_time: entry.creation_time,
        creation_ttl: entry.creation_ttl,
        display_name: &entry.display_name,
        entity_id: &entry.entity_id,
        expire_time: entry.expires_at.map(time_text),
        explicit_max_ttl: entry.explicit_max_ttl,
        id,
        issue_time: time_text(entry.issued_at),
        last_renewal: entry.last_renewal.map(time_text),
        last_renewal_time: entry.last_renewal.map(|at| at.div_euclid(NANOS)),
        meta: (!entry.meta.is_empty()).then_some(&entry.meta),
        num_uses: entry.num_uses,
        orphan: entry.parent.is_empty(),
        path: &entry.path,
        period: (entry.period > 0).then_some(entry.period),
        policies: &entry.policies,
        renewable: entry.renewable,
        role: &entry.role,
        // Rounded up, so that a fresh token shows the whole of its TTL.
        ttl: entry.expires_at.map_or(0, |end| (end - now + NANOS - 1).max(0).div_euclid(NANOS)),
        kind: entry.kind.word(),
    })
}

const NANOS: i64 = 1_000_000_000;

fn time_text(nanos: i64) -> String {
    rfc3339(OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

async fn lookup_self(engine: &TokenAuth, call: &Call<'_>, _: TokenParam) -> Result<Reply, Failure> {
    let caller = call.caller.token()?;
    let token = own_token(call)?;
    // The use that this request was is counted in the store, not in the caller's copy.
    let stored = if caller.num_uses == 0 { None } else { engine.tokens.stored(&caller.hash)? };
    show(call, stored.as_ref().unwrap_or(caller), token.expose())
}

async fn lookup(engine: &TokenAuth, call: &Call<'_>, params: TokenParam) -> Result<Reply, Failure> {
    if params.token.is_empty() {
        return lookup_self(engine, call, params).await;
    }
    let token = SecretString::new(params.token);
    match engine.tokens.lookup(&token)? {
        Some(entry) => show(call, &entry, token.expose()),
        None => Err(Failure::plain(Kind::Denied, "bad token")),
    }
}

async fn lookup_accessor(engine: &TokenAuth, call: &Call<'_>, params: AccessorParam) -> Result<Reply, Failure> {
    given_accessor(&params.accessor)?;
    let entry = engine.tokens.lookup_accessor(&params.accessor)?.ok_or_else(invalid_accessor)?;
    show(call, &entry, "")
}

async fn accessors(engine: &TokenAuth, call: &Call<'_>) -> Result<Reply, Failure> {
    let (after, limit) = call.page()?;
    Reply::keys(engine.tokens.accessors(after.as_deref(), limit).await?.iter())
}
