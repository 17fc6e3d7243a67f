//! PostgreSQL's clock readings: microseconds since the start of 2000, UTC.
//!
//! Source: `TimestampTz` in `src/include/datatype/timestamp.h`.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Utc};

use super::as_text::as_text;

/// A moment as PostgreSQL stores it, microseconds since 2000-01-01 00:00 UTC, within the years 0 to 9999.
///
/// Prints as RFC 3339 with six digits of a second: `2026-11-21T03:56:07.000123Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTime(i64);

/// A text that is not a moment in RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a time with a zone; one looks like 2026-11-21T03:56:07.000123Z")]
pub struct PgTimeError {
    text: String,
}

/// Microseconds from 1970-01-01 to 2000-01-01, both UTC.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

impl PgTime {
    /// Makes a moment from PostgreSQL's number; `None` outside the years 0 to 9999, infinities included.
    pub fn from_micros(micros: i64) -> Option<Self> {
        let unix = micros.checked_add(EPOCH_MICROS)?;
        DateTime::from_timestamp_micros(unix).and_then(Self::from_utc)
    }

    /// Makes a moment from a UTC time, dropping what is finer than a microsecond; `None` outside the years 0 to 9999.
    pub fn from_utc(time: DateTime<Utc>) -> Option<Self> {
        (0..=9999).contains(&time.year()).then(|| Self(time.timestamp_micros() - EPOCH_MICROS))
    }

    /// Returns PostgreSQL's number: microseconds since 2000-01-01 00:00 UTC.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Returns the moment as a UTC time.
    pub fn to_utc(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.0 + EPOCH_MICROS).expect("the constructors keep to years chrono knows")
    }
}

impl fmt::Display for PgTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_utc().format("%Y-%m-%dT%H:%M:%S%.6fZ").fmt(f)
    }
}

impl FromStr for PgTime {
    type Err = PgTimeError;

    fn from_str(text: &str) -> Result<Self, PgTimeError> {
        let time = DateTime::parse_from_rfc3339(text).ok().and_then(|time| Self::from_utc(time.to_utc()));
        time.ok_or_else(|| PgTimeError { text: text.to_owned() })
    }
}

as_text!(PgTime);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_round_trips(micros in -63_000_000_000_000_000i64..252_000_000_000_000_000) {
            let time = PgTime::from_micros(micros).unwrap();
            prop_assert_eq!(time.to_string().parse::<PgTime>(), Ok(time));
            prop_assert_eq!(time.micros(), micros);
        }

        #[test]
        fn any_number_is_taken_or_refused(micros: i64) {
            if let Some(time) = PgTime::from_micros(micros) {
                prop_assert_eq!(time.to_string().parse::<PgTime>(), Ok(time));
            }
        }
    }

    #[test]
    fn zero_is_the_start_of_2000() {
        assert_eq!(PgTime::from_micros(0).unwrap().to_string(), "2000-01-01T00:00:00.000000Z");
        assert_eq!("2000-01-01T02:00:00.000001+02:00".parse::<PgTime>().unwrap().micros(), 1);
    }

    #[test]
    fn infinities_and_texts_without_a_zone_are_refused() {
        assert_eq!(PgTime::from_micros(i64::MIN), None);
        assert_eq!(PgTime::from_micros(i64::MAX), None);
        assert!("2000-01-01T00:00:00".parse::<PgTime>().is_err());
        assert!("infinity".parse::<PgTime>().is_err());
    }
}
