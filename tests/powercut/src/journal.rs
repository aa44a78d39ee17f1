//! The journal: records of a fixed header and a payload, all little endian.
//!
//! ```text
//! kind (1 byte) | file (u32) | offset (u64) | length of the payload (u32) | payload
//! ```

use std::ffi::CString;
use std::sync::OnceLock;

use libc::{O_APPEND, O_CLOEXEC, O_CREAT, O_WRONLY, c_int};

/// What happened.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Kind {
    /// A file was made; the payload is its path.
    Create = 1,
    /// A file that was there before was opened; the payload is its path.
    Known = 2,
    /// Bytes were written at the offset.
    Write = 3,
    /// The file's length was set to the offset.
    Truncate = 4,
    /// All that was written to the file before is durable.
    Sync = 5,
    /// Old and new path, with a zero byte between them.
    Rename = 6,
    /// The path is gone.
    Unlink = 7,
    /// A folder was made.
    Mkdir = 8,
    /// The names in this folder are durable.
    SyncFolder = 9,
    /// Something changes the file past this library.
    Escape = 10,
}

static JOURNAL: OnceLock<Option<c_int>> = OnceLock::new();

/// Whether a journal is kept.
pub fn kept() -> bool {
    descriptor().is_some()
}

fn descriptor() -> Option<c_int> {
    *JOURNAL.get_or_init(|| {
        let path = CString::new(std::env::var("SOS_POWERCUT_JOURNAL").ok()?).ok()?;
        let flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
        // SAFETY: a valid path; the raw call does not come back into this library.
        let fd = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600) };
        if fd < 0 {
            std::process::abort();
        }
        c_int::try_from(fd).ok()
    })
}

/// Appends a record. A journal that cannot be written proves nothing, so the process ends then.
pub fn note(kind: Kind, file: u32, offset: u64, payload: &[u8]) {
    let Some(fd) = descriptor() else { return };
    let mut record = Vec::with_capacity(17 + payload.len());
    record.push(kind as u8);
    record.extend_from_slice(&file.to_le_bytes());
    record.extend_from_slice(&offset.to_le_bytes());
    record.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    record.extend_from_slice(payload);
    // SAFETY: the buffer lives through the call.
    let written = unsafe { libc::syscall(libc::SYS_write, fd, record.as_ptr(), record.len()) };
    if usize::try_from(written) != Ok(record.len()) {
        std::process::abort();
    }
}
