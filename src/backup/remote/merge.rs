//! Everything that came, into leaves in the order of paths; what did not change is named from the older backup.
//!
//! A window of files at a time: first only the older backup's leaves are looked at; then the frame tables of all packs that
//! the window needs are read at once, and then the blocks that have to be read, many with one request. So a distant bucket
//! is waited for a few times for each window, and not for each file.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::leaves::FileLeaves;
use super::super::lending::CACHE_BYTES;
use super::super::packs::PlaceSet;
use super::super::perform::BackupError;
use super::items::{Came, Item, no_base};
use super::older_blocks::{OlderBlocks, REQUEST_BYTES, REQUESTS};
use super::overlay::{Choice, Older, RANGE_BYTES, Range};
use crate::format::crc;
use crate::format::leaf::{self, Piece};
use crate::format::pack::FrameTable;
use crate::format::tables::LeafRef;
use crate::pg::page::all_zero;

/// Steps of a window.
const WINDOW_STEPS: usize = 4096;
/// Blocks of changed files in a window.
const WINDOW_BLOCKS: usize = 16 << 10;
/// Bytes of frame tables that a window needs: they are to stay at hand until it is over.
const WINDOW_TABLES: u64 = CACHE_BYTES as u64 / 4 * 3;
/// Bytes of blocks that are read at once, and those of a last stretch.
const READ_BYTES: u64 = 4 << 20;

/// Bytes that a window holds at most, beside what came: blocks that were read, requests under way, and what was decided of
/// each block. The workers have given back more by then.
const MEMORY_BYTES: u64 =
    READ_BYTES + RANGE_BYTES + REQUESTS as u64 * REQUEST_BYTES + (WINDOW_BLOCKS * size_of::<Choice>() * 2) as u64;
const _: () = assert!(MEMORY_BYTES <= 18 << 20);

/// What leaves get, in their order.
enum Step<'a> {
    Directory(Arc<[u8]>, u32),
    Open(Arc<[u8]>),
    Pieces(Vec<Piece>),
    /// A stretch of a file that changed.
    Range(Range<'a>),
    /// The same, decided.
    Choices(Vec<Choice>),
    Close(leaf::File),
    /// The end of a file that changed, of whose checksum the blocks that came are this share.
    CloseChanged(leaf::File, u32),
}

/// Leaves that are being filled, and the older backup beside them, if there is one.
pub(super) struct Merge<'a, 'l> {
    leaves: FileLeaves<'l>,
    older: Option<Older<'a>>,
    steps: Vec<Step<'a>>,
    /// Blocks of changed files among the steps, the packs that they need, and how long those packs' tables may be.
    blocks: usize,
    packs: BTreeSet<u32>,
    tables: u64,
    /// CRC-32C of the changed file that is being put into leaves, without its changed blocks.
    crc: u32,
}

impl<'a, 'l> Merge<'a, 'l> {
    pub fn new(leaves: FileLeaves<'l>, older: Option<Older<'a>>) -> Self {
        Self { leaves, older, steps: Vec::new(), blocks: 0, packs: BTreeSet::new(), tables: 0, crc: 0 }
    }

    /// Puts in what follows by its path.
    pub fn add(&mut self, item: Item) -> Result<(), BackupError> {
        let Some(size) = item.size else { return self.step(Step::Directory(item.path, item.mode)) };
        let (mode, modified, relation) = (item.mode, item.modified, item.relation.is_some());
        let file = |crc, digest| leaf::File { size, mode, modified, crc, digest, relation };
        self.step(Step::Open(Arc::clone(&item.path)))?;
        match (&item.came, &mut self.older) {
            (Came::Whole, _) => {
                let digest = item.stretches.first().and_then(|(_, stretch)| stretch.digest);
                let crc = item.crc(0);
                let pieces = item.stretches.into_iter().flat_map(|(_, stretch)| stretch.pieces).collect();
                self.step(Step::Pieces(pieces))?;
                self.step(Step::Close(file(crc, digest)))
            }
            (Came::Same, Some(older)) => {
                let lent = older.same(&item)?;
                self.step(Step::Pieces(lent.pieces))?;
                self.step(Step::Close(file(lent.file.crc, lent.file.digest)))
            }
            (Came::Changes(changed), Some(older)) => {
                let share = changed.share;
                if let Some(lent) = older.unchanged_file(&item)? {
                    self.step(Step::Pieces(lent.pieces))?;
                    return self.step(Step::Close(file(lent.file.crc, lent.file.digest)));
                }
                let mut ranges = older.ranges(item)?;
                while let Some(range) = self.older.as_mut().map(|older| ranges.next(older)).transpose()?.flatten() {
                    self.range(range)?;
                }
                self.step(Step::CloseChanged(file(0, None), share))
            }
            (Came::Same | Came::Changes(_), None) => Err(no_base(&item.path).into()),
        }
    }

