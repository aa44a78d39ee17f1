//! The escrow drill: the loss of everything, rehearsed.
//!
//! From a copy of the store and the shares alone the cluster is rebuilt in an empty folder and on an empty token: the shares
//! open the store, the seal key is made anew, the zone master keys come from escrow. Then a sample of secrets and Transit key
//! versions is opened through the server's own request path, and compared with the running server where there is one.
//! Production is only read. Whatever happens, folder and token objects are removed in the end.

mod live;
mod sample;
mod secrets;
mod transit;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

pub use live::{Live, Unasked};
pub use sample::Sample;

use super::hsm::ThrowAwayToken;
use crate::{
    barrier::Barrier,
    core::{Core, Settings, clock::Clock},
    engines::Services,
    hsm::{Client, Group, Hsm, HsmConfig, KeyId, Member, ObjectInfo, VolatilePinMemory},
    seal::{Recovered, SEAL_PATH, Seal, SealError, SealRecord, SealSettings, SealType, wire::UnsealRequest},
    secret::SecretString,
    storage::{Storage, StorageError, Txn},
    zones::Zones,
};

/// Failures that are named before the rest is only counted.
const NAMED: usize = 50;

/// Why a drill could not be held. What a drill finds is not an error but its [`Report`].
#[derive(Debug, Error)]
pub enum DrillError {
    /// The copy of the store cannot be used.
    #[error("the copy of the store cannot be used: {0}")]
    Copy(String),
    /// The copy cannot be read or written.
    #[error("the copy of the store: {0}")]
    Storage(#[from] StorageError),
    /// There is no empty token to rebuild on.
    #[error("there is no token to rebuild on: {0}")]
    Token(String),
    /// The shares do not open the copy.
    #[error("the shares do not open the copy: {0}")]
    Shares(String),
    /// The keys did not come out of escrow.
    #[error("the keys could not be rebuilt: {0}")]
    Rebuild(SealError),
    /// It was told to stop; what it made is removed.
    #[error("interrupted; everything that it made is removed")]
    Interrupted,
    /// The rebuilt server does not answer.
    #[error("the rebuilt server did not come up: {0}")]
    Server(String),
}

/// What happens, for whoever watches.
#[derive(Clone, Debug)]
pub enum Step {
    /// A new stage begins.
    Stage(&'static str),
    /// So many secrets or key versions were opened.
    Opened(u64),
    /// So many objects of earlier drills that were cut off were removed from the token.
    Left(usize),
}

/// Told of every [`Step`].
pub type Progress<'a> = &'a mut (dyn FnMut(Step) + Send);

/// On which token the keys are rebuilt.
pub enum Token {
    /// A SoftHSM token in a temporary folder.
    ThrowAway,
    /// A token that the operator names; the drill's objects on it are removed afterwards.
    Given(Box<HsmConfig>),
}

/// Counts of one kind of thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Looked at.
    pub tried: u64,
    /// Opened with the rebuilt keys.
    pub opened: u64,
    /// Compared with the running server and found the same.
    pub same: u64,
    /// Not there any more on the running server, or changed since the copy was taken.
    pub moved: u64,
    /// Not compared, as the running server does not answer; see [`Report::unasked`].
    pub unasked: u64,
}

/// What the drill found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Name of the cluster.
    pub cluster_name: String,
    /// Identity of the cluster.
    pub cluster_id: String,
    /// Shares used, and how many there are.
    pub shares: (u8, u8),
    /// Whether a seal key was made anew; false for clusters under plain shares.
    pub seal_key: bool,
    /// Zone master keys that came out of escrow, as `zone/vN`.
    pub master_keys: Vec<String>,
    /// Zone master keys without an escrow copy, as `zone/vN`.
    pub lost_master_keys: Vec<String>,
    /// `hsm-only` key versions: they die with their HSM.
    pub hsm_only: Vec<String>,
    /// Secrets, version by version.
    pub secrets: Count,
    /// Transit key versions.
    pub key_versions: Count,
    /// Why the running server did not answer, the first time.
    pub unasked: Option<String>,
    /// What did not open, or opened to something else than the running server has; the first of them.
    pub failures: Vec<String>,
    /// How many failures there were.
    pub failed: u64,
}

impl Report {
    fn fail(&mut self, text: String) {
        self.failed += 1;
        if self.failures.len() < NAMED {
            self.failures.push(text);
        }
    }

