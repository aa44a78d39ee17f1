//! Several HSMs as one.
//!
//! Zone master keys have the same CKA_ID on every enrolled HSM, so what one wrapped any other opens. An operation goes to
//! the first member that is ready; when that one is lost on the way or does not hold the key, to the next. What makes an
//! object goes to one member and is never tried on a second one: it might exist on the first after all.
//!
//! Members can be exchanged while the group works ([`Group::replace`]): whoever works with a member goes on with it.
//!
//! The order is that of the configuration's `priority`; members whose stanza is `disabled` come last and get nothing new.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::future::{join_all, select_all};
use parking_lot::{Mutex, RwLock};
use quick_cache::sync::Cache;
use tokio::sync::watch;

use super::{
    AeadItem, DownReason, Hsm, HsmError, KeyId, KeyKind, KeySource, Mechanism, NewKey, NewMasterKey, ObjectInfo, SealedBlob,
    SignScheme, Status, TokenFacts, WrappedKey,
};
use crate::secret::SecretBytes;

/// The name of an HSM whose stanza gives none.
pub const DEFAULT_NAME: &str = "pkcs11";

/// How long work that needs an HSM waits for one that is just starting.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// For how many keys it is remembered which member has them.
const REMEMBERED: usize = 4096;

/// One HSM of a group.
pub struct Member {
    /// The stanza's `name`.
    pub name: String,
    /// Its objects carry `sos/<key_label>/…`; `None` where the cluster's label is used.
    pub key_label: Option<String>,
    /// Opens what it once sealed and gets nothing new.
    pub disabled: bool,
    /// The HSM.
    pub hsm: Arc<dyn Hsm>,
}

impl Member {
    /// The same HSM once more.
    pub fn duplicate(&self) -> Self {
        let (name, key_label) = (self.name.clone(), self.key_label.clone());
        Self { name, key_label, disabled: self.disabled, hsm: Arc::clone(&self.hsm) }
    }

    /// Whether it can be used now.
    pub fn is_ready(&self) -> bool {
        matches!(self.hsm.status(), Status::Ready(_))
    }

    /// What it is, while it can be used. The same `Arc` as long as it stays ready without a break.
    pub fn facts(&self) -> Option<Arc<TokenFacts>> {
        match self.hsm.status() {
            Status::Ready(facts) => Some(facts),
            Status::Starting | Status::Down { .. } => None,
        }
    }

    /// Whether both are ready and lead to one token.
    pub fn shares_token_with(&self, other: &Member) -> bool {
        let (Some(own), Some(other)) = (self.facts(), other.facts()) else { return false };
        own.serial == other.serial && own.label == other.label
    }

    /// Its state once it has started: a server that answers a moment before its HSM does is not an error to report.
    pub async fn started(&self) -> Status {
        let mut changes = self.hsm.subscribe();
        let settled = changes.wait_for(|status| !matches!(status, Status::Starting));
        match tokio::time::timeout(START_PATIENCE, settled).await {
            Ok(Ok(status)) => status.clone(),
            Ok(Err(_)) | Err(_) => self.hsm.status(),
        }
    }
}

/// The facts of the ready members and what they have in common.
type Merged = (Vec<Arc<TokenFacts>>, Arc<TokenFacts>);

/// Members in order.
pub type Members = Vec<Arc<Member>>;

/// HSMs in the order in which they are asked.
pub struct Group {
    members: Arc<ArcSwap<Members>>,
    /// Told when members come and go.
    replaced: watch::Sender<()>,
    /// Names of the members that hold keys of this cluster; `None` until the seal has said it.
    enrolled: RwLock<Option<Arc<BTreeSet<String>>>>,
    /// Where a key was found that the first member did not hold: the member's name.
    found: Cache<KeyId, Arc<str>>,
    merged: Mutex<Option<Merged>>,
}

