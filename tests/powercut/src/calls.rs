//! The C library's calls that change files, each with its system call behind.
//!
//! Every function here has the C library's name, so that the dynamic linker finds it first; its arguments and answers are
//! those of the manual's page of that name, which is also what callers must keep to.

use std::ffi::{CStr, c_void};

use libc::{c_char, c_int, c_long, c_uint, iovec, mode_t, off_t, size_t, ssize_t};

use crate::faults;
use crate::journal::{self, Kind};
use crate::state::{lock, regular, root, stat, watched_path};

/// A system call's answer as the C library gives it; `syscall` has set `errno`.
fn answer(done: c_long) -> c_int {
    c_int::try_from(done).unwrap_or(-1)
}

fn fail(error: c_int) -> ssize_t {
    // SAFETY: the address is this thread's own.
    unsafe { *libc::__errno_location() = error };
    -1
}

// ---- names

unsafe fn exists(path: *const c_char) -> bool {
    // SAFETY: the caller's C string; all zeros are a valid `stat`.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        libc::syscall(libc::SYS_newfstatat, libc::AT_FDCWD, path, &raw mut found, 0) == 0
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments are passed on as they are.
    unsafe {
        let call = || answer(libc::syscall(libc::SYS_openat, folder, path, flags, mode));
        let Some(watched) = watched_path(path) else { return call() };
        let mut state = lock();
        let made = flags & libc::O_CREAT != 0 && !exists(path);
        let fd = call();
        if fd >= 0 {
            state.opened(fd, &watched, made);
            if flags & libc::O_TRUNC != 0
                && !made
                && let Some(stat) = regular(fd)
                && let Some(file) = state.file(&stat)
            {
                journal::note(Kind::Truncate, file.id, 0, &[]);
            }
        }
        fd
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as above.
    unsafe { openat(folder, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as above.
    unsafe { openat(libc::AT_FDCWD, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as above.
    unsafe { openat(libc::AT_FDCWD, path, flags, mode) }
}

/// Makes a call that changes names, and writes it down when it held.
unsafe fn named(path: *const c_char, kind: Kind, more: Option<*const c_char>, call: impl Fn() -> c_int) -> c_int {
    // SAFETY: the caller's C strings.
    let (first, second) = unsafe { (watched_path(path), more.and_then(|path| watched_path(path))) };
    if first.is_none() && second.is_none() {
        return call();
    }
    let _state = lock();
    let done = call();
    if done == 0 {
        let mut payload = first.unwrap_or_default();
        if more.is_some() {
            payload.push('\0');
            payload.push_str(&second.unwrap_or_default());
        }
        journal::note(kind, 0, 0, payload.as_bytes());
    }
    done
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's arguments are passed on as they are.
    unsafe {
        let call = || answer(libc::syscall(libc::SYS_renameat, libc::AT_FDCWD, from, libc::AT_FDCWD, to));
        named(from, Kind::Rename, Some(to), call)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: as above.
    unsafe { named(path, Kind::Unlink, None, || answer(libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0))) }
}

/// Also for names below an open folder, as when whole folders are removed.
#[unsafe(no_mangle)]
unsafe extern "C" fn unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    let open = std::fs::read_link(format!("/proc/self/fd/{folder}")).ok();
    // SAFETY: the caller's arguments are passed on as they are; `whole` lives through the call.
    unsafe {
        let call = || answer(libc::syscall(libc::SYS_unlinkat, folder, path, flags));
        let (Some(open), false) = (open, path.is_null()) else { return named(path, Kind::Unlink, None, call) };
        let below = CStr::from_ptr(path).to_bytes();
        let whole = [open.as_os_str().as_encoded_bytes(), b"/", below, b"\0"].concat();
        named(whole.as_ptr().cast(), Kind::Unlink, None, call)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: as above.
    unsafe { named(path, Kind::Mkdir, None, || answer(libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode))) }
}

// ---- contents

/// A write of `len` bytes at `at`, or at the file's own position. `call` writes so many of them.
unsafe fn writing(fd: c_int, at: Option<off_t>, bytes: *const c_void, len: size_t, call: impl Fn(size_t) -> c_long) -> ssize_t {
    let as_is = |done: c_long| ssize_t::try_from(done).unwrap_or(-1);
    if root().is_none() {
        return as_is(call(len));
    }
    let Some(stat) = regular(fd) else { return as_is(call(len)) };
    let mut state = lock();
    let Some(file) = state.file(&stat) else {
        drop(state);
        return as_is(call(len));
    };
    // SAFETY: a call on the caller's descriptor that takes numbers only.
    let position = at.unwrap_or_else(|| unsafe {
        match libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFL) & c_long::from(libc::O_APPEND) {
            0 => libc::syscall(libc::SYS_lseek, fd, 0, libc::SEEK_CUR),
            _ => stat.st_size,
        }
    });
    let position = u64::try_from(position).unwrap_or(0);
    file.remember(fd, &stat, position, u64::try_from(len).unwrap_or(0));
    // A write that fails may have got half-way.
    let error = faults::due("write", fd);
    let wanted = if error.is_some() { len / 2 } else { len };
    let done = call(wanted);
    if let Ok(count @ 1..) = usize::try_from(done) {
        // SAFETY: the caller's buffer holds `len` bytes, and no more than those were written.
        let written = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), count) };
        journal::note(Kind::Write, file.id, position, written);
    }
    error.map_or(as_is(done), fail)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's arguments are passed on as they are.
    unsafe { writing(fd, None, bytes, len, |len| libc::syscall(libc::SYS_write, fd, bytes, len)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, len: size_t, at: off_t) -> ssize_t {
    // SAFETY: as above.
    unsafe { writing(fd, Some(at), bytes, len, |len| libc::syscall(libc::SYS_pwrite64, fd, bytes, len, at)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, len: size_t, at: off_t) -> ssize_t {
    // SAFETY: as above.
    unsafe { pwrite64(fd, bytes, len, at) }
}

/// Only the first buffer is written where the file is watched: callers must go on after a short write.
#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, buffers: *const iovec, count: c_int) -> ssize_t {
    let watched = regular(fd).is_some_and(|stat| lock().file(&stat).is_some());
    // SAFETY: as above; the first `count` buffers are the caller's.
    unsafe {
        if !watched {
            return ssize_t::try_from(libc::syscall(libc::SYS_writev, fd, buffers, count)).unwrap_or(-1);
        }
        let filled = (0..usize::try_from(count).unwrap_or(0)).map(|n| &*buffers.add(n)).find(|buffer| buffer.iov_len > 0);
        filled.map_or(0, |buffer| write(fd, buffer.iov_base, buffer.iov_len))
    }
}

fn reading(fd: c_int) -> Option<c_int> {
    root()?;
    if !faults::exists("read") {
        return None;
    }
    let stat = regular(fd)?;
    let mut state = lock();
    state.file(&stat)?;
    faults::due("read", fd)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn read(fd: c_int, bytes: *mut c_void, len: size_t) -> ssize_t {
    // SAFETY: as above.
    unsafe { reading(fd).map_or_else(|| ssize_t::try_from(libc::syscall(libc::SYS_read, fd, bytes, len)).unwrap_or(-1), fail) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pread64(fd: c_int, bytes: *mut c_void, len: size_t, at: off_t) -> ssize_t {
    // SAFETY: as above.
    unsafe {
        reading(fd).map_or_else(|| ssize_t::try_from(libc::syscall(libc::SYS_pread64, fd, bytes, len, at)).unwrap_or(-1), fail)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pread(fd: c_int, bytes: *mut c_void, len: size_t, at: off_t) -> ssize_t {
    // SAFETY: as above.
    unsafe { pread64(fd, bytes, len, at) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(fd: c_int, length: off_t) -> c_int {
    // SAFETY: takes numbers only.
    let call = || answer(unsafe { libc::syscall(libc::SYS_ftruncate, fd, length) });
    let Some(stat) = regular(fd) else { return call() };
    let mut state = lock();
    let Some(file) = state.file(&stat) else { return call() };
    if length > stat.st_size
        && let Some(error) = faults::due("write", fd)
    {
        return c_int::try_from(fail(error)).unwrap_or(-1);
    }
    let (old, new) = (u64::try_from(stat.st_size).unwrap_or(0), u64::try_from(length).unwrap_or(0));
    file.remember(fd, &stat, new.min(old), old.saturating_sub(new).max(1));
    let done = call();
    if done == 0 {
        journal::note(Kind::Truncate, file.id, new, &[]);
    }
    done
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate(fd: c_int, length: off_t) -> c_int {
    // SAFETY: as above.
    unsafe { ftruncate64(fd, length) }
}

// ---- syncs

fn syncing(fd: c_int, call: impl Fn() -> c_int) -> c_int {
    let Some(stat) = stat(fd) else { return call() };
    let mut state = lock();
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{fd}")) else { return call() };
        if !path.starts_with(root().unwrap_or_default()) {
            return call();
        }
        if let Some(error) = faults::due("sync", fd) {
            return c_int::try_from(fail(error)).unwrap_or(-1);
        }
        journal::note(Kind::SyncFolder, 0, 0, path.as_os_str().as_encoded_bytes());
        return if journal::kept() { 0 } else { call() };
    }
    if state.file(&stat).is_none() {
        drop(state);
        return call();
    }
    if let Some(error) = faults::due("sync", fd) {
        state.lose(fd, &stat);
        return c_int::try_from(fail(error)).unwrap_or(-1);
    }
    let done = if journal::kept() { 0 } else { call() };
    if let Some(file) = state.file(&stat)
        && done == 0
    {
        file.synced();
        journal::note(Kind::Sync, file.id, 0, &[]);
    }
    done
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: takes numbers only.
    syncing(fd, || answer(unsafe { libc::syscall(libc::SYS_fsync, fd) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: as above.
    syncing(fd, || answer(unsafe { libc::syscall(libc::SYS_fdatasync, fd) }))
}

/// Hands pages to the disk and promises nothing: neither the file's length nor the disk's cache are synced. A store that
/// waits for it takes something for stable that is not, which fails the test.
#[unsafe(no_mangle)]
unsafe extern "C" fn sync_file_range(fd: c_int, from: off_t, len: off_t, flags: c_uint) -> c_int {
    // SAFETY: as above.
    let call = || answer(unsafe { libc::syscall(libc::SYS_sync_file_range, fd, from, len, flags) });
    let Some(stat) = regular(fd) else { return call() };
    let mut state = lock();
    let Some(file) = state.file(&stat).map(|file| file.id) else { return call() };
    if let Some(error) = faults::due("sync", fd) {
        state.lose(fd, &stat);
        return c_int::try_from(fail(error)).unwrap_or(-1);
    }
    let done = call();
    // With a planted fault losses are wanted, and looked for elsewhere.
    if done == 0 && std::env::var_os("SOS_PLANT_FAULT").is_none() {
        journal::note(Kind::Escape, file, 0, b"sync_file_range, which does not sync");
    }
    done
}

// ---- what would escape

#[unsafe(no_mangle)]
unsafe extern "C" fn mmap64(place: *mut c_void, len: size_t, rights: c_int, flags: c_int, fd: c_int, at: off_t) -> *mut c_void {
    let shared = flags & libc::MAP_SHARED != 0 && rights & libc::PROT_WRITE != 0;
    if shared
        && fd >= 0
        && let Some(stat) = regular(fd)
        && let Some(file) = lock().file(&stat)
    {
        journal::note(Kind::Escape, file.id, 0, b"a writable mapping");
    }
    // SAFETY: the caller's arguments are passed on as they are.
    unsafe { libc::syscall(libc::SYS_mmap, place, len, rights, flags, fd, at) as *mut c_void }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(place: *mut c_void, len: size_t, rights: c_int, flags: c_int, fd: c_int, at: off_t) -> *mut c_void {
    // SAFETY: as above.
    unsafe { mmap64(place, len, rights, flags, fd, at) }
}
