//! Memory that has held secrets: kept out of swap, and overwritten when it is given back.
//!
//! What Rust code allocates is overwritten by the program's allocator (`main.rs`). libcrypto allocates by itself and
//! frees some copies of private keys as they are (its readers and writers of DER do); it lets a program put functions of
//! its own in place of `malloc` and `free`, and [`overwrite_what_libcrypto_frees`] does.

// mlockall and functions that C calls cannot be written without it.
#![allow(unsafe_code)]

use std::{
    ffi::{c_char, c_int, c_void},
    io, ptr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::process::{Resource, getrlimit};

/// What locks all memory, now and later, page by page as it comes into use.
const LOCK: c_int = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;

/// Whether [`lock_memory`] held.
static IS_LOCKED: AtomicBool = AtomicBool::new(false);

/// Keeps all memory out of swap, or says what to do when that is not allowed.
pub fn lock_memory() -> io::Result<()> {
    let limit = getrlimit(Resource::Memlock);
    if limit.current.is_some_and(|bytes| bytes < 1 << 30) && !rustix::process::geteuid().is_root() {
        return Err(io::Error::other("the limit of locked memory (ulimit -l) is below 1 GiB"));
    }
    // SAFETY: takes flags only and touches no memory of ours.
    let done = unsafe { libc::mlockall(LOCK) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    IS_LOCKED.store(true, Ordering::Relaxed);
    Ok(())
}

/// How often it is looked whether memory is to be given back.
const LOOK: Duration = Duration::from_secs(1);

/// How much more than is in use, and than could not be given back last time, is given back.
const MUCH: u64 = 4 << 20;

/// Keeps glibc's allocator from growing for good: it makes up to eight heaps for each processor, and a heap keeps what is freed
/// in its middle. One heap for each processor is enough for threads that mostly wait, and what is free is given back by a
/// thread of its own when it has become much. To be called before the server has other threads.
#[cfg(target_env = "gnu")]
pub fn bound_heaps() {
    let heaps = std::thread::available_parallelism().map_or(2, |found| found.get().max(2));
    // SAFETY: takes numbers only.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, c_int::try_from(heaps).unwrap_or(c_int::MAX)) };
    let giving = std::thread::Builder::new().name("memory".into()).spawn(|| {
        let mut left = 0;
        loop {
            std::thread::sleep(LOOK);
            let unused = resident().saturating_sub(in_use());
            if unused > left + MUCH && give_back() {
                left = resident().saturating_sub(in_use());
            }
            left = left.min(unused);
        }
    });
    if let Err(error) = giving {
        tracing::warn!(%error, "free memory is not given back to the system: no thread could be started");
    }
}

/// Bytes of memory that is the process's own and not a file's; nothing when the system does not tell.
#[cfg(target_env = "gnu")]
fn resident() -> u64 {
    let told = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = told.split(' ').skip(1).map_while(|number| number.parse::<u64>().ok());
    let (all, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    all.saturating_sub(shared) * rustix::param::page_size() as u64
}

/// Bytes that the allocator has given out.
#[cfg(target_env = "gnu")]
fn in_use() -> u64 {
    // SAFETY: takes nothing, and reads the allocator's own numbers under its own locks.
    let told = unsafe { libc::mallinfo2() };
    (told.uordblks + told.hblkhd) as u64
}

/// Gives free memory back to the system; answers whether that was tried. The kernel takes no single pages of locked memory back
/// (madvise(2), `MADV_DONTNEED`), so it is unlocked for the few milliseconds that it takes: only where there is nothing that
/// it could be swapped to meanwhile.
#[cfg(target_env = "gnu")]
fn give_back() -> bool {
    let is_locked = IS_LOCKED.load(Ordering::Relaxed);
    if is_locked && may_swap() {
        return false;
    }
    // SAFETY: these take flags and numbers only; trimming touches free memory only, under the allocator's own locks.
    let locked_again = unsafe {
        if is_locked {
            libc::munlockall();
        }
        libc::malloc_trim(0);
        !is_locked || libc::mlockall(LOCK) == 0
    };
    if !locked_again {
        IS_LOCKED.store(false, Ordering::Relaxed);
        let error = io::Error::last_os_error();
        tracing::error!(%error, "memory could not be locked again after free memory was given back; restart the server");
    }
    true
}

/// Whether the system has a place to swap to, or does not tell (proc(5), `/proc/swaps`: a heading, then a line for each).
#[cfg(target_env = "gnu")]
fn may_swap() -> bool {
    std::fs::read_to_string("/proc/swaps").map_or(true, |places| places.lines().count() > 1)
}

/// Other allocators have no heaps to bound.
#[cfg(not(target_env = "gnu"))]
pub fn bound_heaps() {}

type Allocate = unsafe extern "C" fn(usize, *const c_char, c_int) -> *mut c_void;
type Resize = unsafe extern "C" fn(*mut c_void, usize, *const c_char, c_int) -> *mut c_void;
type Release = unsafe extern "C" fn(*mut c_void, *const c_char, c_int);

unsafe extern "C" {
    /// libcrypto(3), `OPENSSL_malloc(3)`: answers 0 once anything was allocated.
    fn CRYPTO_set_mem_functions(allocate: Allocate, resize: Resize, release: Release) -> c_int;
}

/// Makes libcrypto overwrite all memory that it frees, in this process: also where a PKCS#11 module uses the same
/// library. To be called before anything uses libcrypto; answers whether it was early enough.
pub fn overwrite_what_libcrypto_frees() -> bool {
    // SAFETY: the functions below keep the contracts of malloc, realloc and free, of which libcrypto's are copies.
    unsafe { CRYPTO_set_mem_functions(allocate, resize, release) == 1 }
}

/// malloc; libcrypto never asks for nothing.
unsafe extern "C" fn allocate(len: usize, _: *const c_char, _: c_int) -> *mut c_void {
    // SAFETY: malloc takes every length.
    unsafe { libc::malloc(len) }
}

/// realloc that leaves nothing behind where it moves.
unsafe extern "C" fn resize(old: *mut c_void, len: usize, file: *const c_char, line: c_int) -> *mut c_void {
    // SAFETY: `old` is null or came from `allocate` or `resize` and was not freed; the new block does not overlap it,
    // and both have at least the copied length.
    unsafe {
        if old.is_null() {
            return libc::malloc(len);
        }
        let new = libc::malloc(len);
        if !new.is_null() {
            ptr::copy_nonoverlapping(old.cast::<u8>(), new.cast::<u8>(), len.min(libc::malloc_usable_size(old)));
            release(old, file, line);
        }
        new
    }
}

/// free of overwritten memory.
unsafe extern "C" fn release(block: *mut c_void, _: *const c_char, _: c_int) {
    if block.is_null() {
        return;
    }
    // SAFETY: `block` came from `allocate` or `resize` and was not freed; all its usable bytes are ours.
    unsafe {
        libc::explicit_bzero(block, libc::malloc_usable_size(block));
        libc::free(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_their_contents_when_they_grow_and_shrink() {
        // SAFETY: blocks are used within their lengths and freed once.
        unsafe {
            let mut block = allocate(10, ptr::null(), 0).cast::<u8>();
            for at in 0..10_u8 {
                block.add(usize::from(at)).write(at);
            }
            for len in [100_000, 40, 4] {
                block = resize(block.cast(), len, ptr::null(), 0).cast();
                for at in 0..4_u8 {
                    assert_eq!(block.add(usize::from(at)).read(), at);
                }
            }
            release(block.cast(), ptr::null(), 0);
            release(ptr::null_mut(), ptr::null(), 0);
            let fresh = resize(ptr::null_mut(), 16, ptr::null(), 0);
            assert!(!fresh.is_null());
            release(fresh, ptr::null(), 0);
        }
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn free_memory_goes_back_to_the_system_although_it_is_locked() {
        let was_locked = lock_memory().is_ok();
        let mut blocks: Vec<Vec<u8>> = (0..32 << 10).map(|_| vec![1; 4 << 10]).collect();
        let full = resident();
        // What stays lies between what is freed, so that no heap can shrink from its end.
        let mut at = 0;
        blocks.retain(|_| {
            at += 1;
            at % 16 == 0
        });
        let gave_back = give_back();
        let left = resident();
        let is_locked = IS_LOCKED.swap(false, Ordering::Relaxed);
        // SAFETY: takes nothing.
        unsafe { libc::munlockall() };
        assert_eq!(is_locked, was_locked);
        assert!(gave_back || (is_locked && may_swap()));
        assert!(!gave_back || full - left > 64 << 20, "{} of {full} bytes are left", left);
        assert!(blocks.iter().all(|block| block[0] == 1));
    }
}