    fn could_not_ask(&mut self, Unasked(why): Unasked) {
        self.unasked.get_or_insert(why);
    }

    /// Whether everything that was tried came back.
    pub fn is_good(&self) -> bool {
        self.failed == 0
    }

    /// Whether something would be lost for good.
    pub fn loses(&self) -> bool {
        !self.hsm_only.is_empty() || !self.lost_master_keys.is_empty()
    }
}

/// A drill over a copy of the store, which it changes at will.
pub struct Drill<'a> {
    /// The copy.
    pub copy: Arc<dyn Storage>,
    /// Shares, at least as many as the threshold.
    pub shares: &'a [SecretString],
    /// Where the keys are rebuilt.
    pub token: Token,
    /// How much is opened.
    pub sample: Sample,
    /// The running server, for comparison.
    pub live: Option<&'a dyn Live>,
}

/// How labels of a drill's objects begin; eight hexadecimal digits and a slash follow.
const LABEL: &str = "sos/drill-";

impl Drill<'_> {
    /// Holds the drill.
    ///
    /// When `stop` is done first, it ends with [`DrillError::Interrupted`]; what it made is removed also then.
    pub async fn run(self, progress: Progress<'_>, stop: impl Future<Output = ()>) -> Result<Report, DrillError> {
        let record = seal_record(self.copy.as_ref())?;
        progress(Step::Stage("preparing the copy"));
        silence_audit(self.copy.as_ref()).await?;
        let label = format!("drill-{}", hex::encode(crate::secret::random_array::<4>()));
        progress(Step::Stage("preparing an empty token"));
        let rebuilt = Rebuilt::start(&record, self.token, &label, progress).await?;
        let hsm = rebuilt.hsm.clone();
        let result = tokio::select! {
            result = rebuild_and_open(self.copy, &record, &label, hsm, self.shares, self.sample, self.live, progress) => result,
            () = stop => Err(DrillError::Interrupted),
        };
        progress(Step::Stage("cleaning up"));
        rebuilt.clean(&label).await?;
        result
    }
}

#[allow(clippy::too_many_arguments)] // the parts of one drill; called once
async fn rebuild_and_open(
    copy: Arc<dyn Storage>,
    record: &SealRecord,
    label: &str,
    hsm: Option<Arc<dyn Hsm>>,
    shares: &[SecretString],
    sample: Sample,
    live: Option<&dyn Live>,
    progress: Progress<'_>,
) -> Result<Report, DrillError> {
    let mut report = Report {
        cluster_name: record.cluster_name.clone(),
        cluster_id: record.cluster_id.clone(),
        shares: (record.threshold, record.shares),
        ..Report::default()
    };
    let core = assemble(copy, hsm, label);
    progress(Step::Stage("opening the copy with the shares"));
    let opened = unseal(&core, shares).await;
    let result = match opened {
        Ok(()) => open_all(&core, record, shares, sample, live, &mut report, progress).await,
        Err(error) => Err(error),
    };
    core.seal.shut_down().await;
    result.map(|()| report)
}

async fn open_all(
    core: &Arc<Core>,
    record: &SealRecord,
    shares: &[SecretString],
    sample: Sample,
    live: Option<&dyn Live>,
    report: &mut Report,
    progress: Progress<'_>,
) -> Result<(), DrillError> {
    let server = |failure: crate::core::failure::Failure| DrillError::Server(failure.explained());
    if record.seal_type == SealType::Pkcs11 {
        progress(Step::Stage("rebuilding seal key and zone master keys from escrow"));
        let hsm_only = core.hsm_only_keys().map_err(server)?;
        let masters = core.services.zones.master_keys().map_err(|error| DrillError::Server(error.to_string()))?;
        refuse_own_keys(core, masters.iter().map(|key| key.id).chain(hsm_only.iter().map(|(_, id)| *id)).collect()).await?;
        let recovered = core.seal.recover_hsm(&core.services.zones, shares).await.map_err(DrillError::Rebuild)?;
        let Recovered { seal_key, master_keys, lost } = recovered;
        if !seal_key {
            report.fail("the seal key: it was not made anew".to_owned());
        }
        for key in masters.into_iter().filter(|key| !master_keys.contains(&key.name) && !lost.contains(&key.name)) {
            report.fail(format!("the zone master key {}: it did not come out of escrow", key.name));
        }
        (report.seal_key, report.master_keys, report.lost_master_keys) = (seal_key, master_keys, lost);
        report.hsm_only = hsm_only.into_iter().map(|(name, _)| name).collect();
    }
    let active = core.active().map_err(server)?;
    let token = active.tokens.create_root(None).await.map_err(server)?;
    let rebuilt = live::Rebuilt::new(Arc::clone(core), token);
    progress(Step::Stage("opening secrets"));
    for mounted in active.router.all() {
        let path = mounted.entry.full_path();
        let version = mounted.entry.options.get("version").map(String::as_str);
        if mounted.entry.kind == "kv" {
            let kind =
                if version == Some("2") { secrets::Kind::Versioned { now: core.clock.now() } } else { secrets::Kind::Plain };
            secrets::open(&rebuilt, live, &path, kind, sample, report, progress).await?;
        }
    }
    progress(Step::Stage("opening Transit key versions"));
    for mounted in active.router.all() {
        if mounted.entry.kind == "transit" {
            transit::open(&rebuilt, live, &mounted.entry.full_path(), sample, report, progress).await?;
        }
    }
    Ok(())
}

