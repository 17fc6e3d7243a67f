//! Packs that one reader goes through, each asked for as rarely as memory allows.
//!
//! A frame table that was read is kept for the next time that the pack is wanted, and threads that want one pack at once
//! ask for it once. Small packs of which most is wanted are read whole, table and all, with one request.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::RepoError;
use super::backups::PackReader;
use super::lane::Lane;
use crate::format::FormatError;
use crate::format::pack::FrameTable;
use crate::format::tables::{PackRef, PackSource, PackTable};
use crate::store::Reading;

/// Most bytes of frame tables that are kept; the one that is in use comes on top.
pub const TABLES_BYTES: u64 = 1 << 20;
/// Most bytes of whole packs that are kept though nobody uses them now.
pub const KEPT_BYTES: u64 = 3 << 20;

/// Packs of one manifest.
pub struct Packs<'a> {
    lane: &'a Lane,
    table: &'a PackTable,
    tables_bytes: u64,
    slots: Mutex<VecDeque<(u32, Arc<Mutex<Slot>>)>>,
    kept: Mutex<VecDeque<(u32, Arc<WholePack>)>>,
}

/// What is known of one pack.
#[derive(Default)]
struct Slot {
    reader: Option<PackReader>,
    whole: Weak<WholePack>,
}

/// A pack in memory.
#[derive(Debug)]
pub struct WholePack {
    reader: PackReader,
    bytes: Vec<u8>,
}

/// Frames of a pack that are read in their order, with one request.
pub struct FrameReading<'a> {
    pack: &'a PackReader,
    reading: Reading,
}

impl<'a> Packs<'a> {
    /// Nothing is read yet; `table` is that of the lane's manifest.
    pub fn new(lane: &'a Lane, table: &'a PackTable) -> Self {
        Self { lane, table, tables_bytes: TABLES_BYTES, slots: Mutex::default(), kept: Mutex::default() }
    }

    /// Keeps so many bytes of frame tables instead of [`TABLES_BYTES`].
    #[must_use]
    pub fn keeping(self, tables_bytes: u64) -> Self {
        Self { tables_bytes, ..self }
    }

    /// Returns what the manifest says of the pack at a place that its leaves or pieces name.
    pub fn reference(&self, place: u32) -> &'a PackRef {
        self.table.get(place).expect("checked when the leaf or the table was read")
    }

    /// Returns the pack at a place, with its frame table.
    ///
    /// # Errors
    /// As [`Lane::open_pack`].
    pub fn reader(&self, place: u32) -> Result<PackReader, RepoError> {
        let slot = self.slot(place);
        let mut slot = lock(&slot);
        if let Some(reader) = &slot.reader {
            return Ok(reader.clone());
        }
        let reader = self.lane.open_pack(self.reference(place))?;
        slot.reader = Some(reader.clone());
        drop(slot);
        self.forget();
        Ok(reader)
    }

    /// Returns the whole pack at a place, which somebody may hold already; otherwise it is read into `memory`.
    ///
    /// # Errors
    /// As [`Lane::open_pack`].
    pub fn whole(&self, place: u32, memory: &mut Vec<u8>) -> Result<Arc<WholePack>, RepoError> {
        let slot = self.slot(place);
        let mut slot = lock(&slot);
        if let Some(whole) = slot.whole.upgrade() {
            return Ok(whole);
        }
        let whole = self.lane.whole_pack(self.reference(place), std::mem::take(memory))?;
        let whole = Arc::new(whole);
        slot.reader = Some(whole.reader.clone());
        slot.whole = Arc::downgrade(&whole);
        drop(slot);
        self.forget();
        Ok(whole)
    }

    /// As [`Packs::whole`], and keeps it for the next time, if it is a small one.
    ///
    /// # Errors
    /// As [`Lane::open_pack`].
    pub fn kept(&self, place: u32) -> Result<Arc<WholePack>, RepoError> {
        let whole = self.whole(place, &mut Vec::new())?;
        let mut kept = lock(&self.kept);
        kept.retain(|(known, _)| *known != place);
        kept.push_back((place, Arc::clone(&whole)));
        while kept.iter().map(|(_, whole)| whole.bytes.len() as u64).sum::<u64>() > KEPT_BYTES {
            kept.pop_front();
        }
        Ok(whole)
    }

    /// Returns the slot of a pack, which counts as used last.
    fn slot(&self, place: u32) -> Arc<Mutex<Slot>> {
        let mut slots = lock(&self.slots);
        let known = slots.iter().position(|(known, _)| *known == place);
        let slot = known.and_then(|at| slots.remove(at)).map_or_else(Arc::default, |(_, slot)| slot);
        slots.push_back((place, Arc::clone(&slot)));
        slot
    }

    /// Forgets the tables that were not used for longest. One that a thread is at work with is passed over.
    fn forget(&self) {
        let mut slots = lock(&self.slots);
        let mut bytes = 0;
        let mut keep: Vec<bool> = Vec::with_capacity(slots.len());
        for (_, slot) in slots.iter().rev() {
            let Ok(slot) = slot.try_lock() else {
                keep.push(true);
                continue;
            };
            bytes += slot.reader.as_ref().map_or(0, |reader| reader.table.memory_bytes());
            keep.push(bytes <= self.tables_bytes || slot.whole.strong_count() > 0);
        }
        let mut keep = keep.into_iter().rev();
        slots.retain(|_| keep.next().unwrap_or(true));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    /// Reads a pack that a manifest names, with one request, into memory.
    fn whole_pack(&self, pack: &PackRef, memory: Vec<u8>) -> Result<WholePack, RepoError> {
        let PackSource::Lane { backup, number } = &pack.source;
        let key = self.repository.layout.pack(self.id(), backup, *number)?;
        let len = usize::try_from(pack.stored_bytes).map_err(|_| RepoError::object(&key, FormatError::Memory))?;
        let mut reading = self.repository.store.reading_into(memory, &key, 0..pack.stored_bytes);
        if reading.take(len)?.is_none() {
            return Err(RepoError::Missing { key: key.to_string() });
        }
        let bytes = reading.into_memory();
        let table = FrameTable::decode(&bytes, pack.stored_bytes).map_err(|source| RepoError::object(&key, source))?;
        Ok(WholePack { reader: self.pack_reader(pack, key, table)?, bytes })
    }
}

