//! Files into packs, on all cores.
//!
//! Work is cut into tasks that any worker can take: ranges of a large file, so that no file is one worker's alone, and
//! bundles of small files, which share frames. Each worker fills packs of its own and stores them itself. What comes
//! next, and where the results go, is [`super::gather`]'s.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Progress;
use super::budget::{Budget, LEAF_PACK_BYTES};
use super::gather::{Gather, Small, Stretch, Task, Totals};
use super::leaves::{FileLeaves, LentLeaves};
use super::lending::{Known, Lending};
use super::packs::{Filling, PlaceSet, Shelf};
use super::pages::PageCheck;
use super::rate::RateLimit;
use super::remains::Remaining;
use super::scan::{Found, FoundNode, ScanError, Walk};
use crate::format::crc;
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::{INLINE_LIMIT, Piece};
use crate::format::manifest::Link;
use crate::format::pack::BlockHash;
use crate::format::tables::LeafRef;
use crate::format::{FormatError, Sha256};
use crate::pg::data_directory::RelationPath;
use crate::pg::lsn::Lsn;
use crate::pg::page::all_zero;
use crate::repo::RepoError;

/// Bytes of a large file that one task covers.
pub(super) const RANGE_BYTES: u64 = 32 << 20;
/// Files up to this size share frames.
pub(super) const SMALL_BYTES: u64 = (FRAME_BYTES / 2) as u64;
/// Small files that one task covers.
pub(super) const BUNDLE_FILES: usize = 512;
pub(super) const BUNDLE_BYTES: u64 = 4 << 20;
/// What is known of the blocks of a frame without an older backup; the smallest have 1 KiB.
const UNKNOWN: [Option<Known>; FRAME_BYTES >> 10] = [None; FRAME_BYTES >> 10];

/// Why a file could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The data directory could not be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The backup that this one builds on could not be read.
    #[error("read the backup that this one builds on")]
    Parent {
        /// Why.
        source: RepoError,
    },
    /// A pack could not be stored.
    #[error("store a pack of the backup")]
    Store {
        /// Why.
        source: RepoError,
    },
    /// A pack could not be made.
    #[error("make a pack of the backup")]
    Encode {
        /// Why.
        source: FormatError,
    },
}

/// What copying needs to know.
pub(super) struct Source<'a> {
    pub root: &'a Path,
    pub block_size: u32,
    pub relation_segment_blocks: u32,
    pub checksums: bool,
    pub start_lsn: Lsn,
    /// The backup that this one builds on.
    pub lending: Option<&'a Lending<'a>>,
    pub rate: Option<RateLimit>,
    pub progress: &'a Progress,
}

/// What was copied.
pub(super) struct Copied {
    pub leaves: Vec<LeafRef>,
    /// Packs of older backups that leaves and pieces name.
    pub named: PlaceSet,
    pub totals: Totals,
    /// Tablespaces that are links: number and place.
    pub tablespaces: Vec<(u32, PathBuf)>,
    /// Other links, and what is kept in their place.
    pub links: Vec<Link>,
}

