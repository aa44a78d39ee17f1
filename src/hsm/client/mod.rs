//! The server's side of the HSM: one worker process, supervised, behind the [`Hsm`] trait.
//!
//! Calls go out over one socket, many at a time, and are matched by number. Each ends by its deadline, whatever the
//! module does. A worker that hangs or dies is replaced; calls that change nothing on the token are then sent once more.

mod batches;
mod link;
mod process;
mod supervisor;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use self::batches::{Batches, Part};
use self::link::{Link, Pending};
use self::process::Living;
use super::proto::{self, Bytes, Frame, Header, Inspection, Item, Key, Lane, Op, Reply, Wrapped};
use super::{
    AeadItem, DownReason, Group, Hsm, HsmConfig, HsmError, KeyId, KeyKind, KeySource, Mechanism, NewKey, NewMasterKey,
    ObjectInfo, PinMemory, SealedBlob, SignScheme, Status, WrappedKey,
};
use crate::secret::SecretBytes;

/// The answer to an item of a batch.
type Opened = Result<SecretBytes, HsmError>;

/// The HSM through its worker process. Dropping it ends the worker, in its own time; [`Hsm::close`] waits for that.
pub struct Client {
    shared: Arc<Shared>,
    /// Dropped with the client, which ends the supervisor.
    stop: Mutex<Option<oneshot::Sender<()>>>,
}

struct Shared {
    config: HsmConfig,
    memory: Arc<dyn PinMemory>,
    status: watch::Sender<Status>,
    link: Mutex<Link>,
    last_call: AtomicU64,
    batches: Batches,
    /// The supervisor and workers that have not ended; see [`Living`].
    living: watch::Sender<usize>,
}

