//! Moments as people type them: `2026-11-21 14:30:00+01:00`, `yesterday 14:30 Europe/Paris`, `10 minutes ago`.
//!
//! A moment always has a zone: without one it would mean another moment on every host, and the server would read it in a
//! third one. What a clock showed twice, or never, on a day when it was changed, is refused and not guessed.

use chrono::{DateTime, Days, FixedOffset, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

/// A text that is not a moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// It has no zone, so it means another moment on every host.
    #[error("{text:?} has no time zone; write one behind it, such as {text} UTC, {text} +01:00 or {text} Europe/Paris")]
    NoZone {
        /// The text.
        text: String,
    },
    /// It is no time at all.
    #[error(
        "{text:?} is not a time; one looks like 2026-11-21 14:30:00+01:00, yesterday 14:30 Europe/Paris or 10 minutes ago"
    )]
    Unreadable {
        /// The text.
        text: String,
    },
    /// The last word is no zone.
    #[error("{zone:?} is no time zone; one looks like UTC, +01:00 or Europe/Paris")]
    UnknownZone {
        /// The word.
        zone: String,
    },
    /// The clocks of the zone showed this time twice.
    #[error(
        "{text:?} was there twice, when the clocks of that zone were put back: {first} and {second}; give the one that is meant"
    )]
    Twice {
        /// The text.
        text: String,
        /// The first time, in UTC.
        first: DateTime<Utc>,
        /// The second time.
        second: DateTime<Utc>,
    },
    /// The clocks of the zone never showed this time.
    #[error("{text:?} was never there: the clocks of that zone were put forward past it")]
    Never {
        /// The text.
        text: String,
    },
}

/// Reads a moment, as seen at `now`.
///
/// # Errors
/// [`TimeError`] for whatever is not exactly one moment.
pub fn parse_time(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>, TimeError> {
    let text = text.trim();
    let unreadable = || TimeError::Unreadable { text: text.to_owned() };
    let words: Vec<&str> = text.split_whitespace().collect();
    if let Some(length) =
        words.split_last().and_then(|(last, length)| last.eq_ignore_ascii_case("ago").then_some(length))
    {
        let ago = span(length).ok_or_else(unreadable)?;
        return now.checked_sub_signed(ago).ok_or_else(unreadable);
    }
    let (plain, zone) = split_zone(text);
    let zone = zone.map(|zone| Zone::parse(zone).ok_or_else(|| TimeError::UnknownZone { zone: zone.to_owned() }));
    // A word that is no zone may be part of what is no time.
    let Some(clock) = Clock::parse(plain) else {
        return Err(match zone {
            Some(Err(error)) if Clock::parse(text).is_none() && looks_dated(plain) => error,
            _ => unreadable(),
        });
    };
    let zone = zone.ok_or_else(|| TimeError::NoZone { text: text.to_owned() })??;
    let local = clock.on(zone.date_at(now)).ok_or_else(unreadable)?;
    match zone.utc(local) {
        LocalResult::Single(time) => Ok(time),
        LocalResult::Ambiguous(first, second) => {
            Err(TimeError::Twice { text: text.to_owned(), first: first.min(second), second: first.max(second) })
        }
        LocalResult::None => Err(TimeError::Never { text: text.to_owned() }),
    }
}

fn looks_dated(plain: &str) -> bool {
    plain.split_whitespace().next().is_some_and(|word| Day::parse(word).is_some())
}

/// Reads `10 minutes`, `1 hour 30 min`, `90s`: a day is 24 hours.
fn span(words: &[&str]) -> Option<TimeDelta> {
    let joined = words.concat().to_ascii_lowercase();
    let mut rest = joined.as_str();
    let mut total = TimeDelta::zero();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: i64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let seconds = match unit[..end].trim_end_matches("and").trim_end_matches(',') {
            "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 7 * 86_400,
            _ => return None,
        };
        total = total.checked_add(&TimeDelta::try_seconds(count.checked_mul(seconds)?)?)?;
        rest = &unit[end..];
    }
    (!words.is_empty()).then_some(total)
}

/// Cuts off what may be a zone: the last word if it begins with a letter or a sign, or what begins with a sign after the
/// clock.
fn split_zone(text: &str) -> (&str, Option<&str>) {
    if let Some((before, last)) = text.rsplit_once(char::is_whitespace)
        && last.starts_with(|c: char| c.is_ascii_alphabetic() || "+-".contains(c))
        && !matches!(last.to_ascii_lowercase().as_str(), "noon" | "midnight")
    {
        return (before.trim_end(), Some(last));
    }
    // A sign behind the clock, not one in the date.
    if let Some(sign) = text.find(':').and_then(|clock| text[clock..].find(['+', '-']).map(|at| clock + at)) {
        return (&text[..sign], Some(&text[sign..]));
    }
    match text.strip_suffix("UTC").or(text.strip_suffix('Z')).or(text.strip_suffix('z')) {
        Some(plain) if plain.ends_with(|c: char| c.is_ascii_digit()) => (plain, Some("UTC")),
        _ => (text, None),
    }
}

