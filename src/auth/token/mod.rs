//! The token method at `auth/token/`: making, looking up, renewing and revoking tokens, and roles for making them.
//!
//! <https://developer.hashicorp.com/vault/api-docs/auth/token>

mod create;
mod lookup;
mod policies;
mod renew;
mod revoke;
mod roles;

use std::{
    sync::{Arc, LazyLock, Weak},
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    core::{
        Settings,
        engine::Call,
        failure::{Failure, Kind},
        mounts::{MountEntry, Router},
        policy::PolicyStore,
        route::{RouteTable, Routed},
        tokens::{
            TokenEntry, TokenStore,
            ttl::{TtlLimits, TtlTerms},
        },
    },
    secret::SecretString,
};

/// The engine at `auth/token/`.
pub struct TokenAuth {
    tokens: Arc<TokenStore>,
    policies: Arc<PolicyStore>,
    /// Leads to the auth methods that made a token, which know how it is renewed. Weak: the router holds this engine.
    router: Weak<Router>,
    settings: Settings,
}

impl TokenAuth {
    /// The token method over the store that the pipeline asks.
    pub fn new(tokens: Arc<TokenStore>, policies: Arc<PolicyStore>, router: &Arc<Router>, settings: Settings) -> Self {
        Self { tokens, policies, router: Arc::downgrade(router), settings }
    }

    /// The bounds that hold on a mount.
    fn limits(&self, mount: &MountEntry) -> TtlLimits {
        let or = |own: u64, system: u64| Duration::from_secs(if own == 0 { system } else { own });
        TtlLimits {
            default: or(mount.config.default_lease_ttl, self.settings.default_lease_ttl),
            max: or(mount.config.max_lease_ttl, self.settings.max_lease_ttl),
        }
    }
}

#[async_trait]
impl Routed for TokenAuth {
    fn table() -> &'static RouteTable<Self> {
        static TABLE: LazyLock<RouteTable<TokenAuth>> =
            LazyLock::new(|| RouteTable::joined(&[create::ROUTES, lookup::ROUTES, renew::ROUTES, revoke::ROUTES, roles::ROUTES]));
        &TABLE
    }

    async fn renewal(&self, entry: &TokenEntry) -> Result<Option<TtlTerms>, Failure> {
        let own = TtlTerms::of_token(entry);
        if entry.role.is_empty() {
            return Ok(Some(own));
        }
        let role = self.role(&entry.role)?.ok_or_else(|| {
            let text = format!("original token role {:?} could not be found, not renewing", entry.role);
            Failure::listed(Kind::Internal, text)
        })?;
        Ok(Some(role.bound(own)))
    }
}

/// Whether the caller has sudo on the path of the request.
fn has_sudo(call: &Call<'_>) -> Result<bool, Failure> {
    call.has_sudo()
}

/// The calling token itself.
fn own_token(call: &Call<'_>) -> Result<SecretString, Failure> {
    call.request.token.as_ref().map(SecretString::duplicate).ok_or_else(Failure::bad_token)
}

/// A token given as a parameter.
fn given_token(token: String) -> Result<SecretString, Failure> {
    if token.is_empty() { Err(Failure::invalid("missing token ID")) } else { Ok(SecretString::new(token)) }
}

fn given_accessor(accessor: &str) -> Result<(), Failure> {
    if accessor.is_empty() { Err(Failure::listed(Kind::Invalid, "missing accessor")) } else { Ok(()) }
}

fn invalid_accessor() -> Failure {
    Failure::listed(Kind::Invalid, "invalid accessor")
}
