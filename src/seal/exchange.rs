//! The store below the barrier is replaced.

use super::{Seal, State};

impl Seal {
    /// Closes the barrier and keeps it closed while `work` replaces the store below. Afterwards it is as after a start:
    /// sealed, with nothing under way and nothing held.
    pub async fn while_closed<T>(&self, work: impl Future<Output = T>) -> T {
        let _working = self.working.lock().await;
        if !self.is_sealed() {
            self.close().await;
        }
        let done = work.await;
        *self.state.lock() = State::default();
        done
    }
}
