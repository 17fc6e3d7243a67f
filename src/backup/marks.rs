//! Records that only the server that was backed up can have written where they lie: they tie the archived log to it.
//!
//! A segment's name, its system identifier and a chain of records that can be read are the same in the log of a copy of that
//! server, such as a snapshot that was started elsewhere, and of the server before it was set back to a snapshot. What that
//! log holds at the backup's own positions is not: the checkpoint that the backup began with, the last checkpoint before its
//! end with every number that `pg_control` has of it, its time among them, and on a primary the record of the backup's end,
//! which names its start. A standby writes no record of its own; what it replayed up to its last restartpoint is compared.
//!
//! Every committed backup was tied so. Thus what the archive holds between two of them is the log of the server of both.
//!
//! Source: `do_pg_backup_start`, `do_pg_backup_stop`, `CreateCheckPoint` and `CreateRestartPoint` in
//! `src/backend/access/transam/xlog.c`, alike in 13 to 18: the start is the redo of the checkpoint that the label names, and a
//! primary's stop the position after the record of the end.

use std::fmt;

use crate::pg::backup_label::{BackupFrom, BackupLabel};
use crate::pg::checkpoint::{Checkpoint, backup_ended};
use crate::pg::control::ControlFile;
use crate::pg::lsn::Lsn;
use crate::pg::wal_record::Record;

/// What is looked for in the log, and what was found of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    start: Lsn,
    /// Of the checkpoint that the backup began with.
    first: Lsn,
    /// The last checkpoint that the copied `pg_control` knows.
    last: (Lsn, Checkpoint),
    /// Where the record of the backup's end ends; none on a standby.
    end: Option<Lsn>,
    found: Found,
}

#[derive(Clone, Copy, Debug, Default)]
struct Found {
    first: bool,
    last: bool,
    end: bool,
}

/// One of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The checkpoint that the backup began with.
    Start(Lsn),
    /// The last checkpoint before its end.
    Checkpoint(Lsn),
    /// The record of its end.
    End(Lsn),
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mark::Start(at) => write!(f, "it does not have the checkpoint at {at} with which the backup began"),
            Mark::Checkpoint(at) => {
                write!(f, "its record at {at} is not the checkpoint that pg_control has from there")
            }
            Mark::End(at) => write!(f, "it does not have the record of the backup's end that ends at {at}"),
        }
    }
}

impl Marks {
    /// What a backup with this label, this copy of `pg_control` and this stop must find.
    pub fn of(label: &BackupLabel, control: &ControlFile, stop: Lsn) -> Self {
        Self {
            start: label.start_lsn,
            first: label.checkpoint_lsn,
            last: (control.checkpoint, control.checkpoint_copy),
            end: (label.from == BackupFrom::Primary).then_some(stop),
            found: Found::default(),
        }
    }

    /// Looks at a record of the log.
    pub fn note(&mut self, record: &Record<'_>) {
        if record.resource_manager != 0 {
            return;
        }
        let checkpoint = || Checkpoint::of(record);
        let found = &mut self.found;
        found.first |= record.start == self.first && checkpoint().is_some_and(|one| one.redo() == self.start);
        found.last |= record.start == self.last.0 && checkpoint() == Some(self.last.1);
        found.end |= self.end == Some(record.end) && backup_ended(record) == Some(self.start);
    }

