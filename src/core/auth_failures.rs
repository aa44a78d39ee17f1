//! Failed authentications, counted by the address that they come from: unknown and missing tokens, tokens used from where they
//! may not be, wrapping tokens that are none, refused logins. Beyond its limit an address is answered 429 with `Retry-After`.
//!
//! Only what fails is shed. A server-made token holds 142 random bits, which no rate of guessing finds, so it is looked up
//! whatever its address did before: a broken client behind a NAT or a proxy does not shut out its neighbours. What people
//! chose themselves, passwords and chosen token ids, can be guessed: those wait until their address has tries left.
//!
//! What the limit saves is disk, not only time: every failure within it leaves an audit record, and of those beyond it one a
//! minute and address does, with a line in the log. For the same reason requests without a good token are counted, in buckets of
//! their own, where they leave audit records without being a failure: on routes that answer anyone, and when their form is wrong.
//!
//! Each address has a bucket of `burst` failures that fills up at `per_second`, kept as the one point in time at which it will be
//! full again (the generic cell rate algorithm). Memory is bounded: full buckets are forgotten, and when there are too many others
//! the newest addresses share one.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use time::OffsetDateTime;

use super::failure::{Failure, Kind};

/// How many failures, and how many recorded requests without a token, an address has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthFailureLimit {
    /// At once; at least one.
    pub burst: u32,
    /// In the long run; at least one.
    pub per_second: u32,
}

impl Default for AuthFailureLimit {
    /// More than clients with an expired token make while they notice, less than fills a disk with audit records.
    fn default() -> Self {
        Self { burst: 200, per_second: 10 }
    }
}

/// Addresses remembered at a time: 5 MiB.
const SOURCES: usize = 65_536;

/// Between two records of the same address being shed.
const QUIET: i64 = 60 * SECOND;

/// Between two searches for full buckets.
const CLEANING: i64 = SECOND;

const SECOND: i64 = 1_000_000_000;

/// What of an address is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Failed authentications.
    Failures,
    /// Requests without a good token that leave audit records all the same.
    Strangers,
}

impl Counted {
    fn too_many(self) -> &'static str {
        match self {
            Self::Failures => "too many failed authentications",
            Self::Strangers => "too many requests without a token",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Failures => "check the token",
            Self::Strangers => "send a token",
        }
    }
}

/// What is beyond the limit.
#[derive(Debug, PartialEq, Eq)]
pub struct Shed {
    /// What there was too much of.
    pub counted: Counted,
    /// When the next one is let through.
    pub retry_after: Duration,
    /// Whether this one is to be recorded, for all that were shed in this minute.
    pub recorded: bool,
}

impl Shed {
    /// The 429.
    pub fn failure(&self) -> Failure {
        // Rounded up: who waits as long as that is let through.
        let seconds = self.retry_after.as_secs() + u64::from(self.retry_after.subsec_nanos() > 0);
        let seconds = seconds.max(1);
        let (what, advice) = (self.counted.too_many(), self.counted.advice());
        let text = format!("{what} from this address: {advice}, and try again in {seconds} s");
        Failure::plain(Kind::RateLimited, text).retry_after(Duration::from_secs(seconds))
    }
}

/// Who is counted together. A customer's IPv6 addresses are a whole /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An IPv4 address.
    V4([u8; 4]),
    /// An IPv6 network.
    V6([u8; 8]),
    /// All that found no room.
    Others,
}

impl Source {
    /// Whom this address is counted with.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Times in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: i64,
    quiet_until: i64,
    /// Shed since the last record.
    shed: u64,
}

#[derive(Debug, Default)]
struct Sources {
    buckets: HashMap<Source, Bucket>,
    cleaned_at: i64,
}

/// The counts of all addresses.
#[derive(Debug)]
pub struct AddressCounts {
    counted: Counted,
    /// Nanoseconds that one failure takes to be forgotten, and that a whole burst takes; `None` for no limit.
    pace: Option<(i64, i64)>,
    most: usize,
    sources: Mutex<Sources>,
    failed: AtomicU64,
    shed: AtomicU64,
}

