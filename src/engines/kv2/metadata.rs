//! `metadata/` and `detailed-metadata/`: a key's settings, lists of keys, and removal.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Kv2,
    change::Change,
    custom,
    data::without_slash,
    keys::Keys,
    params::{Metadata, Page, count},
    record::{KEYS_FOLDER, KeyRecord, MountRecord},
    show,
};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply},
    engines::kv::{keys_below, scan_reply},
    storage::Names,
    wire::{
        field::NoParams,
        json::{push_name, push_text},
    },
};

/// New settings; what is `None` stays.
#[derive(Debug, Default)]
pub struct MetadataChange {
    /// See [`KeyRecord::max_versions`].
    pub max_versions: Option<u32>,
    /// See [`KeyRecord::cas_required`].
    pub cas_required: Option<bool>,
    /// See [`KeyRecord::metadata_cas_required`].
    pub metadata_cas_required: Option<bool>,
    /// See [`KeyRecord::delete_version_after`].
    pub delete_version_after: Option<u64>,
    /// Notes to set, and with `None` to remove.
    pub custom_metadata: Option<BTreeMap<String, Option<String>>>,
    /// Whether the notes that are not named go.
    pub replaces_custom: bool,
    /// The version of the settings that it expects.
    pub cas: Option<i64>,
    /// Whether the key must exist.
    pub is_patch: bool,
}

impl MetadataChange {
    fn of(params: &Metadata, is_patch: bool) -> Result<Option<Self>, Failure> {
        let custom_metadata =
            params.custom_metadata.as_ref().map(|custom| custom::parse(&custom.object(), is_patch)).transpose()?;
        let change = Self {
            max_versions: params.max_versions.map(count),
            cas_required: params.cas_required,
            metadata_cas_required: params.metadata_cas_required,
            delete_version_after: params.delete_version_after.map(|after| u64::try_from(after.0).unwrap_or(0)),
            // A patch with `null` or a write takes the place of all notes.
            replaces_custom: !is_patch || params.custom_metadata.as_ref().is_some_and(|custom| custom.0.expose() == b"null"),
            custom_metadata,
            cas: params.metadata_cas,
            is_patch,
        };
        let says_something = change.max_versions.is_some()
            || change.cas_required.is_some()
            || change.metadata_cas_required.is_some()
            || change.delete_version_after.is_some()
            || change.custom_metadata.is_some();
        Ok(says_something.then_some(change))
    }

    /// Checks the expected version of the settings.
    pub fn check_cas(&self, record: Option<&KeyRecord>, config: &MountRecord) -> Result<(), Failure> {
        let required = config.metadata_cas_required || record.is_some_and(|record| record.metadata_cas_required);
        let text = match (self.cas, record) {
            (None, _) if required => "metadata check-and-set parameter required for this call",
            (Some(cas), None) if cas != 0 => "metadata_cas must be 0 when creating new metadata",
            (Some(cas), Some(record)) if u64::try_from(cas).ok() != Some(record.metadata_version) => {
                "metadata check-and-set parameter does not match the current version"
            }
            _ => return Ok(()),
        };
        Err(Failure::invalid(text))
    }

    /// Puts the settings into a record.
    pub fn apply(&self, record: &mut KeyRecord) {
        if let Some(max) = self.max_versions {
            record.max_versions = max;
        }
        if let Some(required) = self.cas_required {
            record.cas_required = required;
        }
        if let Some(required) = self.metadata_cas_required {
            record.metadata_cas_required = required;
        }
        if let Some(after) = self.delete_version_after {
            record.delete_version_after = after;
        }
        let Some(custom) = &self.custom_metadata else { return };
        if self.replaces_custom {
            record.custom_metadata.clear();
        }
        for (name, value) in custom {
            match value {
                Some(value) => drop(record.custom_metadata.insert(name.clone(), value.clone())),
                None => drop(record.custom_metadata.remove(name)),
            }
        }
    }

    /// The answer, with a word about settings that the mount overrules.
    pub fn warnings(&self, config: &MountRecord) -> Reply {
        let mut reply = Reply::empty();
        for (name, value, mandated) in [
            ("cas_required", self.cas_required, config.cas_required),
            ("metadata_cas_required", self.metadata_cas_required, config.metadata_cas_required),
        ] {
            if mandated && value == Some(false) {
                let text = format!("\"{name}\" set to false, but is mandated by backend config. This value will be ignored.");
                reply = reply.with_warning(text);
            }
        }
        reply
    }
}

