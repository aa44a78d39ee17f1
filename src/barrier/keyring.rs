//! Terms, their use, and the stored image of the keyring.
//!
//! Plaintext of the stored keyring, all integers big endian:
//! ```text
//! 1        layout, 1
//! 1        rotation enabled, 0 or 1
//! 8        max_operations
//! 8        interval in seconds, 0 = no rotation by age
//! 4        number of terms
//! per term, oldest first:
//!   4      term, counted from 1
//!   8      install time, nanoseconds since 1970
//!   8      encryptions reserved so far
//!   32     AES-256 key
//! ```
//! A fixed binary layout, because a JSON writer would leave copies of the keys in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::record::{self, Aead};
use super::{BarrierError, KEYRING_PATH, Txn};
use crate::secret::{SecretBytes, random_array};
use crate::storage;

/// Encryptions after which a term is replaced, unless configured lower: 90 % of 2^32, as in Vault.
pub const DEFAULT_MAX_OPERATIONS: u64 = 3_865_470_566;
/// The lowest `max_operations` that can be configured.
pub const MIN_MAX_OPERATIONS: u64 = 1_000_000;
/// The shortest rotation interval that can be configured, in seconds.
pub const MIN_INTERVAL: i64 = 24 * 3600;

/// No term encrypts more often than this: NIST SP 800-38D, section 8.3, for random 96-bit nonces.
const HARD_LIMIT: u64 = 1 << 32;
/// How many encryptions one durable reservation covers; a crash burns what is left of it.
const BLOCK: u64 = 1 << 16;

const LAYOUT: u8 = 1;
const KEY_LEN: usize = 32;
const HEAD_LEN: usize = 1 + 1 + 8 + 8 + 4;
const TERM_LEN: usize = 4 + 8 + 8 + KEY_LEN;

/// When the keyring rotates by itself (`sys/rotate/config`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotateConfig {
    /// Whether it does so at all.
    pub enabled: bool,
    /// Encryptions after which the term is replaced.
    pub max_operations: u64,
    /// Age after which the term is replaced, in seconds; 0 for never.
    pub interval: i64,
}

impl Default for RotateConfig {
    fn default() -> Self {
        Self { enabled: true, max_operations: DEFAULT_MAX_OPERATIONS, interval: 0 }
    }
}

impl RotateConfig {
    /// Whether the values are in range; the texts are those of Vault's API.
    pub fn check(&self) -> Result<(), BarrierError> {
        if self.max_operations < MIN_MAX_OPERATIONS || self.max_operations > DEFAULT_MAX_OPERATIONS {
            return Err(BarrierError::Config("max_operations must be in the range [1000000,3865470566]"));
        }
        if self.interval != 0 && self.interval < MIN_INTERVAL {
            return Err(BarrierError::Config("interval must be greater or equal to 24h0m0s"));
        }
        Ok(())
    }
}

/// Facts of the active term (`sys/key-status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyStatus {
    /// Its number, counted from 1.
    pub term: u32,
    /// When it was made.
    pub install_time: OffsetDateTime,
    /// How many encryptions it has made, or may have made before a crash.
    pub encryptions: u64,
}

/// The keyring as it is stored.
pub(super) struct Image {
    pub(super) config: RotateConfig,
    old: Vec<TermImage>,
    active: TermImage,
}

struct TermImage {
    term: u32,
    install_time: OffsetDateTime,
    reserved: u64,
    key: Zeroizing<[u8; KEY_LEN]>,
}

impl TermImage {
    fn fresh(term: u32, now: OffsetDateTime) -> Self {
        Self { term, install_time: now, reserved: 0, key: Zeroizing::new(random_array()) }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let nanos = i64::from_be_bytes(bytes.get(4..12)?.try_into().ok()?);
        let mut key = Zeroizing::new([0; KEY_LEN]);
        key.copy_from_slice(bytes.get(20..TERM_LEN)?);
        Some(Self {
            term: u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?),
            install_time: OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).ok()?,
            reserved: u64::from_be_bytes(bytes.get(12..20)?.try_into().ok()?),
            key,
        })
    }
}

