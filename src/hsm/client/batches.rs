//! Batches as calls of bounded time.
//!
//! A batch may be as long as a request's body allows and an item may cost milliseconds, while a call must end well before
//! its deadline and must not look like a hang. So a batch goes out in parts that are worth [`proto::SLICE`] by the cost of
//! the items before. The worker looks at its own clock besides and answers the items that it did in that time; the client
//! asks for the rest again. Other calls get their turn between the parts.

use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::ended;
use crate::hsm::proto::SLICE;
use crate::hsm::{AeadItem, HsmError};

/// What an item weighs beside its bytes.
const ITEM: u64 = 4096;

/// No part weighs more, however fast the HSM is: frames stay far below their limit, and what is sent in vain is little.
const HEAVIEST: u64 = 32 << 20;

/// A part that costs less is like a call of one item and waits for no turn.
const SHORT: Duration = Duration::from_millis(5);

/// What is known of batches on one HSM.
pub struct Batches {
    /// Into how many calls that run side by side a batch is best split.
    ways: AtomicUsize,
    /// One for each of these: batches take turns, so that calls of one item never wait behind more than one part each.
    turns: Semaphore,
    /// Nanoseconds for an [`ITEM`]'s weight; 0 until something was measured.
    cost: AtomicU64,
}

impl Default for Batches {
    fn default() -> Self {
        Self { ways: AtomicUsize::new(1), turns: Semaphore::new(1), cost: AtomicU64::new(0) }
    }
}

/// The first items of what was asked, and how long they took.
pub struct Part<T> {
    /// The answers, at least one.
    pub outputs: Vec<T>,
    /// The time in the module.
    pub took: Duration,
}

impl Batches {
    /// A worker is ready, for which a batch is best split so.
    pub fn split(&self, ways: usize) {
        let ways = ways.max(1);
        let before = self.ways.swap(ways, Ordering::Relaxed);
        if ways > before {
            self.turns.add_permits(ways - before);
        } else {
            self.turns.forget_permits(before - ways);
        }
    }

    /// Does a batch; `send` does the first items of a part, as many as fit into its time.
    pub async fn run<'a, T, F>(&self, items: &'a [AeadItem], send: impl Fn(&'a [AeadItem]) -> F) -> Result<Vec<T>, HsmError>
    where
        F: Future<Output = Result<Part<T>, HsmError>>,
    {
        let ways = self.ways.load(Ordering::Relaxed).max(1);
        let strands = items.chunks(items.len().div_ceil(ways).max(1)).map(|strand| self.strand(strand, &send));
        let mut done = try_join_all(strands).await?.into_iter();
        let mut outputs = done.next().unwrap_or_default();
        outputs.extend(done.flatten());
        Ok(outputs)
    }

    /// One part after the other.
    async fn strand<'a, T, F>(&self, items: &'a [AeadItem], send: &impl Fn(&'a [AeadItem]) -> F) -> Result<Vec<T>, HsmError>
    where
        F: Future<Output = Result<Part<T>, HsmError>>,
    {
        let mut outputs: Vec<T> = Vec::new();
        while let Some(rest) = items.get(outputs.len()..).filter(|rest| !rest.is_empty()) {
            let turn = self.turn(rest).await?;
            let (part, _) = self.part(rest);
            let done = send(part).await?;
            drop(turn);
            self.learn(part, &done);
            if outputs.is_empty() {
                outputs = done.outputs;
            } else {
                outputs.extend(done.outputs);
            }
        }
        Ok(outputs)
    }

    async fn turn(&self, rest: &[AeadItem]) -> Result<Option<SemaphorePermit<'_>>, HsmError> {
        match self.part(rest) {
            (_, Some(cost)) if cost < SHORT => Ok(None),
            _ => self.turns.acquire().await.map(Some).map_err(|_| ended()),
        }
    }

    /// The items for the next call, and what they are likely to cost.
    fn part<'a>(&self, rest: &'a [AeadItem]) -> (&'a [AeadItem], Option<Duration>) {
        let cost = self.cost.load(Ordering::Relaxed);
        let slice = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
        let bound = slice.saturating_mul(ITEM).checked_div(cost).unwrap_or(HEAVIEST).min(HEAVIEST);
        let (mut count, mut total) = (0, 0_u64);
        for item in rest {
            let more = total.saturating_add(weight(item));
            if count > 0 && more > bound {
                break;
            }
            (count, total) = (count + 1, more);
        }
        let nanos = total.saturating_mul(cost) / ITEM;
        (rest.get(..count).unwrap_or(rest), (cost > 0).then_some(Duration::from_nanos(nanos)))
    }

