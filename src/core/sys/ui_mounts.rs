//! `sys/internal/ui/mounts`: the mounts a caller may know of. The Vault CLI asks it before every `kv` command.
//!
//! Both endpoints judge for themselves who may see what, so they stand outside the policies: the list shows everyone the
//! mounts that are marked visible, the single mount needs a token that may do something inside it. Unknown and hidden
//! mounts read the same.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::{System, mounts};
use crate::{
    core::{
        engine::Call,
        failure::{Failure, Kind},
        mounts::{MountEntry, Table},
        policy::Acl,
        reply::Reply,
        route::{Access, Route},
    },
    op,
    wire::field::NoParams,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["internal/ui/mounts"],
        access: Access::Anyone,
        help: "Lists the mounts that the caller may know of.",
        exists: None,
        operations: &[op!(Read, "Visible mounts", list, NoParams)],
    },
    Route {
        patterns: &["internal/ui/mounts/{path:rest}"],
        access: Access::Anyone,
        help: "Shows the mount that a path lies under, to a caller who may do something inside it.",
        exists: None,
        operations: &[op!(Read, "The mount of a path", read, PathParams)],
    },
];

crate::params! {
    /// A path.
    struct PathParams {
        /// Any path, below a mount or its own.
        path: String,
    }
}

/// A mount as callers see it who may see inside it.
#[derive(Serialize)]
struct Full<'a> {
    #[serde(flatten)]
    mount: mounts::Shown<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
}

/// A mount as callers without a token see it.
#[derive(Serialize)]
struct Brief<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    description: &'a str,
    options: Option<&'a BTreeMap<String, String>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Shown<'a> {
    Full(Box<Full<'a>>),
    Brief(Brief<'a>),
}

impl<'a> Full<'a> {
    fn of(entry: &'a MountEntry, path: Option<&'a str>) -> Self {
        Self { mount: mounts::Shown::new(entry), path }
    }
}

/// What the caller may do, when a token came along: these routes are open, so the pipeline has not looked at it.
pub(super) async fn acl_of_caller(system: &System, call: &Call<'_>) -> Result<Option<Arc<Acl>>, Failure> {
    let Some(token) = &call.request.token else { return Ok(None) };
    let active = system.active()?;
    let token = active.tokens.authenticate(token, call.request.remote).await?;
    active.acl_of(&token).map(Some)
}

async fn list(system: &System, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    #[derive(Default, Serialize)]
    struct Tables<'a> {
        secret: BTreeMap<&'a str, Shown<'a>>,
        auth: BTreeMap<&'a str, Shown<'a>>,
    }
    let acl = acl_of_caller(system, call).await?;
    let mounts = system.active()?.router.all();
    let mut tables = Tables::default();
    for mounted in &mounts {
        let entry = &mounted.entry;
        let open = entry.config.listing_visibility == "unauth";
        if !open && !acl.as_ref().is_some_and(|acl| acl.sees_inside(&entry.full_path())) {
            continue;
        }
        let shown = match acl {
            Some(_) => Shown::Full(Box::new(Full::of(entry, None))),
            None => Shown::Brief(Brief { kind: &entry.kind, description: &entry.description, options: mounts::options(entry) }),
        };
        let table = match entry.table {
            Table::Secret => &mut tables.secret,
            Table::Auth => &mut tables.auth,
        };
        table.insert(&entry.path, shown);
    }
    Reply::data(&tables)
}

async fn read(system: &System, call: &Call<'_>, params: PathParams) -> Result<Reply, Failure> {
    if params.path.is_empty() {
        return Err(Failure::unsupported_path());
    }
    let acl = acl_of_caller(system, call).await?.ok_or_else(Failure::bad_token)?;
    let path = format!("{}/", params.path.trim_start_matches('/').trim_end_matches('/'));
    let refused = || {
        let text = "preflight capability check returned 403, please ensure client's policies grant access to path";
        Failure::plain(Kind::Denied, format!("{text} {path:?}"))
    };
    let active = system.active()?;
    let (mounted, _) = active.router.find(&path).ok_or_else(refused)?;
    if !acl.sees_inside(&mounted.entry.full_path()) {
        return Err(refused());
    }
    Reply::data(&Full::of(&mounted.entry, Some(&mounted.entry.path)))
}
