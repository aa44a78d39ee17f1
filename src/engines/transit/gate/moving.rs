//! Keys of many versions on their way into the HSM or out of it: wraps and unwraps.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::sync::SemaphorePermit;

use super::{Gate, Going, pace::Pace};
use crate::core::failure::Failure;

/// What requests for many versions, and the destruction of many objects, have under way at once of what is not done with a private key,
/// over all requests. Such operations are taken by one thread of the HSM's worker, so one is under way and one waits for it: more
/// would gain nothing, and would be waited for by others, who open a key or make one.
pub const WRAPS: usize = 2;

/// The time of those that move versions, in equal shares.
#[derive(Default)]
pub struct Shares {
    /// The versions that each of them has to do yet, in the order in which they began.
    left: BTreeMap<u64, usize>,
    /// How often it changed how many they are.
    changes: u64,
    /// What one that was there all the time had until it last changed.
    had: Duration,
    changed: Option<Instant>,
}

impl Shares {
    /// What one that was there all the time has had.
    fn had(&self, now: Instant) -> Duration {
        let since = self.changed.map_or(Duration::ZERO, |changed| now.saturating_duration_since(changed));
        self.had + since / u32::try_from(self.left.len()).unwrap_or(u32::MAX).max(1)
    }

    /// One begins; gives its number.
    fn begin(&mut self, versions: usize, now: Instant) -> u64 {
        self.change(now);
        self.left.insert(self.changes, versions);
        self.changes
    }

    fn end(&mut self, one: u64, now: Instant) {
        self.change(now);
        self.left.remove(&one);
    }

    fn change(&mut self, now: Instant) {
        (self.had, self.changed) = (self.had(now), Some(now));
        self.changes += 1;
    }

    /// How many versions of those that began earlier are done before the last one of this one, which has so many to do yet.
    fn ahead(&mut self, one: u64, versions: usize) -> usize {
        self.left.insert(one, versions);
        self.left.range(..one).map(|(_, left)| *left.min(&versions)).sum()
    }
}

/// What becomes of the versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They are wrapped anew.
    In,
    /// They are brought out.
    Out,
}

impl Gate {
    /// The turn of an operation that is no signature and no decryption with a private key, one of many; it is to be dropped when that is done.
    ///
    /// # Errors
    /// 503 when nobody waits for the answer any longer, or the server was sealed.
    pub async fn wrap(&self, going: &Going) -> Result<SemaphorePermit<'_>, Failure> {
        going.turn(self.wraps.acquire()).await
    }

    /// Begins to move so many versions of a key.
    pub fn move_versions(&self, versions: usize, way: Way, going: &Going) -> Moving<'_> {
        let (mut shares, now) = (self.shares.lock(), Instant::now());
        let number = shares.begin(versions, now);
        let (had, changes) = (shares.had, shares.changes);
        Moving { gate: self, going: going.clone(), way, pace: Pace::of(versions), began: now, number, had, changes }
    }
}

/// The versions of a key that is restored, gets another level, or is given out, on their way.
pub struct Moving<'a> {
    gate: &'a Gate,
    going: Going,
    way: Way,
    pace: Pace,
    began: Instant,
    number: u64,
    /// The [share](Shares) when it began.
    had: Duration,
    /// How often the number of shares had changed at the last version.
    changes: u64,
}

