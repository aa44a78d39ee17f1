//! Master keys on every enrolled HSM.
//!
//! The HSM that makes a master key wraps it to the transport keys of the others, and the copies are stored with the zone.
//! An HSM takes in what it lacks as soon as it is ready, at the next tick. What was made before an HSM was enrolled has
//! no copy for it (a master key on a token cannot be wrapped any more); that comes from the escrow, with the shares.

use std::sync::Arc;

use super::record::{EscrowCopy, TransportCopy, ZoneRecord, zone_path};
use super::{MasterVersion, Place, ZoneError, Zones, master_key_label};
use crate::barrier::{BarrierError, Entry, Txn};
use crate::hsm::{HsmError, KeyId, Member};
use crate::seal::MemberRecord;
use crate::secret::SecretBytes;
use crate::storage::StorageError;

/// How a master key can still reach an HSM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// By a stored transport copy, as soon as the HSM is ready.
    Transport,
    /// From the escrow, with the shares.
    Escrow,
    /// Not at all: there is no copy.
    None,
}

/// A master key that an enrolled HSM does not hold yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingKey {
    /// The zone.
    pub zone: String,
    /// The version of its master key.
    pub version: u32,
    /// How it gets there.
    pub way: Way,
}

/// A master key that lives in HSMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterKey {
    /// `zone/vN`.
    pub name: String,
    /// CKA_ID.
    pub id: KeyId,
    /// Whether the escrow has a copy.
    pub in_escrow: bool,
    /// What proves that an object is this key, in hexadecimal.
    check_value: String,
}

/// What was put onto an HSM, as `zone/vN`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// Was there already.
    pub present: Vec<String>,
    /// Was put there now.
    pub imported: Vec<String>,
    /// Has no copy that could be used.
    pub missing: Vec<String>,
}

/// Opens an escrow copy; the seal has the shares for it.
pub type OpenEscrow<'a> = &'a (dyn Fn(&EscrowCopy) -> Result<SecretBytes, String> + Send + Sync);

impl Zones {
    /// The master keys that an enrolled HSM lacks, as far as is known. With one HSM there is nothing to compare.
    pub fn pending(&self, member: &str) -> Result<Vec<PendingKey>, ZoneError> {
        let transport = MemberRecord::load(&self.barrier, member)?.and_then(|record| record.transport).map(|key| key.id);
        let mut pending = Vec::new();
        for (zone, version) in self.in_hsm()? {
            if version.held_by.iter().any(|name| name == member) {
                continue;
            }
            let way = match (copy_for(&version, transport), &version.escrow) {
                (Some(_), _) => Way::Transport,
                (None, Some(_)) => Way::Escrow,
                (None, None) => Way::None,
            };
            pending.push(PendingKey { zone, version: version.version, way });
        }
        Ok(pending)
    }

    /// Every master key that lives in HSMs.
    pub fn master_keys(&self) -> Result<Vec<MasterKey>, ZoneError> {
        let one = |(zone, version): (String, MasterVersion)| MasterKey {
            name: format!("{zone}/v{}", version.version),
            id: version.id,
            in_escrow: version.escrow.is_some(),
            check_value: version.check_value,
        };
        Ok(self.in_hsm()?.into_iter().map(one).collect())
    }

