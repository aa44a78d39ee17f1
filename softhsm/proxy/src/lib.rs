//! A PKCS#11 module for tests. It copies the function list of the real module (`SOS_PROXY_MODULE`) and replaces a few
//! entries by ones that first look into a folder (`SOS_PROXY_FAULTS`) for the fault to inject:
//!
//! - `latency_ms`: every encrypt, decrypt and sign sleeps so many milliseconds;
//! - `all_ms`: so does every call that works with objects or keys, as if each went over a network: find, get attributes, create, copy,
//!   destroy, generate, wrap and unwrap too;
//! - `device_error_every`: every n-th of these calls answers CKR_DEVICE_ERROR;
//! - `answer_once`: the next of these calls answers the number that the file holds (the file is removed first);
//! - `max_sessions`: C_OpenSession answers CKR_SESSION_COUNT from the n-th open session on;
//! - `hang_once`: the next of these calls never returns (the file is removed first);
//! - `crash_once`: the next of these calls aborts the process (the file is removed first);
//! - `close_sessions_once`: before the next of these calls all sessions are closed under the caller, which also logs out;
//! - `removed`: whatever needs the token answers CKR_DEVICE_REMOVED while the file exists.
//!
//! - `login_ms`: C_Login takes so many milliseconds longer, before and behind the real one;
//! - `hang_login`: C_Login never returns while the file is there at its begin.
//!
//! Every C_Login is noted as a line in `logins` when it begins and in `logged_in` when it has ended, C_Finalize in
//! `finalized`: a process that was killed in between has one line only. With `SOS_PROXY_MANUFACTURER` the module says that it is of that maker: what
//! is known about the real one (that one session is fastest, for example) does not hold for a slow device behind a network.
//!
//! `SOS_PROXY_HIDE` makes the module one of another vendor: mechanisms that it names by number, such as `0x3,0x1087`, are
//! neither listed nor done.

#![allow(non_snake_case)] // the entries carry the standard's names

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use cryptoki_sys::*;

/// The real module's entries, and the changed copy that callers get.
struct Lists {
    real: CK_FUNCTION_LIST,
    ours: CK_FUNCTION_LIST,
}

static LISTS: OnceLock<Option<Lists>> = OnceLock::new();
static CALLS: AtomicU64 = AtomicU64::new(0);
static SESSIONS: AtomicI64 = AtomicI64::new(0);
/// The slot of the last opened session.
static SLOT: AtomicU64 = AtomicU64::new(0);

/// The one symbol that callers look up.
///
/// # Safety
/// As the standard says: `list` must be null or a valid place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    let Some(lists) = LISTS.get_or_init(load) else { return CKR_GENERAL_ERROR };
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: checked above; callers only read the table.
    unsafe { *list = std::ptr::from_ref(&lists.ours).cast_mut() };
    CKR_OK
}

fn load() -> Option<Lists> {
    let path = std::env::var_os("SOS_PROXY_MODULE")?;
    // SAFETY: the test names a PKCS#11 module.
    let library = unsafe { Pkcs11::new(path) }.ok()?;
    let mut list: *mut CK_FUNCTION_LIST = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for a pointer, and on success it points to the module's table.
    let real = unsafe {
        if library.C_GetFunctionList(&mut list) != CKR_OK || list.is_null() {
            return None;
        }
        *list
    };
    // The module stays loaded for the life of the process.
    std::mem::forget(library);
    let ours = CK_FUNCTION_LIST {
        C_GetFunctionList: Some(C_GetFunctionList),
        C_Finalize: Some(finalize),
        C_GetInfo: Some(get_info),
        C_GetTokenInfo: Some(token_info),
        C_GetMechanismList: Some(mechanism_list),
        C_GetMechanismInfo: Some(mechanism_info),
        C_OpenSession: Some(open_session),
        C_CloseSession: Some(close_session),
        C_CloseAllSessions: Some(close_all),
        C_Login: Some(login),
        C_FindObjectsInit: Some(find_init),
        C_FindObjects: Some(find),
        C_GetAttributeValue: Some(attributes),
        C_CreateObject: Some(create),
        C_CopyObject: Some(copy),
        C_DestroyObject: Some(destroy),
        C_GenerateKey: Some(generate_key),
        C_GenerateKeyPair: Some(generate_pair),
        C_WrapKey: Some(wrap),
        C_UnwrapKey: Some(unwrap),
        C_SignInit: Some(sign_init),
        C_EncryptInit: Some(encrypt_init),
        C_DecryptInit: Some(decrypt_init),
        C_Encrypt: Some(encrypt),
        C_Decrypt: Some(decrypt),
        C_Sign: Some(sign),
        ..real
    };
    Some(Lists { real, ours })
}

