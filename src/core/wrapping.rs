//! stub
use super::{failure::Failure, reply::WrapInfo, tokens::TokenStore};
/// stub
pub async fn wrap(
    _t: &TokenStore,
    _json: Vec<u8>,
    _status: Option<u16>,
    _ttl: std::time::Duration,
    _path: &str,
    _acc: Option<String>,
) -> Result<WrapInfo, Failure> {
    Err(Failure::not_implemented("wrapping"))
}
