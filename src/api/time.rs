//! A moment in an answer: RFC 3339, UTC, always three digits of milliseconds.
//!
//! One type for every time that is not a message's `timestamp` (that is the sender's claim, in whole
//! seconds). Every node writes the same moment in the same bytes. Reads no clock.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, fmt::temporal::DateTimePrinter};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

static PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));

/// Milliseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// Writes it as bytes, without quotes.
    pub fn write(self, out: &mut Vec<u8>) {
        PRINTER.print_timestamp(&self.timestamp(), out).expect("writing to memory does not fail");
    }

    /// A stamp may lie behind the last day of the calendar; it is then shown as that day, on every node.
    fn timestamp(self) -> Timestamp {
        i64::try_from(self.0)
            .ok()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .unwrap_or(Timestamp::MAX)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(24);
        PRINTER.print_timestamp(&self.timestamp(), &mut text).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

impl FromStr for Time {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let millis = text.parse::<Timestamp>()?.as_millisecond();
        Ok(Time(u64::try_from(millis).unwrap_or(0))) // nothing of ours is older than 1970
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
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
    fn what_was_written_is_read_back() {
        let json = serde_json::to_string(&Time(1_795_350_674_123)).expect("serialises");
        assert_eq!(json, "\"2026-11-22T12:31:14.123Z\"");
        assert_eq!(serde_json::from_str::<Time>(&json).expect("parses"), Time(1_795_350_674_123));
    }
}
