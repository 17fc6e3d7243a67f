//! Owners: who writes a timeline, by numbered records of which the last one counts.
//!
//! The first writer to push on a timeline owns it. It loses it to another one only after a silence, or by an operator's
//! word, and each change is a record of its own: nothing is overwritten. A timeline that began while its parent's owner was
//! at work *waits*: what is archived of it is kept, and it counts for nobody by itself until that owner has fallen silent,
//! or an operator adopts it. A failover and a clone that was promoted look alike at first; this tells them apart.
//!
//! All times are the store's: no host's clock makes an owner silent.

use bytes::Bytes;
use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};

use super::lane::Lane;
use super::repository::random_name;
use super::{RepoError, versioned};
use crate::clock;
use crate::error::ErrorKind;
use crate::format::document;
use crate::pg::timeline::TimelineId;
use crate::store::Created;

/// Version of an owner's document. Readers know every version, writers write the last.
/// - 1: first release.
pub const OWNER_VERSION: u32 = 1;

/// A reader has no right to ask the store for the time, and goes by its host's clock; stores refuse hosts whose clocks
/// differ by more.
const CLOCKS_DIFFER: Duration = Duration::minutes(15);

/// Who writes a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// [`OWNER_VERSION`].
    pub version: u32,
    /// The writer's token.
    pub writer: String,
    /// Its host, for people.
    pub host: String,
    /// The first file it pushed, or the word for what made it the owner.
    pub since: String,
    /// How it came to own the timeline.
    #[serde(default)]
    pub claim: Claim,
    /// Who must fall silent before the timeline counts; `None` once it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<WaitsFor>,
}

/// How a writer came to own a timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// It was the first to push.
    #[default]
    First,
    /// The owner before it had fallen silent.
    Silence,
    /// It was the owner already: whoever its timeline waited for has fallen silent, or its token is another one now that it
    /// has a state directory.
    Settled,
    /// An operator said so.
    Adoption,
}

/// The owner of an ancestor, who was at work when a timeline began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitsFor {
    /// The ancestor.
    pub timeline: TimelineId,
    /// Host of its owner, for people.
    pub host: String,
    /// Silence that ends the waiting.
    pub grace_seconds: u64,
}

impl WaitsFor {
    /// Returns whether the waiting is over for a reader at `now`; `last_sign` is the last sign of the ancestor's owner. Of
    /// a lane, ask [`Lane::has_waited`].
    pub fn is_over(&self, last_sign: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
        let grace = Duration::seconds(self.grace_seconds.min(u64::from(u32::MAX)) as i64);
        last_sign.is_some_and(|sign| now - sign > grace + CLOCKS_DIFFER)
    }
}

/// The last record of a timeline's owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerRecord {
    /// Its number, from 1.
    pub number: u32,
    /// What it says.
    pub owner: Owner,
    /// When it was written, by the store's clock.
    pub recorded_at: DateTime<Utc>,
}

/// What is recorded of a timeline's owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owners {
    /// The last record; `None` if there is none, or it is damaged: that must not stop the archive for ever.
    pub current: Option<OwnerRecord>,
    /// Number of the next record.
    pub next: u32,
}

impl Lane {
    /// Returns what is recorded of a timeline's owners.
    ///
    /// # Errors
    /// [`RepoError::Object`] if a newer walvault wrote the last record.
    pub fn owners(&self, timeline: TimelineId) -> Result<Owners, RepoError> {
        let folder = self.repository.layout.owners(self.id(), timeline)?;
        let listed = self.repository.store.list_children(Some(&folder))?.objects;
        let numbered = |meta: &crate::store::Meta| meta.key.name().parse::<u32>().ok().filter(|number| *number > 0);
        let last = listed.into_iter().filter_map(|meta| Some((numbered(&meta)?, meta)));
        let Some((number, meta)) = last.max_by_key(|(number, _)| *number) else {
            return Ok(Owners { current: None, next: 1 });
        };
        let next = number.saturating_add(1);
        // Gone since it was listed: as good as damaged.
        let Some(stored) = self.repository.store.get(&meta.key)? else { return Ok(Owners { current: None, next }) };
        let Ok(owner) = document::decode::<Owner>(&stored, "owner") else {
            return Ok(Owners { current: None, next });
        };
        versioned(&meta.key, owner.version, OWNER_VERSION)?;
        Ok(Owners { current: Some(OwnerRecord { number, owner, recorded_at: meta.last_modified }), next })
    }