impl Moving<'_> {
    /// To be called after each version, before anything of it is kept.
    ///
    /// # Errors
    /// 503 when nobody waits for the answer any longer or the server was sealed; 400 when it cannot come in time, 503 if only because others
    /// move versions as well.
    pub fn moved(&mut self) -> Result<(), Failure> {
        self.going.check()?;
        self.pace.done += 1;
        // Its share of the time: who came first is not refused because of others. Where there is not enough for all, who came later is, so
        // that not all are in vain.
        let (had, changes, ahead) = {
            let mut shares = self.gate.shares.lock();
            let ahead = shares.ahead(self.number, self.pace.pieces.saturating_sub(self.pace.done));
            (shares.had(Instant::now()), shares.changes, ahead)
        };
        (self.pace.worked, self.pace.ahead) = (had.saturating_sub(self.had), ahead);
        // One that ended leaves its share to the others.
        if self.changes != changes {
            self.changes = changes;
            self.pace.look_again();
        }
        match self.pace.fitting(self.going.wanted.left()) {
            Some(fit) => Err(self.refused(fit, self.began.elapsed() + self.going.wanted.left().unwrap_or_default())),
            None => Ok(()),
        }
    }

    /// Of all its versions `fit` can be done in the time there is for the request, which was so much in all.
    fn refused(&self, fit: usize, limit: Duration) -> Failure {
        let (versions, verb) = (self.pace.pieces, if self.way == Way::In { "wrap" } else { "unwrap" });
        let told =
            format!("the key has {versions} versions to {verb}, of which about {fit} can be done within max_request_duration");
        // Its share of the time that is gone, for all of them.
        if self.pace.whole() <= limit {
            return Failure::unavailable(format!(
                "{told} beside what other requests wrap and unwrap: try again when they are done"
            ));
        }
        Failure::invalid(format!("{told}; trim it to fewer, or raise max_request_duration"))
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        let (mut shares, now) = (self.gate.shares.lock(), Instant::now());
        shares.end(self.number, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{failure::Kind, wanted::Wanted};

    #[tokio::test]
    async fn keys_that_cannot_be_moved_in_time_are_refused_by_what_a_version_takes() {
        let gate = Gate::default();
        let move_all = async |versions: usize, wanted: Wanted| {
            let mut moving = gate.move_versions(versions, Way::In, &Going { wanted, view: None });
            for _ in 0..versions {
                tokio::time::sleep(Duration::from_millis(20)).await;
                moving.moved()?;
            }
            Ok::<_, Failure>(())
        };
        let (wanted, waiting) = Wanted::within(Duration::from_secs(20));
        let refused = move_all(10_000, wanted.clone()).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid);
        assert!(refused.text().starts_with("the key has 10000 versions to wrap, of which about "));
        move_all(50, wanted.clone()).await.unwrap();
        assert_eq!(gate.shares.lock().left.len(), 0);
        drop(waiting);
        assert_eq!(move_all(1, wanted).await.unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn who_would_have_had_the_time_without_the_others_is_told_so() {
        let gate = Gate::default();
        let mut moving = gate.move_versions(60, Way::In, &Going::default());
        (moving.pace.done, moving.pace.worked) = (57, Duration::from_secs(43));
        let refused = moving.refused(57, Duration::from_secs(90));
        assert_eq!(refused.kind(), Kind::Unavailable);
        assert!(refused.text().ends_with("try again when they are done"), "{}", refused.text());
        let refused = moving.refused(57, Duration::from_secs(45));
        assert_eq!(refused.kind(), Kind::Invalid);
        assert!(refused.text().contains("60 versions to wrap") && refused.text().contains("trim"), "{}", refused.text());
    }

    #[test]
    fn the_time_is_shared_by_those_who_are_there() {
        let (mut shares, start) = (Shares::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let first = shares.begin(60, at(0));
        assert_eq!(shares.had(at(10)), Duration::from_secs(10));
        let second = shares.begin(40, at(10));
        assert_eq!(shares.had(at(30)), Duration::from_secs(20));
        // The second one waits for as many of the first, and the first for nobody.
        assert_eq!((shares.ahead(first, 50), shares.ahead(second, 30)), (0, 30));
        assert_eq!((shares.ahead(first, 10), shares.ahead(second, 30)), (0, 10));
        shares.end(first, at(30));
        assert_eq!((shares.had(at(31)), shares.ahead(second, 30)), (Duration::from_secs(21), 0));
    }

    #[tokio::test]
    async fn those_who_wrap_have_two_turns_together_and_signatures_have_theirs() {
        let gate = Gate::default();
        let going = Going::default();
        for _ in 0..1000 {
            // Quick ones, so that many more are allowed.
            drop(gate.private().await.unwrap());
        }
        let held = (gate.wrap(&going).await.unwrap(), gate.wrap(&going).await.unwrap());
        let mut third = Box::pin(gate.wrap(&going));
        assert!(futures_util::poll!(&mut third).is_pending());
        drop(gate.private().await.unwrap());
        drop(held.0);
        drop(third.await.unwrap());
    }
}
