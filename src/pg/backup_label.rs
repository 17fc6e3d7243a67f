//! `backup_label`: where recovery of a base backup begins.
//!
//! Read to be checked and planned with; what is stored and restored are the server's own bytes. The `.backup` file in
//! the archive repeats these lines among others, and is not read here.
//!
//! Source: `build_backup_content` in `src/backend/access/transam/xlogbackup.c` (before 16 in `xlog.c`),
//! `read_backup_label` in `xlogrecovery.c`.

use super::lsn::Lsn;
use super::segment::SegmentName;
use super::timeline::TimelineId;

/// The contents of `backup_label`, PostgreSQL 13 to 19.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay begins: redo position of the backup's checkpoint.
    pub start_lsn: Lsn,
    /// The segment that holds it.
    pub start_segment: SegmentName,
    /// Start of the backup's checkpoint record.
    pub checkpoint_lsn: Lsn,
    /// How the backup was begun.
    pub method: BackupMethod,
    /// What kind of server it was taken from.
    pub from: BackupFrom,
    /// When it began, in the words and time zone of the server's log.
    pub start_time: String,
    /// The name given to `pg_backup_start`; bytes that are not UTF-8 are replaced.
    pub label: String,
    /// Timeline of the start; agrees with the segment's.
    pub start_timeline: TimelineId,
    /// The backup it builds on. A server refuses to start from such a label.
    pub incremental_from: Option<IncrementalFrom>,
}

/// How a backup was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupMethod {
    /// `streamed`: non-exclusive or over the replication protocol; its end is a record in the WAL.
    Streamed,
    /// `pg_start_backup`: exclusive, up to 14; the label lay in the server's own data directory.
    Exclusive,
}

/// What kind of server a backup was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupFrom {
    /// `primary`, which 13 calls `master`.
    Primary,
    /// `standby`: the backup ends at the minimum recovery point of its `pg_control`.
    Standby,
}

/// The start of the backup an incremental one builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncrementalFrom {
    /// `INCREMENTAL FROM LSN`.
    pub lsn: Lsn,
    /// `INCREMENTAL FROM TLI`.
    pub timeline: TimelineId,
}

/// Bytes that are not a `backup_label`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupLabelError {
    /// A line is absent, or not where the server writes it.
    #[error("backup_label has {found:?} where {expected:?} belongs")]
    Missing {
        /// The line's key.
        expected: &'static str,
        /// The line found; empty at the end.
        found: String,
    },
    /// A line whose value cannot be.
    #[error("backup_label has {value:?} as {key:?}")]
    Value {
        /// The line's key.
        key: &'static str,
        /// What follows it.
        value: String,
    },
    /// Something after the last known line.
    #[error("backup_label goes on with {found:?}")]
    Unknown {
        /// The first line not understood.
        found: String,
    },
    /// The last line does not end.
    #[error("backup_label is cut")]
    Cut,
    /// The segment lies on another timeline than the start.
    #[error("backup_label starts in {segment}, yet on timeline {timeline}")]
    Timeline {
        /// The start segment.
        segment: SegmentName,
        /// The start timeline.
        timeline: TimelineId,
    },
}

impl BackupLabel {
    /// Reads a `backup_label`, as `pg_backup_stop` returns it.
    ///
    /// The server's order of lines is required: a label text that holds a newline could otherwise pass for one of them.
    pub fn parse(bytes: &[u8]) -> Result<Self, BackupLabelError> {
        let text = String::from_utf8_lossy(bytes);
        let text = text.strip_suffix('\n').ok_or(BackupLabelError::Cut)?;
        let mut lines = Lines(text.split('\n').collect::<Vec<_>>().into_iter().peekable());
        let (start_lsn, start_segment) = lines.value("START WAL LOCATION", start)?;
        let label = Self {
            start_lsn,
            start_segment,
            checkpoint_lsn: lines.value("CHECKPOINT LOCATION", lsn)?,
            method: lines.value("BACKUP METHOD", BackupMethod::parse)?,
            from: lines.value("BACKUP FROM", BackupFrom::parse)?,
            start_time: lines.value("START TIME", |text| Some(text.to_owned()))?,
            label: lines.value("LABEL", |text| Some(text.to_owned()))?,
            start_timeline: lines.value("START TIMELINE", timeline)?,
            incremental_from: lines.incremental_from()?,
        };
        lines.end()?;
        if label.start_segment.timeline() != label.start_timeline {
            return Err(BackupLabelError::Timeline { segment: label.start_segment, timeline: label.start_timeline });
        }
        Ok(label)
    }
}

