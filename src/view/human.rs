//! Numbers and times as people read them.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

use crate::progress::Progress;

/// Returns a size: `317 B`, `1.2 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Returns a number with its thousands apart: `52,500`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

/// Returns a decimal amount with its thousands apart: `1,234.50`; other text as it is.
pub fn amount(text: &str) -> String {
    let (whole, cents) = text.split_once('.').unwrap_or((text, ""));
    match whole.parse() {
        Ok(whole) if cents.is_empty() => count(whole),
        Ok(whole) => format!("{}.{cents}", count(whole)),
        Err(_) => text.to_owned(),
    }
}

/// Returns a moment in UTC: `2026-11-21 13:30:00Z`.
pub fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Returns a moment as JSON has it: RFC 3339 with its zone.
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// Returns a duration: `0.4 s`, `3 min 20 s`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = duration.as_secs();
    match whole {
        0..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

/// Returns how far something is: `read 1.0 GiB of 4.0 GiB (25 %), 30.0 s left`.
pub fn progress(verb: &str, progress: &Progress, elapsed: Duration) -> String {
    let (total, done) = (progress.total(), progress.done().min(progress.total()));
    let percent = done * 100 / total.max(1);
    let text = format!("{verb} {} of {} ({percent} %)", bytes(done), bytes(total));
    match left(total, done, elapsed) {
        Some(left) => format!("{text}, about {} left", duration(left)),
        None => text,
    }
}

/// Returns how far something is as fields, for logs:
/// `progress verb=read bytes=1073741824 total=4294967296 percent=25 elapsed_s=10 left_s=30`.
pub fn progress_fields(verb: &str, progress: &Progress, elapsed: Duration) -> String {
    let (total, done) = (progress.total(), progress.done().min(progress.total()));
    let (percent, seconds) = (done * 100 / total.max(1), elapsed.as_secs());
    let text = format!("progress verb={verb} bytes={done} total={total} percent={percent} elapsed_s={seconds}");
    match left(total, done, elapsed) {
        Some(left) => format!("{text} left_s={}", left.as_secs()),
        None => text,
    }
}

/// Returns how long the rest takes at the pace so far.
fn left(total: u64, done: u64, elapsed: Duration) -> Option<Duration> {
    (done > 0).then(|| elapsed.mul_f64((total - done) as f64 / done as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_well() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(16 << 20), "16.0 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(["1234567.50", "12", "-1.5"].map(amount), ["1,234,567.50", "12", "-1.5"]);
        assert_eq!(duration(Duration::from_millis(420)), "0.4 s");
        assert_eq!(duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(duration(Duration::from_secs(7300)), "2 h 1 min");
    }

    #[test]
    fn progress_tells_what_is_left() {
        let so_far = Progress::default();
        so_far.expect(4 << 30);
        assert_eq!(progress("read", &so_far, Duration::from_secs(10)), "read 0 B of 4.0 GiB (0 %)");
        so_far.advance(1 << 30);
        let text = "read 1.0 GiB of 4.0 GiB (25 %), about 30.0 s left";
        assert_eq!(progress("read", &so_far, Duration::from_secs(10)), text);
        let fields = "progress verb=read bytes=1073741824 total=4294967296 percent=25 elapsed_s=10 left_s=30";
        assert_eq!(progress_fields("read", &so_far, Duration::from_secs(10)), fields);
    }
}
