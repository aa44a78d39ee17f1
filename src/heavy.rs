//! Work on so many bytes that it takes a thread for long: requests that do it ask to be moved from the threads that serve connections.
//!
//! A request's work is a future, which any thread may go on with between two polls. Who is about to do something long awaits
//! [`aside`]; whoever polls the request by [`poll_movable`] learns of it and hands the rest to threads of its own. Elsewhere, in
//! tests and where it was moved already, nothing happens.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

/// What is larger takes long.
pub const LARGE: usize = 256 << 10;

thread_local! {
    /// What is being polled can be moved.
    static MOVABLE: Cell<bool> = const { Cell::new(false) };
    static ASKED: Cell<bool> = const { Cell::new(false) };
}

/// Whether [`aside`] would move what is being polled.
pub fn is_movable() -> bool {
    MOVABLE.get()
}

/// What comes after this is done on another thread, if what is being polled can be moved. Who waits for that thread should hold little.
pub async fn aside() {
    let mut asked = false;
    poll_fn(|context| {
        if asked || !is_movable() {
            return Poll::Ready(());
        }
        asked = true;
        ASKED.set(true);
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Polls work that can be moved, and tells whether it asks for that.
pub fn poll_movable<F: Future + ?Sized>(work: Pin<&mut F>, context: &mut Context<'_>) -> (Poll<F::Output>, bool) {
    let before = MOVABLE.replace(true);
    ASKED.set(false);
    let polled = work.poll(context);
    MOVABLE.set(before);
    (polled, ASKED.replace(false))
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn work_asks_once_and_only_where_it_can_be_moved() {
        let mut work = Box::pin(async {
            aside().await;
            aside().await;
            is_movable()
        });
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(poll_movable(work.as_mut(), &mut context), (Poll::Pending, true)));
        // On a thread of its own it goes on to its end.
        assert_eq!(work.as_mut().poll(&mut context), Poll::Ready(false));
        assert!(!is_movable());
        assert!(matches!(poll_movable(Box::pin(async {}).as_mut(), &mut context), (Poll::Ready(()), false)));
    }
}