/// The lines not yet read.
struct Lines<'a>(std::iter::Peekable<std::vec::IntoIter<&'a str>>);

impl<'a> Lines<'a> {
    fn value<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<T, BackupLabelError> {
        let line: &'a str = self.0.next().unwrap_or_default();
        let value = line.strip_prefix(key).and_then(|rest| rest.strip_prefix(": "));
        let value = value.ok_or_else(|| BackupLabelError::Missing { expected: key, found: line.to_owned() })?;
        parse(value).ok_or_else(|| BackupLabelError::Value { key, value: value.to_owned() })
    }

    fn incremental_from(&mut self) -> Result<Option<IncrementalFrom>, BackupLabelError> {
        if !self.0.peek().is_some_and(|line| line.starts_with("INCREMENTAL FROM")) {
            return Ok(None);
        }
        let lsn = self.value("INCREMENTAL FROM LSN", lsn)?;
        Ok(Some(IncrementalFrom { lsn, timeline: self.value("INCREMENTAL FROM TLI", timeline)? }))
    }

    fn end(mut self) -> Result<(), BackupLabelError> {
        self.0.next().map_or(Ok(()), |line| Err(BackupLabelError::Unknown { found: line.to_owned() }))
    }
}

/// `0/2000028 (file 000000010000000000000002)`.
fn start(text: &str) -> Option<(Lsn, SegmentName)> {
    let (position, file) = text.split_once(" (file ")?;
    Some((lsn(position)?, file.strip_suffix(')')?.parse().ok()?))
}

fn lsn(text: &str) -> Option<Lsn> {
    text.parse().ok().filter(|lsn: &Lsn| lsn.is_valid())
}

fn timeline(text: &str) -> Option<TimelineId> {
    super::relation_file::decimal(text).and_then(TimelineId::new)
}

impl BackupMethod {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "streamed" => Some(Self::Streamed),
            "pg_start_backup" => Some(Self::Exclusive),
            _ => None,
        }
    }
}

