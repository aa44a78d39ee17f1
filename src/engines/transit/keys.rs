//! `keys` and `keys/:name…`.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Transit,
    alg::{HMAC_KEY_BYTES, KeyType},
    b64,
    damaged::is_damaged,
    gate::Going,
    lifecycle::NewKey,
    protect::{Demands, Level, parse_level},
    record::{KeyRecord, Passage, VersionLine, auto_path},
    sign,
    store::{Change, Decision, Key},
};
use crate::{
    barrier::Txn,
    core::{engine::Call, failure::Failure, reply::Reply},
    params,
    wire::field::Seconds,
};

params! {
    /// Parameters of a list.
    pub struct ListParams {
        /// Names after this one.
        pub after: Option<String>,
        /// At most so many names.
        pub limit: Option<i64>,
    }
}

params! {
    /// The name alone.
    pub struct NameParams {
        /// Name of the key.
        pub name: String,
    }
}

params! {
    /// Parameters of reading a key.
    pub struct ReadParams {
        /// Name of the key.
        pub name: String,
        /// Context in base64, to show derived public keys.
        pub context: String,
    }
}

params! {
    /// Parameters of making a key.
    pub struct CreateParams {
        /// Name of the key.
        pub name: String,
        /// Type of the key; aes256-gcm96 by default.
        pub kind as "type": Option<String>,
        /// Whether a context derives the key in use.
        pub derived: bool,
        /// Whether equal plaintexts and contexts give equal ciphertexts.
        pub convergent_encryption: bool,
        /// Whether the key may be exported.
        pub exportable: bool,
        /// Whether plaintext backups may be taken.
        pub allow_plaintext_backup: bool,
        /// Context in base64, to show derived public keys.
        pub context: String,
        /// Time between automatic rotations; 0 is off.
        pub auto_rotate_period: Seconds,
        /// Bytes of an HMAC key.
        pub key_size: i64,
        /// `hsm`, `hsm-only` or `software`.
        pub protection_level: Option<String>,
    }
}

params! {
    /// Parameters of configuring a key.
    pub struct ConfigParams {
        /// Name of the key.
        pub name: String,
        /// Oldest version that decrypts.
        pub min_decryption_version: Option<i64>,
        /// Oldest version that may be named for encryption; 0 is no bound.
        pub min_encryption_version: Option<i64>,
        /// Whether the key may be deleted.
        pub deletion_allowed: Option<bool>,
        /// Whether the key may be exported; cannot be taken back.
        pub exportable: Option<bool>,
        /// Whether plaintext backups may be taken; cannot be taken back.
        pub allow_plaintext_backup: Option<bool>,
        /// Time between automatic rotations; 0 is off.
        pub auto_rotate_period: Option<Seconds>,
        /// `hsm` moves the key into the HSM; `software` takes an exportable one out.
        pub protection_level: Option<String>,
    }
}

params! {
    /// Parameters of trimming a key.
    pub struct TrimParams {
        /// Name of the key.
        pub name: String,
        /// Versions below are deleted.
        pub min_available_version: Option<i64>,
    }
}

const SHORT_PERIOD: &str = "auto rotate period must be 0 to disable or at least an hour";

/// A `protection_level` parameter; `null` and nothing name none.
pub fn level_param(text: Option<&str>) -> Result<Option<Level>, Failure> {
    text.filter(|text| !text.is_empty()).map(|text| parse_level("protection_level", text)).transpose()
}

/// Refuses a request that would make a key at a level by name where the key is there already at another: whoever named it must
/// not believe that it holds.
pub fn check_named(key: &Key, name: &str, named: Option<Level>) -> Result<(), Failure> {
    match named.filter(|named| *named != key.record.level) {
        None => Ok(()),
        Some(named) => {
            // What is on one side only can be had by no change of the key.
            let change = match (key.record.level, named) {
                (Level::HsmOnly, _) | (_, Level::HsmOnly) => String::new(),
                _ => format!(" change it with keys/{name}/config,"),
            };
            Err(Failure::invalid(format!(
                "the key {name:?} exists and has protection_level {:?}, not {:?}: leave the level out to use it as it is,{change} or make a key of another name",
                key.record.level.word(),
                named.word()
            )))
        }
    }
}