impl Group {
    /// A group in the given order; disabled members go last.
    pub fn new(members: Vec<Member>) -> Arc<Self> {
        Arc::new(Self {
            members: Arc::new(ArcSwap::from_pointee(in_order(members.into_iter().map(Arc::new).collect()))),
            replaced: watch::Sender::default(),
            enrolled: RwLock::default(),
            found: Cache::new(REMEMBERED),
            merged: Mutex::default(),
        })
    }

    /// Puts other members in the place of these. Who is enrolled stays as it was said, by name.
    pub fn replace(&self, members: Members) {
        self.members.store(Arc::new(in_order(members)));
        self.found.clear();
        *self.merged.lock() = None;
        self.replaced.send_replace(());
    }

    /// Whether there is an HSM on which something could be made.
    pub fn is_configured(&self) -> bool {
        self.members.load().iter().any(|member| !member.disabled)
    }

    /// One HSM under the name that a stanza without a name has.
    pub fn of_one(hsm: Arc<dyn Hsm>) -> Arc<Self> {
        Self::new(vec![Member { name: DEFAULT_NAME.to_owned(), key_label: None, disabled: false, hsm }])
    }

    /// All members, enrolled or not.
    pub fn members(&self) -> Arc<Members> {
        self.members.load_full()
    }

    /// A member by name.
    pub fn member(&self, name: &str) -> Option<Arc<Member>> {
        self.members.load().iter().find(|member| member.name == name).cloned()
    }

    /// Says which members hold keys of this cluster. Only these are asked from now on.
    pub fn enroll(&self, names: impl IntoIterator<Item = String>) {
        *self.enrolled.write() = Some(Arc::new(names.into_iter().collect()));
        self.found.clear();
    }

    /// Forgets who is enrolled: the cluster is sealed.
    pub fn forget(&self) {
        *self.enrolled.write() = None;
        self.found.clear();
    }

    /// The members that hold keys of this cluster.
    pub fn enrolled(&self) -> Members {
        let enrolled = self.enrolled.read().clone();
        let usable = |member: &&Arc<Member>| match &enrolled {
            Some(names) => names.contains(&member.name),
            None => !member.disabled,
        };
        self.members.load().iter().filter(usable).cloned().collect()
    }

    /// The enrolled members that can be used now.
    pub fn ready(&self) -> Members {
        self.enrolled().into_iter().filter(|member| member.is_ready()).collect()
    }

    /// Where new objects are made: the first enrolled member that is ready.
    pub fn maker(&self) -> Result<Arc<Member>, HsmError> {
        let mut able = self.enrolled().into_iter().filter(|member| !member.disabled);
        able.find(|member| member.is_ready()).ok_or_else(|| self.unavailable())
    }

    /// The only member, where there is no choice: its errors are passed on as they are.
    fn only(&self) -> Option<Arc<dyn Hsm>> {
        match self.members.load().as_slice() {
            [only] => Some(Arc::clone(&only.hsm)),
            _ => None,
        }
    }

    /// Whom to ask for a key, in this order: ready members, or those that are just starting when none is ready.
    fn candidates(&self, key: KeyId) -> Members {
        let enrolled = self.enrolled();
        let mut ready: Members = enrolled.iter().filter(|member| member.is_ready()).cloned().collect();
        if ready.is_empty() {
            return enrolled.into_iter().filter(|member| member.hsm.status() == Status::Starting).collect();
        }
        if let Some(known) = self.found.get(&key)
            && let Some(at) = ready.iter().position(|member| *member.name == *known)
        {
            let first = ready.remove(at);
            ready.insert(0, first);
        }
        ready
    }

    /// Why no member can be asked.
    fn unavailable(&self) -> HsmError {
        let first = self.enrolled().into_iter().map(|member| (Arc::clone(&member), member.hsm.status())).next();
        match first {
            Some((member, Status::Down { reason, detail })) => {
                HsmError::Unavailable { reason, detail: format!("{}: {detail}", member.name) }
            }
            Some((member, _)) => {
                HsmError::Unavailable { reason: DownReason::DeviceError, detail: format!("{} is starting", member.name) }
            }
            None => HsmError::Unavailable { reason: DownReason::DeviceError, detail: "no HSM is enrolled".into() },
        }
    }

