//! What every request passes: the pipeline, the router and mount table, tokens, policies, leases, wrapping, `sys`.

pub mod clock;
pub mod engine;
pub mod failure;
pub mod mounts;
pub mod policy;
pub mod reply;
pub mod request;
pub mod route;
pub mod tokens;
