//! A stream of files into packs: one thread reads, the others compress.
//!
//! What arrives is cut into stretches of a large file and bundles of small ones and of changed blocks, in a fixed number of
//! buffers that go round. Of each file a few hundred bytes stay in memory until all came, since a server sends files in no
//! order and leaves list them in that of their paths.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};

use super::super::budget::{Budget, REMOTE_RANGE_BYTES};
use super::super::copy::{BUNDLE_FILES, CopyError, SMALL_BYTES};
use super::super::gather::Totals;
use super::super::packs::Shelf;
use super::RemoteError;
use super::base::KeptFiles;
use super::incremental_file::Heading;
use super::items::{Came, Changed, Found, Item, Items, lock};
use super::worker::{Changes, Job, Pages, Target, Worker};
use crate::pg::data_directory::RelationPath;

/// Where the stream is put in.
pub(super) struct Intake<'a> {
    found: &'a Mutex<Found>,
    failed: &'a AtomicBool,
    jobs: SyncSender<Job>,
    free: Receiver<Vec<u8>>,
    block_size: usize,
    /// A large file that is coming: how far it is, and the stretch that is being filled.
    large: Option<(Target, u64, Vec<u8>)>,
    /// Small files and changed blocks, in one buffer.
    bundle: Vec<(Target, Range<usize>)>,
    changes: Vec<Changes>,
    raw: Option<Vec<u8>>,
    /// The file among them that is coming.
    coming: Option<Coming>,
}

/// A file that comes into the buffer that is shared.
enum Coming {
    /// A small one, and where in the buffer it begins.
    Small(Target, usize),
    Changes {
        target: Target,
        file_bytes: u64,
        blocks: Vec<u32>,
        /// Blocks that have come before those in the buffer, and where those begin.
        done: usize,
        start: usize,
    },
}

/// The workers gave up; their own error says why.
#[derive(Debug)]
pub(super) struct Stopped;

/// Stores what `fill` puts in, on as many threads as the budget has; files that `kept` has are not stored again.
pub(super) fn copy(
    shelf: &Shelf<'_>,
    budget: Budget,
    level: i32,
    pages: Pages,
    kept: &KeptFiles,
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
                let mut worker = Worker::new(shelf, (budget, level), pages, kept, (found, failed));
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
            block_size: pages.block_size as usize,
            large: None,
            bundle: Vec::new(),
            changes: Vec::new(),
            raw: None,
            coming: None,
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

impl Intake<'_> {
    /// Adds a directory.
    pub fn directory(&mut self, path: Vec<u8>, mode: u32, modified: i64) {
        self.add(path.into(), (mode, modified), None, None, Came::Whole);
    }

    fn add(
        &self,
        path: Arc<[u8]>,
        (mode, modified): (u32, i64),
        size: Option<u64>,
        relation: Option<RelationPath>,
        came: Came,
    ) -> Target {
        let mut found = lock(self.found);
        let target = Target { number: found.items.len(), path: Arc::clone(&path), relation };
        found.items.push(Item { path, mode, modified, size, relation, stretches: Vec::new(), came });
        target
    }

    /// Begins a file; its bytes follow, and then [`Intake::end`].
    pub fn file(
        &mut self,
        path: Vec<u8>,
        facts: (u32, i64),
        size: u64,
        relation: Option<RelationPath>,
    ) -> Result<(), Stopped> {
        let target = self.add(path.into(), facts, Some(size), relation, Came::Whole);
        if size > SMALL_BYTES {
            self.large = Some((target, 0, self.buffer()?));
            return Ok(());
        }
        let start = self.room_for(size as usize)?;
        self.coming = Some(Coming::Small(target, start));
        Ok(())
    }

    /// Begins the changed blocks of a file; they follow, and then [`Intake::end`].
    pub fn changes(
        &mut self,
        path: Vec<u8>,
        facts: (u32, i64),
        relation: RelationPath,
        heading: Heading,
    ) -> Result<(), Stopped> {
        let last = heading.blocks.last().map_or(0, |last| last + 1);
        let file_bytes = u64::from(heading.truncation.max(last)) * self.block_size as u64;
        let came = Came::Changes(Box::new(Changed::new(&heading, self.block_size as u32)));
        let target = self.add(path.into(), facts, Some(file_bytes), Some(relation), came);
        if heading.blocks.is_empty() {
            return Ok(());
        }
        let start = self.room_for(self.block_size)?;
        self.coming = Some(Coming::Changes { target, file_bytes, blocks: heading.blocks, done: 0, start });
        Ok(())
    }

    /// Makes room in the buffer that is shared, and returns where it begins.
    fn room_for(&mut self, bytes: usize) -> Result<usize, Stopped> {
        let held = self.raw.as_ref().map_or(0, Vec::len);
        if held + bytes > REMOTE_RANGE_BYTES || self.bundle.len() + self.changes.len() >= BUNDLE_FILES {
            self.flush()?;
        }
        if self.raw.is_none() {
            self.raw = Some(self.buffer()?);
        }
        Ok(self.raw.as_ref().map_or(0, Vec::len))
    }

    /// Adds bytes of the file that was begun.
    pub fn bytes(&mut self, mut bytes: &[u8]) -> Result<(), Stopped> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        match &self.coming {
            Some(Coming::Small(..)) => {
                self.raw.as_mut().expect("there is room for it").extend_from_slice(bytes);
                return Ok(());
            }
            Some(Coming::Changes { .. }) => return self.changed_bytes(bytes),
            None => {}
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

    /// Adds bytes of changed blocks. No block is parted between two buffers.
    fn changed_bytes(&mut self, mut bytes: &[u8]) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            let Some(Coming::Changes { start, .. }) = &self.coming else { return Ok(()) };
            let end = start + (REMOTE_RANGE_BYTES - start) / self.block_size * self.block_size;
            let raw = self.raw.as_mut().expect("there is room for it");
            let (some, rest) = bytes.split_at(bytes.len().min(end - raw.len()));
            raw.extend_from_slice(some);
            bytes = rest;
            if raw.len() == end && !bytes.is_empty() {
                self.close_changes();
                let room = self.room_for(self.block_size)?;
                if let Some(Coming::Changes { start, .. }) = &mut self.coming {
                    *start = room;
                }
            }
        }
        Ok(())
    }

    /// Puts the changed blocks that are in the buffer to what a worker gets.
    fn close_changes(&mut self) {
        let Some(Coming::Changes { target, file_bytes, blocks, done, start }) = &mut self.coming else { return };
        let end = self.raw.as_ref().map_or(*start, Vec::len);
        let count = (end - *start) / self.block_size;
        if count > 0 {
            self.changes.push(Changes {
                target: target.clone(),
                offset: (*done * self.block_size) as u64,
                file_bytes: *file_bytes,
                blocks: blocks[*done..*done + count].to_vec(),
                range: *start..end,
            });
            *done += count;
        }
    }

    /// Ends the file.
    pub fn end(&mut self) -> Result<(), Stopped> {
        if let Some((target, offset, raw)) = self.large.take() {
            return self.send(Job::Range { target, offset, raw });
        }
        self.close_changes();
        if let Some(Coming::Small(target, start)) = self.coming.take() {
            let end = self.raw.as_ref().map_or(start, Vec::len);
            self.bundle.push((target, start..end));
        }
        Ok(())
    }

    /// Hands the buffer that is shared to a worker.
    fn flush(&mut self) -> Result<(), Stopped> {
        let (files, changes) = (std::mem::take(&mut self.bundle), std::mem::take(&mut self.changes));
        match self.raw.take() {
            Some(raw) => self.send(Job::Bundle { files, changes, raw }),
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
