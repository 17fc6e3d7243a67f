//! Packs being filled and stored.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::copy::CopyError;
use super::rate::{Rate, RateLimit};
use super::remains::{Remaining, Remains, TakenOver};
use crate::format::frame::Compressor;
use crate::format::pack::{BlockHash, PackWriter};
use crate::format::tables::{PackRef, PackSource, PackTable};
use crate::repo::Lane;

/// Where packs go, and which are there.
pub(super) struct Shelf<'a> {
    lane: &'a Lane,
    backup: Arc<str>,
    block_size: u32,
    next: AtomicU32,
    places: Mutex<Places>,
    /// What backups left that were cut off, if any did.
    remains: Option<Remains<'a>>,
    /// How fast packs may be stored.
    sending: Option<RateLimit>,
}

/// The table of packs as it grows: those that an older backup lends keep their places.
struct Places {
    table: Vec<Option<PackRef>>,
    /// Places of the older backup that nothing names, to be filled first; the last one next.
    vacant: Vec<u32>,
    /// Places of packs that were taken over from a backup that was cut off, and bytes that are named there.
    taken: PlaceSet,
    taken_bytes: u64,
}

impl<'a> Shelf<'a> {
    /// A shelf for one backup; `lent` are the packs of the backup that it builds on.
    pub fn new(lane: &'a Lane, backup: &str, block_size: u32, lent: Option<&PackTable>) -> Self {
        let table: Vec<Option<PackRef>> = lent.map(PackTable::places).unwrap_or_default().to_vec();
        let vacant = (0..table.len() as u32).rev().filter(|place| table[*place as usize].is_none()).collect();
        let places = Mutex::new(Places { table, vacant, taken: PlaceSet::default(), taken_bytes: 0 });
        Self { lane, backup: backup.into(), block_size, next: AtomicU32::new(1), places, remains: None, sending: None }
    }

    /// The same, beside what backups left that were cut off: what is there is not stored again.
    #[must_use]
    pub fn beside(self, remains: Option<Remains<'a>>) -> Self {
        Self { remains, ..self }
    }

    /// The same, storing no more than so many bytes in a second.
    #[must_use]
    pub fn sending(self, rate: Option<Rate>) -> Self {
        Self { sending: rate.map(RateLimit::new), ..self }
    }

    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns a place that nothing names yet.
    fn take_place(&self) -> u32 {
        let mut places = self.places();
        if let Some(place) = places.vacant.pop() {
            return place;
        }
        places.table.push(None);
        places.table.len() as u32 - 1
    }

    /// Returns what was taken over from backups that were cut off, if anything was.
    pub fn taken_over(&self) -> Option<TakenOver> {
        let places = self.places();
        let mut taken = TakenOver { bytes: places.taken_bytes, ..TakenOver::default() };
        for (place, pack) in (0u32..).zip(&places.table) {
            if let Some(PackRef { source: PackSource::Lane { backup, .. }, .. }) = pack
                && places.taken.has(place)
            {
                taken.backups.insert(backup.to_string());
                taken.packs += 1;
            }
        }
        (taken.packs > 0).then_some(taken)
    }

    /// Gives a pack that is there already a place.
    fn adopt(&self, pack: &PackRef) -> u32 {
        let place = self.take_place();
        self.places().table[place as usize] = Some(pack.clone());
        place
    }

    /// Returns the table of all packs that are named: those of this backup, of the others those that `named` has, and those
    /// that were taken over.
    pub fn table(self, named: &PlaceSet) -> PackTable {
        let Places { table, taken, .. } = self.places.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        let keep = |(place, pack): (usize, Option<PackRef>)| {
            pack.filter(|PackRef { source: PackSource::Lane { backup, .. }, .. }| {
                *backup == self.backup || named.has(place as u32) || taken.has(place as u32)
            })
        };
        let mut table: Vec<Option<PackRef>> = table.into_iter().enumerate().map(keep).collect();
        while table.last().is_some_and(Option::is_none) {
            table.pop();
        }
        PackTable::new(table)
    }
}

/// Places of a pack table.
#[derive(Clone, Debug, Default)]
pub(super) struct PlaceSet(Vec<u64>);

impl PlaceSet {
    pub fn add(&mut self, place: u32) {
        let word = place as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (place % 64);
    }

