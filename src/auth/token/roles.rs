//! `auth/token/roles/…`: what tokens made under a role get and may have.

use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::TokenAuth;
use crate::{
    barrier::Txn,
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, BoxFuture, Route},
        tokens::{normal_cidrs, ttl::TtlTerms},
    },
    op,
    wire::field::{NoParams, Seconds},
};

use super::policies::sanitize;

/// Endpoints of this file.
pub(super) static ROUTES: &[Route<TokenAuth>] = &[
    Route {
        patterns: &["roles/?"],
        access: Access::Token,
        help: "Lists the roles for making tokens.",
        exists: None,
        operations: &[op!(List, "List roles", list)],
    },
    Route {
        patterns: &["roles/{role_name}"],
        access: Access::Token,
        help: "A role: bounds and policies of the tokens that are made under it.",
        exists: Some(exists),
        operations: &[
            op!(Read, "Read a role", read, NoParams),
            op!(Write, "Create or change a role", write, RoleParams),
            op!(Delete, "Delete a role", delete, NoParams),
        ],
    },
];

/// Which kind of token a role makes, and whether the request may say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RoleTokenType {
    /// Service, unless the request says batch.
    #[default]
    DefaultService,
    /// Batch, unless the request says service.
    DefaultBatch,
    /// Always service.
    Service,
    /// Always batch.
    Batch,
}

/// A role as it is stored. Times in seconds; `period` and `explicit_max_ttl` keep what came under the old names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Role {
    pub(super) name: String,
    pub(super) allowed_entity_aliases: Option<Vec<String>>,
    pub(super) allowed_policies: Vec<String>,
    pub(super) allowed_policies_glob: Vec<String>,
    pub(super) disallowed_policies: Vec<String>,
    pub(super) disallowed_policies_glob: Vec<String>,
    pub(super) bound_cidrs: Vec<String>,
    pub(super) explicit_max_ttl: i64,
    pub(super) orphan: bool,
    pub(super) path_suffix: String,
    pub(super) period: i64,
    pub(super) renewable: bool,
    pub(super) token_bound_cidrs: Vec<String>,
    pub(super) token_explicit_max_ttl: i64,
    pub(super) token_no_default_policy: bool,
    pub(super) token_num_uses: i64,
    pub(super) token_period: i64,
    pub(super) token_type: RoleTokenType,
}

crate::params! {
    /// Fields of a role; absent ones stay as they are.
    struct RoleParams {
        /// The role.
        role_name: String,
        /// Entity aliases that a request may name, with globs.
        allowed_entity_aliases: Option<Vec<String>>,
        /// Policies that tokens may have, also such as the caller lacks.
        allowed_policies: Option<Vec<String>>,
        /// The same with globs.
        allowed_policies_glob: Option<Vec<String>>,
        /// Policies that tokens must not have.
        disallowed_policies: Option<Vec<String>>,
        /// The same with globs.
        disallowed_policies_glob: Option<Vec<String>>,
        /// Deprecated: use token_bound_cidrs.
        bound_cidrs: Option<Vec<String>>,
        /// Deprecated: use token_explicit_max_ttl.
        explicit_max_ttl: Option<Seconds>,
        /// Whether tokens have no parent.
        orphan: Option<bool>,
        /// Put behind the path of tokens, to revoke them by.
        path_suffix: Option<String>,
        /// Deprecated: use token_period.
        period: Option<Seconds>,
        /// Whether tokens can be renewed.
        renewable: Option<bool>,
        /// Networks that tokens may be used from.
        token_bound_cidrs: Option<Vec<String>>,
        /// Bound of the life of tokens.
        token_explicit_max_ttl: Option<Seconds>,
        /// Whether tokens lack the policy default.
        token_no_default_policy: Option<bool>,
        /// Uses of tokens.
        token_num_uses: Option<i64>,
        /// Period of tokens.
        token_period: Option<Seconds>,
        /// service, batch, default-service or default-batch.
        token_type: Option<String>,
    }
}

impl Role {
    /// Terms of a token with what the role adds: its own period, and the shorter bound.
    pub(super) fn bound(&self, own: TtlTerms) -> TtlTerms {
        let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let period = if self.token_period > 0 { seconds(self.token_period) } else { own.period };
        let explicit_max_ttl = match (seconds(self.token_explicit_max_ttl), own.explicit_max_ttl) {
            (role, token) if token.is_zero() => role,
            (role, token) if role.is_zero() => token,
            (role, token) => role.min(token),
        };
        TtlTerms { period, explicit_max_ttl, ..own }
    }

