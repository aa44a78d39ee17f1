//! The HSMs of a cluster as `sys/sos/seals` shows them.

use std::sync::Arc;

use serde::Serialize;

use super::look::Opens;
use super::record::{MemberRecord, SealIntent, SealRecord, Wrapper};
use super::renewal::AwaitedHsm;
use super::{Seal, SealError, SealType};
use crate::hsm::{Member, Status};
use crate::zones::{Way, Zones};

/// One HSM, enrolled or only configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SealListing {
    /// The name of its stanza.
    pub name: String,
    /// Whether it wraps the root key and holds the cluster's keys.
    pub enrolled: bool,
    /// `ready`, `starting`, `not-configured`, or one of the words of `sys/seal-status` for why it cannot be used.
    pub state: &'static str,
    /// What the log says about that; empty when it is ready.
    pub detail: String,
    /// Whether its stanza says `disabled = true`: it opens what it sealed and gets nothing new.
    pub disabled: bool,
    /// The cluster's objects on it carry `sos/<key_label>/…`.
    pub key_label: String,
    /// Label of the token; empty while it is away.
    pub token_label: String,
    /// Serial number of the token; empty while it is away.
    pub token_serial: String,
    /// The module, as it names itself; empty while it is away.
    pub module: String,
    /// CKA_ID of its seal key, in hexadecimal; empty when it is not enrolled.
    pub seal_key: String,
    /// Whether it has a transport key, by which new master keys reach it.
    pub transport_key: bool,
    /// What it lacks: zone master keys, its seal key, a new root key.
    pub pending: Vec<PendingListing>,
    /// Interrupted work that is finished when the HSM is there: `add`, `remove`, `rewrap`, `transport`; else empty.
    pub unfinished: String,
}

/// What an HSM does not hold yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PendingListing {
    /// `zone/vN` for a zone master key, `seal key`, or `new root key` (after new shares; see `sys/rekey`).
    pub key: String,
    /// How it gets there: `by-itself` when the HSM is ready, `with-shares` by `sos seal add`,
    /// `with-rewrap` by `sos seal rewrap`, `never` as there is no copy.
    pub way: &'static str,
}

/// `GET sys/sos/seals`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SealsResponse {
    /// Every HSM, enrolled ones first.
    pub seals: Vec<SealListing>,
    /// How many shares there are.
    pub shares: u8,
    /// How many of them open the root key.
    pub threshold: u8,
    /// Whether the shares also bring the zone master keys back.
    pub escrow: bool,
    /// Whether enrolling another HSM needs the shares.
    pub shares_needed: bool,
    /// The HSMs for which the renewal of the root key waits that belongs to the latest new shares; null when it is done.
    /// Until then the shares before them open the store as it is today, with a copy of the store from their time.
    pub root_key_renewal_awaits: Option<Vec<AwaitedHsm>>,
}

impl Seal {
    /// `GET sys/sos/seals`. Asks the HSMs that are ready which copies of the root key they open.
    pub async fn list_hsms(&self, zones: &Zones) -> Result<SealsResponse, SealError> {
        let (record, version) = self.open_record()?;
        self.look_around(&record, version, true).await;
        let awaited = self.awaited_for_renewal()?;
        let unfinished = SealIntent::all(self.barrier())?;
        let unfinished = |name: &str| {
            let intent = unfinished.iter().find(|(_, intent, _)| intent.member == name);
            intent.map(|(_, intent, _)| intent.action.clone()).unwrap_or_default()
        };
        let members = self.group().map(|group| group.members()).unwrap_or_default();
        let mut seals = Vec::new();
        for (name, key_label, seal_key) in wrappers(&record) {
            let member = members.iter().find(|member| member.name == name);
            let mut pending = pending(zones, name)?;
            if member.is_some_and(|member| matches!(self.opens(member), Some(Opens::Nothing(_)))) {
                let way = if self.opened_by_another(name) { "with-rewrap" } else { "with-shares" };
                pending.insert(0, PendingListing { key: SEAL_KEY.into(), way });
            }
            if awaited.iter().flatten().any(|hsm| hsm.name == name) {
                pending.push(PendingListing { key: NEW_ROOT_KEY.into(), way: "by-itself" });
            }
            let transport = MemberRecord::load(self.barrier(), name)?.is_some_and(|record| record.transport.is_some());
            let listing = SealListing { enrolled: true, seal_key, transport_key: transport, pending, ..blank(name, key_label) };
            seals.push(SealListing { unfinished: unfinished(name), ..with_state(listing, member) });
        }
        for member in members.iter().filter(|member| record.hsm_blob(&member.name).is_none()) {
            let listing = blank(&member.name, self.label_of(member));
            seals.push(SealListing { unfinished: unfinished(&member.name), ..with_state(listing, Some(member)) });
        }
        Ok(SealsResponse {
            seals,
            shares: record.shares,
            threshold: record.threshold,
            escrow: record.escrow.is_some(),
            shares_needed: record.seal_type == SealType::Shamir || zones.in_escrow()?,
            root_key_renewal_awaits: awaited,
        })
    }

