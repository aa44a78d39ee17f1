//! `sys/remount`: moves a mount with its data; the status answers by migration id.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/remount>

use serde::Serialize;

use super::System;
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        mount_table::new_entry,
        mounts::Table,
        reply::Reply,
        route::{Access, Route},
    },
    op,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["remount"],
        access: Access::Sudo,
        help: "Moves a mount to another path.",
        exists: None,
        operations: &[op!(Write, "Move a mount", remount, RemountParams)],
    },
    Route {
        patterns: &["remount/status/{migration_id:segment}"],
        access: Access::Token,
        help: "Shows how far a move is.",
        exists: None,
        operations: &[op!(Read, "Status of a move", status, StatusParams)],
    },
];

crate::params! {
    /// Parameters of a move.
    struct RemountParams {
        /// Current path.
        from: String,
        /// New path.
        to: String,
    }
}

crate::params! {
    /// Parameters of a move's status.
    struct StatusParams {
        /// What the move answered.
        migration_id: String,
    }
}

#[derive(Serialize)]
struct Started<'a> {
    migration_id: &'a str,
}

#[derive(Clone, Serialize)]
struct Info {
    source_mount: String,
    target_mount: String,
    status: &'static str,
}

#[derive(Serialize)]
struct Status<'a> {
    migration_id: &'a str,
    migration_info: Info,
}

/// Moves that ended since the server was unsealed, the latest last; clients ask once or twice, soon after.
#[derive(Default)]
pub struct Migrations(parking_lot::Mutex<std::collections::VecDeque<(String, Info)>>);

/// How many ended moves are remembered.
const REMEMBERED: usize = 1000;

impl Migrations {
    fn remember(&self, id: &str, info: Info) {
        let mut moves = self.0.lock();
        if moves.len() == REMEMBERED {
            moves.pop_front();
        }
        moves.push_back((id.to_owned(), info));
    }

    fn find(&self, id: &str) -> Option<Info> {
        self.0.lock().iter().find(|(known, _)| known == id).map(|(_, info)| info.clone())
    }
}

fn split(path: &str) -> (Table, String) {
    let path = format!("{}/", path.trim_matches('/'));
    match path.strip_prefix("auth/") {
        Some(rest) => (Table::Auth, rest.to_owned()),
        None => (Table::Secret, path),
    }
}

async fn remount(system: &System, _: &Call<'_>, params: RemountParams) -> Result<Reply, Failure> {
    if params.from.is_empty() || params.to.is_empty() {
        return Err(Failure::invalid("both 'from' and 'to' path must be specified as a string"));
    }
    let (from_table, from) = split(&params.from);
    let (to_table, to) = split(&params.to);
    let full = |table: Table, path: &str| if table == Table::Auth { format!("auth/{path}") } else { path.to_owned() };
    let (from_full, to_full) = (full(from_table, &from), full(to_table, &to));
    match (from_table, to_table) {
        (Table::Auth, Table::Secret) => {
            return Err(Failure::invalid(format!("cannot remount auth mount to non-auth mount {to_full:?}")));
        }
        (Table::Secret, Table::Auth) => {
            return Err(Failure::invalid(format!("cannot remount non-auth mount to auth mount {to_full:?}")));
        }
        _ => {}
    }
    for path in [&from_full, &to_full] {
        if ["auth/token/", "sys/", "cubbyhole/", "identity/", "audit/"].contains(&path.as_str()) || path == "auth//" {
            return Err(Failure::invalid(format!("cannot remount {path:?}")));
        }
    }
    let core = system.core()?;
    let active = core.active()?;
    if active.router.at(&from_full).is_none() {
        return Err(Failure::invalid(format!("no matching mount at {from_full:?}")));
    }
    if from_table == Table::Auth {
        active.tokens.revoke_prefix(&from_full).await?;
    }
    active.mounts.remount(&core, &from_full, new_entry(to_table, &to, "")).await?;
    let id = uuid::Uuid::new_v4().to_string();
    core.migrations.remember(&id, Info { source_mount: from_full, target_mount: to_full, status: "success" });
    Ok(Reply::mirrored(&Started { migration_id: &id })?.with_warning(
        "Mount move has been queued. Progress will be reported in Vault's server log, tagged with the returned migration_id",
    ))
}

async fn status(system: &System, _: &Call<'_>, params: StatusParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let info = core.migrations.find(&params.migration_id).ok_or_else(Failure::not_found)?;
    Reply::data(&Status { migration_id: &params.migration_id, migration_info: info })
}
