//! The store of tokens: making, finding, using and renewing them.
//!
//! Finding a token costs one hash and one look-up in a sharded cache, and one more look-up for each ancestor. A
//! parent that is gone makes its children dead at once, whatever of them is still stored: revocation only has to clean up.

use std::{net::IpAddr, sync::Arc, time::Duration};

use quick_cache::sync::Cache;

use super::{
    TokenEntry, TokenKind, TokenSpec,
    batch::BatchCipher,
    id::{self, Hasher, is_batch},
    jwt::{Claimed, JwtKey, is_jwt},
    ttl::{TtlLimits, TtlTerms},
    uses::Uses,
    within_cidrs,
};
use crate::{
    barrier::{BarrierError, Txn, View},
    core::{
        clock::Clock,
        failure::{Failure, Kind},
        reply::{Grant, WrapInfo},
    },
    secret::{SecretBytes, SecretString},
    storage::{Expect, Names, StorageError, Version},
};

const FORMAT: u8 = 2;

/// The first form of a token's record: it repeats the hash that names it, and all fields that are empty.
const FIRST_FORMAT: u8 = 1;
const KEY_LEN: usize = 32;

/// Entries kept in memory; about a kilobyte each.
const CACHED: usize = 20_000;

/// How often a change is tried again when others change the same token.
pub(super) const ATTEMPTS: usize = 50;

/// How long a used-up token's cubbyhole waits for its last request when nobody calls [`TokenStore::finish_use`].
pub(super) const LAST_REQUEST: i64 = 60_000_000_000;

/// A stored entry and the commit that wrote it.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) entry: Arc<TokenEntry>,
    pub(super) version: Version,
}

/// A renewed token.
#[derive(Debug)]
pub struct Renewed {
    /// The token as it is now.
    pub entry: Arc<TokenEntry>,
    /// Its new TTL.
    pub ttl: Duration,
    /// What was cut down.
    pub warnings: Vec<String>,
}

/// All tokens of the server.
pub struct TokenStore {
    pub(super) view: View,
    pub(super) cubbyhole: View,
    pub(super) clock: Clock,
    hasher: Hasher,
    batch: BatchCipher,
    jwt: JwtKey,
    cache: Cache<String, Stored>,
    pub(super) uses: Uses,
}

enum Miss {
    Absent,
    Failed(Failure),
}

impl TokenStore {
    /// Opens the store below `view`; the first time it makes its salt and key. `cubbyhole` holds what tokens keep for
    /// themselves at `<hash>/…`, and loses it with the token.
    pub async fn open(view: View, cubbyhole: View, clock: Clock) -> Result<Arc<Self>, Failure> {
        let salt = secret(&view, "salt", random_key).await?;
        let key = secret(&view, "batch-key", random_key).await?;
        let jwt = JwtKey::new(&secret(&view, "wrapping-key", JwtKey::generate).await?)?;
        let hasher = Hasher::new(&salt).ok_or_else(|| Failure::internal("the salt of tokens is unusable"))?;
        let batch = BatchCipher::new(&key).ok_or_else(|| Failure::internal("the key of batch tokens is unusable"))?;
        Ok(Arc::new(Self { view, cubbyhole, clock, hasher, batch, jwt, cache: Cache::new(CACHED), uses: Uses::default() }))
    }

    /// The token's entry, when the token may be used from this address now.
    pub async fn authenticate(&self, token: &SecretString, remote: Option<IpAddr>) -> Result<Arc<TokenEntry>, Failure> {
        let entry = self.lookup(token)?.ok_or_else(Failure::bad_token)?;
        if within_cidrs(&entry.bound_cidrs, remote) { Ok(entry) } else { Err(Failure::denied()) }
    }

    /// The entry of a live token. A wrapping token may come as a JWT, whose signature is verified when it names one that lives.
    pub fn lookup(&self, token: &SecretString) -> Result<Option<Arc<TokenEntry>>, Failure> {
        let token = token.expose();
        if is_jwt(token) {
            let Some(claimed) = Claimed::read(token) else { return Ok(None) };
            let entry = self.lookup_hash(&self.hasher.hash(claimed.token.expose()))?;
            return Ok(entry.filter(|entry| entry.is_wrapping() && self.jwt.verify(&claimed)));
        }
        let hash = self.hasher.hash(token);
        if !is_batch(token) {
            return self.lookup_hash(&hash);
        }
        let Some(entry) = self.batch.open(token, hash) else { return Ok(None) };
        let alive = !entry.is_expired(self.now()) && self.ancestors_alive(&entry)?;
        Ok(alive.then(|| Arc::new(entry)))
    }

