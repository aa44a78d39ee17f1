//! Whether what was found out by reading is as sure as a commit.
//!
//! After a failed write nobody knows what the store holds until it was opened afresh: reads go on from what was durable before, and the
//! write may show up later all the same. Who reads in that time, finds that there is nothing to do and says that it is done says what may
//! not be so. A commit cannot make that mistake, as it fails until the store is open again. So work that changes things runs inside of
//! [`Barrier::surely`](super::Barrier::surely), which tells whether it committed anything and, if not, whether all that it read was certain.

use std::{cell::Cell, future::Future};

use tokio::task::JoinError;

tokio::task_local! {
    /// Whether the work of this task has committed something.
    static COMMITTED: Cell<bool>;
}

/// Runs work, and tells whether it committed anything.
pub(super) async fn watched<F: Future>(work: F) -> (F::Output, bool) {
    COMMITTED
        .scope(Cell::new(false), async {
            let done = work.await;
            (done, COMMITTED.get().get())
        })
        .await
}

/// The work that runs has committed something, or what another task committed for it was acknowledged.
pub fn note_commit() {
    // Nobody asks in background work.
    let _ = COMMITTED.try_with(|committed| committed.set(true));
}

/// Runs work on a task of its own, which goes on when the caller goes away; what it commits the caller has committed.
pub async fn on_own_task<F>(work: F) -> Result<F::Output, JoinError>
where
    F: Future<Output: Send> + Send + 'static,
{
    let (done, committed) = tokio::spawn(watched(work)).await?;
    if committed {
        note_commit();
    }
    Ok(done)
}
