//! The moment before a database or a tablespace was dropped.
//!
//! Their files go before the transaction that drops them commits. A database's row is marked invalid first, in place, which
//! no rollback takes back: recovery that ends after that mark brings a database that nobody can connect to. So recovery
//! ends before the mark; of a tablespace, which is empty then, before the record that removes its directory.
//!
//! Source: `dropdb` in `src/backend/commands/dbcommands.c` (the mark since 11.21, 12.16, 13.12, 14.9 and 15.4),
//! `DropTableSpace` in `src/backend/commands/tablespace.c`; `xl_heap_delete` and `xl_heap_inplace` in
//! `src/include/access/heapam_xlog.h`.

use super::{Answer, Candidate, Planner};
use crate::catalog::Branch;
use crate::format::manifest::Manifest;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::wal_event::WalEvent;
use crate::pg::wal_record::{Record, RelationLocator};
use crate::restore::glance::Glance;
use crate::restore::refusal::RefusalReason;
use crate::restore::survey::{FoundRecord, SurveyError};
use crate::restore::target::Lost;

/// Resource managers of databases, tablespaces and rows.
const DATABASES: u8 = 4;
const TABLESPACES: u8 = 5;
const ROWS: u8 = 10;
/// Kinds of the records of rows.
const DELETE: u8 = 0x10;
const IN_PLACE: u8 = 0x70;
const KINDS: u8 = 0x70;
/// The tablespace of relations that all databases share.
const GLOBAL: u32 = 1664;
/// Where the mark is looked for before the row's deletion, which follows it at once.
const SEGMENTS_BEFORE: usize = 1;

/// A row of a relation that all databases share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    relation: RelationLocator,
    block: u32,
    offset: u16,
}

