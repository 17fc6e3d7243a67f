//! A thread that stores what a stream held.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

use super::super::budget::Budget;
use super::super::copy::CopyError;
use super::super::gather::Stretch;
use super::super::mixed::Mixed;
use super::super::packs::{Filling, Shelf};
use super::super::remains::Remaining;
use super::base::KeptFiles;
use super::items::{Found, lock};
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::{INLINE_LIMIT, Piece};
use crate::format::left_out::is_left_out;
use crate::format::manifest::{DAMAGED_LISTED, DamagedPage};
use crate::format::pack::BlockHash;
use crate::format::{Sha256, crc};
use crate::pg::data_directory::RelationPath;
use crate::pg::lsn::Lsn;
use crate::pg::page::{PageHeader, PageVerdict, all_zero, verify};

/// What every page is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pages {
    pub block_size: u32,
    pub relation_segment_blocks: u32,
    /// Whether they carry checksums.
    pub checksums: bool,
    pub start_lsn: Lsn,
}

/// A file, as far as a worker needs to know it.
#[derive(Clone)]
pub(super) struct Target {
    pub number: usize,
    pub path: Arc<[u8]>,
    pub relation: Option<RelationPath>,
}

/// Blocks of a file that changed.
pub(super) struct Changes {
    pub target: Target,
    /// Bytes of the file's changed blocks before these.
    pub offset: u64,
    /// Bytes of the file that they belong into.
    pub file_bytes: u64,
    /// Their numbers in the file.
    pub blocks: Vec<u32>,
    /// Where they are.
    pub range: Range<usize>,
}

pub(super) enum Job {
    Range { target: Target, offset: u64, raw: Vec<u8> },
    Bundle { files: Vec<(Target, Range<usize>)>, changes: Vec<Changes>, raw: Vec<u8> },
}