    /// What is said when no candidate did it: a missing key may be in a member that is away.
    fn verdict(&self, worst: Option<HsmError>) -> HsmError {
        match worst {
            Some(HsmError::KeyMissing(id)) => match self.enrolled().into_iter().find(|member| !member.is_ready()) {
                Some(away) => {
                    let reason = match away.hsm.status() {
                        Status::Down { reason, .. } => reason,
                        _ => DownReason::DeviceError,
                    };
                    let detail = format!("the key {id} may be in the HSM {:?}, which is away", away.name);
                    HsmError::Unavailable { reason, detail }
                }
                None => HsmError::KeyMissing(id),
            },
            Some(error) => error,
            None => self.unavailable(),
        }
    }

    /// Remembers where a key was when the first candidate did not hold it.
    fn note(&self, key: KeyId, member: &Member, missed: bool) {
        if missed {
            self.found.insert(key, member.name.as_str().into());
        }
    }
}

/// Disabled members go last.
fn in_order(mut members: Members) -> Members {
    members.sort_by_key(|member| member.disabled);
    members
}

/// Whether another member may do what this one did not. Only for what changes nothing on the token.
pub fn passes_on(error: &HsmError) -> bool {
    match error {
        HsmError::Unavailable { .. } | HsmError::Timeout | HsmError::KeyMissing(_) | HsmError::Unsupported(_) => true,
        HsmError::BadInput(_) | HsmError::KeyExists(_) => false,
    }
}

/// Keeps the error that says more: that an HSM is away beats that another has no such key.
fn graver(worst: Option<HsmError>, error: HsmError) -> HsmError {
    match worst {
        Some(old) if !matches!(old, HsmError::KeyMissing(_)) => old,
        _ => error,
    }
}

/// Asks one candidate after the other.
macro_rules! each {
    ($group:expr, $key:expr, |$hsm:ident| $call:expr) => {{
        if let Some($hsm) = $group.only() {
            return $call.await;
        }
        let (key, mut worst, mut missed) = ($key, None, false);
        for member in $group.candidates(key) {
            let $hsm = &member.hsm;
            match $call.await {
                Err(error) if passes_on(&error) => {
                    missed |= matches!(error, HsmError::KeyMissing(_));
                    worst = Some(graver(worst, error));
                }
                other => {
                    $group.note(key, &member, missed && other.is_ok());
                    return other;
                }
            }
        }
        Err($group.verdict(worst))
    }};
}

/// The key on the token that a use depends on.
fn token_key(source: &KeySource<'_>) -> KeyId {
    match source {
        KeySource::Token(id) => *id,
        KeySource::Wrapped(wrapped) => wrapped.wrapped_by,
    }
}

fn duplicate(items: &[AeadItem]) -> Vec<AeadItem> {
    let one = |item: &AeadItem| AeadItem { iv: item.iv, aad: item.aad.clone(), input: item.input.duplicate() };
    items.iter().map(one).collect()
}

/// What all of these can do: a key may only have a kind that every HSM which is to serve it can hold.
fn in_common(all: &[Arc<TokenFacts>]) -> Option<TokenFacts> {
    let (first, others) = all.split_first()?;
    let mut facts = TokenFacts::clone(first);
    for other in others {
        facts.max_plaintext = facts.max_plaintext.min(other.max_plaintext);
        for support in &mut facts.support {
            let theirs = other.support.iter().find(|theirs| theirs.kind == support.kind);
            if support.wrapped && !theirs.is_some_and(|theirs| theirs.wrapped) {
                support.wrapped = false;
                let reason = theirs.map_or("", |theirs| theirs.reason.as_str());
                support.reason = format!("the HSM {:?} cannot hold it: {reason}", other.label);
            }
        }
    }
    Some(facts)
}

