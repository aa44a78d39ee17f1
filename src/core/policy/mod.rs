//! Policies and access control.
//!
//! A policy document becomes a [`Policy`] ([`parse`]), the policies of a token become an [`Acl`], and the request
//! pipeline asks that one question: may this be done? Vault's rules decide which of several rules counts; they are
//! described at [`acl`].

pub mod acl;
pub mod builtin;
pub mod capability;
#[cfg(test)]
mod model_tests;
pub mod parse;
mod pattern;
mod prefix;
pub mod resultant;
pub mod rule;
pub mod store;
pub mod template;

pub use acl::{Access, AccessRequest, Acl, Refusal, RequestParameters};
pub use parse::{ParseError, parse};
pub use resultant::ResultantAcl;
pub use rule::Policy;
pub use store::{PolicyError, PolicyStore};
pub use template::TemplateIdentity;