impl BackupFrom {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "primary" | "master" => Some(Self::Primary),
            "standby" => Some(Self::Standby),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    const LABELS: [(u16, &[u8]); 6] = [
        (13, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/13/backup_label"))),
        (14, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/14/backup_label"))),
        (15, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/15/backup_label"))),
        (16, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/16/backup_label"))),
        (17, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/17/backup_label"))),
        (18, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/18/backup_label"))),
    ];

    const INCREMENTAL: &[u8] =
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/17/backup_label.incremental"));
    const STANDBY: &[u8] =
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/17/backup_label.standby"));

    const TEXT: &str = "START WAL LOCATION: 1A/3F00028 (file 000000020000001A00000003)\n\
        CHECKPOINT LOCATION: 1A/3F00060\nBACKUP METHOD: streamed\nBACKUP FROM: standby\n\
        START TIME: 2024-02-29 12:00:00 CET\nLABEL: it's: a\tlabel\nSTART TIMELINE: 2\n";

    fn parse(text: &str) -> Result<BackupLabel, BackupLabelError> {
        BackupLabel::parse(text.as_bytes())
    }

    #[test]
    fn every_majors_label_is_read() {
        for (major, bytes) in LABELS {
            let label = BackupLabel::parse(bytes).unwrap();
            assert_eq!(label.label, format!("of major {major}"));
            assert_eq!(label.start_lsn.to_string(), "0/2000028");
            assert_eq!(label.start_segment.to_string(), "000000010000000000000002");
            // 17 logs a record of its own where a checkpoint's redo begins.
            assert_eq!(label.checkpoint_lsn.to_string(), if major < 17 { "0/2000060" } else { "0/2000080" });
            assert_eq!((label.method, label.from), (BackupMethod::Streamed, BackupFrom::Primary));
            assert!(label.start_time.starts_with("2026-11-21 04:05:") && label.start_time.ends_with(" UTC"));
            assert_eq!((label.start_timeline.number(), label.incremental_from), (1, None));
        }
    }

    #[test]
    fn an_incremental_label_names_what_it_builds_on() {
        let label = BackupLabel::parse(INCREMENTAL).unwrap();
        let timeline = TimelineId::new(1).unwrap();
        assert_eq!(label.incremental_from, Some(IncrementalFrom { lsn: Lsn::new(0x1000_0028), timeline }));
        assert_eq!(label.start_lsn, Lsn::new(0x1100_0028));
        let cut = &INCREMENTAL[..INCREMENTAL.len() - "INCREMENTAL FROM TLI: 1\n".len()];
        assert!(matches!(BackupLabel::parse(cut), Err(BackupLabelError::Missing { .. })));
    }

    #[test]
    fn a_label_from_a_standby_says_so() {
        assert_eq!(BackupLabel::parse(STANDBY).unwrap().from, BackupFrom::Standby);
    }

    #[test]
    fn zero_padded_positions_are_read() {
        let padded = TEXT.replace("1A/3F00028", "1A/03F00028").replace("1A/3F00060", "1A/03F00060");
        assert_eq!(parse(&padded), parse(TEXT));
    }

    #[test]
    fn any_label_text_on_one_line_is_read() {
        assert_eq!(parse(TEXT).unwrap().label, "it's: a\tlabel");
        assert_eq!(parse(&TEXT.replace("it's: a\tlabel", "")).unwrap().label, "");
    }

    #[test]
    fn values_no_server_writes_are_refused() {
        for (key, from, to) in [
            ("START WAL LOCATION", "1A/3F00028 (", "0/0 ("),
            ("START WAL LOCATION", "000000020000001A00000003", "20000001A00000003"),
            ("CHECKPOINT LOCATION", "1A/3F00060", "1A"),
            ("BACKUP METHOD", "streamed", "copied"),
            ("BACKUP FROM", "standby", "replica"),
            ("START TIMELINE", "LINE: 2", "LINE: 0"),
            ("START TIMELINE", "LINE: 2", "LINE: 02"),
        ] {
            let error = parse(&TEXT.replace(from, to));
            assert!(matches!(error, Err(BackupLabelError::Value { key: k, .. }) if k == key), "{key}: {error:?}");
        }
        let other = parse(&TEXT.replace("LINE: 2", "LINE: 3"));
        assert!(matches!(other, Err(BackupLabelError::Timeline { .. })), "{other:?}");
    }

    #[test]
    fn a_label_text_with_a_newline_cannot_pass_for_other_lines() {
        let forged = TEXT.replace("it's: a\tlabel", "x\nSTART TIMELINE: 2");
        assert_eq!(parse(&forged), Err(BackupLabelError::Unknown { found: "START TIMELINE: 2".into() }));
    }

    proptest! {
        #[test]
        fn a_cut_label_is_refused(cut in 0..TEXT.len()) {
            prop_assert!(parse(&TEXT[..cut]).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = BackupLabel::parse(&bytes);
        }

        #[test]
        fn any_changed_byte_is_read_or_refused(at in 0..TEXT.len(), byte: u8) {
            let mut bytes = TEXT.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = BackupLabel::parse(&bytes);
        }
    }
}
