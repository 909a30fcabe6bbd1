//! Owns times in the API: RFC 3339 in UTC with milliseconds in answers, and the second of a time in a query.
//!
//! [`Time`] is every time except a message's `timestamp`, which is the sender's claim in whole seconds. Must not read a
//! clock.
//!
//! Invariant: every node writes the same time in the same bytes.

use std::{borrow::Cow, fmt};

use jiff::{
    Timestamp,
    civil::date,
    fmt::temporal::{DateTimePrinter, Pieces},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::chain::message::TIMESTAMP_MAX;

/// Milliseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// Appends the text, without quotes. Takes half the time of [`fmt::Display`].
    pub fn write(self, out: &mut Vec<u8>) {
        static PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
        PRINTER.print_timestamp(&self.timestamp(), out).expect("writing to memory does not fail");
    }

    /// A time after the last day of the calendar is shown as that day, on every node.
    fn timestamp(self) -> Timestamp {
        let timestamp = i64::try_from(self.0).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        timestamp.unwrap_or(Timestamp::MAX)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.timestamp())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let time: Timestamp = Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)?;
        Ok(Time(u64::try_from(time.as_millisecond()).unwrap_or(0))) // no stored time is before 1970
    }
}

/// The first whole Unix second that is not before an RFC 3339 time, limited to the timestamps that a message can have.
/// Does not use [`Timestamp`], whose range ends a day before the last of these.
pub fn second_of(text: &str) -> Option<u64> {
    let pieces = Pieces::parse(text).ok().filter(|pieces| pieces.time_zone_annotation().is_none())?;
    let local = pieces.date().to_datetime(pieces.time()?);
    let since_1970 = local.duration_since(date(1970, 1, 1).at(0, 0, 0, 0));
    let seconds = since_1970.as_secs() - i64::from(pieces.to_numeric_offset()?.seconds())
        + i64::from(since_1970.subsec_nanos() > 0);
    Some(u64::try_from(seconds).unwrap_or(0).min(TIMESTAMP_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(millis: u64, want: &str) {
        assert_eq!(Time(millis).to_string(), want);
        let mut bytes = Vec::new();
        Time(millis).write(&mut bytes);
        assert_eq!(bytes, want.as_bytes());
    }

    #[test]
    fn milliseconds_always_have_three_digits() {
        check(0, "1970-01-01T00:00:00.000Z");
        check(1_795_350_674_123, "2026-11-22T12:31:14.123Z");
        check(1_795_350_674_100, "2026-11-22T12:31:14.100Z");
        check(u64::MAX, "9999-12-30T22:00:00.999Z");
    }

    #[test]
    fn a_time_in_a_query_is_rounded_up_to_a_second() {
        let check = |text: &str, want: Option<u64>| assert_eq!(second_of(text), want, "{text}");
        check("1970-01-01T00:00:00Z", Some(0));
        check("2023-10-21T20:40:00+02:00", Some(1_697_913_600));
        check("2023-10-21T18:39:59.000001Z", Some(1_697_913_600));
        check("1969-12-31T23:59:58.5Z", Some(0));
        check("1950-01-01T00:00:00-05:00", Some(0));
        check("9999-12-31T23:59:59Z", Some(TIMESTAMP_MAX));
        check("9999-12-31T23:59:59.5-12:00", Some(TIMESTAMP_MAX));
        check("2023-10-21T18:40:00", None);
        check("2023-10-21", None);
        check("2023-10-21T18:40:00+02:00[Europe/Berlin]", None);
        check("2023-02-29T00:00:00Z", None);
        check("", None);
    }

    #[test]
    fn a_time_round_trips() {
        let json = serde_json::to_string(&Time(1_795_350_674_123)).expect("serialises");
        assert_eq!(json, "\"2026-11-22T12:31:14.123Z\"");
        assert_eq!(serde_json::from_str::<Time>(&json).expect("parses"), Time(1_795_350_674_123));
    }
}
