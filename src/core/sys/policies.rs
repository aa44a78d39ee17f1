//! `sys/policies/acl` and the older `sys/policy`: the policies of the server.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/policies>

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::System;
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        policy::{
            builtin,
            store::{PolicyDocument, WriteOptions},
        },
        reply::Reply,
        route::{Access, Route},
    },
    op,
    wire::{field::NoParams, time::rfc3339},
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["policies/acl/?"],
        access: Access::Token,
        help: "Lists the policies.",
        exists: None,
        operations: &[op!(List, "List policies", list, NoParams)],
    },
    Route {
        patterns: &["policies/acl/{name:rest}"],
        access: Access::Token,
        help: "Reads, writes or deletes a policy.",
        exists: None,
        operations: &[
            op!(Read, "Read a policy", read, NameParams),
            op!(Write, "Write a policy", write, WriteParams),
            op!(Delete, "Delete a policy", delete, NameParams),
        ],
    },
    Route {
        patterns: &["policies/detailed/acl/?"],
        access: Access::Token,
        help: "Lists the policies with their documents.",
        exists: None,
        operations: &[op!(List, "List policies with details", list_detailed, NoParams)],
    },
    Route {
        patterns: &["policy/?"],
        access: Access::Token,
        help: "Lists the policies (older path).",
        exists: None,
        operations: &[op!(Read, "List policies", list_legacy, NoParams), op!(List, "List policies", list_legacy, NoParams)],
    },
    Route {
        patterns: &["policy/{name:rest}"],
        access: Access::Token,
        help: "Reads, writes or deletes a policy (older path).",
        exists: None,
        operations: &[
            op!(Read, "Read a policy", read_legacy, NameParams),
            op!(Write, "Write a policy", write_legacy, LegacyWriteParams),
            op!(Delete, "Delete a policy", delete, NameParams),
        ],
    },
];

crate::params! {
    /// The name in the path.
    struct NameParams {
        /// Name of the policy, in any case.
        name: String,
    }
}

crate::params! {
    /// A policy to write.
    struct WriteParams {
        /// Name of the policy; stored in lower case.
        name: String,
        /// The document, HCL or JSON, plain or in base64.
        policy: String,
        /// The version that is to be replaced; 0 or -1 when there must be none.
        cas: Option<i64>,
        /// Whether later writes must carry `cas`.
        cas_required: bool,
        /// Not supported: when the policy is to end.
        expiration: Option<String>,
        /// Not supported: after how long the policy is to end.
        ttl: Option<String>,
    }
}

crate::params! {
    /// A policy to write, with its older parameter.
    struct LegacyWriteParams {
        /// Name of the policy; stored in lower case.
        name: String,
        /// The document, HCL or JSON, plain or in base64.
        policy: String,
        /// The document; `policy` is the newer name.
        rules: String,
    }
}

/// A policy as `sys/policies/acl` shows it; OpenBao's additions are among the members.
#[derive(Serialize)]
struct Shown {
    name: String,
    policy: String,
    version: u64,
    cas_required: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified: Option<String>,
    allow_slashes_in_identity_templates: bool,
    allow_wildcards_in_identity_templates: bool,
}

impl From<PolicyDocument> for Shown {
    fn from(policy: PolicyDocument) -> Self {
        Self {
            name: policy.name,
            policy: policy.document,
            version: policy.version,
            cas_required: policy.cas_required,
            modified: policy.modified.map(rfc3339),
            allow_slashes_in_identity_templates: false,
            allow_wildcards_in_identity_templates: false,
        }
    }
}

async fn names(system: &System) -> Result<Vec<String>, Failure> {
    let mut names = system.active()?.policies.list().await?;
    names.push(builtin::ROOT.to_owned());
    Ok(names)
}

async fn list(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    Reply::keys(names(system).await?)
}

async fn list_legacy(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Names {
        keys: Vec<String>,
        policies: Vec<String>,
    }
    let keys = names(system).await?;
    Reply::mirrored(&Names { policies: keys.clone(), keys })
}

async fn list_detailed(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Detailed {
        keys: Vec<String>,
        key_info: BTreeMap<String, Shown>,
    }
    let policies = system.active()?.policies.clone();
    let keys = names(system).await?;
    // Every document is read, and there may be many.
    let shown = tokio::task::spawn_blocking(move || {
        let mut key_info = BTreeMap::new();
        for name in &keys {
            if let Some(policy) = policies.get(name)? {
                key_info.insert(name.clone(), policy.into());
            }
        }
        Reply::data(&Detailed { keys, key_info })
    });
    shown.await.map_err(Failure::internal)?
}

fn find(system: &System, name: &str) -> Result<PolicyDocument, Failure> {
    system.active()?.policies.get(name)?.ok_or_else(Failure::not_found)
}

async fn read(system: &System, _: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    Reply::data(&Shown::from(find(system, &params.name)?))
}

async fn read_legacy(system: &System, _: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Rules {
        name: String,
        rules: String,
    }
    let policy = find(system, &params.name)?;
    Reply::mirrored(&Rules { name: policy.name, rules: policy.document })
}

async fn write(system: &System, call: &Call<'_>, params: WriteParams) -> Result<Reply, Failure> {
    if params.expiration.is_some() || params.ttl.is_some() {
        // Taking such a policy would let it live on after the time its author set.
        return Err(Failure::invalid("policies that end by themselves are not supported by this server"));
    }
    let options = WriteOptions { cas: params.cas, cas_required: params.cas_required };
    store(system, call, &params.name, &params.policy, options, Reply::empty()).await
}

async fn write_legacy(system: &System, call: &Call<'_>, params: LegacyWriteParams) -> Result<Reply, Failure> {
    let (document, reply) = if params.policy.is_empty() {
        (params.rules, Reply::empty().with_warning("'rules' is deprecated, please use 'policy' instead"))
    } else {
        (params.policy, Reply::empty())
    };
    store(system, call, &params.name, &document, WriteOptions::default(), reply).await
}

async fn store(
    system: &System,
    call: &Call<'_>,
    name: &str,
    document: &str,
    options: WriteOptions,
    mut reply: Reply,
) -> Result<Reply, Failure> {
    if document.is_empty() {
        return Err(Failure::invalid("'policy' parameter not supplied or empty"));
    }
    let lower = name.to_lowercase();
    if lower != name {
        reply.warnings.insert(0, format!("policy name was converted to {lower}"));
    }
    let decoded = decode(document)?;
    let document = decoded.as_deref().unwrap_or(document);
    system.active()?.policies.put(name, document, options, call.now).await?;
    Ok(reply)
}

/// The text of a document in base64; `None` when it is plain text.
fn decode(document: &str) -> Result<Option<String>, Failure> {
    let Ok(bytes) = STANDARD.decode(document.replace(['\r', '\n'], "")) else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| Failure::invalid("failed to parse policy: the document is not UTF-8"))
}

async fn delete(system: &System, _: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    system.active()?.policies.delete(&params.name).await?;
    Ok(Reply::empty())
}
