//! `sys/sos/seals`: the HSMs of the cluster as a list.

use std::collections::HashSet;

use serde::Serialize;

use super::System;
use crate::{
    barrier::View,
    core::{
        Core,
        engine::Call,
        failure::{Failure, Kind},
        reply::Reply,
        route::{Access, Route},
    },
    engines::transit::survey,
    hsm::KeyId,
    op,
    secret::SecretString,
    wire::field::NoParams,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["sos/seals/?"],
        access: Access::Sudo,
        help: "Shows the HSMs that wrap the root key, and those that are configured and could.",
        exists: None,
        operations: &[op!(Read, "Show the seals", read_all, NoParams), op!(List, "List the seals", list, NoParams)],
    },
    Route {
        patterns: &["sos/seals/{name}"],
        access: Access::Sudo,
        help: "Shows, enrols or removes an HSM. It is enrolled under the name of its seal stanza; the keys it needs come from the escrow shares.",
        exists: None,
        operations: &[
            op!(Read, "Show a seal", read, NameParams),
            op!(Write, "Enrol an HSM, or put onto it what it lacks", add, AddParams),
            op!(Delete, "Remove an HSM", remove, RemoveParams),
        ],
    },
    Route {
        patterns: &["sos/seals/{name}/rewrap"],
        access: Access::Sudo,
        help: "Gives an HSM a new seal key, wraps the root key by it and destroys the old one.",
        exists: None,
        operations: &[op!(Write, "Renew the seal key of an HSM", rewrap, NameParams)],
    },
];

crate::params! {
    /// An HSM.
    struct NameParams {
        /// Name of its seal stanza.
        name: String,
    }
}

crate::params! {
    /// An HSM to enrol.
    struct AddParams {
        /// Name of its seal stanza.
        name: String,
        /// Escrow shares (or unseal keys), as many as their threshold, in hexadecimal or base64.
        keys: Vec<String>,
    }
}

crate::params! {
    /// An HSM to remove.
    struct RemoveParams {
        /// Name of its seal stanza.
        name: String,
        /// Whether it goes even when keys are lost with it.
        force: bool,
    }
}

#[derive(Serialize)]
struct AddResponse {
    name: String,
    converted: bool,
    seal_key: bool,
    master_keys: Vec<String>,
    missing: Vec<String>,
}

#[derive(Serialize)]
struct RemoveResponse {
    name: String,
    lost: Vec<String>,
    stranded: Vec<String>,
    pending: bool,
}

async fn read_all(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    Reply::data(&core.seal.list_hsms(&core.services.zones).await?)
}

async fn list(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    Reply::keys(core.seal.list_hsms(&core.services.zones).await?.seals.into_iter().map(|seal| seal.name))
}

async fn read(system: &System, _: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let all = core.seal.list_hsms(&core.services.zones).await?.seals;
    match all.into_iter().find(|seal| seal.name == params.name) {
        Some(seal) => Reply::data(&seal),
        None => Err(Failure::plain(Kind::NotFound, format!("no HSM is named {:?}", params.name))),
    }
}

async fn add(system: &System, _: &Call<'_>, params: AddParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let shares: Vec<_> = params.keys.into_iter().map(SecretString::new).collect();
    let own: HashSet<KeyId> = core.hsm_only_keys()?.into_iter().map(|(_, id)| id).collect();
    let added = core.seal.add_hsm(&core.services.zones, &params.name, &shares, &own).await?;
    let mut reply = Reply::data(&AddResponse {
        name: params.name,
        converted: added.converted,
        seal_key: added.seal_key,
        master_keys: added.master_keys,
        missing: added.missing.clone(),
    })?;
    if !added.missing.is_empty() {
        reply = reply.with_warning(format!(
            "master keys without a copy for this HSM stay on the others alone: {}",
            added.missing.join(", ")
        ));
    }
    Ok(reply)
}

async fn remove(system: &System, _: &Call<'_>, params: RemoveParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let keys = core.hsm_only_keys()?;
    let removed = core.seal.remove_hsm(&core.services.zones, &params.name, params.force, &keys).await?;
    Reply::data(&RemoveResponse { name: params.name, lost: removed.lost, stranded: removed.stranded, pending: removed.pending })
}

async fn rewrap(system: &System, _: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    core.seal.rewrap_hsm(&core.services.zones, &params.name).await?;
    Ok(Reply::empty())
}

impl Core {
    /// The `hsm-only` key versions of all Transit mounts: mount, key and version for people, and the CKA_ID.
    pub fn hsm_only_keys(&self) -> Result<Vec<(String, KeyId)>, Failure> {
        let mut all = Vec::new();
        for (path, view) in self.transit_views()? {
            all.extend(survey::hsm_only(&view)?.into_iter().map(|key| (format!("{path}{} v{}", key.name, key.version), key.id)));
        }
        Ok(all)
    }

    /// The records of every Transit mount, with its path.
    pub(super) fn transit_views(&self) -> Result<Vec<(String, View)>, Failure> {
        let mounts = self.active()?.router.all().into_iter().filter(|mounted| mounted.entry.kind == "transit");
        let view = |uuid: &str| View::new(self.barrier.clone(), &format!("logical/{uuid}/"));
        mounts.map(|mounted| Ok((mounted.entry.full_path(), view(&mounted.entry.uuid)?))).collect()
    }
}
