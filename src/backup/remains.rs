//! What backups left behind that were cut off, taken over by what it holds.
//!
//! Packs of backups that were never committed are read back whole, in the order in which they were stored, a little ahead
//! of the copy, which goes the same way through the data directory. What the copy has just read is looked for among them
//! by its SHA-256: never by a name, a time or a size. So nothing has to be known of how it came there, and what is taken
//! over was read back and compared, which what was just stored is not.
//!
//! Not finding something costs storing it again, and nothing else. So a pack that cannot be read is passed over, and only a
//! window of the packs is held, whatever their number.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Condvar, Mutex, MutexGuard};

use super::budget::Budget;
use crate::error::ErrorKind;
use crate::format::Sha256;
use crate::format::tables::PackRef;
use crate::repo::{Lane, RepoError, StoredPack};

/// Backups whose packs are looked at, from the newest on.
const RUNS: usize = 3;
/// Fewest pieces of contents in a window: pages of some 16 MiB.
pub(super) const LEAST_WINDOW: usize = 2048;
/// What a piece of contents takes that can be found: an entry of the table, its key once more, and room to grow.
pub(super) const PIECE_BYTES: usize = 96;

/// What was taken over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakenOver {
    /// The backups that were cut off.
    pub backups: BTreeSet<String>,
    /// Their packs of which something was used.
    pub packs: u64,
    /// Bytes of the data directory that did not have to be stored again.
    pub bytes: u64,
}

/// First half of the SHA-256 of some contents: more than anybody can find two of.
type Name = u128;

fn name_of(contents: &[u8]) -> Name {
    let digest = Sha256::of(contents);
    u128::from_le_bytes(*digest.bytes().first_chunk().expect("a digest has 32 bytes"))
}

/// Where contents lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remaining {
    /// Place in this backup's table of packs.
    pub place: u32,
    pub frame: u32,
    pub offset: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct At {
    run: u16,
    pack: u32,
    frame: u32,
    offset: u32,
}

/// The packs of backups that were cut off.
pub(super) struct Remains<'a> {
    lane: &'a Lane,
    block_size: usize,
    /// Pieces of contents that are held at most, all in all.
    window: usize,
    state: Mutex<State>,
    /// Rung when a pack was read.
    bell: Condvar,
}

#[derive(Default)]
struct State {
    runs: Vec<Run>,
    found: HashMap<Name, At>,
    /// Packs that are being read.
    reading: usize,
}

/// The packs of one backup, in the order in which they were begun.
struct Run {
    packs: Vec<StoredPack>,
    /// The next one to be read.
    next: usize,
    /// The last one in which something was found.
    reached: usize,
    /// Contents that were not found since, or since the last pack was given up for them.
    missed: usize,
    held: BTreeMap<usize, Held>,
}

/// A pack that was read.
struct Held {
    reference: PackRef,
    /// Its place, once something of it is used.
    place: Option<u32>,
    names: Vec<Name>,
}

impl<'a> Remains<'a> {
    /// Looks for what backups left that were cut off before `own`, and returns it, if there is anything, and what remains of
    /// the budget beside it. Whoever asks holds the lease: what is not condemned now stays.
    ///
    /// # Errors
    /// [`RepoError`] if a listing or a tombstone cannot be read.
    pub fn beside(
        budget: Budget,
        lane: &'a Lane,
        own: &str,
        block_size: u32,
    ) -> Result<(Budget, Option<Self>), RepoError> {
        let (beside, window) = budget.beside_remains();
        let remains = Self::find(lane, own, block_size, window)?;
        Ok((if remains.is_some() { beside } else { budget }, remains))
    }

