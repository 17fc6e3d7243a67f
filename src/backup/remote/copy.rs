//! A stream of files into packs: one thread reads, the others compress.
//!
//! What arrives is cut into stretches of a large file and bundles of small ones, in a fixed number of buffers that go
//! round. Of each file a few hundred bytes stay in memory until all came, since a server sends files in no order and
//! leaves list them in that of their paths.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::budget::{Budget, REMOTE_RANGE_BYTES};
use super::super::copy::{BUNDLE_FILES, CopyError, SMALL_BYTES};
use super::super::gather::{Stretch, Totals};
use super::super::leaves::FileLeaves;
use super::super::packs::{Filling, Shelf};
use super::RemoteError;
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::{self, INLINE_LIMIT, Piece};
use crate::format::manifest::{DAMAGED_LISTED, DamagedPage};
use crate::format::pack::BlockHash;
use crate::format::tables::LeafRef;
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

/// A file or directory of the stream.
#[derive(Debug)]
pub(super) struct Item {
    pub path: Arc<[u8]>,
    pub mode: u32,
    pub modified: i64,
    /// Bytes; `None` for a directory.
    pub size: Option<u64>,
    pub relation: Option<RelationPath>,
    /// What was stored of it: where in the file, and what.
    stretches: Vec<(u64, Stretch)>,
}

/// What came, sorted by path, none twice.
pub(super) struct Items(Vec<Item>);

/// Everything that was found in the stream.
#[derive(Default)]
pub(super) struct Found {
    items: Vec<Item>,
    damaged: Vec<DamagedPage>,
    damaged_total: u64,
}

/// A file, as far as a worker needs to know it.
#[derive(Clone)]
struct Target {
    number: usize,
    path: Arc<[u8]>,
    relation: Option<RelationPath>,
}

enum Job {
    Range { target: Target, offset: u64, raw: Vec<u8> },
    Bundle { files: Vec<(Target, Range<usize>)>, raw: Vec<u8> },
}

/// Where the stream is put in.
pub(super) struct Intake<'a> {
    found: &'a Mutex<Found>,
    failed: &'a AtomicBool,
    jobs: SyncSender<Job>,
    free: Receiver<Vec<u8>>,
    /// A large file that is coming: how far it is, and the stretch that is being filled.
    large: Option<(Target, u64, Vec<u8>)>,
    /// Small files, and the last of them that is coming.
    bundle: Vec<(Target, Range<usize>)>,
    small: Option<(Target, usize)>,
    raw: Option<Vec<u8>>,
}

/// The workers gave up; their own error says why.
#[derive(Debug)]
pub(super) struct Stopped;

/// Stores what `fill` puts in, on as many threads as the budget has.
pub(super) fn copy(
    shelf: &Shelf<'_>,
    budget: Budget,
    level: i32,
    pages: Pages,
    fill: impl FnOnce(&mut Intake<'_>) -> Result<Result<(), RemoteError>, Stopped>,
) -> Result<Result<(Items, Totals), RemoteError>, CopyError> {
    let found = Mutex::new(Found::default());
    let failed = AtomicBool::new(false);
    let workers = budget.workers.max(1);
    let (jobs, work) = sync_channel(1);
    let (back, free) = channel();
    // One in the queue, a large file's and a bundle's in hand.
    (0..workers + 3).for_each(|_| drop(back.send(Vec::with_capacity(REMOTE_RANGE_BYTES))));
    let filled = std::thread::scope(|scope| {
        // The workers' alone: with the last of them the queue ends, and nobody waits for room in it.
        let work = Arc::new(Mutex::new(work));
        let start = |back: Sender<Vec<u8>>| {
            let (found, failed, work) = (&found, &failed, Arc::clone(&work));
            scope.spawn(move || {
                let packs = Filling::new(shelf, budget.pack_bytes, level);
                let mut worker =
                    Worker { found, failed, pages, packs, hashes: Vec::new(), frame: Vec::with_capacity(FRAME_BYTES) };
                // Also when it panics: the others must not wait for it.
                let alarm = Alarm(failed);
                worker.work(&work, &back)?;
                std::mem::forget(alarm);
                Ok(())
            })
        };
        let handles: Vec<_> = (0..workers).map(|_| start(back.clone())).collect();
        drop((back, work));
        let mut intake = Intake {
            found: &found,
            failed: &failed,
            jobs,
            free,
            large: None,
            bundle: Vec::new(),
            small: None,
            raw: None,
        };
        let filled = fill(&mut intake).and_then(|filled| intake.flush().map(|()| filled));
        drop(intake);
        let results: Vec<Result<(), CopyError>> = handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        results.into_iter().collect::<Result<(), _>>().map(|()| filled)
    })?;
    match filled {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Ok(Err(error)),
        Err(Stopped) => unreachable!("workers stop only with an error of their own"),
    }
    let found = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok(found.sorted())
}

struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Found {
    fn sorted(mut self) -> Result<(Items, Totals), RemoteError> {
        self.items.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        if let Some(twice) = self.items.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(RemoteError::Twice { path: String::from_utf8_lossy(&twice[0].path).into_owned() });
        }
        let files = self.items.iter().filter_map(|item| item.size);
        let totals = Totals {
            files: files.clone().count() as u64,
            bytes: files.sum(),
            lent: 0,
            unread: 0,
            damaged: self.damaged,
            damaged_total: self.damaged_total,
        };
        Ok((Items(self.items), totals))
    }
}

