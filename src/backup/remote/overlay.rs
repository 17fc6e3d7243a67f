//! What changed, over the older backup: unchanged blocks are taken from there by reference.
//!
//! A block of a file is one that was sent; or else the older backup's, if it lies before the truncation and before the
//! place at which the server's summaries say that the relation was last cut off; or else zeros. The last rule is not the
//! server's own: it says nothing in the stream of blocks that were cut off, came back empty when the file grew again, and
//! were not written since. Taken from the older backup, as `pg_combinebackup` does, they bring deleted rows back (seen on
//! PostgreSQL 17.10 and 18.6).
//!
//! A block that the summaries say was written, and that was not sent, makes all that came useless: the server's list is not
//! always whole ([`super::base::changes`]).
//!
//! A block that is taken over is one whose hash the older backup's frame table has; the file's checksum is made from
//! those. A block that has none there, since it lies in a frame of small files, and one whose frame is to be renewed, is
//! read and stored again.
//!
//! Source: `GetFileBackupMethod` in `basebackup_incremental.c`, `reconstruct_from_incremental_file` in `reconstruct.c`.

use std::collections::VecDeque;

use super::super::budget::Budget;
use super::super::copy::CopyError;
use super::super::gather::Stretch;
use super::super::leaves::FileLeaves;
use super::super::lending::{Known, Lending};
use super::super::mixed::Mixed;
use super::super::packs::{Filling, Shelf};
use super::super::perform::BackupError;
use super::super::prior::{Lent, Prior};
use super::RemoteError;
use super::items::{Came, Item, no_base};
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::Piece;
use crate::format::pack::BlockHash;
use crate::format::{Sha256, crc};
use crate::pg::page::all_zero;
use crate::repo::RepoError;

/// Bytes of a file that are looked at together.
const RANGE_BYTES: u64 = 16 << 20;
/// Pieces of a file that is taken over as it is.
const FEW_PIECES: usize = 64;
/// Frames of the older backup that are kept decompressed.
const FRAMES_KEPT: usize = 4;

/// The older backup, file after file in the order of paths.
pub(super) struct Older<'a> {
    lending: &'a Lending<'a>,
    prior: Prior<'a>,
    packs: Filling<'a>,
    mixed: Mixed,
    frames: VecDeque<((u32, u32), Vec<u8>)>,
    block_size: u64,
    /// Bytes that were taken over.
    taken: u64,
}

/// A file that is being put together.
struct Built {
    crc: u32,
    at: u64,
}

fn parent(source: RepoError) -> CopyError {
    CopyError::Parent { source }
}

impl<'a> Older<'a> {
    pub fn new(lending: &'a Lending<'a>, shelf: &'a Shelf<'a>, budget: Budget, level: i32) -> Self {
        Self {
            lending,
            prior: Prior::new(lending.lane.leaves(lending.tables)),
            packs: Filling::new(shelf, budget.pack_bytes, level),
            mixed: Mixed::default(),
            frames: VecDeque::new(),
            block_size: lending.block_size.into(),
            taken: 0,
        }
    }

    /// Takes over a small file whose bytes are the same.
    pub fn same(&mut self, item: Item, leaves: &mut FileLeaves<'_>) -> Result<(u32, Option<Sha256>), BackupError> {
        let digest = item.stretches.first().and_then(|(_, stretch)| stretch.digest);
        let there = self.prior.seek(&item.path).map_err(parent)?;
        let lent = self.prior.whole(FEW_PIECES).filter(|lent| there && lent.file.digest == digest && digest.is_some());
        let lent = lent.ok_or_else(|| no_base(&item.path))?;
        lent.pieces.into_iter().try_for_each(|piece| leaves.piece(piece))?;
        self.taken += lent.file.size;
        Ok((lent.file.crc, digest))
    }