    fn apply(&mut self, params: RoleParams) -> Result<Vec<String>, Failure> {
        let mut warnings = Vec::new();
        set(&mut self.orphan, params.orphan);
        set(&mut self.renewable, params.renewable);
        if let Some(suffix) = params.path_suffix {
            self.path_suffix = checked_suffix(suffix)?;
        }
        set(&mut self.allowed_policies, params.allowed_policies.map(|list| sanitize(&list, false)));
        set(&mut self.allowed_policies_glob, params.allowed_policies_glob.map(|list| sanitize(&list, false)));
        set(&mut self.disallowed_policies, params.disallowed_policies.map(|list| lower(&list)));
        set(&mut self.disallowed_policies_glob, params.disallowed_policies_glob.map(|list| lower(&list)));
        if let Some(aliases) = params.allowed_entity_aliases {
            self.allowed_entity_aliases = Some(lower(&aliases));
        }
        set(&mut self.token_no_default_policy, params.token_no_default_policy);
        if let Some(uses) = params.token_num_uses {
            if uses < 0 {
                return Err(Failure::invalid("error parsing role fields: 'token_num_uses' cannot be negative"));
            }
            self.token_num_uses = uses;
        }
        let mut both = |name: &str| {
            warnings.push(format!("Both 'token_{name}' and deprecated '{name}' value supplied, ignoring the deprecated value"));
        };
        renamed(&mut self.token_period, &mut self.period, params.token_period, params.period, || both("period"));
        let (new, old) = (params.token_explicit_max_ttl, params.explicit_max_ttl);
        renamed(&mut self.token_explicit_max_ttl, &mut self.explicit_max_ttl, new, old, || both("explicit_max_ttl"));
        match (params.token_bound_cidrs, params.bound_cidrs) {
            (Some(cidrs), old) => {
                if old.is_some() {
                    both("bound_cidrs");
                }
                self.token_bound_cidrs = parsed_cidrs(&cidrs, "role fields")?;
                self.bound_cidrs.clear();
            }
            (None, Some(cidrs)) => {
                self.bound_cidrs = parsed_cidrs(&cidrs, "bound_cidrs")?;
                self.token_bound_cidrs.clone_from(&self.bound_cidrs);
            }
            (None, None) => {}
        }
        if let Some(word) = params.token_type {
            self.token_type = match word.as_str() {
                "service" => RoleTokenType::Service,
                "batch" => RoleTokenType::Batch,
                "default-service" => RoleTokenType::DefaultService,
                "default-batch" => RoleTokenType::DefaultBatch,
                _ => return Err(Failure::invalid(format!("invalid 'token_type' value {word:?}"))),
            };
        }
        self.check_batch()?;
        Ok(warnings)
    }

    fn check_batch(&self) -> Result<(), Failure> {
        if self.token_type != RoleTokenType::Batch {
            return Ok(());
        }
        let reason = if !self.orphan {
            "non-orphan tokens"
        } else if self.token_period != 0 {
            "periodic tokens"
        } else if self.renewable {
            "renewable tokens"
        } else if self.token_explicit_max_ttl != 0 {
            "tokens with an explicit max TTL"
        } else {
            return Ok(());
        };
        Err(Failure::invalid(format!("'token_type' cannot be 'batch' when role is set to generate {reason}")))
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// A field with an old name: the new name wins and voids the old.
fn renamed(field: &mut i64, old_field: &mut i64, new: Option<Seconds>, old: Option<Seconds>, both: impl FnOnce()) {
    match (new, old) {
        (Some(Seconds(value)), old) => {
            if old.is_some() {
                both();
            }
            *field = value;
            *old_field = 0;
        }
        (None, Some(Seconds(value))) => {
            *field = value;
            *old_field = value;
        }
        (None, None) => {}
    }
}

fn lower(list: &[String]) -> Vec<String> {
    let mut list: Vec<String> = list.iter().map(|item| item.trim().to_lowercase()).filter(|item| !item.is_empty()).collect();
    list.sort();
    list.dedup();
    list
}

fn parsed_cidrs(cidrs: &[String], what: &str) -> Result<Vec<String>, Failure> {
    normal_cidrs(cidrs).map_err(|text| Failure::invalid(format!("error parsing {what}: error parsing address {text:?}")))
}

fn checked_suffix(suffix: String) -> Result<String, Failure> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = suffix.as_bytes();
    let fits = bytes.len() > 2
        && bytes.iter().all(|&byte| word(byte) || matches!(byte, b'-' | b'.' | b'/'))
        && bytes.first().is_some_and(|&byte| word(byte))
        && bytes.last().is_some_and(|&byte| word(byte))
        && !suffix.contains("..");
    if fits || suffix.is_empty() {
        return Ok(suffix);
    }
    Err(Failure::invalid(r"given role path suffix contains invalid characters; must match \w[\w-.]+\w"))
}

impl TokenAuth {
    /// A stored role.
    pub(super) fn role(&self, name: &str) -> Result<Option<Role>, Failure> {
        match self.tokens.roles()?.get(name)? {
            Some(record) => serde_json::from_slice(record.value.expose()).map(Some).map_err(Failure::internal),
            None => Ok(None),
        }
    }
}

fn exists<'a>(engine: &'a TokenAuth, call: &'a Call<'a>) -> BoxFuture<'a, Result<bool, Failure>> {
    Box::pin(async move { Ok(engine.role(call.capture("role_name"))?.is_some()) })
}

