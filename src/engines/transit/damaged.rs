//! Keys whose own record is damaged: what is said of them, and what is found of them when they go away.
//!
//! The record of a key names its versions' records by a random uid, and these name objects on the HSM; nothing names the key
//! the other way round. Where the uid cannot be read any more, what no other key claims is taken for the key's.

use std::collections::BTreeSet;

use thiserror::Error;

use super::{
    Transit,
    pages::Pages,
    record::{
        KEY_FOLDER, KeyRecord, KeyUid, MATERIAL_FOLDER, StoredKey, USAGE_FOLDER, UidRecord, VersionRecord, auto_path, decode,
        given_path, material_path, usage_path,
    },
    store::{Change, Decision, Vanished, is_lost},
};
use crate::{
    barrier::{Txn, View},
    core::failure::{Failure, Kind},
    hsm::KeyId,
};

/// The record of a key cannot be read, and never will be.
#[derive(Debug, Error)]
#[error("the record of the key {name:?} is damaged: {reason}")]
pub struct Damaged {
    name: String,
    reason: String,
}

impl Damaged {
    /// What a request for the key is answered; `failure` is that of the read.
    pub fn failure(name: &str, failure: &Failure) -> Failure {
        let text = format!(
            "the record of the key {name:?} is damaged and the key cannot be used: delete it (DELETE keys/{name}, with the \
             capability sudo on that path), or put a backup of it in its place (restore/{name} with force=true)"
        );
        let reason = failure.cause().map_or_else(|| failure.to_string(), ToString::to_string);
        Failure::plain(Kind::Internal, text).caused_by(Self { name: name.to_owned(), reason })
    }
}

/// Whether a request failed because the record of its key is damaged.
pub fn is_damaged(failure: &Failure) -> bool {
    failure.cause().is_some_and(|cause| cause.is::<Damaged>())
}

/// Versions that belong to no key that can be read.
#[derive(Debug, Default)]
pub struct Unclaimed {
    /// Uids of their keys.
    pub uids: BTreeSet<KeyUid>,
    /// Keys whose records are damaged, with the uid where it can still be read.
    pub damaged: Vec<(String, Option<KeyUid>)>,
}

impl Unclaimed {
    /// Reads the records of all keys of a mount: takes some time where there are many.
    pub fn of(view: &View) -> Result<Self, Failure> {
        // Versions before keys: what is made meanwhile is not among these, and what is deleted meanwhile is gone anyway.
        let mut uids = BTreeSet::new();
        for folder in [MATERIAL_FOLDER, USAGE_FOLDER] {
            uids.extend(view.list(folder, None, usize::MAX)?.iter().filter_map(|name| KeyUid::parse(name.trim_end_matches('/'))));
        }
        let mut damaged = Vec::new();
        for page in Pages::of(view, KEY_FOLDER) {
            let page = page?;
            for (path, entry) in &page.records {
                match decode::<KeyRecord>(&entry.value) {
                    Ok(record) => drop(uids.remove(&record.uid)),
                    // It is authentic, and perhaps of another server's making: what can be read of it is true.
                    Err(_) => damaged.push((path.clone(), decode::<UidRecord>(&entry.value).ok().map(|record| record.uid))),
                }
            }
            damaged.extend(page.damaged.map(|(path, _)| (path, None)));
        }
        let name = |path: String| path.strip_prefix(KEY_FOLDER).map(str::to_owned).unwrap_or(path);
        Ok(Self { uids, damaged: damaged.into_iter().map(|(path, uid)| (name(path), uid)).collect() })
    }

    /// The uids that the damaged key `name` is taken to have had, and the names of damaged keys that keep this from being told.
    ///
    /// While there are others whose uids cannot be read either, none is taken: theirs may be among them, and their records may
    /// yet be mended. What is left goes with the last of them.
    fn of_key(mut self, name: &str) -> (BTreeSet<KeyUid>, Vec<String>) {
        let own = self.damaged.iter().find(|(damaged, _)| damaged == name).and_then(|(_, uid)| *uid);
        if let Some(uid) = own {
            return (self.uids.take(&uid).into_iter().collect(), Vec::new());
        }
        let mut others = Vec::new();
        for (other, uid) in self.damaged.into_iter().filter(|(damaged, _)| damaged != name) {
            match uid {
                Some(uid) => drop(self.uids.remove(&uid)),
                None => others.push(other),
            }
        }
        if others.is_empty() { (self.uids, others) } else { (BTreeSet::new(), others) }
    }
}

/// What goes away with a key whose record is damaged.
#[derive(Debug, Default)]
pub struct Remains {
    /// Objects on the HSM, to be [destroyed](Transit::destroy) after the commit.
    pub objects: Vec<KeyId>,
    uids: BTreeSet<KeyUid>,
    versions: usize,
    /// Versions whose records are damaged as well.
    lost: usize,
    /// Damaged keys from which this one could not be told.
    others: Vec<String>,
}

