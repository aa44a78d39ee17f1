//! Batches that work on an async thread give way to other requests.

use std::time::{Duration, Instant};

/// How long a batch keeps a thread before others get their turn.
const TURN: Duration = Duration::from_micros(200);

/// The turn of a batch. Time is what counts: items differ too much in cost to be counted.
pub struct Turn {
    began: Instant,
    bytes: usize,
}

impl Turn {
    /// The batch begins.
    pub fn begin() -> Self {
        Self { began: Instant::now(), bytes: 0 }
    }

    /// To be called before each item: lets others go on once this one has had its time.
    pub async fn give_way(&mut self) {
        if self.began.elapsed() >= TURN {
            tokio::task::yield_now().await;
            self.began = Instant::now();
        }
    }

    /// As [`Turn::give_way`] before an item of so many bytes for a cipher: the clock is not asked for each small one.
    pub async fn give_way_for(&mut self, bytes: usize) {
        /// What a cipher does within some microseconds.
        const WORTH_ASKING: usize = 4096;
        /// What an item costs beside its bytes, as bytes.
        const ITEM: usize = 256;
        self.bytes += ITEM + bytes;
        if self.bytes >= WORTH_ASKING {
            self.bytes = 0;
            self.give_way().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn others_go_on_beside_a_long_batch() {
        let other = AtomicU32::new(0);
        let batch = async {
            let mut turn = Turn::begin();
            for _ in 0..20 {
                turn.give_way().await;
                std::thread::sleep(Duration::from_millis(1));
            }
            other.load(Ordering::Relaxed)
        };
        let beside = async {
            for _ in 0..10 {
                other.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        };
        let (seen, ()) = tokio::join!(batch, beside);
        assert_eq!(seen, 10);
    }
}
