//! Audit: every request and answer leaves a record in at least one enabled device, or the request fails.
//!
//! Values are recorded as HMACs under each device's own salt, so that an auditor can look for a known value (`sys/audit-hash`)
//! and a reader of the file learns none. A record is written when the operating system has it; a device that cannot
//! take records in time must not hold up the server while another one can.

mod device;
mod entry;
mod file;
mod options;
mod queue;
mod redact;
mod salt;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{
    barrier::{InDoubt, Txn, View},
    core::{
        clock::Clock,
        engine::Caller,
        failure::{Failure, Kind},
        mounts::MountEntry,
        reply::Reply,
        request::{Operation, Request},
    },
    storage::StorageError,
};
pub use device::{DEADLINE, DeviceRecord};
use device::{Device, DeviceError, Sent};
use entry::Formatter;
pub use options::OptionError;
use salt::Salt;

/// Where the names of audited headers are stored.
const HEADERS: &str = "audited-headers";

/// What is known of a request when it is recorded.
#[derive(Clone, Copy)]
pub struct Exchange<'a> {
    /// The request.
    pub request: &'a Request,
    /// With Create told from Update.
    pub operation: Operation,
    /// Who calls; absent when the token was not accepted.
    pub caller: Option<&'a Caller>,
    /// The mount, where one was found.
    pub mount: Option<&'a MountEntry>,
    /// The client's address.
    pub remote: Option<IpAddr>,
}

/// How an exchange ended.
#[derive(Clone, Copy)]
pub enum Outcome<'a> {
    /// An answer.
    Reply(&'a Reply),
    /// A refusal or failure.
    Failure(&'a Failure),
}

/// A device with its salt, as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    device: DeviceRecord,
    salt: String,
}

/// All enabled devices.
pub struct Broker {
    clock: Clock,
    /// Where files may be.
    allowed: Vec<String>,
    devices: ArcSwap<Vec<Arc<Device>>>,
    headers: ArcSwap<BTreeMap<String, bool>>,
    /// The store while unsealed.
    view: ArcSwapOption<View>,
    /// Changes are made one at a time; requests never take it.
    changing: Mutex<()>,
    /// How often files were to be opened anew.
    reopenings: AtomicU64,
    in_doubt: InDoubt,
}

impl Broker {
    /// A broker without devices; files may lie under `allowed` (folders, files, or `stdout`).
    pub fn new(clock: Clock, allowed: Vec<String>) -> Self {
        Self {
            clock,
            allowed,
            devices: ArcSwap::default(),
            headers: ArcSwap::default(),
            view: ArcSwapOption::empty(),
            changing: Mutex::new(()),
            reopenings: AtomicU64::new(0),
            in_doubt: InDoubt::default(),
        }
    }

    /// Whether any device is enabled.
    pub fn is_enabled(&self) -> bool {
        !self.devices.load().is_empty()
    }

