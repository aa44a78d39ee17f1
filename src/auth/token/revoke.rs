//! `auth/token/revoke`, `revoke-self`, `revoke-accessor`, `revoke-orphan` and `tidy`.

use std::sync::Arc;

use super::{TokenAuth, given_accessor, given_token, has_sudo};
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
        tokens::{TokenEntry, TokenKind},
    },
    op,
    wire::field::NoParams,
};

/// Endpoints of this file.
pub(super) static ROUTES: &[Route<TokenAuth>] = &[
    Route {
        patterns: &["revoke-self"],
        access: Access::Token,
        help: "Revokes the calling token and its children.",
        exists: None,
        operations: &[op!(Write, "Revoke the calling token", revoke_self, NoParams)],
    },
    Route {
        patterns: &["revoke-accessor"],
        access: Access::Token,
        help: "Revokes a token, named by its accessor, and its children.",
        exists: None,
        operations: &[op!(Write, "Revoke a token by accessor", revoke_accessor, AccessorParam)],
    },
    Route {
        patterns: &["revoke-orphan"],
        access: Access::Token,
        help: "Revokes a token; its children go on without a parent. Needs sudo.",
        exists: None,
        operations: &[op!(Write, "Revoke a token but not its children", revoke_orphan, TokenParam)],
    },
    Route {
        patterns: &["revoke"],
        access: Access::Token,
        help: "Revokes a token and its children.",
        exists: None,
        operations: &[op!(Write, "Revoke a token", revoke, TokenParam)],
    },
    Route {
        patterns: &["tidy"],
        access: Access::Token,
        help: "Removes what expired tokens left.",
        exists: None,
        operations: &[op!(Write, "Tidy the token store", tidy, NoParams)],
    },
];

crate::params! {
    /// A token.
    struct TokenParam {
        /// The token.
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

impl TokenAuth {
    async fn revoke(&self, entry: &TokenEntry) -> Result<Reply, Failure> {
        check_kind(entry)?;
        self.tokens.revoke_tree(&entry.hash).await?;
        Ok(Reply::empty())
    }
}

fn check_kind(entry: &TokenEntry) -> Result<(), Failure> {
    if entry.kind == TokenKind::Batch { Err(Failure::invalid("batch tokens cannot be revoked")) } else { Ok(()) }
}

async fn revoke_self(engine: &TokenAuth, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    engine.revoke(call.caller.token()?).await
}

async fn revoke(engine: &TokenAuth, _: &Call<'_>, params: TokenParam) -> Result<Reply, Failure> {
    let token = given_token(params.token)?;
    match engine.tokens.lookup(&token)? {
        Some(entry) => engine.revoke(&entry).await,
        None => Ok(Reply::empty()),
    }
}

async fn revoke_accessor(engine: &TokenAuth, _: &Call<'_>, params: AccessorParam) -> Result<Reply, Failure> {
    given_accessor(&params.accessor)?;
    let found = engine.tokens.revoke_accessor(&params.accessor).await?;
    Ok(if found { Reply::empty() } else { Reply::empty().with_warning("No token found with this accessor") })
}

async fn revoke_orphan(engine: &TokenAuth, call: &Call<'_>, params: TokenParam) -> Result<Reply, Failure> {
    let token = given_token(params.token)?;
    if !has_sudo(call)? {
        return Err(Failure::invalid("root or sudo privileges required to revoke and orphan"));
    }
    let entry = engine.tokens.lookup(&token)?.ok_or_else(|| Failure::invalid("token to revoke not found"))?;
    check_kind(&entry)?;
    engine.tokens.revoke_orphan(&entry.hash).await?;
    Ok(Reply::empty())
}

async fn tidy(engine: &TokenAuth, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let tokens = Arc::clone(&engine.tokens);
    tokio::spawn(async move { tokens.tidy().await });
    Ok(Reply::empty().with_status(202).with_warning(
        "Tidy operation successfully started. Any information from the operation will be printed to the server logs.",
    ))
}
