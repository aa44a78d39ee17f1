//! The cubbyhole: secrets of one token, gone with it. Nobody else sees them, not even root.
//!
//! A record at `<token hash>/<path>` is the JSON object as it was written: numbers keep every digit. Batch tokens have no
//! cubbyhole, since nothing of them is stored that could end.
//!
//! <https://developer.hashicorp.com/vault/api-docs/secret/cubbyhole>

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use serde_json::value::RawValue;

use crate::{
    barrier::{BarrierError, Txn, View},
    core::{
        engine::Call,
        failure::{Failure, Kind},
        reply::Reply,
        route::{Access, BoxFuture, Route, RouteTable, Routed},
        tokens::TokenKind,
    },
    op,
    storage::StorageError,
    wire::json::RawObject,
};

/// The path below which a wrapping token finds its answer.
const WRAPPED: &str = "response";

const WRAPPED_WARNING: &str = "Reading from 'cubbyhole/response' is deprecated. Please use sys/wrapping/unwrap to unwrap \
     responses, as it provides additional security checks and other benefits.";

/// The engine at `cubbyhole/`.
pub struct Cubbyhole {
    view: View,
}

impl Cubbyhole {
    /// A cubbyhole over the view that the token store deletes from.
    pub fn new(view: View) -> Self {
        Self { view }
    }
}

static ROUTES: &[Route<Cubbyhole>] = &[Route {
    patterns: &["{path:rest}"],
    access: Access::Token,
    help: "Reads and writes secrets that only the calling token sees.",
    exists: Some(exists),
    operations: &[
        op!(Read, "Read a secret", read),
        op!(Write, "Store a secret", write),
        op!(Delete, "Delete a secret", delete),
        op!(List, "List the names below a path", list),
    ],
}];

impl Routed for Cubbyhole {
    fn table() -> &'static RouteTable<Self> {
        static TABLE: LazyLock<RouteTable<Cubbyhole>> = LazyLock::new(|| RouteTable::new(ROUTES));
        &TABLE
    }
}

/// Where the calling token's secret at the request's path lies.
fn record(call: &Call<'_>) -> Result<String, Failure> {
    let token = call.caller.token()?;
    if token.kind == TokenKind::Batch {
        return Err(Failure::invalid("cubbyhole operations are only supported by \"service\" type tokens"));
    }
    Ok(format!("{}/{}", token.hash, call.path))
}

fn is_name(path: &str) -> bool {
    !path.is_empty() && !path.ends_with('/')
}

fn exists<'a>(engine: &'a Cubbyhole, call: &'a Call<'a>) -> BoxFuture<'a, Result<bool, Failure>> {
    Box::pin(async move { Ok(is_name(call.path) && engine.view.get_long(&record(call)?).await?.is_some()) })
}

async fn read(engine: &Cubbyhole, call: &Call<'_>) -> Result<Reply, Failure> {
    let path = record(call)?;
    if !is_name(call.path) {
        return Err(Failure::not_found());
    }
    let found = engine.view.get_long(&path).await?.ok_or_else(Failure::not_found)?;
    let reply = Reply::raw_data(found.value.expose().to_vec());
    let wrapped = call.path == WRAPPED && call.caller.token()?.is_wrapping();
    Ok(if wrapped { reply.with_warning(WRAPPED_WARNING) } else { reply })
}

async fn write(engine: &Cubbyhole, call: &Call<'_>) -> Result<Reply, Failure> {
    let path = record(call)?;
    if !is_name(call.path) {
        return Err(Failure::invalid("cannot write to a path ending in '/'"));
    }
    if call.body.is_empty() {
        return Err(Failure::listed(Kind::Internal, "missing data fields"));
    }
    // Once the token is gone nobody would ever delete what it wrote.
    let txn = Txn::new().put(path, object_bytes(call.body)?).while_as(call.caller.token()?.there());
    match engine.view.commit(txn).await {
        Ok(_) => Ok(Reply::empty()),
        Err(BarrierError::Storage(StorageError::Conflict { .. })) => Err(Failure::denied()),
        Err(error) => Err(error.into()),
    }
}

async fn delete(engine: &Cubbyhole, call: &Call<'_>) -> Result<Reply, Failure> {
    let path = record(call)?;
    if is_name(call.path) {
        engine.view.commit(Txn::new().delete(path)).await?;
    }
    Ok(Reply::empty())
}

async fn list(engine: &Cubbyhole, call: &Call<'_>) -> Result<Reply, Failure> {
    let mut folder = record(call)?;
    if !folder.ends_with('/') {
        folder.push('/');
    }
    let (after, limit) = call.page()?;
    Reply::keys(engine.view.list_long(&folder, after.as_deref(), limit).await?.iter())
}

/// The object with each member once and its value's bytes untouched.
pub fn object_bytes(body: &RawObject<'_>) -> Result<Vec<u8>, Failure> {
    // A body can hold millions of members: one pass over them, and no looking through lists.
    let last: HashMap<&str, &RawValue> = body.iter().collect();
    let mut seen = HashSet::with_capacity(last.len());
    let mut out = vec![b'{'];
    for name in body.names().filter(|name| seen.insert(*name)) {
        if out.len() > 1 {
            out.push(b',');
        }
        serde_json::to_writer(&mut out, name).map_err(Failure::internal)?;
        out.push(b':');
        out.extend_from_slice(last.get(name).map_or("null", |value| value.get()).as_bytes());
    }
    out.push(b'}');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_keep_the_bytes_of_their_values() {
        let body = RawObject::parse(br#" {"n": 123456789012345678901234567890.10, "a\"b": [1, 2], "n": 1e400} "#).unwrap();
        assert_eq!(object_bytes(&body).unwrap(), br#"{"n":1e400,"a\"b":[1, 2]}"#);
        assert_eq!(object_bytes(&RawObject::default()).unwrap(), b"{}");
    }
}