/// What is rebuilt proves nothing on a token that holds it already.
async fn refuse_own_keys(core: &Core, keys: HashSet<KeyId>) -> Result<(), DrillError> {
    let Some(hsm) = &core.services.hsm else { return Ok(()) };
    let held = hsm.find("").await.map_err(|error| DrillError::Token(error.to_string()))?;
    match held.iter().find(|object| object.id.is_some_and(|id| keys.contains(&id))) {
        Some(object) => Err(not_empty(object)),
        None => Ok(()),
    }
}

fn not_empty(object: &ObjectInfo) -> DrillError {
    DrillError::Token(format!("it holds this cluster's key {:?}: name an empty token", object.label))
}

async fn unseal(core: &Core, shares: &[SecretString]) -> Result<(), DrillError> {
    for share in shares {
        let request = UnsealRequest { key: share.duplicate(), ..UnsealRequest::default() };
        let status = core.seal.unseal(request).await.map_err(|error| match error {
            SealError::InvalidKey => DrillError::Shares("wrong shares, or those of another cluster".into()),
            // The shares have opened it by then.
            SealError::Host(why) => DrillError::Server(why),
            other => DrillError::Shares(other.to_string()),
        })?;
        if !status.sealed {
            return Ok(());
        }
    }
    let status = core.seal.status().map_err(|error| DrillError::Shares(error.to_string()))?;
    Err(DrillError::Shares(format!("{} different share(s) were given, and {} are needed", status.progress, status.t)))
}

/// A server without listeners over the copy.
fn assemble(copy: Arc<dyn Storage>, hsm: Option<Arc<dyn Hsm>>, label: &str) -> Arc<Core> {
    let barrier = Arc::new(Barrier::new(copy));
    let services = Arc::new(Services {
        hsm: hsm.clone(),
        zones: Arc::new(Zones::new(Arc::clone(&barrier), hsm.clone(), label)),
        default_protection: None,
        transit: Arc::default(),
    });
    let settings = SealSettings { key_label: label.to_owned(), escrow: true, ..SealSettings::default() };
    Core::new(Arc::new(Seal::new(barrier, hsm, settings)), Clock::system(), Settings::default(), services)
}

fn seal_record(copy: &dyn Storage) -> Result<SealRecord, DrillError> {
    let stored = copy.get(SEAL_PATH)?.ok_or_else(|| DrillError::Copy("it holds no cluster".into()))?;
    serde_json::from_slice(&stored.value).map_err(|error| DrillError::Copy(format!("its seal record is damaged: {error}")))
}

/// The copy names the audit devices of production; nothing must be written there.
async fn silence_audit(copy: &dyn Storage) -> Result<(), DrillError> {
    const AUDIT: &str = "core/audit/";
    let devices = copy.scan(AUDIT, None, usize::MAX)?;
    let txn = devices.into_iter().fold(Txn::new(), |txn, (path, _)| txn.delete(path));
    copy.commit(txn).await?;
    Ok(())
}

/// The token of the drill and the client that reaches it.
struct Rebuilt {
    hsm: Option<Arc<dyn Hsm>>,
    client: Option<Arc<Client>>,
    token: Option<ThrowAwayToken>,
}

