//! `auth/token/renew`, `renew-self` and `renew-accessor`.

use std::{sync::Arc, time::Duration};

use super::{TokenAuth, given_accessor, given_token, invalid_accessor, own_token};
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
        tokens::{TokenEntry, TokenKind, ttl::TtlTerms},
    },
    op,
    secret::SecretString,
    wire::field::Seconds,
};

/// Endpoints of this file.
pub(super) static ROUTES: &[Route<TokenAuth>] = &[
    Route {
        patterns: &["renew-self"],
        access: Access::Token,
        help: "Gives the calling token more time.",
        exists: None,
        operations: &[op!(Write, "Renew the calling token", renew_self, RenewParams)],
    },
    Route {
        patterns: &["renew-accessor"],
        access: Access::Token,
        help: "Gives a token, named by its accessor, more time.",
        exists: None,
        operations: &[op!(Write, "Renew a token by accessor", renew_accessor, RenewAccessorParams)],
    },
    Route {
        patterns: &["renew"],
        access: Access::Token,
        help: "Gives a token more time.",
        exists: None,
        operations: &[op!(Write, "Renew a token", renew, RenewParams)],
    },
];

crate::params! {
    /// A renewal.
    struct RenewParams {
        /// The token.
        token: String,
        /// TTL asked for; without it the token gets what it got last time.
        increment: Seconds,
    }
}

crate::params! {
    /// A renewal by accessor.
    struct RenewAccessorParams {
        /// The accessor.
        accessor: String,
        /// TTL asked for; without it the token gets what it got last time.
        increment: Seconds,
    }
}

async fn renew_self(engine: &TokenAuth, call: &Call<'_>, params: RenewParams) -> Result<Reply, Failure> {
    let entry = Arc::clone(call.caller.token()?);
    engine.renew(&entry, own_token(call)?, params.increment).await
}

async fn renew(engine: &TokenAuth, _: &Call<'_>, params: RenewParams) -> Result<Reply, Failure> {
    let token = given_token(params.token)?;
    let entry = engine.tokens.lookup(&token)?.ok_or_else(|| Failure::invalid("token not found"))?;
    engine.renew(&entry, token, params.increment).await
}

async fn renew_accessor(engine: &TokenAuth, _: &Call<'_>, params: RenewAccessorParams) -> Result<Reply, Failure> {
    given_accessor(&params.accessor)?;
    let entry = engine.tokens.lookup_accessor(&params.accessor)?.ok_or_else(invalid_accessor)?;
    engine.renew(&entry, SecretString::default(), params.increment).await
}

impl TokenAuth {
    async fn renew(&self, entry: &TokenEntry, token: SecretString, increment: Seconds) -> Result<Reply, Failure> {
        if entry.kind == TokenKind::Batch {
            return Err(Failure::invalid("batch tokens cannot be renewed"));
        }
        if !entry.renewable || entry.expires_at.is_none() {
            return Err(Failure::invalid("lease is not renewable"));
        }
        // Whoever made the token knows its terms: roles and users may have changed since.
        let router = self.router.upgrade().ok_or_else(|| Failure::unavailable("the server is shutting down"))?;
        let (mounted, _) = router.find(&entry.path).ok_or_else(|| Failure::invalid("the mount that made the token is gone"))?;
        let Some(terms) = mounted.engine.renewal(entry).await? else { return Ok(Reply::empty()) };
        let increment = Duration::from_secs(u64::try_from(increment.0).unwrap_or(0));
        let terms = TtlTerms { increment, ..terms };
        let renewed = self.tokens.renew(&entry.hash, terms, self.limits(&mounted.entry)).await?;
        let grant = self.tokens.grant(&renewed.entry, token, renewed.ttl);
        Ok(Reply { warnings: renewed.warnings, ..Reply::default().with_auth(grant) })
    }
}
