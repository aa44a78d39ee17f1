//! The token as the worker's threads share it: one login, one generation of handles, one lock around what makes, finds
//! or destroys objects, one shared probe, and the way back after a loss.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki_sys::*;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::template::{self, Place, Usage};
use super::{Fatal, Trouble};
use crate::hsm::ck_error::{CkError, Kind};
use crate::hsm::proto::{Failure, Hello, Wrapped};
use crate::hsm::quirks::{self, Quirks};
use crate::hsm::raw::{Attribute, Mechanism, Module, Object, Session, TokenInfo};
use crate::hsm::{DownReason, KeyId, KeyKind, Mechanism as BlobMechanism};
use crate::secret::SecretString;

/// A failed probe costs one more round trip than a successful one; probing may take one part in this many of the time.
const PROBE_SHARE: u32 = 20;

/// The token.
pub struct Device {
    /// The module.
    pub module: Module,
    /// The token's slot.
    pub slot: CK_SLOT_ID,
    /// The token as it was at the start.
    pub info: TokenInfo,
    /// Manufacturer and description of the module.
    pub module_name: String,
    /// What the token claims to be able to do.
    pub mechanisms: Vec<CK_MECHANISM_TYPE>,
    /// What is known about the vendor.
    pub quirks: Quirks,
    pin: SecretString,
    key_cache: usize,
    /// Read while a call is under way, written to replace everything after a loss: no call is in flight then.
    current: RwLock<Current>,
    /// Held around find, generate, create, copy, unwrap and destroy: SoftHSM fails keygens beside finds otherwise.
    objects: Mutex<()>,
    probe: Mutex<ProbeRecord>,
}

/// Everything that dies with a login.
pub struct Current {
    /// Counts losses; what belongs to an older number is void.
    pub generation: u64,
    /// Holds the login and owns the loaded keys. Used only under the object lock.
    pub keeper: Session,
    probe_key: Option<(Object, Probing)>,
    handles: RwLock<HashMap<(KeyId, CK_OBJECT_CLASS, CK_KEY_TYPE), Object>>,
    loaded: quick_cache::sync::Cache<KeyId, Arc<Loaded>>,
    graveyard: Arc<Mutex<Vec<Object>>>,
}

#[derive(Clone, Copy)]
enum Probing {
    Gcm,
    Cbc,
}

/// A wrapped key's session object. It is destroyed by the next holder of the object lock after its last user is done.
pub struct Loaded {
    /// Its handle.
    pub object: Object,
    graveyard: Arc<Mutex<Vec<Object>>>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.graveyard.lock().push(self.object);
    }
}

/// The device cannot be had back. No call is in flight, and none begins as long as this lives.
pub struct Lost<'a> {
    /// Why.
    pub why: Fatal,
    _quiet: RwLockWriteGuard<'a, Current>,
}

struct ProbeRecord {
    ended: Option<Instant>,
    took: Duration,
    healthy: bool,
}

impl Device {
    /// Logs in. Every error is final for this process.
    pub fn open(module: Module, slot: CK_SLOT_ID, info: TokenInfo, hello: &Hello, pin: SecretString) -> Result<Self, Fatal> {
        let fatal = |error: CkError| Fatal::new(DownReason::DeviceError, error.to_string());
        let module_name = module.info().map_err(fatal)?;
        let mechanisms = module.mechanisms(slot).map_err(fatal)?;
        let keeper = log_in(&module, slot, &pin)?;
        let quirks = quirks::of(&module_name);
        let device = Self {
            module,
            slot,
            info,
            module_name,
            mechanisms,
            quirks,
            pin,
            key_cache: hello.key_cache.max(1),
            current: RwLock::new(Current::new(0, keeper, hello.key_cache.max(1))),
            objects: Mutex::new(()),
            probe: Mutex::new(ProbeRecord { ended: None, took: Duration::ZERO, healthy: true }),
        };
        let key = device.make_probe_key(keeper);
        device.current.write().probe_key = key;
        Ok(device)
    }

