//! Blocks that changed since an earlier backup, as the server's summaries of its log name them, or the archived log does.
//!
//! Source: `src/common/blkreftable.c`, and `GetFileBackupMethod` in `src/backend/backup/basebackup_incremental.c`, whose
//! rules these are: a database that was copied or dropped counts as new, blocks from a truncation on as changed.

use std::collections::BTreeMap;

use crate::pg::data_directory::RelationPath;
use crate::pg::relation_file::Fork;
use crate::pg::wal_changes::RelationChanges;
use crate::pg::wal_record::RelationLocator;
use crate::pg::wal_summary::ChangedBlock;

/// Blocks in one chunk of a relation: what one bitmap covers.
const CHUNK_BLOCKS: u32 = 1 << 16;
/// Numbers of changed blocks that take as much as a bitmap.
const CHUNK_LIST: usize = (CHUNK_BLOCKS / 16) as usize;

/// Changed blocks of the main forks: at most a bit for each block of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct ChangedBlocks {
    relations: BTreeMap<(u32, u32, u32), Relation>,
}

#[derive(Clone, Debug, Default)]
struct Relation {
    limit: Option<u32>,
    chunks: BTreeMap<u32, Chunk>,
}

#[derive(Clone, Debug)]
enum Chunk {
    List(Vec<u16>),
    Bits(Box<[u64]>),
}

impl ChangedBlocks {
    /// Takes in a row. Rows of other forks are of no use: those are compared by what they hold.
    pub fn add(&mut self, row: ChangedBlock) {
        if row.fork != 0 {
            return;
        }
        let relation = self.relations.entry((row.tablespace, row.database, row.relation)).or_default();
        if row.limit {
            relation.limit = Some(relation.limit.map_or(row.block, |limit| limit.min(row.block)));
        } else {
            let chunk = relation.chunks.entry(row.block / CHUNK_BLOCKS).or_insert_with(|| Chunk::List(Vec::new()));
            chunk.add((row.block % CHUNK_BLOCKS) as u16);
        }
    }

    /// Takes in where a relation was cut off: blocks from there on that changed before are no more. Rows have to come in the
    /// order of the log.
    pub fn cut(&mut self, row: ChangedBlock) {
        self.add(ChangedBlock { limit: true, ..row });
        let relation = self.relations.get_mut(&(row.tablespace, row.database, row.relation));
        if let Some(relation) = relation.filter(|_| row.fork == 0) {
            relation.chunks.retain(|chunk, _| chunk * CHUNK_BLOCKS < row.block);
            if let Some(chunk) = relation.chunks.get_mut(&(row.block / CHUNK_BLOCKS)) {
                chunk.clear_from((row.block % CHUNK_BLOCKS) as u16);
            }
        }
    }

    /// Takes in what a segment of the log changes of a relation.
    pub fn add_relation(&mut self, changes: &RelationChanges) {
        let RelationLocator { tablespace, database, relation } = changes.relation;
        let row = |block, limit| ChangedBlock { tablespace, database, relation, fork: 0, block, limit };
        changes.limit.into_iter().for_each(|limit| self.add(row(limit, true)));
        for run in &changes.runs {
            (run.first..run.first.saturating_add(run.len)).for_each(|block| self.add(row(block, false)));
        }
    }

    /// Returns what changed of the file of a relation; `None` if it has to be read whole, whatever changed.
    pub fn of(&self, path: &RelationPath, segment_blocks: u32) -> Option<FileChanges<'_>> {
        if path.file.fork != Fork::Main || path.file.temporary() {
            return None;
        }
        let (tablespace, database) = (path.tablespace, path.database);
        if self.relations.contains_key(&(tablespace, database, 0)) {
            return None;
        }
        let first = path.file.first_block(segment_blocks)?;
        Some(FileChanges { relation: self.relations.get(&(tablespace, database, path.file.oid)), first })
    }
}

impl Chunk {
    fn add(&mut self, block: u16) {
        match self {
            Chunk::Bits(bits) => bits[usize::from(block) / 64] |= 1 << (block % 64),
            Chunk::List(blocks) => {
                if let Err(at) = blocks.binary_search(&block) {
                    blocks.insert(at, block);
                }
                if blocks.len() > CHUNK_LIST {
                    let mut bits = vec![0u64; CHUNK_BLOCKS as usize / 64].into_boxed_slice();
                    blocks.iter().for_each(|block| bits[usize::from(*block) / 64] |= 1 << (block % 64));
                    *self = Chunk::Bits(bits);
                }
            }
        }
    }

    fn clear_from(&mut self, first: u16) {
        match self {
            Chunk::Bits(bits) => {
                (first..=u16::MAX).for_each(|block| bits[usize::from(block) / 64] &= !(1 << (block % 64)))
            }
            Chunk::List(blocks) => blocks.truncate(blocks.partition_point(|block| *block < first)),
        }
    }

    fn has(&self, block: u16) -> bool {
        match self {
            Chunk::Bits(bits) => bits[usize::from(block) / 64] & (1 << (block % 64)) != 0,
            Chunk::List(blocks) => blocks.binary_search(&block).is_ok(),
        }
    }
}

/// What changed of one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileChanges<'a> {
    relation: Option<&'a Relation>,
    /// Number of the file's first block in its relation.
    first: u32,
}

