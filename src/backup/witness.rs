//! What the file system knows of a relation's file, beside what the log says of it.
//!
//! To leave pages unread because no record names them rests on nobody but the server writing these files, and on every change
//! being in the log. Two things that every file system remembers speak against that, at the price of one question a file: a file
//! that is younger than the backup which has one of that name, where the log tells of no new file; and a file that was
//! written since, where the log tells of no change at all. Somebody has put another file in its place, or written to it, or the
//! log does not tell everything. Such a file is read whole, and compared by what it holds.
//!
//! Neither proves that a file is as it was: times can be set, and of a file that did change they say nothing.

use super::changed::FileChanges;
use crate::format::manifest::Manifest;
use crate::instance::ServerRole;
use crate::pg::backup_label::{BackupFrom, BackupLabel};

/// What is compared with the file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Witness {
    /// When the older backup had begun, in seconds since 1970 by the server's clock.
    since: i64,
    /// Whether a file that no record names is not written to. Without checksums hints are written that no record names, and
    /// the files of another server of the cluster were written at other times.
    writes_are_logged: bool,
}

/// A file, as the file system has it now and as the older backup saw it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// When it was made, in seconds since 1970; `None` where the file system does not know.
    pub born: Option<i64>,
    /// When it was written last, now and then; `None` if what the older backup says is not at hand.
    pub modified: i64,
    pub modified_then: Option<i64>,
}

impl Witness {
    /// What can be said against the log since `parent`, by whose side the server now has this role and, or not, checksums.
    pub fn of(parent: &Manifest, role: ServerRole, checksums: bool) -> Self {
        let from = BackupLabel::parse(parent.root.backup_label.as_bytes()).map(|label| label.from);
        // One timeline has one primary.
        let one_server = matches!(from, Ok(BackupFrom::Primary)) && role == ServerRole::Primary;
        let since = parent.envelope.started_at.timestamp();
        Self { since, writes_are_logged: one_server && checksums && parent.root.data_checksums }
    }

    /// Whether the log is not to be believed about a file that the older backup has too.
    pub fn doubts(&self, changes: &FileChanges<'_>, times: Times) -> bool {
        let made_since = times.born.is_some_and(|born| born > self.since);
        let written_since = times.modified_then.is_some_and(|then| then != times.modified);
        made_since && !changes.was_cut(0) || self.writes_are_logged && changes.is_empty() && written_since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::changed::ChangedBlocks;
    use crate::pg::data_directory::RelationPath;
    use crate::pg::relation_file::RelationFile;
    use crate::pg::wal_summary::ChangedBlock;

    const SEGMENT: u32 = 131_072;

    /// The log has nothing of relation 100, a block of 101, and tells that 102 is new and that 103 was cut off in its second
    /// file.
    fn log() -> ChangedBlocks {
        let mut changed = ChangedBlocks::default();
        let row =
            |relation, block, limit| ChangedBlock { tablespace: 1663, database: 5, relation, fork: 0, block, limit };
        [row(101, 7, false), row(102, 0, true), row(103, SEGMENT, true)].into_iter().for_each(|row| changed.add(row));
        changed
    }

    fn doubted(witness: Witness, name: &str, times: Times) -> bool {
        let log = log();
        let file = RelationFile::parse(name.as_bytes()).expect("a relation's file");
        let changes = log.of(&RelationPath { tablespace: 1663, database: 5, file }, SEGMENT).expect("vouched for");
        witness.doubts(&changes, times)
    }

    const SAME: Times = Times { born: Some(100), modified: 900, modified_then: Some(900) };
    const WITNESS: Witness = Witness { since: 1000, writes_are_logged: true };

    #[test]
    fn a_file_that_is_younger_than_the_backup_which_has_it_is_another_one_unless_the_log_says_so() {
        let younger = Times { born: Some(1001), ..SAME };
        for witness in [WITNESS, Witness { writes_are_logged: false, ..WITNESS }] {
            for (name, expected) in [("100", true), ("101", true), ("102", false), ("103", true), ("103.1", false)] {
                assert_eq!(doubted(witness, name, younger), expected, "{name}");
                assert!(!doubted(witness, name, SAME), "{name}");
            }
            assert!(!doubted(witness, "100", Times { born: None, ..SAME }), "who does not know says nothing");
        }
    }

    #[test]
    fn a_file_that_was_written_though_nothing_of_it_changed_was_not_written_by_the_server() {
        let written = Times { modified: 901, ..SAME };
        let set_back = Times { modified: 899, ..SAME };
        for (name, expected) in [("100", true), ("101", false), ("102", false)] {
            assert_eq!(doubted(WITNESS, name, written), expected, "{name}");
            assert_eq!(doubted(WITNESS, name, set_back), expected, "{name}");
        }
        assert!(!doubted(WITNESS, "100", Times { modified_then: None, ..written }), "nothing to compare with");
        assert!(!doubted(Witness { writes_are_logged: false, ..WITNESS }, "100", written), "hints are not logged");
    }
}
