//! What keeps a processor busy for all versions of a key.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{Gate, Going, pace::Pace};
use crate::core::failure::Failure;

/// A key of so many versions is a small one: what is done for all of them takes a processor seconds at most.
pub const FEW_VERSIONS: usize = 16;

/// Small keys that are read or written as a whole at once.
const SMALL_KEYS: usize = 16;

/// Other keys for which that was begun.
const LARGE_KEYS: usize = 8;

/// Of those, so many are worked on at a time.
const LARGE_KEYS_AT_WORK: usize = 2;

/// How long a large key is worked on before others get their turn.
const SLICE: Duration = Duration::from_millis(100);

/// The turns of keys.
pub struct Keys {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    at_work: Arc<Semaphore>,
}

impl Default for Keys {
    fn default() -> Self {
        let of = |count: usize| Arc::new(Semaphore::new(count));
        Self { small: of(SMALL_KEYS), large: of(LARGE_KEYS), at_work: of(LARGE_KEYS_AT_WORK) }
    }
}

impl Gate {
    /// Does what keeps a processor busy for all versions of a key, on a thread where nobody waits for it. What is told to be small
    /// does not wait for what is not.
    pub async fn whole_key<T: Send + 'static>(
        &self,
        small: bool,
        going: Going,
        work: impl FnOnce(&mut Job) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (begun, at_work) = match small {
            true => (&self.keys.small, None),
            false => (&self.keys.large, Some(Arc::clone(&self.keys.at_work))),
        };
        let begun = going.turn(Arc::clone(begun).acquire_owned()).await?;
        let turn = match &at_work {
            Some(at_work) => Some(going.turn(Arc::clone(at_work).acquire_owned()).await?),
            None => None,
        };
        let mut job = Job { going, at_work, turn, began: Instant::now(), from: Duration::ZERO, pace: Pace::of(0), _begun: begun };
        tokio::task::spawn_blocking(move || work(&mut job)).await.map_err(Failure::internal)?
    }
}

/// The time that this thread has had a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// What is done for all versions of a key, on a thread of its own.
pub struct Job {
    going: Going,
    at_work: Option<Arc<Semaphore>>,
    turn: Option<OwnedSemaphorePermit>,
    /// When its turn began.
    began: Instant,
    /// The processor's time that this thread had when the work began.
    from: Duration,
    pace: Pace,
    _begun: OwnedSemaphorePermit,
}

impl Job {
    /// Says how many versions there are.
    pub fn expect(&mut self, versions: usize) {
        self.pace = Pace::of(versions);
        self.from = processor_time();
    }

    /// As [`Job::expect`] where it is found out on the way.
    pub fn expect_once(&mut self, versions: usize) {
        if self.pace.pieces == 0 {
            self.expect(versions);
        }
    }

    /// To be called before each version: lets others have their turn.
    ///
    /// # Errors
    /// 503 when nobody waits for the answer any longer or the server was sealed; 400 when it cannot come in time.
    pub fn version(&mut self) -> Result<(), Failure> {
        self.going.check()?;
        // What takes longer only because of others is not refused, it may be late.
        self.pace.worked = processor_time().saturating_sub(self.from);
        if let Some(fit) = self.pace.fitting(self.going.wanted.left()) {
            return Err(Failure::invalid(format!(
                "the key has {} versions, of which about {fit} can be processed within max_request_duration; trim it to fewer, or raise max_request_duration",
                self.pace.pieces
            )));
        }
        self.pace.done += 1;
        if let Some(at_work) = &self.at_work
            && self.began.elapsed() >= SLICE
        {
            self.turn = None;
            let turn = self.going.turn(Arc::clone(at_work).acquire_owned());
            self.turn = Some(Handle::current().block_on(turn)?);
            self.began = Instant::now();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{failure::Kind, wanted::Wanted};

    fn going() -> Going {
        Going::default()
    }

    #[tokio::test]
    async fn what_reads_a_whole_key_holds_up_nobody() {
        let gate = Gate::default();
        // Ends only because others go on beside it, on this runtime's only thread.
        let (go, wait) = std::sync::mpsc::channel();
        let work = gate.whole_key(true, going(), move |_| wait.recv().map_err(Failure::internal));
        let beside = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            go.send(7)
        };
        let (done, sent) = tokio::join!(work, beside);
        sent.unwrap();
        assert_eq!(done.unwrap(), 7);
    }

    #[tokio::test]
    async fn small_keys_do_not_wait_for_large_ones_and_large_ones_take_turns() {
        let gate = Gate::default();
        let (stop, stopped) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), std::sync::atomic::Ordering::Relaxed);
        let endless = || {
            let stop = Arc::clone(&stop);
            gate.whole_key(false, going(), move |job| {
                while !stop.load(stopped) {
                    job.version()?;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            })
        };
        // As many as may be worked on at a time, and they end only after the others have.
        let others = async {
            gate.whole_key(true, going(), |_| Ok(())).await.unwrap();
            gate.whole_key(false, going(), |_| Ok(())).await.unwrap();
            stop.store(true, stopped);
        };
        let (one, two, ()) = tokio::join!(endless(), endless(), others);
        one.and(two).unwrap();
    }

    #[tokio::test]
    async fn what_is_not_wanted_any_longer_or_cannot_come_in_time_ends_between_two_versions() {
        let gate = Gate::default();
        let work = |wanted: Wanted, versions: usize| {
            gate.whole_key(false, Going { wanted, view: None }, move |job| {
                job.expect(versions);
                for _ in 0..versions {
                    job.version()?;
                    let from = processor_time();
                    while processor_time() < from + Duration::from_millis(20) {}
                }
                Ok(())
            })
        };
        let (wanted, waiting) = Wanted::within(Duration::from_secs(3600));
        let beside = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(waiting);
        };
        let (ended, ()) = tokio::join!(work(wanted, 10_000), beside);
        assert_eq!(ended.unwrap_err().kind(), Kind::Unavailable);
        let (wanted, _waiting) = Wanted::within(Duration::from_secs(20));
        let refused = work(wanted.clone(), 10_000).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid);
        assert!(refused.text().starts_with("the key has 10000 versions, of which about "), "{}", refused.text());
        assert!(wanted.check().is_ok());
    }
}