impl WholePack {
    /// The pack without what it holds.
    pub fn reader(&self) -> &PackReader {
        &self.reader
    }

    /// Verifies and decompresses one frame.
    ///
    /// # Errors
    /// [`RepoError::Object`] if it is not what was stored.
    pub fn decode(&self, place: u32, raw: &mut Vec<u8>) -> Result<(), RepoError> {
        let frame = self.reader.frame(place)?;
        let at = frame.at as usize;
        let stored = self.bytes.get(at..at + frame.stored_len as usize).unwrap_or_default();
        frame.read(stored, raw).map_err(|source| self.reader.wrong(source))
    }

    /// Gives the memory back that it is in.
    pub fn into_memory(self) -> Vec<u8> {
        self.bytes
    }
}

impl PackReader {
    /// Begins to read frames `first..=last`, of which some may be passed over.
    ///
    /// # Errors
    /// [`RepoError::Object`] if the pack has no such frames.
    pub fn frames(&self, first: u32, last: u32) -> Result<FrameReading<'_>, RepoError> {
        let (first, last) = (self.frame(first)?, self.frame(last)?);
        let range = first.at..last.at + u64::from(last.stored_len);
        Ok(FrameReading { pack: self, reading: self.store.reading(&self.key, range) })
    }
}

impl FrameReading<'_> {
    /// Says that all frames up to `last` are wanted next: of a file so much is read ahead.
    ///
    /// # Errors
    /// [`RepoError::Object`] if the pack has no such frame.
    pub fn expect(&mut self, last: u32) -> Result<(), RepoError> {
        let last = self.pack.frame(last)?;
        self.reading.expect(last.at + u64::from(last.stored_len));
        Ok(())
    }

    /// Verifies and decompresses one frame, which follows the last one or lies behind it.
    ///
    /// # Errors
    /// [`RepoError::Missing`] if the pack is gone, [`RepoError::Object`] if the frame is not what was stored.
    pub fn decode(&mut self, place: u32, raw: &mut Vec<u8>) -> Result<(), RepoError> {
        let frame = self.pack.frame(place)?;
        let stored = match self.reading.skip_to(frame.at)? {
            Some(()) => self.reading.take(frame.stored_len as usize)?,
            None => None,
        };
        let stored = stored.ok_or_else(|| RepoError::Missing { key: self.pack.key.to_string() })?;
        frame.read(stored, raw).map_err(|source| self.pack.wrong(source))
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::format::frame::Compressor;
    use crate::format::pack::PackWriter;
    use crate::repo::{LaneFacts, Repository};
    use crate::store::{RetryPolicy, Store, Verb};

    const RAW: usize = 100_000;

    /// A lane with two packs of three frames each.
    fn lane() -> (Store, Lane, PackTable) {
        let store = Store::over(Arc::new(InMemory::new()), "memory", RetryPolicy::brisk(1)).expect("a runtime");
        let (repository, _) = Repository::init(store.clone(), "main").expect("an empty store");
        let lane = repository.lane_for(&LaneFacts::sample()).expect("a new lane");
        let packs = (1..=2).map(|number| {
            let mut pack = PackWriter::new(&lane.pack_identity("b", number), 8192).expect("a short identity");
            for frame in 0..3u8 {
                pack.append(&[number as u8 * 10 + frame; RAW], &[], &mut Compressor::new(3)).expect("a small frame");
            }
            Some(lane.create_pack(&"b".into(), number, pack.finish()).expect("a free name").0)
        });
        let table = PackTable::new(packs.collect());
        (store, lane, table)
    }

    /// Returns the requests that something makes.
    fn requests(store: &Store, work: impl FnOnce()) -> u64 {
        let before = store.requests().of(Verb::GetRange);
        work();
        store.requests().of(Verb::GetRange) - before
    }

    #[test]
    fn what_is_known_of_a_pack_is_not_asked_again() {
        let (store, lane, table) = lane();
        let (packs, mut raw) = (Packs::new(&lane, &table), Vec::new());
        assert_eq!(requests(&store, || drop(packs.reader(0).expect("a pack"))), 1);
        assert_eq!(requests(&store, || drop(packs.reader(0).expect("a pack"))), 0);
        let whole = packs.whole(1, &mut Vec::new()).expect("a pack");
        let again = requests(&store, || {
            assert!(Arc::ptr_eq(&whole, &packs.whole(1, &mut Vec::new()).expect("a pack")));
            packs.reader(1).expect("its table came with it");
        });
        assert_eq!(again, 0, "somebody holds it");
        whole.decode(2, &mut raw).expect("a frame");
        assert_eq!(raw, vec![22; RAW]);
        drop(whole);
        assert_eq!(requests(&store, || drop(packs.whole(1, &mut Vec::new()).expect("a pack"))), 1, "nobody holds it");
        assert_eq!(requests(&store, || drop(packs.kept(1).expect("a pack"))), 1);
        assert_eq!(requests(&store, || drop(packs.kept(1).expect("a pack"))), 0, "it is kept");
    }

    #[test]
    fn threads_that_want_one_pack_ask_for_it_once() {
        let (store, lane, table) = lane();
        let packs = Packs::new(&lane, &table);
        let asked = requests(&store, || {
            std::thread::scope(|scope| {
                let held: Vec<_> = (0..8).map(|_| scope.spawn(|| packs.kept(0).expect("a pack"))).collect();
                held.into_iter().for_each(|held| drop(held.join()));
            });
        });
        assert_eq!(asked, 1);
    }

    #[test]
    fn frames_come_in_order_with_one_request_and_some_are_passed_over() {
        let (store, lane, table) = lane();
        let (packs, mut raw) = (Packs::new(&lane, &table), Vec::new());
        let pack = packs.reader(0).expect("a pack");
        let asked = requests(&store, || {
            let mut frames = pack.frames(0, 2).expect("three frames");
            for frame in [0, 2] {
                frames.expect(frame).expect("a frame");
                frames.decode(frame, &mut raw).expect("a frame");
                assert_eq!(raw, vec![10 + frame as u8; RAW]);
            }
        });
        assert_eq!(asked, 1);
        assert!(pack.frames(0, 3).is_err(), "there is no fourth");
    }

    #[test]
    fn a_pack_of_the_same_shape_is_not_taken_for_another() {
        let (_, lane, table) = lane();
        let (first, second) = (table.get(0).expect("two packs"), table.get(1).expect("two packs"));
        let swapped = PackTable::new(vec![Some(PackRef { source: second.source.clone(), ..first.clone() })]);
        let packs = Packs::new(&lane, &swapped);
        assert!(matches!(packs.whole(0, &mut Vec::new()), Err(RepoError::Object { .. })));
        assert!(matches!(packs.reader(0), Err(RepoError::Object { .. })));
    }
}
