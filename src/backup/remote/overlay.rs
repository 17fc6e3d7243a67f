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
use std::sync::Arc;

use super::super::budget::Budget;
use super::super::changed::FileChanges;
use super::super::copy::CopyError;
use super::super::gather::Stretch;
use super::super::lending::{Known, Lending};
use super::super::mixed::Mixed;
use super::super::packs::{Filling, Shelf};
use super::super::perform::BackupError;
use super::super::prior::{Lent, LentFile, Prior};
use super::RemoteError;
use super::items::{Came, Item, no_base};
use super::older_blocks::{OlderBlocks, side_by_side};
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::Piece;
use crate::format::pack::BlockHash;
use crate::repo::RepoError;

/// Bytes of a file that are looked at together.
pub(super) const RANGE_BYTES: u64 = 4 << 20;
/// Pieces of a file that is taken over as it is.
const FEW_PIECES: usize = 64;

/// The older backup, file after file in the order of paths.
pub(super) struct Older<'a> {
    lending: &'a Lending<'a>,
    prior: Prior<'a>,
    packs: Filling<'a>,
    mixed: Mixed,
    pub block_size: u64,
    /// Bytes that were taken over.
    taken: u64,
}

/// A file that changed, stretch by stretch.
pub(super) struct Ranges<'a> {
    path: Arc<[u8]>,
    limits: FileChanges<'a>,
    at: u64,
    size: u64,
    /// What counts of the older file ends there.
    end: u64,
    /// Numbers of the blocks that were sent, rising, and those blocks.
    numbers: std::iter::Peekable<std::vec::IntoIter<u32>>,
    sent: Sent,
}

/// A stretch of a file that changed: what was sent of it, and what the older backup has.
pub(super) struct Range<'a> {
    path: Arc<[u8]>,
    limits: FileChanges<'a>,
    from: u64,
    to: u64,
    sent: Vec<(u32, Piece)>,
    lent: Vec<Lent>,
}