/// LIST `keys`.
pub async fn list(engine: &Transit, call: &Call<'_>, _: ListParams) -> Result<Reply, Failure> {
    let (after, limit) = call.page()?;
    let names = engine.store.view.list_long("key/", after.as_deref(), limit).await?;
    Reply::keys(names.iter().filter(|name| *name != super::import::HIDDEN))
}

/// POST `keys/:name`.
pub async fn create(engine: &Transit, _: &Call<'_>, params: CreateParams) -> Result<Reply, Failure> {
    let period = params.auto_rotate_period.0;
    if period != 0 && period < 3600 {
        return Err(Failure::invalid(SHORT_PERIOD));
    }
    if params.convergent_encryption && !params.derived {
        return Err(Failure::invalid("convergent encryption requires derivation to be enabled"));
    }
    let named = params.kind.as_deref().unwrap_or("aes256-gcm96");
    let kind = KeyType::named(named).ok_or_else(|| Failure::invalid(format!("unknown key type {named}")))?;
    let key_size = key_size(kind, params.key_size)?;
    let level = level_param(params.protection_level.as_deref())?;
    if let Some(key) = engine.store.key(&params.name)? {
        check_named(&key, &params.name, level)?;
        return reply(engine, &key);
    }
    let new = NewKey {
        kind,
        derived: params.derived,
        convergent: params.convergent_encryption,
        exportable: params.exportable,
        allow_plaintext_backup: params.allow_plaintext_backup,
        auto_rotate_period: period,
        level,
        key_size,
    };
    let (key, _) = engine.create(&params.name, &new).await?;
    // Another request may have made it meanwhile.
    check_named(&key, &params.name, level)?;
    reply(engine, &key)
}

/// The `key_size` of a request; 0 where it names none.
fn key_size(kind: KeyType, asked: i64) -> Result<u32, Failure> {
    if asked == 0 {
        return Ok(0);
    }
    if kind != KeyType::Hmac {
        return Err(Failure::invalid(format!("key_size is not valid for algorithm {}", kind.name())));
    }
    match u32::try_from(asked) {
        Ok(size) if usize::try_from(size).is_ok_and(|size| HMAC_KEY_BYTES.contains(&size)) => Ok(size),
        _ => Err(Failure::invalid(format!("invalid key_size {asked}"))),
    }
}

/// GET `keys/:name`.
pub async fn read(engine: &Transit, _: &Call<'_>, params: ReadParams) -> Result<Reply, Failure> {
    match engine.store.key(&params.name)? {
        Some(key) => {
            let context = b64::decode(&params.context).map_err(|_| Failure::invalid("failed to base64-decode context"))?;
            shown(engine, &key, sign::derived_public_keys(engine, &key, &context).await?)
        }
        None => Err(Failure::not_found()),
    }
}

/// DELETE `keys/:name`.
pub async fn delete(engine: &Transit, call: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    let name = params.name.as_str();
    match engine.delete(name).await {
        Ok(Ok(())) => Ok(Reply::empty()),
        Ok(Err(reason)) => Err(Failure::invalid(format!("error deleting policy {name}: {reason}"))),
        Err(failure) if is_damaged(&failure) && call.has_sudo()? => match engine.delete_damaged(name).await? {
            Some(told) => Ok(Reply::empty().with_warning(told)),
            None => Err(Failure::unavailable("the key can be read again; try again")),
        },
        Err(failure) => Err(failure),
    }
}

/// POST `keys/:name/rotate`.
pub async fn rotate(engine: &Transit, _: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    let key = engine.rotate(&params.name).await?;
    reply(engine, &key)
}

