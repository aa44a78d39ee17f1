//! The start-up self-test: whether this module may hold keys, and which kinds. It uses session objects only, leaves
//! nothing behind on the token and takes a fraction of a second.
//!
//! A kind is generated, wrapped, unwrapped and used by every operation that Transit asks of it, except for RSA, of
//! which only a 2048-bit pair is generated: primes of 4096-bit keys can take seconds, and every start would wait for
//! them. The larger sizes are tested with known keys that are brought in wrapped (see [`rsa`]).

mod rsa;

use std::cell::OnceCell;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use cryptoki_sys::*;

use super::device::Device;
use super::ops::keys::{Made, generate, wrap, wrapping_of};
use super::template::{self, Place, Usage};
use super::{Fatal, Trouble};
use crate::hsm::proto::{Bytes, Failure, Wrapped};
use crate::hsm::raw::{Attribute, Mechanism, Object, Session};
use crate::hsm::{DownReason, KeyId, KeyKind, Mechanism as BlobMechanism, Support, TokenFacts};
use crate::secret::{random_array, wipe};

type Result<T> = std::result::Result<T, String>;

/// Mechanisms with their names.
macro_rules! named {
    ($($mechanism:ident),* $(,)?) => { &[$(($mechanism, stringify!($mechanism))),*] };
}

/// What making and using a key of a kind takes. Wrapping it is looked at apart: an `hsm-only` key is never wrapped.
fn mechanisms(kind: KeyKind) -> &'static [(CK_MECHANISM_TYPE, &'static str)] {
    match kind {
        KeyKind::Aes128 | KeyKind::Aes256 => named![CKM_AES_KEY_GEN, CKM_AES_GCM],
        KeyKind::EcP256 | KeyKind::EcP384 | KeyKind::EcP521 => named![CKM_EC_KEY_PAIR_GEN, CKM_ECDSA],
        KeyKind::Ed25519 => named![CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EDDSA],
        KeyKind::Rsa2048 | KeyKind::Rsa3072 | KeyKind::Rsa4096 => named![CKM_RSA_PKCS_KEY_PAIR_GEN],
    }
}

struct Test<'a> {
    device: &'a Device,
    session: Session,
    /// The one RSA pair that is generated, for all sizes.
    rsa: OnceCell<rsa::Generated>,
}

/// Tests the token; an error means that it must not or cannot be used.
pub fn run(device: &Device, wanted_seal: Option<BlobMechanism>) -> std::result::Result<TokenFacts, Fatal> {
    let current = device.current();
    let session =
        device.module.open_session(device.slot).map_err(|error| Fatal::new(DownReason::DeviceError, error.to_string()))?;
    let test = Test { device, session, rsa: OnceCell::new() };
    let guard = device.objects(&current);
    let facts = test.all(wanted_seal);
    // The session's objects go with it.
    let _ = device.module.close_session(session);
    drop(guard);
    facts
}