/// What becomes of a block.
pub(super) enum Choice {
    /// It was sent.
    Sent(Piece),
    Zeros,
    /// The older backup's, by reference.
    Known(Known),
    /// The older backup's, which has to be read: its number among those.
    Read(usize),
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
            block_size: lending.block_size.into(),
            taken: 0,
        }
    }

    /// Takes over a small file whose bytes are the same.
    pub fn same(&mut self, item: &Item) -> Result<LentFile, BackupError> {
        let digest = item.stretches.first().and_then(|(_, stretch)| stretch.digest);
        let there = self.prior.seek(&item.path).map_err(parent)?;
        let lent = self.prior.whole(FEW_PIECES).filter(|lent| there && lent.file.digest == digest && digest.is_some());
        let lent = lent.ok_or_else(|| no_base(&item.path))?;
        self.taken += lent.file.size;
        Ok(lent)
    }

    /// Goes to a file of which changes came; returns it if there are none.
    pub fn unchanged_file(&mut self, item: &Item) -> Result<Option<LentFile>, BackupError> {
        let (Came::Changes(changed), Some(size)) = (&item.came, item.size) else { return Ok(None) };
        let there = self.prior.seek(&item.path).map_err(parent)?;
        let limits = self.limits(item).filter(|_| there).ok_or_else(|| no_base(&item.path))?;
        if !changed.blocks.is_empty() || !limits.is_empty() {
            return Ok(None);
        }
        let whole = self.prior.whole(FEW_PIECES).filter(|lent| lent.file.size == size);
        let whole = whole.filter(|lent| !lent.pieces.iter().any(|piece| self.lending.renewal.touches(piece)));
        self.taken += whole.as_ref().map_or(0, |lent| lent.file.size);
        Ok(whole)
    }

    /// What the server's log says of a file. None of which changes could count: of a database that was copied or dropped since
    /// and of a relation that was cut off before the file, the server sends files whole.
    fn limits(&self, item: &Item) -> Option<FileChanges<'a>> {
        let lending: &'a Lending<'a> = self.lending;
        lending.changes(item.relation.as_ref()?, item.size?).filter(|limits| !limits.was_cut(0))
    }

    /// Puts a file together from the blocks that changed and from those of the older backup; it was gone to.
    pub fn ranges(&self, item: Item) -> Result<Ranges<'a>, BackupError> {
        let limits = self.limits(&item);
        let Item { path, size: Some(size), stretches, came: Came::Changes(changed), .. } = item else {
            return Err(no_base(&item.path).into());
        };
        let Some(limits) = limits else { return Err(no_base(&path).into()) };
        let numbers: Vec<u32> = changed.blocks.iter().collect();
        Ok(Ranges {
            path,
            limits,
            at: 0,
            size,
            end: u64::from(changed.truncation) * self.block_size,
            numbers: numbers.into_iter().peekable(),
            sent: Sent::new(stretches),
        })
    }

    /// How many frames a pack of the older backup has.
    pub fn frames_in(&self, pack: u32) -> Option<u32> {
        self.lending.tables.packs.get(pack).map(|reference| reference.frames)
    }

    /// Has the frame tables of these packs at hand.
    pub fn open(&self, packs: &[u32]) -> Result<(), CopyError> {
        side_by_side(packs, |pack| self.lending.pack(*pack).map(drop)).map_err(parent).map(drop)
    }

    /// Decides what becomes of each block of a stretch; what has to be read comes to `wanted`.
    pub fn decide(&self, range: Range<'a>, wanted: &mut OlderBlocks) -> Result<Vec<Choice>, BackupError> {
        let Range { path, limits, from, to, sent, lent } = range;
        let known = self.lending.blocks(&lent, from, to - from).map_err(parent)?;
        let mut sent = sent.into_iter().peekable();
        let (mut at, mut place) = (from, 0);
        let mut choices = Vec::with_capacity(known.len());
        for known in &known {
            let number = (at / self.block_size) as u32;
            let choice = if let Some((_, piece)) = sent.next_if(|(next, _)| *next == number) {
                Choice::Sent(piece)
            } else {
                while lent.get(place).is_some_and(|lent| lent.at + lent.len <= at) {
                    place += 1;
                }
                if limits.was_written(number) {
                    let path = String::from_utf8_lossy(&path).into_owned();
                    return Err(RemoteError::Unsent { path, block: number }.into());
                }
                let counts = !limits.was_cut(number);
                self.unchanged(lent.get(place..).filter(|_| counts).unwrap_or_default(), known, at, wanted)
            };
            choices.push(choice);
            at += self.block_size;
        }
        Ok(choices)
    }

    /// Decides what becomes of a block that was not sent; `lent` begins with what the older backup has of it, if it has it.
    fn unchanged(&self, lent: &[Lent], known: &Option<Known>, at: u64, wanted: &mut OlderBlocks) -> Choice {
        let block_size = self.block_size;
        // Whole in the older file: an incomplete block at its end was on its way to be zeros.
        let covered = lent.iter().take_while(|lent| lent.at < at + block_size).last();
        if lent.first().is_none_or(|first| first.at > at)
            || covered.is_none_or(|last| last.at + last.len < at + block_size)
        {
            return Choice::Zeros;
        }
        match known.filter(|known| !known.stale && u64::from(known.len) == block_size) {
            Some(known) => Choice::Known(known),
            None => Choice::Read(wanted.want(lent, at, block_size as usize)),
        }
    }

    /// Reads blocks of the older backup.
    pub fn read(&self, wanted: OlderBlocks) -> Result<Vec<Vec<u8>>, CopyError> {
        wanted.read(self.lending).map_err(parent)
    }

    /// Stores a block of the older backup again.
    pub fn store(&mut self, block: &[u8]) -> Result<(Piece, BlockHash), CopyError> {
        let hash = BlockHash::of(block);
        self.packs.before_blocks();
        let piece = self.mixed.find_or_add(&mut self.packs, (block, hash), self.block_size as usize)?;
        Ok((piece, hash))
    }

    /// Counts bytes that were taken over.
    pub fn take(&mut self, bytes: u64) {
        self.taken += bytes;
    }

    /// Stores what is left; returns the bytes that were taken over.
    pub fn finish(mut self) -> Result<u64, CopyError> {
        self.mixed.close(&mut self.packs)?;
        self.packs.close()?;
        Ok(self.taken)
    }
}

impl<'a> Ranges<'a> {
    /// Returns the next stretch; `None` after the last.
    pub fn next(&mut self, older: &mut Older<'a>) -> Result<Option<Range<'a>>, BackupError> {
        if self.at >= self.size {
            return Ok(None);
        }
        let (from, to) = (self.at, self.size.min(self.at + RANGE_BYTES));
        let lent = older.prior.take(from, to.min(self.end.max(from))).map_err(parent)?;
        let before = (to / older.block_size) as u32;
        let mut sent = Vec::new();
        while let Some(number) = self.numbers.next_if(|number| *number < before) {
            sent.push((number, self.sent.take(older.block_size).ok_or_else(|| no_base(&self.path))?));
        }
        self.at = to;
        Ok(Some(Range { path: Arc::clone(&self.path), limits: self.limits, from, to, sent, lent }))
    }
}

impl Range<'_> {
    pub fn blocks(&self, block_size: u64) -> usize {
        (self.to - self.from).div_ceil(block_size) as usize
    }

    /// The packs of the older backup that have something of it.
    pub fn packs(&self) -> impl Iterator<Item = u32> {
        self.lent.iter().filter_map(|lent| match lent.piece {
            Piece::Frames { pack, .. } => Some(pack),
            Piece::Zeros { .. } | Piece::Inline(_) => None,
        })
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
