//! What archived segments change: of single ones from their own objects, of finished folders from objects of theirs.

use bytes::Bytes;

use super::RepoError;
use super::lane::Lane;
use super::layout;
use super::wal::StoredName;
use crate::format::changes::{self, FOLDER_LIMIT, FolderMember, Found};
use crate::format::{FormatError, Sha256};
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_changes::SegmentChanges;
use crate::store::{Created, Key};

/// Bytes read from an object's end to find the changes before its trailer; most take less.
const CHANGES_GUESS: u64 = 32 << 10;

/// The changes of a folder, as a listing shows them.
#[derive(Clone, Debug)]
pub struct StoredChanges {
    timeline: TimelineId,
    middle: String,
    digest: Sha256,
    key: Key,
}

impl Lane {
    /// Returns what a listed segment changes and the segment's digest, without reading the segment; `None` if its object
    /// does not say.
    ///
    /// # Errors
    /// [`RepoError::Object`] if what it says is damaged.
    pub fn wal_changes(&self, stored: &StoredName) -> Result<Option<(SegmentChanges, Sha256)>, RepoError> {
        let mut wanted = CHANGES_GUESS.min(stored.stored_bytes);
        loop {
            let last = self.wal_end(stored, wanted)?;
            match changes::find(&last, stored.stored_bytes) {
                Ok(Found::Changes(changes, segment)) => return Ok(Some((*changes, segment))),
                Ok(Found::Needs(more)) if more > wanted => wanted = more,
                Ok(Found::Nothing | Found::Needs(_)) => return Ok(None),
                Err(source) => return Err(RepoError::object(&self.stored_key(stored)?, source)),
            }
        }
    }

    /// Stores the changes of segments of one timeline and one folder; returns whether they are new.
    pub fn create_changes(
        &self,
        timeline: TimelineId,
        middle: &str,
        members: &[FolderMember],
    ) -> Result<bool, RepoError> {
        let digest = changes::folder_digest(members);
        let key = self.repository.layout.changes(self.id(), timeline, middle, &digest)?;
        let identity = layout::changes_identity(self.id(), timeline, middle, &digest);
        let object = changes::encode_folder(&identity, timeline, self.segment_size(), members);
        let object = object.map_err(|source| RepoError::object(&key, source))?;
        Ok(self.repository.store.create(&key, vec![Bytes::from(object)])? == Created::New)
    }

    /// Returns the objects with changes of one folder, the newest first.
    pub fn changes_of(&self, timeline: TimelineId, middle: &str) -> Result<Vec<StoredChanges>, RepoError> {
        let folder = self.repository.layout.changes_folder(self.id(), timeline, middle)?;
        let mut listed = self.repository.store.list(Some(&folder))?;
        listed.sort_by_key(|meta| std::cmp::Reverse(meta.last_modified));
        let stored = listed.into_iter().filter_map(|meta| {
            let (middle, digest) = self.repository.layout.index_name(&meta.key)?;
            Some(StoredChanges { timeline, middle, digest, key: meta.key })
        });
        Ok(stored.collect())
    }

    /// Reads the changes of a folder; `None` if they went away since they were listed.
    ///
    /// # Errors
    /// [`RepoError::Object`] if they are damaged, or not of what their name says.
    pub fn read_changes(&self, stored: &StoredChanges) -> Result<Option<Vec<FolderMember>>, RepoError> {
        let StoredChanges { timeline, middle, digest, key } = stored;
        let Some(bytes) = self.repository.store.get_up_to(key, FOLDER_LIMIT)? else { return Ok(None) };
        let identity = layout::changes_identity(self.id(), *timeline, middle, digest);
        let read = changes::decode_folder(&bytes, &identity).map_err(|source| RepoError::object(key, source))?;
        let (of, size, members) = read;
        let own = |one: &FolderMember| SegmentName::middle(one.segment) == *middle;
        if of != *timeline
            || size != self.segment_size()
            || changes::folder_digest(&members) != *digest
            || !members.iter().all(own)
        {
            let problem = "they are of other segments than their name says".to_owned();
            return Err(RepoError::object(key, FormatError::Nonsense { document: "changes of a folder", problem }));
        }
        Ok(Some(members))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::wal_fixture::segments;
    use crate::repo::ObjectName;
    use crate::repo::lane_fixture::{MAJOR, lane_of};

    const MIDDLE: &str = "00000000";

    fn members(lane: &Lane) -> Vec<FolderMember> {
        let stored = lane.list_wal_folder(TimelineId::FIRST, MIDDLE).unwrap();
        let member = |(stored, (segment, _)): (StoredName, (SegmentName, Vec<u8>))| {
            let (changes, sha256) = lane.wal_changes(&stored).unwrap().unwrap();
            FolderMember { segment, stored_bytes: stored.stored_bytes, sha256, changes }
        };
        stored.into_iter().zip(segments(MAJOR, 1)).map(member).collect()
    }

    #[test]
    fn changes_of_a_folder_are_what_their_name_says_or_refused() {
        let lane = lane_of(&segments(MAJOR, 1));
        let members = members(&lane);
        assert!(lane.create_changes(TimelineId::FIRST, MIDDLE, &members).unwrap());
        assert!(!lane.create_changes(TimelineId::FIRST, MIDDLE, &members).unwrap(), "created once");
        let [stored] = lane.changes_of(TimelineId::FIRST, MIDDLE).unwrap().try_into().unwrap();
        assert_eq!(lane.read_changes(&stored).unwrap(), Some(members));
        // It goes when its segments go.
        let (timeline, middle) = (TimelineId::FIRST, MIDDLE.to_owned());
        let name = lane.repository.layout.object(lane.id(), &stored.key);
        assert_eq!(name, ObjectName::Index { timeline, middle });

        let store = &lane.repository.store;
        let bytes = store.get(&stored.key).unwrap().unwrap();
        let elsewhere = StoredChanges { middle: "00000001".to_owned(), ..stored.clone() };
        assert!(matches!(lane.read_changes(&elsewhere), Err(RepoError::Object { .. })));
        let mut flipped = bytes.to_vec();
        flipped[bytes.len() / 2] ^= 1;
        store.delete(&stored.key).unwrap();
        assert_eq!(lane.read_changes(&stored).unwrap(), None);
        store.create(&stored.key, vec![flipped.into()]).unwrap();
        assert!(matches!(lane.read_changes(&stored), Err(RepoError::Object { .. })));
    }
}