/// POST `keys/:name/trim`.
pub async fn trim(engine: &Transit, _: &Call<'_>, params: TrimParams) -> Result<Reply, Failure> {
    engine.existing(&params.name, "invalid key name")?;
    let bound = params.min_available_version.ok_or_else(|| Failure::invalid("missing min_available_version"))?;
    let key = engine.trim(&params.name, bound).await?.ok_or_else(|| Failure::invalid("invalid key name"))?;
    reply(engine, &key)
}

/// DELETE `keys/:name/soft-delete`.
pub async fn soft_delete(engine: &Transit, _: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    mark(engine, &params.name, true, "key was already marked as soft deleted").await
}

/// POST `keys/:name/soft-delete-restore`.
pub async fn soft_restore(engine: &Transit, _: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    mark(engine, &params.name, false, "key was already restored").await
}

async fn mark(engine: &Transit, name: &str, deleted: bool, already: &str) -> Result<Reply, Failure> {
    let (key, changed) = engine
        .change(name, move |key| {
            Box::pin(async move {
                let Some(key) = key.filter(|key| key.record.soft_deleted != deleted) else {
                    return Ok(Decision::Keep(false));
                };
                let record = KeyRecord { soft_deleted: deleted, ..key.record.clone() };
                Ok(Decision::Write(Change { record: Some(record), txn: Txn::new(), outcome: true }))
            })
        })
        .await?;
    let Some(key) = key else { return Ok(Reply::empty()) };
    engine.reschedule(&key);
    let answer = reply(engine, &key)?;
    Ok(if changed { answer } else { answer.with_warning(already) })
}

/// POST `keys/:name/config`.
/// Ends without effect once nobody waits for its answer.
pub async fn configure(engine: &Transit, call: &Call<'_>, params: ConfigParams) -> Result<Reply, Failure> {
    let level = level_param(params.protection_level.as_deref())?;
    let (params, going) = (&params, &Going::of(call, &engine.store.view));
    let (key, warning) =
        engine.change(&params.name, move |key| Box::pin(reconfigured(engine, params, level, key, going))).await?;
    let key = key.ok_or_else(|| Failure::unavailable("the key was deleted meanwhile"))?;
    engine.reschedule(&key);
    let answer = reply(engine, &key)?;
    Ok(match warning {
        Some(warning) => answer.with_warning(warning),
        None => answer,
    })
}

/// The key as the request wants it.
async fn reconfigured(
    engine: &Transit,
    params: &ConfigParams,
    level: Option<Level>,
    key: Option<Arc<Key>>,
    going: &Going,
) -> Result<Decision<Option<&'static str>>, Failure> {
    let missing = || Failure::invalid(format!("no existing key named {} could be found", params.name));
    let key = key.ok_or_else(missing)?;
    let mut record = key.record.clone();
    let warning = apply(&mut record, params)?;
    let mut txn = Txn::new();
    if let Some(level) = level.filter(|level| needs_move(&record, *level)) {
        txn = engine.change_level(&key.name, &mut record, level, txn, going).await?;
        going.check()?;
    }
    if record == key.record {
        return Ok(Decision::Keep(warning));
    }
    check_changed(engine, &key.record, &record)?;
    txn = match record.auto_rotate_period {
        0 => txn.delete(auto_path(&key.name)),
        _ => txn.put(auto_path(&key.name), Vec::new()),
    };
    Ok(Decision::Write(Change { record: Some(record), txn, outcome: warning }))
}

fn needs_move(record: &KeyRecord, level: Level) -> bool {
    record.level != level || record.versions.iter().any(|line| line.level != level)
}

