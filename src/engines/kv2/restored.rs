//! After a restore: numbers that were given after the backup are not given again.

use super::record::{KEYS_FOLDER, KeyRecord, given_path};
use crate::{
    backup::Given,
    barrier::{Txn, View},
    core::failure::Failure,
};

/// Below this lie the versions.
const VERSIONS_FOLDER: &str = "v/";
/// Keys looked at in one transaction.
const PAGE: usize = 1000;

/// Notes for every key how far its numbers went, as far as the replaced store told and beyond what is to be left out.
pub async fn take_up(view: &View, given: &Given<'_>) -> Result<(), Failure> {
    if given.skip > 0 {
        let mut after: Option<String> = None;
        loop {
            let page = view.scan(KEYS_FOLDER, after.as_deref(), PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            let mut found = Vec::with_capacity(page.len());
            for (path, entry) in &page {
                let key = path.strip_prefix(KEYS_FOLDER).unwrap_or(path);
                found.push((key.to_owned(), KeyRecord::decode(path, entry.value.expose())?.current));
            }
            note(view, found, given.skip).await?;
        }
    }
    let mut after: Option<String> = None;
    loop {
        let page = given.page(VERSIONS_FOLDER, after.as_deref())?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = Some(last.clone());
        note(view, page, given.skip).await?;
    }
}

async fn note(view: &View, found: Vec<(String, u64)>, skip: u64) -> Result<(), Failure> {
    let mut txn = Txn::new();
    for (key, number) in found {
        let path = given_path(&key);
        let known = view.get(&path)?.and_then(|entry| <[u8; 8]>::try_from(entry.value.expose()).ok());
        // One below the largest number, which a record may not reach.
        let highest = number.saturating_add(skip).min(u64::MAX - 2).max(known.map_or(0, u64::from_be_bytes));
        txn = txn.put(path, highest.to_be_bytes().to_vec());
    }
    view.commit(txn).await?;
    Ok(())
}
