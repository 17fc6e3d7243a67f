//! Between the walk and the leaves: tasks for the workers in the order of paths, and what they copied back into that
//! order, whoever finishes first.
//!
//! Only so many files are under way at once as the window has slots: the walk waits for the first of them to be complete,
//! so memory does not grow with the number of files. Of a large file the pieces go into its leaf as they come, so it does
//! not grow with their number either.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::budget::WINDOW_SLOTS;
use super::copy::{BUNDLE_BYTES, BUNDLE_FILES, CopyError, RANGE_BYTES, SMALL_BYTES};
use super::detection::Doubted;
use super::leaves::FileLeaves;
use super::lending::Lending;
use super::packs::PlaceSet;
use super::prior::{Lent, LentFile, Prior};
use super::scan::{Found, FoundNode, Walk};
use super::witness::Times;
use crate::format::leaf::{self, Piece};
use crate::format::manifest::{DAMAGED_LISTED, DamagedPage};
use crate::format::tables::LeafRef;
use crate::format::{Sha256, crc};

/// One piece of work.
pub(super) enum Task {
    /// A file, from `offset`, at most `len` bytes, and what an older backup has of them.
    Range { slot: u64, large: Large, offset: u64, len: u64, lent: Vec<Lent> },
    /// Small files.
    Bundle(Vec<Small>),
}

/// A large file.
#[derive(Clone)]
pub(super) struct Large {
    pub found: Arc<Found>,
    /// Whether the log is believed about it.
    pub told: bool,
}

/// A small file, and what an older backup has under its name.
pub(super) struct Small {
    pub slot: u64,
    pub found: Arc<Found>,
    pub lent: Option<LentFile>,
}

/// Pieces of a file that is taken over whole or, if it is small, kept at hand until it is read.
const FEW_PIECES: usize = 64;

/// A stretch of one file, copied.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    pub pieces: Vec<Piece>,
    pub crc: u32,
    pub len: u64,
    pub digest: Option<Sha256>,
}

/// What was copied in all.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub files: u64,
    pub bytes: u64,
    /// Among them, bytes that were taken from an older backup: after they were read and compared, or unread.
    pub lent: u64,
    pub unread: u64,
    pub doubted: Doubted,
    pub damaged: Vec<DamagedPage>,
    pub damaged_total: u64,
}

impl Stretch {
    /// A whole file as the older backup has it.
    fn of(lent: LentFile) -> Self {
        Self { crc: lent.file.crc, len: lent.file.size, digest: lent.file.digest, pieces: lent.pieces }
    }
}

/// What the workers share.
pub(super) struct Gather<'a> {
    state: Mutex<State<'a>>,
    /// Rung when a slot has become free, and when nothing more will come.
    bell: Condvar,
}

struct State<'a> {
    walk: Walk<'a>,
    walked: bool,
    failed: bool,
    /// Number of the first slot of the window.
    first: u64,
    window: VecDeque<Slot>,
    /// A large file of which ranges are still to be handed out, and the next one's offset.
    large: Option<(u64, Large, u64)>,
    bundle: Vec<Small>,
    bundle_bytes: u64,
    /// The files of the backup that this one builds on.
    prior: Option<(Prior<'a>, &'a Lending<'a>)>,
    leaves: FileLeaves<'a>,
    totals: Totals,
}

/// A file or directory that is listed and not yet in a leaf.
struct Slot {
    found: Arc<Found>,
    /// What came back and is not in the leaf yet: where it begins, how far it was to go, and what it is.
    parts: Vec<(u64, u64, Option<Stretch>)>,
    /// Ranges that are not in the leaf yet.
    missing: u64,
    /// Where the next range begins.
    next: u64,
    state: SlotState,
    size: u64,
    crc: u32,
    digest: Option<Sha256>,
}

#[derive(PartialEq, Eq)]
enum SlotState {
    Listed,
    Opened,
    Vanished,
}

