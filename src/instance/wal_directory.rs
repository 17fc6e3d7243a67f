//! `pg_wal` as it lies on the disk: what waits to be archived, how fast it fills, and how much room is left.
//!
//! Read from names and times alone, so it works while the server is down.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::pg::segment::SegmentSize;
use crate::pg::wal_name::WalFileName;

/// Segments that the rate is taken from, at most.
const RATE_SEGMENTS: usize = 64;

/// A burst is no rate.
const RATE_SPAN: f64 = 600.0;

/// What a server's `pg_wal` looks like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WalDirectory {
    /// Files that wait to be archived.
    pub ready: u64,
    /// The one that has waited longest, by name and age.
    pub oldest_ready: Option<(String, Duration)>,
    /// Bytes of log written in a second, lately.
    pub bytes_per_second: Option<f64>,
    /// Bytes that the file system has left for the server.
    pub free_bytes: u64,
    /// Bytes that the file system has.
    pub total_bytes: u64,
}

impl WalDirectory {
    /// Looks at a data directory's `pg_wal` at the moment `now`.
    pub fn look(data_directory: &Path, size: SegmentSize, now: DateTime<Utc>) -> io::Result<Self> {
        let wal = data_directory.join("pg_wal");
        let space = rustix::fs::statvfs(&wal)?;
        let mut directory = Self {
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            total_bytes: space.f_blocks.saturating_mul(space.f_frsize),
            ..Self::default()
        };
        for (name, modified) in entries(&wal.join("archive_status"))? {
            let Some(name) = name.strip_suffix(".ready") else { continue };
            directory.ready += 1;
            let age = (now - modified).to_std().unwrap_or_default();
            if directory.oldest_ready.as_ref().is_none_or(|(_, oldest)| age > *oldest) {
                directory.oldest_ready = Some((name.to_owned(), age));
            }
        }
        directory.bytes_per_second = rate(entries(&wal)?, size, now);
        Ok(directory)
    }

    /// Returns when a data directory's log was last written to.
    pub fn last_written(data_directory: &Path) -> io::Result<Option<DateTime<Utc>>> {
        let files = entries(&data_directory.join("pg_wal"))?.into_iter();
        let segments = files.filter(|(name, _)| matches!(name.parse(), Ok(WalFileName::Segment(_))));
        Ok(segments.map(|(_, time)| time).max())
    }

    /// Returns how long the room lasts at the present rate if nothing is recycled any more.
    pub fn room_lasts(&self) -> Option<Duration> {
        let rate = self.bytes_per_second.filter(|rate| *rate > 0.0)?;
        Duration::try_from_secs_f64(self.free_bytes as f64 / rate).ok()
    }
}

/// Names in a directory, with when they were last written; what vanishes meanwhile is left out.
fn entries(directory: &Path) -> io::Result<Vec<(String, DateTime<Utc>)>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else { continue };
        let modified = DateTime::from_timestamp(metadata.mtime(), metadata.mtime_nsec() as u32);
        if let (Ok(name), Some(modified)) = (entry.file_name().into_string(), modified) {
            entries.push((name, modified));
        }
    }
    Ok(entries)
}

/// Bytes a second over the newest finished segments of the newest timeline, up to now.
///
/// Files made or recycled for later have names past the current segment and are not written yet: their times are older
/// than that of the file before.
fn rate(files: Vec<(String, DateTime<Utc>)>, size: SegmentSize, now: DateTime<Utc>) -> Option<f64> {
    let segment = |(name, time): (String, DateTime<Utc>)| match name.parse().ok()? {
        WalFileName::Segment(name) => Some((name, time)),
        _ => None,
    };
    let mut segments: Vec<_> = files.into_iter().filter_map(segment).collect();
    segments.sort();
    let newest = segments.last()?.0.timeline();
    segments.retain(|(name, _)| name.timeline() == newest);
    let written = segments.windows(2).take_while(|pair| pair[0].1 <= pair[1].1).count() + 1;
    segments.truncate(written);
    let tail = &segments[segments.len().saturating_sub(RATE_SEGMENTS)..];
    let seconds = (now - tail.first()?.1).num_milliseconds() as f64 / 1000.0;
    let bytes = (tail.len() - 1) as f64 * size.bytes() as f64;
    (tail.len() > 1 && seconds >= RATE_SPAN).then(|| bytes / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(times: &[(&str, i64)]) -> Vec<(String, DateTime<Utc>)> {
        let time = |seconds| DateTime::from_timestamp(1_000_000 + seconds, 0).expect("a moment");
        times.iter().map(|(name, seconds)| (format!("0000000{name}"), time(*seconds))).collect()
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_001_000, 0).expect("a moment")
    }

    #[test]
    fn the_rate_counts_what_was_written_and_not_what_waits_to_be() {
        let size = SegmentSize::new(1 << 20).expect("a size");
        let three = [("10000000000000001", 0), ("10000000000000002", 400), ("10000000000000003", 900)];
        let mib = f64::from(1 << 20);
        assert_eq!(rate(files(&three), size, now()), Some(2.0 * mib / 1000.0));
        let recycled = [&three[..], &[("10000000000000004", -500), ("10000000000000005", -400)]].concat();
        assert_eq!(rate(files(&recycled), size, now()), Some(2.0 * mib / 1000.0));
        let promoted = [&three[..], &[("20000000000000003", 300), ("20000000000000004", 800)]].concat();
        assert_eq!(rate(files(&promoted), size, now()), Some(mib / 700.0));
        assert_eq!(rate(files(&three[..1]), size, now()), None);
        assert_eq!(rate(files(&[]), size, now()), None);
        let burst = [("10000000000000001", 900), ("10000000000000002", 950)];
        assert_eq!(rate(files(&burst), size, now()), None);
    }

    #[test]
    fn room_lasts_as_long_as_the_rate_says() {
        let directory = WalDirectory { bytes_per_second: Some(100.0), free_bytes: 1000, ..Default::default() };
        assert_eq!(directory.room_lasts(), Some(Duration::from_secs(10)));
        assert_eq!(WalDirectory::default().room_lasts(), None);
    }
}
