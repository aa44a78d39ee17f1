//! Work in pieces of the same kind: how long it takes, and whether it can be done in time.

use std::time::Duration;

/// How long work must have taken to tell how long the rest of it takes.
const MEASURE: Duration = Duration::from_millis(250);
/// So many judgements in a row, each over as much work, are believed.
const SURE: u32 = 3;

/// Work in pieces of the same kind, and how long it takes.
pub struct Pace {
    /// How many there are.
    pub pieces: usize,
    /// How many of them are done.
    pub done: usize,
    /// How long that took.
    pub worked: Duration,
    /// As many pieces of others are done before the last one of these.
    pub ahead: usize,
    /// Both as of the last judgement, and how many judgements in a row were that it is too much.
    judged: (usize, Duration),
    doubts: u32,
}

impl Pace {
    /// So many, of which none is done.
    pub fn of(pieces: usize) -> Self {
        Self { pieces, done: 0, worked: Duration::ZERO, ahead: 0, judged: (0, Duration::ZERO), doubts: 0 }
    }

    /// What made the last judgements is not so any more.
    pub fn look_again(&mut self) {
        self.doubts = 0;
    }

    /// What all pieces take, by those that are done.
    pub fn whole(&self) -> Duration {
        let count = |pieces: usize| u128::try_from(pieces).unwrap_or(u128::MAX);
        let nanos = self.worked.as_nanos().saturating_mul(count(self.pieces)) / count(self.done).max(1);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many pieces fit into the time that there was, if not all do. It is told when that was so each time of [`SURE`], by what
    /// was done since the time before: the first pieces have costs of their own, and others may have been in the way for a moment.
    pub fn fitting(&mut self, left: Option<Duration>) -> Option<usize> {
        let (done, worked) = (self.done - self.judged.0, self.worked.saturating_sub(self.judged.1));
        if worked < MEASURE || done == 0 || self.pieces == 0 {
            return None;
        }
        self.judged = (self.done, self.worked);
        let (left, count) = (left?.as_nanos(), |pieces: usize| u128::try_from(pieces).unwrap_or(u128::MAX));
        let each = (worked.as_nanos() / count(done)).max(1);
        let to_do = self.pieces.saturating_sub(self.done).saturating_add(self.ahead);
        if each.saturating_mul(count(to_do)) <= left {
            self.doubts = 0;
            return None;
        }
        self.doubts += 1;
        if self.doubts < SURE {
            None
        } else {
            usize::try_from(count(self.done) + (left / each).saturating_sub(count(self.ahead))).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_fits_is_told_when_it_was_too_much_several_times_in_a_row() {
        let mut pace = Pace::of(1000);
        let mut judge = |done, millis, left| {
            pace.done += done;
            pace.worked += Duration::from_millis(millis);
            pace.fitting(Some(Duration::from_secs(left)))
        };
        // Too little to tell, then a first piece with costs of its own.
        assert_eq!(judge(1, 100, 0), None);
        assert_eq!(judge(0, 900, 9), None);
        // That was it: 10 ms each.
        assert_eq!(judge(50, 500, 20), None);
        assert_eq!(judge(49, 490, 7), None);
        assert_eq!(judge(50, 500, 6), None);
        assert_eq!(judge(50, 500, 5), Some(200 + 500));
        // Of what others do before it.
        let mut late = Pace { ahead: 900, ..Pace::of(100) };
        let mut judge = || {
            late.done += 10;
            late.worked += Duration::from_millis(500);
            late.fitting(Some(Duration::from_secs(46)))
        };
        assert_eq!([judge(), judge(), judge()], [None, None, Some(30 + 20)]);
        let mut endless = Pace { done: 10, worked: Duration::from_secs(100), ..Pace::of(1000) };
        assert!((0..5).all(|_| endless.fitting(None).is_none()));
    }
}
