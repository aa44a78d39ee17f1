//! What batches and keys of many versions may take at once, over all Transit mounts.
//!
//! The items of a batch cost memory beside the request's bytes: its answer grows by some hundred bytes each, whereas an item
//! can be sent in three. So there is a bound for one batch, and one for all together, for which large ones wait in order.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::rsa_in_hsm::AT_ONCE;
use crate::core::failure::Failure;

/// Items of one batch. A body of the usual largest size, full of wrapped 32-byte keys, holds fewer.
pub const MAX_ITEMS: usize = 500_000;

/// Items of all batches that are worked on at once.
const ALL_ITEMS: usize = 2 * MAX_ITEMS;

/// A batch up to this length costs no more than a single request does, and waits for nobody.
const SMALL: usize = 256;

/// Operations on private keys in the HSM that batches have under way at once. On one session that takes 0.1 s for each, what
/// is asked beside them still ends before its deadline.
const PRIVATE: usize = 2 * AT_ONCE;

/// Keys from outside that are read at once, and keys written for outside: a processor's work for seconds where they have
/// thousands of versions.
const WHOLE_KEYS: usize = 2;

/// The bounds.
pub struct Gate {
    items: Semaphore,
    private: Semaphore,
    whole_keys: Semaphore,
}

impl Default for Gate {
    fn default() -> Self {
        Self { items: Semaphore::new(ALL_ITEMS), private: Semaphore::new(PRIVATE), whole_keys: Semaphore::new(WHOLE_KEYS) }
    }
}

impl Gate {
    /// Waits until a batch of so many items may be worked on.
    ///
    /// # Errors
    /// 400 when it is longer than any may be.
    pub async fn admit(&self, items: usize) -> Result<Option<SemaphorePermit<'_>>, Failure> {
        if items > MAX_ITEMS {
            return Err(Failure::invalid(format!(
                "batch_input has more than the {MAX_ITEMS} items that one request takes; send them in several requests"
            )));
        }
        if items <= SMALL {
            return Ok(None);
        }
        let items = u32::try_from(items).unwrap_or(u32::MAX);
        self.items.acquire_many(items).await.map(Some).map_err(Failure::internal)
    }

    /// Does what keeps a processor busy for all versions of a key, on a thread where nobody waits for it.
    pub async fn whole_key<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let _turn = self.whole_keys.acquire().await.map_err(Failure::internal)?;
        tokio::task::spawn_blocking(work).await.map_err(Failure::internal)?
    }

    /// The turn of one of many operations on a private key in the HSM.
    pub async fn private(&self) -> Result<SemaphorePermit<'_>, Failure> {
        self.private.acquire().await.map_err(Failure::internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::failure::Kind;

    #[tokio::test]
    async fn what_reads_a_whole_key_holds_up_nobody() {
        let gate = std::sync::Arc::new(Gate::default());
        // Ends only because others go on beside it, on this runtime's only thread.
        let (go, wait) = std::sync::mpsc::channel();
        let work = gate.whole_key(move || wait.recv().map_err(Failure::internal));
        let beside = async {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            go.send(7)
        };
        let (done, sent) = tokio::join!(work, beside);
        sent.unwrap();
        assert_eq!(done.unwrap(), 7);
    }

    #[tokio::test]
    async fn large_batches_wait_for_each_other_and_small_ones_do_not() {
        let gate = Gate::default();
        let held = (gate.admit(MAX_ITEMS).await.unwrap(), gate.admit(MAX_ITEMS).await.unwrap());
        let mut third = Box::pin(gate.admit(SMALL + 1));
        assert!(futures_util::poll!(&mut third).is_pending());
        assert!(gate.admit(SMALL).await.unwrap().is_none());
        drop(held);
        assert!(third.await.unwrap().is_some());
        assert_eq!(gate.admit(MAX_ITEMS + 1).await.unwrap_err().kind(), Kind::Invalid);
    }
}