    /// Returns the first one that the log does not have.
    pub fn missing(&self) -> Option<Mark> {
        let Found { first, last, end } = self.found;
        match self.end {
            _ if !first => Some(Mark::Start(self.first)),
            _ if !last => Some(Mark::Checkpoint(self.last.0)),
            Some(at) if !end => Some(Mark::End(at)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::Walker;
    use crate::pg::wal_fixture::{Log, one_mib};

    const TIME: i64 = 1_795_000_000;

    /// The contents of a checkpoint.
    fn contents(redo: Lsn, time: i64) -> [u8; Checkpoint::LEN] {
        let mut bytes = [0; Checkpoint::LEN];
        bytes[..8].copy_from_slice(&redo.bytes().to_le_bytes());
        bytes[8] = 1;
        bytes[64..72].copy_from_slice(&time.to_le_bytes());
        bytes
    }

    fn main_data(bytes: &[u8]) -> Vec<u8> {
        [&[255, bytes.len() as u8], bytes].concat()
    }

    /// Something that the server wrote.
    fn work(log: &mut Log) {
        log.record(21, 0, &main_data(b"whatever"));
    }

    /// A log with a backup in it, and what that one must find: a checkpoint, another one, and the end.
    fn backup(end: impl FnOnce(&mut Log, Lsn)) -> (Log, Marks) {
        let mut log = Log::new();
        work(&mut log);
        let start = log.position();
        work(&mut log);
        let first = log.position();
        log.record(0, 0x10, &main_data(&contents(start, TIME)));
        work(&mut log);
        let last = log.position();
        let copy = contents(first, TIME + 9);
        log.record(0, 0x10, &main_data(&copy));
        end(&mut log, start);
        let marks = Marks {
            start,
            first,
            last: (last, Checkpoint::read(&copy).unwrap()),
            end: Some(log.position()),
            found: Found::default(),
        };
        work(&mut log);
        (log, marks)
    }

    fn ended(log: &mut Log, start: Lsn) {
        log.record(0, 0x50, &main_data(&start.bytes().to_le_bytes()));
    }

    fn missing(log: &Log, mut marks: Marks) -> Option<Mark> {
        let mut walker = Walker::new(Some(Log::SYSTEM), one_mib());
        for (name, raw) in log.segments() {
            walker.segment(name, &raw, &mut |record| marks.note(record));
        }
        marks.missing()
    }

    #[test]
    fn its_own_log_has_all_of_them() {
        let (log, marks) = backup(ended);
        assert_eq!(missing(&log, marks), None);
        // A backup during which there was no other checkpoint.
        let first = (marks.first, Checkpoint::read(&contents(marks.start, TIME)).unwrap());
        assert_eq!(missing(&log, Marks { last: first, ..marks }), None);
    }

    #[test]
    fn a_log_without_the_end_or_with_another_ones_is_anothers() {
        let (log, marks) = backup(|log, _| work(log));
        let end = marks.end.unwrap();
        assert_eq!(missing(&log, marks), Some(Mark::End(end)));
        // A standby writes none.
        assert_eq!(missing(&log, Marks { end: None, ..marks }), None);
        // Another backup's, and one that ends elsewhere.
        let (log, marks) = backup(|log, start| ended(log, start + 8));
        assert_eq!(missing(&log, marks), Some(Mark::End(marks.end.unwrap())));
        let (log, marks) = backup(ended);
        let elsewhere = marks.end.unwrap() + 8;
        assert_eq!(missing(&log, Marks { end: Some(elsewhere), ..marks }), Some(Mark::End(elsewhere)));
    }

    #[test]
    fn a_log_with_other_checkpoints_is_anothers() {
        let (log, marks) = backup(ended);
        let other = Marks { start: marks.start + 8, ..marks };
        assert_eq!(missing(&log, other), Some(Mark::Start(marks.first)), "another redo");
        let other = Marks { first: marks.start, ..marks };
        assert_eq!(missing(&log, other), Some(Mark::Start(marks.start)), "another record");
        let (at, _) = marks.last;
        for (what, copy) in
            [("another second", contents(marks.first, TIME + 10)), ("another redo", contents(marks.start, TIME + 9))]
        {
            let other = Marks { last: (at, Checkpoint::read(&copy).unwrap()), ..marks };
            assert_eq!(missing(&log, other), Some(Mark::Checkpoint(at)), "{what}");
        }
        // What a standby has replayed of a later one changes nothing.
        let mut copy = contents(marks.first, TIME + 9);
        copy[24..32].fill(7);
        assert_eq!(missing(&log, Marks { last: (at, Checkpoint::read(&copy).unwrap()), ..marks }), None);
    }
}
