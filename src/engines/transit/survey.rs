//! What a mount holds, looked at from outside: for removing HSMs and for rehearsing their loss.

use super::protect::Level;
use super::record::{KeyRecord, StoredKey, TOKEN_FOLDER, VersionRecord, decode, key_path, material_path};
use crate::{barrier::View, core::failure::Failure, hsm::KeyId};

/// Names read at a time.
const PAGE: usize = 1000;

/// A version that never leaves its HSM.
pub struct HsmOnly {
    /// The key.
    pub name: String,
    /// The version.
    pub version: u32,
    /// CKA_ID of the object.
    pub id: KeyId,
}

/// The key versions of level `hsm-only`.
pub fn hsm_only(view: &View) -> Result<Vec<HsmOnly>, Failure> {
    let mut found = Vec::new();
    for name in key_names(view)? {
        let Some(record) = key_record(view, &name)? else { continue };
        for line in record.versions.iter().filter(|line| line.level == Level::HsmOnly) {
            let Some(entry) = view.get(&material_path(record.uid, line.version))? else { continue };
            if let StoredKey::Token(id) = decode::<VersionRecord>(&entry.value)?.key {
                found.push(HsmOnly { name: name.clone(), version: line.version, id });
            }
        }
    }
    Ok(found)
}

/// Objects on HSMs that are being made or destroyed.
pub fn in_the_making(view: &View) -> Result<Vec<KeyId>, Failure> {
    let names = view.list(TOKEN_FOLDER, None, usize::MAX)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Names of all keys, sorted.
pub fn key_names(view: &View) -> Result<Vec<String>, Failure> {
    let mut names: Vec<String> = Vec::new();
    loop {
        let page = view.list("key/", names.last().map(String::as_str), PAGE)?;
        let last = page.len() < PAGE;
        names.extend(page);
        if last {
            return Ok(names);
        }
    }
}

/// A key's record; `None` when it was deleted meanwhile.
pub(super) fn key_record(view: &View, name: &str) -> Result<Option<KeyRecord>, Failure> {
    view.get(&key_path(name))?.map(|entry| decode(&entry.value)).transpose()
}
