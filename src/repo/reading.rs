//! Who reads: a restore, and the recovery behind it, told to expiry so that nothing goes away under them.
//!
//! A reading is a row of numbered records of one holder; unlike leases, readings do not exclude each other, nor anything
//! but removal. The last record counts: from when it was stored, for as long as it says, by the store's clock. As long as a
//! reader does not know yet what it needs, it needs everything. A reading that cannot be recorded, for want of the right
//! to write, keeps nobody from reading: in a disaster that comes first.
//!
//! What a reader needs may be condemned already. Then it counts who was first: an expiry that looked before the reading
//! was stored is found by its lease, and the reader is told; one that looks later sees the reading.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::keeper::Keeper;
use super::lane::Lane;
use super::lease::{HOLDS, Purpose, ROUNDING, all_held, held};
use super::process::Process;
use super::repository::random_name;
use super::tombstone::SegmentRange;
use super::{RepoError, versioned};
use crate::format::document;
use crate::store::{Created, Key};

/// Version of a reading's record. Readers know every version, writers write the last.
/// - 1: first release.
pub const READING_VERSION: u32 = 1;

/// Longest time that a record holds, whatever it says: a wrong one must not keep everything for ever.
pub const LONGEST_READING: Duration = Duration::from_secs(90 * 86400);
/// Longest time that one record takes to be stored: nobody waits for it in a disaster.
const RECORD_TIME: Duration = Duration::from_secs(20);
/// How often a number of one's own is found taken, by a record whose reply was lost.
const TAKES: usize = 20;

/// What is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// The backup.
    pub backup: String,
    /// The log.
    pub wal: Vec<SegmentRange>,
}

/// One record of a reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadingRecord {
    /// [`READING_VERSION`].
    pub version: u32,
    /// Who reads: a random word.
    pub holder: String,
    /// Its host, for people.
    pub host: String,
    /// Its process, where the kernel tells; none for a recovery that was left to itself.
    #[serde(default)]
    pub process: Option<Process>,
    /// What it reads; everything as long as that is not known.
    #[serde(default)]
    pub needs: Option<Needs>,
    /// How long it holds, from when it was stored.
    pub seconds: u64,
    /// Whether the reader has come to an end.
    #[serde(default)]
    pub released: bool,
}

/// The last record of a reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredReading {
    /// Who reads.
    pub holder: String,
    /// Its number, from 1.
    pub number: u32,
    /// What it says; `None` if it is damaged, or written by a newer walvault: then everything is read, for as long as a
    /// record of a restore at work holds.
    pub record: Option<ReadingRecord>,
    /// When it was stored, by the store's clock.
    pub stored_at: DateTime<Utc>,
}

impl StoredReading {
    /// Returns when it runs out, by the store's clock.
    pub fn until(&self) -> DateTime<Utc> {
        let seconds = self.record.as_ref().map_or(HOLDS.as_secs(), |record| record.seconds);
        self.stored_at + chrono::Duration::seconds(seconds.min(LONGEST_READING.as_secs()) as i64)
    }

    /// Returns whether somebody may read at `now`, by the store's clock.
    pub fn is_live(&self, now: DateTime<Utc>) -> bool {
        let over = self.record.as_ref().is_some_and(|record| {
            let forgotten = record.process.is_some() && record.process == Process::own() && !held(&record.holder);
            record.released || forgotten || record.process.as_ref().is_some_and(Process::is_gone)
        });
        !over && now <= self.until() + ROUNDING
    }

    /// Returns what is read; `None` for everything.
    pub fn needs(&self) -> Option<&Needs> {
        self.record.as_ref()?.needs.as_ref()
    }

    /// Returns where.
    pub fn host(&self) -> &str {
        self.record.as_ref().map_or("an unknown host", |record| record.host.as_str())
    }
}

impl Lane {
    /// Returns the last record of everybody who ever read and was not forgotten since.
    pub fn readings(&self) -> Result<Vec<StoredReading>, RepoError> {
        let store = &self.repository.store;
        let mut last: BTreeMap<String, (u32, crate::store::Meta)> = BTreeMap::new();
        for meta in store.list(Some(&self.repository.layout.readings(self.id())?))? {
            let Some(holder) = meta.key.parent().map(|folder| folder.name().to_owned()) else { continue };
            let Ok(number) = meta.key.name().parse::<u32>() else { continue };
            if last.get(&holder).is_none_or(|(known, _)| *known < number) {
                last.insert(holder, (number, meta));
            }
        }
        let mut readings = Vec::new();
        for (holder, (number, meta)) in last {
            let stored = store.get(&meta.key)?;
            let record = stored.and_then(|stored| document::decode::<ReadingRecord>(&stored, "reading").ok());
            let record = record.filter(|record| versioned(&meta.key, record.version, READING_VERSION).is_ok());
            readings.push(StoredReading { holder, number, record, stored_at: meta.last_modified });
        }
        Ok(readings)
    }
}