impl AddressCounts {
    /// Counts against a limit, or only counts.
    pub fn new(counted: Counted, limit: Option<AuthFailureLimit>) -> Self {
        let pace = limit.map(|limit| {
            let each = SECOND / i64::from(limit.per_second.max(1));
            (each, each.saturating_mul(i64::from(limit.burst.max(1))))
        });
        let (failed, shed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { counted, pace, most: SOURCES, sources: Mutex::default(), failed, shed }
    }

    /// Counts a failure; an error when it is one too many. Clients of a unix socket have no address and passed the
    /// permissions of its file: they are not limited.
    pub fn count(&self, remote: Option<IpAddr>, now: OffsetDateTime) -> Result<(), Shed> {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.check(remote, now, true)
    }

    /// An error when the address has no try left, for what is refused unseen then.
    pub fn may_try(&self, remote: Option<IpAddr>, now: OffsetDateTime) -> Result<(), Shed> {
        self.check(remote, now, false)
    }

    /// What was counted since the start, and requests that were shed because of them.
    pub fn totals(&self) -> (u64, u64) {
        (self.failed.load(Ordering::Relaxed), self.shed.load(Ordering::Relaxed))
    }

    fn check(&self, remote: Option<IpAddr>, now: OffsetDateTime, take: bool) -> Result<(), Shed> {
        let (Some((each, burst)), Some(remote)) = (self.pace, remote) else { return Ok(()) };
        let now = i64::try_from(now.unix_timestamp_nanos()).unwrap_or(i64::MAX);
        let mut sources = self.sources.lock();
        let source = sources.place(Source::of(remote), self.most, now);
        if !take && !sources.buckets.contains_key(&source) {
            return Ok(());
        }
        let bucket = sources.buckets.entry(source).or_default();
        // A clock that was set back must not keep an address out. A moment more is none that was set back: a request beside
        // this one that looked at the clock later came here first.
        if bucket.full_at > now.saturating_add(burst).saturating_add(SECOND) {
            bucket.full_at = now;
            bucket.quiet_until = now;
        }
        let full_at = bucket.full_at.max(now).saturating_add(each);
        let wait = full_at.saturating_sub(now).saturating_sub(burst);
        if wait <= 0 {
            if take {
                bucket.full_at = full_at;
            }
            return Ok(());
        }
        self.shed.fetch_add(1, Ordering::Relaxed);
        bucket.shed += 1;
        let recorded = now >= bucket.quiet_until;
        if recorded {
            bucket.quiet_until = now.saturating_add(QUIET);
            let what = self.counted.too_many();
            tracing::warn!(address = %remote, shed = bucket.shed, "{what} from one address: more of them are answered 429");
            bucket.shed = 0;
        }
        let retry_after = Duration::from_nanos(u64::try_from(wait).unwrap_or(0));
        Err(Shed { counted: self.counted, retry_after, recorded })
    }
}

impl Sources {
    /// The bucket to count in: the source's own where it has one or there is room.
    fn place(&mut self, source: Source, most: usize, now: i64) -> Source {
        if self.buckets.contains_key(&source) || self.buckets.len() < most {
            return source;
        }
        if now.saturating_sub(self.cleaned_at) >= CLEANING || now < self.cleaned_at {
            self.cleaned_at = now;
            self.buckets.retain(|_, bucket| bucket.full_at > now);
            if self.buckets.len() < most {
                return source;
            }
        }
        Source::Others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: AuthFailureLimit = AuthFailureLimit { burst: 3, per_second: 2 };

    fn at(milliseconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap() + time::Duration::milliseconds(milliseconds)
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn an_address_has_a_burst_and_then_a_rate() {
        let failures = AddressCounts::new(Counted::Failures, Some(LIMIT));
        let one = address("10.0.0.1");
        for _ in 0..3 {
            failures.count(one, at(0)).unwrap();
        }
        let shed = failures.count(one, at(0)).unwrap_err();
        assert_eq!(shed, Shed { counted: Counted::Failures, retry_after: Duration::from_millis(500), recorded: true });
        assert_eq!(failures.count(one, at(499)).unwrap_err().retry_after, Duration::from_millis(1));
        failures.count(one, at(500)).unwrap();
        failures.count(one, at(500)).unwrap_err();
        // Others are not meant, and trying again does not push the end away.
        failures.count(address("10.0.0.2"), at(500)).unwrap();
        failures.count(address("10.0.0.2"), at(500)).unwrap();
        let served = (0..100).filter(|tick| failures.count(one, at(500 + tick * 100)).is_ok()).count();
        assert!((19..=20).contains(&served), "{served} in ten seconds at two a second");
        assert_eq!(failures.totals().0 - failures.totals().1, 6 + u64::try_from(served).unwrap());
    }

    #[test]
    fn asking_whether_there_is_a_try_left_takes_none() {
        let failures = AddressCounts::new(Counted::Failures, Some(LIMIT));
        let one = address("10.0.0.1");
        for _ in 0..10 {
            failures.may_try(one, at(0)).unwrap();
        }
        for _ in 0..3 {
            failures.count(one, at(0)).unwrap();
        }
        failures.may_try(one, at(0)).unwrap_err();
        failures.may_try(one, at(500)).unwrap();
    }

    #[test]
    fn one_record_a_minute_tells_of_all_that_are_shed() {
        let failures = AddressCounts::new(Counted::Failures, Some(LIMIT));
        let one = address("10.0.0.1");
        let recorded =
            (0..2000).filter(|tick| matches!(failures.count(one, at(tick * 60)), Err(Shed { recorded: true, .. }))).count();
        assert_eq!(recorded, 2, "in two minutes");
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_and_mapped_addresses_as_ipv4() {
        assert_eq!(Source::of("2001:db8::1".parse().unwrap()), Source::of("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(Source::of("2001:db8::1".parse().unwrap()), Source::of("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(Source::of("::ffff:10.0.0.1".parse().unwrap()), Source::of("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn memory_is_bounded_and_old_addresses_make_room() {
        let mut failures = AddressCounts::new(Counted::Failures, Some(LIMIT));
        failures.most = 100;
        let number = |number: u32| Some(IpAddr::V4(number.into()));
        for source in 0..10_000 {
            drop(failures.count(number(source), at(0)));
        }
        assert_eq!(failures.sources.lock().buckets.len(), 101);
        // Those that share a bucket are limited together; the known ones have theirs.
        failures.count(number(20_000), at(0)).unwrap_err();
        failures.count(number(50), at(0)).unwrap();
        failures.count(number(20_000), at(5000)).unwrap();
        assert_eq!(failures.sources.lock().buckets.len(), 1);
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_nobody_out() {
        let failures = AddressCounts::new(Counted::Failures, Some(LIMIT));
        let one = address("10.0.0.1");
        for _ in 0..5 {
            drop(failures.count(one, at(3_600_000)));
        }
        failures.count(one, at(0)).unwrap();
    }

    #[test]
    fn requests_that_overtake_each_other_get_no_second_burst() {
        let failures = AddressCounts::new(Counted::Failures, Some(LIMIT));
        let one = address("10.0.0.1");
        for _ in 0..3 {
            failures.count(one, at(1)).unwrap();
        }
        for _ in 0..3 {
            failures.count(one, at(0)).unwrap_err();
            failures.count(one, at(1)).unwrap_err();
        }
    }

    #[test]
    fn without_a_limit_or_an_address_failures_are_only_counted() {
        let failures = AddressCounts::new(Counted::Failures, None);
        let limited = AddressCounts::new(Counted::Failures, Some(LIMIT));
        for _ in 0..1000 {
            failures.count(address("10.0.0.1"), at(0)).unwrap();
            limited.count(None, at(0)).unwrap();
        }
        assert_eq!(failures.totals(), (1000, 0));
        assert_eq!(limited.totals(), (1000, 0));
    }
}
