//! How long a token may live: what is asked for, and every bound that holds for it.

use std::time::Duration;

use thiserror::Error;

use super::TokenEntry;
use crate::wire::duration::format_duration;

const SECOND: i64 = 1_000_000_000;

/// What a mount (and behind it the system) sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlLimits {
    /// TTL where nothing is asked for.
    pub default: Duration,
    /// Upper bound.
    pub max: Duration,
}

/// What a request, role or token asks for; zero is "not set".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TtlTerms {
    /// What a renewal asks for.
    pub increment: Duration,
    /// TTL of the role or request.
    pub ttl: Duration,
    /// A periodic token gets this at every renewal, without end.
    pub period: Duration,
    /// Bound of the role.
    pub max_ttl: Duration,
    /// Bound that not even a period lifts.
    pub explicit_max_ttl: Duration,
}

/// There is no time left to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("past the max TTL, cannot renew")]
pub struct PastMax;

/// A TTL within all bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// From now on.
    pub ttl: Duration,
    /// What was cut down, in the words clients know.
    pub warnings: Vec<String>,
}

impl TtlTerms {
    /// The terms that a token was made under, with the TTL it was given last.
    pub fn of_token(entry: &TokenEntry) -> Self {
        Self {
            ttl: Duration::from_secs(entry.ttl),
            period: Duration::from_secs(entry.period),
            explicit_max_ttl: Duration::from_secs(entry.explicit_max_ttl),
            ..Self::default()
        }
    }

    /// Applies every bound. `issued_at` and `now` are Unix nanoseconds; they are compared in whole seconds, so that what
    /// is renewed within the second it was made in is not cut down by fractions.
    pub fn grant(&self, limits: TtlLimits, issued_at: i64, now: i64) -> Result<Granted, PastMax> {
        let bound = |max: Duration, other: Duration| if other.is_zero() { max } else { max.min(other) };
        let max = bound(bound(limits.max, self.max_ttl), self.explicit_max_ttl);
        let mut warnings = Vec::new();
        let (mut ttl, end) = if self.period.is_zero() {
            let wanted = [self.increment, self.ttl].into_iter().find(|ttl| !ttl.is_zero());
            (wanted.unwrap_or(limits.default), Some(max))
        } else {
            if self.period > max {
                warnings.push(format!(
                    "period of {:?} exceeded the effective max_ttl of {:?}; period value is capped accordingly",
                    human(self.period),
                    human(max)
                ));
            }
            let end = (!self.explicit_max_ttl.is_zero()).then_some(self.explicit_max_ttl);
            (self.period.min(max), end)
        };
        if let Some(end) = end {
            let lived = u64::try_from(now.div_euclid(SECOND) - issued_at.div_euclid(SECOND)).unwrap_or(0);
            let left = end.checked_sub(Duration::from_secs(lived)).filter(|left| !left.is_zero()).ok_or(PastMax)?;
            if left < ttl {
                warnings.push(format!(
                    "TTL of {:?} exceeded the effective max_ttl of {:?}; TTL value is capped accordingly",
                    human(ttl),
                    human(left)
                ));
                ttl = left;
            }
        }
        Ok(Granted { ttl, warnings })
    }
}

/// `2h`, `1h30m`, `45s`: without parts that are zero at the end.
fn human(duration: Duration) -> String {
    let mut text = format_duration(duration);
    if text.ends_with("m0s") {
        text.truncate(text.len() - 2);
    }
    if let Some(at) = text.find("h0m") {
        text.replace_range(at + 1..at + 3, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const LIMITS: TtlLimits = TtlLimits { default: HOUR, max: Duration::from_secs(768 * 3600) };

    fn ttl(terms: TtlTerms, lived: i64) -> Result<(u64, usize), PastMax> {
        terms.grant(LIMITS, 0, lived * SECOND).map(|granted| (granted.ttl.as_secs(), granted.warnings.len()))
    }

    #[test]
    fn the_first_that_is_set_counts() {
        assert_eq!(ttl(TtlTerms::default(), 0), Ok((3600, 0)));
        assert_eq!(ttl(TtlTerms { ttl: HOUR * 2, ..Default::default() }, 0), Ok((7200, 0)));
        assert_eq!(ttl(TtlTerms { ttl: HOUR * 2, increment: HOUR * 3, ..Default::default() }, 0), Ok((10_800, 0)));
    }

    #[test]
    fn bounds_count_from_the_issue_and_warn() {
        let terms = TtlTerms { ttl: HOUR * 5, explicit_max_ttl: HOUR * 2, ..Default::default() };
        let granted = terms.grant(LIMITS, 0, 0).unwrap();
        assert_eq!(granted.ttl, HOUR * 2);
        let text = "TTL of \"5h\" exceeded the effective max_ttl of \"2h\"; TTL value is capped accordingly";
        assert_eq!(granted.warnings, [text]);
        assert_eq!(ttl(terms, 7199), Ok((1, 1)));
        assert_eq!(ttl(terms, 7200), Err(PastMax));
    }

    #[test]
    fn periods_have_no_end_but_the_explicit_one() {
        let terms = TtlTerms { period: HOUR, ttl: HOUR * 9, increment: HOUR * 9, ..Default::default() };
        assert_eq!(ttl(terms, 10_000_000), Ok((3600, 0)));
        assert_eq!(ttl(TtlTerms { explicit_max_ttl: HOUR * 2, ..terms }, 5400), Ok((1800, 1)));
        assert_eq!(ttl(TtlTerms { max_ttl: HOUR / 2, ..terms }, 5400), Ok((1800, 1)));
    }

    #[test]
    fn durations_print_without_zero_parts() {
        for (seconds, text) in
            [(7200, "2h"), (5400, "1h30m"), (0, "0s"), (45, "45s"), (60, "1m"), (3605, "1h5s"), (36_000, "10h")]
        {
            assert_eq!(human(Duration::from_secs(seconds)), text);
        }
    }
}
