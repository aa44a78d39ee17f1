//! The calls under way: who waits for which answer, and until when.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use crate::hsm::HsmError;
use crate::hsm::proto::Frame;

/// What a call ends with.
pub type Answer = Result<Frame, HsmError>;

/// The calls of one client over all of its workers.
#[derive(Default)]
pub struct Link {
    /// To the writer of the running worker.
    out: Option<mpsc::UnboundedSender<Arc<Frame>>>,
    pending: HashMap<u64, Pending>,
}

/// A call that waits for its answer.
pub struct Pending {
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
    /// When the caller stops waiting.
    pub expires: Instant,
    /// The request, when it may be sent again to the next worker.
    pub repeat: Option<Arc<Frame>>,
}

impl Link {
    /// Sends a call; gives it back when no worker runs.
    pub fn send(&mut self, id: u64, frame: Arc<Frame>, pending: Pending) -> Result<(), Pending> {
        let Some(out) = &self.out else { return Err(pending) };
        if out.send(frame).is_err() {
            return Err(pending);
        }
        self.pending.insert(id, pending);
        Ok(())
    }

    /// How many calls are under way.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Hands an answer to its caller.
    pub fn complete(&mut self, id: u64, answer: Answer) {
        if let Some(pending) = self.pending.remove(&id) {
            // A caller that went away does not mind.
            let _ = pending.answer.send(answer);
        }
    }

    /// A worker is ready: calls that survived the last one are sent again, once.
    pub fn connect(&mut self, out: mpsc::UnboundedSender<Arc<Frame>>) {
        for pending in self.pending.values_mut() {
            if let Some(frame) = pending.repeat.take() {
                let _ = out.send(frame);
            }
        }
        self.out = Some(out);
    }

    /// The worker is gone. With `keep` the calls that may be repeated wait for the next one; the others fail.
    pub fn disconnect(&mut self, keep: bool, error: &HsmError) {
        self.out = None;
        let ids: Vec<u64> =
            self.pending.iter().filter(|(_, pending)| !keep || pending.repeat.is_none()).map(|(id, _)| *id).collect();
        for id in ids {
            self.complete(id, Err(error.clone()));
        }
    }

    /// Ends the calls whose time is up and tells which they were, oldest first.
    pub fn expire(&mut self, now: Instant) -> Vec<u64> {
        let mut ids: Vec<u64> = self.pending.iter().filter(|(_, pending)| pending.expires <= now).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in &ids {
            self.complete(*id, Err(HsmError::Timeout));
        }
        ids
    }
}