enum Zone {
    Fixed(FixedOffset),
    Named(Tz),
}

impl Zone {
    fn parse(text: &str) -> Option<Self> {
        if text.starts_with(['+', '-']) {
            let digits: Vec<u32> =
                text[1..].chars().filter(|c| *c != ':').map(|c| c.to_digit(10)).collect::<Option<_>>()?;
            let (hours, minutes) = match digits.as_slice() {
                [h] => (*h, 0),
                [h, i] => (h * 10 + i, 0),
                [h, i, m, n] => (h * 10 + i, m * 10 + n),
                _ => return None,
            };
            let seconds = i32::try_from(hours * 3600 + minutes * 60).ok().filter(|_| hours <= 15 && minutes < 60)?;
            let sign = if text.starts_with('-') { -1 } else { 1 };
            return FixedOffset::east_opt(sign * seconds).map(Zone::Fixed);
        }
        if ["utc", "z", "gmt"].contains(&text.to_ascii_lowercase().as_str()) {
            return Some(Zone::Named(Tz::UTC));
        }
        // Names without a place, such as CET or EST, are offsets to some and clocks that change to others; `Etc/GMT+5`
        // lies west of Greenwich.
        let named: Tz = text
            .parse()
            .ok()
            .or_else(|| chrono_tz::TZ_VARIANTS.into_iter().find(|zone| zone.name().eq_ignore_ascii_case(text)))?;
        let is_place = named.name().contains('/') && !named.name().starts_with("Etc/");
        is_place.then_some(Zone::Named(named))
    }

    fn date_at(&self, now: DateTime<Utc>) -> NaiveDate {
        match self {
            Zone::Fixed(offset) => now.with_timezone(offset).date_naive(),
            Zone::Named(zone) => now.with_timezone(zone).date_naive(),
        }
    }

    fn utc(&self, local: NaiveDateTime) -> LocalResult<DateTime<Utc>> {
        match self {
            Zone::Fixed(offset) => offset.from_local_datetime(&local).map(|time| time.to_utc()),
            Zone::Named(zone) => zone.from_local_datetime(&local).map(|time| time.to_utc()),
        }
    }
}

enum Day {
    Given(NaiveDate),
    Ago(u64),
}

impl Day {
    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "today" => Some(Day::Ago(0)),
            "yesterday" => Some(Day::Ago(1)),
            date => NaiveDate::parse_from_str(date, "%Y-%m-%d").ok().map(Day::Given),
        }
    }
}

/// What a calendar and a clock show.
struct Clock {
    day: Day,
    time: NaiveTime,
}

impl Clock {
    fn parse(text: &str) -> Option<Self> {
        let (day, time) = match text.split_once(char::is_whitespace) {
            Some(parts) => parts,
            None => text.split_once(['T', 't']).filter(|(date, _)| date.len() == 10)?,
        };
        let time = match time.trim().to_ascii_lowercase().as_str() {
            "noon" => NaiveTime::from_hms_opt(12, 0, 0)?,
            "midnight" => NaiveTime::MIN,
            time => {
                let whole = NaiveTime::parse_from_str(time, "%H:%M:%S%.f");
                whole.or_else(|_| NaiveTime::parse_from_str(time, "%H:%M")).ok()?
            }
        };
        Some(Self { day: Day::parse(day)?, time })
    }

