//! The PKCS#11 calls themselves: the one file of this crate that calls a vendor's library.
//!
//! Everything unsafe about PKCS#11 stays in here, behind functions that own their buffers for the time of a call,
//! hand out exact lengths and overwrite what a failed call may have left behind. `cryptoki` is not used for these
//! calls because its size queries fail on some modules, its buffers are not overwritten, and dropping an old session of
//! its after a second C_Initialize closes a new one that got the same number.

// FFI cannot be written without `unsafe`; each block states why it holds.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::Path;
use std::ptr;

use cryptoki_sys::*;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use super::ck_error::CkError;

/// Longest attribute that is read: a module that claims more is not believed.
const MAX_ATTRIBUTE: usize = 1 << 20;

/// Makes this process deaf to the signals that end the server. A terminal or a service manager sends them to every process
/// of the service; the worker has to outlive the server's requests in flight, and ends when the server closes the socket.
pub fn ignore_stop_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: SIG_IGN installs no handler of ours; the call only changes the disposition of a valid signal number.
        let _ = unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// An open session's number. It is a plain number on purpose: closing is a visible call, see the module text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session(CK_SESSION_HANDLE);

/// An object's number, valid in every session of this process until logout, destruction or the end of the session
/// that owns a session object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object(CK_OBJECT_HANDLE);

/// One attribute of a template. The value is overwritten on drop: it may be key material.
pub struct Attribute {
    kind: CK_ATTRIBUTE_TYPE,
    value: Zeroizing<Vec<u8>>,
}

impl Attribute {
    /// A CK_BBOOL.
    pub fn flag(kind: CK_ATTRIBUTE_TYPE, value: bool) -> Self {
        Self::bytes(kind, &[u8::from(value)])
    }

    /// A CK_ULONG.
    pub fn number(kind: CK_ATTRIBUTE_TYPE, value: CK_ULONG) -> Self {
        Self::bytes(kind, &value.to_ne_bytes())
    }

    /// A byte array.
    pub fn bytes(kind: CK_ATTRIBUTE_TYPE, value: &[u8]) -> Self {
        Self { kind, value: Zeroizing::new(value.to_vec()) }
    }
}

/// A mechanism with its parameters.
#[derive(Clone, Copy)]
pub enum Mechanism<'a> {
    /// Without parameters.
    Plain(CK_MECHANISM_TYPE),
    /// CKM_AES_GCM with a 12-byte IV and a 128-bit tag: modules misread other lengths.
    Gcm {
        /// The IV.
        iv: &'a [u8; 12],
        /// Associated data.
        aad: &'a [u8],
    },
    /// CKM_AES_CBC without padding.
    Cbc(&'a [u8; 16]),
    /// CKM_RSA_PKCS_OAEP with SHA-1, MGF1-SHA-1, no label.
    OaepSha1,
    /// CKM_RSA_PKCS_OAEP with SHA-256, MGF1-SHA-256, no label.
    OaepSha256,
}

/// What CK_TOKEN_INFO says, in our types.
#[derive(Clone, Debug)]
pub struct TokenInfo {
    /// Token label without padding.
    pub label: String,
    /// Manufacturer without padding.
    pub manufacturer: String,
    /// Model without padding.
    pub model: String,
    /// Serial number without padding.
    pub serial: String,
    /// CKF_ bits.
    pub flags: CK_FLAGS,
    /// Most read-write sessions, `None` when unlimited or not said.
    pub max_sessions: Option<u64>,
}

/// What CK_MECHANISM_INFO says.
#[derive(Clone, Copy, Debug)]
pub struct MechanismInfo {
    /// Largest key, for RSA in bits; 0 when not said.
    pub largest: CK_ULONG,
    /// CKF_ bits.
    pub flags: CK_FLAGS,
}

/// Why a module could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The dynamic linker refuses the file.
    #[error("{0}")]
    Link(String),
    /// The file is no PKCS#11 module.
    #[error("it has no C_GetFunctionList")]
    NoModule,
    /// The module refuses to hand out its functions.
    #[error(transparent)]
    Module(#[from] CkError),
}

