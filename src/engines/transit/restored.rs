//! After a restore: versions that were given after the backup are lost, and their numbers are not given again. What they
//! encrypted is refused as of a version that does not exist, and not as damaged.

use super::{
    pages::Pages,
    record::{
        FORMAT, Fate, GivenRecord, KEY_FOLDER, KeyRecord, MATERIAL_FOLDER, TOKEN_FOLDER, TokenRecord, decode, encode, given_path,
    },
};
use crate::{
    backup::Given,
    barrier::{Txn, View},
    core::failure::Failure,
};

/// Keys looked at in one transaction.
const PAGE: usize = 256;
/// The highest number that is noted; versions behind it remain possible.
const HIGHEST: u32 = u32::MAX - (1 << 20);

/// Notes for every key how far its versions went, as far as the replaced store told and beyond what is to be left out.
pub async fn take_up(view: &View, given: &Given<'_>) -> Result<(), Failure> {
    if given.skip > 0 {
        let mut found = Vec::new();
        let see = |_: &str, key: KeyRecord| found.push((key.uid.to_string(), u64::from(key.latest_version)));
        // A key whose record is damaged gets no further versions.
        Pages::of(view, KEY_FOLDER).each(see, passed_over)?;
        for some in found.chunks(PAGE) {
            note(view, some.to_vec(), given.skip).await?;
        }
    }
    let mut after: Option<String> = None;
    loop {
        let page = given.page(MATERIAL_FOLDER, after.as_deref())?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = Some(last.clone());
        note(view, page, given.skip).await?;
    }
}

/// Forgets the objects that were being made on an HSM when the backup was taken: they may have been finished since, and a
/// newer backup may need them.
pub async fn forget_making(view: &View) -> Result<(), Failure> {
    let mut making = Vec::new();
    let see = |path: &str, record: TokenRecord| {
        if record.fate == Fate::Creating {
            making.push((path.to_owned(), record.name));
        }
    };
    let mut damaged = Vec::new();
    Pages::of(view, TOKEN_FOLDER).each(see, |path, failure| {
        passed_over(path, failure);
        damaged.push((path.to_owned(), String::new()));
    })?;
    // Of damaged ones it is not known what they tell of, and on the word of a damaged record nothing is destroyed here.
    for (path, key) in making.into_iter().chain(damaged) {
        tracing::warn!(
            %key, object = %path.trim_start_matches(TOKEN_FOLDER),
            "this object was being made when the backup was taken: if it is on the HSM it stays there; see sos hsm orphans"
        );
        view.commit(Txn::new().delete(path)).await?;
    }
    Ok(())
}

fn passed_over(path: &str, failure: &Failure) {
    tracing::error!(record = path, cause = ?failure.cause(), "a record of the restored store is damaged; it is passed over");
}

async fn note(view: &View, found: Vec<(String, u64)>, skip: u64) -> Result<(), Failure> {
    let mut txn = Txn::new();
    for (uid, number) in found {
        let path = given_path(&uid);
        let known = match view.get(&path)? {
            Some(entry) => decode::<GivenRecord>(&entry.value)?.version,
            None => 0,
        };
        let highest = u32::try_from(number.saturating_add(skip)).unwrap_or(HIGHEST).min(HIGHEST);
        txn = txn.put_secret(path, encode(&GivenRecord { format: FORMAT, version: highest.max(known) })?);
    }
    view.commit(txn).await?;
    Ok(())
}