    /// The current generation, held for the time of one operation.
    pub fn current(&self) -> RwLockReadGuard<'_, Current> {
        self.current.read()
    }

    /// The lock around everything that makes, finds or destroys objects. Objects whose users are gone are destroyed
    /// on the way.
    pub fn objects(&self, current: &Current) -> MutexGuard<'_, ()> {
        let guard = self.objects.lock();
        let dead = std::mem::take(&mut *current.graveyard.lock());
        for object in dead {
            if let Err(error) = self.module.destroy(current.keeper, object) {
                tracing::debug!(%error, "a session object could not be destroyed");
            }
        }
        guard
    }

    /// Whether the token claims a mechanism.
    pub fn has(&self, mechanism: CK_MECHANISM_TYPE) -> bool {
        self.mechanisms.contains(&mechanism)
    }

    /// The token object with this CKA_ID, class and key type.
    pub fn token_key(
        &self,
        current: &Current,
        id: KeyId,
        class: CK_OBJECT_CLASS,
        key_type: CK_KEY_TYPE,
    ) -> Result<Object, Trouble> {
        let name = (id, class, key_type);
        if let Some(object) = current.handles.read().get(&name) {
            return Ok(*object);
        }
        let guard = self.objects(current);
        let object = self.find_key(current.keeper, id, class, key_type)?.ok_or(Trouble::Missing(id))?;
        drop(guard);
        current.handles.write().insert(name, object);
        Ok(object)
    }

    /// Looks for a key on the token; to be called under the object lock.
    pub fn find_key(
        &self,
        session: Session,
        id: KeyId,
        class: CK_OBJECT_CLASS,
        key_type: CK_KEY_TYPE,
    ) -> Result<Option<Object>, CkError> {
        let template = [
            Attribute::flag(CKA_TOKEN, true),
            Attribute::number(CKA_CLASS, class),
            Attribute::number(CKA_KEY_TYPE, key_type),
            Attribute::bytes(CKA_ID, &id.0),
        ];
        Ok(self.module.find(session, &template, 1)?.first().copied())
    }

    /// A zone master key's handle.
    pub fn master_key(&self, current: &Current, id: KeyId) -> Result<Object, Trouble> {
        self.token_key(current, id, CKO_SECRET_KEY, CKK_AES)
    }

    /// A wrapped key as non-extractable session object, from the cache or freshly unwrapped.
    pub fn load(&self, current: &Current, wrapped: &Wrapped<'_>) -> Result<Arc<Loaded>, Trouble> {
        let id = KeyId::from(wrapped.id);
        if let Some(loaded) = current.loaded.get(&id) {
            return Ok(loaded);
        }
        let master = self.master_key(current, wrapped.wrapped_by.into())?;
        let guard = self.objects(current);
        if let Some(loaded) = current.loaded.get(&id) {
            return Ok(loaded);
        }
        let object = self.unwrap(current.keeper, master, wrapped, false)?;
        drop(guard);
        let loaded = Arc::new(Loaded { object, graveyard: current.graveyard.clone() });
        current.loaded.insert(id, loaded.clone());
        Ok(loaded)
    }

    /// Unwraps into a session object of `session`; to be called under the object lock.
    pub fn unwrap(&self, session: Session, master: Object, wrapped: &Wrapped<'_>, extractable: bool) -> Result<Object, Trouble> {
        let key_type = template::key_type(wrapped.kind);
        let template = match wrapped.kind {
            KeyKind::Aes128 | KeyKind::Aes256 => template::secret(key_type, Place::Session, Usage::CIPHER, extractable),
            _ => template::private(key_type, Place::Session, private_usage(wrapped.kind), extractable),
        };
        let mechanism = self.wrapping(wrapped.mechanism)?;
        Ok(self.module.unwrap(session, mechanism, master, wrapped.blob.0, &template)?)
    }

    /// How a blob's mechanism is called on this module.
    pub fn wrapping(&self, mechanism: BlobMechanism) -> Result<Mechanism<'static>, Trouble> {
        match mechanism {
            BlobMechanism::AesKw => Ok(Mechanism::Plain(CKM_AES_KEY_WRAP)),
            BlobMechanism::AesKwp => self.padded_wrap().map(Mechanism::Plain).ok_or_else(|| {
                Trouble::Failed(Failure::Unsupported("the module has no AES key wrap with padding (RFC 5649)".into()))
            }),
            BlobMechanism::RsaOaepSha1 => Ok(Mechanism::OaepSha1),
            BlobMechanism::RsaOaepSha256 => Ok(Mechanism::OaepSha256),
            BlobMechanism::AesGcm | BlobMechanism::AesCbcHmac => {
                Err(Trouble::Failed(Failure::BadInput("a key is not wrapped by this mechanism".into())))
            }
        }
    }

    /// The mechanism number of RFC 5649 on this module.
    fn padded_wrap(&self) -> Option<CK_MECHANISM_TYPE> {
        match self.quirks.key_wrap_padded {
            Some(number) => self.has(number).then_some(number),
            None => self.has(CKM_AES_KEY_WRAP_KWP).then_some(CKM_AES_KEY_WRAP_KWP),
        }
    }

    /// Forgets the handle of a key that the module does not know any more.
    pub fn forget(&self, current: &Current, id: KeyId) {
        current.handles.write().retain(|(known, _, _), _| *known != id);
        current.loaded.remove(&id);
    }

    /// Forgets every handle: which one the module complained about is not known.
    pub fn forget_all(&self, current: &Current) {
        current.handles.write().clear();
        current.loaded.clear();
    }

    /// Whether the token still works. All callers share one probe at a time, and probing never takes more than a
    /// twentieth of the time (nor happens more rarely than once a second when asked for): between two probes the last
    /// verdict stands. So a flood of bad ciphertexts costs the other callers next to nothing.
    pub fn healthy(&self, current: &Current, session: Session) -> bool {
        let mut record = self.probe.lock();
        let pause = (record.took * PROBE_SHARE).min(Duration::from_secs(1));
        if record.ended.is_some_and(|ended| ended.elapsed() < pause) {
            return record.healthy;
        }
        let started = Instant::now();
        let result = self.probe_now(current, session);
        if let Err(error) = &result {
            tracing::warn!(%error, "the HSM does not pass the probe");
        }
        *record = ProbeRecord { ended: Some(Instant::now()), took: started.elapsed(), healthy: result.is_ok() };
        record.healthy
    }

    /// Asks for the token and encrypts a block with a private session key, which fails when the login is gone.
    fn probe_now(&self, current: &Current, session: Session) -> Result<(), CkError> {
        let info = self.module.token_info(self.slot)?;
        if info.serial != self.info.serial {
            return Err(CkError { function: "C_GetTokenInfo", rv: CKR_TOKEN_NOT_RECOGNIZED });
        }
        match current.probe_key {
            Some((key, Probing::Gcm)) => {
                let mechanism = Mechanism::Gcm { iv: &crate::secret::random_array(), aad: &[] };
                self.module.encrypt(session, mechanism, key, &[0; 16], 16)?;
            }
            Some((key, Probing::Cbc)) => {
                let iv = crate::secret::random_array();
                self.module.encrypt(session, Mechanism::Cbc(&iv), key, &[0; 16], 16)?;
            }
            None => self.module.session_alive(session)?,
        }
        Ok(())
    }

    fn make_probe_key(&self, keeper: Session) -> Option<(Object, Probing)> {
        let probing = if self.has(CKM_AES_GCM) {
            Probing::Gcm
        } else if self.has(CKM_AES_CBC) {
            Probing::Cbc
        } else {
            return None;
        };
        let template = template::secret_of_len(CKK_AES, Place::Session, Usage::CIPHER, false, 32);
        self.module.generate_key(keeper, CKM_AES_KEY_GEN, &template).ok().map(|key| (key, probing))
    }

    /// Starts over after a failed probe: closes every session (no call is in flight), logs in anew and probes. `seen`
    /// is the generation that failed; when another thread was faster there is nothing left to do. An error is final
    /// for this process: what is left then is a new one, and no thread begins a call any more (another log-in among them).
    pub fn recover(&self, seen: u64) -> Result<(), Lost<'_>> {
        let mut current = self.current.write();
        if current.generation != seen {
            return Ok(());
        }
        match self.renewed(seen + 1) {
            Ok(next) => *current = next,
            Err(why) => return Err(Lost { why, _quiet: current }),
        }
        Ok(())
    }

    /// Everything anew under the object's lock.
    fn renewed(&self, generation: u64) -> Result<Current, Fatal> {
        tracing::warn!(generation, "the HSM session is lost: logging in again");
        let _ = self.module.close_all(self.slot);
        let keeper = log_in(&self.module, self.slot, &self.pin)?;
        let mut next = Current::new(generation, keeper, self.key_cache);
        next.probe_key = self.make_probe_key(keeper);
        let probed = self.probe_now(&next, keeper);
        probed.map_err(|error| Fatal::new(DownReason::DeviceError, error.to_string()))?;
        *self.probe.lock() = ProbeRecord { ended: Some(Instant::now()), took: Duration::ZERO, healthy: true };
        Ok(next)
    }

    /// Waits for the calls under way and lets go of the token. No call begins any more: the process is to end now.
    pub fn close(&self) {
        let quiet = self.current.write();
        if let Err(error) = self.module.finalize() {
            tracing::debug!(%error, "the module does not finalize");
        }
        // Held for good.
        std::mem::forget(quiet);
    }
}

