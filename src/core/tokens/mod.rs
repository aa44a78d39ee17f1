//! Tokens: what a client shows to be let in. Only salted hashes are stored.
//!
//! Records below the store's view, all of one token written and deleted in one commit:
//!
//! ```text
//! salt                            32 bytes, keys the hash of tokens
//! batch-key                       32 bytes, encrypts batch tokens
//! wrapping-key                    PKCS #8, signs wrapping tokens in the form of JWTs
//! id/<hash>                       format byte 2, then the TokenEntry as JSON without its hash and without what is empty
//! accessor/<accessor>             the hash
//! parent/<parent hash>/<hash>     children, for revocation of trees
//! expiry/<Unix ns, 20 digits>/<hash>   what ends when, swept from the front
//! role/<name>                     roles of the token method
//! lease/<path>/<hash>             what sys/leases shows, by the request path that made the token
//! dying/<hash>                    a revoked token whose children or cubbyhole still have to go
//! ```

mod batch;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod id;
mod jwt;
pub mod leases;
mod revoke;
mod store;
pub mod ttl;
mod uses;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

pub use id::{is_batch, is_unguessable};
pub use store::{Renewed, TokenStore};

use crate::{barrier::Stamp, secret::SecretString};

/// The store's view.
pub(super) const FOLDER: &str = "sys/token/";

/// Policy that only wrapping tokens have.
pub const WRAPPING_POLICY: &str = "response-wrapping";

/// Service tokens are stored and can be renewed and revoked; batch tokens carry everything in themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// `hvs.`
    #[default]
    Service,
    /// `hvb.`
    Batch,
}

impl TokenKind {
    /// `service` or `batch`.
    pub fn word(self) -> &'static str {
        match self {
            TokenKind::Service => "service",
            TokenKind::Batch => "batch",
        }
    }
}

/// A live token without the token itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenEntry {
    /// Salted hash of the token: names its record, its cubbyhole and its children's parent.
    #[serde(skip_serializing)]
    pub hash: String,
    /// Names the token without giving its power; empty for batch tokens.
    #[serde(skip_serializing_if = "is_default")]
    pub accessor: String,
    /// Hash of the parent; empty for orphans.
    #[serde(skip_serializing_if = "is_default")]
    pub parent: String,
    /// Policies of the token itself, sorted.
    #[serde(skip_serializing_if = "is_default")]
    pub policies: Vec<String>,
    /// Request path that made it (`auth/token/create`).
    #[serde(skip_serializing_if = "is_default")]
    pub path: String,
    /// `token`, `token-name`, `userpass-ann`.
    #[serde(skip_serializing_if = "is_default")]
    pub display_name: String,
    /// Metadata.
    #[serde(skip_serializing_if = "is_default")]
    pub meta: BTreeMap<String, String>,
    /// Service or batch.
    #[serde(skip_serializing_if = "is_default")]
    pub kind: TokenKind,
    /// Unix seconds.
    #[serde(skip_serializing_if = "is_default")]
    pub creation_time: i64,
    /// The same in Unix nanoseconds, which bounds are counted from.
    #[serde(skip_serializing_if = "is_default")]
    pub issued_at: i64,
    /// TTL in seconds at creation; 0 never expires (root).
    #[serde(skip_serializing_if = "is_default")]
    pub creation_ttl: u64,
    /// TTL in seconds that the last creation or renewal granted: the next renewal without an increment gives it again.
    #[serde(skip_serializing_if = "is_default")]
    pub ttl: u64,
    /// Unix nanoseconds; `None` never expires.
    #[serde(skip_serializing_if = "is_default")]
    pub expires_at: Option<i64>,
    /// Unix nanoseconds of the last renewal.
    #[serde(skip_serializing_if = "is_default")]
    pub last_renewal: Option<i64>,
    /// 0 is no bound.
    #[serde(skip_serializing_if = "is_default")]
    pub explicit_max_ttl: u64,
    /// 0 is not periodic.
    #[serde(skip_serializing_if = "is_default")]
    pub period: u64,
    /// Uses left; 0 is unlimited. -1 marks a token that is used up.
    #[serde(skip_serializing_if = "is_default")]
    pub num_uses: i64,
    /// Whether renewals are allowed.
    #[serde(skip_serializing_if = "is_default")]
    pub renewable: bool,
    /// Token role that made it, or empty.
    #[serde(skip_serializing_if = "is_default")]
    pub role: String,
    /// Addresses that may use it; empty is any.
    #[serde(skip_serializing_if = "is_default")]
    pub bound_cidrs: Vec<String>,
    /// Identity entity, or empty.
    #[serde(skip_serializing_if = "is_default")]
    pub entity_id: String,
    /// Whether the identity's policies are left out.
    #[serde(skip_serializing_if = "is_default")]
    pub no_identity_policies: bool,
    /// What the auth method keeps for renewals.
    #[serde(skip_serializing_if = "is_default")]
    pub internal_data: BTreeMap<String, String>,
    /// Set while its children are made orphans before it goes: it is dead, they are not.
    #[serde(skip_serializing_if = "is_default")]
    pub orphaning: bool,
}