/// Applies what the request names, in the order in which its mistakes are reported.
fn apply(record: &mut KeyRecord, params: &ConfigParams) -> Result<Option<&'static str>, Failure> {
    let mut warning = None;
    let latest = record.latest_version;
    if let Some(asked) = params.min_decryption_version {
        let too_high =
            || Failure::invalid(format!("cannot set min decryption version of {asked}, latest key version is {latest}"));
        if asked < 0 {
            return Err(Failure::invalid("min decryption version cannot be negative"));
        }
        if asked == 0 {
            warning = Some("since Vault 0.3, transit key numbering starts at 1; forcing minimum to 1");
        }
        let bound = u32::try_from(asked.max(1)).ok().filter(|bound| *bound <= latest).ok_or_else(too_high)?;
        record.min_decryption_version = bound;
    }
    if let Some(asked) = params.min_encryption_version {
        let too_high =
            || Failure::invalid(format!("cannot set min encryption version of {asked}, latest key version is {latest}"));
        if asked < 0 {
            return Err(Failure::invalid("min encryption version cannot be negative"));
        }
        record.min_encryption_version = u32::try_from(asked).ok().filter(|bound| *bound <= latest).ok_or_else(too_high)?;
    }
    let (encryption, decryption) = (record.min_encryption_version, record.min_decryption_version);
    if encryption > 0 && encryption < decryption {
        return Err(Failure::invalid(format!(
            "cannot set min encryption/decryption values; min encryption version of {encryption} must be greater than \
             or equal to min decryption version of {decryption}"
        )));
    }
    record.deletion_allowed = params.deletion_allowed.unwrap_or(record.deletion_allowed);
    // Once given, these two are never taken back.
    record.exportable |= params.exportable.unwrap_or(false);
    record.allow_plaintext_backup |= params.allow_plaintext_backup.unwrap_or(false);
    if let Some(Seconds(period)) = params.auto_rotate_period {
        if period != 0 && period < 3600 {
            return Err(Failure::invalid(SHORT_PERIOD));
        }
        record.auto_rotate_period = period;
    }
    Ok(warning)
}

/// What is judged only when something changes.
fn check_changed(engine: &Transit, before: &KeyRecord, record: &KeyRecord) -> Result<(), Failure> {
    if record.min_available_version > record.min_encryption_version {
        return Err(Failure::invalid("min encryption version should not be less than min available version"));
    }
    if record.min_available_version > record.min_decryption_version {
        return Err(Failure::invalid("min decryption version should not be less then min available version"));
    }
    let opened = (record.exportable && !before.exportable) || (record.allow_plaintext_backup && !before.allow_plaintext_backup);
    if opened && record.level == Level::HsmOnly {
        let demands: Demands = Transit::demands(record);
        if let Some(reason) = engine.store.protection.objection(Level::HsmOnly, &engine.mount.zone, demands)? {
            return Err(Failure::invalid(reason));
        }
    }
    Ok(())
}

/// A key as the API shows it.
#[derive(Serialize)]
struct KeyData<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: KeyType,
    protection_level: Level,
    zone: &'a str,
    /// Levels of versions that differ from the key's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    protection_levels: BTreeMap<u32, Level>,
    /// Versions in the HSM whose material was outside before, and since when they are in it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    moved_into_hsm: BTreeMap<u32, String>,
    derived: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    kdf: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kdf_mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    convergent_encryption: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    convergent_encryption_version: Option<i32>,
    deletion_allowed: bool,
    min_available_version: u32,
    min_decryption_version: u32,
    min_encryption_version: u32,
    latest_version: u32,
    exportable: bool,
    allow_plaintext_backup: bool,
    supports_encryption: bool,
    supports_decryption: bool,
    supports_signing: bool,
    supports_derivation: bool,
    auto_rotate_period: i64,
    imported_key: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    imported_key_allow_rotation: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup_info: Option<PassageData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restore_info: Option<PassageData>,
    soft_deleted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<Versions<'a>>,
}

#[derive(Serialize)]
struct PassageData {
    time: String,
    version: u32,
}

impl From<&Passage> for PassageData {
    fn from(passage: &Passage) -> Self {
        Self { time: rfc3339(passage.time), version: passage.version }
    }
}

/// The versions of a key as the API shows them.
#[derive(Serialize)]
#[serde(untagged)]
enum Versions<'a> {
    /// Unix seconds.
    Times(BTreeMap<u32, i64>),
    /// Asymmetric keys.
    Public(BTreeMap<u32, PublicVersion<'a>>),
}

#[derive(Serialize)]
struct PublicVersion<'a> {
    name: &'static str,
    public_key: Cow<'a, str>,
    certificate_chain: String,
    creation_time: String,
}

