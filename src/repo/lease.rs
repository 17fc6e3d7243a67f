//! Leases: who is at work on a lane, so that two backups do not meet and nothing is removed under a backup's feet.
//!
//! A lease is a row of numbered records, each created once. The last one counts: it holds from when it was stored for as
//! long as it says, by the store's clock. Its holder renews it by the next record. A number that another one took means
//! that the lease is lost; so does a gap between two records that is longer than the first of them holds.
//!
//! What makes a commit safe is not the time alone. Whoever removes objects first creates an object under the name of the
//! manifest that a dead holder could still commit ([`Lane::fence`](super::Lane::fence)): a commit that comes late finds its
//! name taken. The lease's time decides only who waits for whom.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::keeper::Keeper;
use super::lane::Lane;
use super::process::Process;
use super::repository::random_name;
use super::tombstone::SegmentRange;
use super::{RepoError, versioned};
use crate::error::ErrorKind;
use crate::format::document;
use crate::format::manifest::Manifest;
use crate::format::tables::{PackRef, PackSource, Tables};
use crate::pg::SegmentName;
use crate::store::Created;

/// Version of a lease's record. Readers know every version, writers write the last.
/// - 1: first release.
pub const LEASE_VERSION: u32 = 1;

/// How long a record holds: longer than any outage of a store that a backup survives.
pub(super) const HOLDS: Duration = Duration::from_secs(600);
/// How often it is renewed.
pub(super) const RENEWED: Duration = Duration::from_secs(180);
/// Least time that must be left of a lease when a commit begins.
const COMMIT_TIME: Duration = Duration::from_secs(300);
/// How often a number is found taken by another before whoever wants it gives up.
const TAKES: usize = 20;
/// Longest time that a holder takes to give it back.
const RELEASE_TIME: Duration = Duration::from_secs(10);
/// Clocks of stores count whole seconds.
pub(super) const ROUNDING: chrono::Duration = chrono::Duration::seconds(2);

/// What a lease is for. Two of one purpose exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// To take a backup.
    Backup,
    /// To remove what is expired.
    Expire,
}

impl Purpose {
    /// Returns the word for it in keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::Backup => "backup",
            Purpose::Expire => "expire",
        }
    }
}

/// One record of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// [`LEASE_VERSION`].
    pub version: u32,
    /// Who holds it: a random word.
    pub holder: String,
    /// Its host, for people.
    pub host: String,
    /// Its process, where the kernel tells.
    #[serde(default)]
    pub process: Option<Process>,
    /// The backup that is being taken, once it has a name.
    #[serde(default)]
    pub backup: Option<String>,
    /// Number of the holder's first record.
    pub first: u32,
    /// How long it holds, from when it was stored.
    pub seconds: u64,
    /// Whether the holder has come to an end.
    #[serde(default)]
    pub released: bool,
}

/// The last record of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLease {
    /// Its number, from 1.
    pub number: u32,
    /// What it says; `None` if it is damaged, or written by a newer walvault: then it holds as long as one of ours.
    pub record: Option<LeaseRecord>,
    /// When it was stored, by the store's clock.
    pub stored_at: DateTime<Utc>,
    /// When its holder's first record was.
    pub since: DateTime<Utc>,
}

impl StoredLease {
    /// Returns when it runs out, by the store's clock.
    pub fn until(&self) -> DateTime<Utc> {
        let seconds = self.record.as_ref().map_or(HOLDS.as_secs(), |record| record.seconds.min(86400));
        self.stored_at + chrono::Duration::seconds(seconds as i64)
    }

    /// Returns whether its holder said that it has come to an end, or has certainly died.
    pub fn is_over(&self) -> bool {
        self.record.as_ref().is_some_and(|record| {
            let forgotten = record.process == Process::own() && record.process.is_some() && !held(&record.holder);
            record.released || forgotten || record.process.as_ref().is_some_and(Process::is_gone)
        })
    }

    /// Returns whether its holder may be at work at `now`, by the store's clock.
    pub fn is_live(&self, now: DateTime<Utc>) -> bool {
        !self.is_over() && now <= self.until() + ROUNDING
    }