impl Current {
    fn new(generation: u64, keeper: Session, key_cache: usize) -> Self {
        Self {
            generation,
            keeper,
            probe_key: None,
            handles: RwLock::default(),
            loaded: quick_cache::sync::Cache::new(key_cache),
            graveyard: Arc::default(),
        }
    }
}

/// What a private key of a kind is for.
pub fn private_usage(kind: KeyKind) -> Usage {
    // RSA decrypts and signs with one key in Vault; the others sign.
    Usage { decrypt: kind.is_rsa(), ..Usage::SIGNER }
}

/// Opens the keeper session and logs in, unless the token says that the PIN must not be tried now.
fn log_in(module: &Module, slot: CK_SLOT_ID, pin: &SecretString) -> Result<Session, Fatal> {
    let fatal = |error: CkError| {
        let reason = match error.kind() {
            Kind::PinRefused => DownReason::PinRefused,
            Kind::PinLocked => DownReason::PinLocked,
            _ => DownReason::DeviceError,
        };
        Fatal::new(reason, error.to_string())
    };
    let info = module.token_info(slot).map_err(fatal)?;
    if info.flags & CKF_USER_PIN_LOCKED != 0 {
        return Err(Fatal::new(DownReason::PinLocked, "the token says that the user PIN is locked"));
    }
    if info.flags & CKF_USER_PIN_FINAL_TRY != 0 {
        let detail = "one wrong PIN more locks the token, so none is tried: log in once by hand with the right PIN";
        return Err(Fatal::new(DownReason::PinLocked, detail));
    }
    let session = module.open_session(slot).map_err(fatal)?;
    if info.flags & CKF_LOGIN_REQUIRED != 0 || info.flags & CKF_USER_PIN_INITIALIZED != 0 {
        module.login(session, CKU_USER, pin.expose()).map_err(fatal)?;
    }
    Ok(session)
}