/// A reading that is renewed until it is dropped, which ends it, or left to a recovery.
#[derive(Debug)]
pub struct Reading {
    inner: Arc<Inner>,
    keeper: Keeper,
    /// An expiry may have looked before it, and be at work since.
    expiry_came_first: bool,
}

#[derive(Debug)]
struct Inner {
    lane: Lane,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    number: u32,
    record: ReadingRecord,
    over: bool,
}

impl Reading {
    /// Says that somebody reads, and does not know yet what.
    ///
    /// # Errors
    /// [`RepoError`] if that cannot be recorded: then nobody heeds it.
    pub fn begin(lane: &Lane) -> Result<Self, RepoError> {
        let record = ReadingRecord {
            version: READING_VERSION,
            holder: random_name()?,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            process: Process::own(),
            needs: None,
            seconds: HOLDS.as_secs(),
            released: false,
        };
        let lane = lane.within(RECORD_TIME);
        all_held().insert(record.holder.clone());
        let state = State { number: 0, record, over: false };
        let inner = Arc::new(Inner { lane, state: Mutex::new(state) });
        if let Err(error) = inner.record(|_| {}) {
            inner.forget();
            return Err(error);
        }
        let kept = Arc::clone(&inner);
        // What failed is tried again the next time.
        let keeper = Keeper::begin("reading", move || drop(kept.record(|_| {})));
        let mut reading = Self { inner, keeper, expiry_came_first: false };
        // Only now: one that takes its lease from here on sees the reading.
        reading.expiry_came_first = reading.inner.lane.live_lease(Purpose::Expire)?.is_some();
        Ok(reading)
    }

    /// Says what is read. From then on the rest may go.
    ///
    /// # Errors
    /// [`RepoError`] if that cannot be recorded: then everything is held, for as long as the last record holds.
    pub fn needs(&self, needs: Needs) -> Result<(), RepoError> {
        self.inner.record(|record| record.needs = Some(needs.clone())).map(drop)
    }

    /// Returns whether an expiry may be removing this, or has: it is condemned or gone, and one was at work before the reading
    /// began. What the reader has seen of the catalogue since may have gone with the tombstone that said so.
    ///
    /// # Errors
    /// [`RepoError`] if that cannot be found out.
    pub fn came_too_late(&self, needs: &Needs) -> Result<bool, RepoError> {
        if !self.expiry_came_first {
            return Ok(false);
        }
        let stones = self.inner.lane.tombstones()?;
        let condemned = stones.iter().map(|stone| &stone.tombstone).any(|stone| {
            let mut gone = stone.wal.iter().chain(&stone.expired);
            stone.condemns(&needs.backup) || gone.any(|gone| needs.wal.iter().any(|needed| gone.meets(needed)))
        });
        // Only now: a manifest goes before the tombstone that condemned it.
        Ok(condemned || !self.inner.lane.backups()?.iter().any(|backup| backup.id == needs.backup))
    }

