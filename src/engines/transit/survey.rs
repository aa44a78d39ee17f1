//! What a mount holds, looked at from outside: for removing HSMs and for rehearsing their loss.

use super::{
    damaged::Unclaimed,
    pages::Pages,
    protect::Level,
    record::{KEY_FOLDER, KeyRecord, KeyUid, MATERIAL_FOLDER, StoredKey, TOKEN_FOLDER, VersionRecord, decode, material_path},
    store::is_lost,
};
use crate::{
    barrier::View,
    core::failure::{Failure, Kind},
    hsm::KeyId,
};

/// A version that never leaves its HSM.
pub struct HsmOnly {
    /// The key.
    pub name: String,
    /// The version.
    pub version: u32,
    /// CKA_ID of the object.
    pub id: KeyId,
}

/// The key versions of level `hsm-only`. Those of keys whose records are damaged are among them.
pub fn hsm_only(view: &View) -> Result<Vec<HsmOnly>, Failure> {
    let (mut found, mut keys) = (Vec::new(), Vec::new());
    let see = |path: &str, record: KeyRecord| {
        let name = path.strip_prefix(KEY_FOLDER).unwrap_or(path).to_owned();
        let versions = record.versions.iter().filter(|line| line.level == Level::HsmOnly);
        keys.extend(versions.map(|line| (name.clone(), record.uid, line.version)));
    };
    let mut damaged = false;
    Pages::of(view, KEY_FOLDER).each(see, |path, failure| {
        tracing::warn!(record = path, cause = ?failure.cause(), "the record of a transit key is damaged");
        damaged = true;
    })?;
    for (name, uid, version) in keys {
        let read = view.get(&material_path(uid, version)).map_err(Failure::from);
        let read = read.and_then(|entry| entry.map(|entry| decode::<VersionRecord>(&entry.value)).transpose());
        let record = read.map_err(|failure| unknown(&name, version, failure))?;
        if let Some(VersionRecord { key: StoredKey::Token(id), .. }) = record {
            found.push(HsmOnly { name, version, id });
        }
    }
    if damaged {
        let unclaimed = Unclaimed::of(view)?;
        let names: Vec<&str> = unclaimed.damaged.iter().map(|(name, _)| name.as_str()).collect();
        let name = format!("{} (damaged)", names.join(" or "));
        let of_them = |path: &str, record: VersionRecord| {
            let uid = path.strip_prefix(MATERIAL_FOLDER).and_then(|rest| KeyUid::parse(rest.split_once('/')?.0));
            if let StoredKey::Token(id) = record.key
                && uid.is_some_and(|uid| unclaimed.uids.contains(&uid))
            {
                found.push(HsmOnly { name: name.clone(), version: record.version, id });
            }
        };
        Pages::of(view, MATERIAL_FOLDER).each(of_them, |_, _| ())?;
    }
    Ok(found)
}

/// Which object the version has is not known: what asks for all of them must not go on without it.
fn unknown(name: &str, version: u32, failure: Failure) -> Failure {
    if !is_lost(&failure) {
        return failure;
    }
    let text = format!(
        "the record of version {version} of the transit key {name:?} is damaged, so its object on the HSM is not known; trim the \
         version away or delete the key first"
    );
    Failure::plain(Kind::Internal, text).caused_by(failure)
}

/// Objects on HSMs that are being made or destroyed.
pub fn in_the_making(view: &View) -> Result<Vec<KeyId>, Failure> {
    let names = view.list(TOKEN_FOLDER, None, usize::MAX)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}
