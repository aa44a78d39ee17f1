//! Whether anybody still waits for an answer. Most requests are carried out whatever happens to their client, so that none stays
//! half-done; long ones that come in pieces ask here between two of them.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::failure::Failure;

#[derive(Debug)]
struct Wait {
    until: Instant,
    gone: AtomicBool,
}

/// Whether the answer to a request is of use. That of a request made inside the server always is.
#[derive(Clone, Debug, Default)]
pub struct Wanted(Option<Arc<Wait>>);

/// Held by who waits for the answer. When it is dropped nobody does.
#[derive(Debug)]
pub struct Waiting(Arc<Wait>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::Relaxed);
    }
}

impl Wanted {
    /// An answer that is waited for so long.
    pub fn within(limit: Duration) -> (Self, Waiting) {
        let wait = Arc::new(Wait { until: Instant::now() + limit, gone: AtomicBool::new(false) });
        (Self(Some(Arc::clone(&wait))), Waiting(wait))
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// 503 for the audit record: nobody reads it.
    pub fn check(&self) -> Result<(), Failure> {
        match &self.0 {
            Some(wait) if wait.until <= Instant::now() => Err(Self::too_late()),
            Some(wait) if wait.gone.load(Ordering::Relaxed) => {
                Err(Failure::unavailable("the client went away before the request was carried out"))
            }
            _ => Ok(()),
        }
    }

    fn too_late() -> Failure {
        Failure::unavailable("the request was ended because it took longer than max_request_duration")
    }

    /// How long the answer is waited for; `None` for ever.
    pub fn left(&self) -> Option<Duration> {
        self.0.as_ref().map(|wait| wait.until.saturating_duration_since(Instant::now()))
    }

    /// Waits for a turn, as long as the answer is waited for.
    ///
    /// # Errors
    /// As [`Wanted::check`], also when the turn came too late.
    pub async fn turn<T>(&self, turn: impl Future<Output = T>) -> Result<T, Failure> {
        let turn = match self.left() {
            None => turn.await,
            Some(left) => tokio::time::timeout(left, turn).await.map_err(|_elapsed| Self::too_late())?,
        };
        self.check().map(|()| turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_are_wanted_until_their_time_is_over_or_the_client_goes() {
        let (wanted, waiting) = Wanted::within(Duration::from_secs(3600));
        assert!(wanted.check().is_ok() && wanted.turn(async {}).await.is_ok());
        drop(waiting);
        assert!(wanted.check().unwrap_err().text().contains("went away"));
        assert!(wanted.turn(async {}).await.is_err());
        let (wanted, _waiting) = Wanted::within(Duration::from_millis(20));
        let late = wanted.turn(std::future::pending::<()>()).await.unwrap_err();
        assert!(late.text().contains("max_request_duration") && wanted.check().is_err());
        assert!(Wanted::default().check().is_ok() && Wanted::default().left().is_none());
    }
}