    /// Leaves it to a recovery that goes on for so long without anybody who could renew it; returns until when it holds.
    ///
    /// # Errors
    /// [`RepoError`] if that cannot be recorded.
    pub fn leave(mut self, holds: Duration) -> Result<DateTime<Utc>, RepoError> {
        self.keeper.end();
        let holds = holds.min(LONGEST_READING);
        let key = self.inner.record(|record| (record.process, record.seconds) = (None, holds.as_secs()))?;
        self.inner.state().over = true;
        let found = self.inner.lane.repository.store.head(&key)?;
        let stored_at = found.ok_or_else(|| RepoError::Missing { key: key.to_string() })?.last_modified;
        Ok(stored_at + chrono::Duration::seconds(holds.as_secs() as i64))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.keeper.end();
        if !self.inner.state().over {
            // One that cannot be ended runs out.
            let _ = self.inner.record(|record| record.released = true);
        }
        self.inner.forget();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the next record, and returns where.
    fn record(&self, change: impl Fn(&mut ReadingRecord)) -> Result<Key, RepoError> {
        let mut state = self.state();
        change(&mut state.record);
        for _ in 0..TAKES {
            let number = state.number.saturating_add(1);
            let at: Key = self.lane.repository.layout.reading(self.lane.id(), &state.record.holder, number)?;
            let body = vec![Bytes::from(document::encode(&state.record))];
            let created = self.lane.repository.store.create(&at, body)?;
            state.number = number;
            // A record whose reply was lost has this number, and may say less.
            if created == Created::New {
                return Ok(at);
            }
        }
        Err(RepoError::Taken { key: state.record.holder.clone() })
    }

    fn forget(&self) {
        let holder = self.state().record.holder.clone();
        all_held().remove(&holder);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::repo::Lease;
    use crate::repo::lane_fixture::{Original, lane_without};
    use crate::repo::tombstone::{TOMBSTONE_VERSION, Tombstone};
    use crate::store::Verb;
    use crate::store::fault::{Fault, When};

    fn needs(backup: &str) -> Needs {
        let segment = |name: &str| name.parse().unwrap();
        let range =
            SegmentRange { from: segment("000000010000000000000007"), through: segment("000000010000000000000009") };
        Needs { backup: backup.to_owned(), wal: vec![range] }
    }

    fn live(lane: &Lane) -> Vec<StoredReading> {
        let now = lane.store_time().unwrap();
        lane.readings().unwrap().into_iter().filter(|reading| reading.is_live(now)).collect()
    }

    #[test]
    fn readers_are_in_nobodys_way_and_need_everything_until_they_say_what() {
        let lane = lane_without(&[]);
        let (one, two) = (Reading::begin(&lane).unwrap(), Reading::begin(&lane).unwrap());
        drop(Lease::take(&lane, Purpose::Backup).unwrap());
        drop(Lease::take(&lane, Purpose::Expire).unwrap());
        assert_eq!(live(&lane).iter().map(StoredReading::needs).collect::<Vec<_>>(), [None, None]);
        one.needs(needs("a")).unwrap();
        drop(two);
        let left = live(&lane);
        assert_eq!((left.len(), left[0].needs(), left[0].number), (1, Some(&needs("a")), 2));
        drop(one);
        assert_eq!(live(&lane), []);
    }

    #[test]
    fn what_is_left_to_a_recovery_holds_for_its_time_by_the_stores_clock_and_no_longer() {
        let lane = lane_without(&[]);
        let reading = Reading::begin(&lane).unwrap();
        reading.needs(needs("a")).unwrap();
        let until = reading.leave(Duration::from_secs(86400)).unwrap();
        let left = live(&lane);
        assert_eq!((left.len(), left[0].until()), (1, until));
        assert!(left[0].is_live(until) && !left[0].is_live(until + chrono::Duration::seconds(3)));
        let endless = ReadingRecord { seconds: u64::MAX, ..left[0].record.clone().unwrap() };
        let endless = StoredReading { record: Some(endless), ..left[0].clone() };
        assert!(!endless.is_live(endless.stored_at + chrono::Duration::days(91)));
    }

    #[test]
    fn a_reader_that_certainly_died_reads_no_more_and_one_elsewhere_for_as_long_as_it_said() {
        let lane = lane_without(&[]);
        let reading = Reading::begin(&lane).unwrap();
        let stored = live(&lane).remove(0);
        let record = stored.record.clone().unwrap();
        let of =
            |process| StoredReading { record: Some(ReadingRecord { process, ..record.clone() }), ..stored.clone() };
        let own = Process::own().unwrap();
        assert!(!of(Some(Process { started: own.started + 1, ..own.clone() })).is_live(stored.stored_at));
        let elsewhere = of(Some(Process { boot: "another".to_owned(), ..own }));
        assert!(elsewhere.is_live(stored.stored_at + chrono::Duration::seconds(600)));
        assert!(!elsewhere.is_live(stored.stored_at + chrono::Duration::seconds(603)));
        let damaged = StoredReading { record: None, ..stored.clone() };
        assert!(damaged.needs().is_none() && damaged.is_live(stored.stored_at));
        // As if the process had been killed, and had left it.
        reading.inner.forget();
        assert_eq!(live(&lane), []);
    }

    /// Something in a manifest's place.
    fn commit(lane: &Lane, backup: &str) -> Key {
        let key = lane.repository.layout.manifest(lane.id(), backup, 1).unwrap();
        lane.repository.store.create(&key, vec![Bytes::from_static(b"a manifest")]).unwrap();
        key
    }

    fn bury(lane: &Lane, number: u32, backups: &[&str], wal: Vec<SegmentRange>, expired: Vec<SegmentRange>) -> Key {
        let backups = backups.iter().map(|backup| (*backup).to_owned()).collect();
        let (host, decided_at) = ("db1".to_owned(), DateTime::UNIX_EPOCH);
        let (forgotten, packs, kept) = (vec![], vec![], vec![]);
        let version = TOMBSTONE_VERSION;
        let stone = Tombstone { version, host, decided_at, backups, forgotten, packs, wal, expired, kept };
        lane.create_tombstone(number, &stone).unwrap();
        lane.repository.layout.tombstone(lane.id(), number).unwrap()
    }

    #[test]
    fn what_an_expiry_has_finished_removing_is_not_safe_and_a_store_that_does_not_tell_is_an_error() {
        let original = Original::without(&[]);
        let (lane, failing, faults) = original.copy();
        let (manifest, _) = (commit(&lane, "gone"), commit(&lane, "a"));
        let stone = bury(&lane, 1, &["gone"], needs("gone").wal, vec![]);
        let expiry = Lease::take(&lane, Purpose::Expire).unwrap();
        let reading = Reading::begin(&failing).unwrap();
        // The reader sees both backups; then the expiry removes one, and last what said so.
        assert_eq!(lane.backups().unwrap().len(), 2);
        lane.repository.store.delete(&manifest).unwrap();
        lane.repository.store.delete(&stone).unwrap();
        drop(expiry);
        assert!(reading.came_too_late(&Needs { wal: vec![], ..needs("gone") }).unwrap(), "its manifest is gone");
        assert!(!reading.came_too_late(&needs("a")).unwrap());
        // Of the log that went, only a later tombstone tells.
        bury(&lane, 2, &[], vec![], needs("gone").wal);
        assert!(reading.came_too_late(&needs("a")).unwrap());
        assert!(!reading.came_too_late(&Needs { wal: vec![], ..needs("a") }).unwrap());
        faults.script(When::every(Verb::List).on("/backups"), Fault::Before(std::io::ErrorKind::TimedOut));
        assert!(reading.came_too_late(&Needs { wal: vec![], ..needs("a") }).is_err());
    }

    #[test]
    fn only_an_expiry_that_came_first_is_in_a_readers_way_and_only_where_it_condemns() {
        let lane = lane_without(&[]);
        ["a", "gone"].into_iter().for_each(|backup| drop(commit(&lane, backup)));
        let stone = |number, backups: &[&str], wal| drop(bury(&lane, number, backups, wal, vec![]));
        stone(1, &["gone"], vec![]);
        assert!(!Reading::begin(&lane).unwrap().came_too_late(&needs("gone")).unwrap(), "nobody is at work");
        let expiry = Lease::take(&lane, Purpose::Expire).unwrap();
        let reading = Reading::begin(&lane).unwrap();
        drop(expiry);
        // It may have removed some of it in between.
        assert!(reading.came_too_late(&needs("gone")).unwrap());
        assert!(!reading.came_too_late(&needs("a")).unwrap());
        let last = needs("a").wal[0].through;
        stone(2, &[], vec![SegmentRange { from: last, through: last }]);
        assert!(reading.came_too_late(&needs("a")).unwrap());
    }

    #[test]
    fn a_lost_reply_costs_a_number_and_a_store_that_takes_nothing_says_so() {
        let original = Original::without(&[]);
        let (sound, failing, faults) = original.copy();
        faults.script(When::next(Verb::Create), Fault::After(std::io::ErrorKind::Other));
        let first = Reading::begin(&failing);
        let reading = first.or_else(|_| Reading::begin(&failing)).unwrap();
        faults.script(When::next(Verb::Create), Fault::After(std::io::ErrorKind::Other));
        let _ = reading.needs(needs("a"));
        reading.needs(needs("b")).unwrap();
        assert!(live(&sound).iter().any(|one| one.needs() == Some(&needs("b"))), "{:?}", live(&sound));
        drop(reading);
        faults.script(When::every(Verb::Create), Fault::Before(std::io::ErrorKind::PermissionDenied));
        let refused = Reading::begin(&failing).unwrap_err();
        assert_eq!(refused.kind(), crate::error::ErrorKind::Denied);
    }
}
