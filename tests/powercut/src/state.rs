//! The files below the watched folder, and what of them is not synced.

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libc::{c_char, c_int};

use crate::faults;
use crate::journal::{self, Kind};

/// Blocks in which a disk writes.
const BLOCK: u64 = 512;

static ROOT: OnceLock<Option<String>> = OnceLock::new();
static STATE: OnceLock<Mutex<State>> = OnceLock::new();

/// All watched files, by inode.
#[derive(Default)]
pub struct State {
    files: HashMap<u64, Watched>,
    last: u32,
    dice: u64,
}

/// One watched file.
#[derive(Default)]
pub struct Watched {
    /// Its number in the journal.
    pub id: u32,
    /// Blocks as they were when the file was last synced. Kept only while a failing sync shall lose something.
    before: HashMap<u64, Vec<u8>>,
    /// Its length then, once something has changed.
    length: Option<u64>,
}

/// The watched folder, without a slash at the end.
pub fn root() -> Option<&'static str> {
    ROOT.get_or_init(|| Some(std::env::var("SOS_POWERCUT_ROOT").ok()?.trim_end_matches('/').to_owned())).as_deref()
}

/// Takes the lock under which every watched call is made and written down.
pub fn lock() -> MutexGuard<'static, State> {
    STATE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// The path, when it lies below the watched folder.
///
/// # Safety
/// `path` is null or a C string.
pub unsafe fn watched_path(path: *const c_char) -> Option<String> {
    let root = root()?;
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) }.to_str().ok()?;
    let below = path.strip_prefix(root)?;
    (below.is_empty() || below.starts_with('/')).then(|| path.to_owned())
}

/// What the kernel says of an open file.
pub fn stat(fd: c_int) -> Option<libc::stat> {
    root()?;
    // SAFETY: all zeros are a valid `stat`, which the call fills.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::syscall(libc::SYS_fstat, fd, &raw mut stat) == 0).then_some(stat)
    }
}

/// Whether the file is one of those watched. Cheap where nothing is watched.
pub fn regular(fd: c_int) -> Option<libc::stat> {
    stat(fd).filter(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG)
}

impl State {
    /// Takes an opened file up.
    pub fn opened(&mut self, fd: c_int, path: &str, made: bool) {
        let Some(stat) = regular(fd) else { return };
        if !made && self.files.contains_key(&stat.st_ino) {
            return;
        }
        self.last += 1;
        self.files.insert(stat.st_ino, Watched { id: self.last, ..Watched::default() });
        journal::note(if made { Kind::Create } else { Kind::Known }, self.last, 0, path.as_bytes());
    }

    /// The watched file behind a descriptor.
    pub fn file(&mut self, stat: &libc::stat) -> Option<&mut Watched> {
        self.files.get_mut(&stat.st_ino)
    }

    /// What a failed sync leaves: a random half of the unsynced blocks is as before.
    pub fn lose(&mut self, fd: c_int, stat: &libc::stat) {
        let mut dice = self.dice ^ stat.st_ino;
        let mut toss = || {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            dice >> 63 == 0
        };
        let Some(file) = self.files.get_mut(&stat.st_ino) else { return };
        let Some(length) = file.length.take() else { return };
        let mut blocks: Vec<_> = file.before.drain().collect();
        blocks.sort();
        for (block, bytes) in blocks {
            if toss() {
                // Descriptors that only read cannot write; the file is opened anew.
                write_back(fd, &bytes, block * BLOCK);
            }
        }
        if u64::try_from(stat.st_size).is_ok_and(|size| size > length) && toss() {
            cut(fd, length);
        }
        self.dice = dice;
    }
}

impl Watched {
    /// Remembers what stands at a place that is about to change.
    pub fn remember(&mut self, fd: c_int, stat: &libc::stat, from: u64, len: u64) {
        if !faults::exists("lose") || len == 0 {
            return;
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let length = *self.length.get_or_insert(size);
        for block in from / BLOCK..=(from + len - 1) / BLOCK {
            if block * BLOCK < length && !self.before.contains_key(&block) {
                let wanted = usize::try_from(BLOCK.min(length - block * BLOCK)).unwrap_or(0);
                let mut bytes = vec![0; wanted];
                read(fd, &mut bytes, block * BLOCK);
                self.before.insert(block, bytes);
            }
        }
    }

    /// Everything is durable now.
    pub fn synced(&mut self) {
        self.before.clear();
        self.length = None;
    }
}

/// A descriptor of the same file with other rights, for the time of `work`.
fn anew(fd: c_int, flags: c_int, work: impl FnOnce(c_int)) {
    let path = format!("/proc/self/fd/{fd}\0");
    // SAFETY: the path ends in a zero byte; raw calls do not come back into this library.
    unsafe {
        let again = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags | libc::O_CLOEXEC, 0);
        let Ok(again) = c_int::try_from(again) else { return };
        if again >= 0 {
            work(again);
            libc::syscall(libc::SYS_close, again);
        }
    }
}

fn read(fd: c_int, bytes: &mut [u8], offset: u64) {
    // SAFETY: the buffer lives through the call.
    anew(fd, libc::O_RDONLY, |fd| unsafe {
        libc::syscall(libc::SYS_pread64, fd, bytes.as_mut_ptr(), bytes.len(), offset);
    });
}

fn write_back(fd: c_int, bytes: &[u8], offset: u64) {
    // SAFETY: the buffer lives through the call.
    anew(fd, libc::O_WRONLY, |fd| unsafe {
        libc::syscall(libc::SYS_pwrite64, fd, bytes.as_ptr(), bytes.len(), offset);
    });
}

fn cut(fd: c_int, length: u64) {
    // SAFETY: takes numbers only.
    anew(fd, libc::O_WRONLY, |fd| unsafe {
        libc::syscall(libc::SYS_ftruncate, fd, length);
    });
}