impl<'a> Gather<'a> {
    pub fn new(walk: Walk<'a>, leaves: FileLeaves<'a>, lending: Option<&'a Lending<'a>>) -> Self {
        let prior = lending.map(|lending| (Prior::new(lending.lane.leaves(lending.tables)), lending));
        let state = State {
            walk,
            walked: false,
            failed: false,
            first: 0,
            window: VecDeque::new(),
            large: None,
            bundle: Vec::new(),
            bundle_bytes: 0,
            prior,
            leaves,
            totals: Totals::default(),
        };
        Self { state: Mutex::new(state), bell: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns what to do next; `None` once there is nothing more to do. Waits while the window is full.
    pub fn next(&self) -> Result<Option<Task>, CopyError> {
        let mut state = self.state();
        loop {
            if state.failed {
                return Ok(None);
            }
            if let Some(task) = state.next()? {
                return Ok(Some(task));
            }
            if state.walked {
                return Ok(None);
            }
            // The first slot is some worker's: what nobody has was returned above.
            state = self.bell.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Takes what a task copied: for each slot, a range and its stretch, `None` if the file vanished.
    pub fn done(&self, parts: Vec<(u64, u64, u64, Option<Stretch>)>) -> Result<(), CopyError> {
        let mut state = self.state();
        if state.failed {
            return Ok(());
        }
        for (slot, offset, len, stretch) in parts {
            let at = (slot - state.first) as usize;
            state.window[at].parts.push((offset, len, stretch));
        }
        let result = state.settle();
        self.bell.notify_all();
        result
    }

    /// Has the others stop at their next task: the backup is void.
    pub fn fail(&self) {
        self.state().failed = true;
        self.bell.notify_all();
    }

    /// Whether the backup is void.
    pub fn has_failed(&self) -> bool {
        self.state().failed
    }

    /// Counts bytes that were taken from an older backup: compared, and unread.
    pub fn lent(&self, lent: u64, unread: u64) {
        let totals = &mut self.state().totals;
        totals.lent += lent;
        totals.unread += unread;
    }

    /// Notes pages of a file whose checksum does not match.
    pub fn damaged(&self, path: &[u8], pages: Vec<u32>) {
        let totals = &mut self.state().totals;
        totals.damaged_total += pages.len() as u64;
        let room = DAMAGED_LISTED.saturating_sub(totals.damaged.len());
        let path = String::from_utf8_lossy(path).into_owned();
        totals.damaged.extend(pages.into_iter().take(room).map(|page| DamagedPage { path: path.clone(), page }));
    }

    /// Returns the walk, the leaves, the packs of older backups that they name, and the totals, once all workers are done.
    pub fn finish(self) -> Result<(Walk<'a>, Vec<LeafRef>, PlaceSet, Totals), CopyError> {
        let state = self.state.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        debug_assert!(state.window.is_empty(), "every file is in a leaf");
        let (leaves, named) = state.leaves.finish()?;
        Ok((state.walk, leaves, named, state.totals))
    }
}

impl State<'_> {
    /// Returns the next task, if one can be had without waiting.
    fn next(&mut self) -> Result<Option<Task>, CopyError> {
        loop {
            if let Some((slot, large, offset)) = self.large.take() {
                let left = size_of(&large.found).saturating_sub(offset);
                if left > RANGE_BYTES {
                    self.large = Some((slot, large.clone(), offset + RANGE_BYTES));
                }
                let len = RANGE_BYTES.min(left);
                let lent = match &mut self.prior {
                    Some((prior, _)) => {
                        prior.take(offset, offset + len).map_err(|source| CopyError::Parent { source })?
                    }
                    None => Vec::new(),
                };
                return Ok(Some(Task::Range { slot, large, offset, len, lent }));
            }
            if self.bundle.len() >= BUNDLE_FILES || self.bundle_bytes >= BUNDLE_BYTES {
                return Ok(self.take_bundle());
            }
            if self.walked || self.window.len() >= WINDOW_SLOTS {
                return Ok(self.take_bundle());
            }
            match self.walk.step()? {
                Some(found) => self.admit(found)?,
                None => self.walked = true,
            }
        }
    }

    fn take_bundle(&mut self) -> Option<Task> {
        self.bundle_bytes = 0;
        (!self.bundle.is_empty()).then(|| Task::Bundle(std::mem::take(&mut self.bundle)))
    }

    fn admit(&mut self, found: Found) -> Result<(), CopyError> {
        let found = Arc::new(found);
        let slot = self.first + self.window.len() as u64;
        let there = self.goes_to(&found)?;
        let told = !there || !self.is_doubted(&found);
        let lent = if there { self.prior.as_ref().and_then(|(prior, _)| prior.whole(FEW_PIECES)) } else { None };
        let mut parts = Vec::new();
        let missing = match found.node {
            FoundNode::Directory => 0,
            FoundNode::File { size, .. } if told && self.is_taken_over(&found, lent.as_ref()) => {
                parts.push((0, size, lent.map(Stretch::of)));
                self.totals.unread += size;
                1
            }
            FoundNode::File { size, .. } if size > SMALL_BYTES => {
                self.large = Some((slot, Large { found: Arc::clone(&found), told }, 0));
                size.div_ceil(RANGE_BYTES)
            }
            FoundNode::File { size, .. } => {
                self.bundle.push(Small { slot, found: Arc::clone(&found), lent });
                self.bundle_bytes += size;
                1
            }
        };
        self.window.push_back(Slot {
            found,
            parts,
            missing,
            next: 0,
            state: SlotState::Listed,
            size: 0,
            crc: 0,
            digest: None,
        });
        // A directory needs no worker: it may be the first already.
        self.settle()
    }

    /// Goes to a file in the older backup; returns whether that has it.
    fn goes_to(&mut self, found: &Found) -> Result<bool, CopyError> {
        let (FoundNode::File { .. }, Some((prior, _))) = (&found.node, &mut self.prior) else { return Ok(false) };
        prior.seek(&found.path).map_err(|source| CopyError::Parent { source })
    }

    /// Whether the file system speaks against what the log says of a file that the older backup has; notes it, if so.
    fn is_doubted(&mut self, found: &Found) -> bool {
        let (Some((prior, lending)), Found { path, node, .. }) = (&self.prior, found) else { return false };
        let FoundNode::File { size, modified, relation: Some(relation) } = node else { return false };
        let modified_then = prior.facts().map(|file| file.modified);
        let times = || Times { born: self.walk.born(path), modified: *modified, modified_then };
        let doubted = lending.doubts(relation, *size, times);
        if doubted {
            let doubted = &mut self.totals.doubted;
            doubted.files += 1;
            doubted.first.get_or_insert_with(|| String::from_utf8_lossy(path).into_owned());
        }
        doubted
    }

    /// Whether a file need not be read: its relation did not change, and no page of it is to be stored again.
    fn is_taken_over(&self, found: &Found, lent: Option<&LentFile>) -> bool {
        let (Some((_, lending)), Some(lent)) = (&self.prior, lent) else { return false };
        let FoundNode::File { size, relation: Some(relation), .. } = &found.node else { return false };
        lending.is_unchanged(relation, *size)
            && lent.file.size == *size
            && lent.file.relation
            && !lent.pieces.iter().any(|piece| matches!(piece, Piece::Zeros { .. }) || lending.renewal.touches(piece))
    }

    /// Puts into leaves what is complete at the front of the window.
    fn settle(&mut self) -> Result<(), CopyError> {
        let settled = self.settle_front();
        // What failed half is not touched again.
        self.failed |= settled.is_err();
        settled
    }

    fn settle_front(&mut self) -> Result<(), CopyError> {
        while let Some(slot) = self.window.front_mut() {
            if matches!(slot.found.node, FoundNode::Directory) {
                self.leaves.directory(&slot.found.path, slot.found.mode)?;
            } else if slot.advance(&mut self.leaves)? {
                if let Some(file) = slot.file() {
                    self.totals.files += 1;
                    self.totals.bytes += file.size;
                    self.leaves.close(&file)?;
                }
            } else {
                break;
            }
            self.window.pop_front();
            self.first += 1;
        }
        Ok(())
    }
}

impl Slot {
    /// Puts the ranges that follow into the leaf; returns whether that was all.
    fn advance(&mut self, leaves: &mut FileLeaves<'_>) -> Result<bool, CopyError> {
        while let Some(at) = self.parts.iter().position(|(offset, ..)| *offset == self.next) {
            let (offset, len, stretch) = self.parts.swap_remove(at);
            self.next = offset + len;
            self.missing -= 1;
            match stretch {
                None if self.state == SlotState::Listed => self.state = SlotState::Vanished,
                Some(stretch) if self.state != SlotState::Vanished => self.take(offset, stretch, leaves)?,
                // Gone since its first range was read: the drop is in the WAL, as a truncation is.
                _ => {}
            }
        }
        Ok(self.missing == 0)
    }

    fn take(&mut self, offset: u64, stretch: Stretch, leaves: &mut FileLeaves<'_>) -> Result<(), CopyError> {
        if self.state == SlotState::Listed {
            leaves.open(&self.found.path)?;
            self.state = SlotState::Opened;
        }
        if stretch.len == 0 {
            return Ok(());
        }
        // Truncated and extended again between two ranges: what lies between is rebuilt from the WAL.
        if self.size < offset {
            let gap = offset - self.size;
            leaves.piece(Piece::Zeros { len: gap })?;
            self.crc = crc::append_zeros(self.crc, gap);
            self.size = offset;
        }
        stretch.pieces.into_iter().try_for_each(|piece| leaves.piece(piece))?;
        self.crc = crc::join(self.crc, stretch.crc, stretch.len);
        self.size += stretch.len;
        self.digest = stretch.digest;
        Ok(())
    }

    /// Returns the facts of a file that was copied; `None` if it vanished: a drop that the WAL replays.
    fn file(&self) -> Option<leaf::File> {
        let FoundNode::File { modified, relation, .. } = &self.found.node else { return None };
        (self.state == SlotState::Opened).then(|| leaf::File {
            size: self.size,
            mode: self.found.mode,
            modified: *modified,
            crc: self.crc,
            digest: self.digest,
            relation: relation.is_some(),
        })
    }
}

fn size_of(found: &Found) -> u64 {
    match found.node {
        FoundNode::Directory => 0,
        FoundNode::File { size, .. } => size,
    }
}
