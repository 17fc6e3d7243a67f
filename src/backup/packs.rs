//! Packs being filled and stored.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::copy::CopyError;
use crate::format::frame::Compressor;
use crate::format::pack::{BlockHash, PackWriter};
use crate::format::tables::{PackRef, PackSource, PackTable};
use crate::repo::Lane;

/// Where packs go, and which are there.
pub(super) struct Shelf<'a> {
    lane: &'a Lane,
    backup: Arc<str>,
    block_size: u32,
    next: AtomicU32,
    stored: Mutex<Vec<PackRef>>,
}

impl<'a> Shelf<'a> {
    /// An empty shelf for one backup.
    pub fn new(lane: &'a Lane, backup: &str, block_size: u32) -> Self {
        Self { lane, backup: backup.into(), block_size, next: AtomicU32::new(1), stored: Mutex::default() }
    }

    fn stored(&self) -> std::sync::MutexGuard<'_, Vec<PackRef>> {
        self.stored.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns the table of all packs; their places are their numbers, from 0.
    pub fn table(self) -> PackTable {
        let mut packs = self.stored.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        packs.sort_by_key(|PackRef { source: PackSource::Lane { number, .. }, .. }| *number);
        PackTable::new(packs.into_iter().map(Some).collect())
    }
}

/// One pack at a time, in memory that is used again for the next.
pub(super) struct Filling<'a> {
    shelf: &'a Shelf<'a>,
    limit: usize,
    compressor: Compressor,
    open: Option<(u32, PackWriter)>,
    buffer: Vec<u8>,
}

impl<'a> Filling<'a> {
    /// Packs are stored when they have `limit` bytes.
    pub fn new(shelf: &'a Shelf<'a>, limit: usize, level: i32) -> Self {
        Self { shelf, limit, compressor: Compressor::new(level), open: None, buffer: Vec::new() }
    }

    /// Adds a frame and returns its pack's place and its own; the pack is stored when it is full.
    pub fn append(&mut self, raw: &[u8], hashes: &[BlockHash]) -> Result<(u32, u32), CopyError> {
        let encode = |source| CopyError::Encode { source };
        if self.open.is_none() {
            let number = self.shelf.next.fetch_add(1, Ordering::Relaxed);
            let identity = self.shelf.lane.pack_identity(&self.shelf.backup, number);
            let buffer = std::mem::take(&mut self.buffer);
            let pack = PackWriter::reusing(buffer, &identity, self.shelf.block_size).map_err(encode)?;
            self.open = Some((number, pack));
        }
        let (number, pack) = self.open.as_mut().expect("opened above");
        let place = (*number - 1, pack.append(raw, hashes, &mut self.compressor).map_err(encode)?);
        if pack.is_full(self.limit) {
            self.close()?;
        }
        Ok(place)
    }

    /// Stores what was begun.
    pub fn close(&mut self) -> Result<(), CopyError> {
        let Some((number, pack)) = self.open.take() else { return Ok(()) };
        let stored = self.shelf.lane.create_pack(&self.shelf.backup, number, pack.finish());
        let (reference, buffer) = stored.map_err(|source| CopyError::Store { source })?;
        self.buffer = buffer;
        self.shelf.stored().push(reference);
        Ok(())
    }
}
