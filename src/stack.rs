//! What finished calls leave on stacks. Ciphers spread their round keys over registers, compilers spill them, and moving a
//! value copies it: none of that is overwritten by whoever owns the value. The stacks of threads that use keys are therefore
//! overwritten from time to time, below what is in use, and at once where a cipher was at work: what is made on such a stack next is
//! moved elsewhere with what lies between its members.

use std::{
    future::{Future, poll_fn},
    hint::black_box,
    pin::pin,
    time::Duration,
};

/// How far the calls of a request or of periodic work reach down; an unoptimised build uses the most, some 170 KiB.
const DEPTH: usize = 256 << 10;
/// How far the calls of a cipher reach down.
const SHALLOW: usize = if cfg!(debug_assertions) { 32 << 10 } else { 4 << 10 };
/// Time between two overwritings of a thread's stack.
pub const PERIOD: Duration = Duration::from_secs(2);

/// Overwrites the stack of this thread below the caller.
#[inline(never)]
pub fn overwrite() {
    let room = [0_u8; DEPTH];
    black_box(&room);
}

/// Does something with a key and overwrites what it left on the stack, for well under a microsecond.
#[inline]
pub fn clean<T>(work: impl FnOnce() -> T) -> T {
    let done = work();
    overwrite_shallow();
    done
}

#[inline(never)]
fn overwrite_shallow() {
    let room = [0_u8; SHALLOW];
    black_box(&room);
}

/// Does some work and overwrites the stack whenever it pauses: for work that comes seldom.
pub async fn overwriting<F: Future>(work: F) -> F::Output {
    let mut work = pin!(work);
    poll_fn(|context| {
        let polled = work.as_mut().poll(context);
        overwrite();
        polled
    })
    .await
}

/// Overwrites this thread's stack for ever: for a task of a thread that serves requests, whose work is not slowed down so.
pub async fn keep_overwriting() {
    loop {
        tokio::time::sleep(PERIOD).await;
        overwrite();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_gets_done() {
        assert_eq!((overwriting(async { 7 }).await, clean(|| 8)), (7, 8));
    }
}
