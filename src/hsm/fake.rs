//! A token in memory that keeps the [`Hsm`] contract, for tests. It does AES, P-256 and RSA-2048, counts calls, and fails
//! when told to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes128Gcm, Aes256Gcm, Nonce};
use async_trait::async_trait;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::rsa::{Padding, Rsa};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::{Barrier, watch};

use super::{
    AeadItem, DownReason, Group, Hsm, HsmError, KeyId, KeyKind, KeySource, Mechanism, NewKey, NewMasterKey, ObjectInfo,
    SealedBlob, SignScheme, Status, Support, TokenFacts, WrappedKey,
};
use crate::secret::{SecretBytes, random_array};

struct Object {
    label: String,
    /// As the real ones take it in: raw bytes of AES keys, PKCS#8 of the others.
    key: Vec<u8>,
}

/// A software token. Keep it over a simulated restart, as a real token is kept.
pub struct FakeHsm {
    objects: Mutex<BTreeMap<KeyId, Object>>,
    /// Private halves of transport keys.
    transports: Mutex<BTreeMap<KeyId, PrivateDecryptingKey>>,
    serial: String,
    status: watch::Sender<Status>,
    calls: AtomicUsize,
    /// From this call on everything fails.
    dead_from: AtomicUsize,
    /// Whether the first failing call still takes effect on the token (killed between effect and answer).
    effect_before_death: std::sync::atomic::AtomicBool,
    /// Where the next key that is made waits.
    held: Mutex<Option<Arc<Barrier>>>,
    /// Where the next object that is destroyed does.
    held_destroyed: Mutex<Option<Arc<Barrier>>>,
}

impl FakeHsm {
    /// A token in use.
    pub fn new() -> Arc<Self> {
        let serial = hex::encode(random_array::<8>());
        Arc::new(Self {
            objects: Mutex::default(),
            transports: Mutex::default(),
            status: watch::Sender::new(ready(&serial)),
            serial,
            calls: AtomicUsize::new(0),
            dead_from: AtomicUsize::new(usize::MAX),
            effect_before_death: false.into(),
            held: Mutex::default(),
            held_destroyed: Mutex::default(),
        })
    }

    /// Whether it can hold keys of a kind, wrapped and as token objects; `reason` where it cannot.
    pub fn set_support(&self, kind: KeyKind, reason: Option<&str>) {
        self.status.send_modify(|status| {
            let Status::Ready(facts) = status else { return };
            let mut changed = TokenFacts::clone(facts);
            changed.support.retain(|support| support.kind != kind);
            let works = reason.is_none();
            let reason = reason.unwrap_or_default().to_owned();
            changed.support.push(Support { kind, wrapped: works, token: works, reason });
            *facts = Arc::new(changed);
        });
    }

    /// Takes the token away.
    pub fn go_down(&self, reason: DownReason) {
        self.status.send_replace(Status::Down { reason, detail: "told to".into() });
    }

    /// Puts it where an HSM is whose worker process has just been started.
    pub fn begin_starting(&self) {
        self.status.send_replace(Status::Starting);
    }

    /// Brings it back, also after [`FakeHsm::die_at`].
    pub fn come_back(&self) {
        self.dead_from.store(usize::MAX, Ordering::SeqCst);
        self.status.send_replace(ready(&self.serial));
    }

    /// Makes the `nth` call from now and all later ones fail; with `effect` that one still changes the token.
    pub fn die_at(&self, nth: usize, effect: bool) {
        self.effect_before_death.store(effect, Ordering::SeqCst);
        self.dead_from.store(self.calls() + nth, Ordering::SeqCst);
    }

    /// How many operations were asked for.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// The next key that is made or wrapped is answered only after two meetings at the barrier: one when it is made, and one
    /// when it may be answered.
    pub fn hold_next(&self) -> Arc<Barrier> {
        let barrier = Arc::new(Barrier::new(2));
        *self.held.lock() = Some(Arc::clone(&barrier));
        barrier
    }

    /// The same for the next object that is destroyed.
    pub fn hold_next_destroyed(&self) -> Arc<Barrier> {
        let barrier = Arc::new(Barrier::new(2));
        *self.held_destroyed.lock() = Some(Arc::clone(&barrier));
        barrier
    }

    async fn wait_if_held(&self) {
        Self::wait_at(&self.held).await;
    }

    async fn wait_at(held: &Mutex<Option<Arc<Barrier>>>) {
        let held = held.lock().take();
        if let Some(barrier) = held {
            barrier.wait().await;
            barrier.wait().await;
        }
    }

    /// Labels of all objects, sorted.
    pub fn labels(&self) -> Vec<String> {
        let mut labels: Vec<_> = self.objects.lock().values().map(|object| object.label.clone()).collect();
        labels.sort();
        labels
    }

