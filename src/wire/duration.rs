//! Durations as Vault reads and prints them: Go's `1h30m`, whole days (`7d`) and bare seconds.
//!
//! Error texts are those of Go's `time` package, because clients see them inside Vault's error replies.

use std::time::Duration;

const SECOND: i64 = 1_000_000_000;

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of the form `1h30m`.
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    /// A number with a fraction but no unit.
    #[error("time: missing unit in duration {0:?}")]
    MissingUnit(String),
    /// A unit other than h, m, s, ms, us, ns.
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// Before `d` stands no whole number.
    #[error("strconv.ParseInt: parsing {0:?}: invalid syntax")]
    Days(String),
    /// Less than nothing, where that makes no sense.
    #[error("the duration {0:?} is negative")]
    Negative(String),
}

/// Reads a duration that is not negative. The empty text is zero; a bare number counts seconds.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let nanos = parse_signed(text)?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| DurationError::Negative(text.to_string()))
}

/// Reads a duration in nanoseconds; it may be negative, as in Vault's own parser.
pub fn parse_signed(text: &str) -> Result<i64, DurationError> {
    if text.is_empty() {
        return Ok(0);
    }
    let too_long = || DurationError::Invalid(text.to_string());
    if let Ok(seconds) = text.parse::<i64>() {
        return seconds.checked_mul(SECOND).ok_or_else(too_long);
    }
    if let Some(days) = text.strip_suffix('d') {
        let days: i64 = days.parse().map_err(|_| DurationError::Days(days.to_string()))?;
        return days.checked_mul(24 * 3600).and_then(|seconds| seconds.checked_mul(SECOND)).ok_or_else(too_long);
    }
    parse_go(text)
}

/// Go's `time.ParseDuration`.
fn parse_go(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(text.to_string());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (number, behind) = split_while(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, behind) = split_while(behind, |c| !c.is_ascii_digit() && c != '.');
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(invalid());
        }
        let scale = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => i128::from(SECOND),
            "m" => 60 * i128::from(SECOND),
            "h" => 3600 * i128::from(SECOND),
            "" => return Err(DurationError::MissingUnit(text.to_string())),
            _ => return Err(DurationError::UnknownUnit { unit: unit.to_string(), text: text.to_string() }),
        };
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        total += i128::from(whole) * scale + fraction_of(fraction, scale);
        rest = behind;
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

/// `0.digits * scale`, cut off below one nanosecond.
fn fraction_of(digits: &str, scale: i128) -> i128 {
    let mut place = scale;
    let mut sum = 0;
    // Fifteen digits reach far below a nanosecond even for hours; the products stay small.
    for digit in digits.bytes().take(15) {
        sum += i128::from(digit - b'0') * place * 100_000;
        place /= 10;
        if place == 0 {
            break;
        }
    }
    sum / 1_000_000
}

fn split_while(text: &str, wanted: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !wanted(c)).unwrap_or(text.len()))
}

/// Prints a duration as Go does: `768h0m0s`, `1m30s`, `1.5s`, `250ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let seconds = duration.as_secs();
    match nanos {
        0 => return "0s".into(),
        1..1_000 => return format!("{nanos}ns"),
        1_000..1_000_000 => return format!("{}µs", decimal(nanos, 3)),
        1_000_000..1_000_000_000 => return format!("{}ms", decimal(nanos, 6)),
        _ => {}
    }
    let second = decimal(nanos - u128::from(seconds / 60) * 60_000_000_000, 9);
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{second}s"),
        (0, minutes) => format!("{minutes}m{second}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{second}s"),
    }
}

/// `value / 10^places` without trailing zeros.
fn decimal(value: u128, places: usize) -> String {
    let scale = 10_u128.pow(u32::try_from(places).unwrap_or(0));
    let fraction = format!("{:0places$}", value % scale);
    match fraction.trim_end_matches('0') {
        "" => (value / scale).to_string(),
        digits => format!("{}.{digits}", value / scale),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_vault_reads() {
        for (text, millis) in [
            ("", 0),
            ("0", 0),
            ("10", 10_000),
            ("10s", 10_000),
            ("1d", 86_400_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("1.s", 1_000),
            ("250ms", 250),
            ("+1m", 60_000),
            ("8760h", 31_536_000_000),
        ] {
            assert_eq!(parse_duration(text).unwrap().as_millis(), millis, "{text}");
        }
        assert_eq!(parse_duration("1us").unwrap().as_nanos(), 1_000);
        assert_eq!(parse_duration("1.000000001s").unwrap().as_nanos(), 1_000_000_001);
        assert_eq!(parse_signed("-1h").unwrap(), -3600 * SECOND);
    }

    #[test]
    fn refuses_with_gos_words() {
        for (text, message) in [
            ("abc", "time: invalid duration \"abc\""),
            ("1.5", "time: missing unit in duration \"1.5\""),
            ("1x", "time: unknown unit \"x\" in duration \"1x\""),
            ("1h2d", "strconv.ParseInt: parsing \"1h2\": invalid syntax"),
            ("-", "time: invalid duration \"-\""),
            (".s", "time: invalid duration \".s\""),
            ("1.2.3s", "time: invalid duration \"1.2.3s\""),
            ("9999999999999h", "time: invalid duration \"9999999999999h\""),
            ("99999999999999999", "time: invalid duration \"99999999999999999\""),
            ("-5", "the duration \"-5\" is negative"),
        ] {
            assert_eq!(parse_duration(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn prints_as_go_prints() {
        for (text, printed) in [
            ("768h", "768h0m0s"),
            ("90", "1m30s"),
            ("1500ms", "1.5s"),
            ("250ms", "250ms"),
            ("1500us", "1.5ms"),
            ("1500ns", "1.5µs"),
            ("7ns", "7ns"),
            ("0", "0s"),
            ("3661.25s", "1h1m1.25s"),
        ] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), printed);
        }
    }

    proptest! {
        #[test]
        fn printed_durations_read_back(nanos in 0..i64::MAX) {
            let duration = Duration::from_nanos(u64::try_from(nanos).unwrap());
            prop_assert_eq!(parse_duration(&format_duration(duration)).unwrap(), duration);
        }

        #[test]
        fn any_text_is_an_answer(text in "[-+0-9.hmsnuµd]{0,12}|\\PC*") {
            let _ = parse_signed(&text);
        }
    }
}
