//! `backup/:name` and `restore`.

use std::{borrow::Cow, sync::Arc};

use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    Transit,
    alg::{HMAC_KEY_BYTES, KeyType, kdf::Kdf},
    b64,
    blob::{self, Blob, Entry, Policy, Written},
    export::Shown,
    gate::{FEW_VERSIONS, Going, Job},
    given::Given,
    keys::level_param,
    lifecycle::{SOFT_DELETED, nanos},
    protect::Level,
    record::{KeyRecord, Passage, auto_path, given_path},
    store::{Change, Decision, Key},
    turn::Turn,
    usage,
};
use crate::{
    barrier::Txn,
    core::{
        engine::Call,
        failure::{Failure, Kind},
        reply::Reply,
    },
    params,
    secret::SecretBytes,
    wire::json::without_values,
};

params! {
    /// Parameters of a backup.
    pub struct BackupParams {
        /// Name of the key.
        pub name: String,
    }
}

params! {
    /// Parameters of a restore.
    pub struct RestoreParams {
        /// The new name of the key; that of the backup by default.
        pub name: String,
        /// The text of a backup.
        pub backup: String,
        /// Whether a key of the same name is replaced.
        pub force: bool,
        /// `hsm` or `software`.
        pub protection_level: Option<String>,
    }
}

#[derive(Serialize)]
struct BackupData {
    backup: Shown,
}

/// A backup of no more characters holds few versions: some 20 of RSA-4096.
const SMALL_BACKUP: usize = 128 << 10;

fn stop(text: impl Into<String>) -> Failure {
    Failure::listed(Kind::Internal, text)
}

/// GET `backup/:name`.
pub async fn backup(engine: &Transit, call: &Call<'_>, params: BackupParams) -> Result<Reply, Failure> {
    let name = params.name.as_str();
    let (key, ()) = engine.change(name, move |key| Box::pin(async move { noted(engine, name, key) })).await?;
    let key = key.ok_or_else(|| stop(format!("key {name:?} not found")))?;
    let (going, small) = (Going::of(call, &engine.store.view), key.record.versions.len() <= FEW_VERSIONS);
    let lines: Vec<_> = key.record.versions.iter().collect();
    let (mut versions, mut turn) = (Vec::with_capacity(lines.len()), Turn::begin());
    for brought in engine.bring_all_out(&key, &lines, &going).await? {
        turn.give_way().await;
        let encryptions = match key.record.is_counted() {
            true => usage::stored(&engine.store.view, key.record.uid, brought.version)?.0,
            false => 0,
        };
        versions.push((brought.convergent_version, encryptions, brought.material));
    }
    let write = move |job: &mut Job| {
        let lines = key.record.versions.iter().zip(versions);
        let written = |(line, (convergent, encryptions, material))| Written { line, convergent, encryptions, material };
        let versions: Vec<_> = lines.map(written).collect();
        job.expect(versions.len());
        let json = blob::write(&key.name, &key.record, &versions, || job.version())?;
        Reply::data(&BackupData { backup: Shown(Zeroizing::new(b64::encode(json.expose()))) })
    };
    engine.stores.gate.whole_key(small, going, write).await
}

/// Writes the time of a backup down, if one may be taken.
fn noted(engine: &Transit, name: &str, key: Option<Arc<Key>>) -> Result<Decision<()>, Failure> {
    let key = key.ok_or_else(|| stop(format!("key {name:?} not found")))?;
    let mut record = key.record.clone();
    if record.soft_deleted {
        return Err(stop(SOFT_DELETED));
    }
    Transit::check_leaves(&record)?;
    if !record.exportable {
        return Err(stop("exporting is disallowed on the policy"));
    }
    if !record.allow_plaintext_backup {
        return Err(stop("plaintext backup is disallowed on the policy"));
    }
    record.backup = Some(Passage { time: nanos(engine.clock.now()), version: record.latest_version });
    Ok(Decision::Write(Change { record: Some(record), txn: Txn::new(), outcome: () }))
}

