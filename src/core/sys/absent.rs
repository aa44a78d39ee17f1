//! Endpoints that Vault has and SOS does not: each answers with an error that says so, never with an empty success.

use super::System;
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
    },
    op,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[Route {
    patterns: &[
        "config/control-group",
        "config/group-policy-application",
        "experiments",
        "ha-status",
        "in-flight-req",
        "internal/counters/activity/{path:rest}",
        "internal/counters/activity",
        "internal/counters/config",
        "internal/counters/entities",
        "internal/inspect/{path:rest}",
        "internal/ui/namespaces",
        "license/{path:rest}",
        "locked-users",
        "loggers",
        "loggers/{path:rest}",
        "managed-keys/{path:rest}",
        "mfa/{path:rest}",
        "monitor",
        "namespaces",
        "namespaces/{path:rest}",
        "policies/password/{path:rest}",
        "policies/password",
        "pprof",
        "pprof/{path:rest}",
        "quotas/{path:rest}",
        "replication/{path:rest}",
        "seal-backend-status",
        "sealwrap/{path:rest}",
        "step-down",
        "storage/raft/{path:rest}",
        "sync/{path:rest}",
        "version-history/?",
        "well-known/{path:rest}",
    ],
    access: Access::Token,
    help: "Not supported by this server.",
    exists: None,
    operations: &[
        op!(Read, "Not supported", absent),
        op!(Write, "Not supported", absent),
        op!(Patch, "Not supported", absent),
        op!(Delete, "Not supported", absent),
        op!(List, "Not supported", absent),
        op!(Scan, "Not supported", absent),
    ],
}];

async fn absent(_: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    let mut parts = call.path.trim_end_matches('/').split('/');
    let (first, second) = (parts.next().unwrap_or(""), parts.next());
    // The rest of the path is the caller's own names.
    Err(Failure::not_implemented(match second {
        Some(second) if matches!(first, "config" | "internal" | "license" | "replication" | "quotas" | "storage") => {
            format!("sys/{first}/{second}")
        }
        _ => format!("sys/{first}"),
    }))
}
