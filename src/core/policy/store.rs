//! Where policies are kept, and the access lists compiled from them.
//!
//! A record (one per policy, named by its folded name) is JSON:
//! `{"format":1,"document":"path …","version":3,"modified":"2024-01-02T03:04:05Z","cas_required":false}`
//!
//! Every write makes a new *generation*; whatever was compiled in an older one is compiled again when it is next asked
//! for. Reads take no lock that all callers share.

use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use quick_cache::{Equivalent, sync::Cache};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;

use super::{
    acl::Acl,
    builtin::{self, DEFAULT, RESPONSE_WRAPPING, ROOT},
    parse::{ParseError, parse},
    rule::Policy,
    template::TemplateIdentity,
};
use crate::{
    barrier::{BarrierError, Entry, InDoubt, Txn, View, on_own_task},
    core::failure::Failure,
    storage::StorageError,
};

/// Parsed policies and compiled lists kept at hand.
const CACHED_POLICIES: usize = 4096;
const CACHED_LISTS: usize = 4096;

/// How often a write that others get in the way of is tried again.
const WRITE_ATTEMPTS: usize = 16;

/// Why a policy could not be read or written.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// The document is no policy.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// Nobody may write this policy.
    #[error("cannot update {0:?} policy")]
    CannotUpdate(String),
    /// Nobody may delete this policy.
    #[error("cannot delete {0:?} policy")]
    CannotDelete(String),
    /// The default policy may be rewritten, not deleted.
    #[error("cannot delete default policy")]
    CannotDeleteDefault,
    /// The policy demands check-and-set and none was given.
    #[error("check-and-set parameter required for this call")]
    CasRequired,
    /// The caller expected that there is no policy.
    #[error("check-and-set parameter set to -1 on existing entry")]
    CasExists,
    /// The caller expected another version.
    #[error("check-and-set parameter did not match the current version")]
    CasMismatch,
    /// A stored policy cannot be read any more. Its holders are refused, not let in with less than was written.
    #[error("the stored policy {name:?} cannot be read: {problem}")]
    Damaged {
        /// The policy.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The barrier or the store failed.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        match error {
            PolicyError::Barrier(error) => error.into(),
            PolicyError::Damaged { .. } => Self::internal(error),
            PolicyError::Parse(_)
            | PolicyError::CannotUpdate(_)
            | PolicyError::CannotDelete(_)
            | PolicyError::CannotDeleteDefault
            | PolicyError::CasRequired
            | PolicyError::CasExists
            | PolicyError::CasMismatch => Self::invalid(error.to_string()),
        }
    }
}

/// A policy as its readers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyDocument {
    /// The name, in lower case.
    pub name: String,
    /// The text as it was written; empty for `root`.
    pub document: String,
    /// Counts the writes of this name since it was last absent; 0 for `root`.
    pub version: u64,
    /// The last write.
    pub modified: Option<OffsetDateTime>,
    /// Whether writes must carry a check-and-set parameter.
    pub cas_required: bool,
}

/// How a policy is to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// The version that is to be replaced; 0 or -1 when there must be none.
    pub cas: Option<i64>,
    /// Whether later writes must carry `cas`.
    pub cas_required: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredPolicy {
    format: u32,
    document: String,
    version: u64,
    #[serde(with = "time::serde::rfc3339")]
    modified: OffsetDateTime,
    #[serde(default)]
    cas_required: bool,
}

/// The policies of the server.
pub struct PolicyStore {
    view: View,
    /// Counts writes. Read before the records, so that what is compiled from old records carries an old number.
    generation: Arc<AtomicU64>,
    in_doubt: Arc<InDoubt>,
    policies: Cache<String, Tagged<Option<Arc<Policy>>>>,
    lists: Cache<ListKey, Tagged<Arc<Acl>>>,
}

/// A cached value and the generation it was made in.
#[derive(Clone)]
struct Tagged<T> {
    generation: u64,
    value: T,
}

impl PolicyStore {
    /// The policies stored in `view`, which holds nothing else.
    pub fn new(view: View) -> Self {
        let (policies, lists) = (Cache::new(CACHED_POLICIES), Cache::new(CACHED_LISTS));
        Self { view, generation: Arc::default(), in_doubt: Arc::default(), policies, lists }
    }

