//! Kryoptic as a PKCS#11 module: the symbols that callers look up, passed on to the library.

#![allow(non_snake_case)] // the standard's names

use kryoptic_lib::fns::general;
use kryoptic_lib::pkcs11::{CK_FLAGS, CK_FUNCTION_LIST, CK_INTERFACE, CK_RV, CK_ULONG, CK_UTF8CHAR, CK_VERSION};

/// The 2.40 function list.
#[unsafe(no_mangle)]
pub extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    general::fn_get_function_list(list)
}

/// The 3.x interfaces.
#[unsafe(no_mangle)]
pub extern "C" fn C_GetInterfaceList(list: *mut CK_INTERFACE, count: *mut CK_ULONG) -> CK_RV {
    general::fn_get_interface_list(list, count)
}

/// One 3.x interface.
#[unsafe(no_mangle)]
pub extern "C" fn C_GetInterface(
    name: *mut CK_UTF8CHAR,
    version: *mut CK_VERSION,
    interface: *mut *mut CK_INTERFACE,
    flags: CK_FLAGS,
) -> CK_RV {
    general::fn_get_interface(name, version, interface, flags)
}