impl FileChanges<'_> {
    /// Whether nothing of the relation changed, in this file or another.
    pub fn is_empty(&self) -> bool {
        self.relation.is_none()
    }

    /// Whether a block of the file changed, counted from the file's first.
    pub fn has(&self, block: u32) -> bool {
        self.was_cut(block) || self.was_written(block)
    }

    /// Whether the relation was cut off at the block or before it.
    pub fn was_cut(&self, block: u32) -> bool {
        let block = self.first.checked_add(block);
        self.relation
            .is_some_and(|relation| relation.limit.is_some_and(|limit| block.is_none_or(|block| block >= limit)))
    }

    /// Whether the block was written, since the relation was last cut off at it or before it.
    pub fn was_written(&self, block: u32) -> bool {
        let Some(relation) = self.relation else { return false };
        let Some(block) = self.first.checked_add(block) else { return true };
        relation.chunks.get(&(block / CHUNK_BLOCKS)).is_some_and(|chunk| chunk.has((block % CHUNK_BLOCKS) as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::relation_file::RelationFile;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const SEGMENT: u32 = 131_072;

    fn row(relation: u32, block: u32) -> ChangedBlock {
        ChangedBlock { tablespace: 1663, database: 5, relation, fork: 0, block, limit: false }
    }

    fn path(name: &str) -> RelationPath {
        let file = RelationFile::parse(name.as_bytes()).expect("a relation's file");
        RelationPath { tablespace: 1663, database: 5, file }
    }

    #[test]
    fn only_what_a_summary_vouches_for_goes_unread() {
        let mut changed = ChangedBlocks::default();
        changed.add(row(100, 7));
        changed.add(row(100, SEGMENT + 3));
        changed.add(ChangedBlock { limit: true, ..row(101, 10) });
        changed.add(ChangedBlock { limit: true, ..row(101, 12) });
        changed.add(ChangedBlock { fork: 2, ..row(102, 1) });
        let of = |name: &str| changed.of(&path(name), SEGMENT);
        let has = |name: &str, block| of(name).expect("vouched for").has(block);
        assert!(has("100", 7) && !has("100", 8) && !has("100", 3));
        // Blocks are counted through all files of a relation.
        assert!(has("100.1", 3) && !has("100.1", 7));
        // From the lowest truncation on.
        assert!(!has("101", 9) && has("101", 10) && has("101", 4000));
        assert!(of("102").is_some_and(|changes| changes.is_empty()));
        // Maps are not kept up by the log; what an unlogged relation begins with is too small to matter.
        for other in ["100_fsm", "100_vm", "100_init"] {
            assert!(of(other).is_none(), "{other}");
        }
    }

    #[test]
    fn what_was_written_counts_until_the_relation_is_cut_off_before_it() {
        for marks in [1, CHUNK_LIST as u32 + 10] {
            let mut changed = ChangedBlocks::default();
            let marked = [0, 5, 8].into_iter().chain(100..100 + marks).chain([CHUNK_BLOCKS + 1, 3 * CHUNK_BLOCKS]);
            marked.clone().for_each(|block| changed.add(row(100, block)));
            changed.add(row(101, 9));
            let cut = |changed: &mut ChangedBlocks, block| changed.cut(ChangedBlock { limit: true, ..row(100, block) });
            cut(&mut changed, 2 * CHUNK_BLOCKS);
            let written =
                |changed: &ChangedBlocks, block| changed.of(&path("100"), u32::MAX).expect("one").was_written(block);
            marked.clone().for_each(|block| assert_eq!(written(&changed, block), block < 2 * CHUNK_BLOCKS, "{block}"));
            cut(&mut changed, 5);
            marked.for_each(|block| assert_eq!(written(&changed, block), block < 5, "{block}"));
            // It grows again.
            changed.add(row(100, 7));
            let file = changed.of(&path("100"), SEGMENT).expect("vouched for");
            assert!(
                file.was_written(7) && !file.was_written(8) && file.was_cut(7) && file.was_cut(8) && !file.was_cut(4)
            );
            assert!(file.has(7) && file.has(8) && !file.has(4));
            changed.cut(ChangedBlock { fork: 2, limit: true, ..row(101, 0) });
            assert!(changed.of(&path("101"), SEGMENT).is_some_and(|file| file.was_written(9) && !file.was_cut(9)));
        }
    }

    #[test]
    fn a_database_that_was_copied_or_dropped_is_read_whole() {
        let mut changed = ChangedBlocks::default();
        changed.add(ChangedBlock { limit: true, ..row(0, 0) });
        assert!(changed.of(&path("100"), SEGMENT).is_none());
        let elsewhere = RelationPath { database: 6, ..path("100") };
        assert!(changed.of(&elsewhere, SEGMENT).is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn blocks_are_those_that_were_added(blocks in proptest::collection::vec(0u32..200_000, 0..9000)) {
            let mut changed = ChangedBlocks::default();
            blocks.iter().for_each(|block| changed.add(row(100, *block)));
            let expected: BTreeSet<u32> = blocks.into_iter().collect();
            for (name, first) in [("100", 0), ("100.1", SEGMENT)] {
                let found = changed.of(&path(name), SEGMENT).expect("vouched for");
                for block in (0..70_000).chain(SEGMENT - 10..SEGMENT) {
                    prop_assert_eq!(found.has(block), expected.contains(&(first + block)));
                }
            }
        }
    }
}