    /// The worker process ends and the next one is ready at once: nobody sees it away.
    pub fn restart_worker(&self) {
        self.status.send_replace(ready(&self.serial));
    }

    /// Loses every object, as a token that was initialised anew.
    pub fn wipe(&self) {
        self.objects.lock().clear();
        self.transports.lock().clear();
    }

    /// Counts a call; `Ok(true)` when it must fail after its effect.
    fn enter(&self) -> Result<bool, HsmError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if let Status::Down { reason, detail } = &*self.status.borrow() {
            return Err(HsmError::Unavailable { reason: *reason, detail: detail.clone() });
        }
        let dead_from = self.dead_from.load(Ordering::SeqCst);
        let last = call == dead_from && self.effect_before_death.load(Ordering::SeqCst);
        if call >= dead_from && !last { Err(HsmError::Timeout) } else { Ok(last) }
    }

    fn key(&self, id: KeyId) -> Result<SecretBytes, HsmError> {
        let objects = self.objects.lock();
        objects.get(&id).map(|object| SecretBytes::new(object.key.clone())).ok_or(HsmError::KeyMissing(id))
    }

    fn put(&self, label: &str, id: KeyId, key: &[u8]) -> Result<(), HsmError> {
        let mut objects = self.objects.lock();
        if objects.contains_key(&id) {
            return Err(HsmError::KeyExists(id));
        }
        objects.insert(id, Object { label: label.to_owned(), key: key.to_vec() });
        Ok(())
    }

    fn load(&self, source: KeySource<'_>) -> Result<SecretBytes, HsmError> {
        match source {
            KeySource::Token(id) => self.key(id),
            KeySource::Wrapped(wrapped) => self.open_wrapped(wrapped),
        }
    }

    fn open_wrapped(&self, wrapped: &WrappedKey) -> Result<SecretBytes, HsmError> {
        gcm_open(self.key(wrapped.wrapped_by)?.expose(), wrapped.id.0.as_slice(), &wrapped.blob)
    }

    fn wrap(&self, master: KeyId, kind: KeyKind, material: &[u8]) -> Result<WrappedKey, HsmError> {
        let id = KeyId::random();
        let blob = gcm_seal(self.key(master)?.expose(), &id.0, material);
        Ok(WrappedKey { id, kind, mechanism: Mechanism::AesGcm, wrapped_by: master, blob })
    }
}

fn ready(serial: &str) -> Status {
    let can = |kind| Support { kind, wrapped: true, token: true, reason: String::new() };
    Status::Ready(Arc::new(TokenFacts {
        module: "fake".into(),
        label: "fake".into(),
        serial: serial.to_owned(),
        seal_mechanism: Mechanism::AesGcm,
        support: [KeyKind::Aes128, KeyKind::Aes256, KeyKind::EcP256, KeyKind::Rsa2048].map(can).to_vec(),
        max_plaintext: 1 << 20,
    }))
}

fn finish<T>(value: T, dies: bool) -> Result<T, HsmError> {
    if dies { Err(HsmError::Timeout) } else { Ok(value) }
}

fn gcm_seal(key: &[u8], aad: &[u8], msg: &[u8]) -> Vec<u8> {
    let iv: [u8; 12] = random_array();
    let mut out = iv.to_vec();
    out.extend(gcm(key, &iv, aad, msg, true).unwrap());
    out
}

fn gcm_open(key: &[u8], aad: &[u8], sealed: &[u8]) -> Result<SecretBytes, HsmError> {
    let (iv, rest) = sealed.split_at_checked(12).ok_or_else(|| HsmError::BadInput("too short".into()))?;
    gcm(key, iv, aad, rest, false).map(SecretBytes::new)
}

fn gcm(key: &[u8], iv: &[u8], aad: &[u8], msg: &[u8], encrypt: bool) -> Result<Vec<u8>, HsmError> {
    let nonce = Nonce::try_from(iv).unwrap();
    let payload = Payload { msg, aad };
    let done = match (key.len(), encrypt) {
        (16, true) => Aes128Gcm::new_from_slice(key).unwrap().encrypt(&nonce, payload),
        (16, false) => Aes128Gcm::new_from_slice(key).unwrap().decrypt(&nonce, payload),
        (_, true) => Aes256Gcm::new_from_slice(key).unwrap().encrypt(&nonce, payload),
        (_, false) => Aes256Gcm::new_from_slice(key).unwrap().decrypt(&nonce, payload),
    };
    done.map_err(|_| HsmError::BadInput("does not authenticate".into()))
}

