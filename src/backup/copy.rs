//! Files into packs, on all cores.
//!
//! Work is cut into tasks that any worker can take: ranges of a large file, so that no file is one worker's alone, and
//! bundles of small files, which share frames. Each worker fills packs of its own and stores them itself. What comes
//! next, and where the results go, is [`super::gather`]'s.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Progress;
use super::budget::{Budget, LEAF_PACK_BYTES};
use super::gather::{Gather, Large, Small, Stretch, Task, Totals};
use super::leaves::{FileLeaves, LentLeaves};
use super::lending::{Known, Lending};
use super::mixed::Mixed;
use super::pace::{Pace, Read};
use super::packs::{Filling, PlaceSet, Shelf};
use super::pages::PageCheck;
use super::rate::RateLimit;
use super::remains::Remaining;
use super::scan::{Found, FoundNode, ScanError, Walk};
use super::visit::Visit;
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::{INLINE_LIMIT, Piece};
use crate::format::left_out::is_left_out;
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
    /// A database holds zeros and not its data.
    #[error(
        "{path} marks a database that a restore left out: its files are zeros, and a backup with them would pass for one of \
         the whole cluster; drop the database, then take the backup"
    )]
    LeftOut {
        /// The file with the mark.
        path: String,
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

impl CopyError {
    /// A file that marks a database left out.
    pub(super) fn left_out(path: &[u8]) -> Self {
        Self::LeftOut { path: String::from_utf8_lossy(path).into_owned() }
    }
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
    /// How fast it goes beside the server; `None` for as fast as it can.
    pub pace: Option<&'a Pace>,
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
        busy_since: Instant::now(),
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

pub(super) struct Worker<'a, 'b> {
    pub(super) gather: &'a Gather<'b>,
    pub(super) source: &'a Source<'a>,
    pub(super) packs: Filling<'a>,
    buffer: Vec<u8>,
    pub(super) hashes: Vec<BlockHash>,
    bundle: Vec<u8>,
    pub(super) mixed: Mixed,
    /// Blocks of a frame that a backup left which was cut off.
    pub(super) remaining: Vec<Option<Remaining>>,
    /// When it was last idle for the server's sake.
    busy_since: Instant,
}

/// What one task copied of a slot: where, how far it was to go, and the stretch; `None` if the file vanished.
type Part = (u64, u64, u64, Option<Stretch>);

impl Worker<'_, '_> {
    fn work(&mut self) -> Result<(), CopyError> {
        while let Some(task) = self.gather.next()? {
            let parts = match task {
                Task::Range { slot, large, offset, len, lent } => {
                    let stretch = match self.source.lending {
                        Some(lending) if !lent.is_empty() => {
                            let known = lending.blocks(&lent, offset, len);
                            let known = known.map_err(|source| CopyError::Parent { source })?;
                            self.overlay(lending, &large, (offset, len), &known)?
                        }
                        _ => self.range(&large.found, offset, len)?,
                    };
                    vec![(slot, offset, len, stretch)]
                }
                Task::Bundle(files) => self.bundle(&files)?,
            };
            self.gather.done(parts)?;
        }
        self.mixed.close(&mut self.packs)?;
        self.packs.close()
    }

    fn wait_to_read(&mut self, bytes: u64) {
        if let Some(pace) = self.source.pace {
            self.busy_since = pace.pause(self.busy_since);
        }
        if let Some(rate) = &self.source.rate {
            rate.wait(bytes, || self.gather.has_failed());
        }
    }

    fn read(&self, visit: &mut Visit, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let kind = if buffer.len() as u64 > SMALL_BYTES { Read::Frame } else { Read::Small };
        let (read, took) = visit.read(buffer, at)?;
        if let Some(pace) = self.source.pace {
            pace.note(kind, took);
        }
        Ok(read)
    }

    /// Copies a range of a large file in frames of their own, block by block hashed.
    fn range(&mut self, item: &Found, offset: u64, len: u64) -> Result<Option<Stretch>, CopyError> {
        let path = place(self.source.root, &item.path);
        let failed = |source| CopyError::Read { path: path.clone(), source };
        let Some(mut visit) = Visit::open(&path, offset, len, true).map_err(failed)? else { return Ok(None) };
        let mut stretch = Stretch::default();
        while stretch.len < len {
            let at = offset + stretch.len;
            let wanted = (len - stretch.len).min(FRAME_BYTES as u64) as usize;
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(FRAME_BYTES, 0);
            self.wait_to_read(wanted as u64);
            let read = self.read(&mut visit, &mut buffer[..wanted], at).map_err(failed)?;
            let raw = &mut buffer[..read];
            self.check_pages(item, visit.file(), raw, at);
            visit.leave(at, read as u64);
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
        Large { found: item, told }: &Large,
        (offset, len): (u64, u64),
        known: &[Option<Known>],
    ) -> Result<Option<Stretch>, CopyError> {
        let path = place(self.source.root, &item.path);
        let failed = |source| CopyError::Read { path: path.clone(), source };
        let changes = match &item.node {
            FoundNode::File { size, relation: Some(relation), .. } if *told => lending.changes(relation, *size),
            _ => None,
        };
        let Some(mut visit) = Visit::open(&path, offset, len, changes.is_none()).map_err(failed)? else {
            return Ok(None);
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
                    let here = at + covered as u64;
                    let read = self.read(&mut visit, &mut buffer[covered..end], here).map_err(failed)?;
                    self.check_pages(item, visit.file(), &mut buffer[covered..covered + read], here);
                    visit.leave(here, read as u64);
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
                if is_left_out(raw) {
                    return Err(CopyError::left_out(&item.path));
                }
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
    fn small<'b>(&mut self, item: &Found, size: u64, buffer: &'b mut Vec<u8>) -> Result<Option<&'b [u8]>, CopyError> {
        let path = place(self.source.root, &item.path);
        let failed = |source| CopyError::Read { path: path.clone(), source };
        let Some(mut visit) = Visit::open(&path, 0, size, true).map_err(failed)? else { return Ok(None) };
        buffer.resize(FRAME_BYTES, 0);
        self.wait_to_read(size);
        let read = self.read(&mut visit, &mut buffer[..size as usize], 0).map_err(failed)?;
        self.check_pages(item, visit.file(), &mut buffer[..read], 0);
        visit.leave(0, read as u64);
        Ok(Some(&buffer[..read]))
    }

    fn close_bundle(&mut self, parts: &mut [Part], waiting: &mut Vec<(usize, u32)>) -> Result<(), CopyError> {
        if waiting.is_empty() {
            return Ok(());
        }
        self.mixed.close(&mut self.packs)?;
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

fn place(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests;