    fn range(&mut self, range: Range<'a>) -> Result<(), BackupError> {
        let Some(older) = &self.older else { return Ok(()) };
        self.blocks += range.blocks(older.block_size);
        for pack in range.packs() {
            if self.packs.insert(pack) {
                self.tables += older.frames_in(pack).map_or(0, FrameTable::most_bytes);
            }
        }
        self.step(Step::Range(range))
    }

    fn step(&mut self, step: Step<'a>) -> Result<(), BackupError> {
        self.steps.push(step);
        let full = self.steps.len() >= WINDOW_STEPS || self.blocks >= WINDOW_BLOCKS || self.tables >= WINDOW_TABLES;
        if full { self.close_window() } else { Ok(()) }
    }

    /// Puts what is gathered into leaves.
    fn close_window(&mut self) -> Result<(), BackupError> {
        let packs: Vec<u32> = std::mem::take(&mut self.packs).into_iter().collect();
        (self.blocks, self.tables) = (0, 0);
        if let Some(older) = &self.older {
            older.open(&packs)?;
        }
        let mut wanted = OlderBlocks::default();
        let mut decided = Vec::new();
        for step in std::mem::take(&mut self.steps) {
            let step = match (step, &mut self.older) {
                (Step::Range(range), Some(older)) => Step::Choices(older.decide(range, &mut wanted)?),
                (step, _) => step,
            };
            decided.push(step);
            if wanted.bytes() >= READ_BYTES {
                self.emit(std::mem::take(&mut decided), std::mem::take(&mut wanted))?;
            }
        }
        self.emit(decided, wanted)
    }

    fn emit(&mut self, steps: Vec<Step<'a>>, wanted: OlderBlocks) -> Result<(), BackupError> {
        let read = match &self.older {
            Some(older) => older.read(wanted)?,
            None => Vec::new(),
        };
        for step in steps {
            match step {
                Step::Directory(path, mode) => self.leaves.directory(&path, mode)?,
                Step::Open(path) => {
                    self.leaves.open(&path)?;
                    self.crc = 0;
                }
                Step::Pieces(pieces) => pieces.into_iter().try_for_each(|piece| self.leaves.piece(piece))?,
                Step::Choices(choices) => {
                    for choice in choices {
                        let piece = self.piece(choice, &read)?;
                        self.leaves.piece(piece)?;
                    }
                }
                Step::Close(file) => self.leaves.close(&file)?,
                Step::CloseChanged(file, share) => self.leaves.close(&leaf::File { crc: self.crc ^ share, ..file })?,
                Step::Range(_) => unreachable!("there are ranges only over an older backup, and all were decided"),
            }
        }
        Ok(())
    }

    /// Returns the place of a block, and counts it into the file's checksum.
    fn piece(&mut self, choice: Choice, read: &[Vec<u8>]) -> Result<Piece, BackupError> {
        let older = self.older.as_mut().expect("choices are made over an older backup");
        let len = older.block_size;
        let zeros = |crc: &mut u32| {
            *crc = crc::append_zeros(*crc, len);
            Ok(Piece::Zeros { len })
        };
        match choice {
            // What it adds to the checksum, the worker knows.
            Choice::Sent(piece) => {
                self.crc = crc::join(self.crc, 0, len);
                Ok(piece)
            }
            Choice::Zeros => zeros(&mut self.crc),
            Choice::Known(known) => {
                self.crc = crc::join(self.crc, known.hash.crc, len);
                older.take(len);
                Ok(known.piece())
            }
            Choice::Read(number) if all_zero(&read[number]) => zeros(&mut self.crc),
            Choice::Read(number) => {
                let (piece, hash) = older.store(&read[number])?;
                self.crc = crc::join(self.crc, hash.crc, len);
                Ok(piece)
            }
        }
    }

    /// Ends the leaves. Returns them, the packs of the older backup that they and their pieces name, and the bytes that were
    /// taken over.
    pub fn finish(mut self) -> Result<(Vec<LeafRef>, PlaceSet, u64), BackupError> {
        self.close_window()?;
        let unread = self.older.map_or(Ok(0), Older::finish)?;
        let (leaves, named) = self.leaves.finish()?;
        Ok((leaves, named, unread))
    }
}