    /// The devices as they are now, for a request that begins: should the server be sealed while it runs, they still
    /// record it.
    pub fn hold(&self) -> Held<'_> {
        let devices = self.devices.load();
        Held { broker: self, devices: (!devices.is_empty()).then(|| Arc::clone(&devices)), told: Vec::new() }
    }

    /// Starts the devices that are stored below `view` (`core/`), after the barrier was opened.
    ///
    /// # Errors
    /// For records that cannot be read. A device whose file cannot be opened is enabled all the same: its records fail.
    pub fn load(&self, view: View) -> Result<(), Failure> {
        self.in_doubt.forget();
        self.read(&view, &[])?;
        self.view.store(Some(Arc::new(view)));
        Ok(())
    }

    /// Takes over what is stored; devices of `running` that are stored as they run go on.
    fn read(&self, view: &View, running: &[Arc<Device>]) -> Result<(), Failure> {
        let mut devices = Vec::new();
        for (path, entry) in view.scan("audit/", None, usize::MAX)? {
            let corrupt = |reason: String| Failure::from(StorageError::Corrupt { key: path.clone(), reason });
            let stored: Stored = serde_json::from_slice(entry.value.expose()).map_err(|error| corrupt(error.to_string()))?;
            // Devices are made and removed, never changed.
            if let Some(device) = running.iter().find(|device| device.record.uuid == stored.device.uuid) {
                devices.push(Arc::clone(device));
                continue;
            }
            let device = Device::start(stored.device, Salt::from_text(stored.salt), &self.allowed);
            devices.push(device.map_err(|error| corrupt(error.to_string()))?);
        }
        let headers = match view.get(HEADERS)? {
            None => BTreeMap::new(),
            Some(entry) => serde_json::from_slice(entry.value.expose())
                .map_err(|error| StorageError::Corrupt { key: HEADERS.into(), reason: error.to_string() })?,
        };
        devices.sort_by(|a, b| a.record.path.cmp(&b.record.path));
        self.devices.store(Arc::new(devices));
        self.headers.store(Arc::new(headers));
        Ok(())
    }

    /// After changes of which nobody knows what became: takes over what the store holds. To be called from time to time.
    ///
    /// # Errors
    /// As long as the store does not answer.
    pub async fn settle(&self) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        self.settle_changes().await
    }

    async fn settle_changes(&self) -> Result<(), Failure> {
        let Some(view) = self.view.load_full() else { return Ok(()) };
        let reread = async {
            let running = self.devices.load_full();
            self.read(&view, &running)
        };
        self.in_doubt.settle(&view, reread).await
    }

    /// Forgets all devices, before the barrier is closed.
    pub fn unload(&self) {
        self.view.store(None);
        self.devices.store(Arc::default());
        self.headers.store(Arc::default());
    }

    /// Lets every device open its file anew (SIGHUP, after log rotation).
    pub fn reopen(&self) {
        self.reopenings.fetch_add(1, Ordering::SeqCst);
        for device in self.devices.load().iter() {
            device.reopen();
        }
    }

    /// [`Held::request`] with the devices of this moment.
    ///
    /// # Errors
    /// As there.
    pub async fn request(&self, exchange: Exchange<'_>, refused: Option<&Failure>) -> Result<(), Failure> {
        self.hold().request(exchange, refused)?.written().await
    }

    /// [`Held::response`] with the devices of this moment.
    ///
    /// # Errors
    /// As there.
    pub async fn response(&self, exchange: Exchange<'_>, outcome: Outcome<'_>) -> Result<(), Failure> {
        self.hold().response(exchange, outcome)?.written().await
    }

    /// The enabled devices, sorted by path.
    pub fn list(&self) -> Vec<DeviceRecord> {
        self.devices.load().iter().map(|device| device.record.clone()).collect()
    }

    /// Enables a device after a probe record was written to it.
    ///
    /// # Errors
    /// For a path in use, wrong options, and a device that cannot be written to.
    pub async fn enable(&self, record: DeviceRecord) -> Result<(), Failure> {
        let reopenings = self.reopenings.load(Ordering::SeqCst);
        let _one = self.changing.lock().await;
        self.settle_changes().await?;
        let devices = self.devices.load_full();
        let nests = |path: &str| path.starts_with(&record.path) || record.path.starts_with(path);
        if devices.iter().any(|device| nests(&device.record.path)) {
            return Err(Failure::invalid("path already in use"));
        }
        let salt = Salt::random();
        let stored = Stored { device: record.clone(), salt: salt.expose().to_owned() };
        let name = format!("audit/{}", record.uuid);
        let device = Device::start(record, salt, &self.allowed).map_err(|error| Failure::invalid(error.to_string()))?;
        let id = uuid::Uuid::new_v4().to_string();
        let probe = Formatter::new(&device, &self.headers.load()).probe(&id, self.clock.now()).map_err(Failure::internal)?;
        let probed = device.written(device.send(probe)).await;
        probed.map_err(|error| Failure::invalid(format!("the audit device failed its test record: {error}")))?;
        let value = serde_json::to_vec(&stored).map_err(Failure::internal)?;
        self.commit(Txn::new().put(name, value)).await?;
        let mut devices = Vec::clone(&devices);
        devices.push(device);
        devices.sort_by(|a, b| a.record.path.cmp(&b.record.path));
        self.devices.store(Arc::new(devices));
        if self.reopenings.load(Ordering::SeqCst) != reopenings {
            // It did not reach the new device, whose probe may have opened the file that was rotated away.
            self.reopen();
        }
        Ok(())
    }

    /// Disables the device at a path, if there is one.
    pub async fn disable(&self, path: &str) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        self.settle_changes().await?;
        let devices = self.devices.load_full();
        let Some(device) = devices.iter().find(|device| device.record.path == path) else { return Ok(()) };
        self.commit(Txn::new().delete(format!("audit/{}", device.record.uuid))).await?;
        let left = devices.iter().filter(|other| other.record.path != path).cloned().collect();
        self.devices.store(Arc::new(left));
        Ok(())
    }

    /// The HMAC that a device's records show for a value; `None` without such a device.
    pub fn hash(&self, path: &str, value: &str) -> Option<String> {
        let devices = self.devices.load();
        let device = devices.iter().find(|device| device.record.path == path)?;
        Some(device.salt.identify(value.as_bytes()))
    }

    /// Headers that are recorded, by name in lower case, and whether as HMACs.
    pub fn headers(&self) -> Arc<BTreeMap<String, bool>> {
        self.headers.load_full()
    }

    /// Records a header from now on (`Some`, whether as HMAC) or no longer.
    pub async fn set_header(&self, name: &str, hmac: Option<bool>) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        self.settle_changes().await?;
        let mut headers = BTreeMap::clone(&self.headers.load());
        match hmac {
            Some(hmac) => headers.insert(name.to_ascii_lowercase(), hmac),
            None => headers.remove(&name.to_ascii_lowercase()),
        };
        let value = serde_json::to_vec(&headers).map_err(Failure::internal)?;
        self.commit(Txn::new().put(HEADERS, value)).await?;
        self.headers.store(Arc::new(headers));
        Ok(())
    }

    async fn commit(&self, txn: Txn) -> Result<(), Failure> {
        let view = self.view.load_full().ok_or_else(|| Failure::unavailable("Vault is sealed"))?;
        self.in_doubt.commit(&view, txn).await?;
        Ok(())
    }
}

