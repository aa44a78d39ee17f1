//! What both versions of the key-value engine share: the `version` option, and lists of a whole tree.

use std::{collections::BTreeMap, sync::Arc};

use super::{MountContext, kv1::Kv1, kv2::Kv2};
use crate::{
    barrier::View,
    core::{engine::Engine, failure::Failure, reply::Reply},
    storage::Names,
};

/// Below this lie the records of version 1; those of version 2 lie elsewhere, so that an upgrade can tell them apart.
pub(super) const V1_FOLDER: &str = "v1/";

/// Exists from the moment a mount serves version 2. Writers of version 1 demand its absence, so that none of them
/// can add a record behind the back of the upgrade.
pub(super) const VERSIONED_MARKER: &str = "versioned";

/// What a version 1 engine answers once its mount is being upgraded.
pub(super) const UPGRADING: &str = "Upgrading from non-versioned to versioned data. This backend will be unavailable for a brief period and will resume service shortly.";

/// The version that a mount of kind `kv` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KvVersion {
    /// One value per key.
    One,
    /// Numbered versions.
    Two,
}

impl KvVersion {
    /// Reads the option `version`; a mount without it is version 1.
    ///
    /// # Errors
    /// A 400 for anything but `1`, `2` and nothing.
    pub fn of(options: &BTreeMap<String, String>) -> Result<Self, Failure> {
        match options.get("version").map_or("", String::as_str) {
            "" | "1" => Ok(Self::One),
            "2" => Ok(Self::Two),
            other => match other.parse::<i64>() {
                Ok(number) => Err(Failure::invalid(format!("invalid version provided: {number}"))),
                Err(_) => {
                    let text = format!("unable to parse options: strconv.ParseInt: parsing {other:?}: invalid syntax");
                    Err(Failure::invalid(text))
                }
            },
        }
    }
}

/// Decides about tuned options of a `kv` mount: whether they upgrade it to version 2.
///
/// # Errors
/// A 400 for an unknown version and for the way back from version 2.
pub fn check_version_change(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Result<bool, Failure> {
    match (KvVersion::of(old)?, KvVersion::of(new)?) {
        (KvVersion::Two, KvVersion::One) => Err(Failure::invalid("cannot downgrade mount from version 2")),
        (old, new) => Ok(old < new),
    }
}

/// Makes the engine that the mount's options ask for.
pub fn build(context: MountContext) -> Result<Arc<dyn Engine>, Failure> {
    Ok(match KvVersion::of(&context.entry.options)? {
        KvVersion::One => Arc::new(Kv1::new(&context)),
        KvVersion::Two => Arc::new(Kv2::new(&context)),
    })
}

/// All keys below `folder` (empty or with a trailing slash), relative to it and sorted folder by folder. Values are not
/// decrypted. There may be millions, so they are read off the async workers.
pub(super) async fn keys_below(view: &View, folder: String) -> Result<Names, Failure> {
    let view = view.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut found = Names::default();
        let mut open = vec![String::new()];
        while let Some(below) = open.pop() {
            let mut folders = Vec::new();
            for name in view.list(&format!("{folder}{below}"), None, usize::MAX)? {
                let path = format!("{below}{name}");
                if name.ends_with('/') { folders.push(path) } else { found.push(&path) }
            }
            open.extend(folders.into_iter().rev());
        }
        Ok(found)
    });
    read.await.map_err(Failure::internal)?
}

/// The answer to a scan: unlike a list, one that finds nothing is a 200 without `keys`.
pub(super) fn scan_reply(keys: &Names) -> Result<Reply, Failure> {
    if keys.is_empty() { Ok(Reply::raw_data(b"{}".to_vec())) } else { Reply::keys(keys.iter()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(version: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("version".to_owned(), version.to_owned())])
    }

    #[test]
    fn the_option_decides_and_nonsense_is_refused() {
        assert_eq!(KvVersion::of(&BTreeMap::new()).unwrap(), KvVersion::One);
        assert_eq!(KvVersion::of(&options("2")).unwrap(), KvVersion::Two);
        assert_eq!(KvVersion::of(&options("9")).unwrap_err().text(), "invalid version provided: 9");
        assert!(KvVersion::of(&options("abc")).unwrap_err().text().starts_with("unable to parse options: "));
    }

    #[test]
    fn there_is_a_way_up_and_none_down() {
        assert!(check_version_change(&BTreeMap::new(), &options("2")).unwrap());
        assert!(!check_version_change(&options("2"), &options("2")).unwrap());
        let refused = check_version_change(&options("2"), &options("1")).unwrap_err();
        assert_eq!(refused.text(), "cannot downgrade mount from version 2");
    }
}