impl Test<'_> {
    fn all(&self, wanted_seal: Option<BlobMechanism>) -> std::result::Result<TokenFacts, Fatal> {
        self.posture().map_err(|text| Fatal::new(DownReason::PostureRefused, text))?;
        let gcm = self.gcm();
        let seal_mechanism = self.seal_mechanism(wanted_seal, &gcm)?;
        let master = self.master();
        let support = KINDS.iter().map(|kind| self.support(*kind, &gcm, &master)).collect();
        Ok(TokenFacts {
            module: self.device.module_name.clone(),
            label: self.device.info.label.clone(),
            serial: self.device.info.serial.clone(),
            seal_mechanism,
            support,
            max_plaintext: self.device.quirks.max_plaintext,
        })
    }

    /// A key like the seal key must be what its template says, and must not leave by any of the usual ways.
    fn posture(&self) -> Result<()> {
        let (module, session) = (&self.device.module, self.session);
        let template = template::secret_of_len(CKK_AES, Place::Session, Usage::CIPHER, false, 32);
        let key = module.generate_key(session, CKM_AES_KEY_GEN, &template).map_err(|error| error.to_string())?;
        for (attribute, wanted, name) in [
            (CKA_SENSITIVE, true, "CKA_SENSITIVE"),
            (CKA_EXTRACTABLE, false, "CKA_EXTRACTABLE"),
            (CKA_PRIVATE, true, "CKA_PRIVATE"),
            (CKA_WRAP, false, "CKA_WRAP"),
        ] {
            let value = module.attribute(session, key, attribute).map_err(|error| error.to_string())?;
            if value.is_none_or(|value| value.as_slice() != [u8::from(wanted)]) {
                return Err(format!("{name} of a new key is not what the template says"));
            }
        }
        if module.attribute(session, key, CKA_VALUE).is_ok_and(|value| value.is_some_and(|value| !value.is_empty())) {
            return Err("the value of a sensitive key can be read".into());
        }
        self.refuses_wrap(key)?;
        let changes = [Attribute::flag(CKA_EXTRACTABLE, true)];
        if let Ok(copy) = module.copy(session, key, &changes) {
            let value = module.attribute(session, copy, CKA_EXTRACTABLE).ok().flatten();
            let _ = module.destroy(session, copy);
            if value.is_none_or(|value| value.as_slice() != [0]) {
                return Err("C_CopyObject makes an extractable copy of a key that is not extractable".into());
            }
        }
        Ok(())
    }

    fn refuses_wrap(&self, key: Object) -> Result<()> {
        let Ok(wrapper) = self.master() else { return Ok(()) };
        for mechanism in [CKM_AES_KEY_WRAP, CKM_AES_KEY_WRAP_PAD, CKM_AES_KEY_WRAP_KWP] {
            if !self.device.has(mechanism) {
                continue;
            }
            if let Ok(mut blob) = self.device.module.wrap(self.session, Mechanism::Plain(mechanism), wrapper, key, 256) {
                wipe(&mut blob);
                return Err(format!("C_WrapKey (mechanism 0x{mechanism:04X}) wraps a key that is not extractable"));
            }
        }
        Ok(())
    }

    /// A key like a zone master key.
    fn master(&self) -> Result<Object> {
        let template = template::secret_of_len(CKK_AES, Place::Session, Usage::WRAPPER, false, 32);
        self.device.module.generate_key(self.session, CKM_AES_KEY_GEN, &template).map_err(|error| error.to_string())
    }

    /// AES-GCM: agrees with another implementation both ways and refuses a changed tag.
    fn gcm(&self) -> Result<()> {
        self.has_all(named![CKM_AES_GCM])?;
        let (module, session) = (&self.device.module, self.session);
        let (value, iv) = (random_array::<32>(), random_array::<12>());
        let template = template::secret_of_value(CKK_AES, Place::Session, Usage::CIPHER, false, &value);
        let key = module.create(session, &template).map_err(|error| error.to_string())?;
        let (text, aad) = (b"known text of the start-up self-test", b"associated");
        let software = Aes256Gcm::new_from_slice(&value).map_err(|error| error.to_string())?;
        let expected =
            software.encrypt(&Nonce::from(iv), Payload { msg: text, aad }).map_err(|_| "no expected value".to_string())?;
        let mechanism = Mechanism::Gcm { iv: &iv, aad };
        let output = module.encrypt(session, mechanism, key, text, 16).map_err(|error| error.to_string())?;
        if output != expected {
            return Err("AES-GCM answers another ciphertext than the standard".into());
        }
        let opened = module.decrypt(session, mechanism, key, &expected).map_err(|error| error.to_string())?;
        if opened.as_slice() != text {
            return Err("AES-GCM does not open its own ciphertext".into());
        }
        let mut spoilt = expected;
        if let Some(last) = spoilt.last_mut() {
            *last ^= 1;
        }
        match module.decrypt(session, mechanism, key, &spoilt) {
            Ok(_) => Err("AES-GCM opens a ciphertext with a changed tag".into()),
            Err(_) => Ok(()),
        }
    }

    /// The configured mechanism, or the first of the ladder that works.
    fn seal_mechanism(&self, wanted: Option<BlobMechanism>, gcm: &Result<()>) -> std::result::Result<BlobMechanism, Fatal> {
        let works = |mechanism| match mechanism {
            BlobMechanism::AesGcm => gcm.clone(),
            BlobMechanism::RsaOaepSha1 | BlobMechanism::RsaOaepSha256 => {
                self.has_all(named![CKM_RSA_PKCS_OAEP, CKM_RSA_PKCS_KEY_PAIR_GEN])
            }
            BlobMechanism::AesCbcHmac => self.has_all(named![CKM_AES_CBC, CKM_SHA256_HMAC, CKM_GENERIC_SECRET_KEY_GEN]),
            BlobMechanism::AesKw | BlobMechanism::AesKwp => Err("it is not for seals".into()),
        };
        let ladder = [BlobMechanism::AesGcm, BlobMechanism::RsaOaepSha1, BlobMechanism::AesCbcHmac];
        let tried: Vec<_> = wanted.map_or(ladder.to_vec(), |wanted| vec![wanted]);
        let mut reasons = Vec::new();
        for mechanism in tried {
            match works(mechanism) {
                Ok(()) => return Ok(mechanism),
                Err(reason) => reasons.push(format!("{mechanism:?}: {reason}")),
            }
        }
        Err(Fatal::new(DownReason::PostureRefused, format!("no mechanism for the seal works: {}", reasons.join("; "))))
    }

    /// Whether the module lists the mechanisms; what it does not list is not tried.
    fn has_all(&self, mechanisms: &[(CK_MECHANISM_TYPE, &str)]) -> Result<()> {
        match mechanisms.iter().find(|(mechanism, _)| !self.device.has(*mechanism)) {
            None => Ok(()),
            Some((_, name)) => Err(format!("the module has no {name}")),
        }
    }

    fn support(&self, kind: KeyKind, gcm: &Result<()>, master: &Result<Object>) -> Support {
        let listed = self.has_all(mechanisms(kind));
        let (used, wrapped) = match template::rsa_bits(kind) {
            Some(bits) => listed.map_or_else(|reason| (Err(reason.clone()), Err(reason)), |()| self.rsa(kind, bits, master)),
            None => {
                let usable = if template::aes_len(kind).is_some() { listed.and(gcm.clone()) } else { listed };
                let used = usable.and_then(|()| self.used_directly(kind));
                let wrapped = used.clone().and_then(|()| self.used_wrapped(kind, master));
                (used, wrapped)
            }
        };
        let reason = [&used, &wrapped].into_iter().find_map(|result| result.clone().err()).unwrap_or_default();
        Support { kind, wrapped: wrapped.is_ok(), token: used.is_ok(), reason }
    }

    /// Generated and used, as an `hsm-only` key is.
    fn used_directly(&self, kind: KeyKind) -> Result<()> {
        let made = generate(self.device, self.session, kind, Place::Session, false).map_err(|trouble| words(&trouble))?;
        self.works(kind, &made, made.key)
    }

    /// Generated, wrapped, unwrapped and used, as an `hsm` key is.
    fn used_wrapped(&self, kind: KeyKind, master: &Result<Object>) -> Result<()> {
        if template::aes_len(kind).is_some() {
            self.has_all(named![CKM_AES_KEY_WRAP])?;
        }
        let master = master.clone()?;
        let explain = |trouble: Trouble| words(&trouble);
        let made = generate(self.device, self.session, kind, Place::Session, true).map_err(explain)?;
        let loaded = self.moved(kind, master, made.key)?;
        self.works(kind, &made, loaded)
    }

    /// A key wrapped under the master key, then loaded for use.
    fn moved(&self, kind: KeyKind, master: Object, key: Object) -> Result<Object> {
        let blob = wrap(self.device, self.session, kind, master, key).map_err(|trouble| words(&trouble))?;
        let nobody = KeyId([0; 16]).into();
        let wrapped = Wrapped { id: nobody, kind, mechanism: wrapping_of(kind), wrapped_by: nobody, blob: Bytes(&blob) };
        self.device.unwrap(self.session, master, &wrapped, false).map_err(|trouble| words(&trouble))
    }

    /// What one key made, another handle of it (or the public half) must accept.
    fn works(&self, kind: KeyKind, made: &Made, key: Object) -> Result<()> {
        let (module, session) = (&self.device.module, self.session);
        let message = b"message of the start-up self-test";
        let Some((_, spki)) = &made.public else {
            let mechanism = Mechanism::Gcm { iv: &random_array(), aad: b"aad" };
            let sealed = module.encrypt(session, mechanism, made.key, message, 16).map_err(|error| error.to_string())?;
            let opened = module.decrypt(session, mechanism, key, &sealed).map_err(|error| error.to_string())?;
            return if opened.as_slice() == message { Ok(()) } else { Err("the key does not open what it sealed".into()) };
        };
        super::ops::signature::check(self.device, session, kind, key, spki, message)
    }
}

/// In the order of reports.
const KINDS: [KeyKind; 9] = [
    KeyKind::Aes128,
    KeyKind::Aes256,
    KeyKind::EcP256,
    KeyKind::EcP384,
    KeyKind::EcP521,
    KeyKind::Ed25519,
    KeyKind::Rsa2048,
    KeyKind::Rsa3072,
    KeyKind::Rsa4096,
];

fn words(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Ck(error) => error.to_string(),
        Trouble::Missing(id) => format!("the key {id} is missing"),
        Trouble::Lost => "the device is gone".into(),
        Trouble::Failed(Failure::Unsupported(text) | Failure::BadInput(text)) => text.clone(),
        Trouble::Failed(failure) => format!("{failure:?}"),
    }
}
