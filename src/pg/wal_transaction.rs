//! The record with which a transaction ends, taken apart: whose it is, which files go with it, and which relations it
//! dropped.
//!
//! A dropped table and a rewritten one both remove a file. What tells them apart, since 15, is the list of statistics that
//! the record drops: it names a relation by its OID only if the relation itself goes.
//!
//! Source: `xl_xact_commit` and its neighbours in `src/include/access/xact.h`, `ParseCommitRecord` and
//! `ParseAbortRecord` in `src/backend/access/rmgrdesc/xactdesc.c`; `xl_xact_stats_item` and `pgstat_drop_relation`
//! in `src/backend/utils/activity/pgstat_relation.c`; `xl_smgr_create` in `src/include/catalog/storage_xlog.h`.

use serde::{Deserialize, Serialize};

use super::wal_page::{u32_at, u64_at};
use super::{PgTime, Record, RelationLocator, TransactionEnd, WalMagic};

/// The end of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndRecord {
    /// How it ended.
    pub kind: TransactionEnd,
    /// The transaction: of a prepared one, its own id, not that of the session that ended it.
    pub xid: u32,
    /// When, by the server's clock; `None` if the clock was outside the years 0 to 9999.
    pub time: Option<PgTime>,
    /// Its subtransactions that had ids.
    pub subtransactions: Vec<u32>,
    /// Files that are removed with it.
    pub files: Vec<RelationLocator>,
    /// Relations whose statistics go: of a commit, those that it dropped. Always empty before 15, which does not say.
    pub relations: Vec<DroppedRelation>,
}

/// A relation that is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DroppedRelation {
    /// OID of its database; 0 for a shared one.
    pub database: u32,
    /// Its own OID.
    pub relation: u32,
}

/// Flags of the record's own, and of its `xinfo`.
const HAS_FLAGS: u8 = 0x80;
const DATABASE: u32 = 1 << 0;
const SUBTRANSACTIONS: u32 = 1 << 1;
const FILES: u32 = 1 << 2;
const INVALIDATIONS: u32 = 1 << 3;
const TWO_PHASE: u32 = 1 << 4;
const STATISTICS: u32 = 1 << 8;
/// `PGSTAT_KIND_RELATION`, the same in 15 to 18.
const RELATION_STATISTICS: u32 = 2;

impl EndRecord {
    /// Reads the end of a transaction; `None` for another kind of record, or one that is too short for what it announces.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        if record.resource_manager != 1 {
            return None;
        }
        Self::decode(record.info, record.xid, record.magic, record.body().ok()?.main)
    }

    /// As [`EndRecord::read`], of the main data.
    pub(super) fn decode(info: u8, xid: u32, magic: WalMagic, main: &[u8]) -> Option<Self> {
        let kind = match info & 0x70 {
            0x00 => TransactionEnd::Commit,
            0x20 => TransactionEnd::Abort,
            0x30 => TransactionEnd::CommitPrepared,
            0x40 => TransactionEnd::AbortPrepared,
            _ => return None,
        };
        let mut fields = Fields { main, at: 0 };
        let time = PgTime::from_micros(fields.u64()?.cast_signed());
        let flags = if info & HAS_FLAGS != 0 { fields.u32()? } else { 0 };
        let mut end = Self { kind, xid, time, subtransactions: Vec::new(), files: Vec::new(), relations: Vec::new() };
        if flags & DATABASE != 0 {
            fields.skip(8)?;
        }
        if flags & SUBTRANSACTIONS != 0 {
            end.subtransactions = fields.list(4, |entry| u32_at(entry, 0))?;
        }
        if flags & FILES != 0 {
            end.files = fields.list(12, locator)?;
        }
        if flags & STATISTICS != 0 {
            // 18 widened the object's number.
            let wide = magic.major() >= Some(18);
            let items = fields.list(if wide { 16 } else { 12 }, |entry| {
                let high = if wide { u32_at(entry, 12) } else { 0 };
                let dropped = DroppedRelation { database: u32_at(entry, 4), relation: u32_at(entry, 8) };
                (u32_at(entry, 0) == RELATION_STATISTICS && high == 0).then_some(dropped)
            })?;
            end.relations = items.into_iter().flatten().collect();
        }
        if flags & INVALIDATIONS != 0 {
            fields.list(16, |_| ())?;
        }
        let prepared = matches!(kind, TransactionEnd::CommitPrepared | TransactionEnd::AbortPrepared);
        if prepared {
            end.xid = if flags & TWO_PHASE != 0 { fields.u32()? } else { return None };
        }
        Some(end)
    }

    /// Returns whether the transaction, or one of its subtransactions, has this id.
    pub fn is(&self, xid: u32) -> bool {
        self.xid == xid || self.subtransactions.contains(&xid)
    }
}