/// The audit devices as one request found them.
pub struct Held<'a> {
    broker: &'a Broker,
    devices: Option<Arc<Vec<Arc<Device>>>>,
    /// What was told of the request to each device: the record of its answer says it again.
    told: Vec<(Arc<Device>, Vec<u8>)>,
}

impl Held<'_> {
    /// The enabled devices; after a seal those that were enabled before.
    fn devices(&self) -> Option<Arc<Vec<Arc<Device>>>> {
        let now = self.broker.devices.load();
        // A seal takes the view away first, so devices that went by a seal are never taken for disabled ones.
        if self.broker.view.load().is_none() {
            return self.devices.clone();
        }
        (!now.is_empty()).then(|| Arc::clone(&now))
    }

    /// Records a request (`type: request`), allowed or refused. What changes anything waits until it is written.
    ///
    /// # Errors
    /// [`Recording::written`] tells.
    pub fn request(&mut self, exchange: Exchange<'_>, refused: Option<&Failure>) -> Result<Recording, Failure> {
        let mut recording = Recording::begin(Step::Request);
        let Some(devices) = self.devices() else { return Ok(recording) };
        let now = self.broker.clock.now();
        let headers = self.broker.headers.load();
        for device in devices.iter() {
            let common = Formatter::new(device, &headers).common(exchange, refused.is_none()).map_err(Failure::internal)?;
            recording.send(device, Formatter::request(&common, refused, now).map_err(Failure::internal)?);
            if refused.is_none() {
                self.told.push((Arc::clone(device), common));
            }
        }
        Ok(recording)
    }

    /// Records the answer (`type: response`) to the request that was recorded last, before it is sent.
    ///
    /// # Errors
    /// [`Recording::written`] tells.
    pub fn response(&mut self, exchange: Exchange<'_>, outcome: Outcome<'_>) -> Result<Recording, Failure> {
        let mut recording = Recording::begin(Step::Answer);
        let Some(devices) = self.devices() else { return Ok(recording) };
        let now = self.broker.clock.now();
        let headers = self.broker.headers.load();
        for device in devices.iter() {
            let formatter = Formatter::new(device, &headers);
            let line = match self.told.iter().find(|(told, _)| Arc::ptr_eq(told, device)) {
                Some((_, common)) => formatter.response(common, exchange, outcome, now),
                // Enabled while the request ran.
                None => formatter.common(exchange, true).and_then(|common| formatter.response(&common, exchange, outcome, now)),
            };
            recording.send(device, line.map_err(Failure::internal)?);
        }
        Ok(recording)
    }
}

/// What is recorded of an exchange.
#[derive(Clone, Copy)]
enum Step {
    Request,
    Answer,
}

impl Step {
    /// Why it stops when no device takes its record.
    fn failed(self, overloaded: bool) -> Failure {
        let (what, so) = match self {
            Self::Request => ("request", "it was not carried out"),
            Self::Answer => ("answer", "it is not sent"),
        };
        if overloaded {
            return Failure::unavailable(format!(
                "the server is overloaded: too many audit records wait to be written for the {what} to be recorded, so {so}; try again later"
            ));
        }
        Failure::listed(Kind::Internal, format!("internal error: no audit device could record the {what}, so {so}"))
    }
}

/// A record that every device has in its queue.
#[must_use]
pub struct Recording {
    on_its_way: Vec<(Arc<Device>, Sent)>,
    step: Step,
}

impl Recording {
    fn begin(step: Step) -> Self {
        Self { on_its_way: Vec::new(), step }
    }

    fn send(&mut self, device: &Arc<Device>, line: Vec<u8>) {
        self.on_its_way.push((Arc::clone(device), device.send(line)));
    }

    /// Waits until one device has written it: one is enough.
    ///
    /// # Errors
    /// When devices are enabled and none took the record in time: the request must not go on, the answer not be sent. It is the server's
    /// load where one of them has more waiting than it may hold, else something is wrong with all of them.
    pub async fn written(mut self) -> Result<(), Failure> {
        let step = self.step;
        let is_full = |error: &DeviceError| matches!(error, DeviceError::Full);
        match (self.on_its_way.pop(), self.on_its_way.is_empty()) {
            (None, _) => Ok(()),
            (Some((device, sent)), true) => device.written(sent).await.map_err(|error| step.failed(is_full(&error))),
            (Some(last), false) => {
                let all = self.on_its_way.into_iter().chain([last]);
                let mut waiting: FuturesUnordered<_> =
                    all.map(|(device, sent)| async move { device.written(sent).await }).collect();
                let mut overloaded = false;
                loop {
                    match waiting.next().await {
                        Some(Ok(())) => return Ok(()),
                        Some(Err(error)) => overloaded |= is_full(&error),
                        None => return Err(step.failed(overloaded)),
                    }
                }
            }
        }
    }
}

/// What the fuzz target of files beside the store calls: an audit file that goes on after any content.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_end(before: &[u8]) {
    file::fuzz_end(before);
}

#[cfg(test)]
mod tests;