    /// Half of the cost is what was known before: one odd part is not believed at once, and a change is, soon.
    fn learn<T>(&self, part: &[AeadItem], done: &Part<T>) {
        let total: u64 = part.iter().take(done.outputs.len()).map(weight).sum();
        let nanos = u64::try_from(done.took.as_nanos()).unwrap_or(u64::MAX);
        let Some(now) = nanos.saturating_mul(ITEM).checked_div(total) else { return };
        let before = self.cost.load(Ordering::Relaxed);
        let cost = if before == 0 { now } else { before.midpoint(now) };
        self.cost.store(cost.max(1), Ordering::Relaxed);
    }
}

fn weight(item: &AeadItem) -> u64 {
    u64::try_from(item.aad.len() + item.input.len()).unwrap_or(u64::MAX).saturating_add(ITEM)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::secret::SecretBytes;

    fn items(count: usize) -> Vec<AeadItem> {
        (0..count).map(|_| AeadItem { iv: [0; 12], aad: Vec::new(), input: SecretBytes::new(vec![7]) }).collect()
    }

    /// An HSM where an item takes so many microseconds and a call ends after its time; tells the lengths of the calls.
    async fn run(batches: &Batches, count: usize, micros: u64) -> Vec<(usize, usize)> {
        let (items, calls) = (items(count), RefCell::new(Vec::new()));
        let send = |part: &[AeadItem]| {
            let fits = usize::try_from(SLICE.as_micros()).unwrap() / usize::try_from(micros).unwrap();
            let done = part.len().min(fits.max(1));
            calls.borrow_mut().push((part.len(), done));
            let took = Duration::from_micros(micros * u64::try_from(done).unwrap());
            std::future::ready(Ok(Part { outputs: vec![(); done], took }))
        };
        assert_eq!(batches.run(&items, send).await.unwrap().len(), count);
        calls.into_inner()
    }

    #[tokio::test]
    async fn calls_are_as_long_as_items_before_them_make_reasonable() {
        let batches = Batches::default();
        assert_eq!(run(&batches, 100, 5).await, [(100, 100)]);
        assert!(run(&batches, 50_000, 5).await.len() <= 8);
        // The HSM gets slow: one call too many is sent in vain, then they have the right length.
        let calls = run(&batches, 5000, 2000).await;
        assert!(calls.iter().all(|(_, done)| *done <= 25), "{calls:?}");
        assert!(calls.iter().skip(12).all(|(sent, _)| *sent <= 27), "{calls:?}");
        // An item that takes longer than a call should is a call of its own.
        assert!(run(&batches, 20, 200_000).await.iter().all(|(_, done)| *done == 1));
        let calls = run(&batches, 50_000, 5).await;
        assert!(calls.len() < 40, "{calls:?}");
    }

    #[tokio::test]
    async fn sessions_share_a_batch_and_nothing_is_lost_between_them() {
        let batches = Batches::default();
        batches.split(4);
        let calls = run(&batches, 1000, 5).await;
        assert_eq!(calls, [(250, 250); 4]);
        batches.split(1);
        assert_eq!(batches.turns.available_permits(), 1);
        assert_eq!(run(&batches, 0, 5).await, []);
    }

    #[tokio::test]
    async fn an_error_ends_the_batch() {
        let (batches, items) = (Batches::default(), items(10));
        let send = |_: &[AeadItem]| std::future::ready(Err::<Part<()>, _>(HsmError::Timeout));
        assert!(matches!(batches.run(&items, send).await, Err(HsmError::Timeout)));
    }
}
