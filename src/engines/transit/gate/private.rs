//! Turns of operations on private keys in the HSM: as many at once as it gets done in good time.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{super::rsa_in_hsm::AT_ONCE, Gate};
use crate::core::failure::Failure;

/// Signatures and decryptions with private keys that batches have under way in the HSM at once, at most. All its sessions take them.
const PRIVATE: usize = 2 * AT_ONCE;

/// With so many it begins. How many an HSM can take tells how long they take: they wait for its sessions as part of their time, and
/// so does what is asked beside them, whose deadline counts that.
const PRIVATE_AT_FIRST: usize = 4;

/// An operation that ends sooner lets one more be under way.
const QUICK: Duration = Duration::from_millis(500);

/// One that takes longer halves how many may be. It is some calls to the HSM, each of which may take 10 s.
const SLOW: Duration = Duration::from_secs(2);

/// The turns.
pub struct Turns {
    permits: Semaphore,
    allowed: Mutex<Allowed>,
}

struct Allowed {
    count: usize,
    /// Turns beyond that which have not ended yet.
    beyond: usize,
    /// When it was last made less.
    since: Option<Instant>,
}

impl Default for Turns {
    fn default() -> Self {
        let allowed = Allowed { count: PRIVATE_AT_FIRST, beyond: 0, since: None };
        Self { permits: Semaphore::new(PRIVATE_AT_FIRST), allowed: Mutex::new(allowed) }
    }
}

impl Gate {
    /// The turn of one of many operations on a private key in the HSM.
    pub async fn private(&self) -> Result<PrivateTurn<'_>, Failure> {
        let permit = self.private.permits.acquire().await.map_err(Failure::internal)?;
        Ok(PrivateTurn { turns: &self.private, permit: Some(permit), began: Instant::now() })
    }
}

impl Turns {
    /// Learns of a turn that took so long; tells whether another may take its place.
    fn ended(&self, began: Instant, now: Instant) -> bool {
        let took = now.saturating_duration_since(began);
        let mut allowed = self.allowed.lock();
        // Turns that were already under way tell nothing of how fewer do.
        let is_news = allowed.since.is_none_or(|since| began >= since);
        if took > SLOW && is_news {
            let count = (allowed.count / 2).max(1);
            allowed.beyond += allowed.count - count;
            allowed.count = count;
            allowed.since = Some(now);
        } else if took < QUICK && allowed.count < PRIVATE {
            allowed.count += 1;
            match allowed.beyond {
                0 => self.permits.add_permits(1),
                _ => allowed.beyond -= 1,
            }
        }
        let ends = allowed.beyond > 0;
        allowed.beyond -= usize::from(ends);
        !ends
    }
}

/// The turn of an operation; dropped when it is done.
pub struct PrivateTurn<'a> {
    turns: &'a Turns,
    permit: Option<SemaphorePermit<'a>>,
    began: Instant,
}

impl Drop for PrivateTurn<'_> {
    fn drop(&mut self) {
        let goes_on = self.turns.ended(self.began, Instant::now());
        if let Some(permit) = self.permit.take()
            && !goes_on
        {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An HSM of one session, which does everything after the other: no turn waits long for those before it.
    #[test]
    fn an_hsm_has_as_many_operations_under_way_as_it_gets_done_in_good_time() {
        let longest_of = |each: Duration| {
            let (turns, start) = (Turns::default(), Instant::now());
            let mut free = start;
            let mut under_way = std::collections::VecDeque::new();
            let (mut longest, mut most) = (Duration::ZERO, 0);
            for done in 0..400 {
                let now = free;
                while let Ok(permit) = turns.permits.try_acquire() {
                    permit.forget();
                    under_way.push_back(now);
                }
                most = most.max(under_way.len());
                let Some(began) = under_way.pop_front() else { panic!("nothing is under way") };
                free = now + each;
                // The first ones find out.
                if done >= 40 {
                    longest = longest.max(free - began);
                }
                if turns.ended(began, free) {
                    turns.permits.add_permits(1);
                }
            }
            (longest, most)
        };
        let (longest, most) = longest_of(Duration::from_micros(100));
        assert!(most == PRIVATE && longest < QUICK, "{most} {longest:?}");
        for millis in [20, 150, 450, 1500] {
            let each = Duration::from_millis(millis);
            let (longest, most) = longest_of(each);
            assert!(longest <= (SLOW + each).max(2 * each) && most < PRIVATE, "{each:?}: {longest:?}, {most}");
        }
        let (longest, _) = longest_of(Duration::from_secs(5));
        assert_eq!(longest, Duration::from_secs(5), "one after the other");
    }
}
