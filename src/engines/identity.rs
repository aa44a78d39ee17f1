//! The `identity/` mount: listed, and honest about not being there yet.

use std::sync::LazyLock;

use crate::core::{
    engine::Call,
    failure::Failure,
    reply::Reply,
    route::{RouteTable, Routed},
};

/// Stands where entities and groups will be.
pub struct Identity;

/// What the identity store of a Vault has; below these names this server says that it does not.
const KNOWN: [&str; 9] = ["alias", "entity", "entity-alias", "group", "group-alias", "lookup", "mfa", "oidc", "persona"];

impl Routed for Identity {
    fn table() -> &'static RouteTable<Self> {
        static TABLE: LazyLock<RouteTable<Identity>> = LazyLock::new(|| RouteTable::new(&[]));
        &TABLE
    }

    fn unmatched(&self, call: &Call<'_>) -> Result<Reply, Failure> {
        let first = call.path.split('/').next().unwrap_or("");
        if KNOWN.contains(&first) {
            return Err(Failure::not_implemented(format!("identity/{first}")));
        }
        Err(Failure::unsupported_path())
    }
}