async fn list(engine: &TokenAuth, call: &Call<'_>) -> Result<Reply, Failure> {
    let (after, limit) = call.page()?;
    Reply::keys(engine.tokens.roles()?.list_long("", after.as_deref(), limit).await?.iter())
}

#[derive(Serialize)]
struct RoleReply<'a> {
    allowed_entity_aliases: Option<&'a [String]>,
    allowed_policies: &'a [String],
    allowed_policies_glob: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    bound_cidrs: &'a [String],
    disallowed_policies: &'a [String],
    disallowed_policies_glob: &'a [String],
    explicit_max_ttl: i64,
    name: &'a str,
    orphan: bool,
    path_suffix: &'a str,
    period: i64,
    renewable: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    token_bound_cidrs: &'a [String],
    token_explicit_max_ttl: i64,
    token_no_default_policy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_num_uses: Option<i64>,
    token_period: i64,
    token_type: RoleTokenType,
}

async fn read(engine: &TokenAuth, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let role = engine.role(call.capture("role_name"))?.ok_or_else(Failure::not_found)?;
    Reply::data(&RoleReply {
        allowed_entity_aliases: role.allowed_entity_aliases.as_deref(),
        allowed_policies: &role.allowed_policies,
        allowed_policies_glob: &role.allowed_policies_glob,
        bound_cidrs: &role.bound_cidrs,
        disallowed_policies: &role.disallowed_policies,
        disallowed_policies_glob: &role.disallowed_policies_glob,
        explicit_max_ttl: role.explicit_max_ttl,
        name: &role.name,
        orphan: role.orphan,
        path_suffix: &role.path_suffix,
        period: role.period,
        renewable: role.renewable,
        token_bound_cidrs: &role.token_bound_cidrs,
        token_explicit_max_ttl: role.token_explicit_max_ttl,
        token_no_default_policy: role.token_no_default_policy,
        token_num_uses: Some(role.token_num_uses).filter(|&uses| uses > 0),
        token_period: role.token_period,
        token_type: role.token_type,
    })
}

async fn write(engine: &TokenAuth, call: &Call<'_>, params: RoleParams) -> Result<Reply, Failure> {
    let name = params.role_name.clone();
    let fresh = || Role { name: name.clone(), renewable: true, ..Role::default() };
    let mut role = engine.role(&name)?.unwrap_or_else(fresh);
    let mut warnings = role.apply(params)?;
    let max = i64::try_from(engine.limits(call.mount).max.as_secs()).unwrap_or(i64::MAX);
    if role.token_explicit_max_ttl > max {
        warnings.push(format!(
            "Given explicit max TTL of {} is greater than system/mount allowed value of {max} seconds; until this is fixed attempting to create tokens against this role will result in an error",
            role.token_explicit_max_ttl
        ));
    }
    let record = serde_json::to_vec(&role).map_err(Failure::internal)?;
    engine.tokens.roles()?.commit(Txn::new().put(name, record)).await?;
    Ok(Reply { warnings, ..Reply::default() })
}

async fn delete(engine: &TokenAuth, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    engine.tokens.roles()?.commit(Txn::new().delete(call.capture("role_name"))).await?;
    Ok(Reply::empty())
}
