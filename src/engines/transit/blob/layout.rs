//! The members of a backup, as they are read and before they are trusted.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Deserialize;
use serde_json::value::RawValue;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::numbers::{RsaNumbers, present};
use crate::engines::transit::{lifecycle::nanos, record::Passage};

/// A backup taken apart.
#[derive(Deserialize)]
pub struct Blob<'a> {
    /// The key.
    #[serde(borrow, default)]
    pub policy: Option<Policy<'a>>,
    /// All its versions.
    #[serde(borrow, default)]
    pub archived_keys: Option<Archive<'a>>,
}

/// A key in a backup. Absent and null are the same everywhere.
#[derive(Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the names are those of the layout above
pub struct Policy<'a> {
    #[serde(borrow)]
    pub name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub key: Option<Cow<'a, str>>,
    pub key_size: Option<i64>,
    #[serde(borrow)]
    pub keys: Option<BTreeMap<Cow<'a, str>, Entry<'a>>>,
    pub derived: Option<bool>,
    pub kdf: Option<i64>,
    pub convergent_encryption: Option<bool>,
    pub exportable: Option<bool>,
    pub min_decryption_version: Option<i64>,
    pub min_encryption_version: Option<i64>,
    pub latest_version: Option<i64>,
    pub archive_version: Option<i64>,
    pub min_available_version: Option<i64>,
    pub deletion_allowed: Option<bool>,
    pub convergent_version: Option<i64>,
    #[serde(rename = "type")]
    pub kind: Option<i64>,
    #[serde(borrow)]
    pub backup_info: Option<Info<'a>>,
    pub allow_plaintext_backup: Option<bool>,
    pub auto_rotate_period: Option<i64>,
    #[serde(rename = "Imported")]
    pub imported: Option<bool>,
    #[serde(rename = "AllowImportedKeyRotation")]
    pub allow_imported_key_rotation: Option<bool>,
    pub soft_deleted: Option<bool>,
}

/// When a backup was taken.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Info<'a> {
    #[serde(borrow)]
    time: Option<Cow<'a, str>>,
    version: Option<i64>,
}

impl Info<'_> {
    /// As stored.
    pub fn passage(&self) -> Option<Passage> {
        let time = parse_time(self.time.as_deref()?)?;
        Some(Passage { time, version: u32::try_from(self.version?).ok()? })
    }
}

/// All versions of a key.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Archive<'a> {
    /// The entry at `i` is of version `i + min_available_version`.
    #[serde(borrow)]
    pub keys: Option<Vec<Entry<'a>>>,
}

/// A version in a backup.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Entry<'a> {
    #[serde(borrow)]
    pub(super) key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) hmac_key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) time: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) ec_x: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) ec_y: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) ec_d: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) rsa_key: Option<RsaNumbers<'a>>,
    #[serde(borrow)]
    pub(super) rsa_public_key: Option<RsaNumbers<'a>>,
    #[serde(borrow)]
    pub(super) public_key: Option<Cow<'a, str>>,
    pub(super) convergent_version: Option<i64>,
    pub(super) creation_time: Option<i64>,
    #[serde(borrow)]
    pub(super) certificate_chain: Option<Vec<Cow<'a, str>>>,
    pub(super) sos_encryptions: Option<u64>,
}

impl<'a> Entry<'a> {
    /// A version of the very first layout, which had one key.
    pub fn of_key(key: Cow<'a, str>) -> Self {
        Self { key: Some(key), ..Self::default() }
    }

    /// Whether there is anything in it: archives begin with a place for version 0.
    pub fn is_empty(&self) -> bool {
        let no_text = |text: &Option<Cow<'_, str>>| text.as_deref().unwrap_or_default().is_empty();
        no_text(&self.key)
            && no_text(&self.public_key)
            && !present(self.ec_x)
            && self.rsa_key.is_none()
            && self.rsa_public_key.is_none()
    }
}

pub(super) fn parse_time(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    // The zero time of the other server's language stands for none.
    (time.year() > 1).then(|| nanos(time))
}