impl Image {
    /// A keyring with one fresh term.
    pub(super) fn first(now: OffsetDateTime) -> Self {
        Self { config: RotateConfig::default(), old: Vec::new(), active: TermImage::fresh(1, now) }
    }

    /// Adds a fresh term, which becomes the active one; answers its number.
    pub(super) fn add_term(&mut self, now: OffsetDateTime) -> Result<u32, BarrierError> {
        let last = self.active.term;
        let term = last.checked_add(1).ok_or(BarrierError::Exhausted { term: last })?;
        self.old.push(std::mem::replace(&mut self.active, TermImage::fresh(term, now)));
        Ok(term)
    }

    /// Reserves at least `puts` more encryptions of the active term; answers the first of them.
    pub(super) fn reserve(&mut self, puts: u64) -> Result<u64, BarrierError> {
        let first = self.active.reserved;
        let until = first.saturating_add(puts.max(BLOCK)).min(HARD_LIMIT);
        if until - first < puts.max(1) {
            return Err(BarrierError::Exhausted { term: self.active.term });
        }
        self.active.reserved = until;
        Ok(first)
    }

    /// Encryptions reserved of the active term.
    pub(super) fn reserved(&self) -> u64 {
        self.active.reserved
    }

    /// The record to store, encrypted by the root key.
    pub(super) fn encrypt(&self, root: &Aead) -> Result<Vec<u8>, BarrierError> {
        let count = self.old.len() + 1;
        let mut plain = Zeroizing::new(Vec::with_capacity(HEAD_LEN + count * TERM_LEN));
        plain.extend_from_slice(&[LAYOUT, u8::from(self.config.enabled)]);
        plain.extend_from_slice(&self.config.max_operations.to_be_bytes());
        plain.extend_from_slice(&self.config.interval.to_be_bytes());
        plain.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
        for term in self.old.iter().chain([&self.active]) {
            let nanos = i64::try_from(term.install_time.unix_timestamp_nanos()).unwrap_or(i64::MAX);
            plain.extend_from_slice(&term.term.to_be_bytes());
            plain.extend_from_slice(&nanos.to_be_bytes());
            plain.extend_from_slice(&term.reserved.to_be_bytes());
            plain.extend_from_slice(&*term.key);
        }
        record::seal(root, 0, KEYRING_PATH, &plain)
    }

    /// Opens a stored keyring.
    pub(super) fn decrypt(root: &Aead, stored: &[u8]) -> Result<Self, BarrierError> {
        if record::term_of(KEYRING_PATH, stored)? != 0 {
            return Err(corrupt("it is not encrypted by a root key"));
        }
        let plain = record::open(root, KEYRING_PATH, stored.to_vec()).map_err(|_authentication| BarrierError::RootKey)?;
        Self::parse(plain.expose()).ok_or_else(|| corrupt("its plaintext is not a keyring"))
    }

    fn parse(plain: &[u8]) -> Option<Self> {
        let (head, terms) = plain.split_at_checked(HEAD_LEN)?;
        let &[LAYOUT, enabled, ref numbers @ ..] = head else { return None };
        let max_operations = u64::from_be_bytes(numbers.get(..8)?.try_into().ok()?);
        let interval = i64::from_be_bytes(numbers.get(8..16)?.try_into().ok()?);
        let count = u32::from_be_bytes(numbers.get(16..20)?.try_into().ok()?);
        if terms.len() != usize::try_from(count).ok()?.checked_mul(TERM_LEN)? {
            return None;
        }
        let mut old = terms.chunks_exact(TERM_LEN).map(TermImage::parse).collect::<Option<Vec<_>>>()?;
        let active = old.pop()?;
        Some(Self { config: RotateConfig { enabled: enabled == 1, max_operations, interval }, old, active })
    }
}

/// One key of the keyring in use.
pub(super) struct Term {
    number: u32,
    install_time: OffsetDateTime,
    aead: Aead,
    granted: Mutex<Granted>,
}

