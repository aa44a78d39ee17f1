//! What a removed mount has on the HSM goes, turn by turn, before its records do.

use super::{
    Transit,
    gate::Going,
    pages::Pages,
    record::{MATERIAL_FOLDER, StoredKey, VersionRecord, decode},
};
use crate::{
    barrier::Txn,
    core::{
        failure::Failure,
        mount_table::{Left, Removal},
    },
    crashpoint::reach,
    hsm::KeyId,
};

impl Transit {
    /// Destroys objects on the HSM that belong to the mount, as many as the turn has time for and one at least, and deletes the records
    /// that told of them. Records that are damaged do not keep the mount: which objects they tell of is not known any more.
    pub async fn destroy_all_objects(&self, removal: &Removal) -> Result<Left, Failure> {
        let mut damaged: u64 = 0;
        let mut pass_over = |path: &str, reason: &dyn std::fmt::Display| {
            tracing::warn!(record = path, %reason, "a damaged key version of a removed mount is passed over");
            damaged += 1;
        };
        let mut left = Left::Nothing;
        for page in Pages::of(&self.store.view, MATERIAL_FOLDER) {
            let page = page?;
            let (mut done, mut failed) = (Vec::new(), None);
            for (path, entry) in page.records {
                match decode::<VersionRecord>(&entry.value) {
                    Ok(VersionRecord { key: StoredKey::Token(id), .. }) => {
                        if let Err(failure) = self.destroy_for(removal, id).await {
                            failed = Some(failure);
                            break;
                        }
                    }
                    Ok(_) => {}
                    Err(failure) => pass_over(&path, &failure),
                }
                done.push(path);
                if removal.time_left().is_zero() {
                    left = Left::Something;
                    break;
                }
            }
            if let (Some((path, error)), None, Left::Nothing) = (page.damaged, &failed, left) {
                pass_over(&path, &error);
                done.push(path);
            }
            // So that the next turn, also one after a crash, does not look for what is gone.
            if !done.is_empty() {
                self.store.view.commit(done.into_iter().fold(Txn::new(), Txn::delete).while_as(removal.stamp())).await?;
            }
            if let Some(failure) = failed {
                return Err(failure);
            }
            if left == Left::Something {
                break;
            }
        }
        if damaged > 0 {
            tracing::warn!(damaged, "objects of these key versions, if they had any, stay in the HSM; see sos hsm orphans");
        }
        match left {
            Left::Something => Ok(left),
            Left::Nothing => self.destroy_remains(removal).await,
        }
    }

    async fn destroy_for(&self, removal: &Removal, id: KeyId) -> Result<(), Failure> {
        let _turn = self.stores.gate.wrap(&Going::at(&self.store.view)).await?;
        removal.check()?;
        self.store.protection.hsm()?.destroy(id).await?;
        reach("retiring-destroyed");
        Ok(())
    }

    /// Objects that no key refers to.
    async fn destroy_remains(&self, removal: &Removal) -> Result<Left, Failure> {
        // What requests in flight are making is refused when they commit it, and destroyed after that.
        if !self.store.making.lock().is_empty() {
            return Err(Failure::unavailable("requests under way are still making objects in the HSM"));
        }
        self.find_doomed()?;
        // A key was deleted before its mount was, and its objects are still on their way out: they go on doing so.
        let Ok(_alone) = tokio::time::timeout(removal.time_left(), self.store.destroying.lock()).await else {
            return Ok(Left::Something);
        };
        let before = self.store.doomed.lock().len();
        self.store.destroy_within(&self.stores.gate, Some(removal.time_left())).await;
        match self.store.doomed.lock().len() {
            0 => Ok(Left::Nothing),
            left if left < before => Ok(Left::Something),
            _ => Err(Failure::unavailable("objects of this mount are still in the HSM")),
        }
    }
}
