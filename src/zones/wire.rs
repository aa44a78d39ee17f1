//! Request and response bodies of `sys/sos/zones`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Place, RewrapProgress, ZoneInfo};

/// `GET sys/sos/zones/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZoneResponse {
    /// The zone.
    pub name: String,
    /// The master key version that wraps new keys.
    pub current_version: u32,
    /// Age in seconds after which the master key is rotated; 0 for never.
    pub rotation_period: i64,
    /// Every version of the master key.
    pub versions: BTreeMap<u32, VersionResponse>,
    /// How far re-wrapping under the current version is; null before it began.
    pub rewrap: Option<RewrapProgress>,
}

/// One version of a master key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VersionResponse {
    /// CKA_ID, in hexadecimal.
    pub id: String,
    /// Where it lives.
    pub place: Place,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// CKA_LABEL on the token; empty for a software key.
    pub label: String,
    /// Proves which key it is; empty for a software key.
    pub check_value: String,
    /// Whether the escrow has a copy.
    pub escrow: bool,
}

impl From<ZoneInfo> for ZoneResponse {
    fn from(info: ZoneInfo) -> Self {
        let ZoneInfo { zone, rewrap } = info;
        let current_version = zone.current().map_or(0, |version| version.version);
        // Progress towards an older version says nothing about the current one.
        let rewrap = rewrap.filter(|progress| progress.target_version == current_version);
        let versions = zone.versions.into_iter().map(|version| {
            let shown = VersionResponse {
                id: version.id.to_string(),
                place: version.place,
                created: version.created,
                label: version.label,
                check_value: version.check_value,
                escrow: version.escrow.is_some(),
            };
            (version.version, shown)
        });
        Self { name: zone.name, current_version, rotation_period: zone.rotation_period, versions: versions.collect(), rewrap }
    }
}
