//! `auth/token/create`, `create-orphan` and `create/{role}`.

use std::time::Duration;

use super::{
    TokenAuth, has_sudo,
    policies::{Wish, any_glob},
    roles::{Role, RoleTokenType},
};
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
        tokens::{TokenEntry, TokenKind, TokenSpec, ttl::TtlTerms},
    },
    op,
    secret::SecretString,
    wire::{
        duration::parse_signed,
        field::{Pairs, WholeStrings},
    },
};

/// Endpoints of this file.
pub(super) static ROUTES: &[Route<TokenAuth>] = &[
    Route {
        patterns: &["create-orphan"],
        access: Access::Token,
        help: "Makes a token without a parent.",
        exists: None,
        operations: &[op!(Write, "Make an orphan token", create_orphan, CreateParams)],
    },
    Route {
        patterns: &["create/{role_name}"],
        access: Access::Token,
        help: "Makes a token under a role.",
        exists: None,
        operations: &[op!(Write, "Make a token under a role", create_under_role, CreateParams)],
    },
    Route {
        patterns: &["create"],
        access: Access::Token,
        help: "Makes a token.",
        exists: None,
        operations: &[op!(Write, "Make a token", create, CreateParams)],
    },
];

crate::params! {
    /// What a new token shall be.
    struct CreateParams {
        /// The role to make it under.
        role_name: String,
        /// Shown in lookups and audit records.
        display_name: String,
        /// Alias of the entity that it shall belong to; needs a role.
        entity_alias: String,
        /// Bound of its life, renewals included.
        explicit_max_ttl: String,
        /// The token itself; needs sudo.
        id: String,
        /// Deprecated: use ttl.
        lease: String,
        /// Metadata.
        meta: Pairs,
        /// Leaves the policy default out.
        no_default_policy: bool,
        /// Makes an orphan; needs sudo.
        no_parent: bool,
        /// Number of requests that it is good for; 0 is unlimited.
        num_uses: i64,
        /// Makes it periodic; needs sudo.
        period: String,
        /// Its policies; without any it gets the parent's.
        policies: WholeStrings,
        /// Whether it can be renewed.
        renewable: Option<bool>,
        /// How long it lives.
        ttl: String,
        /// service or batch.
        kind as "type": String,
    }
}

async fn create(engine: &TokenAuth, call: &Call<'_>, params: CreateParams) -> Result<Reply, Failure> {
    engine.create(call, params, false, None).await
}

async fn create_orphan(engine: &TokenAuth, call: &Call<'_>, params: CreateParams) -> Result<Reply, Failure> {
    engine.create(call, params, true, None).await
}

async fn create_under_role(engine: &TokenAuth, call: &Call<'_>, params: CreateParams) -> Result<Reply, Failure> {
    let unknown = || Failure::invalid(format!("unknown role {}", params.role_name));
    let role = engine.role(&params.role_name)?.ok_or_else(unknown)?;
    engine.create(call, params, false, Some(&role)).await
}