fn file(name: &str) -> Option<PathBuf> {
    std::env::var_os("SOS_PROXY_FAULTS").map(|folder| PathBuf::from(folder).join(name))
}

fn number(name: &str) -> Option<u64> {
    fs::read_to_string(file(name)?).ok()?.trim().parse().ok()
}

fn once(name: &str) -> bool {
    file(name).is_some_and(|path| fs::remove_file(path).is_ok())
}

fn removed() -> bool {
    file("removed").is_some_and(|path| path.exists())
}

/// Adds a line to a file beside the faults.
fn note(name: &str, line: &str) {
    if let Some(path) = file(name)
        && let Ok(mut log) = fs::OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = writeln!(log, "{line}");
    }
}

/// Passes a call on to the real module.
macro_rules! real {
    ($name:ident, $($argument:expr),*) => {
        match LISTS.get().and_then(Option::as_ref).and_then(|lists| lists.real.$name) {
            // SAFETY: the caller's arguments are passed on as they are.
            Some(function) => unsafe { function($($argument),*) },
            None => CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}

/// The time that every call with objects or keys takes.
fn slow() {
    if let Some(time) = number("all_ms") {
        std::thread::sleep(Duration::from_millis(time));
    }
}

/// An entry that only takes its time.
macro_rules! slow_call {
    ($ours:ident, $name:ident, $($argument:ident: $kind:ty),*) => {
        unsafe extern "C" fn $ours($($argument: $kind),*) -> CK_RV {
            slow();
            real!($name, $($argument),*)
        }
    };
}

slow_call!(find, C_FindObjects, session: CK_SESSION_HANDLE, found: CK_OBJECT_HANDLE_PTR, most: CK_ULONG, count: CK_ULONG_PTR);
slow_call!(attributes, C_GetAttributeValue, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: CK_ATTRIBUTE_PTR, count: CK_ULONG);
slow_call!(create, C_CreateObject, session: CK_SESSION_HANDLE, template: CK_ATTRIBUTE_PTR, count: CK_ULONG, object: CK_OBJECT_HANDLE_PTR);
slow_call!(copy, C_CopyObject, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: CK_ATTRIBUTE_PTR, count: CK_ULONG, copied: CK_OBJECT_HANDLE_PTR);
slow_call!(destroy, C_DestroyObject, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE);

/// The faults of calls that use a key.
fn disturb() -> Option<CK_RV> {
    if once("crash_once") {
        std::process::abort();
    }
    if once("close_sessions_once") {
        let _ = real!(C_CloseAllSessions, SLOT.load(Ordering::Relaxed) as CK_SLOT_ID);
        SESSIONS.store(0, Ordering::Relaxed);
    }
    if once("hang_once") {
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    if let Some(latency) = number("latency_ms") {
        std::thread::sleep(Duration::from_millis(latency));
    }
    slow();
    if let Some(rv) = number("answer_once")
        && once("answer_once")
    {
        return Some(rv as CK_RV);
    }
    let call = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
    match number("device_error_every") {
        Some(every) if every > 0 && call.is_multiple_of(every) => Some(CKR_DEVICE_ERROR),
        _ => None,
    }
}

unsafe extern "C" fn get_info(info: CK_INFO_PTR) -> CK_RV {
    let rv = real!(C_GetInfo, info);
    if rv == CKR_OK
        && let Ok(maker) = std::env::var("SOS_PROXY_MANUFACTURER")
    {
        // SAFETY: the real module has just filled it.
        let info = unsafe { &mut *info };
        // Both texts are padded with blanks (PKCS #11, section 3.1).
        info.libraryDescription = [b' '; 32];
        info.manufacturerID = [b' '; 32];
        for (place, byte) in info.manufacturerID.iter_mut().zip(maker.bytes()) {
            *place = byte;
        }
    }
    rv
}

unsafe extern "C" fn token_info(slot: CK_SLOT_ID, info: CK_TOKEN_INFO_PTR) -> CK_RV {
    if removed() { CKR_DEVICE_REMOVED } else { real!(C_GetTokenInfo, slot, info) }
}

/// Mechanisms of `SOS_PROXY_HIDE`.
fn hidden(mechanism: CK_MECHANISM_TYPE) -> bool {
    static HIDDEN: OnceLock<Vec<CK_MECHANISM_TYPE>> = OnceLock::new();
    let read = || {
        let names = std::env::var("SOS_PROXY_HIDE").unwrap_or_default();
        let number = |name: &str| CK_MECHANISM_TYPE::from_str_radix(name.trim().trim_start_matches("0x"), 16);
        names.split(',').filter_map(|name| number(name).ok()).collect()
    };
    HIDDEN.get_or_init(read).contains(&mechanism)
}

/// Whether a call asks for a hidden mechanism.
fn asks_for_hidden(mechanism: CK_MECHANISM_PTR) -> bool {
    // SAFETY: callers pass null or a valid mechanism, as the standard says.
    unsafe { mechanism.as_ref() }.is_some_and(|mechanism| hidden(mechanism.mechanism))
}

unsafe extern "C" fn mechanism_list(slot: CK_SLOT_ID, list: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG) -> CK_RV {
    let mut len: CK_ULONG = 0;
    let rv = real!(C_GetMechanismList, slot, std::ptr::null_mut(), &mut len);
    if rv != CKR_OK {
        return rv;
    }
    let mut all = vec![0; len as usize];
    let rv = real!(C_GetMechanismList, slot, all.as_mut_ptr(), &mut len);
    if rv != CKR_OK {
        return rv;
    }
    all.truncate(len as usize);
    all.retain(|mechanism| !hidden(*mechanism));
    if count.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: `count` is valid, and `list` null or with room for as many mechanisms as it says.
    unsafe {
        let room = *count as usize;
        *count = all.len() as CK_ULONG;
        if list.is_null() {
            return CKR_OK;
        }
        if room < all.len() {
            return CKR_BUFFER_TOO_SMALL;
        }
        std::ptr::copy_nonoverlapping(all.as_ptr(), list, all.len());
    }
    CKR_OK
}

unsafe extern "C" fn mechanism_info(slot: CK_SLOT_ID, mechanism: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO) -> CK_RV {
    if hidden(mechanism) { CKR_MECHANISM_INVALID } else { real!(C_GetMechanismInfo, slot, mechanism, info) }
}

unsafe extern "C" fn generate_pair(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    public: CK_ATTRIBUTE_PTR,
    public_count: CK_ULONG,
    private: CK_ATTRIBUTE_PTR,
    private_count: CK_ULONG,
    public_key: CK_OBJECT_HANDLE_PTR,
    private_key: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    if asks_for_hidden(mechanism) {
        return CKR_MECHANISM_INVALID;
    }
    slow();
    real!(C_GenerateKeyPair, session, mechanism, public, public_count, private, private_count, public_key, private_key)
}

unsafe extern "C" fn wrap(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    wrapper: CK_OBJECT_HANDLE,
    key: CK_OBJECT_HANDLE,
    blob: CK_BYTE_PTR,
    len: CK_ULONG_PTR,
) -> CK_RV {
    if asks_for_hidden(mechanism) {
        return CKR_MECHANISM_INVALID;
    }
    slow();
    real!(C_WrapKey, session, mechanism, wrapper, key, blob, len)
}

unsafe extern "C" fn unwrap(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    wrapper: CK_OBJECT_HANDLE,
    blob: CK_BYTE_PTR,
    len: CK_ULONG,
    template: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
    key: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    if asks_for_hidden(mechanism) {
        return CKR_MECHANISM_INVALID;
    }
    slow();
    real!(C_UnwrapKey, session, mechanism, wrapper, blob, len, template, count, key)
}

unsafe extern "C" fn sign_init(session: CK_SESSION_HANDLE, mechanism: CK_MECHANISM_PTR, key: CK_OBJECT_HANDLE) -> CK_RV {
    if asks_for_hidden(mechanism) { CKR_MECHANISM_INVALID } else { real!(C_SignInit, session, mechanism, key) }
}

unsafe extern "C" fn open_session(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut std::ffi::c_void,
    notify: CK_NOTIFY,
    session: CK_SESSION_HANDLE_PTR,
) -> CK_RV {
    if removed() {
        return CKR_DEVICE_REMOVED;
    }
    if number("max_sessions").is_some_and(|max| SESSIONS.load(Ordering::Relaxed) >= max as i64) {
        return CKR_SESSION_COUNT;
    }
    let rv = real!(C_OpenSession, slot, flags, application, notify, session);
    if rv == CKR_OK {
        SESSIONS.fetch_add(1, Ordering::Relaxed);
        SLOT.store(slot as u64, Ordering::Relaxed);
    }
    rv
}

unsafe extern "C" fn close_session(session: CK_SESSION_HANDLE) -> CK_RV {
    let rv = real!(C_CloseSession, session);
    if rv == CKR_OK {
        SESSIONS.fetch_sub(1, Ordering::Relaxed);
    }
    rv
}

unsafe extern "C" fn close_all(slot: CK_SLOT_ID) -> CK_RV {
    SESSIONS.store(0, Ordering::Relaxed);
    real!(C_CloseAllSessions, slot)
}

unsafe extern "C" fn login(session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: CK_UTF8CHAR_PTR, len: CK_ULONG) -> CK_RV {
    note("logins", "C_Login");
    if file("hang_login").is_some_and(|path| path.exists()) {
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    let more = Duration::from_millis(number("login_ms").unwrap_or(0) / 2);
    std::thread::sleep(more);
    let rv = real!(C_Login, session, user, pin, len);
    std::thread::sleep(more);
    note("logged_in", "C_Login");
    rv
}

unsafe extern "C" fn finalize(reserved: *mut std::ffi::c_void) -> CK_RV {
    let rv = real!(C_Finalize, reserved);
    note("finalized", "C_Finalize");
    rv
}

unsafe extern "C" fn find_init(session: CK_SESSION_HANDLE, template: CK_ATTRIBUTE_PTR, count: CK_ULONG) -> CK_RV {
    slow();
    if removed() { CKR_DEVICE_REMOVED } else { real!(C_FindObjectsInit, session, template, count) }
}

unsafe extern "C" fn generate_key(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    template: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
    key: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    if asks_for_hidden(mechanism) {
        return CKR_MECHANISM_INVALID;
    }
    slow();
    if removed() { CKR_DEVICE_REMOVED } else { real!(C_GenerateKey, session, mechanism, template, count, key) }
}

unsafe extern "C" fn encrypt_init(session: CK_SESSION_HANDLE, mechanism: CK_MECHANISM_PTR, key: CK_OBJECT_HANDLE) -> CK_RV {
    if asks_for_hidden(mechanism) {
        return CKR_MECHANISM_INVALID;
    }
    if removed() { CKR_DEVICE_REMOVED } else { real!(C_EncryptInit, session, mechanism, key) }
}

unsafe extern "C" fn decrypt_init(session: CK_SESSION_HANDLE, mechanism: CK_MECHANISM_PTR, key: CK_OBJECT_HANDLE) -> CK_RV {
    if asks_for_hidden(mechanism) {
        return CKR_MECHANISM_INVALID;
    }
    if removed() { CKR_DEVICE_REMOVED } else { real!(C_DecryptInit, session, mechanism, key) }
}

/// An entry that works on data; after an injected error the operation is ended, as the standard demands.
macro_rules! data_call {
    ($ours:ident, $name:ident) => {
        unsafe extern "C" fn $ours(
            session: CK_SESSION_HANDLE,
            input: CK_BYTE_PTR,
            input_len: CK_ULONG,
            output: CK_BYTE_PTR,
            output_len: CK_ULONG_PTR,
        ) -> CK_RV {
            match disturb() {
                None => real!($name, session, input, input_len, output, output_len),
                Some(rv) => {
                    let mut len: CK_ULONG = input_len + 1024;
                    let mut scratch = vec![0; input_len as usize + 1024];
                    let _ = real!($name, session, input, input_len, scratch.as_mut_ptr(), &mut len);
                    rv
                }
            }
        }
    };
}

data_call!(encrypt, C_Encrypt);
data_call!(decrypt, C_Decrypt);
data_call!(sign, C_Sign);
