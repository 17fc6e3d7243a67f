//! Leaves into packs, as they are filled. One that an older backup has already is not stored again.

use super::copy::CopyError;
use super::packs::{Filling, PlaceSet, Shelf};
use crate::format::Sha256;
use crate::format::leaf::{File, Piece};
use crate::format::leaf_writer::{Leaf, LeafWriter};
use crate::format::relations::{Relation, RelationLeaf, RelationWriter};
use crate::format::tables::LeafRef;

/// Leaves of an older backup that may be named again; none, for a backup that builds on none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LentLeaves<'a> {
    references: &'a [LeafRef],
    /// Packs that are not to be named again.
    stale: Option<&'a PlaceSet>,
    /// The first one that begins after every path so far.
    next: usize,
}

impl<'a> LentLeaves<'a> {
    pub fn new(references: &'a [LeafRef], stale: &'a PlaceSet) -> Self {
        Self { references, stale: Some(stale), next: 0 }
    }

    /// Whether a leaf began between the path before and this one.
    fn begins_before(&mut self, path: &[u8]) -> bool {
        let before = self.next;
        while self.references.get(self.next).is_some_and(|leaf| leaf.first.as_slice() <= path) {
            self.next += 1;
        }
        self.next > before
    }

    fn same_as(&self, digest: &Sha256, entries: u32, first: &[u8]) -> Option<&'a LeafRef> {
        let from = self.references.partition_point(|leaf| leaf.first.as_slice() < first);
        let begin_there = self.references[from..].iter().take_while(|leaf| leaf.first == first);
        let stale = |leaf: &LeafRef| self.stale.is_some_and(|stale| stale.has(leaf.pack));
        begin_there.filter(|leaf| leaf.digest == *digest && leaf.entries == entries).find(|leaf| !stale(leaf))
    }
}

/// Leaves that are stored, or named again.
struct Stored<'a> {
    packs: Filling<'a>,
    lent: LentLeaves<'a>,
    leaves: Vec<LeafRef>,
    /// Packs of the older backup that leaves and pieces name.
    named: PlaceSet,
}

impl<'a> Stored<'a> {
    fn new(shelf: &'a Shelf<'a>, limit: usize, level: i32, lent: LentLeaves<'a>) -> Self {
        Self { packs: Filling::new(shelf, limit, level), lent, leaves: Vec::new(), named: PlaceSet::default() }
    }

    fn store(&mut self, raw: &[u8], entries: u32, first: Vec<u8>) -> Result<(), CopyError> {
        let digest = Sha256::of(raw);
        let reference = match self.lent.same_as(&digest, entries, &first) {
            Some(same) => same.clone(),
            None => {
                // Leaves name packs by their places: hardly ever does another backup have the same.
                let (pack, frame) = self.packs.put(raw, &[])?;
                LeafRef { pack, frame, entries, digest, first }
            }
        };
        self.named.add(reference.pack);
        self.leaves.push(reference);
        Ok(())
    }

    fn finish(mut self) -> Result<(Vec<LeafRef>, PlaceSet), CopyError> {
        self.packs.close()?;
        Ok((self.leaves, self.named))
    }
}

/// The leaves of files and directories; their order is the caller's.
pub(super) struct FileLeaves<'a> {
    stored: Stored<'a>,
    writer: LeafWriter,
}

impl<'a> FileLeaves<'a> {
    pub fn new(shelf: &'a Shelf<'a>, limit: usize, level: i32, lent: LentLeaves<'a>) -> Self {
        Self { stored: Stored::new(shelf, limit, level, lent), writer: LeafWriter::default() }
    }

    pub fn directory(&mut self, path: &[u8], mode: u32) -> Result<(), CopyError> {
        self.begin(path)?;
        let full = self.writer.directory(path, mode);
        self.store(full)
    }

    pub fn open(&mut self, path: &[u8]) -> Result<(), CopyError> {
        self.begin(path)?;
        self.writer.open(path);
        Ok(())
    }

    /// Ends a leaf where one of the older backup ends: behind a change, leaves are the same again.
    fn begin(&mut self, path: &[u8]) -> Result<(), CopyError> {
        if !self.stored.lent.begins_before(path) {
            return Ok(());
        }
        let cut = self.writer.cut();
        self.store(cut)
    }

    pub fn piece(&mut self, piece: Piece) -> Result<(), CopyError> {
        if let Piece::Frames { pack, .. } = piece {
            self.stored.named.add(pack);
        }
        let full = self.writer.piece(piece);
        self.store(full)
    }

    pub fn close(&mut self, file: &File) -> Result<(), CopyError> {
        let full = self.writer.close(file);
        self.store(full)
    }

    fn store(&mut self, full: Option<Leaf>) -> Result<(), CopyError> {
        full.map_or(Ok(()), |leaf| self.stored.store(&leaf.raw, leaf.entries, leaf.first))
    }

    /// Stores what is left; returns where all leaves are, and which packs they and their pieces name.
    pub fn finish(mut self) -> Result<(Vec<LeafRef>, PlaceSet), CopyError> {
        let last = std::mem::take(&mut self.writer).finish();
        self.store(last)?;
        self.stored.finish()
    }
}

/// The leaves of relations.
pub(super) struct RelationLeaves<'a> {
    stored: Stored<'a>,
    writer: RelationWriter,
}

impl<'a> RelationLeaves<'a> {
    pub fn new(shelf: &'a Shelf<'a>, limit: usize, level: i32, lent: LentLeaves<'a>) -> Self {
        Self { stored: Stored::new(shelf, limit, level, lent), writer: RelationWriter::default() }
    }

    pub fn add(&mut self, relation: &Relation) -> Result<(), CopyError> {
        let full = self.writer.add(relation);
        self.store(full)
    }

    fn store(&mut self, full: Option<RelationLeaf>) -> Result<(), CopyError> {
        full.map_or(Ok(()), |leaf| self.stored.store(&leaf.raw, leaf.entries, leaf.database.to_be_bytes().to_vec()))
    }

    /// Stores what is left; returns where all leaves are, and which packs they are in.
    pub fn finish(mut self) -> Result<(Vec<LeafRef>, PlaceSet), CopyError> {
        let last = std::mem::take(&mut self.writer).finish();
        self.store(last)?;
        self.stored.finish()
    }
}