    pub fn join(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    pub fn has(&self, place: u32) -> bool {
        self.0.get(place as usize / 64).is_some_and(|word| word & (1 << (place % 64)) != 0)
    }
}

/// One pack at a time, in memory that is used again for the next.
pub(super) struct Filling<'a> {
    shelf: &'a Shelf<'a>,
    limit: usize,
    compressor: Compressor,
    open: Option<Open>,
    buffer: Vec<u8>,
}

struct Open {
    number: u32,
    place: u32,
    pack: PackWriter,
}

impl<'a> Filling<'a> {
    /// Packs are stored when they have `limit` bytes.
    pub fn new(shelf: &'a Shelf<'a>, limit: usize, level: i32) -> Self {
        Self { shelf, limit, compressor: Compressor::new(level), open: None, buffer: Vec::new() }
    }

    fn open(&mut self) -> Result<&mut Open, CopyError> {
        if self.open.is_none() {
            let number = self.shelf.next.fetch_add(1, Ordering::Relaxed);
            let identity = self.shelf.lane.pack_identity(&self.shelf.backup, number);
            let buffer = std::mem::take(&mut self.buffer);
            let pack = PackWriter::reusing(buffer, &identity, self.shelf.block_size);
            let pack = pack.map_err(|source| CopyError::Encode { source })?;
            self.open = Some(Open { number, place: self.shelf.take_place(), pack });
        }
        Ok(self.open.as_mut().expect("opened above"))
    }

    /// Returns the place of the pack and of the frame that the next [`Filling::put`] fills.
    pub fn next_place(&mut self) -> Result<(u32, u32), CopyError> {
        let open = self.open()?;
        Ok((open.place, open.pack.next_frame()))
    }

    /// Returns whether a backup that was cut off may have left what is being stored.
    pub fn has_remains(&self) -> bool {
        self.shelf.remains.is_some()
    }

    /// Finds a frame with these contents in what a backup left that was cut off.
    pub fn remaining_frame(&self, raw: &[u8]) -> Option<Remaining> {
        self.shelf.remains.as_ref()?.frame(raw, |pack| self.shelf.adopt(pack))
    }

    /// Gets ready to look for blocks there.
    pub fn before_blocks(&self) {
        self.shelf.remains.iter().for_each(Remains::before_blocks);
    }

    /// Finds a block with these contents there.
    pub fn remaining_block(&self, raw: &[u8]) -> Option<Remaining> {
        self.shelf.remains.as_ref()?.block(raw, |pack| self.shelf.adopt(pack))
    }

    /// Notes that so many bytes are named in a pack that was found.
    pub fn take_over(&self, place: u32, bytes: u64) {
        let mut places = self.shelf.places();
        places.taken.add(place);
        places.taken_bytes += bytes;
    }

    /// Returns the place of a frame with these contents, which a backup left that was cut off, or adds it.
    pub fn append(&mut self, raw: &[u8], hashes: &[BlockHash]) -> Result<(u32, u32), CopyError> {
        // One that begins elsewhere in a frame is a block of that frame, which only a piece of its own can name.
        if let Some(Remaining { place, frame, offset: 0 }) = self.remaining_frame(raw) {
            self.take_over(place, raw.len() as u64);
            return Ok((place, frame));
        }
        self.put(raw, hashes)
    }

    /// Adds a frame and returns its pack's place and its own; the pack is stored when it is full.
    pub fn put(&mut self, raw: &[u8], hashes: &[BlockHash]) -> Result<(u32, u32), CopyError> {
        self.open()?;
        let open = self.open.as_mut().expect("opened above");
        let frame = open.pack.append(raw, hashes, &mut self.compressor);
        let place = (open.place, frame.map_err(|source| CopyError::Encode { source })?);
        if open.pack.is_full(self.limit) {
            self.close()?;
        }
        Ok(place)
    }

    /// Stores what was begun.
    pub fn close(&mut self) -> Result<(), CopyError> {
        let Some(Open { number, place, pack }) = self.open.take() else { return Ok(()) };
        let pack = pack.finish();
        if let Some(limit) = &self.shelf.sending {
            limit.wait(pack.object.len() as u64, || false);
        }
        let stored = self.shelf.lane.create_pack(&self.shelf.backup, number, pack);
        let (reference, buffer) = stored.map_err(|source| CopyError::Store { source })?;
        self.buffer = buffer;
        self.shelf.places().table[place as usize] = Some(reference);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_added_one_by_one() {
        let mut places = PlaceSet::default();
        for place in [0, 63, 64, 1000] {
            assert!(!places.has(place));
            places.add(place);
            assert!(places.has(place) && !places.has(place + 1));
        }
    }
}