impl TokenAuth {
    async fn create(&self, call: &Call<'_>, params: CreateParams, orphan: bool, role: Option<&Role>) -> Result<Reply, Failure> {
        let parent = call.caller.token()?;
        if parent.kind == TokenKind::Batch {
            return Err(Failure::invalid("batch tokens cannot create more tokens"));
        }
        if parent.num_uses != 0 {
            return Err(Failure::invalid("restricted use token cannot generate child tokens"));
        }
        let sudo = has_sudo(call)?;
        let kind = kind_of(&params, role)?;
        if params.num_uses < 0 {
            return Err(Failure::invalid("number of uses cannot be negative"));
        }
        check_alias(&params, role)?;
        if !params.id.is_empty() && !sudo {
            return Err(Failure::invalid("root or sudo privileges required to specify token id"));
        }
        let wish =
            Wish { policies: &params.policies.0, no_default: params.no_default_policy, parent: &parent.policies, sudo, role };
        let policies = wish.grant()?;
        let is_root = policies.iter().any(|name| name == "root");
        if is_root && !parent.is_root() {
            return Err(Failure::invalid("root tokens may not be created without parent token being root"));
        }
        if is_root && kind == TokenKind::Batch {
            return Err(Failure::invalid("batch tokens cannot be root tokens"));
        }
        let mut spec = TokenSpec {
            kind,
            policies,
            path: path_of(call, role),
            display_name: display_name(&params.display_name),
            num_uses: num_uses(params.num_uses, role),
            renewable: params.renewable.unwrap_or(true) && kind == TokenKind::Service && role.is_none_or(|role| role.renewable),
            role: role.map(|role| role.name.clone()).unwrap_or_default(),
            ..TokenSpec::default()
        };
        descend(&mut spec, parent, role, orphan, params.no_parent, sudo)?;
        let mut warnings = Vec::new();
        self.settle_times(call, &params, role, sudo, &mut spec, &mut warnings)?;
        if spec.ttl.is_zero() {
            if parent.expires_at.is_some() {
                return Err(Failure::invalid("expiring root tokens cannot create non-expiring root tokens"));
            }
            spec.renewable = false;
            spec.bound_cidrs.clear();
        }
        spec.meta = params.meta.0;
        if !params.id.is_empty() {
            spec.id = Some(SecretString::new(params.id));
            warnings.push(CHOSEN_ID_WARNING.into());
        }
        let grant = self.tokens.issue(spec).await?;
        for name in &grant.policies {
            if name != "root" && !self.policies.exists(name)? {
                warnings.push(format!("Policy {name:?} does not exist"));
            }
        }
        Ok(Reply { warnings, ..Reply::default().with_auth(grant) })
    }

    /// TTL, period and bounds, with everything that was cut down said in `warnings`.
    fn settle_times(
        &self,
        call: &Call<'_>,
        params: &CreateParams,
        role: Option<&Role>,
        sudo: bool,
        spec: &mut TokenSpec,
        warnings: &mut Vec<String>,
    ) -> Result<(), Failure> {
        spec.explicit_max_ttl = positive(&params.explicit_max_ttl, "explicit_max_ttl")?;
        spec.period = positive(&params.period, "period")?;
        if !spec.period.is_zero() && !sudo {
            return Err(Failure::invalid("root or sudo privileges required to create periodic token"));
        }
        let ttl = if params.ttl.is_empty() { positive(&params.lease, "lease")? } else { positive(&params.ttl, "ttl")? };
        let mut terms = TtlTerms { ttl, period: spec.period, explicit_max_ttl: spec.explicit_max_ttl, ..TtlTerms::default() };
        if let Some(role) = role.filter(|_| spec.kind == TokenKind::Service) {
            terms = bound_by_role(terms, role, warnings);
        }
        let is_root = spec.policies.iter().any(|name| name == "root");
        if !is_root || !terms.period.is_zero() || !terms.ttl.is_zero() {
            let granted = terms.grant(self.limits(call.mount), 0, 0).map_err(Failure::internal)?;
            spec.ttl = granted.ttl;
            warnings.extend(granted.warnings);
        } else {
            spec.ttl = terms.explicit_max_ttl;
        }
        Ok(())
    }
}

const CHOSEN_ID_WARNING: &str = "Supplying a custom ID for the token uses the weaker SHA1 hashing instead of the more secure \
     SHA2-256 HMAC for token obfuscation. SHA1 hashed tokens on the wire leads to less secure lookups.";

fn bound_by_role(terms: TtlTerms, role: &Role, warnings: &mut Vec<String>) -> TtlTerms {
    let mut bound = role.bound(terms);
    if role.token_explicit_max_ttl > 0 && !terms.explicit_max_ttl.is_zero() {
        warnings.push(format!(
            "Explicit max TTL specified both during creation call and in role; using the lesser value of {} seconds",
            bound.explicit_max_ttl.as_secs()
        ));
    }
    if role.token_period > 0 && !terms.period.is_zero() {
        bound.period = bound.period.min(terms.period);
        warnings.push(format!(
            "Period specified both during creation call and in role; using the lesser value of {} seconds",
            bound.period.as_secs()
        ));
    }
    bound
}

