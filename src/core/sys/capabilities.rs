//! `sys/capabilities` for a token, an accessor or the caller, and `sys/internal/ui/resultant-acl`.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/capabilities>

use std::{collections::BTreeMap, sync::Arc};

use super::System;
use crate::{
    core::{
        engine::Call,
        failure::{Failure, Kind},
        policy::{Acl, ResultantAcl},
        reply::Reply,
        route::{Access, Route},
    },
    op,
    secret::SecretString,
    wire::field::NoParams,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["capabilities"],
        access: Access::Token,
        help: "Tells what a token may do on paths.",
        exists: None,
        operations: &[op!(Write, "Capabilities of a token", of_token, TokenParams).computing()],
    },
    Route {
        patterns: &["capabilities-accessor"],
        access: Access::Token,
        help: "Tells what the token of an accessor may do on paths.",
        exists: None,
        operations: &[op!(Write, "Capabilities of an accessor's token", of_accessor, AccessorParams).computing()],
    },
    Route {
        patterns: &["capabilities-self"],
        access: Access::Token,
        help: "Tells what the caller may do on paths.",
        exists: None,
        operations: &[op!(Write, "Capabilities of the caller", of_self, SelfParams).computing()],
    },
    Route {
        patterns: &["internal/ui/resultant-acl"],
        access: Access::Token,
        help: "Shows the merged policies of the caller.",
        exists: None,
        operations: &[op!(Read, "Merged policies of the caller", resultant_acl, NoParams)],
    },
];

crate::params! {
    /// A token and paths.
    struct TokenParams {
        /// The token.
        token: String,
        /// The paths.
        paths: Vec<String>,
        /// Older name of `paths`.
        path: Vec<String>,
    }
}

crate::params! {
    /// An accessor and paths.
    struct AccessorParams {
        /// The accessor.
        accessor: String,
        /// The paths.
        paths: Vec<String>,
        /// Older name of `paths`.
        path: Vec<String>,
    }
}

crate::params! {
    /// Paths.
    struct SelfParams {
        /// Not used: the token is that of the request.
        token: Option<String>,
        /// The paths.
        paths: Vec<String>,
        /// Older name of `paths`.
        path: Vec<String>,
    }
}

/// The paths asked about, under either name.
fn wanted(paths: Vec<String>, older: Vec<String>) -> Result<Vec<String>, Failure> {
    let paths = if paths.is_empty() { older } else { paths };
    if paths.is_empty() {
        return Err(Failure::invalid("paths must be supplied"));
    }
    if paths.iter().any(String::is_empty) {
        return Err(Failure::listed(Kind::Invalid, "missing path"));
    }
    Ok(paths)
}

/// One member per path; a single path also under the name that older clients read.
fn answer(acl: &Arc<Acl>, paths: &[String]) -> Result<Reply, Failure> {
    let mut found: BTreeMap<&str, _> = paths.iter().map(|path| (path.as_str(), acl.capabilities(path))).collect();
    if let [only] = paths {
        found.insert("capabilities", acl.capabilities(only));
    }
    Reply::mirrored(&found)
}

async fn of_token(system: &System, _: &Call<'_>, params: TokenParams) -> Result<Reply, Failure> {
    if params.token.is_empty() {
        return Err(Failure::listed(Kind::Internal, "no token found"));
    }
    let paths = wanted(params.paths, params.path)?;
    let active = system.active()?;
    let token = active.tokens.lookup(&SecretString::new(params.token))?;
    let token = token.ok_or_else(|| Failure::listed(Kind::Invalid, "invalid token"))?;
    answer(&active.acl_of(&token)?, &paths)
}

async fn of_accessor(system: &System, _: &Call<'_>, params: AccessorParams) -> Result<Reply, Failure> {
    if params.accessor.is_empty() {
        return Err(Failure::invalid("missing accessor"));
    }
    let active = system.active()?;
    let token = active.tokens.lookup_accessor(&params.accessor)?;
    let token = token.ok_or_else(|| Failure::listed(Kind::Invalid, "invalid accessor"))?;
    let paths = wanted(params.paths, params.path)?;
    answer(&active.acl_of(&token)?, &paths)
}

async fn of_self(_: &System, call: &Call<'_>, params: SelfParams) -> Result<Reply, Failure> {
    let SelfParams { token: _ignored, paths, path } = params;
    let paths = wanted(paths, path)?;
    answer(call.caller.acl()?, &paths)
}

async fn resultant_acl(_: &System, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    Reply::data(&ResultantAcl::of(call.caller.acl()?))
}