    /// Writes record `number` of a timeline's owners; [`Created::Existing`] if another writer's came first, which stands.
    pub fn record_owner(&self, timeline: TimelineId, number: u32, owner: &Owner) -> Result<Created, RepoError> {
        let key = self.repository.layout.owner(self.id(), timeline, number)?;
        Ok(self.repository.store.create(&key, vec![Bytes::from(document::encode(owner))])?)
    }

    /// Returns whom a timeline waits for, as a reader sees it; `None` if it counts.
    pub fn waits_for(&self, timeline: TimelineId) -> Result<Option<WaitsFor>, RepoError> {
        let Some(record) = self.owners(timeline)?.current else { return Ok(None) };
        let Some(waits) = record.owner.waits_for else { return Ok(None) };
        let newest = self.newest_segment(waits.timeline)?.map(|stored| stored.stored_at);
        Ok((!self.has_waited(&waits, newest, clock::now())?).then_some(waits))
    }

    /// Returns the moment by the store's clock, which a scratch object tells.
    pub fn store_time(&self) -> Result<DateTime<Utc>, RepoError> {
        let key = self.repository.layout.probe(&random_name()?)?.join("time")?;
        let store = &self.repository.store;
        store.create(&key, vec![Bytes::from_static(b"written by walvault to learn the time, may be deleted\n")])?;
        let found = store.head(&key)?;
        match store.delete(&key) {
            // This host needs no right to delete.
            Err(error) if error.kind() != ErrorKind::Denied => return Err(error.into()),
            _ => {}
        }
        Ok(found.ok_or_else(|| RepoError::Missing { key: key.to_string() })?.last_modified)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::repo::lane_fixture::lane_without;

    fn owner(writer: &str) -> Owner {
        Owner {
            version: OWNER_VERSION,
            writer: writer.to_owned(),
            host: "db1".to_owned(),
            since: "000000010000000000000007".to_owned(),
            claim: Claim::First,
            waits_for: None,
        }
    }

    #[test]
    fn the_last_record_counts_and_the_first_of_two_with_one_number_stays() {
        let lane = lane_without(&[]);
        let timeline = TimelineId::FIRST;
        assert_eq!(lane.owners(timeline).unwrap(), Owners { current: None, next: 1 });
        for (number, writer) in [(1, "a"), (2, "b"), (10, "c")] {
            assert_eq!(lane.record_owner(timeline, number, &owner(writer)).unwrap(), Created::New);
            assert_eq!(lane.record_owner(timeline, number, &owner("z")).unwrap(), Created::Existing);
        }
        let owners = lane.owners(timeline).unwrap();
        let current = owners.current.unwrap();
        assert_eq!((current.number, current.owner.writer.as_str(), owners.next), (10, "c", 11));
    }

    #[test]
    fn a_record_of_the_first_release_without_the_later_members_is_read() {
        #[derive(Serialize)]
        struct First {
            version: u32,
            writer: String,
            host: String,
            since: String,
        }
        let text = |text: &str| text.to_owned();
        let first = First { version: 1, writer: text("a"), host: text("db1"), since: text("x") };
        let read: Owner = document::decode(&document::encode(&first), "owner").unwrap();
        assert_eq!((read.claim, read.waits_for), (Claim::First, None));
    }

    #[test]
    fn a_damaged_record_leaves_the_timeline_to_whoever_comes_next() {
        let lane = lane_without(&[]);
        let key = lane.repository.layout.owner(lane.id(), TimelineId::FIRST, 3).unwrap();
        lane.repository.store.create(&key, vec![Bytes::from_static(b"{}")]).unwrap();
        assert_eq!(lane.owners(TimelineId::FIRST).unwrap(), Owners { current: None, next: 4 });
    }

    #[test]
    fn a_reader_waits_for_the_grace_and_for_clocks_that_differ() {
        let waits = WaitsFor { timeline: TimelineId::FIRST, host: "db1".to_owned(), grace_seconds: 900 };
        let sign = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let after = |seconds| waits.is_over(Some(sign), sign + Duration::seconds(seconds));
        assert_eq!([0, 900, 1800, 1801].map(after), [false, false, false, true]);
        assert!(!waits.is_over(None, sign));
    }

    #[test]
    fn the_stores_time_leaves_nothing_behind() {
        let lane = lane_without(&[]);
        let before = lane.repository.store.list(None).unwrap();
        let (earlier, now, later) = (clock::now(), lane.store_time().unwrap(), clock::now());
        let second = Duration::seconds(1);
        assert!(earlier - second <= now && now <= later + second);
        assert_eq!(lane.repository.store.list(None).unwrap(), before);
    }
}