    /// How often the signature of a JWT was verified.
    #[cfg(test)]
    pub(in crate::core) fn verifications(&self) -> usize {
        self.jwt.verifications.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The entry of a live service token by its hash.
    pub fn lookup_hash(&self, hash: &str) -> Result<Option<Arc<TokenEntry>>, Failure> {
        let Some(stored) = self.load(hash)? else { return Ok(None) };
        let alive = is_usable(&stored.entry, self.now()) && self.ancestors_alive(&stored.entry)?;
        Ok(alive.then_some(stored.entry))
    }

    /// The entry of a live service token by its accessor.
    pub fn lookup_accessor(&self, accessor: &str) -> Result<Option<Arc<TokenEntry>>, Failure> {
        if accessor.is_empty() || accessor.contains('/') {
            return Ok(None);
        }
        match self.view.get(&format!("accessor/{accessor}"))? {
            Some(record) => {
                let hash = std::str::from_utf8(record.value.expose()).map_err(Failure::internal)?;
                self.lookup_hash(hash)
            }
            None => Ok(None),
        }
    }

    /// The accessors of stored tokens, sorted.
    pub async fn accessors(&self, after: Option<&str>, limit: usize) -> Result<Names, Failure> {
        Ok(self.view.list_long("accessor/", after, limit).await?)
    }

    /// Whether the token of this hash lives.
    pub fn is_alive(&self, hash: &str) -> Result<bool, Failure> {
        Ok(self.lookup_hash(hash)?.is_some())
    }

    /// The salted hash of a token: its name in the store.
    pub fn hash(&self, token: &SecretString) -> String {
        self.hasher.hash(token.expose())
    }

    /// Makes a token: one commit for a service token, none for a batch token.
    pub async fn issue(&self, spec: TokenSpec) -> Result<Grant, Failure> {
        if let Some(id) = &spec.id {
            check_chosen(id.expose())?;
        }
        Ok(self.issue_with(spec, |_| Txn::new()).await?.0)
    }

    /// Makes a token without a parent that never expires and may do everything.
    pub async fn create_root(&self, id: Option<SecretString>) -> Result<SecretString, Failure> {
        let spec = TokenSpec {
            id,
            policies: vec!["root".into()],
            path: "auth/token/root".into(),
            display_name: "root".into(),
            ..TokenSpec::default()
        };
        Ok(self.issue_with(spec, |_| Txn::new()).await?.0.client_token)
    }

    /// Makes a token and, in the same commit, what its cubbyhole holds from the start: `cubbyhole` gets the hash.
    pub(in crate::core) async fn issue_with(
        &self,
        spec: TokenSpec,
        cubbyhole: impl Fn(&str) -> Txn + Send,
    ) -> Result<(Grant, Arc<TokenEntry>), Failure> {
        let now = self.now();
        if spec.kind == TokenKind::Batch {
            return self.issue_batch(&spec, now);
        }
        let chosen = spec.id.is_some();
        let token = spec.id.as_ref().map_or_else(id::service_token, SecretString::duplicate);
        let mut entry = entry_of(&spec, now)?;
        entry.hash = self.hasher.hash(token.expose());
        entry.accessor = id::accessor();
        let own_key = format!("id/{}", entry.hash);
        for _ in 0..ATTEMPTS {
            let mut txn = Txn::new().check(own_key.clone(), Expect::Absent);
            if !entry.parent.is_empty() {
                let version = self.live_parent(&entry.parent)?;
                txn = txn.check(format!("id/{}", entry.parent), Expect::Version(version));
            }
            let txn = write_indices(txn, &entry).put(own_key.clone(), encode(&entry)?);
            match self.view.commit_with(txn, &self.cubbyhole, cubbyhole(&entry.hash)).await {
                Ok(_) => return Ok((grant_of(&entry, token), Arc::new(entry))),
                Err(error) if conflict(&error).is_some_and(|key| key.ends_with(&own_key)) && chosen => {
                    return Err(Failure::invalid("cannot create a token with a duplicate ID"));
                }
                Err(error) if conflict(&error).is_some() => self.forget(&entry.parent),
                Err(error) => return Err(error.into()),
            }
        }
        Err(busy())
    }

    fn issue_batch(&self, spec: &TokenSpec, now: i64) -> Result<(Grant, Arc<TokenEntry>), Failure> {
        let mut entry = entry_of(spec, now)?;
        entry.renewable = false;
        if !entry.parent.is_empty() {
            self.live_parent(&entry.parent)?;
        }
        let token = self.batch.seal(&entry).ok_or_else(|| Failure::internal("a batch token could not be encrypted"))?;
        entry.hash = self.hasher.hash(token.expose());
        Ok((grant_of(&entry, token), Arc::new(entry)))
    }

    /// Gives a token more time within its bounds, which count from its issue.
    pub async fn renew(&self, hash: &str, terms: TtlTerms, limits: TtlLimits) -> Result<Renewed, Failure> {
        for _ in 0..ATTEMPTS {
            let missing = || Failure::invalid("token not found");
            self.lookup_hash(hash)?.ok_or_else(missing)?;
            let stored = self.load(hash)?.ok_or_else(missing)?;
            if !stored.entry.renewable || stored.entry.expires_at.is_none() {
                return Err(Failure::invalid("lease is not renewable"));
            }
            let now = self.now();
            let issued_at = stored.entry.issued_at;
            let past = |error: super::ttl::PastMax| Failure::listed(Kind::Invalid, error.to_string());
            let granted = terms.grant(limits, issued_at, now).map_err(past)?;
            let mut entry = TokenEntry::clone(&stored.entry);
            entry.ttl = granted.ttl.as_secs();
            entry.expires_at = Some(now.saturating_add(nanos(granted.ttl)));
            entry.last_renewal = Some(now);
            if self.replace(&stored, entry.clone()).await? {
                return Ok(Renewed { entry: Arc::new(entry), ttl: granted.ttl, warnings: granted.warnings });
            }
        }
        Err(busy())
    }

    /// The `auth` of a token that exists. `token` may be empty where the caller must not learn it.
    pub fn grant(&self, entry: &TokenEntry, token: SecretString, ttl: Duration) -> Grant {
        Grant { lease_duration: ttl, ..grant_of(entry, token) }
    }

    /// A wrapping token in the form of a JWT.
    pub fn wrapping_jwt(&self, info: &WrapInfo, addr: &str) -> Result<SecretString, Failure> {
        self.jwt.sign(info, self.now().div_euclid(1_000_000_000), addr)
    }

    /// The time that the store goes by.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What tokens keep for themselves, at `<hash>/…`.
    pub(in crate::core) fn cubbyhole(&self) -> &View {
        &self.cubbyhole
    }

    /// The stored entry, also of a token that is used up or expired but not yet removed.
    pub fn stored(&self, hash: &str) -> Result<Option<Arc<TokenEntry>>, Failure> {
        Ok(self.load(hash)?.map(|stored| stored.entry))
    }

    /// Where the token method keeps its roles.
    pub fn roles(&self) -> Result<View, Failure> {
        Ok(self.view.sub("role")?)
    }

    pub(super) fn now(&self) -> i64 {
        i64::try_from(self.clock.now().unix_timestamp_nanos()).unwrap_or(i64::MAX)
    }

    /// The stored entry, dead or alive.
    pub(super) fn load(&self, hash: &str) -> Result<Option<Stored>, Failure> {
        // A change removes the cached entry after its commit, which also voids the guard of a read under way: what was
        // read before the change never stays in the cache.
        match self.cache.get_or_insert_with(hash, || self.read(hash)) {
            Ok(stored) => Ok(Some(stored)),
            Err(Miss::Absent) => Ok(None),
            Err(Miss::Failed(failure)) => Err(failure),
        }
    }

    fn read(&self, hash: &str) -> Result<Stored, Miss> {
        let record = self.view.get(&format!("id/{hash}")).map_err(|error| Miss::Failed(error.into()))?;
        let record = record.ok_or(Miss::Absent)?;
        let entry = decode(hash, record.value.expose()).map_err(Miss::Failed)?;
        Ok(Stored { entry: Arc::new(entry), version: record.version })
    }

    /// Drops what is cached; the next look-up reads the store.
    pub(super) fn forget(&self, hash: &str) {
        self.cache.remove(hash);
    }

    /// Writes a changed entry, moving its place in the expiry index; `false` when others changed it first.
    pub(super) async fn replace(&self, old: &Stored, entry: TokenEntry) -> Result<bool, Failure> {
        let key = format!("id/{}", entry.hash);
        let mut txn = Txn::new().check(key.clone(), Expect::Version(old.version));
        if old.entry.expires_at != entry.expires_at {
            if let Some(end) = old.entry.expires_at {
                txn = txn.delete(expiry_key(end, &entry.hash));
            }
            if let Some(end) = entry.expires_at {
                txn = txn.put(expiry_key(end, &entry.hash), Vec::new());
            }
        }
        if old.entry.parent != entry.parent {
            txn = txn.delete(format!("parent/{}/{}", old.entry.parent, entry.hash));
        }
        let result = self.view.commit(txn.put(key, encode(&entry)?)).await;
        self.forget(&entry.hash);
        match result {
            Ok(_) => Ok(true),
            Err(error) if conflict(&error).is_some() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// A child lives only while every ancestor does. One whose children are being made orphans ends the search.
    fn ancestors_alive(&self, entry: &TokenEntry) -> Result<bool, Failure> {
        if entry.parent.is_empty() {
            return Ok(true);
        }
        let now = self.now();
        let mut next = self.load(&entry.parent)?;
        while let Some(ancestor) = next {
            if ancestor.entry.orphaning {
                return Ok(true);
            }
            if !is_usable(&ancestor.entry, now) {
                return Ok(false);
            }
            if ancestor.entry.parent.is_empty() {
                return Ok(true);
            }
            next = self.load(&ancestor.entry.parent)?;
        }
        Ok(false)
    }

    fn live_parent(&self, hash: &str) -> Result<Version, Failure> {
        let missing = || Failure::invalid("parent token lookup failed: no parent found");
        self.lookup_hash(hash)?.ok_or_else(missing)?;
        Ok(self.load(hash)?.ok_or_else(missing)?.version)
    }
}

impl std::fmt::Debug for TokenStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenStore").finish_non_exhaustive()
    }
}

/// Whether a token can be used, as far as it depends on itself.
pub(super) fn is_usable(entry: &TokenEntry, now: i64) -> bool {
    entry.num_uses >= 0 && !entry.orphaning && !entry.is_expired(now)
}

fn random_key() -> Result<SecretBytes, Failure> {
    Ok(SecretBytes::random(KEY_LEN))
}

/// Reads a stored secret, or makes it.
async fn secret(view: &View, name: &str, make: fn() -> Result<SecretBytes, Failure>) -> Result<SecretBytes, Failure> {
    for _ in 0..2 {
        if let Some(record) = view.get(name)? {
            return Ok(record.value);
        }
        let fresh = Txn::new().check(name, Expect::Absent).put_secret(name, make()?);
        match view.commit(fresh).await {
            Ok(_) => {}
            Err(error) if conflict(&error).is_some() => {}
            Err(error) => return Err(error.into()),
        }
    }
    view.get(name)?.map(|record| record.value).ok_or_else(|| Failure::internal("a secret of the token store is missing"))
}

/// The key on which a commit conflicted.
pub(super) fn conflict(error: &BarrierError) -> Option<&str> {
    match error {
        BarrierError::Storage(StorageError::Conflict { key }) => Some(key),
        _ => None,
    }
}

pub(super) fn busy() -> Failure {
    Failure::unavailable("the token is changed by others again and again; try again")
}

fn check_chosen(id: &str) -> Result<(), Failure> {
    for prefix in ["hvs.", "hvb.", "hvr.", "s.", "b.", "r."] {
        if id.starts_with(prefix) {
            return Err(Failure::invalid(format!("custom token ID cannot have the '{prefix}' prefix")));
        }
    }
    if id.contains('.') {
        return Err(Failure::invalid("custom token ID cannot have a '.' in the value"));
    }
    Ok(())
}

fn entry_of(spec: &TokenSpec, now: i64) -> Result<TokenEntry, Failure> {
    let mut policies = spec.policies.clone();
    policies.sort();
    policies.dedup();
    let entry = TokenEntry {
        parent: spec.parent.clone(),
        policies,
        path: spec.path.clone(),
        display_name: spec.display_name.clone(),
        meta: spec.meta.clone(),
        kind: spec.kind,
        creation_time: now.div_euclid(1_000_000_000),
        issued_at: now,
        creation_ttl: spec.ttl.as_secs(),
        ttl: spec.ttl.as_secs(),
        expires_at: (!spec.ttl.is_zero()).then(|| now.saturating_add(nanos(spec.ttl))),
        explicit_max_ttl: spec.explicit_max_ttl.as_secs(),
        period: spec.period.as_secs(),
        num_uses: spec.num_uses,
        renewable: spec.renewable,
        role: spec.role.clone(),
        bound_cidrs: spec.bound_cidrs.clone(),
        entity_id: spec.entity_id.clone(),
        no_identity_policies: spec.no_identity_policies,
        internal_data: spec.internal_data.clone(),
        ..TokenEntry::default()
    };
    if entry.expires_at.is_none() && !entry.is_root() {
        return Err(Failure::internal("a token that is not root needs a TTL"));
    }
    Ok(entry)
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn grant_of(entry: &TokenEntry, client_token: SecretString) -> Grant {
    Grant {
        client_token,
        accessor: entry.accessor.clone(),
        policies: entry.policies.clone(),
        token_policies: entry.policies.clone(),
        identity_policies: Vec::new(),
        metadata: entry.meta.clone(),
        lease_duration: Duration::from_secs(entry.ttl),
        renewable: entry.renewable,
        entity_id: entry.entity_id.clone(),
        token_type: entry.kind.word(),
        orphan: entry.parent.is_empty(),
        num_uses: entry.num_uses,
    }
}

/// Times sort as text: they are never negative and have 20 digits.
pub(super) fn expiry_key(end: i64, hash: &str) -> String {
    format!("expiry/{:020}/{hash}", end.max(0))
}

fn write_indices(mut txn: Txn, entry: &TokenEntry) -> Txn {
    txn = txn.put(format!("accessor/{}", entry.accessor), entry.hash.clone().into_bytes());
    if !entry.parent.is_empty() {
        txn = txn.put(format!("parent/{}/{}", entry.parent, entry.hash), Vec::new());
    }
    if let Some(end) = entry.expires_at {
        txn = txn.put(expiry_key(end, &entry.hash), Vec::new());
        txn = txn.put(format!("lease/{}", entry.lease_id()), Vec::new());
    }
    txn
}

/// Deletes what [`write_indices`] and the entry itself wrote.
pub(super) fn delete_all(mut txn: Txn, entry: &TokenEntry) -> Txn {
    txn = txn.delete(format!("id/{}", entry.hash)).delete(format!("accessor/{}", entry.accessor));
    txn = txn.delete(format!("lease/{}", entry.lease_id()));
    if !entry.parent.is_empty() {
        txn = txn.delete(format!("parent/{}/{}", entry.parent, entry.hash));
    }
    if let Some(end) = entry.expires_at {
        txn = txn.delete(expiry_key(end, &entry.hash));
    }
    txn
}

pub(super) fn encode(entry: &TokenEntry) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![FORMAT];
    serde_json::to_writer(&mut bytes, entry).map_err(Failure::internal)?;
    Ok(bytes)
}

/// The entry that the record of the token of this hash holds.
pub(super) fn decode(hash: &str, bytes: &[u8]) -> Result<TokenEntry, Failure> {
    let Some((&(FIRST_FORMAT | FORMAT), json)) = bytes.split_first() else {
        return Err(Failure::internal("a token record has an unknown format"));
    };
    let entry: TokenEntry = serde_json::from_slice(json).map_err(Failure::internal)?;
    Ok(TokenEntry { hash: hash.to_owned(), ..entry })
}