    fn find(lane: &'a Lane, own: &str, block_size: u32, window: usize) -> Result<Option<Self>, RepoError> {
        let mut names = lane.cut_off()?;
        names.retain(|name| name != own);
        if names.is_empty() {
            return Ok(None);
        }
        let condemned = lane.tombstones()?;
        let mut runs = Vec::new();
        for name in names.iter().rev().take(RUNS) {
            let mut packs = lane.list_packs_of(name)?;
            packs.retain(|pack| !condemned.iter().any(|stone| stone.tombstone.condemns_pack(name, pack.number)));
            packs.sort_unstable_by_key(|pack| pack.number);
            if !packs.is_empty() {
                runs.push(Run { packs, next: 0, reached: 0, missed: 0, held: BTreeMap::new() });
            }
        }
        if runs.is_empty() {
            return Ok(None);
        }
        let state = Mutex::new(State { runs, ..State::default() });
        let block_size = (block_size as usize).max(1);
        Ok(Some(Self { lane, block_size, window, state, bell: Condvar::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Finds a frame whose contents are these; `place` gives its pack a place, the first time. Reads packs first, if the
    /// window has come near its end.
    pub fn frame(&self, contents: &[u8], place: impl FnMut(&PackRef) -> u32) -> Option<Remaining> {
        self.read_ahead();
        self.state().look(name_of(contents), place)
    }

    /// Finds a block whose contents are these.
    pub fn block(&self, contents: &[u8], place: impl FnMut(&PackRef) -> u32) -> Option<Remaining> {
        let name = name_of(contents);
        let mut state = self.state();
        let found = state.look(name, place);
        if found.is_none() {
            state.miss();
        }
        found
    }

    /// Reads packs, if the window has come near its end, before blocks are looked for one by one.
    pub fn before_blocks(&self) {
        self.read_ahead();
    }

    /// Reads packs until enough of each backup's are held ahead of where the copy is, or another thread is at it.
    fn read_ahead(&self) {
        let mut state = self.state();
        let ahead = self.window / (2 * state.runs.len());
        loop {
            if let Some((run, number)) = state.take_next(ahead) {
                let pack = state.runs[usize::from(run)].packs[number].clone();
                drop(state);
                let reading = Reading(self);
                let read = self.read(&pack, run, number as u32);
                state = self.state();
                state.take_in(run, number, read, self.window);
                drop(state);
                drop(reading);
                state = self.state();
            } else if state.reading > 0 && state.is_short(ahead / 2) {
                state = self.bell.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            } else {
                return;
            }
        }
    }

    fn read(&self, pack: &StoredPack, run: u16, number: u32) -> Result<(PackRef, Vec<(Name, At)>), RepoError> {
        let mut found = Vec::new();
        let reference = self.lane.read_back(pack, &mut |frame, raw, hashed| {
            let mut add = |contents: &[u8], offset| {
                found.push((name_of(contents), At { run, pack: number, frame, offset }));
            };
            add(raw, 0);
            if hashed {
                let blocks = (0u32..).step_by(self.block_size).zip(raw.chunks(self.block_size));
                blocks.for_each(|(offset, block)| add(block, offset));
            }
        })?;
        Ok((reference, found))
    }
}

/// Says that a pack is no longer being read, whatever became of it.
struct Reading<'a, 'b>(&'a Remains<'b>);

impl Drop for Reading<'_, '_> {
    fn drop(&mut self) {
        self.0.state().reading -= 1;
        self.0.bell.notify_all();
    }
}

impl Run {
    /// Pieces of contents that are held of packs behind the last one in which something was found.
    fn ahead(&self) -> usize {
        self.held.range(self.reached + 1..).map(|(_, held)| held.names.len()).sum()
    }
}

impl State {
    /// Takes the next pack to be read of a backup of which less than so much is held ahead.
    fn take_next(&mut self, ahead: usize) -> Option<(u16, usize)> {
        let short = |run: &&mut Run| run.next < run.packs.len() && run.ahead() < ahead;
        let (number, run) = (0u16..).zip(&mut self.runs).find(|(_, run)| short(run))?;
        run.next += 1;
        self.reading += 1;
        Some((number, run.next - 1))
    }

    fn is_short(&self, ahead: usize) -> bool {
        self.runs.iter().any(|run| run.ahead() < ahead)
    }

    /// Takes in what was read, and lets go of what lies behind if that is too much.
    fn take_in(&mut self, run: u16, number: usize, read: Result<(PackRef, Vec<(Name, At)>), RepoError>, window: usize) {
        let own = &mut self.runs[usize::from(run)];
        match read {
            Ok((reference, found)) => {
                let names = found.iter().map(|(name, _)| *name).collect();
                for (name, at) in found {
                    self.found.entry(name).or_insert(at);
                }
                own.held.insert(number, Held { reference, place: None, names });
            }
            Err(problem) if matches!(problem.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {}
            // A store that does not answer now is needed for other things.
            Err(_) => own.next = own.packs.len(),
        }
        let held =
            |runs: &[Run]| -> usize { runs.iter().flat_map(|run| run.held.values()).map(|h| h.names.len()).sum() };
        while held(&self.runs) > window {
            let behind = |run: &Run| run.held.keys().next().copied().filter(|first| *first < run.reached);
            let Some((run, first)) = (0u16..).zip(&self.runs).find_map(|(n, run)| Some((n, behind(run)?))) else {
                break;
            };
            self.forget(run, first);
        }
    }

    fn forget(&mut self, run: u16, number: usize) {
        let Some(held) = self.runs[usize::from(run)].held.remove(&number) else { return };
        for name in held.names {
            let its = |at: &At| at.run == run && at.pack as usize == number;
            if self.found.get(&name).is_some_and(its) {
                self.found.remove(&name);
            }
        }
    }

    fn look(&mut self, name: Name, mut place: impl FnMut(&PackRef) -> u32) -> Option<Remaining> {
        let At { run, pack, frame, offset } = *self.found.get(&name)?;
        let run = &mut self.runs[usize::from(run)];
        run.reached = run.reached.max(pack as usize);
        run.missed = 0;
        let held = run.held.get_mut(&(pack as usize))?;
        let reference = &held.reference;
        let place = *held.place.get_or_insert_with(|| place(reference));
        Some(Remaining { place, frame, offset })
    }

    /// Notes that contents were not found. As much as a pack holds, and that pack is passed over: what was in it is gone.
    fn miss(&mut self) {
        for run in &mut self.runs {
            run.missed += 1;
            let next = run.held.range(run.reached..).next().map(|(number, held)| (*number, held.names.len()));
            if let Some((number, holds)) = next
                && run.missed > holds
            {
                (run.reached, run.missed) = (number + 1, 0);
            }
        }
    }
}
