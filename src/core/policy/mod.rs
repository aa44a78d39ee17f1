//! Policies and what they allow.

/// What a set of policies allows, compiled once.
pub struct Acl;