/// One of a few pairs, because making one takes long.
fn transport_key() -> PrivateDecryptingKey {
    static KEYS: std::sync::OnceLock<Vec<PrivateDecryptingKey>> = std::sync::OnceLock::new();
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let make = |_| PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
    let keys = KEYS.get_or_init(|| (0..3).map(make).collect());
    keys[NEXT.fetch_add(1, Ordering::SeqCst) % keys.len()].clone()
}

fn check_value(key: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(b"check").chain_update(key).finalize().into()
}

fn unsupported() -> HsmError {
    HsmError::Unsupported("the fake token does AES, P-256 and RSA-2048 only".into())
}

/// New material of a kind, and the public half.
fn generate(kind: KeyKind) -> Result<(SecretBytes, Option<Vec<u8>>), HsmError> {
    let pair = match kind {
        KeyKind::Aes128 => return Ok((SecretBytes::random(16), None)),
        KeyKind::Aes256 => return Ok((SecretBytes::random(32), None)),
        KeyKind::EcP256 => {
            let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
            PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
        }
        KeyKind::Rsa2048 => PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap(),
        _ => return Err(unsupported()),
    };
    Ok((SecretBytes::new(pair.private_key_to_pkcs8().unwrap()), Some(pair.public_key_to_der().unwrap())))
}

#[async_trait]
impl Hsm for FakeHsm {
    fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    fn into_group(self: Arc<Self>) -> Arc<Group> {
        Group::of_one(self)
    }

    async fn find(&self, label_prefix: &str) -> Result<Vec<ObjectInfo>, HsmError> {
        let dies = self.enter()?;
        let objects = self.objects.lock();
        let found = objects.iter().filter(|(_, object)| object.label.starts_with(label_prefix));
        finish(found.map(|(id, object)| ObjectInfo { id: Some(*id), label: object.label.clone() }).collect(), dies)
    }

    async fn destroy(&self, id: KeyId) -> Result<(), HsmError> {
        let dies = self.enter()?;
        self.objects.lock().remove(&id);
        self.transports.lock().remove(&id);
        Self::wait_at(&self.held_destroyed).await;
        finish((), dies)
    }

    async fn create_seal_key(&self, label: &str, id: KeyId) -> Result<(), HsmError> {
        let dies = self.enter()?;
        self.put(label, id, &random_array::<32>())?;
        finish((), dies)
    }

    async fn seal(&self, id: KeyId, plaintext: &SecretBytes, aad: &[u8]) -> Result<SealedBlob, HsmError> {
        let dies = self.enter()?;
        let blob = gcm_seal(self.key(id)?.expose(), aad, plaintext.expose());
        finish(SealedBlob { key: id, mechanism: Mechanism::AesGcm, blob }, dies)
    }

    async fn unseal(&self, blob: &SealedBlob, aad: &[u8]) -> Result<SecretBytes, HsmError> {
        let dies = self.enter()?;
        finish(gcm_open(self.key(blob.key)?.expose(), aad, &blob.blob)?, dies)
    }

    async fn create_master_key(&self, label: &str, id: KeyId, recipients: &[Vec<u8>]) -> Result<NewMasterKey, HsmError> {
        let dies = self.enter()?;
        let key: [u8; 32] = random_array();
        let mut exported = Vec::new();
        for recipient in recipients {
            let public = PublicEncryptingKey::from_der(recipient).map_err(|e| HsmError::BadInput(e.to_string()))?;
            let public = OaepPublicEncryptingKey::new(public).unwrap();
            let mut blob = vec![0; public.ciphertext_size()];
            public.encrypt(&OAEP_SHA1_MGF1SHA1, &key, &mut blob, None).unwrap();
            exported.push((Mechanism::RsaOaepSha1, blob));
        }
        self.put(label, id, &key)?;
        finish(NewMasterKey { check_value: check_value(&key), exported }, dies)
    }

    async fn import_master_key(&self, label: &str, id: KeyId, material: &SecretBytes) -> Result<[u8; 32], HsmError> {
        let dies = self.enter()?;
        if material.len() != 32 {
            return Err(HsmError::BadInput("32 bytes".into()));
        }
        self.put(label, id, material.expose())?;
        finish(check_value(material.expose()), dies)
    }

    async fn create_transport_key(&self, label: &str, id: KeyId) -> Result<Vec<u8>, HsmError> {
        let dies = self.enter()?;
        self.put(label, id, &random_array::<32>())?;
        let key = transport_key();
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        self.transports.lock().insert(id, key);
        finish(public.as_ref().to_vec(), dies)
    }

