//! `config`: the mount's settings.

use std::time::Duration;

use serde::Serialize;

use super::{
    Kv2,
    keys::Attempt,
    params::{Config, count},
    record::{CONFIG_PATH, MountRecord},
};
use crate::{
    barrier::{Entry, Txn},
    core::{engine::Call, failure::Failure, reply::Reply},
    wire::duration::format_duration,
};

#[derive(Serialize)]
struct Shown {
    cas_required: bool,
    delete_version_after: String,
    max_versions: u32,
    metadata_cas_required: bool,
}

/// Shows the settings.
pub async fn read(engine: &Kv2, _: &Call<'_>, _: Config) -> Result<Reply, Failure> {
    let config = engine.keys.config()?;
    let delete_version_after = match u64::try_from(config.delete_version_after) {
        Ok(seconds) => format_duration(Duration::from_secs(seconds)),
        Err(_) => "-1s".into(),
    };
    Reply::data(&Shown {
        cas_required: config.cas_required,
        delete_version_after,
        max_versions: config.max_versions,
        metadata_cas_required: config.metadata_cas_required,
    })
}

/// Changes the settings that are named.
pub async fn write(engine: &Kv2, _: &Call<'_>, params: Config) -> Result<Reply, Failure> {
    loop {
        let stored = engine.keys.view.get(CONFIG_PATH)?;
        let mut config = match &stored {
            Some(entry) => MountRecord::decode(entry.value.expose())?,
            None => MountRecord::default(),
        };
        let before = config.clone();
        change(&mut config, &params);
        if config == before {
            return Ok(Reply::empty());
        }
        let txn = Txn::new().check(CONFIG_PATH, Entry::unchanged(stored.as_ref())).put(CONFIG_PATH, config.encode()?);
        match engine.keys.commit(txn).await {
            Ok(()) => return Ok(Reply::empty()),
            Err(Attempt::Conflict(_)) => {}
            Err(Attempt::Failed(failure)) => return Err(failure),
        }
    }
}

fn change(config: &mut MountRecord, params: &Config) {
    if let Some(max) = params.max_versions {
        config.max_versions = count(max);
    }
    if let Some(required) = params.cas_required {
        config.cas_required = required;
    }
    if let Some(required) = params.metadata_cas_required {
        config.metadata_cas_required = required;
    }
    if let Some(after) = params.delete_version_after {
        config.delete_version_after = after.0.max(-1);
    }
}
