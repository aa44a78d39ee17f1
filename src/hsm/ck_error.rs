//! PKCS#11 return values: their names, and what each means for the next step.

use std::fmt;

use cryptoki_sys::*;

/// A PKCS#11 call that did not answer CKR_OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CkError {
    /// The PKCS#11 function, as the standard spells it.
    pub function: &'static str,
    /// The return value.
    pub rv: CK_RV,
}

/// What to do about a failed call. The kind decides, never a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The data does not fit the key: the caller's fault, and no doubt about it.
    BadInput,
    /// The module cannot do it, or the key may not.
    Unsupported,
    /// The handle is not valid (any more): find or load the key again.
    Handle,
    /// The session is lost or in a bad state: go on with a new one.
    Session,
    /// Nobody is logged in.
    Login,
    /// No more sessions to be had.
    SessionCount,
    /// The PIN was refused.
    PinRefused,
    /// The PIN is locked.
    PinLocked,
    /// The module is not initialised: nothing can be done in this process.
    NotInitialized,
    /// May mean bad data as well as a lost device: a probe tells.
    Ambiguous,
}

impl CkError {
    /// An error made on our side, for an entry that the module leaves empty.
    pub const fn missing(function: &'static str) -> Self {
        Self { function, rv: CKR_FUNCTION_NOT_SUPPORTED }
    }

    /// What the code means; codes that modules use for several things are [`Kind::Ambiguous`].
    pub fn kind(&self) -> Kind {
        match self.rv {
            CKR_ENCRYPTED_DATA_INVALID
            | CKR_ENCRYPTED_DATA_LEN_RANGE
            | CKR_DATA_INVALID
            | CKR_DATA_LEN_RANGE
            | CKR_SIGNATURE_INVALID
            | CKR_SIGNATURE_LEN_RANGE
            | CKR_WRAPPED_KEY_INVALID
            | CKR_WRAPPED_KEY_LEN_RANGE => Kind::BadInput,
            CKR_MECHANISM_INVALID
            | CKR_MECHANISM_PARAM_INVALID
            | CKR_FUNCTION_NOT_SUPPORTED
            | CKR_KEY_TYPE_INCONSISTENT
            | CKR_KEY_FUNCTION_NOT_PERMITTED
            | CKR_KEY_SIZE_RANGE
            | CKR_KEY_NOT_WRAPPABLE
            | CKR_KEY_UNEXTRACTABLE
            | CKR_ATTRIBUTE_TYPE_INVALID
            | CKR_ATTRIBUTE_VALUE_INVALID
            | CKR_ATTRIBUTE_READ_ONLY
            | CKR_ATTRIBUTE_SENSITIVE
            | CKR_TEMPLATE_INCOMPLETE
            | CKR_TEMPLATE_INCONSISTENT
            | CKR_ACTION_PROHIBITED
            | CKR_CURVE_NOT_SUPPORTED
            | CKR_ARGUMENTS_BAD => Kind::Unsupported,
            CKR_KEY_HANDLE_INVALID
            | CKR_OBJECT_HANDLE_INVALID
            | CKR_WRAPPING_KEY_HANDLE_INVALID
            | CKR_UNWRAPPING_KEY_HANDLE_INVALID => Kind::Handle,
            CKR_SESSION_HANDLE_INVALID
            | CKR_SESSION_CLOSED
            | CKR_OPERATION_ACTIVE
            | CKR_OPERATION_NOT_INITIALIZED
            | CKR_BUFFER_TOO_SMALL => Kind::Session,
            CKR_USER_NOT_LOGGED_IN => Kind::Login,
            CKR_SESSION_COUNT => Kind::SessionCount,
            CKR_PIN_INCORRECT | CKR_PIN_INVALID | CKR_PIN_LEN_RANGE | CKR_PIN_EXPIRED => Kind::PinRefused,
            CKR_PIN_LOCKED => Kind::PinLocked,
            CKR_CRYPTOKI_NOT_INITIALIZED => Kind::NotInitialized,
            _ => Kind::Ambiguous,
        }
    }

    /// The CKR name, or the number of a code that the standard does not know.
    fn name(&self) -> Option<&'static str> {
        NAMES.iter().find(|(rv, _)| *rv == self.rv).map(|(_, name)| *name)
    }
}

impl fmt::Display for CkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{}: {name}", self.function),
            None => write!(f, "{}: CKR 0x{:08X}", self.function, self.rv),
        }
    }
}

impl std::error::Error for CkError {}