/// The encryptions that may be made without another durable reservation.
struct Granted {
    next: u64,
    end: u64,
}

impl Term {
    fn from_image(image: &TermImage) -> Self {
        // What an earlier process reserved counts as used.
        let granted = Granted { next: image.reserved, end: image.reserved };
        let aead = Aead::from_array(&image.key);
        Self { number: image.term, install_time: image.install_time, aead, granted: Mutex::new(granted) }
    }

    /// Counts `puts` encryptions; `false` when the reservation does not cover them.
    pub(super) fn take(&self, puts: u64) -> bool {
        let mut granted = self.granted.lock();
        if granted.end - granted.next < puts {
            return false;
        }
        granted.next += puts;
        true
    }

    /// Allows the encryptions `first..end`, which are reserved durably.
    pub(super) fn grant(&self, first: u64, end: u64) {
        let mut granted = self.granted.lock();
        // What is left of the old block joins the new one when they touch, and is given up otherwise.
        granted.next = if granted.end == first { granted.next } else { first };
        granted.end = end;
    }
}

/// The keyring in use: never changed, only replaced.
pub(super) struct Keyring {
    terms: BTreeMap<u32, Arc<Term>>,
    active: Arc<Term>,
    config: RotateConfig,
}

impl Keyring {
    /// The usable form of `image`. Terms that `previous` holds keep their counters; others may not encrypt before
    /// [`Term::grant`].
    pub(super) fn from_image(image: &Image, previous: Option<&Keyring>) -> Self {
        let usable = |stored: &TermImage| {
            let kept = previous.and_then(|keyring| keyring.terms.get(&stored.term)).cloned();
            kept.unwrap_or_else(|| Arc::new(Term::from_image(stored)))
        };
        let active = usable(&image.active);
        let mut terms: BTreeMap<u32, Arc<Term>> = image.old.iter().map(|term| (term.term, usable(term))).collect();
        terms.insert(image.active.term, active.clone());
        Self { terms, active, config: image.config }
    }

    /// The term that encrypts.
    pub(super) fn active(&self) -> &Term {
        &self.active
    }

    /// Encrypts every write of `txn`, whose encryptions have been counted, into `out`.
    pub(super) fn encrypt_into(&self, txn: Txn, out: &mut storage::Txn) -> Result<(), BarrierError> {
        out.checks.extend(txn.checks);
        out.checks.extend(txn.stamps);
        for (path, value) in txn.writes {
            let value =
                value.map(|value| record::seal(&self.active.aead, self.active.number, &path, value.expose())).transpose()?;
            out.writes.push((path, value));
        }
        Ok(())
    }

    /// Decrypts a record under the term it names.
    pub(super) fn decrypt(&self, path: &str, stored: Vec<u8>) -> Result<SecretBytes, BarrierError> {
        let number = record::term_of(path, &stored)?;
        let term = self
            .terms
            .get(&number)
            .ok_or_else(|| BarrierError::Corrupt { path: path.to_owned(), reason: "the keyring has no such term" })?;
        record::open(&term.aead, path, stored)
    }

    pub(super) fn status(&self) -> KeyStatus {
        let encryptions = self.active.granted.lock().next;
        KeyStatus { term: self.active.number, install_time: self.active.install_time, encryptions }
    }

    pub(super) fn config(&self) -> RotateConfig {
        self.config
    }

    pub(super) fn rotation_due(&self, now: OffsetDateTime) -> bool {
        let status = self.status();
        let old = self.config.interval > 0 && now - status.install_time >= Duration::seconds(self.config.interval);
        let worn = status.encryptions >= self.config.max_operations.min(DEFAULT_MAX_OPERATIONS);
        // With rotation switched off the hard limit still has to be kept away from.
        (self.config.enabled && (old || worn)) || status.encryptions >= HARD_LIMIT - (HARD_LIMIT >> 4)
    }
}

fn corrupt(reason: &'static str) -> BarrierError {
    BarrierError::Corrupt { path: KEYRING_PATH.to_owned(), reason }
}