fn versions<'a>(record: &'a KeyRecord, mut derived: BTreeMap<u32, String>) -> Option<Versions<'a>> {
    let shown = record.versions.iter().filter(|line| line.version >= record.min_decryption_version);
    if record.kind == KeyType::Hmac {
        return None;
    }
    if !record.kind.is_asymmetric() {
        return Some(Versions::Times(shown.map(|line| (line.version, line.created.div_euclid(1_000_000_000))).collect()));
    }
    let public = |line: &'a VersionLine| match &line.public_key {
        _ if record.derived() => Cow::Owned(derived.remove(&line.version).unwrap_or_default()),
        Some(text) => Cow::Borrowed(text.as_str()),
        None => Cow::Borrowed(""),
    };
    let mut public = public;
    let lines = shown.map(|line| {
        let shown = PublicVersion {
            name: record.kind.version_name(),
            public_key: public(line),
            certificate_chain: pem_chain(&line.certificate_chain),
            creation_time: rfc3339(line.created),
        };
        (line.version, shown)
    });
    Some(Versions::Public(lines.collect()))
}

/// Certificates as PEM, one after the other.
pub fn pem_chain(chain: &[String]) -> String {
    chain.iter().map(|der| pem("CERTIFICATE", der)).collect::<Vec<_>>().join("\n")
}

/// A PEM block (RFC 7468) around base64, without a line break at its end.
pub fn pem(label: &str, base64: &str) -> String {
    let mut out = String::with_capacity(base64.len() * 65 / 64 + 64);
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = base64;
    while !rest.is_empty() {
        let (line, after) = rest.split_at_checked(64).unwrap_or((rest, ""));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(&format!("-----END {label}-----"));
    out
}

/// A time as the API prints it.
pub fn rfc3339(nanos: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

/// The answer that shows a key.
pub fn reply(engine: &Transit, key: &Arc<Key>) -> Result<Reply, Failure> {
    shown(engine, key, BTreeMap::new())
}

fn shown(engine: &Transit, key: &Arc<Key>, derived: BTreeMap<u32, String>) -> Result<Reply, Failure> {
    let record = &key.record;
    let mixed = record.versions.iter().any(|line| line.level != record.level);
    let levels = record.versions.iter().filter(|_| mixed).map(|line| (line.version, line.level));
    let moved = record.versions.iter().filter_map(|line| Some((line.version, rfc3339(line.moved_into_hsm?))));
    let kdf = record.kdf.map(|kdf| kdf.name());
    Reply::data(&KeyData {
        name: &key.name,
        kind: record.kind,
        protection_level: record.level,
        zone: &engine.mount.zone,
        protection_levels: levels.collect(),
        moved_into_hsm: moved.collect(),
        derived: record.derived(),
        kdf,
        kdf_mode: kdf.filter(|name| *name == "hmac-sha256-counter"),
        convergent_encryption: kdf.map(|_| record.convergent),
        convergent_encryption_version: record.convergent.then_some(record.convergent_version),
        deletion_allowed: record.deletion_allowed,
        min_available_version: record.min_available_version,
        min_decryption_version: record.min_decryption_version,
        min_encryption_version: record.min_encryption_version,
        latest_version: record.latest_version,
        exportable: record.exportable,
        allow_plaintext_backup: record.allow_plaintext_backup,
        supports_encryption: record.kind.supports_encryption(),
        supports_decryption: record.kind.supports_encryption(),
        supports_signing: record.kind.supports_signing(),
        supports_derivation: record.kind.supports_derivation(),
        auto_rotate_period: record.auto_rotate_period,
        imported_key: record.imported,
        imported_key_allow_rotation: record.imported.then_some(record.allow_imported_key_rotation),
        backup_info: record.backup.as_ref().map(PassageData::from),
        restore_info: record.restore.as_ref().map(PassageData::from),
        soft_deleted: record.soft_deleted,
        key_size: (record.key_size != 0).then_some(record.key_size),
        keys: versions(record, derived),
    })
}