impl Items {
    /// Returns a file's size and CRC-32C.
    pub fn file(&self, path: &[u8]) -> Option<(u64, u32)> {
        let at = self.0.binary_search_by(|item| item.path.as_ref().cmp(path)).ok()?;
        let item = &self.0[at];
        Some((item.size?, item.crc()))
    }

    /// Puts everything into leaves, in the order of paths.
    pub fn store(self, mut leaves: FileLeaves<'_>) -> Result<Vec<LeafRef>, CopyError> {
        for item in self.0 {
            let Some(size) = item.size else {
                leaves.directory(&item.path, item.mode)?;
                continue;
            };
            let crc = item.crc();
            let digest = item.stretches.first().and_then(|(_, stretch)| stretch.digest);
            leaves.open(&item.path)?;
            for piece in item.stretches.into_iter().flat_map(|(_, stretch)| stretch.pieces) {
                leaves.piece(piece)?;
            }
            let (mode, modified, relation) = (item.mode, item.modified, item.relation.is_some());
            leaves.close(&leaf::File { size, mode, modified, crc, digest, relation })?;
        }
        Ok(leaves.finish()?.0)
    }
}

impl Item {
    fn crc(&self) -> u32 {
        self.stretches.iter().fold(0, |crc, (_, stretch)| crc::join(crc, stretch.crc, stretch.len))
    }
}

impl Intake<'_> {
    /// Adds a directory.
    pub fn directory(&mut self, path: Vec<u8>, mode: u32, modified: i64) {
        let (path, stretches) = (path.into(), Vec::new());
        lock(self.found).items.push(Item { path, mode, modified, size: None, relation: None, stretches });
    }

    /// Begins a file; its bytes follow, and then [`Intake::end`].
    pub fn file(
        &mut self,
        path: Vec<u8>,
        (mode, modified): (u32, i64),
        size: u64,
        relation: Option<RelationPath>,
    ) -> Result<(), Stopped> {
        let path: Arc<[u8]> = path.into();
        let mut found = lock(self.found);
        let target = Target { number: found.items.len(), path: Arc::clone(&path), relation };
        found.items.push(Item { path, mode, modified, size: Some(size), relation, stretches: Vec::new() });
        drop(found);
        if size > SMALL_BYTES {
            self.large = Some((target, 0, self.buffer()?));
            return Ok(());
        }
        let held = self.raw.as_ref().map_or(0, Vec::len);
        if held + size as usize > REMOTE_RANGE_BYTES || self.bundle.len() == BUNDLE_FILES {
            self.flush()?;
        }
        if self.raw.is_none() {
            self.raw = Some(self.buffer()?);
        }
        let start = self.raw.as_ref().map_or(0, Vec::len);
        self.small = Some((target, start));
        Ok(())
    }

    /// Adds bytes of the file that was begun.
    pub fn bytes(&mut self, mut bytes: &[u8]) -> Result<(), Stopped> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        if let Some(raw) = self.raw.as_mut().filter(|_| self.small.is_some()) {
            raw.extend_from_slice(bytes);
            return Ok(());
        }
        while let Some((target, offset, mut raw)) = self.large.take_if(|_| !bytes.is_empty()) {
            let (some, rest) = bytes.split_at(bytes.len().min(REMOTE_RANGE_BYTES - raw.len()));
            raw.extend_from_slice(some);
            bytes = rest;
            if raw.len() < REMOTE_RANGE_BYTES {
                self.large = Some((target, offset, raw));
                continue;
            }
            let next = offset + raw.len() as u64;
            self.send(Job::Range { target: target.clone(), offset, raw })?;
            self.large = Some((target, next, self.buffer()?));
        }
        Ok(())
    }

    /// Ends the file.
    pub fn end(&mut self) -> Result<(), Stopped> {
        if let Some((target, offset, raw)) = self.large.take() {
            return self.send(Job::Range { target, offset, raw });
        }
        if let Some((target, start)) = self.small.take() {
            let end = self.raw.as_ref().map_or(start, Vec::len);
            self.bundle.push((target, start..end));
        }
        Ok(())
    }

    /// Hands the bundle to a worker.
    fn flush(&mut self) -> Result<(), Stopped> {
        let files = std::mem::take(&mut self.bundle);
        match self.raw.take() {
            Some(raw) => self.send(Job::Bundle { files, raw }),
            None => Ok(()),
        }
    }

    fn send(&self, job: Job) -> Result<(), Stopped> {
        self.jobs.send(job).map_err(|_| Stopped)
    }

    fn buffer(&self) -> Result<Vec<u8>, Stopped> {
        self.free.recv().map_err(|_| Stopped)
    }
}