impl Planner<'_> {
    /// Finds the drop of what had this name, or number, when a backup began.
    pub(super) fn before_loss(&self, branch: &Branch, lost: &Lost) -> Answer<Candidate> {
        let mut refusal = RefusalReason::UnknownLost { what: lost.to_string() };
        for manifest in self.backups(branch) {
            let Some(oid) = number_of(manifest, lost) else { continue };
            let log = self.log(branch, manifest)?;
            let found = match lost {
                Lost::Database(_) => self.database_drop(&log.segments, oid)?,
                Lost::Tablespace(_) => self.tablespace_drop(&log.segments, oid)?,
            };
            let Some(record) = found.filter(|record| log.counts(record)) else {
                if let Some(reason) = &log.ends {
                    return Ok(Err(reason.clone()));
                }
                refusal = RefusalReason::NotLost { what: lost.to_string() };
                continue;
            };
            if record.start < manifest.envelope.stop_lsn {
                refusal = RefusalReason::BeforeBackup { earliest: manifest.envelope.stop_lsn };
                continue;
            }
            let point = self.before(&log, record)?;
            let (branch, backup) = (branch.clone(), manifest.envelope.backup.clone());
            return Ok(Ok(Candidate { branch, backup, chain: log.segments, point, removed: None }));
        }
        Ok(Err(refusal))
    }

    /// Returns the first record that must not be replayed if a database is to stay.
    fn database_drop(&self, chain: &[SegmentName], oid: u32) -> Result<Option<FoundRecord>, SurveyError> {
        let dropped = |record: &Record<'_>| WalEvent::read(record) == Some(WalEvent::DatabaseDropped { oid });
        let hinted = |name| {
            let facts = self.survey.facts(name)?;
            Ok(facts.truncated || facts.databases.iter().any(|fact| fact.oid == oid && fact.copied_from.is_none()))
        };
        let Some((index, xid, record)) = self.first(chain, DATABASES, hinted, dropped)? else { return Ok(None) };
        Ok(Some(self.mark(chain, index, xid, record.start)?.unwrap_or(record)))
    }

    fn tablespace_drop(&self, chain: &[SegmentName], oid: u32) -> Result<Option<FoundRecord>, SurveyError> {
        let dropped = |record: &Record<'_>| WalEvent::read(record) == Some(WalEvent::TablespaceDropped { oid });
        let hinted = |name| {
            let facts = self.survey.facts(name)?;
            Ok(facts.truncated || facts.tablespaces_dropped.contains(&oid))
        };
        Ok(self.first(chain, TABLESPACES, hinted, dropped)?.map(|(_, _, record)| record))
    }

    /// Returns the first record of a chain that is `wanted`, with its segment's place and its transaction.
    fn first(
        &self,
        chain: &[SegmentName],
        manager: u8,
        hinted: impl Fn(SegmentName) -> Result<bool, SurveyError>,
        wanted: impl Fn(&Record<'_>) -> bool,
    ) -> Result<Option<(usize, u32, FoundRecord)>, SurveyError> {
        for index in self.survey.worth(chain, &[manager], Glance::may_lose) {
            if !hinted(chain[index])? && !self.survey.enters_with(&[manager], chain, index)? {
                continue;
            }
            let mut found = None;
            self.survey.visit(chain, index, &mut |record| {
                if found.is_none() && wanted(record) {
                    let place = FoundRecord { start: record.start, end: record.end, time: None };
                    found = Some((index, record.xid, place));
                }
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Returns the record that marks a database invalid, before the transaction that drops it deletes its row; `None` if
    /// the server was too old to make one.
    fn mark(
        &self,
        chain: &[SegmentName],
        index: usize,
        xid: u32,
        drop: Lsn,
    ) -> Result<Option<FoundRecord>, SurveyError> {
        let mut row: Option<(Row, Lsn)> = None;
        let mut left = SEGMENTS_BEFORE;
        for index in (0..=index).rev() {
            let (mut deleted, mut marks) = (None, Vec::new());
            self.survey.visit(chain, index, &mut |record| {
                if record.resource_manager != ROWS || record.start >= drop {
                    return;
                }
                match record.info & KINDS {
                    DELETE if record.xid == xid => {
                        deleted = row_of(record, 4).map(|row| (row, record.start)).or(deleted)
                    }
                    IN_PLACE => {
                        let place = FoundRecord { start: record.start, end: record.end, time: None };
                        marks.extend(row_of(record, 0).map(|row| (row, place)));
                    }
                    _ => {}
                }
            })?;
            let found_here = row.is_none();
            row = row.or(deleted);
            let Some((row, at)) = row else { continue };
            if let Some((_, mark)) = marks.iter().rfind(|(marked, mark)| *marked == row && mark.start < at) {
                return Ok(Some(*mark));
            }
            if !found_here {
                left -= 1;
            }
            if left == 0 {
                break;
            }
        }
        Ok(None)
    }
}

/// Returns the row that a record changes, if it is one of a shared relation; its place on the page is at `at` in the
/// record's own data.
fn row_of(record: &Record<'_>, at: usize) -> Option<Row> {
    let body = record.body().ok()?;
    let block = body.blocks.first()?;
    let offset = u16::from_le_bytes(body.main.get(at..at + 2)?.try_into().ok()?);
    let shared = block.relation.tablespace == GLOBAL && block.relation.database == 0;
    shared.then_some(Row { relation: block.relation, block: block.block, offset })
}

/// Returns the number of what is lost, as a backup knows it.
fn number_of(manifest: &Manifest, lost: &Lost) -> Option<u32> {
    let root = &manifest.root;
    match lost {
        Lost::Database(name) => root.databases.iter().find(|one| one.name == *name).map(|one| one.oid),
        // Its name is in the database; a backup knows its number and its place.
        Lost::Tablespace(text) => {
            let is_it = |oid: u32, path: &str| text.parse() == Ok(oid) || path == text;
            root.tablespaces.iter().find(|one| is_it(one.oid, &one.path)).map(|one| one.oid)
        }
    }
}
