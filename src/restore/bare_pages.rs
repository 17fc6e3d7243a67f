//! Pages of databases left out that replay would look for in vain.
//!
//! Replay reads a page that a record changes, unless the record brings the page along or begins it anew. One that is all
//! zeros it takes for missing, and a server that finds a missing page stops: `WAL contains references to invalid pages`.
//! The first change after a checkpoint brings the page along, so nearly every page of zeros is made anew before it is read;
//! but not all are. Setting a table's page all-visible does not bring it along where neither checksums nor `wal_log_hints`
//! are on; some records of hash indexes name a page only to lock it; and with `full_page_writes = off` no page is brought
//! along after the backup's end. So the log is read for the pages that are changed before they are made. Those get a page
//! that holds nothing and that is newer than every record: replay leaves such a page as it is until one makes it anew.
//!
//! Source: `XLogReadBufferForRedoExtended`, `XLogReadBufferExtended` and `log_invalid_page` in
//! `src/backend/access/transam/xlogutils.c`; `REGBUF_NO_IMAGE` in `src/include/access/xloginsert.h` and its uses. Maps of
//! free space and visibility are made on the spot (`RBM_ZERO_ON_ERROR`).

use std::collections::HashMap;
use std::ops::Range;

use super::plan::Plan;
use super::survey::{Survey, SurveyError};
use crate::catalog::LaneCatalog;
use crate::error::ErrorKind;
use crate::pg::lsn::Lsn;
use crate::pg::{BlockReference, BodyError, Record, RelationFork, RelationLocator, WalEvent};
use crate::repo::Lane;

/// Why the log could not be looked through.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// It could not be read.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// A record is of a kind that is not known.
    #[error("take the record at {at} apart")]
    Record {
        /// Where it begins.
        at: Lsn,
        /// Why not.
        source: BodyError,
    },
}

impl BareError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BareError::Survey(source) => source.kind(),
            BareError::Record { .. } => ErrorKind::Invalid,
        }
    }
}

/// Which pages are changed before they are made.
#[derive(Clone, Debug, Default)]
pub(super) struct BarePages {
    /// By database, file number, and whether it is the init fork. Not by tablespace: a page too many does no harm.
    pages: HashMap<(u32, u32, bool), Blocks>,
}