#[async_trait]
impl Hsm for Group {
    fn status(&self) -> Status {
        if let Some(only) = self.only() {
            return only.status();
        }
        let (mut ready, mut starting, mut down) = (Vec::new(), false, None);
        for member in self.enrolled() {
            match member.hsm.status() {
                Status::Ready(facts) => ready.push(facts),
                Status::Starting => starting = true,
                other => down = down.or(Some(other)),
            }
        }
        let mut merged = self.merged.lock();
        if let Some((of, facts)) = &*merged
            && of.len() == ready.len()
            && of.iter().zip(&ready).all(|(old, new)| Arc::ptr_eq(old, new))
        {
            return Status::Ready(Arc::clone(facts));
        }
        match (in_common(&ready), down) {
            (Some(facts), _) => {
                let facts = Arc::new(facts);
                *merged = Some((ready, Arc::clone(&facts)));
                Status::Ready(facts)
            }
            (None, _) if starting => Status::Starting,
            (None, Some(down)) => down,
            (None, None) => Status::Down { reason: DownReason::DeviceError, detail: "no HSM is enrolled".into() },
        }
    }

    fn subscribe(&self) -> watch::Receiver<Status> {
        let (sender, receiver) = watch::channel(self.status());
        let (members, mut replaced) = (Arc::clone(&self.members), self.replaced.subscribe());
        tokio::spawn(async move {
            while !sender.is_closed() {
                let mut changes: Vec<_> = members.load().iter().map(|member| member.hsm.subscribe()).collect();
                loop {
                    let any = changes.iter_mut().map(|changes| Box::pin(changes.changed()));
                    let any = async {
                        match any.len() {
                            0 => std::future::pending().await,
                            _ => select_all(any).await,
                        }
                    };
                    let (changed, at) = tokio::select! {
                        (changed, at, _) = any => (changed, at),
                        new = replaced.changed() => match new {
                            Ok(()) => break,
                            Err(_) => return,
                        },
                        () = sender.closed() => return,
                    };
                    if changed.is_err() {
                        drop(changes.swap_remove(at));
                        continue;
                    }
                    if let Some(changes) = changes.get_mut(at) {
                        let status = changes.borrow_and_update().clone();
                        sender.send_replace(status);
                    }
                }
                // Whoever waits looks at the new members.
                let first = members.load().first().map(|member| member.hsm.status());
                sender.send_replace(first.unwrap_or(Status::Starting));
            }
        });
        receiver
    }

    fn in_use(&self) -> bool {
        !self.enrolled().is_empty()
    }

    fn into_group(self: Arc<Self>) -> Arc<Group> {
        self
    }

    async fn close(&self) {
        join_all(self.members().iter().map(|member| member.hsm.close())).await;
    }

    /// What the members that are ready hold.
    async fn find(&self, label_prefix: &str) -> Result<Vec<ObjectInfo>, HsmError> {
        let mut all: Vec<ObjectInfo> = Vec::new();
        let ready = self.ready();
        if ready.is_empty() {
            return Err(self.unavailable());
        }
        for member in ready {
            for object in member.hsm.find(label_prefix).await? {
                if !all.contains(&object) {
                    all.push(object);
                }
            }
        }
        Ok(all)
    }

    /// From every member. While one is away it may still hold the object, and the answer is an error.
    async fn destroy(&self, id: KeyId) -> Result<(), HsmError> {
        let mut result = Ok(());
        for member in self.enrolled() {
            if let Err(error) = member.hsm.destroy(id).await {
                result = Err(error);
            }
        }
        self.found.remove(&id);
        result
    }

    async fn create_seal_key(&self, label: &str, id: KeyId) -> Result<(), HsmError> {
        self.maker()?.hsm.create_seal_key(label, id).await
    }

