//! What batches and keys of many versions may take at once, over all Transit mounts.
//!
//! The items of a batch cost memory beside the request's bytes: its answer grows by some hundred bytes each, whereas an item
//! can be sent in three. So there is a bound for one batch and one for all together, of which those of moderate length have a
//! part of their own. What is admitted is worked on in pieces that take turns, so that nobody waits for the whole of another:
//! [batches] in windows (those that need the HSM and those that do not apart), what keeps a processor busy for all versions of a
//! key in [slices of time](whole_key), and what is done in the HSM operation by operation: on [private keys](private) by all its
//! sessions, [wraps and unwraps](moving) by the one thread that takes these. Between two pieces it is looked whether the answer is still
//! wanted, and whether it can come in time at all.

mod batches;
mod moving;
mod pace;
mod private;
mod whole_key;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use self::{batches::Lanes, moving::Shares, private::Turns, whole_key::Keys};
pub use self::{
    batches::{MAX_ITEMS, Pass, Place},
    moving::{WRAPS, Way},
    whole_key::{FEW_VERSIONS, Job},
};
use crate::{
    barrier::View,
    core::{engine::Call, failure::Failure, wanted::Wanted},
};

/// The bounds.
pub struct Gate {
    software: Lanes,
    hsm: Lanes,
    private: Turns,
    wraps: Semaphore,
    shares: Mutex<Shares>,
    keys: Keys,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            software: Lanes::default(),
            hsm: Lanes::default(),
            private: Turns::default(),
            wraps: Semaphore::new(WRAPS),
            shares: Mutex::default(),
            keys: Keys::default(),
        }
    }
}

/// What long work asks between two pieces.
#[derive(Clone, Default)]
pub struct Going {
    wanted: Wanted,
    view: Option<View>,
}

impl Going {
    /// For a request to a mount with these records.
    pub fn of(call: &Call<'_>, view: &View) -> Self {
        Self { wanted: call.request.wanted.clone(), view: Some(view.clone()) }
    }

    /// For work at a mount with these records whose outcome is always wanted.
    pub fn at(view: &View) -> Self {
        Self { wanted: Wanted::default(), view: Some(view.clone()) }
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// 503 when nobody waits for the answer any longer, or the server was sealed.
    pub fn check(&self) -> Result<(), Failure> {
        if self.view.as_ref().is_some_and(View::is_sealed) {
            return Err(Failure::unavailable("Vault is sealed"));
        }
        self.wanted.check()
    }

    async fn turn<T, E: std::error::Error + Send + Sync + 'static>(
        &self,
        turn: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        let turn = self.wanted.turn(turn).await?.map_err(Failure::internal)?;
        self.check().map(|()| turn)
    }
}