macro_rules! names {
    ($($name:ident),* $(,)?) => { &[$(($name, stringify!($name))),*] };
}

const NAMES: &[(CK_RV, &str)] = names![
    CKR_CANCEL,
    CKR_HOST_MEMORY,
    CKR_SLOT_ID_INVALID,
    CKR_GENERAL_ERROR,
    CKR_FUNCTION_FAILED,
    CKR_ARGUMENTS_BAD,
    CKR_CANT_LOCK,
    CKR_ATTRIBUTE_READ_ONLY,
    CKR_ATTRIBUTE_SENSITIVE,
    CKR_ATTRIBUTE_TYPE_INVALID,
    CKR_ATTRIBUTE_VALUE_INVALID,
    CKR_ACTION_PROHIBITED,
    CKR_DATA_INVALID,
    CKR_DATA_LEN_RANGE,
    CKR_DEVICE_ERROR,
    CKR_DEVICE_MEMORY,
    CKR_DEVICE_REMOVED,
    CKR_ENCRYPTED_DATA_INVALID,
    CKR_ENCRYPTED_DATA_LEN_RANGE,
    CKR_FUNCTION_CANCELED,
    CKR_FUNCTION_NOT_SUPPORTED,
    CKR_KEY_HANDLE_INVALID,
    CKR_KEY_SIZE_RANGE,
    CKR_KEY_TYPE_INCONSISTENT,
    CKR_KEY_FUNCTION_NOT_PERMITTED,
    CKR_KEY_NOT_WRAPPABLE,
    CKR_KEY_UNEXTRACTABLE,
    CKR_MECHANISM_INVALID,
    CKR_MECHANISM_PARAM_INVALID,
    CKR_OBJECT_HANDLE_INVALID,
    CKR_OPERATION_ACTIVE,
    CKR_OPERATION_NOT_INITIALIZED,
    CKR_PIN_INCORRECT,
    CKR_PIN_INVALID,
    CKR_PIN_LEN_RANGE,
    CKR_PIN_EXPIRED,
    CKR_PIN_LOCKED,
    CKR_SESSION_CLOSED,
    CKR_SESSION_COUNT,
    CKR_SESSION_HANDLE_INVALID,
    CKR_SESSION_READ_ONLY,
    CKR_SESSION_READ_ONLY_EXISTS,
    CKR_SIGNATURE_INVALID,
    CKR_SIGNATURE_LEN_RANGE,
    CKR_TEMPLATE_INCOMPLETE,
    CKR_TEMPLATE_INCONSISTENT,
    CKR_TOKEN_NOT_PRESENT,
    CKR_TOKEN_NOT_RECOGNIZED,
    CKR_TOKEN_WRITE_PROTECTED,
    CKR_UNWRAPPING_KEY_HANDLE_INVALID,
    CKR_UNWRAPPING_KEY_SIZE_RANGE,
    CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT,
    CKR_USER_ALREADY_LOGGED_IN,
    CKR_USER_NOT_LOGGED_IN,
    CKR_USER_PIN_NOT_INITIALIZED,
    CKR_USER_TYPE_INVALID,
    CKR_WRAPPED_KEY_INVALID,
    CKR_WRAPPED_KEY_LEN_RANGE,
    CKR_WRAPPING_KEY_HANDLE_INVALID,
    CKR_WRAPPING_KEY_SIZE_RANGE,
    CKR_WRAPPING_KEY_TYPE_INCONSISTENT,
    CKR_BUFFER_TOO_SMALL,
    CKR_CRYPTOKI_NOT_INITIALIZED,
    CKR_CRYPTOKI_ALREADY_INITIALIZED,
    CKR_CURVE_NOT_SUPPORTED,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes_are_named_and_unknown_ones_numbered() {
        let known = CkError { function: "C_Decrypt", rv: 5 };
        assert_eq!(known.to_string(), "C_Decrypt: CKR_GENERAL_ERROR");
        let vendor = CkError { function: "C_Decrypt", rv: 0x8000_0001 };
        assert_eq!(vendor.to_string(), "C_Decrypt: CKR 0x80000001");
    }

    #[test]
    fn what_modules_use_for_two_things_is_ambiguous() {
        for rv in [CKR_GENERAL_ERROR, CKR_DEVICE_ERROR, CKR_FUNCTION_FAILED, 0x8000_0001] {
            assert_eq!(CkError { function: "C_Decrypt", rv }.kind(), Kind::Ambiguous);
        }
    }
}