pub(super) struct Worker<'a> {
    found: &'a Mutex<Found>,
    failed: &'a AtomicBool,
    pages: Pages,
    /// Small files of the backup that this one builds on.
    kept: &'a KeptFiles,
    packs: Filling<'a>,
    mixed: Mixed,
    hashes: Vec<BlockHash>,
    frame: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub fn new(
        shelf: &'a Shelf<'a>,
        (budget, level): (Budget, i32),
        pages: Pages,
        kept: &'a KeptFiles,
        (found, failed): (&'a Mutex<Found>, &'a AtomicBool),
    ) -> Self {
        let packs = Filling::new(shelf, budget.pack_bytes, level);
        let (mixed, hashes, frame) = (Mixed::default(), Vec::new(), Vec::with_capacity(FRAME_BYTES));
        Self { found, failed, pages, kept, packs, mixed, hashes, frame }
    }

    pub fn work(&mut self, work: &Mutex<Receiver<Job>>, back: &Sender<Vec<u8>>) -> Result<(), CopyError> {
        loop {
            let job = lock(work).recv();
            let Ok(job) = job else {
                self.mixed.close(&mut self.packs)?;
                return self.packs.close();
            };
            if self.failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let mut raw = match job {
                Job::Range { target, offset, raw } => {
                    let stretch = self.range(&target, offset, &raw)?;
                    lock(self.found).put(target.number, offset, stretch);
                    raw
                }
                Job::Bundle { files, changes, raw } => {
                    self.bundle(&files, &raw)?;
                    changes.iter().try_for_each(|changes| self.changes(changes, &raw[changes.range.clone()]))?;
                    raw
                }
            };
            raw.clear();
            // Nobody takes it any more at the end.
            let _ = back.send(raw);
        }
    }

    /// Stores a stretch of a large file in frames of its own, block by block hashed.
    fn range(&mut self, target: &Target, offset: u64, raw: &[u8]) -> Result<Stretch, CopyError> {
        self.check(target, offset, raw);
        let mut stretch = Stretch::default();
        let block_size = self.pages.block_size as usize;
        for frame in raw.chunks(FRAME_BYTES) {
            self.hashes.clear();
            self.hashes.extend(frame.chunks(block_size).map(BlockHash::of));
            for (block, hash) in frame.chunks(block_size).zip(&self.hashes) {
                stretch.crc = crc::join(stretch.crc, hash.crc, block.len() as u64);
            }
            stretch.len += frame.len() as u64;
            self.frame(frame, &mut stretch)?;
        }
        stretch.pieces.shrink_to_fit();
        Ok(stretch)
    }

    /// Stores a frame of a large file, or names what a backup left of it that was cut off: all of it, or at least half of its
    /// blocks.
    fn frame(&mut self, raw: &[u8], stretch: &mut Stretch) -> Result<(), CopyError> {
        let len = raw.len() as u64;
        if all_zero(raw) {
            push(stretch, Piece::Zeros { len });
            return Ok(());
        }
        if self.packs.has_remains() {
            if let Some(Remaining { place, frame, offset }) = self.packs.remaining_frame(raw) {
                self.packs.take_over(place, len);
                push(stretch, Piece::Frames { pack: place, frame, offset, len });
                return Ok(());
            }
            let block_size = self.pages.block_size as usize;
            self.packs.before_blocks();
            let look = |block: &[u8]| if all_zero(block) { None } else { self.packs.remaining_block(block) };
            let found: Vec<Option<Remaining>> = raw.chunks(block_size).map(look).collect();
            if found.iter().flatten().count() * 2 > found.len() {
                let hashes = std::mem::take(&mut self.hashes);
                for ((block, found), hash) in raw.chunks(block_size).zip(found).zip(&hashes) {
                    let len = block.len() as u64;
                    let piece = match found {
                        Some(Remaining { place, frame, offset }) => {
                            self.packs.take_over(place, len);
                            Piece::Frames { pack: place, frame, offset, len }
                        }
                        None if all_zero(block) => Piece::Zeros { len },
                        None => self.mixed.add(&mut self.packs, (block, *hash), block_size)?,
                    };
                    push(stretch, piece);
                }
                self.hashes = hashes;
                return Ok(());
            }
        }
        self.mixed.close(&mut self.packs)?;
        let (pack, frame) = self.packs.put(raw, &self.hashes)?;
        push(stretch, Piece::Frames { pack, frame, offset: 0, len });
        Ok(())
    }

    /// Stores small files, several in a frame.
    fn bundle(&mut self, files: &[(Target, Range<usize>)], raw: &[u8]) -> Result<(), CopyError> {
        let mut waiting: Vec<(usize, u32, Stretch)> = Vec::new();
        self.frame.clear();
        for (target, range) in files {
            let raw = &raw[range.clone()];
            if is_left_out(raw) {
                return Err(CopyError::left_out(&target.path));
            }
            self.check(target, 0, raw);
            let (crc, len, digest) = (crc32c::crc32c(raw), raw.len() as u64, Some(Sha256::of(raw)));
            let mut stretch = Stretch { pieces: Vec::new(), crc, len, digest };
            if digest.is_some_and(|digest| self.kept.has(&target.path, &digest)) {
                lock(self.found).put_same(target.number, stretch);
                continue;
            }
            if raw.len() > INLINE_LIMIT && !all_zero(raw) {
                if self.frame.len() + raw.len() > FRAME_BYTES {
                    self.close_frame(&mut waiting)?;
                }
                waiting.push((target.number, self.frame.len() as u32, stretch));
                self.frame.extend_from_slice(raw);
                continue;
            }
            match raw.len() {
                0 => {}
                1..=INLINE_LIMIT => stretch.pieces.push(Piece::Inline(raw.to_vec())),
                _ => stretch.pieces.push(Piece::Zeros { len }),
            }
            lock(self.found).put(target.number, 0, stretch);
        }
        self.close_frame(&mut waiting)
    }

    fn close_frame(&mut self, waiting: &mut Vec<(usize, u32, Stretch)>) -> Result<(), CopyError> {
        if waiting.is_empty() {
            return Ok(());
        }
        self.mixed.close(&mut self.packs)?;
        let (pack, frame) = self.packs.append(&self.frame, &[])?;
        self.frame.clear();
        for (number, offset, mut stretch) in waiting.drain(..) {
            stretch.pieces.push(Piece::Frames { pack, frame, offset, len: stretch.len });
            stretch.pieces.shrink_to_fit();
            lock(self.found).put(number, 0, stretch);
        }
        Ok(())
    }

    /// Stores blocks that changed, several files' in a frame, each hashed by itself.
    fn changes(&mut self, changes: &Changes, raw: &[u8]) -> Result<(), CopyError> {
        let block_size = self.pages.block_size as usize;
        let mut stretch = Stretch::default();
        let mut share = 0;
        self.packs.before_blocks();
        for (block, number) in raw.chunks(block_size).zip(&changes.blocks) {
            let at = u64::from(*number) * block_size as u64;
            self.check(&changes.target, at, block);
            let (hash, len) = (BlockHash::of(block), block.len() as u64);
            let piece = if all_zero(block) {
                Piece::Zeros { len }
            } else {
                self.mixed.find_or_add(&mut self.packs, (block, hash), block_size)?
            };
            push(&mut stretch, piece);
            stretch.crc = crc::join(stretch.crc, hash.crc, len);
            stretch.len += len;
            // What it adds to the checksum of the file, in which so many bytes follow it.
            share ^= crc::join(hash.crc, 0, changes.file_bytes.saturating_sub(at + len));
        }
        stretch.pieces.shrink_to_fit();
        lock(self.found).put_changes(changes.target.number, changes.offset, stretch, share);
        Ok(())
    }

    /// Notes pages whose checksum does not match. The server has read such a page twice before it sent it: what is left
    /// is damage, unless recovery replaces the whole page, which it does if its LSN lies past the start.
    fn check(&self, target: &Target, offset: u64, raw: &[u8]) {
        let Some(relation) = target.relation.filter(|_| self.pages.checksums) else { return };
        let block_size = self.pages.block_size as usize;
        let first_block = relation.file.first_block(self.pages.relation_segment_blocks).unwrap_or(0);
        let numbers = (offset / block_size as u64) as u32..;
        // A last, incomplete page is left alone: the file is being extended.
        for (page, number) in raw.chunks_exact(block_size).zip(numbers) {
            let good = match verify(page, first_block.wrapping_add(number)) {
                PageVerdict::New | PageVerdict::Good => true,
                _ => {
                    PageHeader::read(page).is_some_and(|header| header.upper != 0 && header.lsn >= self.pages.start_lsn)
                }
            };
            if !good {
                let mut found = lock(self.found);
                found.damaged_total += 1;
                if found.damaged.len() < DAMAGED_LISTED {
                    let path = String::from_utf8_lossy(&target.path).into_owned();
                    found.damaged.push(DamagedPage { path, page: number });
                }
            }
        }
    }
}

/// Adds a piece, joining it with the one before where they follow on each other.
fn push(stretch: &mut Stretch, piece: Piece) {
    if !stretch.pieces.last_mut().is_some_and(|last| last.join(&piece)) {
        stretch.pieces.push(piece);
    }
}