/// A loaded module.
pub struct Module {
    list: CK_FUNCTION_LIST,
    /// Kept because unloading the library would leave `list` pointing nowhere.
    _library: cryptoki_sys::Pkcs11,
}

/// Calls an entry of the function list.
macro_rules! call {
    ($module:expr, $name:ident, $($argument:expr),* $(,)?) => {
        match $module.list.$name {
            None => Err(CkError::missing(stringify!($name))),
            Some(function) => {
                // SAFETY: the entry comes from the loaded module and has the standard's signature. Every pointer argument
                // points into a live local or a borrowed buffer whose true length is passed with it, and the module keeps
                // none after the call. The module was initialised with CKF_OS_LOCKING_OK, so threads may call it together.
                let rv = unsafe { function($($argument),*) };
                if rv == CKR_OK { Ok(()) } else { Err(CkError { function: stringify!($name), rv }) }
            }
        }
    };
}

impl Module {
    /// Loads the library and asks for its function list; C_Initialize is a separate step.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: loading runs the library's initialisers. That is what the operator configured, and it happens only in
        // the worker process, before any thread is started.
        let library = unsafe { cryptoki_sys::Pkcs11::new(path) }.map_err(|error| LoadError::Link(error.to_string()))?;
        let Ok(function) = &library.C_GetFunctionList else { return Err(LoadError::NoModule) };
        let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
        // SAFETY: `list` is a valid place for the one pointer that the function writes.
        let rv = unsafe { function(&mut list) };
        if rv != CKR_OK || list.is_null() {
            return Err(CkError { function: "C_GetFunctionList", rv }.into());
        }
        // SAFETY: the module answered CKR_OK and a pointer to its table, which lives as long as the library is loaded.
        let list = unsafe { *list };
        Ok(Self { list, _library: library })
    }

    /// C_Initialize with CKF_OS_LOCKING_OK; `reserved` is the vendor's string (NSS needs one).
    pub fn initialize(&self, reserved: Option<&str>) -> Result<(), CkError> {
        let reserved = reserved.map(CString::new).transpose();
        let Ok(reserved) = reserved else { return Err(CkError { function: "C_Initialize", rv: CKR_ARGUMENTS_BAD }) };
        let mut arguments = CK_C_INITIALIZE_ARGS {
            CreateMutex: None,
            DestroyMutex: None,
            LockMutex: None,
            UnlockMutex: None,
            flags: CKF_OS_LOCKING_OK,
            pReserved: reserved.as_ref().map_or(ptr::null_mut(), |text| text.as_ptr().cast_mut().cast()),
        };
        call!(self, C_Initialize, ptr::from_mut(&mut arguments).cast())
    }

    /// C_Finalize. No other call may be in flight: several modules crash otherwise.
    pub fn finalize(&self) -> Result<(), CkError> {
        call!(self, C_Finalize, ptr::null_mut())
    }

    /// Manufacturer, description and version of the library.
    pub fn info(&self) -> Result<String, CkError> {
        // SAFETY: CK_INFO is a plain C structure for which all zeroes is a valid value.
        let mut info: CK_INFO = unsafe { std::mem::zeroed() };
        call!(self, C_GetInfo, &mut info)?;
        let version = format!("{}.{}", info.libraryVersion.major, info.libraryVersion.minor);
        Ok(format!("{} / {} {version}", text(&info.manufacturerID), text(&info.libraryDescription)))
    }

    /// Slots with a token in them.
    pub fn slots(&self) -> Result<Vec<CK_SLOT_ID>, CkError> {
        let mut count: CK_ULONG = 0;
        call!(self, C_GetSlotList, CK_TRUE, ptr::null_mut(), &mut count)?;
        // A slot more than counted, in case a token appears between the two calls.
        let mut slots = vec![0; usize_of(count).min(4096) + 1];
        let mut count = slots.len() as CK_ULONG;
        call!(self, C_GetSlotList, CK_TRUE, slots.as_mut_ptr(), &mut count)?;
        slots.truncate(usize_of(count));
        Ok(slots)
    }

    /// The token in a slot.
    pub fn token_info(&self, slot: CK_SLOT_ID) -> Result<TokenInfo, CkError> {
        // SAFETY: CK_TOKEN_INFO is a plain C structure for which all zeroes is a valid value.
        let mut info: CK_TOKEN_INFO = unsafe { std::mem::zeroed() };
        call!(self, C_GetTokenInfo, slot, &mut info)?;
        let unlimited = info.ulMaxRwSessionCount == CK_UNAVAILABLE_INFORMATION || info.ulMaxRwSessionCount == 0;
        Ok(TokenInfo {
            label: text(&info.label),
            manufacturer: text(&info.manufacturerID),
            model: text(&info.model),
            serial: text(&info.serialNumber),
            flags: info.flags,
            max_sessions: (!unlimited).then_some(info.ulMaxRwSessionCount),
        })
    }

    /// The mechanisms that a slot's token claims.
    pub fn mechanisms(&self, slot: CK_SLOT_ID) -> Result<Vec<CK_MECHANISM_TYPE>, CkError> {
        let mut count: CK_ULONG = 0;
        call!(self, C_GetMechanismList, slot, ptr::null_mut(), &mut count)?;
        let mut list = vec![0; usize_of(count).min(4096)];
        let mut count = list.len() as CK_ULONG;
        call!(self, C_GetMechanismList, slot, list.as_mut_ptr(), &mut count)?;
        list.truncate(usize_of(count));
        Ok(list)
    }

    /// What the token claims about one mechanism.
    pub fn mechanism_info(&self, slot: CK_SLOT_ID, mechanism: CK_MECHANISM_TYPE) -> Result<MechanismInfo, CkError> {
        // SAFETY: CK_MECHANISM_INFO is a plain C structure for which all zeroes is a valid value.
        let mut info: CK_MECHANISM_INFO = unsafe { std::mem::zeroed() };
        call!(self, C_GetMechanismInfo, slot, mechanism, &mut info)?;
        Ok(MechanismInfo { largest: info.ulMaxKeySize, flags: info.flags })
    }

    /// C_InitToken: makes an empty token with this label.
    pub fn init_token(&self, slot: CK_SLOT_ID, so_pin: &str, label: &str) -> Result<(), CkError> {
        let mut padded = [b' '; 32];
        for (to, from) in padded.iter_mut().zip(label.bytes()) {
            *to = from;
        }
        let mut pin = Zeroizing::new(so_pin.as_bytes().to_vec());
        call!(self, C_InitToken, slot, pin.as_mut_ptr(), pin.len() as CK_ULONG, padded.as_mut_ptr())
    }

    /// C_InitPIN in a session of the security officer.
    pub fn init_pin(&self, session: Session, pin: &str) -> Result<(), CkError> {
        let mut pin = Zeroizing::new(pin.as_bytes().to_vec());
        call!(self, C_InitPIN, session.0, pin.as_mut_ptr(), pin.len() as CK_ULONG)
    }

    /// Opens a read-write session.
    pub fn open_session(&self, slot: CK_SLOT_ID) -> Result<Session, CkError> {
        let mut handle = 0;
        call!(self, C_OpenSession, slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, ptr::null_mut(), None, &mut handle)?;
        Ok(Session(handle))
    }

    /// Closes a session; its session objects go with it.
    pub fn close_session(&self, session: Session) -> Result<(), CkError> {
        call!(self, C_CloseSession, session.0)
    }

    /// Closes every session that this process has with the token, which also logs out.
    pub fn close_all(&self, slot: CK_SLOT_ID) -> Result<(), CkError> {
        call!(self, C_CloseAllSessions, slot)
    }

    /// C_GetSessionInfo, used as a sign of life.
    pub fn session_alive(&self, session: Session) -> Result<(), CkError> {
        // SAFETY: CK_SESSION_INFO is a plain C structure for which all zeroes is a valid value.
        let mut info: CK_SESSION_INFO = unsafe { std::mem::zeroed() };
        call!(self, C_GetSessionInfo, session.0, &mut info)
    }

    /// C_Login as user or security officer; "already logged in" counts as done.
    pub fn login(&self, session: Session, user: CK_USER_TYPE, pin: &str) -> Result<(), CkError> {
        let mut pin = Zeroizing::new(pin.as_bytes().to_vec());
        match call!(self, C_Login, session.0, user, pin.as_mut_ptr(), pin.len() as CK_ULONG) {
            Err(error) if error.rv == CKR_USER_ALREADY_LOGGED_IN => Ok(()),
            other => other,
        }
    }

    /// Objects that match the template, at most `limit`.
    pub fn find(&self, session: Session, template: &[Attribute], limit: usize) -> Result<Vec<Object>, CkError> {
        let mut raw = raw_template(template);
        call!(self, C_FindObjectsInit, session.0, raw.as_mut_ptr(), raw.len() as CK_ULONG)?;
        let found = self.find_rest(session, limit);
        // Always ended, or the session stays blocked for every other call.
        let ended = call!(self, C_FindObjectsFinal, session.0);
        let found = found?;
        ended?;
        Ok(found)
    }

    fn find_rest(&self, session: Session, limit: usize) -> Result<Vec<Object>, CkError> {
        let mut found = Vec::new();
        let mut page: [CK_OBJECT_HANDLE; 64] = [0; 64];
        while found.len() < limit {
            let wanted = page.len().min(limit - found.len());
            let mut count: CK_ULONG = 0;
            call!(self, C_FindObjects, session.0, page.as_mut_ptr(), wanted as CK_ULONG, &mut count)?;
            if count == 0 {
                break;
            }
            found.extend(page.iter().take(usize_of(count)).copied().map(Object));
        }
        Ok(found)
    }

    /// One attribute's value; `None` when the token does not have or show it.
    pub fn attribute(
        &self,
        session: Session,
        object: Object,
        kind: CK_ATTRIBUTE_TYPE,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, CkError> {
        let mut query = CK_ATTRIBUTE { type_: kind, pValue: ptr::null_mut(), ulValueLen: 0 };
        match call!(self, C_GetAttributeValue, session.0, object.0, &mut query, 1) {
            Err(error) if matches!(error.rv, CKR_ATTRIBUTE_TYPE_INVALID | CKR_ATTRIBUTE_SENSITIVE) => return Ok(None),
            other => other?,
        }
        if query.ulValueLen == CK_UNAVAILABLE_INFORMATION {
            return Ok(None);
        }
        let mut value = Zeroizing::new(vec![0; usize_of(query.ulValueLen).min(MAX_ATTRIBUTE)]);
        query.ulValueLen = value.len() as CK_ULONG;
        query.pValue = value.as_mut_ptr().cast();
        call!(self, C_GetAttributeValue, session.0, object.0, &mut query, 1)?;
        value.truncate(usize_of(query.ulValueLen));
        Ok(Some(value))
    }

    /// C_CreateObject.
    pub fn create(&self, session: Session, template: &[Attribute]) -> Result<Object, CkError> {
        let mut raw = raw_template(template);
        let mut handle = 0;
        call!(self, C_CreateObject, session.0, raw.as_mut_ptr(), raw.len() as CK_ULONG, &mut handle)?;
        Ok(Object(handle))
    }

    /// C_CopyObject with changed attributes.
    pub fn copy(&self, session: Session, object: Object, template: &[Attribute]) -> Result<Object, CkError> {
        let mut raw = raw_template(template);
        let mut handle = 0;
        call!(self, C_CopyObject, session.0, object.0, raw.as_mut_ptr(), raw.len() as CK_ULONG, &mut handle)?;
        Ok(Object(handle))
    }

    /// C_DestroyObject.
    pub fn destroy(&self, session: Session, object: Object) -> Result<(), CkError> {
        call!(self, C_DestroyObject, session.0, object.0)
    }

    /// C_GenerateKey.
    pub fn generate_key(
        &self,
        session: Session,
        mechanism: CK_MECHANISM_TYPE,
        template: &[Attribute],
    ) -> Result<Object, CkError> {
        let mut raw = raw_template(template);
        let mut handle = 0;
        with_mechanism(Mechanism::Plain(mechanism), |mechanism| {
            call!(self, C_GenerateKey, session.0, mechanism, raw.as_mut_ptr(), raw.len() as CK_ULONG, &mut handle)
        })?;
        Ok(Object(handle))
    }

    /// C_GenerateKeyPair: the public and the private key.
    pub fn generate_pair(
        &self,
        session: Session,
        mechanism: CK_MECHANISM_TYPE,
        public: &[Attribute],
        private: &[Attribute],
    ) -> Result<(Object, Object), CkError> {
        let mut raw_public = raw_template(public);
        let mut raw_private = raw_template(private);
        let (mut public_handle, mut private_handle) = (0, 0);
        with_mechanism(Mechanism::Plain(mechanism), |mechanism| {
            call!(
                self,
                C_GenerateKeyPair,
                session.0,
                mechanism,
                raw_public.as_mut_ptr(),
                raw_public.len() as CK_ULONG,
                raw_private.as_mut_ptr(),
                raw_private.len() as CK_ULONG,
                &mut public_handle,
                &mut private_handle,
            )
        })?;
        Ok((Object(public_handle), Object(private_handle)))
    }

    /// C_WrapKey into a buffer of `room` bytes, cut to the length that the module reports.
    pub fn wrap(
        &self,
        session: Session,
        mechanism: Mechanism<'_>,
        wrapping: Object,
        key: Object,
        room: usize,
    ) -> Result<Vec<u8>, CkError> {
        let mut output = vec![0; room];
        let mut len = room as CK_ULONG;
        let result = with_mechanism(mechanism, |mechanism| {
            call!(self, C_WrapKey, session.0, mechanism, wrapping.0, key.0, output.as_mut_ptr(), &mut len)
        });
        finish(output, len, result)
    }

    /// C_UnwrapKey.
    pub fn unwrap(
        &self,
        session: Session,
        mechanism: Mechanism<'_>,
        unwrapping: Object,
        wrapped: &[u8],
        template: &[Attribute],
    ) -> Result<Object, CkError> {
        let mut raw = raw_template(template);
        let mut handle = 0;
        with_mechanism(mechanism, |mechanism| {
            call!(
                self,
                C_UnwrapKey,
                session.0,
                mechanism,
                unwrapping.0,
                wrapped.as_ptr().cast_mut(),
                wrapped.len() as CK_ULONG,
                raw.as_mut_ptr(),
                raw.len() as CK_ULONG,
                &mut handle,
            )
        })?;
        Ok(Object(handle))
    }

    /// C_EncryptInit and C_Encrypt; `growth` is how much longer than the input the output can be.
    pub fn encrypt(
        &self,
        session: Session,
        mechanism: Mechanism<'_>,
        key: Object,
        input: &[u8],
        growth: usize,
    ) -> Result<Vec<u8>, CkError> {
        with_mechanism(mechanism, |mechanism| call!(self, C_EncryptInit, session.0, mechanism, key.0))?;
        let mut output = vec![0; input.len() + growth];
        let mut len = output.len() as CK_ULONG;
        let result =
            call!(self, C_Encrypt, session.0, input.as_ptr().cast_mut(), input.len() as CK_ULONG, output.as_mut_ptr(), &mut len);
        finish(output, len, result)
    }

    /// C_DecryptInit and C_Decrypt. A module may leave unverified plaintext in the buffer of a failed call, so it is
    /// overwritten.
    pub fn decrypt(
        &self,
        session: Session,
        mechanism: Mechanism<'_>,
        key: Object,
        input: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, CkError> {
        with_mechanism(mechanism, |mechanism| call!(self, C_DecryptInit, session.0, mechanism, key.0))?;
        let mut output = vec![0; input.len()];
        let mut len = output.len() as CK_ULONG;
        let result =
            call!(self, C_Decrypt, session.0, input.as_ptr().cast_mut(), input.len() as CK_ULONG, output.as_mut_ptr(), &mut len);
        finish(output, len, result).map(Zeroizing::new)
    }

    /// C_SignInit and C_Sign into a buffer of `room` bytes.
    pub fn sign(
        &self,
        session: Session,
        mechanism: CK_MECHANISM_TYPE,
        key: Object,
        input: &[u8],
        room: usize,
    ) -> Result<Vec<u8>, CkError> {
        with_mechanism(Mechanism::Plain(mechanism), |mechanism| call!(self, C_SignInit, session.0, mechanism, key.0))?;
        let mut output = vec![0; room];
        let mut len = room as CK_ULONG;
        let result =
            call!(self, C_Sign, session.0, input.as_ptr().cast_mut(), input.len() as CK_ULONG, output.as_mut_ptr(), &mut len);
        finish(output, len, result)
    }
}

/// Cuts the buffer of a successful call to its length, overwrites that of a failed one.
fn finish(mut output: Vec<u8>, len: CK_ULONG, result: Result<(), CkError>) -> Result<Vec<u8>, CkError> {
    match result {
        Ok(()) => {
            // A length beyond the buffer would be a module's lie; `truncate` makes it harmless.
            output.truncate(usize_of(len));
            Ok(output)
        }
        Err(error) => {
            output.zeroize();
            Err(error)
        }
    }
}

/// The template in the module's form; it borrows the attributes' buffers.
fn raw_template(template: &[Attribute]) -> Vec<CK_ATTRIBUTE> {
    template
        .iter()
        .map(|attribute| CK_ATTRIBUTE {
            type_: attribute.kind,
            pValue: attribute.value.as_ptr().cast_mut().cast(),
            ulValueLen: attribute.value.len() as CK_ULONG,
        })
        .collect()
}

/// Builds the mechanism with its parameters for the time of one call.
fn with_mechanism<T>(mechanism: Mechanism<'_>, call: impl FnOnce(*mut CK_MECHANISM) -> T) -> T {
    let run = |mechanism, parameter: *mut std::ffi::c_void, len: usize| CK_MECHANISM {
        mechanism,
        pParameter: parameter,
        ulParameterLen: len as CK_ULONG,
    };
    match mechanism {
        Mechanism::Plain(kind) => call(&mut run(kind, ptr::null_mut(), 0)),
        Mechanism::Gcm { iv, aad } => {
            let mut parameters = CK_GCM_PARAMS {
                pIv: iv.as_ptr().cast_mut(),
                ulIvLen: iv.len() as CK_ULONG,
                ulIvBits: (iv.len() * 8) as CK_ULONG,
                pAAD: aad.as_ptr().cast_mut(),
                ulAADLen: aad.len() as CK_ULONG,
                ulTagBits: 128,
            };
            call(&mut run(CKM_AES_GCM, ptr::from_mut(&mut parameters).cast(), size_of::<CK_GCM_PARAMS>()))
        }
        Mechanism::Cbc(iv) => call(&mut run(CKM_AES_CBC, iv.as_ptr().cast_mut().cast(), iv.len())),
        Mechanism::OaepSha1 | Mechanism::OaepSha256 => {
            let sha1 = matches!(mechanism, Mechanism::OaepSha1);
            let mut parameters = CK_RSA_PKCS_OAEP_PARAMS {
                hashAlg: if sha1 { CKM_SHA_1 } else { CKM_SHA256 },
                mgf: if sha1 { CKG_MGF1_SHA1 } else { CKG_MGF1_SHA256 },
                source: CKZ_DATA_SPECIFIED,
                pSourceData: ptr::null_mut(),
                ulSourceDataLen: 0,
            };
            call(&mut run(CKM_RSA_PKCS_OAEP, ptr::from_mut(&mut parameters).cast(), size_of::<CK_RSA_PKCS_OAEP_PARAMS>()))
        }
    }
}

/// A blank-padded text of the standard, as far as it is UTF-8.
fn text(padded: &[u8]) -> String {
    String::from_utf8_lossy(padded).trim_end_matches(['\0', ' ']).to_string()
}

fn usize_of(value: CK_ULONG) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