/// The role's fixed kind, else what the request says, else the role's default.
fn kind_of(params: &CreateParams, role: Option<&Role>) -> Result<TokenKind, Failure> {
    let word = match (role.map(|role| role.token_type), params.kind.as_str()) {
        (Some(RoleTokenType::Service), _) => "service",
        (Some(RoleTokenType::Batch), _) | (Some(RoleTokenType::DefaultBatch), "") => "batch",
        (_, word) => word,
    };
    match word {
        "" | "service" => Ok(TokenKind::Service),
        "batch" => {
            let is_set = |text: &str, field: &str| match parse_signed(text) {
                Ok(nanos) => Ok(nanos != 0),
                Err(_) => Err(Failure::invalid(format!("'{field}' value could not be parsed"))),
            };
            let wrong = if is_set(&params.explicit_max_ttl, "explicit_max_ttl")? {
                "explicit_max_ttl"
            } else if params.num_uses != 0 {
                "num_uses"
            } else if is_set(&params.period, "period")? {
                "period"
            } else {
                return Ok(TokenKind::Batch);
            };
            Err(Failure::invalid(format!("batch tokens cannot have {wrong:?} set")))
        }
        _ => Err(Failure::invalid("invalid 'token_type' value")),
    }
}

fn check_alias(params: &CreateParams, role: Option<&Role>) -> Result<(), Failure> {
    if params.entity_alias.is_empty() {
        return Ok(());
    }
    let Some(role) = role else {
        return Err(Failure::invalid("'entity_alias' is only allowed in combination with token role"));
    };
    let alias = params.entity_alias.to_lowercase();
    let allowed = role.allowed_entity_aliases.as_deref().unwrap_or_default();
    if !any_glob(allowed, &alias) {
        return Err(Failure::invalid("invalid 'entity_alias' value"));
    }
    Err(Failure::not_implemented("entity_alias"))
}

fn path_of(call: &Call<'_>, role: Option<&Role>) -> String {
    match role.map(|role| role.path_suffix.as_str()) {
        Some(suffix) if !suffix.is_empty() => format!("auth/token/{}/{suffix}", call.path),
        _ => format!("auth/token/{}", call.path),
    }
}

/// `token`, or `token-` and the name with everything but letters, digits and dashes made a dash.
fn display_name(name: &str) -> String {
    if name.is_empty() {
        return "token".into();
    }
    let clean: String = name.chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '-' }).collect();
    let full = format!("token-{clean}");
    full.strip_suffix('-').map(str::to_owned).unwrap_or(full)
}

/// The smaller number; 0 is no bound.
fn num_uses(wanted: i64, role: Option<&Role>) -> i64 {
    match (role.map_or(0, |role| role.token_num_uses), wanted) {
        (0, wanted) => wanted,
        (bound, 0) => bound,
        (bound, wanted) => bound.min(wanted),
    }
}

/// Parent, entity and networks: a child has its parent's, unless a role says otherwise.
fn descend(
    spec: &mut TokenSpec,
    parent: &TokenEntry,
    role: Option<&Role>,
    orphan: bool,
    no_parent: bool,
    sudo: bool,
) -> Result<(), Failure> {
    let is_orphan = match role {
        Some(role) => {
            spec.bound_cidrs.clone_from(&role.token_bound_cidrs);
            role.orphan
        }
        None if no_parent && !sudo => {
            return Err(Failure::invalid("root or sudo privileges required to create orphan token"));
        }
        None => no_parent || orphan,
    };
    if !is_orphan {
        spec.parent.clone_from(&parent.hash);
        spec.entity_id.clone_from(&parent.entity_id);
        spec.no_identity_policies = parent.no_identity_policies;
        if role.is_none() {
            spec.bound_cidrs.clone_from(&parent.bound_cidrs);
        }
    }
    Ok(())
}

fn positive(text: &str, field: &str) -> Result<Duration, Failure> {
    let nanos = parse_signed(text).map_err(|error| Failure::invalid(error.to_string()))?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| Failure::invalid(format!("{field} must be positive")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned() {
        assert_eq!(display_name(""), "token");
        assert_eq!(display_name("My Name!"), "token-My-Name");
        assert_eq!(display_name("a.b/c"), "token-a-b-c");
    }

    #[test]
    fn the_smaller_number_of_uses_counts() {
        let role = |uses| Role { token_num_uses: uses, ..Role::default() };
        assert_eq!(num_uses(9, Some(&role(5))), 5);
        assert_eq!(num_uses(0, Some(&role(5))), 5);
        assert_eq!(num_uses(3, Some(&role(5))), 3);
        assert_eq!(num_uses(3, Some(&role(0))), 3);
        assert_eq!(num_uses(3, None), 3);
    }
}