    fn holder(&self) -> HeldBy {
        let host = self.record.as_ref().map_or_else(|| "an unknown host".to_owned(), |record| record.host.clone());
        let backup = self.record.as_ref().and_then(|record| record.backup.clone());
        HeldBy { host, backup, since: self.since, until: self.until() }
    }
}

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBy {
    /// The host.
    pub host: String,
    /// The backup that it takes, if it has a name already.
    pub backup: Option<String>,
    /// Since when, by the store's clock.
    pub since: DateTime<Utc>,
    /// When it runs out unless it is renewed.
    pub until: DateTime<Utc>,
}

impl std::fmt::Display for HeldBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = |time: DateTime<Utc>| time.format("%Y-%m-%d %H:%M:%SZ").to_string();
        write!(f, "{} since {}, until {} unless it is renewed", self.host, time(self.since), time(self.until))
    }
}

/// Why a lease does not serve.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another one holds it.
    #[error("another {} of this lane is at work on {by}", .purpose.as_str())]
    Held {
        /// What for.
        purpose: Purpose,
        /// Who.
        by: HeldBy,
    },
    /// It ran out, or another one took it over.
    #[error("the lease was lost: {why}; nothing was committed")]
    Lost {
        /// How.
        why: &'static str,
    },
    /// A pack that the backup shares is about to be removed.
    #[error("pack {backup}/{number} is being expired, and this backup needs it; nothing was committed")]
    Condemned {
        /// The backup that stored it.
        backup: String,
        /// Its number there.
        number: u32,
    },
    /// Log that the backup begins with is about to be removed.
    #[error("log from {from} to {through} is being expired, and this backup needs it; nothing was committed")]
    LogCondemned {
        /// The first segment that it needs.
        from: SegmentName,
        /// The last.
        through: SegmentName,
    },
    /// A pack is not there, or has another size.
    #[error("pack {backup}/{number} is not there as it was stored; nothing was committed")]
    PackMissing {
        /// The backup that stored it.
        backup: String,
        /// Its number there.
        number: u32,
    },
    /// `expire` took this backup for dead, and made its name useless.
    #[error("expire took this backup for dead and declared it void; nothing was committed")]
    Void,
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepoError),
}

impl LeaseError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            LeaseError::Held { .. } => ErrorKind::Busy,
            LeaseError::Lost { .. }
            | LeaseError::Condemned { .. }
            | LeaseError::LogCondemned { .. }
            | LeaseError::Void => ErrorKind::Unavailable,
            LeaseError::PackMissing { .. } => ErrorKind::Corrupt,
            LeaseError::Repository(source) => source.kind(),
        }
    }
}

/// Leases that this very process holds: one that it was killed with in a test, or lost, is nobody's.
static HELD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

pub(super) fn all_held() -> MutexGuard<'static, BTreeSet<String>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn held(holder: &str) -> bool {
    all_held().contains(holder)
}

/// A lease that is held and renewed until it is dropped, which gives it back.
#[derive(Debug)]
pub struct Lease {
    inner: Arc<Inner>,
    keeper: Keeper,
}

#[derive(Debug)]
struct Inner {
    lane: Lane,
    purpose: Purpose,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    number: u32,
    record: LeaseRecord,
    /// Of the last record, by the store's clock.
    stored_at: DateTime<Utc>,
    /// A moment at which it certainly still holds; by a clock that nobody sets.
    ends: Instant,
    lost: Option<&'static str>,
}

impl Lane {
    /// Returns the last record of a lease, if there is one.
    pub fn last_lease(&self, purpose: Purpose) -> Result<Option<StoredLease>, RepoError> {
        let store = &self.repository.store;
        let listed = store.list(Some(&self.repository.layout.leases(self.id(), purpose)?))?;
        let numbered = listed.into_iter().filter_map(|meta| Some((meta.key.name().parse::<u32>().ok()?, meta)));
        let numbered: Vec<_> = numbered.collect();
        let Some((number, last)) = numbered.iter().max_by_key(|(number, _)| *number) else { return Ok(None) };
        let stored = store.get(&last.key)?;
        let record = stored.and_then(|stored| document::decode::<LeaseRecord>(&stored, "lease").ok());
        let record = record.filter(|record| versioned(&last.key, record.version, LEASE_VERSION).is_ok());
        let first = record.as_ref().map_or(*number, |record| record.first);
        let since = numbered
            .iter()
            .find(|(number, _)| *number == first)
            .map_or(last.last_modified, |(_, meta)| meta.last_modified);
        Ok(Some(StoredLease { number: *number, record, stored_at: last.last_modified, since }))
    }

