//! Signs of life: who owns a timeline is there, although it has nothing to archive.
//!
//! A server that nobody writes to sends no segment, and would look as silent as one that is gone: the first copy of it to
//! fill a segment would take the timeline. So whoever sees the owner at work stores a small object from time to time. It is
//! its moment that counts, by the store's clock, and it counts for its writer alone, as long as that one is the owner.
//! Nothing refers to a sign: older ones are removed when a newer one is stored, and no harm is done if they are not, or if
//! all of them are.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::RepoError;
use super::lane::Lane;
use super::owner::{OwnerRecord, WaitsFor};
use crate::format::document;
use crate::pg::timeline::TimelineId;
use crate::store::{Created, Key, Meta};

/// Version of a sign's document. Nobody needs to read one.
/// - 1: first release.
pub const SIGN_VERSION: u32 = 1;

/// Signs of one writer that stay: the newest one, and the one before it.
const KEPT: usize = 2;
/// Signs that are removed when one is stored: they have gathered where nobody could remove them.
const REMOVED: usize = 16;
/// How often a number is found taken, by a lost reply or by a copy of the machine.
const TAKES: usize = 8;

/// What is written in a sign, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sign {
    version: u32,
    /// The owner's token.
    writer: String,
    /// The host of who saw it at work.
    host: String,
}

/// What became of the wish to give a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// It is stored.
    Given,
    /// Somebody else owns the timeline, or nobody: for them nobody speaks.
    NotOwner,
}

impl Lane {
    /// Says that a timeline's owner is there, if that is who `is_own` knows by the token.
    ///
    /// # Errors
    /// [`RepoError`] if the store failed; the sign may have been given.
    pub fn give_sign(
        &self,
        timeline: TimelineId,
        is_own: impl Fn(&str) -> bool,
        host: &str,
    ) -> Result<Signed, RepoError> {
        let Some(OwnerRecord { owner, .. }) = self.owners(timeline)?.current else { return Ok(Signed::NotOwner) };
        if !is_own(&owner.writer) {
            return Ok(Signed::NotOwner);
        }
        let (store, layout) = (&self.repository.store, &self.repository.layout);
        let before = self.signs(timeline, &owner.writer)?;
        let sign = Sign { version: SIGN_VERSION, writer: owner.writer.clone(), host: host.to_owned() };
        let body = Bytes::from(document::encode(&sign));
        let mut number = before.last().map_or(0, |(number, _)| *number);
        for _ in 0..TAKES {
            number = number.saturating_add(1);
            let key = layout.sign(self.id(), timeline, &owner.writer, number)?;
            if store.create(&key, vec![body.clone()])? == Created::New {
                let last: Vec<Key> = before.into_iter().map(|(_, meta)| meta.key).collect();
                self.remove_signs(last.get(..(last.len() + 1).saturating_sub(KEPT)).unwrap_or_default());
                return Ok(Signed::Given);
            }
        }
        Err(RepoError::Taken { key: format!("the signs of timeline {timeline}'s owner") })
    }

    /// Removes the oldest of these, as far as the store lets it.
    fn remove_signs(&self, old: &[Key]) {
        for key in old.iter().take(REMOVED) {
            // A host may have no right to delete, and then `expire` has. What fails is tried with the next sign.
            if self.repository.store.delete(key).is_err() {
                return;
            }
        }
    }

    /// Returns the signs of a writer on a timeline, by their numbers.
    fn signs(&self, timeline: TimelineId, writer: &str) -> Result<Vec<(u32, Meta)>, RepoError> {
        let folder = self.repository.layout.signs(self.id(), timeline, writer)?;
        let listed = self.repository.store.list(Some(&folder))?.into_iter();
        let mut signs: Vec<_> = listed.filter_map(|meta| Some((meta.key.name().parse().ok()?, meta))).collect();
        signs.sort_by_key(|(number, _)| *number);
        Ok(signs)
    }

    /// Returns when a writer last gave a sign on a timeline, by the store's clock.
    pub fn newest_sign(&self, timeline: TimelineId, writer: &str) -> Result<Option<DateTime<Utc>>, RepoError> {
        Ok(self.signs(timeline, writer)?.into_iter().map(|(_, meta)| meta.last_modified).max())
    }

    /// Returns the last sign of a timeline's owner: when its newest segment was stored, or it was recorded, or said to be
    /// there.
    pub fn last_sign(&self, timeline: TimelineId, record: &OwnerRecord) -> Result<DateTime<Utc>, RepoError> {
        let newest = self.newest_segment(timeline)?.map(|stored| stored.stored_at);
        let sign = self.newest_sign(timeline, &record.owner.writer)?;
        Ok([newest, sign].into_iter().flatten().fold(record.recorded_at, Ord::max))
    }