/// Returns the files that are removed with the end of a transaction, of which the beginning of the main data is at hand;
/// `None` for another kind of record, or if the list is not all there.
pub(super) fn removed_files(info: u8, main: &[u8]) -> Option<Vec<RelationLocator>> {
    if !matches!(info & 0x70, 0x00 | 0x20 | 0x30 | 0x40) {
        return None;
    }
    let mut fields = Fields { main, at: 0 };
    fields.skip(8)?;
    let flags = if info & HAS_FLAGS != 0 { fields.u32()? } else { 0 };
    if flags & DATABASE != 0 {
        fields.skip(8)?;
    }
    if flags & SUBTRANSACTIONS != 0 {
        fields.list(4, |_| ())?;
    }
    if flags & FILES != 0 { fields.list(12, locator) } else { Some(Vec::new()) }
}

/// Reads the file of rows that a record creates; `None` for every other record.
pub fn created_file(record: &Record<'_>) -> Option<RelationLocator> {
    const STORAGE: u8 = 2;
    const CREATE: u8 = 0x10;
    if record.resource_manager != STORAGE || record.kind() != CREATE {
        return None;
    }
    let main = record.body().ok()?.main;
    let entry = main.get(..16)?;
    (u32_at(entry, 12) == 0).then(|| locator(entry))
}

pub(super) fn locator(entry: &[u8]) -> RelationLocator {
    RelationLocator { tablespace: u32_at(entry, 0), database: u32_at(entry, 4), relation: u32_at(entry, 8) }
}

/// The main data, read from its start.
struct Fields<'a> {
    main: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(bytes)?;
        let taken = self.main.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.take(bytes).map(|_| ())
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32_at(bytes, 0))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|bytes| u64_at(bytes, 0))
    }

    /// Reads a count and so many entries.
    fn list<T>(&mut self, bytes: usize, read: impl Fn(&[u8]) -> T) -> Option<Vec<T>> {
        let entries = usize::try_from(self.u32()?).ok()?.checked_mul(bytes)?;
        Some(self.take(entries)?.chunks_exact(bytes).map(read).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn every_list_is_read_and_the_prepared_id_behind_them() {
        // Time, flags, database, two subtransactions, one file, two statistics, one invalidation, id.
        let head = [5, 0, 0b1_0001_1111, 1, 2, 2, 31, 32, 1, 1663, 5, 16390];
        let fifteen = [&head[..], &[2, 2, 5, 16384, 3, 5, 16385, 1, 1, 2, 3, 4, 4242]].concat();
        let eighteen = [&head[..], &[2, 2, 5, 16384, 0, 3, 5, 16385, 0, 1, 1, 2, 3, 4, 4242]].concat();
        for (magic, main) in [(0xD110, words(&fifteen)), (0xD118, words(&eighteen))] {
            let end = EndRecord::decode(0x80 | 0x30, 700, WalMagic::new(magic), &main).expect("whole");
            assert_eq!(
                (end.kind, end.xid, end.subtransactions.as_slice()),
                (TransactionEnd::CommitPrepared, 4242, &[31, 32][..])
            );
            assert_eq!(end.files, [RelationLocator { tablespace: 1663, database: 5, relation: 16390 }]);
            // The entry of kind 3 is a function.
            assert_eq!(end.relations, [DroppedRelation { database: 5, relation: 16384 }]);
            assert!(end.is(31) && end.is(4242) && !end.is(700));
        }
    }

    #[test]
    fn a_list_longer_than_the_record_is_refused() {
        for main in [words(&[5, 0, SUBTRANSACTIONS, 3, 1, 2]), words(&[5, 0, FILES, u32::MAX]), words(&[5])] {
            assert_eq!(EndRecord::decode(0x80, 700, WalMagic::new(0xD110), &main), None);
        }
    }

    proptest! {
        #[test]
        fn any_main_data_is_read_or_refused(info: u8, main in prop::collection::vec(any::<u8>(), 0..120)) {
            for magic in [0xD10D, 0xD118] {
                let _ = EndRecord::decode(info, 700, WalMagic::new(magic), &main);
            }
        }
    }
}