    /// Returns whose lease is live; asks the store for the time only if that matters.
    pub fn live_lease(&self, purpose: Purpose) -> Result<Option<StoredLease>, RepoError> {
        let Some(last) = self.last_lease(purpose)?.filter(|last| !last.is_over()) else { return Ok(None) };
        Ok(Some(last).filter(|last| self.store_time().map_or(true, |now| last.is_live(now))))
    }
}

impl Lease {
    /// Takes a lease and keeps it.
    ///
    /// # Errors
    /// [`LeaseError::Held`] if another one has it.
    pub fn take(lane: &Lane, purpose: Purpose) -> Result<Self, LeaseError> {
        let inner = Arc::new(Inner::take(lane, purpose)?);
        let kept = Arc::clone(&inner);
        // What failed is tried again as long as the lease holds, and is told at the commit.
        let keeper = Keeper::begin("lease", move || drop(kept.renew(|_| {})));
        Ok(Self { inner, keeper })
    }

    /// Says which backup is being taken. Nothing of it may be stored before.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] if the lease is another's by now.
    pub fn name(&self, backup: &str) -> Result<(), LeaseError> {
        self.inner.renew(|record| record.backup = Some(backup.to_owned()))
    }

    /// Renews it, so that it holds for its whole time from now on.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] if it ran out or is another's by now.
    pub fn renew(&self) -> Result<(), LeaseError> {
        self.inner.renew(|_| {})
    }

    /// Makes sure that it holds for a while, and renews it if that is due.
    ///
    /// # Errors
    /// As [`Lease::renew`].
    pub fn hold(&self) -> Result<(), LeaseError> {
        match self.inner.left() < COMMIT_TIME {
            true => self.renew(),
            false => Ok(()),
        }
    }