    /// Puts a file together from the blocks that changed and from those of the older backup.
    pub fn changed(&mut self, item: Item, leaves: &mut FileLeaves<'_>) -> Result<(u32, Option<Sha256>), BackupError> {
        let Item { path, size: Some(size), relation: Some(relation), stretches, came: Came::Changes(changed), .. } =
            item
        else {
            return Err(no_base(&item.path).into());
        };
        if !self.prior.seek(&path).map_err(parent)? {
            return Err(no_base(&path).into());
        }
        // Of a database that was copied or dropped since, no block counts, and the server sends its files whole.
        let limits = self.lending.changes(&relation, size).ok_or_else(|| no_base(&path))?;
        if changed.blocks.is_empty()
            && limits.is_empty()
            && let Some(lent) = self.prior.whole(FEW_PIECES)
            && lent.file.size == size
            && !lent.pieces.iter().any(|piece| self.lending.renewal.touches(piece))
        {
            lent.pieces.into_iter().try_for_each(|piece| leaves.piece(piece))?;
            self.taken += size;
            return Ok((lent.file.crc, lent.file.digest));
        }
        let mut sent = Sent::new(stretches);
        let mut numbers = changed.blocks.iter().peekable();
        let mut built = Built { crc: 0, at: 0 };
        let block_size = self.block_size;
        // What counts of the older file ends there.
        let end = u64::from(changed.truncation) * block_size;
        while built.at < size {
            let (from, to) = (built.at, size.min(built.at + RANGE_BYTES));
            let lent = self.prior.take(from, to.min(end.max(from))).map_err(parent)?;
            let known = self.lending.blocks(&lent, from, to - from).map_err(parent)?;
            let mut place = 0;
            for known in &known {
                let number = (built.at / block_size) as u32;
                let piece = if numbers.next_if_eq(&number).is_some() {
                    built.crc = crc::join(built.crc, 0, block_size);
                    sent.take(block_size).ok_or_else(|| no_base(&path))?
                } else {
                    while lent.get(place).is_some_and(|lent| lent.at + lent.len <= built.at) {
                        place += 1;
                    }
                    if limits.was_written(number) {
                        let path = String::from_utf8_lossy(&path).into_owned();
                        return Err(RemoteError::Unsent { path, block: number }.into());
                    }
                    let counts = !limits.was_cut(number);
                    self.unchanged(lent.get(place..).filter(|_| counts).unwrap_or_default(), known, &mut built)?
                };
                leaves.piece(piece)?;
                built.at += block_size;
            }
        }
        Ok((built.crc ^ changed.share, None))
    }

    /// Returns the place of a block that was not sent; `lent` begins with what the older backup has of it, if it has it.
    fn unchanged(&mut self, lent: &[Lent], known: &Option<Known>, built: &mut Built) -> Result<Piece, CopyError> {
        let block_size = self.block_size;
        let zeros = |built: &mut Built| {
            built.crc = crc::append_zeros(built.crc, block_size);
            Piece::Zeros { len: block_size }
        };
        // Whole in the older file: an incomplete block at its end was on its way to be zeros.
        let covered = lent.iter().take_while(|lent| lent.at < built.at + block_size).last();
        if lent.first().is_none_or(|first| first.at > built.at)
            || covered.is_none_or(|last| last.at + last.len < built.at + block_size)
        {
            return Ok(zeros(built));
        }
        if let Some(known) = known.filter(|known| !known.stale && u64::from(known.len) == block_size) {
            built.crc = crc::join(built.crc, known.hash.crc, block_size);
            self.taken += block_size;
            return Ok(known.piece());
        }
        let block = self.read(lent, built.at)?;
        if all_zero(&block) {
            return Ok(zeros(built));
        }
        let hash = BlockHash::of(&block);
        built.crc = crc::join(built.crc, hash.crc, block_size);
        self.mixed.add(&mut self.packs, (&block, hash), block_size as usize)
    }

