//! What the log was told of late, so that work that is tried again every few seconds does not fill it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Between two records of the same thing.
const QUIET: Duration = Duration::from_secs(3600);

/// Things remembered at a time; with more of them some are told of more often.
const MOST: usize = 1024;

/// Remembers for an hour what the log was told.
#[derive(Debug, Default)]
pub struct Told(Mutex<HashMap<String, Instant>>);

impl Told {
    /// Whether the log has not heard this within the last hour; it is to hear it now.
    pub fn is_news(&self, what: impl Into<String>) -> bool {
        self.is_news_at(what.into(), Instant::now())
    }

    fn is_news_at(&self, what: String, now: Instant) -> bool {
        let mut told = self.0.lock();
        told.retain(|_, at| now.saturating_duration_since(*at) < QUIET);
        if told.contains_key(&what) {
            return false;
        }
        if told.len() >= MOST {
            told.clear();
        }
        told.insert(what, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_an_hour_and_memory_is_bounded() {
        let (told, now) = (Told::default(), Instant::now());
        let at = |what: &str, minutes: u64| told.is_news_at(what.into(), now + Duration::from_secs(60 * minutes));
        assert!(at("a", 0) && at("b", 10));
        assert!(!at("a", 59) && at("a", 60) && !at("a", 61) && !at("b", 61));
        (0..5000).for_each(|n| assert!(at(&format!("many/{n}"), 62)));
        assert!(told.0.lock().len() <= MOST);
    }
}
