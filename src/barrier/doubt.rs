//! Commits whose end nobody knows, for whoever keeps in memory what is stored.
//!
//! When the store fails at a sync, what was to be written may be there all the same, and then the memory is behind it. So such a
//! commit waits for the store and finds out ([`Barrier::commit_surely`](super::Barrier::commit_surely)); where even that finds
//! nothing the records are noted here, and what they hold is taken over as soon as the store answers.

use std::collections::BTreeSet;
use std::future::Future;

use parking_lot::Mutex;

use super::{BarrierError, Txn, View};
use crate::storage::Version;

/// Paths, relative to a view, of which nobody knows what they hold.
#[derive(Debug, Default)]
pub struct InDoubt(Mutex<BTreeSet<String>>);

impl InDoubt {
    /// As [`View::commit_surely`]; notes what was to be written when its end cannot be found out.
    pub async fn commit(&self, view: &View, txn: Txn) -> Result<Version, BarrierError> {
        let paths: Vec<_> = txn.writes.iter().map(|(path, _)| path.clone()).collect();
        let committed = view.commit_surely(txn).await;
        if committed.as_ref().is_err_and(BarrierError::may_have_landed) {
            self.0.lock().extend(paths);
        }
        committed
    }

    /// Whether there is anything that the memory may be behind of.
    pub fn is_any(&self) -> bool {
        !self.0.lock().is_empty()
    }

    /// Makes durable what the noted records hold, and has them read. When either fails they stay noted.
    pub async fn settle<E: From<BarrierError>>(
        &self,
        view: &View,
        reread: impl Future<Output = Result<(), E>> + Send,
    ) -> Result<(), E> {
        let noted = std::mem::take(&mut *self.0.lock());
        if noted.is_empty() {
            return Ok(());
        }
        let settled = match view.confirm(noted.iter().map(String::as_str)).await {
            Ok(()) => reread.await,
            Err(error) => Err(error.into()),
        };
        match &settled {
            Ok(()) => tracing::warn!(records = ?noted, "the store answers again, and what it holds of these is in use"),
            Err(_) => self.0.lock().extend(noted),
        }
        settled
    }

    /// Forgets all of it: everything was read anew.
    pub fn forget(&self) {
        self.0.lock().clear();
    }
}