impl Remains {
    /// What the client and the log are told.
    fn told(&self, name: &str) -> String {
        let mut text = format!("the record of the key {name:?} was damaged; ");
        match self.others.as_slice() {
            [] => text.push_str(&format!(
                "{} versions that no other key claims went with it, and {} objects on the HSM",
                self.versions,
                self.objects.len()
            )),
            others => text.push_str(&format!(
                "its versions stay, because they cannot be told from those of other keys whose records are damaged ({}): they \
                 go when the last of these is deleted",
                others.join(", ")
            )),
        }
        if self.lost > 0 {
            text.push_str(&format!(
                "; {} of the versions were damaged as well: if they were hsm-only their objects stay on the HSM, see sos hsm \
                 orphans",
                self.lost
            ));
        }
        text
    }
}

impl Transit {
    /// Adds to `txn` what takes away all that is found of a key whose record is damaged, but for the record itself.
    pub async fn drop_remains(&self, name: &str, mut txn: Txn) -> Result<(Txn, Remains), Failure> {
        let view = self.store.view.clone();
        let unclaimed = tokio::task::spawn_blocking(move || Unclaimed::of(&view)).await.map_err(Failure::internal)??;
        let (uids, others) = unclaimed.of_key(name);
        let mut remains = Remains { others, ..Remains::default() };
        for uid in &uids {
            let mut versions = BTreeSet::new();
            for folder in [MATERIAL_FOLDER, USAGE_FOLDER] {
                let names = self.store.view.list(&format!("{folder}{uid}/"), None, usize::MAX)?;
                versions.extend(names.iter().filter_map(|name| name.parse::<u32>().ok()));
            }
            txn = txn.delete(given_path(&uid.to_string()));
            for version in versions {
                txn = txn.delete(material_path(*uid, version)).delete(usage_path(*uid, version));
                match self.store.version_record(name, *uid, version) {
                    Ok((VersionRecord { key: StoredKey::Token(id), .. }, _)) => {
                        remains.objects.push(id);
                        txn = self.store.doom(id, name, txn)?;
                    }
                    Ok(_) => {}
                    // There was nothing but its count.
                    Err(failure) if failure.cause().is_some_and(|cause| cause.is::<Vanished>()) => continue,
                    Err(failure) if is_lost(&failure) => {
                        tracing::warn!(key = name, %uid, version, ?failure, "this version of a damaged key is damaged as well");
                        remains.lost += 1;
                    }
                    Err(failure) => return Err(failure),
                }
                remains.versions += 1;
            }
        }
        remains.uids = uids;
        Ok((txn.delete(auto_path(name)), remains))
    }

    /// What is to be done once the commit held that took a damaged key away; gives what the client is told.
    pub fn dropped_remains(&self, name: &str, remains: Remains) -> String {
        let told = remains.told(name);
        tracing::warn!(key = name, uids = ?remains.uids, "{told}");
        for uid in &remains.uids {
            self.store.forget_key(*uid);
        }
        self.destroy(remains.objects);
        told
    }

    /// Deletes a key whose record is damaged, with all that is found of it; gives what the client is told. `None` when it can be
    /// read again.
    ///
    /// Whether the key's owner allows its deletion stands in the record that cannot be read. It is off unless somebody has set it,
    /// so who may delete other keys may not delete this one: that is for who has sudo on its path, which the caller has checked.
    pub async fn delete_damaged(&self, name: &str) -> Result<Option<String>, Failure> {
        let (_, remains) = self
            .change_even_damaged(name, move |found| {
                Box::pin(async move {
                    if found.is_ok() {
                        return Ok(Decision::Keep(None));
                    }
                    let (txn, remains) = self.drop_remains(name, Txn::new()).await?;
                    Ok(Decision::Write(Change { record: None, txn, outcome: Some(remains) }))
                })
            })
            .await?;
        let Some(remains) = remains else { return Ok(None) };
        self.store.schedule.lock().remove(name);
        Ok(Some(self.dropped_remains(name, remains)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_of_another_damaged_key_stays() {
        let [a, b, c] = [(); 3].map(|()| KeyUid::random());
        let unclaimed = |damaged: &[(&str, Option<KeyUid>)]| Unclaimed {
            uids: [a, b, c].into(),
            damaged: damaged.iter().map(|(name, uid)| ((*name).to_owned(), *uid)).collect(),
        };
        let none = BTreeSet::new;
        assert_eq!(unclaimed(&[("k", None)]).of_key("k"), ([a, b, c].into(), vec![]));
        assert_eq!(unclaimed(&[("k", Some(b)), ("l", None)]).of_key("k"), ([b].into(), vec![]));
        assert_eq!(unclaimed(&[("k", None), ("l", Some(b))]).of_key("k"), ([a, c].into(), vec![]));
        assert_eq!(unclaimed(&[("k", None), ("l", None)]).of_key("k"), (none(), vec!["l".to_owned()]));
        // The uid of a key that can be read is that key's.
        assert_eq!(unclaimed(&[("k", Some(KeyUid::random()))]).of_key("k"), (none(), vec![]));
    }
}