    /// Returns whether the waiting for an ancestor's owner is over for a reader at `now`, who knows when the ancestor's
    /// newest segment was stored. Signs are looked for only if that was long ago.
    pub fn has_waited(
        &self,
        waits: &WaitsFor,
        newest_segment: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<bool, RepoError> {
        if !waits.is_over(newest_segment, now) {
            return Ok(false);
        }
        let Some(OwnerRecord { owner, .. }) = self.owners(waits.timeline)?.current else { return Ok(true) };
        let sign = self.newest_sign(waits.timeline, &owner.writer)?;
        Ok(waits.is_over(newest_segment.max(sign), now))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::ErrorKind as Io;

    use chrono::Duration;

    use super::*;
    use crate::repo::lane_fixture::{Original, lane_without};
    use crate::repo::{Claim, OWNER_VERSION, ObjectName, Owner};
    use crate::store::Verb;
    use crate::store::fault::{Fault, When};

    const ONE: TimelineId = TimelineId::FIRST;

    fn own(lane: &Lane, number: u32, writer: &str) {
        let (writer, host, since) = (writer.to_owned(), "db1".to_owned(), "x".to_owned());
        let owner = Owner { version: OWNER_VERSION, writer, host, since, claim: Claim::First, waits_for: None };
        assert_eq!(lane.record_owner(ONE, number, &owner).unwrap(), Created::New);
    }

    fn give(lane: &Lane, writer: &str) -> Result<Signed, RepoError> {
        lane.give_sign(ONE, |token| token == writer, "db1")
    }

    fn numbers(lane: &Lane, writer: &str) -> Vec<u32> {
        lane.signs(ONE, writer).unwrap().into_iter().map(|(number, _)| number).collect()
    }

    fn last_sign(lane: &Lane) -> DateTime<Utc> {
        lane.last_sign(ONE, &lane.owners(ONE).unwrap().current.unwrap()).unwrap()
    }

    #[test]
    fn a_sign_makes_the_owner_heard_of_and_speaks_for_nobody_else() {
        let lane = lane_without(&[]);
        assert_eq!(give(&lane, "a").unwrap(), Signed::NotOwner, "nobody owns it");
        own(&lane, 1, "a");
        assert_eq!(give(&lane, "b").unwrap(), Signed::NotOwner);
        let (before, now) = (last_sign(&lane), lane.store_time().unwrap());
        assert_eq!(give(&lane, "a").unwrap(), Signed::Given);
        let after = last_sign(&lane);
        assert!(before <= now && now <= after && before < after, "{before} {now} {after}");
        // The next owner is not taken for alive because the one before was.
        own(&lane, 2, "b");
        let recorded = lane.owners(ONE).unwrap().current.unwrap().recorded_at;
        give(&lane, "a").unwrap();
        assert_eq!(last_sign(&lane), recorded);
    }

    #[test]
    fn only_the_last_two_signs_stay_and_nothing_else_goes() {
        let lane = lane_without(&[]);
        own(&lane, 1, "a");
        own(&lane, 2, "b");
        give(&lane, "b").unwrap();
        own(&lane, 3, "a");
        let before = lane.objects().unwrap();
        for expected in [vec![1], vec![1, 2], vec![2, 3], vec![3, 4]] {
            give(&lane, "a").unwrap();
            assert_eq!(numbers(&lane, "a"), expected);
        }
        let after = lane.objects().unwrap();
        assert!(before.iter().all(|object| after.contains(object)), "{before:?} {after:?}");
        let signs = after.iter().filter(|object| matches!(object.name, ObjectName::Sign { timeline: ONE, .. }));
        assert_eq!((signs.count(), after.len()), (3, before.len() + 2));
    }

    #[test]
    fn who_may_not_delete_gives_signs_all_the_same_and_who_may_later_tidies_up() {
        let original = Original::without(&[]);
        let (sound, failing, faults) = original.copy();
        own(&sound, 1, "a");
        faults.script(When::every(Verb::Delete), Fault::Before(Io::PermissionDenied));
        (0..20).for_each(|_| assert_eq!(give(&failing, "a").unwrap(), Signed::Given));
        assert_eq!(numbers(&sound, "a").len(), 20);
        give(&sound, "a").unwrap();
        give(&sound, "a").unwrap();
        assert_eq!(numbers(&sound, "a"), [21, 22]);
    }

    #[test]
    fn a_sign_over_a_failing_store_is_given_or_is_not_and_the_next_one_is() {
        for verb in [Verb::ListChildren, Verb::Get, Verb::List, Verb::Create, Verb::Delete] {
            for fault in [Fault::Before(Io::TimedOut), Fault::After(Io::TimedOut), Fault::Forget] {
                let original = Original::without(&[]);
                let (sound, failing, faults) = original.copy();
                own(&sound, 1, "a");
                (0..3).for_each(|_| assert_eq!(give(&sound, "a").unwrap(), Signed::Given));
                let (before, heard) = (sound.objects().unwrap(), last_sign(&sound));
                faults.script(When::next(verb), fault);
                let given = give(&failing, "a");
                assert!(last_sign(&sound) > heard || !matches!(given, Ok(Signed::Given)), "{verb:?} {fault:?}");
                give(&failing, "a").unwrap();
                assert!(last_sign(&sound) > heard, "{verb:?} {fault:?}");
                let after = sound.objects().unwrap();
                let gone = before.iter().filter(|object| !after.contains(object));
                let others: Vec<_> = gone.filter(|object| !matches!(object.name, ObjectName::Sign { .. })).collect();
                assert!(others.is_empty(), "{verb:?} {fault:?}: {others:?}");
            }
        }
    }

    #[test]
    fn a_reader_goes_on_waiting_for_an_owner_that_gives_signs() {
        let lane = lane_without(&[]);
        own(&lane, 1, "a");
        let waits = WaitsFor { timeline: ONE, host: "db1".to_owned(), grace_seconds: 900 };
        let now = lane.store_time().unwrap();
        let (long_ago, just_now) = (Some(now - Duration::hours(2)), Some(now));
        assert!(lane.has_waited(&waits, long_ago, now).unwrap());
        assert!(!lane.has_waited(&waits, just_now, now).unwrap());
        give(&lane, "a").unwrap();
        assert!(!lane.has_waited(&waits, long_ago, now).unwrap());
        assert!(lane.has_waited(&waits, long_ago, now + Duration::hours(2)).unwrap());
        // What another one says does not keep anybody waiting.
        own(&lane, 2, "b");
        assert!(lane.has_waited(&waits, long_ago, now).unwrap());
    }
}
