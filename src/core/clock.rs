//! Time as a parameter: whoever needs the time holds a [`Clock`], so tests can move it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use time::OffsetDateTime;

/// A source of the current time; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Nanoseconds that tests added to the system's time.
    shift: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that tests can move forward with [`Clock::advance`].
    pub fn movable() -> Self {
        Self { shift: Some(Arc::default()) }
    }

    /// The current time in UTC.
    pub fn now(&self) -> OffsetDateTime {
        let now = OffsetDateTime::now_utc();
        match &self.shift {
            Some(shift) => now + time::Duration::nanoseconds(shift.load(Ordering::Relaxed)),
            None => now,
        }
    }

    /// Moves a [`Clock::movable`] clock forward; the system's clock stays as it is.
    pub fn advance(&self, by: Duration) {
        if let Some(shift) = &self.shift {
            shift.fetch_add(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX), Ordering::Relaxed);
        }
    }
}
