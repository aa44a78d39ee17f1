//! Policies that exist from the start.

/// Given to every token unless the creator asks for none. May be rewritten, not deleted.
pub const DEFAULT: &str = "default";

/// Everything is allowed. It has no document and cannot be written.
pub const ROOT: &str = "root";

/// What a response-wrapping token may do. Fixed, and never given to other tokens.
pub const RESPONSE_WRAPPING: &str = "response-wrapping";

/// The first document of [`DEFAULT`]. A token may look after itself, its cubbyhole and what was handed to it.
pub const DEFAULT_DOCUMENT: &str = r#"# The token itself: look it up, keep it alive, give it back
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# What the token may do
path "sys/capabilities-self" {
  capabilities = ["update"]
}
path "sys/internal/ui/resultant-acl" {
  capabilities = ["read"]
}

# The entity that the token belongs to
path "identity/entity/id/{{identity.entity.id}}" {
  capabilities = ["read"]
}
path "identity/entity/name/{{identity.entity.name}}" {
  capabilities = ["read"]
}

# Storage that only this token can reach
path "cubbyhole/*" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

# Leases whose ID the token knows, at their present and their older paths
path "sys/leases/lookup" {
  capabilities = ["update"]
}
path "sys/leases/renew" {
  capabilities = ["update"]
}
path "sys/renew" {
  capabilities = ["update"]
}

# Wrap something for somebody else, look at a wrapping token, open one
path "sys/wrapping/wrap" {
  capabilities = ["update"]
}
path "sys/wrapping/lookup" {
  capabilities = ["update"]
}
path "sys/wrapping/unwrap" {
  capabilities = ["update"]
}

# Hash something
path "sys/tools/hash" {
  capabilities = ["update"]
}
path "sys/tools/hash/*" {
  capabilities = ["update"]
}

# Log in elsewhere with OpenID Connect
path "identity/oidc/provider/+/authorize" {
  capabilities = ["read", "update"]
}
"#;

/// The document of [`RESPONSE_WRAPPING`].
pub const RESPONSE_WRAPPING_DOCUMENT: &str = r#"path "cubbyhole/response" {
  capabilities = ["create", "read"]
}
path "sys/wrapping/unwrap" {
  capabilities = ["update"]
}
"#;

/// Whether nobody may write or delete the policy.
pub fn is_fixed(name: &str) -> bool {
    matches!(name, ROOT | RESPONSE_WRAPPING)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::policy::{Acl, parse};

    #[test]
    fn the_documents_parse_and_grant_what_they_say() {
        let acl = Acl::new(&[Arc::new(parse(DEFAULT, DEFAULT_DOCUMENT).unwrap())]);
        assert_eq!(acl.capabilities("cubbyhole/x"), ["create", "delete", "list", "read", "update"]);
        assert_eq!(acl.capabilities("auth/token/lookup-self"), ["read"]);
        assert_eq!(acl.capabilities("auth/token/create"), ["deny"]);
        assert_eq!(acl.capabilities("sys/mounts"), ["deny"]);
        assert_eq!(acl.capabilities("identity/entity/id/"), ["deny"]);
        assert_eq!(acl.capabilities("identity/oidc/provider/p/authorize"), ["read", "update"]);

        let acl = Acl::new(&[Arc::new(parse(RESPONSE_WRAPPING, RESPONSE_WRAPPING_DOCUMENT).unwrap())]);
        assert_eq!(acl.capabilities("cubbyhole/response"), ["create", "read"]);
        assert_eq!(acl.capabilities("cubbyhole/x"), ["deny"]);
    }
}