impl Shared {
    /// Numbers start at 1: 0 is for what belongs to no call.
    fn next_call(&self) -> u64 {
        self.last_call.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Client {
    /// Starts the supervisor on a thread of its own and returns at once; [`Hsm::subscribe`] tells when the HSM is ready.
    pub fn start(config: HsmConfig, memory: Arc<dyn PinMemory>) -> Arc<Client> {
        let shared = Arc::new(Shared {
            config,
            memory,
            status: watch::Sender::new(Status::Starting),
            link: Mutex::default(),
            last_call: AtomicU64::new(0),
            batches: Batches::default(),
            living: watch::Sender::new(0),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let supervised = shared.clone();
        let living = Living::begin(&shared.living);
        // Its own thread: answers must not wait behind a busy server's tasks, nor depend on which runtime called.
        let thread = std::thread::Builder::new().name("hsm-client".into()).spawn(move || {
            supervise(&supervised, stopped);
            drop(living);
        });
        if let Err(error) = thread {
            let detail = format!("no thread for the HSM client: {error}");
            shared.status.send_replace(Status::Down { reason: DownReason::DeviceError, detail });
        }
        Arc::new(Client { shared, stop: Mutex::new(Some(stop)) })
    }

    /// Waits until the HSM is ready; an error when it is down.
    pub async fn ready(&self) -> Result<Arc<super::TokenFacts>, HsmError> {
        let mut changes = self.shared.status.subscribe();
        loop {
            match &*changes.borrow_and_update() {
                Status::Ready(facts) => return Ok(facts.clone()),
                Status::Down { reason, detail } => {
                    return Err(HsmError::Unavailable { reason: *reason, detail: detail.clone() });
                }
                Status::Starting => {}
            }
            if changes.changed().await.is_err() {
                return Err(ended());
            }
        }
    }

    /// What `sos hsm doctor` shows besides the self-test.
    pub(super) async fn inspect(&self) -> Result<Inspection, HsmError> {
        self.ask(Op::Inspect, |reply| match reply {
            Reply::Inspection(inspection) => Some(inspection),
            _ => None,
        })
        .await
    }

    /// Encrypts the first items, as many as the worker does in its time.
    async fn encrypt_part(&self, key: Key<'_>, part: &[AeadItem]) -> Result<Part<Vec<u8>>, HsmError> {
        let op = Op::Encrypt { key, items: items(part) };
        self.ask(op, |reply| match reply {
            Reply::Many { outputs, micros } if (1..=part.len()).contains(&outputs.len()) => Some(Part {
                outputs: outputs.into_iter().map(|output| output.0.to_vec()).collect(),
                took: Duration::from_micros(micros),
            }),
            _ => None,
        })
        .await
    }

    /// Decrypts the first items, as many as the worker does in its time.
    async fn decrypt_part(&self, key: Key<'_>, part: &[AeadItem]) -> Result<Part<Opened>, HsmError> {
        let op = Op::Decrypt { key, items: items(part) };
        self.ask(op, |reply| match reply {
            Reply::Each { outputs, micros } if (1..=part.len()).contains(&outputs.len()) => Some(Part {
                outputs: outputs.into_iter().map(|output| output.map(secret).map_err(HsmError::from)).collect(),
                took: Duration::from_micros(micros),
            }),
            _ => None,
        })
        .await
    }

    async fn call(&self, op: &Op<'_>) -> Result<Frame, HsmError> {
        let shared = &self.shared;
        let id = shared.next_call();
        let deadline = if op.lane() == Lane::Long { shared.config.generate_deadline } else { shared.config.deadline };
        let expires = Instant::now() + deadline;
        let header = Header { call: id, lane: op.lane(), millis: u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX) };
        let frame =
            proto::request(header, op).map_err(|_| HsmError::BadInput("the request is too long for one HSM operation".into()))?;
        let frame = Arc::new(frame);
        let (answer, receiver) = oneshot::channel();
        let mut pending = Pending { answer, expires, repeat: op.repeatable().then(|| frame.clone()) };
        // Almost always a worker runs and this loop ends at once.
        while let Err(back) = self.send(id, frame.clone(), pending)? {
            pending = back;
            let ready = tokio::time::timeout_at(expires.into(), self.ready()).await;
            ready.map_err(|_| HsmError::Timeout)??;
            // Ready, yet without a worker: it ended this moment and its status is about to change.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(frame);
        receiver.await.map_err(|_| ended())?
    }

    /// Hands a call to the running worker; the inner error means that there is none.
    fn send(&self, id: u64, frame: Arc<Frame>, pending: Pending) -> Result<Result<(), Pending>, HsmError> {
        let mut link = self.shared.link.lock();
        if link.len() >= self.shared.config.queue {
            return Err(HsmError::Timeout);
        }
        Ok(link.send(id, frame, pending))
    }

    /// Sends a call and turns the answer into the caller's type.
    async fn ask<T>(&self, op: Op<'_>, read: impl FnOnce(Reply<'_>) -> Option<T>) -> Result<T, HsmError> {
        let frame = self.call(&op).await?;
        let (_, body) = proto::split_message(&frame).ok_or_else(nonsense)?;
        match proto::decode::<Reply<'_>>(body) {
            Ok(Reply::Failed(failure)) => Err(failure.into()),
            Ok(reply) => read(reply).ok_or_else(nonsense),
            Err(_) => Err(nonsense()),
        }
    }
}

fn supervise(shared: &Arc<Shared>, stopped: oneshot::Receiver<()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let detail = format!("no runtime for the HSM client: {error}");
            shared.status.send_replace(Status::Down { reason: DownReason::DeviceError, detail });
            return;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            _ = stopped => {}
            () = supervisor::supervise(shared.clone()) => {}
        }
    });
    shared.link.lock().disconnect(false, &ended());
}

fn ended() -> HsmError {
    HsmError::Unavailable { reason: DownReason::DeviceError, detail: "the HSM client was closed".into() }
}

fn nonsense() -> HsmError {
    HsmError::Unavailable {
        reason: DownReason::DeviceError,
        detail: "the worker answers something else than what was asked".into(),
    }
}

fn on_wire(wrapped: &WrappedKey) -> Wrapped<'_> {
    Wrapped {
        id: wrapped.id.into(),
        kind: wrapped.kind,
        mechanism: wrapped.mechanism,
        wrapped_by: wrapped.wrapped_by.into(),
        blob: Bytes(&wrapped.blob),
    }
}