    async fn seal(&self, id: KeyId, plaintext: &SecretBytes, aad: &[u8]) -> Result<SealedBlob, HsmError> {
        each!(self, id, |hsm| hsm.seal(id, plaintext, aad))
    }

    async fn unseal(&self, blob: &SealedBlob, aad: &[u8]) -> Result<SecretBytes, HsmError> {
        each!(self, blob.key, |hsm| hsm.unseal(blob, aad))
    }

    async fn create_master_key(&self, label: &str, id: KeyId, recipients: &[Vec<u8>]) -> Result<NewMasterKey, HsmError> {
        self.maker()?.hsm.create_master_key(label, id, recipients).await
    }

    async fn import_master_key(&self, label: &str, id: KeyId, material: &SecretBytes) -> Result<[u8; 32], HsmError> {
        self.maker()?.hsm.import_master_key(label, id, material).await
    }

    async fn create_transport_key(&self, label: &str, id: KeyId) -> Result<Vec<u8>, HsmError> {
        self.maker()?.hsm.create_transport_key(label, id).await
    }

    async fn accept_master_key(
        &self,
        transport: KeyId,
        label: &str,
        id: KeyId,
        mechanism: Mechanism,
        blob: &[u8],
    ) -> Result<[u8; 32], HsmError> {
        self.maker()?.hsm.accept_master_key(transport, label, id, mechanism, blob).await
    }

    async fn master_key_check_value(&self, id: KeyId) -> Result<[u8; 32], HsmError> {
        each!(self, id, |hsm| hsm.master_key_check_value(id))
    }

    async fn generate_wrapped(&self, master: KeyId, kind: KeyKind) -> Result<NewKey, HsmError> {
        each!(self, master, |hsm| hsm.generate_wrapped(master, kind))
    }

    async fn generate_on_token(&self, label: &str, id: KeyId, kind: KeyKind) -> Result<NewKey, HsmError> {
        self.maker()?.hsm.generate_on_token(label, id, kind).await
    }

    async fn wrap_material(&self, master: KeyId, kind: KeyKind, material: &SecretBytes) -> Result<WrappedKey, HsmError> {
        each!(self, master, |hsm| hsm.wrap_material(master, kind, material))
    }

    async fn unwrap_material(&self, wrapped: &WrappedKey) -> Result<SecretBytes, HsmError> {
        each!(self, wrapped.wrapped_by, |hsm| hsm.unwrap_material(wrapped))
    }

    async fn rewrap(&self, wrapped: &WrappedKey, new_master: KeyId) -> Result<WrappedKey, HsmError> {
        each!(self, wrapped.wrapped_by, |hsm| hsm.rewrap(wrapped, new_master))
    }

    async fn encrypt(&self, key: KeySource<'_>, items: Vec<AeadItem>) -> Result<Vec<Vec<u8>>, HsmError> {
        if let Some(only) = self.only() {
            return only.encrypt(key, items).await;
        }
        each!(self, token_key(&key), |hsm| hsm.encrypt(key, duplicate(&items)))
    }

    async fn decrypt(&self, key: KeySource<'_>, items: Vec<AeadItem>) -> Result<Vec<Result<SecretBytes, HsmError>>, HsmError> {
        if let Some(only) = self.only() {
            return only.decrypt(key, items).await;
        }
        each!(self, token_key(&key), |hsm| hsm.decrypt(key, duplicate(&items)))
    }

    async fn sign(&self, key: KeySource<'_>, scheme: SignScheme, input: &[u8]) -> Result<Vec<u8>, HsmError> {
        each!(self, token_key(&key), |hsm| hsm.sign(key, scheme, input))
    }

    async fn rsa_decrypt(&self, key: KeySource<'_>, ciphertext: &[u8]) -> Result<SecretBytes, HsmError> {
        each!(self, token_key(&key), |hsm| hsm.rsa_decrypt(key, ciphertext))
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let members = self.members();
        let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        f.debug_struct("Group").field("members", &names).finish_non_exhaustive()
    }
}