/// Copies every file that the walk finds into packs on the shelf.
pub(super) fn copy(
    walk: Walk<'_>,
    source: &Source<'_>,
    shelf: &Shelf<'_>,
    budget: Budget,
    level: i32,
) -> Result<Copied, CopyError> {
    let lent = source
        .lending
        .map_or_else(LentLeaves::default, |lending| LentLeaves::new(&lending.tables.leaves, &lending.renewal.packs));
    let gather = Gather::new(walk, FileLeaves::new(shelf, LEAF_PACK_BYTES, level, lent), source.lending);
    let results: Vec<Result<(), CopyError>> = std::thread::scope(|scope| {
        let start = || scope.spawn(|| run(&gather, source, Filling::new(shelf, budget.pack_bytes, level)));
        let handles: Vec<_> = (0..budget.workers.max(1)).map(|_| start()).collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    results.into_iter().collect::<Result<(), _>>()?;
    let (Walk { tablespaces, links, .. }, leaves, named, totals) = gather.finish()?;
    Ok(Copied { leaves, named, totals, tablespaces, links })
}

fn run(gather: &Gather<'_>, source: &Source<'_>, packs: Filling<'_>) -> Result<(), CopyError> {
    // Also when the worker panics: the others may be waiting for what it had.
    let alarm = Alarm(gather);
    let mut worker = Worker {
        gather,
        source,
        packs,
        buffer: vec![0; FRAME_BYTES],
        hashes: Vec::new(),
        bundle: Vec::with_capacity(FRAME_BYTES),
        mixed: Mixed::default(),
        remaining: Vec::new(),
    };
    worker.work()?;
    std::mem::forget(alarm);
    Ok(())
}

/// Stops the others when it is dropped.
struct Alarm<'a, 'b>(&'a Gather<'b>);

impl Drop for Alarm<'_, '_> {
    fn drop(&mut self) {
        self.0.fail();
    }
}

struct Worker<'a, 'b> {
    gather: &'a Gather<'b>,
    source: &'a Source<'a>,
    packs: Filling<'a>,
    buffer: Vec<u8>,
    hashes: Vec<BlockHash>,
    bundle: Vec<u8>,
    mixed: Mixed,
    /// Blocks of a frame that a backup left which was cut off.
    remaining: Vec<Option<Remaining>>,
}

/// Changed blocks of several files on their way into one frame.
#[derive(Default)]
struct Mixed {
    raw: Vec<u8>,
    hashes: Vec<BlockHash>,
    /// Pack and frame that they will have.
    place: Option<(u32, u32)>,
}

/// What one task copied of a slot: where, how far it was to go, and the stretch; `None` if the file vanished.
type Part = (u64, u64, u64, Option<Stretch>);

impl Worker<'_, '_> {
    fn work(&mut self) -> Result<(), CopyError> {
        while let Some(task) = self.gather.next()? {
            let parts = match task {
                Task::Range { slot, found, offset, len, lent } => {
                    let stretch = match self.source.lending {
                        Some(lending) if !lent.is_empty() => {
                            let known = lending.blocks(&lent, offset, len);
                            let known = known.map_err(|source| CopyError::Parent { source })?;
                            self.overlay(lending, &found, offset, len, &known)?
                        }
                        _ => self.range(&found, offset, len)?,
                    };
                    vec![(slot, offset, len, stretch)]
                }
                Task::Bundle(files) => self.bundle(&files)?,
            };
            self.gather.done(parts)?;
        }
        self.close_mixed()?;
        self.packs.close()
    }

    fn wait_to_read(&self, bytes: u64) {
        if let Some(rate) = &self.source.rate {
            rate.wait(bytes, || self.gather.has_failed());
        }
    }

    /// Copies a range of a large file in frames of their own, block by block hashed.
    fn range(&mut self, item: &Found, offset: u64, len: u64) -> Result<Option<Stretch>, CopyError> {
        let path = place(self.source.root, &item.path);
        let failed = |source| CopyError::Read { path: path.clone(), source };
        let Some(open) = present(File::open(&path)).map_err(failed)? else { return Ok(None) };
        let mut stretch = Stretch::default();
        while stretch.len < len {
            let at = offset + stretch.len;
            let wanted = (len - stretch.len).min(FRAME_BYTES as u64) as usize;
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(FRAME_BYTES, 0);
            self.wait_to_read(wanted as u64);
            let read = read_up_to(&open, &mut buffer[..wanted], at).map_err(failed)?;
            let raw = &mut buffer[..read];
            self.check_pages(item, &open, raw, at);
            match self.packs.has_remains() {
                true => self.blocks(raw, &UNKNOWN, |_| false, &mut stretch)?,
                false => self.frame(raw, &mut stretch)?,
            }
            self.buffer = buffer;
            self.source.progress.advance(read as u64);
            if read < wanted {
                // Truncated since it was listed; the truncation is in the WAL.
                break;
            }
        }
        Ok(Some(stretch))
    }

    /// Copies what changed of a range of a large file, and names the rest where the older backup has it: `known`, block by
    /// block from `offset` on.
    fn overlay(
        &mut self,
        lending: &Lending<'_>,
        item: &Found,
        offset: u64,
        len: u64,
        known: &[Option<Known>],
    ) -> Result<Option<Stretch>, CopyError> {
        let path = place(self.source.root, &item.path);
        let failed = |source| CopyError::Read { path: path.clone(), source };
        let Some(open) = present(File::open(&path)).map_err(failed)? else { return Ok(None) };
        let changes = match &item.node {
            FoundNode::File { size, relation: Some(relation), .. } => lending.changes(relation, *size),
            _ => None,
        };
        let block_size = u64::from(lending.block_size);
        let first = |at: u64| (at / block_size) as u32;
        let unread = |at: u64, known: &Option<Known>| {
            changes.is_some_and(|changes| !changes.has(first(at)))
                && known.is_some_and(|known| !known.stale && u64::from(known.len) == block_size)
        };
        let mut stretch = Stretch::default();
        while stretch.len < len {
            let at = offset + stretch.len;
            let wanted = (len - stretch.len).min(FRAME_BYTES as u64) as usize;
            let blocks = wanted.div_ceil(block_size as usize);
            let known = &known[(stretch.len / block_size) as usize..][..blocks];
            let places = || (0u64..).zip(known).map(|(number, known)| (at + number * block_size, known));
            let to_read = places().filter(|(at, known)| !unread(*at, known)).count();
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(FRAME_BYTES, 0);
            // Where most is read anyway, reading all of it is one call, and a frame may be made of it.
            let skip = |at: u64, known: &Option<Known>| to_read * 2 <= blocks && unread(at, known);
            let mut covered = 0;
            while covered < wanted {
                let here = covered as u64 / block_size;
                let skipped = skip(at + covered as u64, &known[here as usize]);
                let run = places().skip(here as usize).take_while(|(at, known)| skip(*at, known) == skipped).count();
                let end = (covered + run * block_size as usize).min(wanted);
                if !skipped {
                    self.wait_to_read((end - covered) as u64);
                    let read = read_up_to(&open, &mut buffer[covered..end], at + covered as u64).map_err(failed)?;
                    self.check_pages(item, &open, &mut buffer[covered..covered + read], at + covered as u64);
                    if read < end - covered {
                        covered += read;
                        break;
                    }
                }
                covered = end;
            }
            self.blocks(
                &buffer[..covered],
                known,
                |number| skip(at + number * block_size, &known[number as usize]),
                &mut stretch,
            )?;
            self.buffer = buffer;
            self.source.progress.advance(covered as u64);
            if covered < wanted {
                // Truncated since it was listed; the truncation is in the WAL.
                break;
            }
        }
        Ok(Some(stretch))
    }

    /// Takes in consecutive blocks, of which those that `unread` tells are not in `raw` but known.
    fn blocks(
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
    fn close_mixed(&mut self) -> Result<(), CopyError> {
        let Some(place) = self.mixed.place.take() else { return Ok(()) };
        let appended = self.packs.put(&self.mixed.raw, &self.mixed.hashes)?;
        assert_eq!(appended, place, "a frame lies where pieces say that it does");
        self.mixed.raw.clear();
        self.mixed.hashes.clear();
        Ok(())
    }

    fn check_pages(&self, item: &Found, file: &File, raw: &mut [u8], at: u64) {
        let FoundNode::File { relation: Some(relation), .. } = &item.node else { return };
        let damaged = self.damaged_pages(relation, file, raw, at);
        if !damaged.is_empty() {
            self.gather.damaged(&item.path, damaged);
        }
    }

    fn damaged_pages(&self, relation: &RelationPath, file: &File, raw: &mut [u8], at: u64) -> Vec<u32> {
        if !self.source.checksums {
            return Vec::new();
        }
        let check = PageCheck {
            file,
            block_size: self.source.block_size as usize,
            first_block: relation.file.first_block(self.source.relation_segment_blocks).unwrap_or(0),
            start_lsn: self.source.start_lsn,
        };
        check.run(raw, at)
    }

    fn frame(&mut self, raw: &[u8], stretch: &mut Stretch) -> Result<(), CopyError> {
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

    /// Copies small files, several in a frame.
    fn bundle(&mut self, files: &[Small]) -> Result<Vec<Part>, CopyError> {
        let mut parts: Vec<Part> = Vec::with_capacity(files.len());
        // Parts that wait for the frame being gathered, and where in it they start.
        let mut waiting: Vec<(usize, u32)> = Vec::new();
        self.bundle.clear();
        for Small { slot, found: item, lent } in files {
            let FoundNode::File { size, .. } = item.node else { continue };
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = self.small(item, size, &mut buffer)?;
            if let Some(raw) = &read {
                if self.bundle.len() + raw.len() > FRAME_BYTES {
                    self.close_bundle(&mut parts, &mut waiting)?;
                }
                let digest = Sha256::of(raw);
                let same = lent.as_ref().filter(|lent| lent.file.digest == Some(digest));
                let renewal = self.source.lending.map(|lending| lending.renewal);
                let renewed = |piece: &Piece| renewal.is_some_and(|renewal| renewal.touches(piece));
                let same = same.filter(|lent| !lent.pieces.iter().any(renewed));
                let mut stretch = Stretch {
                    pieces: Vec::new(),
                    crc: crc32c::crc32c(raw),
                    len: raw.len() as u64,
                    digest: Some(digest),
                };
                if let Some(same) = same {
                    stretch.pieces.clone_from(&same.pieces);
                    self.gather.lent(stretch.len, 0);
                } else if raw.len() > INLINE_LIMIT && all_zero(raw) {
                    stretch.pieces.push(Piece::Zeros { len: raw.len() as u64 });
                } else if raw.len() > INLINE_LIMIT {
                    waiting.push((parts.len(), self.bundle.len() as u32));
                    self.bundle.extend_from_slice(raw);
                } else if !raw.is_empty() {
                    stretch.pieces.push(Piece::Inline(raw.to_vec()));
                }
                parts.push((*slot, 0, size, Some(stretch)));
            } else {
                parts.push((*slot, 0, size, None));
            }
            self.buffer = buffer;
            self.source.progress.advance(size);
        }
        self.close_bundle(&mut parts, &mut waiting)?;
        Ok(parts)
    }

    /// Reads a small file; `None` if it vanished.
    fn small<'b>(&self, item: &Found, size: u64, buffer: &'b mut Vec<u8>) -> Result<Option<&'b [u8]>, CopyError> {
        let path = place(self.source.root, &item.path);
        let failed = |source| CopyError::Read { path: path.clone(), source };
        let Some(open) = present(File::open(&path)).map_err(failed)? else { return Ok(None) };
        buffer.resize(FRAME_BYTES, 0);
        self.wait_to_read(size);
        let read = read_up_to(&open, &mut buffer[..size as usize], 0).map_err(failed)?;
        self.check_pages(item, &open, &mut buffer[..read], 0);
        Ok(Some(&buffer[..read]))
    }

    fn close_bundle(&mut self, parts: &mut [Part], waiting: &mut Vec<(usize, u32)>) -> Result<(), CopyError> {
        if waiting.is_empty() {
            return Ok(());
        }
        self.close_mixed()?;
        let (pack, frame) = self.packs.append(&self.bundle, &[])?;
        self.bundle.clear();
        for (part, offset) in waiting.drain(..) {
            if let Some(stretch) = &mut parts[part].3 {
                stretch.pieces.push(Piece::Frames { pack, frame, offset, len: stretch.len });
            }
        }
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

fn place(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fills as much of the buffer as the file has.
fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], at + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