struct Worker<'a> {
    found: &'a Mutex<Found>,
    failed: &'a AtomicBool,
    pages: Pages,
    packs: Filling<'a>,
    hashes: Vec<BlockHash>,
    frame: Vec<u8>,
}

impl Worker<'_> {
    fn work(&mut self, work: &Mutex<Receiver<Job>>, back: &Sender<Vec<u8>>) -> Result<(), CopyError> {
        loop {
            let job = lock(work).recv();
            let Ok(job) = job else { return self.packs.close() };
            if self.failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let mut raw = match job {
                Job::Range { target, offset, raw } => {
                    let stretch = self.range(&target, offset, &raw)?;
                    self.put(target.number, offset, stretch);
                    raw
                }
                Job::Bundle { files, raw } => {
                    self.bundle(&files, &raw)?;
                    raw
                }
            };
            raw.clear();
            // Nobody takes it any more at the end.
            let _ = back.send(raw);
        }
    }

    fn put(&self, number: usize, offset: u64, stretch: Stretch) {
        let stretches = &mut lock(self.found).items[number].stretches;
        // Most files have one and no more; room for four of each would be most of what is held.
        if stretches.is_empty() {
            stretches.reserve_exact(1);
        }
        let at = stretches.partition_point(|(before, _)| *before < offset);
        stretches.insert(at, (offset, stretch));
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
            let len = frame.len() as u64;
            stretch.len += len;
            let piece = if all_zero(frame) {
                Piece::Zeros { len }
            } else {
                let (pack, frame) = self.packs.append(frame, &self.hashes)?;
                Piece::Frames { pack, frame, offset: 0, len }
            };
            if !stretch.pieces.last_mut().is_some_and(|last| last.join(&piece)) {
                stretch.pieces.push(piece);
            }
        }
        stretch.pieces.shrink_to_fit();
        Ok(stretch)
    }

    /// Stores small files, several in a frame.
    fn bundle(&mut self, files: &[(Target, Range<usize>)], raw: &[u8]) -> Result<(), CopyError> {
        let mut waiting: Vec<(usize, u32, Stretch)> = Vec::new();
        self.frame.clear();
        for (target, range) in files {
            let raw = &raw[range.clone()];
            self.check(target, 0, raw);
            let (crc, len, digest) = (crc32c::crc32c(raw), raw.len() as u64, Some(Sha256::of(raw)));
            let mut stretch = Stretch { pieces: Vec::new(), crc, len, digest };
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
            self.put(target.number, 0, stretch);
        }
        self.close_frame(&mut waiting)
    }

    fn close_frame(&mut self, waiting: &mut Vec<(usize, u32, Stretch)>) -> Result<(), CopyError> {
        if waiting.is_empty() {
            return Ok(());
        }
        let (pack, frame) = self.packs.append(&self.frame, &[])?;
        self.frame.clear();
        for (number, offset, mut stretch) in waiting.drain(..) {
            stretch.pieces.push(Piece::Frames { pack, frame, offset, len: stretch.len });
            stretch.pieces.shrink_to_fit();
            self.put(number, 0, stretch);
        }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