    /// Stores a manifest, if everything that it names is there and stays, and the lease holds.
    ///
    /// # Errors
    /// Whatever says that there is no backup; after [`ErrorKind::Unavailable`] of the store there may be one.
    pub fn commit(&self, manifest: &Manifest, tables: &Tables) -> Result<(), LeaseError> {
        let lane = &self.inner.lane;
        self.renew()?;
        let tombstones = lane.tombstones()?;
        let mut stored: HashMap<(String, u32), u64> = HashMap::new();
        let owner = |pack: &PackRef| {
            let PackSource::Lane { backup, .. } = &pack.source;
            Arc::clone(backup)
        };
        for backup in tables.packs.iter().map(owner).collect::<BTreeSet<Arc<str>>>() {
            let packs = lane.list_packs_of(&backup)?.into_iter();
            stored.extend(packs.map(|pack| ((pack.backup, pack.number), pack.stored_bytes)));
        }
        for pack in tables.packs.iter() {
            let PackSource::Lane { backup, number } = &pack.source;
            let (backup, number) = (backup.to_string(), *number);
            if tombstones.iter().any(|stone| stone.tombstone.condemns_pack(&backup, number)) {
                return Err(LeaseError::Condemned { backup, number });
            }
            if stored.get(&(backup.clone(), number)) != Some(&pack.stored_bytes) {
                return Err(LeaseError::PackMissing { backup, number });
            }
        }
        let envelope = &manifest.envelope;
        let size = lane.segment_size();
        let (from, through) = (size.segment_of(envelope.start_lsn), size.segment_of(envelope.stop_lsn));
        let log = SegmentRange {
            from: SegmentName::from_number(envelope.timeline, from, size),
            through: SegmentName::from_number(envelope.timeline, through, size),
        };
        if tombstones.iter().any(|stone| stone.tombstone.wal.iter().any(|gone| gone.meets(&log))) {
            return Err(LeaseError::LogCondemned { from: log.from, through: log.through });
        }
        self.hold()?;
        match lane.commit(manifest, tables) {
            Err(RepoError::Taken { .. }) => Err(LeaseError::Void),
            other => Ok(other?),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.keeper.end();
        self.inner.release();
    }
}

impl Inner {
    fn take(lane: &Lane, purpose: Purpose) -> Result<Self, LeaseError> {
        let holder = random_name()?;
        for _ in 0..TAKES {
            let last = lane.last_lease(purpose)?;
            if let Some(last) = last.as_ref().filter(|last| !last.is_over())
                && last.is_live(lane.store_time()?)
            {
                return Err(LeaseError::Held { purpose, by: last.holder() });
            }
            let number = last.map_or(1, |last| last.number.saturating_add(1));
            let record = LeaseRecord {
                version: LEASE_VERSION,
                holder: holder.clone(),
                host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
                process: Process::own(),
                backup: None,
                first: number,
                seconds: HOLDS.as_secs(),
                released: false,
            };
            let asked = Instant::now();
            if let Some((_, stored_at)) = store_record(lane, purpose, number, &record)? {
                all_held().insert(holder);
                let state = State { number, record, stored_at, ends: asked + HOLDS, lost: None };
                return Ok(Self { lane: lane.clone(), purpose, state: Mutex::new(state) });
            }
            // Another one was faster: look at what it stored.
        }
        Err(LeaseError::Lost { why: "others were always faster" })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> Duration {
        self.state().ends.saturating_duration_since(Instant::now())
    }

    fn renew(&self, change: impl Fn(&mut LeaseRecord)) -> Result<(), LeaseError> {
        let mut state = self.state();
        if let Some(why) = state.lost {
            return Err(LeaseError::Lost { why });
        }
        change(&mut state.record);
        loop {
            let asked = Instant::now();
            let number = state.number.saturating_add(1);
            let Some((created, stored_at)) = store_record(&self.lane, self.purpose, number, &state.record)? else {
                let why = "another one took it over";
                state.lost = Some(why);
                return Err(LeaseError::Lost { why });
            };
            // By the store's clock: this host's own may have stood still.
            let gap = stored_at - state.stored_at;
            (state.number, state.stored_at) = (number, stored_at);
            if gap > chrono::Duration::seconds(HOLDS.as_secs() as i64) {
                let why = "it was not renewed in time";
                state.lost = Some(why);
                return Err(LeaseError::Lost { why });
            }
            // A record whose reply was lost may have been stored long before it was found, and says less.
            if created == Created::New {
                state.ends = asked + HOLDS;
                return Ok(());
            }
        }
    }

    /// Gives it back; a lease that cannot be given back runs out.
    fn release(&self) {
        let mut state = self.state();
        if state.lost.is_none() {
            state.record.released = true;
            let number = state.number.saturating_add(1);
            let _ = store_record(&self.lane.within(RELEASE_TIME), self.purpose, number, &state.record);
        }
        all_held().remove(&state.record.holder);
    }
}

/// Stores a record under its number, and returns when it was stored; `None` if another holder has it.
fn store_record(
    lane: &Lane,
    purpose: Purpose,
    number: u32,
    record: &LeaseRecord,
) -> Result<Option<(Created, DateTime<Utc>)>, RepoError> {
    let (store, key) = (&lane.repository.store, lane.repository.layout.lease(lane.id(), purpose, number)?);
    let created = store.create(&key, vec![Bytes::from(document::encode(record))])?;
    if created == Created::Existing {
        // Our own, of a reply that was lost, or another's: nobody else has the holder's word.
        let stored = store.get(&key)?.and_then(|stored| document::decode::<LeaseRecord>(&stored, "lease").ok());
        if stored.is_none_or(|stored| stored.holder != record.holder) {
            return Ok(None);
        }
    }
    let found = store.head(&key)?.ok_or_else(|| RepoError::Missing { key: key.to_string() })?;
    Ok(Some((created, found.last_modified)))
}

#[cfg(test)]
mod tests;