/// POST `restore`.
/// Ends without effect once nobody waits for its answer.
pub async fn restore(engine: &Transit, call: &Call<'_>, params: RestoreParams) -> Result<Reply, Failure> {
    if params.backup.is_empty() {
        return Err(Failure::invalid("'backup' must be supplied"));
    }
    if params.name.contains('/') {
        return Err(stop("key names cannot be paths"));
    }
    let level = level_param(params.protection_level.as_deref())?;
    let (backup, asked, now) = (Zeroizing::new(params.backup), params.name, nanos(engine.clock.now()));
    let (going, small) = (Going::of(call, &engine.store.view), backup.len() <= SMALL_BACKUP);
    let read = engine.stores.gate.whole_key(small, going.clone(), move |job| open(&backup, asked, now, job));
    let (name, record, versions) = read.await?;
    store(engine, &name, params.force, level, &record, &versions, &going).await
}

/// A backup taken apart: name, key and versions.
type Opened = (String, KeyRecord, Vec<(u32, Given)>);

fn open(backup: &str, asked: String, now: i64, job: &mut Job) -> Result<Opened, Failure> {
    let json = SecretBytes::new(b64::decode(backup).map_err(|error| stop(error.to_string()))?);
    let blob: Blob<'_> = serde_json::from_slice(json.expose()).map_err(|error| stop(without_values(&error)))?;
    let policy = blob.policy.ok_or_else(|| stop("the backup holds no key"))?;
    let name = match asked.as_str() {
        "" => policy.name.clone().unwrap_or_default().into_owned(),
        _ => asked,
    };
    if !usable(&name) {
        return Err(stop(format!("{name:?} cannot be the name of a key")));
    }
    let archive = blob.archived_keys.and_then(|archive| archive.keys).unwrap_or_default();
    let wrong = |error: String| stop(format!("failed to restore the policy {name:?}: {error}"));
    let mut ended = None;
    // Asked before each version of so many.
    let go_on = |versions| {
        job.expect_once(versions);
        job.version().map_err(|failure| ended = Some(failure)).is_ok()
    };
    let opened = read(policy, &archive, now, go_on);
    if let Some(ended) = ended {
        return Err(ended);
    }
    let (record, versions) = opened.map_err(wrong)?;
    Ok((name, record, versions))
}

/// Whether a key can have the name: what a path of the API can hold.
fn usable(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(word) && name.ends_with(word) && name.chars().all(|c| word(c) || c == '-' || c == '.')
}

async fn store(
    engine: &Transit,
    name: &str,
    force: bool,
    level: Option<Level>,
    record: &KeyRecord,
    versions: &[(u32, Given)],
    going: &Going,
) -> Result<Reply, Failure> {
    let level = engine.level_of_given(level, record)?;
    let (key, (objects, remains)) = engine
        .change_even_damaged(name, move |existing| {
            Box::pin(async move {
                let mut record = KeyRecord { level, ..record.clone() };
                let (mut txn, mut objects, mut remains) = (Txn::new(), Vec::new(), None);
                let mut replaced = None;
                match existing {
                    Ok(None) => {}
                    Ok(Some(_)) if !force => return Err(stop(format!("key {name:?} already exists"))),
                    Ok(Some(old)) => {
                        replaced = Some(Arc::clone(&old));
                        txn = txn.delete(given_path(&old.record.uid.to_string()));
                        for line in &old.record.versions {
                            txn = engine.drop_version(name, old.record.uid, line, txn, &mut objects)?;
                        }
                    }
                    // Force replaces keys that may not be deleted, and so also one of which that is not known.
                    Err(_) if force => {
                        let found;
                        (txn, found) = engine.drop_remains(name, txn).await?;
                        remains = Some(found);
                    }
                    Err(damaged) => return Err(damaged),
                }
                txn = engine.add_all_given(&mut record, versions, replaced.as_deref(), txn, going).await?;
                txn = match record.auto_rotate_period {
                    0 => txn.delete(auto_path(name)),
                    _ => txn.put(auto_path(name), Vec::new()),
                };
                going.check()?;
                Ok(Decision::Write(Change { record: Some(record), txn, outcome: (objects, remains) }))
            })
        })
        .await?;
    engine.destroy(objects);
    if let Some(key) = key {
        engine.reschedule(&key);
    }
    Ok(match remains {
        Some(remains) => Reply::empty().with_warning(engine.dropped_remains(name, remains)),
        None => Reply::empty(),
    })
}