/// Shows a key.
pub async fn read(engine: &Kv2, call: &Call<'_>, _: Metadata) -> Result<Reply, Failure> {
    let record = engine.keys.key(without_slash(call.capture("path")))?.ok_or_else(Failure::not_found)?;
    Ok(Reply::raw_data(show::key_json(&record)))
}

/// Changes settings; a key that does not exist comes to be without a version.
pub async fn write(engine: &Kv2, call: &Call<'_>, params: Metadata) -> Result<Reply, Failure> {
    if call.capture("path").is_empty() {
        return Err(Failure::invalid("missing path"));
    }
    change(engine, call, &params, false).await
}

/// Changes settings of a key that exists.
pub async fn patch(engine: &Kv2, call: &Call<'_>, params: Metadata) -> Result<Reply, Failure> {
    change(engine, call, &params, true).await
}

async fn change(engine: &Kv2, call: &Call<'_>, params: &Metadata, is_patch: bool) -> Result<Reply, Failure> {
    match MetadataChange::of(params, is_patch)? {
        Some(change) => engine.keys.change(call.capture("path"), Change::Metadata(change)).await,
        None => Ok(Reply::empty()),
    }
}

/// Removes a key with all its versions.
pub async fn delete(engine: &Kv2, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    engine.keys.change(without_slash(call.capture("path")), Change::Remove).await
}

/// Lists one level.
pub async fn list(engine: &Kv2, call: &Call<'_>, page: Page) -> Result<Reply, Failure> {
    Reply::keys(names(engine, call, &page).await?.iter())
}

/// Lists one level with what is known of each key.
pub async fn detailed_list(engine: &Kv2, call: &Call<'_>, page: Page) -> Result<Reply, Failure> {
    let names = names(engine, call, &page).await?;
    if names.is_empty() {
        return Err(Failure::not_found());
    }
    detailed(engine, call.capture("path"), names).await
}

/// Lists everything below a path.
pub async fn scan(engine: &Kv2, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    scan_reply(&all_names(engine, call).await?)
}

/// Lists everything below a path with what is known of each key.
pub async fn detailed_scan(engine: &Kv2, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let names = all_names(engine, call).await?;
    if names.is_empty() { scan_reply(&names) } else { detailed(engine, call.capture("path"), names).await }
}

async fn names(engine: &Kv2, call: &Call<'_>, page: &Page) -> Result<Names, Failure> {
    let after = Some(page.after.as_str()).filter(|after| !after.is_empty());
    let limit = usize::try_from(page.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    Ok(engine.keys.view.list_long(&format!("{KEYS_FOLDER}{}", call.capture("path")), after, limit).await?)
}

async fn all_names(engine: &Kv2, call: &Call<'_>) -> Result<Names, Failure> {
    keys_below(&engine.keys.view, format!("{KEYS_FOLDER}{}", call.capture("path"))).await
}

/// Records read at once; more are read off the async workers.
const FEW: usize = 64;

async fn detailed(engine: &Kv2, folder: &str, names: Names) -> Result<Reply, Failure> {
    if names.len() <= FEW {
        return described(&engine.keys, folder, &names);
    }
    let (keys, folder) = (Arc::clone(&engine.keys), folder.to_owned());
    tokio::task::spawn_blocking(move || described(&keys, &folder, &names)).await.map_err(Failure::internal)?
}

fn described(keys: &Keys, folder: &str, names: &Names) -> Result<Reply, Failure> {
    let mut json = b"{\"key_info\":{".to_vec();
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        push_name(&mut json, name);
        let record = if name.ends_with('/') { None } else { keys.key(&format!("{folder}{name}"))? };
        json.extend_from_slice(&record.map_or_else(|| b"{}".to_vec(), |record| show::key_json(&record)));
    }
    json.extend_from_slice(b"},\"keys\":[");
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        push_text(&mut json, name);
    }
    json.extend_from_slice(b"]}");
    Ok(Reply::raw_data(json))
}