fn off_wire(wrapped: Wrapped<'_>) -> WrappedKey {
    WrappedKey {
        id: wrapped.id.into(),
        kind: wrapped.kind,
        mechanism: wrapped.mechanism,
        wrapped_by: wrapped.wrapped_by.into(),
        blob: wrapped.blob.0.to_vec(),
    }
}

fn key<'a>(source: &KeySource<'a>) -> Key<'a> {
    match source {
        KeySource::Token(id) => Key::Token((*id).into()),
        KeySource::Wrapped(wrapped) => Key::Wrapped(on_wire(wrapped)),
    }
}

fn items(items: &[AeadItem]) -> Vec<Item<'_>> {
    items.iter().map(|item| Item { iv: item.iv, aad: Bytes(&item.aad), input: Bytes(item.input.expose()) }).collect()
}

fn secret(bytes: Bytes<'_>) -> SecretBytes {
    SecretBytes::new(bytes.0.to_vec())
}

#[async_trait]
impl Hsm for Client {
    fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    fn subscribe(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    fn into_group(self: Arc<Self>) -> Arc<Group> {
        Group::of_one(self)
    }

    async fn close(&self) {
        drop(self.stop.lock().take());
        // The sender lives as long as this does.
        let _ = self.shared.living.subscribe().wait_for(|living| *living == 0).await;
    }

    async fn find(&self, label_prefix: &str) -> Result<Vec<ObjectInfo>, HsmError> {
        self.ask(Op::Find { label_prefix }, |reply| match reply {
            Reply::Objects(objects) => {
                Some(objects.into_iter().map(|(id, label)| ObjectInfo { id: id.map(KeyId::from), label }).collect())
            }
            _ => None,
        })
        .await
    }

    async fn destroy(&self, id: KeyId) -> Result<(), HsmError> {
        self.ask(Op::Destroy { id: id.into() }, done).await
    }

    async fn create_seal_key(&self, label: &str, id: KeyId) -> Result<(), HsmError> {
        self.ask(Op::CreateSealKey { label, id: id.into() }, done).await
    }

    async fn seal(&self, id: KeyId, plaintext: &SecretBytes, aad: &[u8]) -> Result<SealedBlob, HsmError> {
        let op = Op::Seal { id: id.into(), plaintext: Bytes(plaintext.expose()), aad: Bytes(aad) };
        self.ask(op, |reply| match reply {
            Reply::Blob { mechanism, bytes } => Some(SealedBlob { key: id, mechanism, blob: bytes.0.to_vec() }),
            _ => None,
        })
        .await
    }

    async fn unseal(&self, blob: &SealedBlob, aad: &[u8]) -> Result<SecretBytes, HsmError> {
        let op = Op::Unseal { key: blob.key.into(), mechanism: blob.mechanism, blob: Bytes(&blob.blob), aad: Bytes(aad) };
        self.ask(op, bytes).await
    }

    async fn create_master_key(&self, label: &str, id: KeyId, recipients: &[Vec<u8>]) -> Result<NewMasterKey, HsmError> {
        let recipients = recipients.iter().map(|recipient| Bytes(recipient)).collect();
        self.ask(Op::CreateMasterKey { label, id: id.into(), recipients }, |reply| match reply {
            Reply::Master { check_value, exported } => Some(NewMasterKey { check_value, exported }),
            _ => None,
        })
        .await
    }

    async fn import_master_key(&self, label: &str, id: KeyId, material: &SecretBytes) -> Result<[u8; 32], HsmError> {
        self.ask(Op::ImportMasterKey { label, id: id.into(), material: Bytes(material.expose()) }, check_value).await
    }

    async fn create_transport_key(&self, label: &str, id: KeyId) -> Result<Vec<u8>, HsmError> {
        self.ask(Op::CreateTransportKey { label, id: id.into() }, |reply| match reply {
            Reply::NewKey { public_key, .. } => public_key,
            _ => None,
        })
        .await
    }

    async fn accept_master_key(
        &self,
        transport: KeyId,
        label: &str,
        id: KeyId,
        mechanism: Mechanism,
        blob: &[u8],
    ) -> Result<[u8; 32], HsmError> {
        let (transport, id) = (transport.into(), id.into());
        self.ask(Op::AcceptMasterKey { transport, label, id, mechanism, blob: Bytes(blob) }, check_value).await
    }

    async fn master_key_check_value(&self, id: KeyId) -> Result<[u8; 32], HsmError> {
        self.ask(Op::CheckValue { id: id.into() }, check_value).await
    }

    async fn generate_wrapped(&self, master: KeyId, kind: KeyKind) -> Result<NewKey, HsmError> {
        self.ask(Op::GenerateWrapped { master: master.into(), kind }, new_key).await
    }

    async fn generate_on_token(&self, label: &str, id: KeyId, kind: KeyKind) -> Result<NewKey, HsmError> {
        self.ask(Op::GenerateOnToken { label, id: id.into(), kind }, new_key).await
    }

    async fn wrap_material(&self, master: KeyId, kind: KeyKind, material: &SecretBytes) -> Result<WrappedKey, HsmError> {
        let op = Op::WrapMaterial { master: master.into(), kind, material: Bytes(material.expose()) };
        self.ask(op, wrapped).await
    }

    async fn unwrap_material(&self, wrapped: &WrappedKey) -> Result<SecretBytes, HsmError> {
        self.ask(Op::UnwrapMaterial { wrapped: on_wire(wrapped) }, bytes).await
    }

    async fn rewrap(&self, key: &WrappedKey, new_master: KeyId) -> Result<WrappedKey, HsmError> {
        self.ask(Op::Rewrap { wrapped: on_wire(key), new_master: new_master.into() }, wrapped).await
    }

    async fn encrypt(&self, source: KeySource<'_>, batch: Vec<AeadItem>) -> Result<Vec<Vec<u8>>, HsmError> {
        let key = key(&source);
        self.shared.batches.run(&batch, |part| self.encrypt_part(key, part)).await
    }

    async fn decrypt(&self, source: KeySource<'_>, batch: Vec<AeadItem>) -> Result<Vec<Result<SecretBytes, HsmError>>, HsmError> {
        let key = key(&source);
        self.shared.batches.run(&batch, |part| self.decrypt_part(key, part)).await
    }

    async fn sign(&self, source: KeySource<'_>, scheme: SignScheme, input: &[u8]) -> Result<Vec<u8>, HsmError> {
        let op = Op::Sign { key: key(&source), scheme, input: Bytes(input) };
        self.ask(op, |reply| match reply {
            Reply::Bytes(signature) => Some(signature.0.to_vec()),
            _ => None,
        })
        .await
    }

    async fn rsa_decrypt(&self, source: KeySource<'_>, ciphertext: &[u8]) -> Result<SecretBytes, HsmError> {
        self.ask(Op::RsaDecrypt { key: key(&source), ciphertext: Bytes(ciphertext) }, bytes).await
    }
}

fn done(reply: Reply<'_>) -> Option<()> {
    matches!(reply, Reply::Done).then_some(())
}

fn bytes(reply: Reply<'_>) -> Option<SecretBytes> {
    match reply {
        Reply::Bytes(bytes) => Some(secret(bytes)),
        _ => None,
    }
}

fn check_value(reply: Reply<'_>) -> Option<[u8; 32]> {
    match reply {
        Reply::CheckValue(value) => Some(value),
        _ => None,
    }
}

fn wrapped(reply: Reply<'_>) -> Option<WrappedKey> {
    match reply {
        Reply::Wrapped(wrapped) => Some(off_wire(wrapped)),
        _ => None,
    }
}

fn new_key(reply: Reply<'_>) -> Option<NewKey> {
    match reply {
        Reply::NewKey { wrapped, public_key } => Some(NewKey { wrapped: wrapped.map(off_wire), public_key }),
        _ => None,
    }
}
