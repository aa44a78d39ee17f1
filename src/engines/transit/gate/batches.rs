//! Batches: they are admitted by their items, and worked on in windows that take turns.

use std::time::Instant;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Gate, Going, pace::Pace};
use crate::core::failure::Failure;

/// Items of one batch. A body of the usual largest size, full of wrapped 32-byte keys, holds fewer.
pub const MAX_ITEMS: usize = 500_000;

/// A batch up to this length costs no more than a single request does, and waits for nobody.
const SMALL: usize = 256;

/// A batch up to this length does not wait for longer ones to end.
const MODERATE: usize = 32 * 1024;

/// Items of all batches of moderate length that are worked on at once in the same place.
const ALL_MODERATE: usize = 8 * MODERATE;

/// Items of all longer batches that are worked on at once in the same place.
const ALL_LONG: usize = 2 * MAX_ITEMS;

/// Windows that are worked on at once in the same place.
const WINDOWS: usize = 8;

/// What there is for batches that are worked on in the same place.
pub struct Lanes {
    moderate: Semaphore,
    long: Semaphore,
    windows: Semaphore,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { moderate: Semaphore::new(ALL_MODERATE), long: Semaphore::new(ALL_LONG), windows: Semaphore::new(WINDOWS) }
    }
}

/// Where the items of a batch are worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this process.
    Here,
    /// In the HSM.
    Hsm,
}

/// A window that is worked on.
struct Window<'a> {
    _turn: SemaphorePermit<'a>,
    began: Instant,
    items: usize,
    /// How many were worked on in the same place when it began, itself among them.
    beside: u32,
}

/// A batch on its way.
pub struct Pass<'a> {
    gate: &'a Gate,
    going: Going,
    place: Place,
    pace: Pace,
    room: Option<SemaphorePermit<'a>>,
    window: Option<Window<'a>>,
}

impl Pass<'_> {
    /// Says where the items are worked on, before the first window.
    pub fn goes_to(&mut self, place: Place) {
        self.place = place;
    }

    /// Ends the window before, and waits until the next one, of so many items, may be worked on.
    ///
    /// # Errors
    /// 503 when nobody waits for the answer any longer; 400 when it cannot come in time.
    pub async fn window(&mut self, items: usize) -> Result<(), Failure> {
        if let Some(Window { began, items, beside, .. }) = self.window.take() {
            // Its share of the time: what takes longer only because of others is not refused, it may be late.
            self.pace.worked += began.elapsed() / beside.max(1);
            self.pace.done += items;
        }
        if self.pace.pieces <= SMALL || items == 0 {
            return Ok(());
        }
        self.going.check()?;
        if let Some(fit) = self.pace.fitting(self.going.wanted.left()) {
            return Err(Failure::invalid(format!(
                "the batch has {} items, of which about {fit} can be processed within max_request_duration; send them in several requests",
                self.pace.pieces
            )));
        }
        let lanes = match self.place {
            Place::Here => &self.gate.software,
            Place::Hsm => &self.gate.hsm,
        };
        if self.room.is_none() {
            let room = if self.pace.pieces <= MODERATE { &lanes.moderate } else { &lanes.long };
            let items = u32::try_from(self.pace.pieces).unwrap_or(u32::MAX);
            self.room = Some(self.going.turn(room.acquire_many(items)).await?);
        }
        let turn = self.going.turn(lanes.windows.acquire()).await?;
        let beside = u32::try_from(WINDOWS.saturating_sub(lanes.windows.available_permits())).unwrap_or(1);
        self.window = Some(Window { _turn: turn, began: Instant::now(), items, beside });
        Ok(())
    }
}

impl Gate {
    /// A batch of so many items, to be worked on here unless it says otherwise.
    ///
    /// # Errors
    /// 400 when it is longer than any may be.
    pub fn admit(&self, items: usize, going: Going) -> Result<Pass<'_>, Failure> {
        if items > MAX_ITEMS {
            return Err(Failure::invalid(format!(
                "batch_input has more than the {MAX_ITEMS} items that one request takes; send them in several requests"
            )));
        }
        Ok(Pass { gate: self, going, place: Place::Here, pace: Pace::of(items), room: None, window: None })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::{failure::Kind, wanted::Wanted};

    fn going() -> Going {
        Going::default()
    }

    #[tokio::test]
    async fn batches_take_turns_by_windows_and_those_on_the_hsm_apart() {
        let gate = Gate::default();
        let begun = async |count: usize, place: Place| {
            let mut pass = gate.admit(count, going()).unwrap();
            pass.goes_to(place);
            pass.window(count.min(1024)).await.unwrap();
            pass
        };
        let mut held = Vec::new();
        for _ in 0..WINDOWS {
            held.push(begun(SMALL + 1, Place::Hsm).await);
        }
        let mut waiting = Box::pin(begun(2 * 1024, Place::Hsm));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        // Small ones wait for nobody, nor do those in the other place.
        drop((begun(SMALL, Place::Hsm).await, begun(MAX_ITEMS, Place::Here).await));
        // Another one's next window comes after the first one of who waited.
        let mut first = held.remove(0);
        let mut next = Box::pin(first.window(1));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(waiting.await);
        next.await.unwrap();
    }

    #[tokio::test]
    async fn long_batches_are_bounded_together_and_moderate_ones_do_not_wait_for_them() {
        let gate = Gate::default();
        let begun = async |count: usize| {
            let mut pass = gate.admit(count, going()).unwrap();
            pass.window(1024).await.unwrap();
            pass
        };
        let held = (begun(MAX_ITEMS).await, begun(MAX_ITEMS).await);
        let mut third = Box::pin(begun(MODERATE + 1));
        assert!(futures_util::poll!(&mut third).is_pending());
        drop((begun(SMALL + 1).await, begun(MODERATE).await));
        drop(held);
        third.await;
        assert_eq!(gate.admit(MAX_ITEMS + 1, going()).err().unwrap().kind(), Kind::Invalid);
    }

    #[tokio::test]
    async fn batches_that_nobody_waits_for_end_at_the_next_window_and_in_the_queue() {
        let gate = Gate::default();
        let (wanted, waiting) = Wanted::within(Duration::from_secs(3600));
        let mut pass = gate.admit(10_000, Going { wanted, view: None }).unwrap();
        pass.window(1024).await.unwrap();
        drop(waiting);
        assert_eq!(pass.window(1024).await.unwrap_err().kind(), Kind::Unavailable);
        let mut held = [gate.admit(MAX_ITEMS, going()).unwrap(), gate.admit(MAX_ITEMS, going()).unwrap()];
        for pass in &mut held {
            pass.window(1024).await.unwrap();
        }
        let (wanted, _waiting) = Wanted::within(Duration::from_millis(20));
        let mut late = gate.admit(MAX_ITEMS, Going { wanted, view: None }).unwrap();
        assert_eq!(late.window(1024).await.unwrap_err().kind(), Kind::Unavailable);
    }
}
