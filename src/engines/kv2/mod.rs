//! KV version 2: every write of a key makes a new version, old ones stay readable, deletions can be undone.
//!
//! The user's data is opaque: it is stored as the JSON bytes that came and an answer is made by copying them.
//! A version number is never given twice in the life of a key: the key's record, which knows the last one, is changed
//! only by transactions that check that it is still as it was read.

mod change;
mod config;
mod custom;
mod data;
mod keys;
mod metadata;
mod params;
mod patch;
pub(crate) mod record;
mod restored;
mod show;
mod upgrade;
mod versions;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;

use self::{
    keys::Keys,
    params::{Config, Metadata, Page, ReadData, ReadSubkeys, Versions, WriteData},
};
use super::MountContext;
use crate::{
    backup::Given,
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        request::Operation,
        route::{Access, ExistenceCheck, Route, RouteTable, Routed},
    },
    op,
    wire::field::NoParams,
};

/// A version 2 mount.
pub struct Kv2 {
    keys: Arc<Keys>,
}

impl Kv2 {
    /// The engine of a mount.
    pub fn new(context: &MountContext) -> Self {
        Self { keys: Keys::new(context.view.clone(), context.record.clone(), context.clock.clone()) }
    }
}

/// A key exists as soon as it has settings or a version, and also when all versions are deleted.
const KEY_EXISTS: ExistenceCheck<Kv2> =
    |engine, call| Box::pin(async move { Ok(engine.keys.key(call.capture("path"))?.is_some()) });

const fn versions_route(patterns: &'static [&'static str], help: &'static str, operations: Operations) -> Route<Kv2> {
    Route { patterns, access: Access::Token, help, exists: None, operations }
}

type Operations = &'static [crate::core::route::OperationSpec<Kv2>];

static ROUTES: &[Route<Kv2>] = &[
    Route {
        patterns: &["data/{path:rest}"],
        access: Access::Token,
        help: "Writes, patches, reads and deletes the data of a secret; every write makes a new version.",
        exists: Some(KEY_EXISTS),
        operations: &[
            op!(Read, "Read the latest or a numbered version.", data::read, ReadData),
            op!(Write, "Write a new version.", data::write, WriteData),
            op!(Patch, "Write a new version that merges the given data into the latest.", data::patch, WriteData),
            op!(Delete, "Delete the latest version; undelete brings it back.", data::delete, NoParams),
        ],
    },
    Route {
        patterns: &["metadata/{path:rest}"],
        access: Access::Token,
        help: "Reads and changes the settings of a secret, lists secrets, and removes them with all versions.",
        exists: Some(KEY_EXISTS),
        operations: &[
            op!(Read, "Read settings and versions.", metadata::read, Metadata),
            op!(Write, "Change settings; makes the secret where there is none.", metadata::write, Metadata),
            op!(Patch, "Change settings of a secret that exists; null resets.", metadata::patch, Metadata),
            op!(Delete, "Remove the secret with all versions.", metadata::delete, NoParams),
            op!(List, "List secrets and folders one level below a path.", metadata::list, Page),
            op!(Scan, "List all secrets below a path.", metadata::scan, NoParams),
        ],
    },
    Route {
        patterns: &["detailed-metadata/{path:rest}"],
        access: Access::Token,
        help: "Lists secrets with their settings.",
        exists: None,
        operations: &[
            op!(List, "List secrets and folders one level below a path.", metadata::detailed_list, Page),
            op!(Scan, "List all secrets below a path.", metadata::detailed_scan, NoParams),
        ],
    },
    versions_route(
        &["delete/{path:rest}"],
        "Deletes versions so that they can be brought back.",
        &[op!(Write, "Delete versions.", versions::delete, Versions)],
    ),
    versions_route(
        &["undelete/{path:rest}"],
        "Brings deleted versions back.",
        &[op!(Write, "Undelete versions.", versions::undelete, Versions)],
    ),
    versions_route(
        &["destroy/{path:rest}"],
        "Deletes the data of versions for good.",
        &[op!(Write, "Destroy versions.", versions::destroy, Versions)],
    ),
    Route {
        patterns: &["subkeys/{path:rest}"],
        access: Access::Token,
        help: "Shows the names in a secret without the values.",
        exists: None,
        operations: &[op!(Read, "Read the structure of a version.", data::subkeys, ReadSubkeys)],
    },
    Route {
        patterns: &["config"],
        access: Access::Token,
        help: "Settings that hold for all secrets of the mount.",
        exists: None,
        operations: &[
            op!(Read, "Read the settings.", config::read, Config),
            op!(Write, "Change the settings that are named.", config::write, Config),
        ],
    },
];

#[async_trait]
impl Routed for Kv2 {
    fn table() -> &'static RouteTable<Self> {
        static TABLE: LazyLock<RouteTable<Kv2>> = LazyLock::new(|| RouteTable::new(ROUTES));
        &TABLE
    }

    /// Clients of version 1 come here with paths of version 1; the warning tells them what to do.
    fn unmatched(&self, call: &Call<'_>) -> Result<Reply, Failure> {
        let warning = match call.path {
            "metadata" | "data" | "delete" | "undelete" | "destroy" => {
                "Non-listing operations on the root of a K/V v2 mount are not supported.".to_owned()
            }
            _ => {
                let command = match call.operation {
                    Operation::Create | Operation::Update => "put",
                    Operation::Patch => "patch",
                    Operation::List => "list",
                    Operation::Scan => "scan",
                    Operation::Delete => "delete",
                    Operation::Read | Operation::Help => "get",
                };
                format!(
                    "Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API endpoints to \
                     use. If using the Vault CLI, use 'vault kv {command}' for this operation."
                )
            }
        };
        Ok(Reply::empty().with_status(404).with_warning(warning))
    }

    async fn restored(&self, given: &Given<'_>) -> Result<(), Failure> {
        restored::take_up(&self.keys.view, given).await
    }

    async fn start(&self) -> Result<(), Failure> {
        upgrade::finish(&self.keys).await
    }
}