    async fn accept_master_key(
        &self,
        transport: KeyId,
        label: &str,
        id: KeyId,
        _mechanism: Mechanism,
        blob: &[u8],
    ) -> Result<[u8; 32], HsmError> {
        let dies = self.enter()?;
        let key = self.transports.lock().get(&transport).cloned().ok_or(HsmError::KeyMissing(transport))?;
        let key = OaepPrivateDecryptingKey::new(key).unwrap();
        let mut buffer = vec![0; key.min_output_size()];
        let opened = key.decrypt(&OAEP_SHA1_MGF1SHA1, blob, &mut buffer, None);
        let opened = opened.map_err(|_| HsmError::BadInput("does not unwrap".into()))?;
        let check = check_value(opened);
        self.put(label, id, opened)?;
        finish(check, dies)
    }

    async fn master_key_check_value(&self, id: KeyId) -> Result<[u8; 32], HsmError> {
        let dies = self.enter()?;
        finish(check_value(self.key(id)?.expose()), dies)
    }

    async fn generate_wrapped(&self, master: KeyId, kind: KeyKind) -> Result<NewKey, HsmError> {
        let dies = self.enter()?;
        let (material, public_key) = generate(kind)?;
        let wrapped = Some(self.wrap(master, kind, material.expose())?);
        self.wait_if_held().await;
        finish(NewKey { wrapped, public_key }, dies)
    }

    async fn generate_on_token(&self, label: &str, id: KeyId, kind: KeyKind) -> Result<NewKey, HsmError> {
        let dies = self.enter()?;
        let (material, public_key) = generate(kind)?;
        self.put(label, id, material.expose())?;
        self.wait_if_held().await;
        finish(NewKey { wrapped: None, public_key }, dies)
    }

    async fn wrap_material(&self, master: KeyId, kind: KeyKind, material: &SecretBytes) -> Result<WrappedKey, HsmError> {
        let dies = self.enter()?;
        let wrapped = self.wrap(master, kind, material.expose())?;
        self.wait_if_held().await;
        finish(wrapped, dies)
    }

    async fn unwrap_material(&self, wrapped: &WrappedKey) -> Result<SecretBytes, HsmError> {
        let dies = self.enter()?;
        finish(self.open_wrapped(wrapped)?, dies)
    }

    async fn rewrap(&self, wrapped: &WrappedKey, new_master: KeyId) -> Result<WrappedKey, HsmError> {
        let dies = self.enter()?;
        let material = self.open_wrapped(wrapped)?;
        let blob = gcm_seal(self.key(new_master)?.expose(), &wrapped.id.0, material.expose());
        finish(WrappedKey { wrapped_by: new_master, blob, ..wrapped.clone() }, dies)
    }

    async fn encrypt(&self, key: KeySource<'_>, items: Vec<AeadItem>) -> Result<Vec<Vec<u8>>, HsmError> {
        let dies = self.enter()?;
        let key = self.load(key)?;
        let one = |item: AeadItem| gcm(key.expose(), &item.iv, &item.aad, item.input.expose(), true);
        finish(items.into_iter().map(one).collect::<Result<_, _>>()?, dies)
    }

    async fn decrypt(&self, key: KeySource<'_>, items: Vec<AeadItem>) -> Result<Vec<Result<SecretBytes, HsmError>>, HsmError> {
        let dies = self.enter()?;
        let key = self.load(key)?;
        let one = |item: AeadItem| gcm(key.expose(), &item.iv, &item.aad, item.input.expose(), false).map(SecretBytes::new);
        finish(items.into_iter().map(one).collect(), dies)
    }

    async fn sign(&self, key: KeySource<'_>, scheme: SignScheme, input: &[u8]) -> Result<Vec<u8>, HsmError> {
        let dies = self.enter()?;
        let key = PKey::private_key_from_pkcs8(self.load(key)?.expose()).unwrap();
        let signature = match scheme {
            SignScheme::Ecdsa => {
                let signature = EcdsaSig::sign(input, &key.ec_key().unwrap()).unwrap();
                [signature.r(), signature.s()].map(|number| number.to_vec_padded(32).unwrap()).concat()
            }
            SignScheme::RsaRaw => {
                let mut out = vec![0; key.size()];
                key.rsa().unwrap().private_encrypt(input, &mut out, Padding::NONE).unwrap();
                out
            }
            SignScheme::Eddsa => return Err(unsupported()),
        };
        finish(signature, dies)
    }

    async fn rsa_decrypt(&self, key: KeySource<'_>, ciphertext: &[u8]) -> Result<SecretBytes, HsmError> {
        let dies = self.enter()?;
        let key = PKey::private_key_from_pkcs8(self.load(key)?.expose()).unwrap();
        let mut out = vec![0; key.size()];
        key.rsa().unwrap().private_decrypt(ciphertext, &mut out, Padding::NONE).unwrap();
        finish(SecretBytes::new(out), dies)
    }
}