    /// Reads a block of the older backup.
    fn read(&mut self, lent: &[Lent], at: u64) -> Result<Vec<u8>, CopyError> {
        let mut block = Vec::with_capacity(self.block_size as usize);
        for lent in lent {
            let here = at + block.len() as u64;
            let wanted = self.block_size - block.len() as u64;
            if wanted == 0 {
                break;
            }
            let skip = here - lent.at;
            let len = wanted.min(lent.len - skip);
            match &lent.piece {
                Piece::Zeros { .. } => block.resize(block.len() + len as usize, 0),
                Piece::Inline(bytes) => {
                    block.extend_from_slice(&bytes[(lent.skip + skip) as usize..(lent.skip + skip + len) as usize]);
                }
                Piece::Frames { pack, frame, offset, .. } => {
                    let from = u64::from(*offset) + lent.skip + skip;
                    self.read_frames((*pack, *frame), from, len, &mut block).map_err(parent)?;
                }
            }
        }
        Ok(block)
    }

    /// Reads bytes of consecutive frames, of which all but the last are whole.
    fn read_frames(
        &mut self,
        (pack, first): (u32, u32),
        mut from: u64,
        mut len: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), RepoError> {
        while len > 0 {
            let frame = first.saturating_add((from / FRAME_BYTES as u64) as u32);
            let place = (from % FRAME_BYTES as u64) as usize;
            let raw = self.frame(pack, frame)?;
            let some = raw.get(place..).unwrap_or_default();
            let some = &some[..some.len().min(len as usize)];
            if some.is_empty() {
                let problem = format!("frame {frame} ends before a piece does");
                let source = crate::format::FormatError::Nonsense { document: "frame table", problem };
                return Err(self.lending.pack(pack)?.wrong(source));
            }
            out.extend_from_slice(some);
            from += some.len() as u64;
            len -= some.len() as u64;
        }
        Ok(())
    }

    /// Returns a frame, verified and decompressed.
    fn frame(&mut self, pack: u32, frame: u32) -> Result<&[u8], RepoError> {
        match self.frames.iter().position(|(known, _)| *known == (pack, frame)) {
            Some(at) => self.frames.swap(0, at),
            None => {
                let reader = self.lending.pack(pack)?;
                let stored = reader.read(frame, frame)?;
                let full = self.frames.len() >= FRAMES_KEPT;
                let oldest = if full { self.frames.pop_back() } else { None };
                let mut raw = oldest.map_or_else(Vec::new, |(_, raw)| raw);
                reader.decode(&stored, frame, frame, &mut raw)?;
                self.frames.push_front(((pack, frame), raw));
            }
        }
        Ok(&self.frames[0].1)
    }

    /// Stores what is left; returns the bytes that were taken over.
    pub fn finish(mut self) -> Result<u64, CopyError> {
        self.mixed.close(&mut self.packs)?;
        self.packs.close()?;
        Ok(self.taken)
    }
}

/// The blocks that were sent, one after the other.
struct Sent {
    pieces: VecDeque<Piece>,
    /// Bytes of the first that were taken.
    used: u64,
}

impl Sent {
    fn new(stretches: Vec<(u64, Stretch)>) -> Self {
        Self { pieces: stretches.into_iter().flat_map(|(_, stretch)| stretch.pieces).collect(), used: 0 }
    }

    /// Takes the next bytes, which no piece but one has.
    fn take(&mut self, len: u64) -> Option<Piece> {
        let piece = self.pieces.front()?;
        let part = match piece {
            Piece::Frames { pack, frame, offset, .. } => {
                let from = u64::from(*offset) + self.used;
                let frame = frame + (from / FRAME_BYTES as u64) as u32;
                Piece::Frames { pack: *pack, frame, offset: (from % FRAME_BYTES as u64) as u32, len }
            }
            Piece::Zeros { .. } => Piece::Zeros { len },
            Piece::Inline(_) => return None,
        };
        self.used += len;
        if self.used >= piece.len() {
            self.pieces.pop_front();
            self.used = 0;
        }
        Some(part)
    }
}

#[cfg(test)]
mod tests;