    /// Returns the date and time, where it is `today`.
    fn on(&self, today: NaiveDate) -> Option<NaiveDateTime> {
        let date = match self.day {
            Day::Given(date) => date,
            Day::Ago(days) => today.checked_sub_days(Days::new(days))?,
        };
        Some(date.and_time(self.time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().expect("RFC 3339")
    }

    /// Half past midnight in Paris, the evening before in New York.
    fn read(text: &str) -> Result<DateTime<Utc>, TimeError> {
        parse_time(text, utc("2026-11-20T23:30:00Z"))
    }

    #[test]
    fn every_spelling_of_a_zone_is_the_same_moment() {
        for text in [
            "2026-11-21T13:30:00Z",
            "2026-11-21t13:30:00z",
            "2026-11-21 13:30:00+00",
            "2026-11-21 14:30:00+01:00",
            "2026-11-21 14:30:00+0100",
            "2026-11-21 14:30 +1",
            "2026-11-21 13:30:00.000000 UTC",
            "2026-11-21 13:30:00UTC",
            "2026-11-21 08:30-05",
            "2026-11-21T13:30:00.0Z",
            "2026-11-21 14:30 Europe/Paris",
            "2026-11-21 14:30:00 europe/paris",
            "2026-11-21 08:30 America/New_York",
            "2026-11-21 19:15 Asia/Kathmandu",
            " today 14:30  Europe/Paris ",
            "today 13:30:00.0 utc",
        ] {
            let expected = if text.starts_with("today 13") { "2026-11-20T13:30:00Z" } else { "2026-11-21T13:30:00Z" };
            assert_eq!(read(text), Ok(utc(expected)), "{text}");
        }
        let paris = read("2026-07-01 14:30 Europe/Paris");
        assert_eq!(paris, Ok(utc("2026-07-01T12:30:00Z")), "summer time");
    }

    #[test]
    fn days_are_those_of_the_zone_that_is_named() {
        for (text, expected) in [
            ("yesterday 14:30 Europe/Paris", "2026-11-20T13:30:00Z"),
            ("yesterday 14:30 America/New_York", "2026-11-19T19:30:00Z"),
            ("today noon Europe/Paris", "2026-11-21T11:00:00Z"),
            ("Yesterday midnight +01:00", "2026-11-19T23:00:00Z"),
        ] {
            assert_eq!(read(text), Ok(utc(expected)), "{text}");
        }
    }

    #[test]
    fn a_length_of_time_ago_needs_no_zone() {
        for (text, expected) in [
            ("10 minutes ago", "2026-11-20T23:20:00Z"),
            ("1 hour 30 min ago", "2026-11-20T22:00:00Z"),
            ("1 hour and 30 minutes ago", "2026-11-20T22:00:00Z"),
            ("90s ago", "2026-11-20T23:28:30Z"),
            ("2d4h ago", "2026-11-18T19:30:00Z"),
            ("1 week AGO", "2026-11-13T23:30:00Z"),
        ] {
            assert_eq!(read(text), Ok(utc(expected)), "{text}");
        }
        for text in [
            "ago",
            "ten minutes ago",
            "10 ago",
            "minutes ago",
            "10 months ago",
            "99999999999999999999s ago",
            "9223372036854775807w ago",
            "-5 minutes ago",
        ] {
            assert!(matches!(read(text), Err(TimeError::Unreadable { .. })), "{text}: {:?}", read(text));
        }
    }

    #[test]
    fn a_time_without_a_zone_is_refused_by_name() {
        for text in
            ["2026-11-21 13:30:00", "2026-11-21T13:30", "2026-11-21 13:30:00.5", "yesterday 14:30", "today noon"]
        {
            assert!(matches!(read(text), Err(TimeError::NoZone { .. })), "{text}: {:?}", read(text));
        }
        for text in [
            "",
            "yesterday",
            "2026-11-21",
            "13:30:00+00",
            "2026-02-30 00:00:00Z",
            "2026-11-21 25:00:00Z",
            "noon UTC",
            "2026-11-21 UTC",
            "now",
        ] {
            assert!(matches!(read(text), Err(TimeError::Unreadable { .. })), "{text}: {:?}", read(text));
        }
    }

    #[test]
    fn a_zone_that_is_none_or_means_two_things_is_refused() {
        for zone in ["Mars/Olympus", "CET", "EST5EDT", "+25:00", "+1:2:3", "PST", "Etc/GMT+5"] {
            let refused = read(&format!("2026-11-21 13:30 {zone}"));
            assert_eq!(refused, Err(TimeError::UnknownZone { zone: zone.to_owned() }));
        }
    }

    #[test]
    fn what_a_clock_showed_twice_or_never_is_refused() {
        let twice = read("2026-10-25 02:30 Europe/Paris");
        let (first, second) = (utc("2026-10-25T00:30:00Z"), utc("2026-10-25T01:30:00Z"));
        assert_eq!(twice, Err(TimeError::Twice { text: "2026-10-25 02:30 Europe/Paris".to_owned(), first, second }));
        assert!(matches!(read("2026-03-29 02:30 Europe/Paris"), Err(TimeError::Never { .. })));
        assert_eq!(read("2026-10-25 02:30+01:00"), Ok(second));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String, near in "(today|yesterday|2026-11-21)?[ T]?[0-9:.]{0,9} ?[-+:0-9A-Za-z/ ]{0,12}( ago)?") {
            let _ = (read(&text), read(&near));
        }
    }
}
