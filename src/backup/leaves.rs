//! Leaves into packs, as they are filled.

use super::copy::CopyError;
use super::packs::{Filling, Shelf};
use crate::format::Sha256;
use crate::format::leaf::{File, Piece};
use crate::format::leaf_writer::{Leaf, LeafWriter};
use crate::format::relations::{Relation, RelationLeaf, RelationWriter};
use crate::format::tables::LeafRef;

/// The leaves of files and directories; their order is the caller's.
pub(super) struct FileLeaves<'a> {
    packs: Filling<'a>,
    writer: LeafWriter,
    leaves: Vec<LeafRef>,
}

impl<'a> FileLeaves<'a> {
    pub fn new(shelf: &'a Shelf<'a>, limit: usize, level: i32) -> Self {
        Self { packs: Filling::new(shelf, limit, level), writer: LeafWriter::default(), leaves: Vec::new() }
    }

    pub fn directory(&mut self, path: &[u8], mode: u32) -> Result<(), CopyError> {
        let full = self.writer.directory(path, mode);
        self.store(full)
    }

    pub fn open(&mut self, path: &[u8]) {
        self.writer.open(path);
    }

    pub fn piece(&mut self, piece: Piece) -> Result<(), CopyError> {
        let full = self.writer.piece(piece);
        self.store(full)
    }

    pub fn close(&mut self, file: &File) -> Result<(), CopyError> {
        let full = self.writer.close(file);
        self.store(full)
    }

    fn store(&mut self, full: Option<Leaf>) -> Result<(), CopyError> {
        let Some(leaf) = full else { return Ok(()) };
        let (pack, frame) = self.packs.append(&leaf.raw, &[])?;
        let digest = Sha256::of(&leaf.raw);
        self.leaves.push(LeafRef { pack, frame, entries: leaf.entries, digest, first: leaf.first });
        Ok(())
    }

    /// Stores what is left and returns where all leaves are.
    pub fn finish(mut self) -> Result<Vec<LeafRef>, CopyError> {
        let last = std::mem::take(&mut self.writer).finish();
        self.store(last)?;
        self.packs.close()?;
        Ok(self.leaves)
    }
}

/// The leaves of relations.
pub(super) struct RelationLeaves<'a> {
    packs: Filling<'a>,
    writer: RelationWriter,
    leaves: Vec<LeafRef>,
}

impl<'a> RelationLeaves<'a> {
    pub fn new(shelf: &'a Shelf<'a>, limit: usize, level: i32) -> Self {
        Self { packs: Filling::new(shelf, limit, level), writer: RelationWriter::default(), leaves: Vec::new() }
    }

    pub fn add(&mut self, relation: &Relation) -> Result<(), CopyError> {
        let full = self.writer.add(relation);
        self.store(full)
    }

    fn store(&mut self, full: Option<RelationLeaf>) -> Result<(), CopyError> {
        let Some(leaf) = full else { return Ok(()) };
        let (pack, frame) = self.packs.append(&leaf.raw, &[])?;
        let (digest, first) = (Sha256::of(&leaf.raw), leaf.database.to_be_bytes().to_vec());
        self.leaves.push(LeafRef { pack, frame, entries: leaf.entries, digest, first });
        Ok(())
    }

    /// Stores what is left and returns where all leaves are.
    pub fn finish(mut self) -> Result<Vec<LeafRef>, CopyError> {
        let last = std::mem::take(&mut self.writer).finish();
        self.store(last)?;
        self.packs.close()?;
        Ok(self.leaves)
    }
}
