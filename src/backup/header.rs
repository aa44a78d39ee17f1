//! What stands at the head of a backup: whose it is, from when, and what opens it. Nothing in it is secret.
//!
//! ```json
//! {"format":1,"created":"2026-11-27T04:00:00Z","sequence":4711,"sos_version":"0.1.0","storage_type":"sled",
//!  "cluster_id":"…","cluster_name":"…",
//!  "needs":{"seal_type":"pkcs11","shares":5,"threshold":3,
//!           "hsms":[{"key_label":"production","seal_key":"<CKA_ID>","mechanism":"…"}],
//!           "zones":[{"zone":"default","version":1,"key":"<CKA_ID>","in_hsm":true,"escrowed":true}],
//!           "hsm_only":[{"key":"transit/stays v1","object":"<CKA_ID>"}]}}
//! ```

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    hsm::KeyId,
    seal::{SealRecord, Wrapper},
    storage::Version,
    wire::time::{parse_rfc3339, rfc3339},
    zones::{Place, ZoneRecord},
};

/// The archive format that this version writes.
pub const FORMAT: u32 = 1;

/// The last commit that a backup may name. No store gets there, and numbers must be left behind it: a restored store goes
/// on above.
pub const LAST: Version = 1 << 62;

/// The head of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Layout of the archive, [`FORMAT`].
    pub format: u32,
    /// When the snapshot was taken, RFC 3339.
    pub created: String,
    /// The last commit that is in it.
    pub sequence: Version,
    /// The program that made it.
    pub sos_version: String,
    /// Kind of the store it was taken from; it can be restored into any.
    pub storage_type: String,
    /// Identity of the cluster.
    pub cluster_id: String,
    /// Name of the cluster.
    pub cluster_name: String,
    /// What opens it.
    pub needs: Needs,
}

/// Keys and shares without which a backup stays closed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// `shamir` or `pkcs11`.
    pub seal_type: String,
    /// How many shares were given out.
    pub shares: u8,
    /// How many of them open it.
    pub threshold: u8,
    /// Seal keys; any one of them opens it without shares.
    pub hsms: Vec<HsmNeed>,
    /// Zone master keys.
    pub zones: Vec<ZoneNeed>,
    /// Transit key versions of level `hsm-only`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hsm_only: Vec<HsmOnlyNeed>,
}

/// A Transit key version that is an object in one HSM and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HsmOnlyNeed {
    /// Mount, key and version for people, as `transit/stays v1`.
    pub key: String,
    /// CKA_ID of the object.
    pub object: KeyId,
}

/// A seal key in an HSM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HsmNeed {
    /// The objects of the cluster carry `sos/<key_label>/…`.
    pub key_label: String,
    /// CKA_ID of the seal key.
    pub seal_key: KeyId,
}

/// A version of a zone's master key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneNeed {
    /// The zone.
    pub zone: String,
    /// The version of its master key.
    pub version: u32,
    /// CKA_ID, or the identity of a software key.
    pub key: KeyId,
    /// Whether the key is an object in the HSM; software keys are in the backup itself.
    pub in_hsm: bool,
    /// Whether the shares can bring it into another HSM.
    pub escrowed: bool,
}

impl Header {
    /// The head of a backup that is taken now from the cluster of `seal`. `hsm_only` are its keys of that level, name and
    /// CKA_ID.
    pub fn new(
        seal: &SealRecord,
        zones: &[ZoneRecord],
        hsm_only: Vec<(String, KeyId)>,
        sequence: Version,
        storage_type: &str,
        now: OffsetDateTime,
    ) -> Self {
        Self {
            format: FORMAT,
            created: rfc3339(now.replace_nanosecond(0).unwrap_or(now)),
            sequence,
            sos_version: env!("CARGO_PKG_VERSION").to_owned(),
            storage_type: storage_type.to_owned(),
            cluster_id: seal.cluster_id.clone(),
            cluster_name: seal.cluster_name.clone(),
            needs: Needs::of(seal, zones, hsm_only),
        }
    }

    /// When the snapshot was taken.
    pub fn created(&self) -> Option<OffsetDateTime> {
        parse_rfc3339(&self.created)
    }
}

impl Needs {
    fn of(seal: &SealRecord, zones: &[ZoneRecord], hsm_only: Vec<(String, KeyId)>) -> Self {
        let hsm = |wrapper: &Wrapper| match wrapper {
            Wrapper::Hsm { key_label, sealed, .. } => Some(HsmNeed { key_label: key_label.clone(), seal_key: sealed.key }),
            Wrapper::Shares { .. } => None,
        };
        let versions = zones.iter().flat_map(|zone| zone.versions.iter().map(move |version| (zone, version)));
        let zones = versions.map(|(zone, version)| ZoneNeed {
            zone: zone.name.clone(),
            version: version.version,
            key: version.id,
            in_hsm: version.place == Place::Hsm,
            escrowed: version.escrow.is_some(),
        });
        Self {
            seal_type: seal.seal_type.word().to_owned(),
            shares: seal.shares,
            threshold: seal.threshold,
            hsms: seal.wrappers.iter().filter_map(hsm).collect(),
            zones: zones.collect(),
            hsm_only: hsm_only.into_iter().map(|(key, object)| HsmOnlyNeed { key, object }).collect(),
        }
    }

    /// What is lost for good where the HSMs hold only these objects: keys that nothing else has.
    pub fn lost_without(&self, held: &HashSet<KeyId>) -> Vec<String> {
        let alone = self.zones.iter().filter(|zone| zone.in_hsm && !zone.escrowed && !held.contains(&zone.key));
        let masters = alone.map(|zone| format!("zone master key {}/v{} (not in escrow)", zone.zone, zone.version));
        let keys = self.hsm_only.iter().filter(|need| !held.contains(&need.object)).map(|need| need.key.clone());
        masters.chain(keys).collect()
    }

    /// One sentence for people: what is needed to open the backup.
    pub fn sentence(&self) -> String {
        let shares = format!("{} of {} shares", self.threshold, self.shares);
        let hsms: Vec<_> =
            self.hsms.iter().map(|hsm| format!("seal key {} (key_label {:?})", hsm.seal_key, hsm.key_label)).collect();
        let open = if hsms.is_empty() { shares } else { format!("an HSM with {}, or {shares}", hsms.join(" or ")) };
        let kept: Vec<_> = self.zones.iter().filter(|zone| zone.in_hsm).collect();
        let only = match self.hsm_only.as_slice() {
            [] => String::new(),
            keys => {
                let names: Vec<_> = keys.iter().map(|need| need.key.clone()).collect();
                format!("; {} hsm-only key version(s), which live in the HSM alone: {}", names.len(), some_of(&names))
            }
        };
        if kept.is_empty() {
            return open + &only;
        }
        let name = |zone: &&ZoneNeed| format!("{}/v{}", zone.zone, zone.version);
        let lost: Vec<_> = kept.iter().filter(|zone| !zone.escrowed).map(name).collect();
        let masters = format!("{open}; {} zone master key(s) in the HSM", kept.len());
        match lost.is_empty() {
            true => format!("{masters}, all of them in escrow{only}"),
            false => format!("{masters}, of which not in escrow: {}{only}", lost.join(", ")),
        }
    }
}

/// Names, of which the first are named and the rest is counted.
pub fn some_of(names: &[String]) -> String {
    const NAMED: usize = 20;
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
