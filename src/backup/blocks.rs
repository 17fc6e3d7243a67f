//! Blocks of large files into frames: those that are there already are named, the others stored.

use super::copy::{CopyError, Worker};
use super::gather::Stretch;
use super::lending::Known;
use super::remains::Remaining;
use crate::format::crc;
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::Piece;
use crate::format::pack::BlockHash;
use crate::pg::page::all_zero;

/// Changed blocks of several files on their way into one frame.
#[derive(Default)]
pub(super) struct Mixed {
    raw: Vec<u8>,
    hashes: Vec<BlockHash>,
    /// Pack and frame that they will have.
    place: Option<(u32, u32)>,
}

impl Worker<'_, '_> {
    /// Takes in consecutive blocks, of which those that `unread` tells are not in `raw` but known.
    pub(super) fn blocks(
        &mut self,
        raw: &[u8],
        known: &[Option<Known>],
        unread: impl Fn(u64) -> bool,
        stretch: &mut Stretch,
    ) -> Result<(), CopyError> {
        let block_size = self.source.block_size as usize;
        self.hashes.clear();
        let (mut fresh, mut complete, mut skipped) = (0, true, 0);
        for ((number, block), known) in (0u64..).zip(raw.chunks(block_size)).zip(known) {
            let skip = unread(number);
            let hash = match known {
                Some(known) if skip => known.hash,
                _ => BlockHash::of(block),
            };
            complete &= !skip;
            skipped += if skip { block.len() as u64 } else { 0 };
            fresh += usize::from(!(skip || is_same(known, hash, block)));
            self.hashes.push(hash);
        }
        self.remaining.clear();
        if fresh > 0 && self.packs.has_remains() {
            if complete && fresh * 2 > self.hashes.len() && self.remaining_frame(raw, stretch) {
                return Ok(());
            }
            fresh -= self.find_remaining(raw, known, &unread);
        }
        if complete && fresh * 2 > self.hashes.len() {
            return self.frame(raw, stretch);
        }
        let hashes = std::mem::take(&mut self.hashes);
        let mut lent = 0;
        for (((number, block), known), hash) in (0u64..).zip(raw.chunks(block_size)).zip(known).zip(&hashes) {
            let piece = match known {
                Some(known) if unread(number) || is_same(&Some(*known), *hash, block) => {
                    lent += block.len() as u64;
                    known.piece()
                }
                _ if all_zero(block) => Piece::Zeros { len: block.len() as u64 },
                _ => match self.remaining.get(number as usize).copied().flatten() {
                    Some(found) => {
                        self.packs.take_over(found.place, block.len() as u64);
                        let Remaining { place: pack, frame, offset } = found;
                        Piece::Frames { pack, frame, offset, len: block.len() as u64 }
                    }
                    None => self.mix(block, *hash)?,
                },
            };
            stretch.crc = crc::join(stretch.crc, hash.crc, block.len() as u64);
            stretch.len += block.len() as u64;
            push(&mut stretch.pieces, piece);
        }
        self.hashes = hashes;
        self.gather.lent(lent - skipped, skipped);
        Ok(())
    }

    /// Takes a whole frame, hashed block by block, from what a backup left that was cut off; returns whether it is there.
    fn remaining_frame(&mut self, raw: &[u8], stretch: &mut Stretch) -> bool {
        let found = if all_zero(raw) { None } else { self.packs.remaining_frame(raw) };
        let Some(Remaining { place: pack, frame, offset }) = found else { return false };
        let len = raw.len() as u64;
        self.packs.take_over(pack, len);
        for (block, hash) in raw.chunks(self.source.block_size as usize).zip(&self.hashes) {
            stretch.crc = crc::join(stretch.crc, hash.crc, block.len() as u64);
        }
        stretch.len += len;
        push(&mut stretch.pieces, Piece::Frames { pack, frame, offset, len });
        true
    }

    /// Looks there for each block that would be stored; returns how many there are.
    fn find_remaining(&mut self, raw: &[u8], known: &[Option<Known>], unread: impl Fn(u64) -> bool) -> usize {
        self.packs.before_blocks();
        let blocks = (0u64..).zip(raw.chunks(self.source.block_size as usize)).zip(known).zip(&self.hashes);
        for (((number, block), known), hash) in blocks {
            let has = unread(number) || is_same(known, *hash, block) || all_zero(block);
            self.remaining.push(if has { None } else { self.packs.remaining_block(block) });
        }
        self.remaining.iter().flatten().count()
    }

    /// Puts a changed block into the frame that is shared with others.
    fn mix(&mut self, block: &[u8], hash: BlockHash) -> Result<Piece, CopyError> {
        let (pack, frame) = match self.mixed.place {
            Some(place) => place,
            None => *self.mixed.place.insert(self.packs.next_place()?),
        };
        let offset = self.mixed.raw.len() as u32;
        self.mixed.raw.extend_from_slice(block);
        self.mixed.hashes.push(hash);
        // Hashes are of consecutive blocks, so one that is shorter is the last.
        if self.mixed.raw.len() >= FRAME_BYTES || block.len() < self.source.block_size as usize {
            self.close_mixed()?;
        }
        Ok(Piece::Frames { pack, frame, offset, len: block.len() as u64 })
    }

    /// Closes the frame of changed blocks; before every other frame, since its place was given away.
    pub(super) fn close_mixed(&mut self) -> Result<(), CopyError> {
        let Some(place) = self.mixed.place.take() else { return Ok(()) };
        let appended = self.packs.put(&self.mixed.raw, &self.mixed.hashes)?;
        assert_eq!(appended, place, "a frame lies where pieces say that it does");
        self.mixed.raw.clear();
        self.mixed.hashes.clear();
        Ok(())
    }

    pub(super) fn frame(&mut self, raw: &[u8], stretch: &mut Stretch) -> Result<(), CopyError> {
        if raw.is_empty() {
            return Ok(());
        }
        let block_size = self.source.block_size as usize;
        self.hashes.clear();
        self.hashes.extend(raw.chunks(block_size).map(BlockHash::of));
        for (block, hash) in raw.chunks(block_size).zip(&self.hashes) {
            stretch.crc = crc::join(stretch.crc, hash.crc, block.len() as u64);
        }
        stretch.len += raw.len() as u64;
        if all_zero(raw) {
            push(&mut stretch.pieces, Piece::Zeros { len: raw.len() as u64 });
            return Ok(());
        }
        self.close_mixed()?;
        let (pack, frame) = self.packs.put(raw, &self.hashes)?;
        push(&mut stretch.pieces, Piece::Frames { pack, frame, offset: 0, len: raw.len() as u64 });
        Ok(())
    }
}

/// Whether the older backup has the same block. One of a frame that is to go is taken as another.
fn is_same(known: &Option<Known>, hash: BlockHash, block: &[u8]) -> bool {
    known.is_some_and(|known| !known.stale && known.hash == hash && known.len as usize == block.len())
}

/// Adds a piece, joining it with the one before where they follow on each other.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    if !pieces.last_mut().is_some_and(|last| last.join(&piece)) {
        pieces.push(piece);
    }
}
