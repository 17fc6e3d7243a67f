//! What an operator asks for.

use chrono::{DateTime, NaiveDateTime, Utc};

use crate::pg::lsn::Lsn;

/// The moment to come back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The newest moment that the archive holds.
    Latest,
    /// Everything that was committed at or before a moment.
    Time(DateTime<Utc>),
    /// Everything whose record ended at or before a position.
    Lsn(Lsn),
    /// Everything up to the end of a transaction.
    Xid(u32),
    /// A restore point.
    Name(String),
    /// The end of the backup itself.
    BackupEnd,
}

/// What the copy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It takes the place of the server that was backed up, and goes on archiving where it left off.
    Primary,
    /// It follows its primary.
    Standby,
    /// It stands beside the server that was backed up and must reach nothing outside.
    Clone,
}

/// A text that is not a moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// It has no zone, so it means another moment on every host.
    #[error("{text:?} has no time zone; write one, such as {text}Z or {text}+01:00")]
    NoZone {
        /// The text.
        text: String,
    },
    /// It is no time at all.
    #[error("{text:?} is not a time; one looks like 2026-11-21 14:30:00+01:00")]
    Unreadable {
        /// The text.
        text: String,
    },
}

/// Reads a moment with its zone, as RFC 3339, as PostgreSQL prints it, or with `UTC` behind it.
pub fn parse_time(text: &str) -> Result<DateTime<Utc>, TimeError> {
    let plain = text.trim();
    let spelled = match plain.strip_suffix("UTC").or(plain.strip_suffix('Z')).or(plain.strip_suffix('z')) {
        Some(rest) => format!("{}+0000", rest.trim_end()),
        None => plain.to_owned(),
    };
    let formats = ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z", "%Y-%m-%dT%H:%M%#z"];
    for format in formats {
        if let Ok(time) = DateTime::parse_from_str(&spelled, format) {
            return Ok(time.to_utc());
        }
    }
    let zoneless = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"];
    match zoneless.iter().any(|format| NaiveDateTime::parse_from_str(plain, format).is_ok()) {
        true => Err(TimeError::NoZone { text: plain.to_owned() }),
        false => Err(TimeError::Unreadable { text: plain.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_zone_is_the_same_moment() {
        let expected = parse_time("2026-11-21T13:30:00Z").expect("RFC 3339");
        for text in [
            "2026-11-21 13:30:00+00",
            "2026-11-21 14:30:00+01:00",
            "2026-11-21 14:30:00+0100",
            "2026-11-21 13:30:00.000000 UTC",
            "2026-11-21 08:30-05",
            "2026-11-21T13:30:00.0Z",
        ] {
            assert_eq!(parse_time(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_refused_by_name() {
        for text in ["2026-11-21 13:30:00", "2026-11-21T13:30", "2026-11-21 13:30:00.5"] {
            assert!(matches!(parse_time(text), Err(TimeError::NoZone { .. })), "{text}");
        }
        for text in ["", "yesterday", "2026-11-21", "13:30:00+00", "2026-02-30 00:00:00Z", "2026-11-21 25:00:00Z"] {
            assert!(matches!(parse_time(text), Err(TimeError::Unreadable { .. })), "{text}");
        }
    }
}