impl BarePages {
    /// Reads the log of a plan for the pages of these databases.
    pub fn find(
        lane: &Lane,
        catalog: &LaneCatalog,
        plan: &Plan,
        databases: impl Iterator<Item = u32>,
    ) -> Result<Self, BareError> {
        let survey = Survey::new(lane, catalog);
        survey.prepare(&plan.wal)?;
        let mut search = Search::of(databases);
        let (start, end) = (plan.manifest.envelope.start_lsn, plan.point.needed_before);
        for index in 0..plan.wal.len() {
            let mut failed = None;
            survey.visit(&plan.wal, index, &mut |record| {
                if failed.is_none() && record.start >= start && record.start < end {
                    failed = search.see(record).err().map(|source| BareError::Record { at: record.start, source });
                }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(search.bare)
    }

    #[cfg(test)]
    pub fn from_blocks(blocks: impl Iterator<Item = (u32, u32, u32)>) -> Self {
        let mut bare = Self::default();
        blocks.for_each(|(database, relation, block)| {
            bare.pages.entry((database, relation, false)).or_default().insert(block);
        });
        bare
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Returns those of a relation's fork that lie in a range of its blocks, in order.
    pub fn of(&self, database: u32, relation: u32, init: bool, range: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        let blocks = self.pages.get(&(database, relation, init));
        blocks.into_iter().flat_map(move |blocks| blocks.within(range.clone()))
    }
}

/// What was seen of the log so far.
#[derive(Default)]
struct Search {
    /// Each database that is left out, and each one that was copied from one file by file: the one it began as.
    origins: HashMap<u32, u32>,
    /// Pages that were made since the start.
    made: HashMap<(RelationLocator, bool), Blocks>,
    bare: BarePages,
}

impl Search {
    fn of(databases: impl Iterator<Item = u32>) -> Self {
        Self { origins: databases.map(|oid| (oid, oid)).collect(), ..Self::default() }
    }

    fn see(&mut self, record: &Record<'_>) -> Result<(), BodyError> {
        if let Some(WalEvent::DatabaseCreated { oid, copied_from: Some(from), .. }) = WalEvent::read(record) {
            // Its files are those of the other, whatever they are by then.
            if let Some(origin) = self.origins.get(&from).copied() {
                self.origins.entry(oid).or_insert(origin);
            }
        }
        record.body()?.blocks.iter().for_each(|block| self.block(block));
        Ok(())
    }

    fn block(&mut self, block: &BlockReference) {
        let Some(origin) = self.origins.get(&block.relation.database) else { return };
        let init = match block.fork {
            RelationFork::Main => false,
            RelationFork::Init => true,
            RelationFork::FreeSpaceMap | RelationFork::VisibilityMap => return,
        };
        let made = self.made.entry((block.relation, init)).or_default();
        if block.anew {
            made.insert(block.block);
        } else if !made.has(block.block) {
            self.bare.pages.entry((*origin, block.relation.relation, init)).or_default().insert(block.block);
        }
    }
}

/// A set of block numbers: a bit for each, up to the highest.
#[derive(Clone, Debug, Default)]
struct Blocks(Vec<u64>);

impl Blocks {
    fn insert(&mut self, block: u32) {
        let word = (block / 64) as usize;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (block % 64);
    }

    fn has(&self, block: u32) -> bool {
        self.0.get((block / 64) as usize).is_some_and(|word| word & (1 << (block % 64)) != 0)
    }

    fn within(&self, range: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        let end = range.end.min((self.0.len() as u64 * 64).min(u32::MAX.into()) as u32);
        (range.start..end.max(range.start)).filter(|block| self.has(*block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(database: u32, relation: u32, fork: RelationFork, block: u32, anew: bool) -> BlockReference {
        let relation = RelationLocator { tablespace: 1663, database, relation };
        BlockReference { relation, fork, block, has_image: anew, anew }
    }

    fn found(search: &Search, database: u32, relation: u32) -> Vec<u32> {
        search.bare.of(database, relation, false, 0..u32::MAX).collect()
    }

    #[test]
    fn a_page_is_bare_that_is_changed_before_it_is_made() {
        let mut search = Search::of([16400].into_iter());
        let main = RelationFork::Main;
        for seen in [
            block(16400, 16500, main, 7, true),
            block(16400, 16500, main, 7, false),
            block(16400, 16500, main, 200_000, false),
            block(16400, 16500, main, 200_000, true),
            block(16400, 16500, main, 3, false),
            // A map, a file of the same number elsewhere, a database that is restored.
            block(16400, 16500, RelationFork::VisibilityMap, 0, false),
            block(16400, 16500, RelationFork::FreeSpaceMap, 0, false),
            block(16401, 16500, main, 9, false),
        ] {
            search.block(&seen);
        }
        assert_eq!(found(&search, 16400, 16500), [3, 200_000]);
        assert_eq!(search.bare.of(16400, 16500, false, 4..200_000).count(), 0);
        assert_eq!(search.bare.of(16400, 16500, false, 3..4).collect::<Vec<_>>(), [3]);
        assert_eq!((found(&search, 16401, 16500), found(&search, 16400, 16501)), (vec![], vec![]));
    }

    #[test]
    fn the_init_fork_and_another_tablespace_are_counted_apart() {
        let mut search = Search::of([16400].into_iter());
        search.block(&block(16400, 16500, RelationFork::Main, 0, true));
        search.block(&block(16400, 16500, RelationFork::Init, 0, false));
        assert!(found(&search, 16400, 16500).is_empty());
        assert_eq!(search.bare.of(16400, 16500, true, 0..1).collect::<Vec<_>>(), [0]);
        // Made in one tablespace is not made in the other.
        let mut moved = block(16400, 16500, RelationFork::Main, 0, false);
        moved.relation.tablespace = 16390;
        search.block(&moved);
        assert_eq!(found(&search, 16400, 16500), [0]);
    }

    #[test]
    fn a_database_that_is_copied_file_by_file_asks_for_the_pages_of_the_one_it_is_made_of() {
        let mut search = Search::of([16400].into_iter());
        search.block(&block(16400, 16500, RelationFork::Main, 1, true));
        search.origins.insert(16900, 16400);
        search.block(&block(16900, 16500, RelationFork::Main, 1, false));
        search.block(&block(16900, 16500, RelationFork::Main, 2, true));
        // Made in the original after the copy: one page too many, which does no harm.
        assert_eq!((found(&search, 16400, 16500), found(&search, 16900, 16500)), (vec![1], vec![]));
    }
}