    /// Whether one of these HSMs holds the key at this moment: they are asked, and what was seen or noted earlier does not
    /// count. An error when none proves it and one of them does not answer.
    pub async fn is_held_now(&self, key: &MasterKey, holders: &[Arc<Member>]) -> Result<bool, ZoneError> {
        let mut failed = None;
        for member in holders {
            match member.hsm.master_key_check_value(key.id).await {
                Ok(found) if hex::encode(found) == key.check_value => return Ok(true),
                Ok(_) | Err(HsmError::KeyMissing(_)) => self.verified.remove(&member.name, key.id),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(false), |error| Err(error.into()))
    }

    /// Forgets which master keys were seen where, so that the next [`Zones::spread`] looks at all of them.
    pub fn distrust(&self) {
        self.verified.clear();
    }

    /// Whether there is a master key in HSMs that the escrow has a copy of.
    pub fn in_escrow(&self) -> Result<bool, ZoneError> {
        Ok(self.in_hsm()?.iter().any(|(_, version)| version.escrow.is_some()))
    }

    /// Puts every master key that a ready HSM lacks onto it: by transport copies, and from escrow where `open` is given.
    pub async fn bring(&self, member: &Member, open: Option<OpenEscrow<'_>>) -> Result<Brought, ZoneError> {
        let transport = MemberRecord::load(&self.barrier, &member.name)?.and_then(|record| record.transport).map(|key| key.id);
        let mut brought = Brought::default();
        for (zone, version) in self.in_hsm()? {
            let name = format!("{zone}/v{}", version.version);
            let brings = async {
                Ok(match self.is_on(member, &zone, &version).await? {
                    true => &mut brought.present,
                    false if self.put_on(member, &zone, &version, transport, open).await? => &mut brought.imported,
                    false => &mut brought.missing,
                })
            };
            match brings.await {
                Ok(list) => list.push(name),
                // One damaged copy must not keep the others from their HSM.
                Err(error @ ZoneError::Escrow(_)) => {
                    tracing::error!(hsm = %member.name, key = %name, %error, "a master key cannot be put onto this HSM");
                    brought.missing.push(name);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(brought)
    }

    /// Gives every ready HSM what it lacks and notes who holds what; part of [`Zones::tick`]. A failure with one HSM or
    /// key is logged and does not stop the others.
    pub async fn spread(&self) -> Result<(), ZoneError> {
        let Some(group) = &self.hsm else { return Ok(()) };
        for member in group.ready() {
            let record = MemberRecord::load(&self.barrier, &member.name)?;
            // A disabled HSM is looked at and gets nothing new.
            let transport = record.filter(|_| !member.disabled).and_then(|record| record.transport).map(|key| key.id);
            for (zone, version) in self.in_hsm()? {
                let noted = version.held_by.contains(&member.name);
                if (noted && self.verified.contains(&member, version.id)) || (member.disabled && !noted) {
                    continue;
                }
                let late = |error: &ZoneError| {
                    tracing::warn!(hsm = %member.name, %zone, version = version.version, %error, "a master key is not on this HSM yet");
                };
                let there = match self.is_on(&member, &zone, &version).await {
                    Ok(there) => there,
                    Err(error @ ZoneError::WrongKey { .. }) => {
                        late(&error);
                        false
                    }
                    // Whether it is there, an HSM that fails does not say.
                    Err(error) => {
                        late(&error);
                        continue;
                    }
                };
                let holds = there
                    || self.put_on(&member, &zone, &version, transport, None).await.unwrap_or_else(|error| {
                        late(&error);
                        false
                    });
                if noted != holds {
                    self.note_holder(&zone, version.id, &member.name, holds).await?;
                }
            }
        }
        Ok(())
    }

    /// Forgets that a removed HSM held anything.
    pub async fn forget_holder(&self, member: &str) -> Result<(), ZoneError> {
        self.verified.forget(member);
        for (zone, version) in self.in_hsm()? {
            if version.held_by.iter().any(|name| name == member) || version.copies.iter().any(|copy| copy.member == member) {
                self.note_holder(&zone, version.id, member, false).await?;
            }
        }
        Ok(())
    }

    /// Whether the HSM holds the key: it is asked.
    async fn is_on(&self, member: &Member, zone: &str, version: &MasterVersion) -> Result<bool, ZoneError> {
        let before = member.facts();
        match member.hsm.master_key_check_value(version.id).await {
            Ok(found) if hex::encode(found) == version.check_value => {
                self.verified.insert(member, before, version.id);
                Ok(true)
            }
            Ok(_) => Err(wrong_key(zone, version, "another key has its CKA_ID")),
            Err(HsmError::KeyMissing(_)) => {
                self.verified.remove(&member.name, version.id);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Puts a key that the HSM lacks onto it; false when there is no copy for it.
    async fn put_on(
        &self,
        member: &Member,
        zone: &str,
        version: &MasterVersion,
        transport: Option<KeyId>,
        open: Option<OpenEscrow<'_>>,
    ) -> Result<bool, ZoneError> {
        let before = member.facts();
        let label = master_key_label(member.key_label.as_deref().unwrap_or(&self.key_label), zone, version.version);
        let check = match (copy_for(version, transport), open, &version.escrow) {
            (Some(copy), _, _) => {
                member.hsm.accept_master_key(copy.transport, &label, version.id, copy.mechanism, &copy.blob).await?
            }
            (None, Some(open), Some(copy)) => {
                let material = open(copy).map_err(ZoneError::Escrow)?;
                member.hsm.import_master_key(&label, version.id, &material).await?
            }
            _ => return Ok(false),
        };
        if hex::encode(check) != version.check_value {
            member.hsm.destroy(version.id).await?;
            return Err(wrong_key(zone, version, "the copy is another key"));
        }
        tracing::info!(hsm = %member.name, %zone, version = version.version, "a master key was put onto this HSM");
        self.verified.insert(member, before, version.id);
        Ok(true)
    }

    async fn note_holder(&self, zone: &str, id: KeyId, member: &str, holds: bool) -> Result<(), ZoneError> {
        let _changing = self.changing.lock().await;
        let (mut record, entry): (ZoneRecord, Entry) = self.stored(zone)?;
        for version in record.versions.iter_mut().filter(|version| version.id == id) {
            version.held_by.retain(|name| name != member);
            if holds {
                version.held_by.push(member.to_owned());
            }
        }
        let path = zone_path(zone);
        let txn = Txn::new().check(&path, Entry::unchanged(Some(&entry))).put(&path, record.encode()?);
        match self.barrier.commit(txn).await {
            // Changed meanwhile: the next tick looks again.
            Ok(_) | Err(BarrierError::Storage(StorageError::Conflict { .. })) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn in_hsm(&self) -> Result<Vec<(String, MasterVersion)>, ZoneError> {
        let mut all = Vec::new();
        for zone in self.list()? {
            let versions = self.stored(&zone)?.0.versions.into_iter().filter(|version| version.place == Place::Hsm);
            all.extend(versions.map(|version| (zone.clone(), version)));
        }
        Ok(all)
    }
}

/// The copy that this HSM's present transport key opens.
fn copy_for(version: &MasterVersion, transport: Option<KeyId>) -> Option<&TransportCopy> {
    version.copies.iter().find(|copy| Some(copy.transport) == transport)
}

fn wrong_key(zone: &str, version: &MasterVersion, found: &'static str) -> ZoneError {
    ZoneError::WrongKey { zone: zone.to_owned(), version: version.version, found }
}