/// What a backup says, in this server's terms.
fn read(
    mut policy: Policy<'_>,
    archive: &[Entry<'_>],
    now: i64,
    mut go_on: impl FnMut(usize) -> bool,
) -> Result<(KeyRecord, Vec<(u32, Given)>), String> {
    upgrade(&mut policy);
    let key_size = u32::try_from(policy.key_size.unwrap_or(0)).unwrap_or(0);
    let number = policy.kind.unwrap_or(0);
    let kind = blob::type_of(number, key_size).ok_or_else(|| format!("unsupported key type {number}"))?;
    let keys = policy.keys.take().unwrap_or_default();
    let bounds = Bounds::of(&policy, |version| keys.contains_key(version.to_string().as_str()))?;
    let convergent = policy.convergent_encryption.unwrap_or(false);
    if convergent && !policy.derived.unwrap_or(false) {
        // Its nonces would be a hash of the plaintext that anybody can compute.
        return Err("convergent encryption requires derivation to be enabled".to_owned());
    }
    if policy.derived.unwrap_or(false) && !kind.supports_derivation() {
        return Err(format!("key derivation is not supported for keys of type {}", kind.name()));
    }
    if convergent && !kind.is_cipher() {
        return Err(format!("convergent encryption not supported for keys of type {}", kind.name()));
    }
    let fallback = match policy.convergent_version.unwrap_or(0) {
        // Keys of the first servers that knew convergent encryption do not say so.
        0 if convergent => 1,
        version => version,
    };
    let kdf = match (policy.derived.unwrap_or(false), policy.kdf.unwrap_or(0)) {
        (false, _) => None,
        (true, 0) => Some(Kdf::HmacSha256Counter),
        (true, 1) => Some(Kdf::HkdfSha256),
        (true, other) => return Err(format!("unsupported key derivation mode {other}")),
    };
    let mut versions = Vec::new();
    let count = usize::try_from(bounds.latest - bounds.available.max(1).min(bounds.latest) + 1).unwrap_or(usize::MAX);
    for version in bounds.available.max(1)..=bounds.latest {
        let in_archive = || archive.get(usize::try_from(version - bounds.available).unwrap_or(usize::MAX));
        let entry = keys.get(version.to_string().as_str()).or_else(in_archive).filter(|entry| !entry.is_empty());
        match entry {
            Some(_) if !go_on(count) => return Err("it was ended".to_owned()),
            Some(entry) => {
                let given = entry.given(kind, convergent, fallback, now);
                versions.push((version, given.map_err(|error| format!("version {version}: {error}"))?));
            }
            None if version >= bounds.decryption => return Err(format!("version {version} is missing")),
            None => {}
        }
    }
    let derives_from_nothing = |given: &Given| given.material.key.is_empty() || !given.certificate_chain.is_empty();
    if kdf.is_some() && versions.iter().any(|(_, given)| derives_from_nothing(given)) {
        return Err("a key with derivation enabled has a secret to derive from, and no certificates".to_owned());
    }
    let mut record = KeyRecord::empty(kind, Level::Software);
    if kind == KeyType::Hmac {
        // Where a backup does not say it, the newest key does: a rotation makes another of its size.
        let newest = versions.last().map_or(0, |(_, given)| given.material.key.len());
        let bytes = if key_size == 0 { newest } else { usize::try_from(key_size).unwrap_or(0) };
        if !HMAC_KEY_BYTES.contains(&bytes) {
            let (least, most) = (HMAC_KEY_BYTES.start(), HMAC_KEY_BYTES.end());
            return Err(format!("invalid key size for HMAC key, must be between {least} and {most} bytes"));
        }
        record.key_size = u32::try_from(bytes).unwrap_or(0);
    }
    record.kdf = kdf;
    record.convergent = convergent;
    record.convergent_version = i32::try_from(fallback).unwrap_or(0);
    record.exportable = policy.exportable.unwrap_or(false);
    record.allow_plaintext_backup = policy.allow_plaintext_backup.unwrap_or(false);
    record.deletion_allowed = policy.deletion_allowed.unwrap_or(false);
    record.soft_deleted = policy.soft_deleted.unwrap_or(false);
    record.min_decryption_version = bounds.decryption;
    record.min_encryption_version = bounds.encryption;
    record.min_available_version = bounds.available;
    record.latest_version = bounds.latest;
    record.auto_rotate_period = policy.auto_rotate_period.unwrap_or(0).max(0) / 1_000_000_000;
    record.imported = policy.imported.unwrap_or(false);
    record.allow_imported_key_rotation = policy.allow_imported_key_rotation.unwrap_or(false);
    record.backup = policy.backup_info.as_ref().and_then(blob::Info::passage);
    record.restore = Some(Passage { time: now, version: bounds.latest });
    Ok((record, versions))
}

/// The very first layout had one key without a version.
fn upgrade(policy: &mut Policy<'_>) {
    let none = policy.keys.as_ref().is_none_or(|keys| keys.is_empty());
    if let Some(key) = policy.key.take().filter(|key| none && !key.is_empty()) {
        policy.keys = Some([(Cow::Borrowed("1"), Entry::of_key(key))].into_iter().collect());
        policy.latest_version = policy.latest_version.filter(|version| *version > 0).or(Some(1));
        policy.min_decryption_version = policy.min_decryption_version.filter(|version| *version > 0).or(Some(1));
        policy.archive_version = policy.latest_version;
    }
}

/// The version numbers of a key.
struct Bounds {
    available: u32,
    decryption: u32,
    encryption: u32,
    latest: u32,
}

impl Bounds {
    /// Refuses numbers that contradict each other. `held` tells whether a version is among the key's own.
    fn of(policy: &Policy<'_>, held: impl Fn(u32) -> bool) -> Result<Self, String> {
        /// Beyond this many versions a backup is a mistake or an attack on memory: a key that rotates every hour has fewer
        /// after five years.
        const MOST: i64 = 50_000;
        let number = |name: &str, value: Option<i64>| {
            let value = value.unwrap_or(0);
            u32::try_from(value).ok().filter(|_| value <= MOST).ok_or_else(|| format!("{name} of {value} is out of range"))
        };
        let decryption = number("minimum decryption version", policy.min_decryption_version)?;
        let latest = number("latest version", policy.latest_version)?;
        let encryption = number("minimum encryption version", policy.min_encryption_version)?;
        let available = number("minimum available version", policy.min_available_version)?;
        let archive = number("archive version", policy.archive_version)?;
        if decryption < 1 {
            return Err(format!("minimum decryption version of {decryption} is less than 1"));
        }
        if latest < 1 {
            return Err(format!("latest version of {latest} is less than 1"));
        }
        if !held(decryption) && archive != latest {
            return Err("need to move keys from archive but archive version not up-to-date".to_owned());
        }
        if archive > latest {
            return Err(format!("archive version of {archive} is greater than the latest version {latest}"));
        }
        if encryption > 0 && encryption < decryption {
            return Err(format!(
                "minimum decryption version of {decryption} is greater than minimum encryption version {encryption}"
            ));
        }
        if decryption > latest || encryption > latest {
            return Err(format!("minimum decryption version of {decryption} is greater than the latest version {latest}"));
        }
        if available > decryption {
            return Err(format!(
                "minimum available version of {available} is greater than minimum decryption version {decryption}"
            ));
        }
        Ok(Self { available, decryption, encryption, latest })
    }
}