    /// Writes the policies that every server has: `default` unless it is there, `response-wrapping` as it must be. To be
    /// called after every unseal.
    pub async fn install_builtin(&self, now: OffsetDateTime) -> Result<(), PolicyError> {
        if self.get(DEFAULT)?.is_none() {
            self.write(DEFAULT, builtin::DEFAULT_DOCUMENT, WriteOptions::default(), now).await?;
        }
        let wrapping = self.get(RESPONSE_WRAPPING)?;
        if wrapping.is_none_or(|policy| policy.document != builtin::RESPONSE_WRAPPING_DOCUMENT) {
            self.write(RESPONSE_WRAPPING, builtin::RESPONSE_WRAPPING_DOCUMENT, WriteOptions::default(), now).await?;
        }
        Ok(())
    }

    /// A policy by its name in any case. `root` is there, with an empty document.
    pub fn get(&self, name: &str) -> Result<Option<PolicyDocument>, PolicyError> {
        let name = fold(name);
        if name == ROOT {
            let document = String::new();
            return Ok(Some(PolicyDocument { name, document, version: 0, modified: None, cas_required: false }));
        }
        let Some((stored, _)) = self.stored(&name)? else { return Ok(None) };
        let StoredPolicy { document, version, modified, cas_required, .. } = stored;
        Ok(Some(PolicyDocument { name, document, version, modified: Some(modified), cas_required }))
    }

    /// Whether there is a policy of this name.
    pub fn exists(&self, name: &str) -> Result<bool, PolicyError> {
        Ok(self.parsed(&fold(name))?.is_some())
    }

    /// The names that a token can be given, sorted, without `root`.
    pub async fn list(&self) -> Result<Vec<String>, PolicyError> {
        let mut names: Vec<_> = self.view.list_long("", None, usize::MAX).await?.iter().map(name_of).collect();
        names.retain(|name| name != RESPONSE_WRAPPING);
        names.sort();
        Ok(names)
    }

    /// Writes a policy; durable when this returns.
    pub async fn put(&self, name: &str, document: &str, options: WriteOptions, now: OffsetDateTime) -> Result<(), PolicyError> {
        let name = fold(name);
        parse(&name, document)?;
        if builtin::is_fixed(&name) {
            return Err(PolicyError::CannotUpdate(name));
        }
        self.write(&name, document, options, now).await
    }

    /// Deletes a policy; deleting an absent one is no error.
    pub async fn delete(&self, name: &str) -> Result<(), PolicyError> {
        let name = fold(name);
        if builtin::is_fixed(&name) {
            return Err(PolicyError::CannotDelete(name));
        }
        if name == DEFAULT {
            return Err(PolicyError::CannotDeleteDefault);
        }
        Ok(self.commit(Txn::new().delete(key_of(&name))).await?)
    }

    /// The access list for these policies (names in lower case) and this identity. Names without a policy grant nothing.
    pub fn acl_for<S: AsRef<str>>(&self, names: &[S], identity: Option<&TemplateIdentity>) -> Result<Arc<Acl>, PolicyError> {
        let generation = self.generation();
        let wanted = ListQuery { names, identity: identity.map(|identity| (identity.id.as_str(), identity.version)) };
        if let Some(found) = self.lists.get(&wanted).filter(|found| found.generation == generation) {
            return Ok(found.value);
        }
        let mut policies = Vec::with_capacity(names.len());
        for name in names {
            policies.extend(self.parsed(name.as_ref())?);
        }
        let acl = Arc::new(Acl::for_identity(&policies, identity));
        self.lists.insert(wanted.to_key(), Tagged { generation, value: acl.clone() });
        Ok(acl)
    }

