//! Times as Go prints them in JSON: RFC 3339 with as many fractional digits as needed, in UTC.

use time::{OffsetDateTime, UtcOffset};

/// `2006-01-02T15:04:05.999999999Z`, trailing zeros of the fraction left out.
pub fn rfc3339(time: OffsetDateTime) -> String {
    let time = time.to_offset(UtcOffset::UTC);
    let mut text = String::with_capacity(30);
    let year = u32::try_from(time.year()).unwrap_or(0);
    for (before, value, width) in [
        (None, year, 4),
        (Some('-'), u8::from(time.month()).into(), 2),
        (Some('-'), time.day().into(), 2),
        (Some('T'), time.hour().into(), 2),
        (Some(':'), time.minute().into(), 2),
        (Some(':'), time.second().into(), 2),
    ] {
        text.extend(before);
        push_digits(&mut text, value, width);
    }
    if time.nanosecond() != 0 {
        text.push('.');
        push_digits(&mut text, time.nanosecond(), 9);
        text.truncate(text.trim_end_matches('0').len());
    }
    text.push('Z');
    text
}

/// The last `width` decimal digits of a number. Every answer shows times, and formatting machinery is slow.
fn push_digits(text: &mut String, value: u32, width: u32) {
    for place in (0..width).rev() {
        let digit = value / 10_u32.pow(place) % 10;
        text.push(char::from_digit(digit, 10).unwrap_or('0'));
    }
}

/// Reads what [`rfc3339`] wrote, and any other RFC 3339 time.
pub fn parse_rfc3339(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_as_short_as_possible_and_read_back() {
        for (nanos, text) in [
            (1_700_000_000_000_000_000, "2023-11-14T22:13:20Z"),
            (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z"),
            (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
        ] {
            let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap();
            assert_eq!(rfc3339(time), text);
            assert_eq!(parse_rfc3339(text), Some(time));
        }
    }
}
