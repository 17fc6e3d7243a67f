//! What a commit that removes files did to one table: dropped it, emptied it, or only moved its rows to a new file.
//!
//! `DROP TABLE` names the table's OID among the statistics that go (since 15). `TRUNCATE` puts a new file in the place of
//! the old one. `VACUUM FULL`, `CLUSTER` and a rewriting `ALTER TABLE` do too, by way of a table of their own that they
//! drop in the end: it is among the statistics, and its OID is the number of the file that stays. `SET TABLESPACE` moves
//! the file elsewhere.
//!
//! Source: `heap_drop_with_catalog` in `src/backend/catalog/heap.c`, `RelationSetNewRelfilenumber` in
//! `src/backend/utils/cache/relcache.c`, `make_new_heap` and `finish_heap_swap` in `src/backend/commands/cluster.c`,
//! `ATExecSetTableSpace` in `src/backend/commands/tablecmds.c`, `smgrGetPendingDeletes` in
//! `src/backend/catalog/storage.c`.

use crate::format::relations::Relation;
use crate::pg::wal_record::RelationLocator;
use crate::pg::wal_transaction::{DroppedRelation, EndRecord};

/// A table as it is followed through the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Followed {
    pub relation: DroppedRelation,
    /// Its file of rows; `None` if it has none, or if it is not known any more which one it is.
    pub file: Option<RelationLocator>,
}

/// What became of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is gone.
    Dropped,
    /// It was emptied; its next file, if that is known.
    Emptied(Option<RelationLocator>),
    /// It has its rows in another file, if it is known which.
    Moved(Option<RelationLocator>),
    /// One of these, before 15.
    Unclear,
    /// The commit does not concern it.
    Untouched,
}

impl Followed {
    /// Begins to follow a relation as a backup found it.
    pub fn of(relation: &Relation) -> Self {
        let Relation { database, oid, file, tablespace, .. } = *relation;
        let locator = RelationLocator { tablespace, database, relation: file };
        Self { relation: DroppedRelation { database, relation: oid }, file: (file != 0).then_some(locator) }
    }

    /// Returns whether a commit that drops and removes these concerns the table.
    pub fn is_in(&self, relations: &[DroppedRelation], files: &[RelationLocator]) -> bool {
        relations.contains(&self.relation) || self.file.is_some_and(|file| files.contains(&file))
    }

    /// Decides what a commit did to the table; `created` are the files of rows that its transaction made, in order.
    pub fn fate(&self, ended: &EndRecord, created: &[RelationLocator], names_relations: bool) -> Fate {
        if ended.relations.contains(&self.relation) {
            return Fate::Dropped;
        }
        let Some(place) = self.file.and_then(|file| ended.files.iter().position(|removed| *removed == file)) else {
            return Fate::Untouched;
        };
        if !names_relations {
            return if created.is_empty() { Fate::Dropped } else { Fate::Unclear };
        }
        let own = |file: &&RelationLocator| {
            let made = DroppedRelation { database: file.database, relation: file.relation };
            ended.relations.contains(&made)
        };
        let stand_ins: Vec<&RelationLocator> = created.iter().filter(own).collect();
        if !stand_ins.is_empty() {
            // The table's own comes before those of its long values; with more of them, several tables were rewritten.
            return Fate::Moved(stand_ins.first().filter(|_| stand_ins.len() <= 3).map(|file| **file));
        }
        let home = self.file.map(|file| file.tablespace);
        if !created.iter().any(|file| Some(file.tablespace) == home) {
            return Fate::Moved(created.first().copied().filter(|_| ended.files.len() <= 3));
        }
        // One new file for each old one, made in the order opposite to that of the list of files removed.
        let paired = created.len() == ended.files.len();
        Fate::Emptied(created.iter().rev().nth(place).copied().filter(|_| paired))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::wal_event::TransactionEnd;

    const fn file(relation: u32) -> RelationLocator {
        RelationLocator { tablespace: 1663, database: 5, relation }
    }

    const fn oid(relation: u32) -> DroppedRelation {
        DroppedRelation { database: 5, relation }
    }

    fn commit(relations: &[u32], files: &[u32]) -> EndRecord {
        EndRecord {
            kind: TransactionEnd::Commit,
            xid: 700,
            time: None,
            subtransactions: Vec::new(),
            files: files.iter().map(|number| file(*number)).collect(),
            relations: relations.iter().map(|number| oid(*number)).collect(),
        }
    }

    /// The table 16384, whose rows are in the file 20000.
    fn fate(ended: &EndRecord, created: &[RelationLocator]) -> Fate {
        Followed { relation: oid(16384), file: Some(file(20000)) }.fate(ended, created, true)
    }

    #[test]
    fn what_a_commit_did_is_told_by_what_goes_and_what_comes() {
        let new = [file(30000), file(30001)];
        assert_eq!(fate(&commit(&[16384, 16385], &[20000, 20001]), &[]), Fate::Dropped);
        // Another table is made in the same transaction.
        assert_eq!(fate(&commit(&[16384], &[20000]), &new), Fate::Dropped);
        // The table's new file is the first made, and the last in the list.
        assert_eq!(fate(&commit(&[], &[20001, 20000]), &new), Fate::Emptied(Some(file(30000))));
        assert_eq!(fate(&commit(&[], &[20000, 20001]), &new), Fate::Emptied(Some(file(30001))));
        assert_eq!(fate(&commit(&[], &[20000]), &new), Fate::Emptied(None));
        // Emptied, and another table dropped.
        assert_eq!(fate(&commit(&[16999], &[20000, 20009]), &new[..1]), Fate::Emptied(None));
        assert_eq!(fate(&commit(&[30000], &[20000]), &new), Fate::Moved(Some(file(30000))));
        let several = [30000, 30001, 30002, 30003].map(file);
        assert_eq!(fate(&commit(&[30000, 30001, 30002, 30003], &[20000]), &several), Fate::Moved(None));
        let elsewhere = RelationLocator { tablespace: 17000, ..file(30000) };
        assert_eq!(fate(&commit(&[], &[20000]), &[elsewhere]), Fate::Moved(Some(elsewhere)));
        assert_eq!(fate(&commit(&[16999], &[20009]), &new), Fate::Untouched);
    }

    #[test]
    fn before_fifteen_only_a_transaction_that_makes_no_file_is_known_to_drop() {
        let table = Followed { relation: oid(16384), file: Some(file(20000)) };
        let ended = EndRecord { relations: Vec::new(), ..commit(&[], &[20000]) };
        assert_eq!(table.fate(&ended, &[], false), Fate::Dropped);
        assert_eq!(table.fate(&ended, &[file(30000)], false), Fate::Unclear);
    }
}