impl Rebuilt {
    /// A token without objects of this cluster; none for a cluster under plain shares.
    async fn start(record: &SealRecord, token: Token, label: &str, progress: Progress<'_>) -> Result<Self, DrillError> {
        if record.seal_type == SealType::Shamir {
            return Ok(Self { hsm: None, client: None, token: None });
        }
        let (config, throw_away) = match token {
            Token::ThrowAway => {
                let token = ThrowAwayToken::make().map_err(DrillError::Token)?;
                (token.config(), Some(token))
            }
            Token::Given(config) => (*config, None),
        };
        let client = Client::start(config, Arc::new(VolatilePinMemory::default()));
        match Self::on(&client, record, label, progress).await {
            Ok(group) => Ok(Self { hsm: Some(group), client: Some(client), token: throw_away }),
            Err(error) => {
                client.close().await;
                Err(error)
            }
        }
    }

    /// The token behind `client`, emptied of what other drills left.
    async fn on(
        client: &Arc<Client>,
        record: &SealRecord,
        label: &str,
        progress: Progress<'_>,
    ) -> Result<Arc<dyn Hsm>, DrillError> {
        let unusable = |error: crate::hsm::HsmError| DrillError::Token(error.to_string());
        tokio::time::timeout(READY, client.ready())
            .await
            .map_err(|_elapsed| DrillError::Token("it does not answer".into()))?
            .map_err(unusable)?;
        // The CKA_IDs are those of production, so a token that holds the cluster's keys is the wrong one. Which zone master keys
        // there are is known when the copy is open; see `refuse_own_keys`.
        let held = client.find("sos/").await.map_err(unusable)?;
        let (left, held): (Vec<_>, Vec<_>) = held.into_iter().partition(|object| object.label.starts_with(LABEL));
        let seals: Vec<_> = record.hsm_names().iter().filter_map(|name| record.seal_key_of(name)).collect();
        let prefixes: Vec<_> = record.key_labels().map(|label| format!("sos/{label}/")).collect();
        let ours = |object: &&ObjectInfo| {
            object.id.is_some_and(|id| seals.contains(&id)) || prefixes.iter().any(|prefix| object.label.starts_with(prefix))
        };
        if let Some(object) = held.iter().find(ours) {
            return Err(not_empty(object));
        }
        // A drill that was killed could not clean up. What another drill left may have the CKA_IDs that this one needs.
        for id in left.iter().filter_map(|object| object.id) {
            if held.iter().any(|object| object.id == Some(id)) {
                return Err(DrillError::Token(format!("the key {id} of an earlier drill is on it twice: name another token")));
            }
            client.destroy(id).await.map_err(unusable)?;
        }
        if !left.is_empty() {
            progress(Step::Left(left.len()));
        }
        let name = record.hsm_names().into_iter().next().unwrap_or_default();
        let hsm: Arc<dyn Hsm> = client.clone();
        Ok(Group::new(vec![Member { name, key_label: Some(label.to_owned()), disabled: false, hsm }]))
    }

    /// Takes the drill's objects off a token that stays, and lets go of it.
    async fn clean(self, label: &str) -> Result<(), DrillError> {
        let cleaned = self.remove_objects(label).await;
        if let Some(client) = &self.client {
            client.close().await;
        }
        cleaned
    }

    async fn remove_objects(&self, label: &str) -> Result<(), DrillError> {
        if let (Some(client), None) = (&self.client, &self.token) {
            let failed = |error: crate::hsm::HsmError| {
                DrillError::Token(format!("objects with the label sos/{label}/ are left on it, delete them: {error}"))
            };
            let prefix = format!("sos/{label}/");
            // Twice: an interrupted call may still make an object behind the first look.
            for pause in [Duration::ZERO, LATE] {
                tokio::time::sleep(pause).await;
                for id in client.find(&prefix).await.map_err(failed)?.into_iter().filter_map(|object| object.id) {
                    client.destroy(id).await.map_err(failed)?;
                }
            }
        }
        Ok(())
    }
}

/// How long an object may come behind the end of a drill.
const LATE: Duration = Duration::from_millis(500);

/// How long a token may take to come up.
const READY: Duration = Duration::from_secs(60);

/// A folder that only this user can enter and that goes when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it below `parent`.
    pub fn make(parent: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let folder = parent.join(format!("sos-drill-{}", hex::encode(crate::secret::random_array::<8>())));
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Self(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "the drill's folder could not be removed");
        }
    }
}
