//! Which calls fail: a file for each kind of call in the folder `SOS_POWERCUT_FAULTS`, looked at with every call.
//!
//! - `read`, `write`, `sync`: `<error number> <how often>`, as in `5 1` (EIO once) or `28 1000000` (ENOSPC from now on).
//!   A third number lets so many calls pass before, and a word behind it names a part of the paths that are meant.
//! - `lose`: when it exists, a failed sync leaves a random half of the unsynced blocks as they were before, as a kernel
//!   may that drops the pages it could not write.

use std::ffi::CString;
use std::sync::OnceLock;

use libc::{O_CLOEXEC, O_CREAT, O_RDONLY, O_TRUNC, O_WRONLY, c_int};

static FOLDER: OnceLock<Option<String>> = OnceLock::new();

fn folder() -> Option<&'static str> {
    FOLDER.get_or_init(|| std::env::var("SOS_POWERCUT_FAULTS").ok()).as_deref()
}

fn open(name: &str, flags: c_int) -> Option<c_int> {
    let path = CString::new(format!("{}/{name}", folder()?)).ok()?;
    // SAFETY: a valid path; raw calls do not come back into this library.
    let fd = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags | O_CLOEXEC, 0o600) };
    c_int::try_from(fd).ok().filter(|fd| *fd >= 0)
}

/// Whether a file of that name is there.
pub fn exists(name: &str) -> bool {
    open(name, O_RDONLY).is_some_and(|fd| {
        // SAFETY: our own descriptor.
        unsafe { libc::syscall(libc::SYS_close, fd) == 0 }
    })
}

fn path_of(fd: c_int) -> Option<String> {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).ok().map(|path| path.display().to_string())
}

/// The error that this call on a descriptor has to fail with. Called with the state's lock held.
pub fn due(name: &str, on: c_int) -> Option<c_int> {
    let fd = open(name, O_RDONLY)?;
    let mut text = [0_u8; 256];
    // SAFETY: the buffer lives through the call; the descriptor is ours.
    let count = unsafe {
        let count = libc::syscall(libc::SYS_read, fd, text.as_mut_ptr(), text.len());
        libc::syscall(libc::SYS_close, fd);
        count
    };
    let text = std::str::from_utf8(text.get(..usize::try_from(count).ok()?)?).ok()?;
    let mut words = text.split_whitespace();
    let mut number = || words.next().map(|word| word.parse::<i64>().ok());
    let (error, times) = (number()??, number()??);
    let pass = number().flatten().unwrap_or(0);
    let part = words.next().unwrap_or_default();
    if times <= 0 || !path_of(on).is_some_and(|path| path.contains(part)) {
        return None;
    }
    let failing = pass <= 0;
    let left = if failing { format!("{error} {} 0 {part}", times - 1) } else { format!("{error} {times} {} {part}", pass - 1) };
    if let Some(fd) = open(name, O_WRONLY | O_CREAT | O_TRUNC) {
        // SAFETY: as above.
        unsafe {
            libc::syscall(libc::SYS_write, fd, left.as_ptr(), left.len());
            libc::syscall(libc::SYS_close, fd);
        }
    }
    failing.then(|| c_int::try_from(error).unwrap_or(libc::EIO))
}