/// Fields that say nothing are not written: a million tokens are written in a million records.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl TokenEntry {
    /// What a commit depends on that shall be made only while the service token is stored: until it is revoked or has expired, and
    /// until the last request of its uses is done. Nothing is read for it.
    pub fn there(&self) -> Stamp {
        Stamp::present(format!("{FOLDER}id/{}", self.hash))
    }

    /// Whether its only policy is `root`.
    pub fn is_root(&self) -> bool {
        self.policies.iter().any(|policy| policy == "root")
    }

    /// Whether it was made to carry a wrapped answer.
    pub fn is_wrapping(&self) -> bool {
        matches!(self.policies.as_slice(), [only] if only == WRAPPING_POLICY)
    }

    /// Its lease as `sys/leases` names it.
    pub fn lease_id(&self) -> String {
        format!("{}/{}", self.path.trim_end_matches('/'), self.hash)
    }

    /// Whether its time is over at `now` (Unix nanoseconds).
    pub fn is_expired(&self, now: i64) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

/// A token to be made. TTLs are final here (see [`ttl::TtlTerms::grant`]).
#[derive(Debug, Default)]
pub struct TokenSpec {
    /// A token of the caller's own choice.
    pub id: Option<SecretString>,
    /// Service or batch.
    pub kind: TokenKind,
    /// Hash of the parent; empty makes an orphan.
    pub parent: String,
    /// Policies; they are sorted and freed of doubles here.
    pub policies: Vec<String>,
    /// Request path that asks for it.
    pub path: String,
    /// Shown in lookups and audit records.
    pub display_name: String,
    /// Metadata.
    pub meta: BTreeMap<String, String>,
    /// Zero never expires, which only root tokens may.
    pub ttl: Duration,
    /// Zero is no bound.
    pub explicit_max_ttl: Duration,
    /// Zero is not periodic.
    pub period: Duration,
    /// 0 is unlimited.
    pub num_uses: i64,
    /// Whether renewals are allowed.
    pub renewable: bool,
    /// Token role, or empty.
    pub role: String,
    /// Addresses that may use it, as [`normal_cidrs`] gives them; empty is any.
    pub bound_cidrs: Vec<String>,
    /// Identity entity, or empty.
    pub entity_id: String,
    /// Whether the identity's policies are left out.
    pub no_identity_policies: bool,
    /// What the auth method keeps for renewals.
    pub internal_data: BTreeMap<String, String>,
}

/// Addresses and networks in the form that they are stored and shown in: a network of one address is the address.
/// The error is the text that does not parse.
pub fn normal_cidrs(texts: &[String]) -> Result<Vec<String>, String> {
    let normal = |text: &String| -> Result<String, String> {
        if let Ok(address) = text.parse::<std::net::IpAddr>() {
            return Ok(address.to_string());
        }
        let net: ipnet::IpNet = text.parse().map_err(|_| text.clone())?;
        Ok(if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() })
    };
    texts.iter().filter(|text| !text.is_empty()).map(normal).collect()
}

/// Whether an address lies in one of the networks. No networks allow every address; an unknown address is in none.
pub fn within_cidrs(cidrs: &[String], remote: Option<std::net::IpAddr>) -> bool {
    if cidrs.is_empty() {
        return true;
    }
    let Some(remote) = remote.map(|address| address.to_canonical()) else { return false };
    cidrs.iter().any(|cidr| match cidr.parse::<ipnet::IpNet>() {
        Ok(net) => net.contains(&remote),
        Err(_) => cidr.parse::<std::net::IpAddr>().is_ok_and(|address| address == remote),
    })
}

#[cfg(test)]
mod tests;
