//! What the backup that this one builds on lends it: pages that did not change, in packs that are stored already.
//!
//! A page is taken from there if the block hash of what was just read is the one in the older pack's frame table: then
//! nothing has to be known of how it came to be. Where the log, or the server's summaries of it, say which blocks changed, the
//! others are not even read, unless the file system says otherwise.

use super::changed::{ChangedBlocks, FileChanges};
use super::prior::Lent;
use super::renewal::Renewal;
use super::witness::{Times, Witness};
use crate::format::leaf::Piece;
use crate::format::pack::BlockHash;
use crate::format::tables::Tables;
use crate::pg::data_directory::RelationPath;
use crate::repo::{Block, Lane, PackReader, Packs, RepoError, Stretch};

/// Bytes of frame tables that are kept at hand.
pub(super) const CACHE_BYTES: usize = 2 << 20;

/// The backup that this one builds on, for the workers.
pub(super) struct Lending<'a> {
    pub lane: &'a Lane,
    pub tables: &'a Tables,
    pub block_size: u32,
    pub relation_segment_blocks: u32,
    /// Frames that are not lent any more, so that they can go.
    pub renewal: &'a Renewal,
    /// The only blocks that changed, if that is known.
    pub changed: Option<ChangedBlocks>,
    /// What can be said against that.
    witness: Option<Witness>,
    packs: Packs<'a>,
}

/// A block that the older backup has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub pack: u32,
    pub frame: u32,
    pub offset: u32,
    pub len: u32,
    pub hash: BlockHash,
    /// Whether its frame is to be renewed.
    pub stale: bool,
}

impl Known {
    pub fn piece(&self) -> Piece {
        Piece::Frames { pack: self.pack, frame: self.frame, offset: self.offset, len: self.len.into() }
    }
}

impl<'a> Lending<'a> {
    pub fn new(
        lane: &'a Lane,
        tables: &'a Tables,
        (block_size, relation_segment_blocks): (u32, u32),
        renewal: &'a Renewal,
        changed: Option<ChangedBlocks>,
    ) -> Self {
        let packs = Packs::new(lane, &tables.packs).keeping(CACHE_BYTES as u64);
        Self { lane, tables, block_size, relation_segment_blocks, renewal, changed, witness: None, packs }
    }

    /// The same, with the file system as a witness.
    #[must_use]
    pub fn before(self, witness: Witness) -> Self {
        Self { witness: Some(witness), ..self }
    }

    /// Whether the file system speaks against what the log says of a relation's file, which the older backup has too.
    pub fn doubts(&self, relation: &RelationPath, size: u64, times: impl FnOnce() -> Times) -> bool {
        let (Some(witness), Some(changes)) = (&self.witness, self.changes(relation, size)) else { return false };
        witness.doubts(&changes, times())
    }

    /// What changed of a relation's file; `None` if it has to be read.
    pub fn changes(&self, relation: &RelationPath, size: u64) -> Option<FileChanges<'_>> {
        // A file that does not end with a page is none that the log's summaries speak of.
        let whole_pages = size.is_multiple_of(self.block_size.into());
        self.changed.as_ref().filter(|_| whole_pages)?.of(relation, self.relation_segment_blocks)
    }

    /// Whether nothing of a relation changed.
    pub fn is_unchanged(&self, relation: &RelationPath, size: u64) -> bool {
        self.changes(relation, size).is_some_and(|changes| changes.is_empty())
    }

    /// Returns the blocks of a stretch of a file that begins at `from`, a block's beginning; `None` for those that cannot
    /// be lent.
    pub fn blocks(&self, lent: &[Lent], from: u64, len: u64) -> Result<Vec<Option<Known>>, RepoError> {
        let mut blocks = vec![None; len.div_ceil(self.block_size.into()) as usize];
        // Each frame table is looked for once.
        let mut order: Vec<&Lent> = lent.iter().collect();
        order.sort_by_key(|lent| match lent.piece {
            Piece::Frames { pack, .. } => Some(pack),
            Piece::Zeros { .. } | Piece::Inline(_) => None,
        });
        let mut open: Option<(u32, PackReader)> = None;
        for one in order {
            let Piece::Frames { pack, .. } = one.piece else { continue };
            let reader = match open.take() {
                Some((place, reader)) if place == pack => reader,
                _ => self.packs.reader(pack)?,
            };
            self.walk(&reader, one, &mut |at, known| {
                if let Some(place) = at.checked_sub(from)
                    && place.is_multiple_of(self.block_size.into())
                    && let Some(block) = blocks.get_mut((place / u64::from(self.block_size)) as usize)
                {
                    *block = Some(known);
                }
            })?;
            open = Some((pack, reader));
        }
        Ok(blocks)
    }

    /// Hands over every block that lies whole in what is lent.
    fn walk(&self, reader: &PackReader, lent: &Lent, found: &mut dyn FnMut(u64, Known)) -> Result<(), RepoError> {
        let Piece::Frames { pack, frame, offset, .. } = lent.piece else { return Ok(()) };
        let stretch = Stretch { frame, offset, skip: lent.skip, len: lent.len };
        reader.blocks(&stretch, &mut |at, block: Block| {
            let Block { frame, offset, len, hash } = block;
            let stale = self.renewal.has(pack, frame);
            found(lent.at + at, Known { pack, frame, offset, len, hash, stale });
        })
    }

    /// Opens a pack of the older backup.
    pub fn pack(&self, place: u32) -> Result<PackReader, RepoError> {
        self.packs.reader(place)
    }
}