    /// Whether another HSM was seen to open the root key.
    fn opened_by_another(&self, name: &str) -> bool {
        let members = self.group().map(|group| group.members()).unwrap_or_default();
        members.iter().any(|member| member.name != name && matches!(self.opens(member), Some(Opens::Copy(_))))
    }

    /// Whether the HSM was seen to lack a seal key that opens its copy of the root key.
    pub fn lacks_seal_key(&self, name: &str) -> bool {
        self.known_record().is_ok_and(|known| known.is_some_and(|(record, _)| record.hsm_blob(name).is_some()))
            && self.misses_seal_key(name)
    }

    /// The same of an HSM that is known to be enrolled.
    pub(super) fn misses_seal_key(&self, name: &str) -> bool {
        let member = self.group().and_then(|group| group.member(name));
        member.is_some_and(|member| matches!(self.opens(&member), Some(Opens::Nothing(_))))
    }
}

/// What [`PendingListing`] calls a missing seal key.
const SEAL_KEY: &str = "seal key";
/// What [`PendingListing`] calls a root key that waits to be renewed.
const NEW_ROOT_KEY: &str = "new root key";

fn wrappers(record: &SealRecord) -> impl Iterator<Item = (&str, &str, String)> {
    record.wrappers.iter().filter_map(|wrapper| match wrapper {
        Wrapper::Hsm { name, key_label, sealed } => Some((name.as_str(), key_label.as_str(), sealed.key.to_string())),
        Wrapper::Shares { .. } => None,
    })
}

fn blank(name: &str, key_label: &str) -> SealListing {
    SealListing {
        name: name.to_owned(),
        enrolled: false,
        state: "not-configured",
        detail: String::new(),
        disabled: false,
        key_label: key_label.to_owned(),
        token_label: String::new(),
        token_serial: String::new(),
        module: String::new(),
        seal_key: String::new(),
        transport_key: false,
        pending: Vec::new(),
        unfinished: String::new(),
    }
}

fn with_state(mut listing: SealListing, member: Option<&Arc<Member>>) -> SealListing {
    let Some(member) = member else { return listing };
    listing.disabled = member.disabled;
    match member.hsm.status() {
        Status::Ready(facts) => {
            listing.state = "ready";
            listing.token_label.clone_from(&facts.label);
            listing.token_serial.clone_from(&facts.serial);
            listing.module.clone_from(&facts.module);
        }
        Status::Starting => listing.state = "starting",
        Status::Down { reason, detail } => (listing.state, listing.detail) = (reason.word(), detail),
    }
    listing
}

fn pending(zones: &Zones, name: &str) -> Result<Vec<PendingListing>, SealError> {
    let word = |way| match way {
        Way::Transport => "by-itself",
        Way::Escrow => "with-shares",
        Way::None => "never",
    };
    let pending = zones.pending(name)?.into_iter();
    Ok(pending.map(|key| PendingListing { key: format!("{}/v{}", key.zone, key.version), way: word(key.way) }).collect())
}