    /// Changes with every write: what was made from policies in an older generation is out of date.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Forgets everything that was compiled: the records were changed by somebody else (a restore, another node).
    pub fn invalidate(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// After writes of which nobody knows what became: what is compiled from then on is what the store holds. To be called
    /// from time to time.
    pub async fn settle(&self) -> Result<(), PolicyError> {
        let reread = async {
            self.invalidate();
            Ok(())
        };
        self.in_doubt.settle(&self.view, reread).await
    }

    fn parsed(&self, name: &str) -> Result<Option<Arc<Policy>>, PolicyError> {
        let generation = self.generation();
        if let Some(found) = self.policies.get(name).filter(|found| found.generation == generation) {
            return Ok(found.value);
        }
        let policy = match self.get(name)? {
            None => None,
            Some(policy) if policy.name == ROOT => Some(Arc::new(Policy::root())),
            Some(policy) => Some(Arc::new(parse(name, &policy.document).map_err(|error| damaged(name, &error))?)),
        };
        self.policies.insert(name.to_owned(), Tagged { generation, value: policy.clone() });
        Ok(policy)
    }

    fn stored(&self, name: &str) -> Result<Option<(StoredPolicy, Entry)>, PolicyError> {
        let Some(entry) = self.view.get(&key_of(name))? else { return Ok(None) };
        let stored: StoredPolicy = serde_json::from_slice(entry.value.expose()).map_err(|error| damaged(name, &error))?;
        if stored.format != 1 {
            return Err(damaged(name, &format!("it has the unknown format {}", stored.format)));
        }
        Ok(Some((stored, entry)))
    }

    async fn write(&self, name: &str, document: &str, options: WriteOptions, now: OffsetDateTime) -> Result<(), PolicyError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let current = self.stored(name)?;
            let version = current.as_ref().map_or(0, |(stored, _)| stored.version);
            check_cas(options, current.as_ref().map(|(stored, _)| stored))?;
            let stored = StoredPolicy {
                format: 1,
                document: document.to_owned(),
                version: version + 1,
                modified: now,
                cas_required: options.cas_required,
            };
            let bytes = serde_json::to_vec(&stored).map_err(|error| damaged(name, &error))?;
            let key = key_of(name);
            let unchanged = Entry::unchanged(current.as_ref().map(|(_, entry)| entry));
            match self.commit(Txn::new().check(key.clone(), unchanged).put(key, bytes)).await {
                Err(BarrierError::Storage(StorageError::Conflict { .. })) if attempt < WRITE_ATTEMPTS => {}
                result => return Ok(result?),
            }
        }
    }

    /// Commits, then starts a new generation. In a task of its own: when the caller goes away in between, the
    /// store still writes, and what was compiled before must not outlive that.
    async fn commit(&self, txn: Txn) -> Result<(), BarrierError> {
        let (view, generation, in_doubt) = (self.view.clone(), self.generation.clone(), self.in_doubt.clone());
        let task = on_own_task(async move {
            let result = in_doubt.commit(&view, txn).await;
            generation.fetch_add(1, Ordering::AcqRel);
            result
        });
        match task.await {
            Ok(result) => result.map(|_| ()),
            Err(_) => Err(BarrierError::Storage(StorageError::Closed)),
        }
    }
}

fn check_cas(options: WriteOptions, current: Option<&StoredPolicy>) -> Result<(), PolicyError> {
    let required = options.cas_required || current.is_some_and(|stored| stored.cas_required);
    let version = current.map_or(0, |stored| stored.version);
    match options.cas {
        None if required => Err(PolicyError::CasRequired),
        None => Ok(()),
        Some(-1) if current.is_some() => Err(PolicyError::CasExists),
        Some(-1) => Ok(()),
        Some(cas) if u64::try_from(cas) == Ok(version) => Ok(()),
        Some(_) => Err(PolicyError::CasMismatch),
    }
}

fn damaged(name: &str, problem: &dyn std::fmt::Display) -> PolicyError {
    PolicyError::Damaged { name: name.to_owned(), problem: problem.to_string() }
}

/// Names are the same in every case and with blanks around them.
pub fn fold(name: &str) -> String {
    name.trim().to_lowercase()
}

/// The storage key of a name: one level, whatever slashes and dots the name holds.
fn key_of(name: &str) -> String {
    let name = name.replace('%', "%25").replace('/', "%2f");
    if name.chars().all(|c| c == '.') { name.replace('.', "%2e") } else { name }
}

fn name_of(key: &str) -> String {
    key.replace("%2f", "/").replace("%2e", ".").replace("%25", "%")
}

/// A set of policies and the identity that filled in their templates.
#[derive(PartialEq, Eq)]
struct ListKey {
    names: Box<[String]>,
    identity: Option<(String, u64)>,
}

impl Hash for ListKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let identity = self.identity.as_ref().map(|(id, version)| (id.as_str(), *version));
        ListQuery { names: &self.names, identity }.hash(state);
    }
}

/// A [`ListKey`] that borrows, so that looking up allocates nothing.
struct ListQuery<'a, S> {
    names: &'a [S],
    identity: Option<(&'a str, u64)>,
}

impl<S: AsRef<str>> ListQuery<'_, S> {
    fn to_key(&self) -> ListKey {
        ListKey {
            names: self.names.iter().map(|name| name.as_ref().to_owned()).collect(),
            identity: self.identity.map(|(id, version)| (id.to_owned(), version)),
        }
    }
}

impl<S: AsRef<str>> Hash for ListQuery<'_, S> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for name in self.names {
            name.as_ref().hash(state);
        }
        self.identity.hash(state);
    }
}

impl<S: AsRef<str>> Equivalent<ListKey> for ListQuery<'_, S> {
    fn equivalent(&self, key: &ListKey) -> bool {
        self.names.iter().map(AsRef::as_ref).eq(key.names.iter().map(String::as_str))
            && self.identity == key.identity.as_ref().map(|(id, version)| (id.as_str(), *version))
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
