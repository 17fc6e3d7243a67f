//! Index objects of a lane.

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::RepoError;
use super::lane::Lane;
use super::layout;
use crate::format::gathered::{self, Gathered, GatheredFolder};
use crate::format::index::{self, INDEX_LIMIT, IndexedSegment};
use crate::format::{FormatError, Sha256};
use crate::pg::timeline::TimelineId;
use crate::store::{Created, Key};

/// An index object, as a listing shows it.
#[derive(Clone, Debug)]
pub struct StoredIndex {
    /// Digits 9 to 16 of the names of its segments; of a gathered one, those of the first and last folder.
    pub middle: String,
    /// When it was stored, by the store's clock.
    pub stored_at: DateTime<Utc>,
    /// Bytes of the object.
    pub stored_bytes: u64,
    /// The digest that names it.
    pub digest: Sha256,
    timeline: TimelineId,
    key: Key,
}

/// The index objects of a timeline, in the order of their folders.
#[derive(Clone, Debug, Default)]
pub struct StoredIndexes {
    /// Those of one folder each.
    pub folders: Vec<StoredIndex>,
    /// Those gathered of several.
    pub gathered: Vec<StoredIndex>,
}

impl StoredIndex {
    /// The object's key.
    #[cfg(test)]
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }
}

impl Lane {
    /// Stores an index of segments of one timeline and one folder; returns whether it is new.
    pub fn create_index(
        &self,
        timeline: TimelineId,
        middle: &str,
        members: &[IndexedSegment],
    ) -> Result<bool, RepoError> {
        let digest = index::members_digest(members);
        let key = self.repository.layout.index(self.id(), timeline, middle, &digest)?;
        let identity = layout::index_identity(self.id(), timeline, middle, &digest);
        let object = index::encode(&identity, members).map_err(|source| RepoError::object(&key, source))?;
        Ok(self.repository.store.create(&key, vec![Bytes::from(object)])? == Created::New)
    }

    /// Stores an index gathered of those of several folders of one timeline, kept as `range`; returns whether it is new.
    pub fn create_gathered(
        &self,
        timeline: TimelineId,
        range: &str,
        folders: &[GatheredFolder],
        members: &[IndexedSegment],
    ) -> Result<bool, RepoError> {
        let digest = gathered::folders_digest(folders);
        let key = self.repository.layout.index(self.id(), timeline, range, &digest)?;
        let identity = layout::index_identity(self.id(), timeline, range, &digest);
        let object = gathered::encode(&identity, timeline, self.segment_size(), folders, members);
        let object = object.map_err(|source| RepoError::object(&key, source))?;
        Ok(self.repository.store.create(&key, vec![Bytes::from(object)])? == Created::New)
    }

    /// Returns the index objects of a timeline.
    pub fn indexes(&self, timeline: TimelineId) -> Result<StoredIndexes, RepoError> {
        let prefix = self.repository.layout.index_timeline(self.id(), timeline)?;
        let stored = self.repository.store.list_wide(&prefix)?.into_iter().filter_map(|meta| {
            let (middle, digest) = self.repository.layout.index_name(&meta.key)?;
            let (stored_at, stored_bytes) = (meta.last_modified, meta.size);
            Some(StoredIndex { middle, stored_at, stored_bytes, timeline, digest, key: meta.key })
        });
        let (gathered, folders) = stored.partition(|index| index.middle.contains('-'));
        Ok(StoredIndexes { folders, gathered })
    }

    /// Reads a gathered index; `None` if it went away since it was listed.
    ///
    /// # Errors
    /// [`RepoError::Object`] if it is damaged, or not an index of what its name says.
    pub fn read_gathered(&self, stored: &StoredIndex) -> Result<Option<Gathered>, RepoError> {
        let StoredIndex { middle: range, timeline, digest, key, .. } = stored;
        let Some(bytes) = self.repository.store.get_up_to(key, INDEX_LIMIT)? else { return Ok(None) };
        let identity = layout::index_identity(self.id(), *timeline, range, digest);
        let read = gathered::decode(&bytes, &identity).map_err(|source| RepoError::object(key, source))?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let inside = |folder: &GatheredFolder| (first..=last).contains(&folder.middle.as_str());
        if gathered::folders_digest(&read.folders) != *digest
            || read.timeline() != *timeline
            || read.size() != self.segment_size()
            || !read.folders.iter().all(inside)
        {
            let problem = "it holds other folders than its name says".to_owned();
            return Err(RepoError::object(key, FormatError::Nonsense { document: "gathered index", problem }));
        }
        Ok(Some(read))
    }

    /// Reads an index; `None` if it went away since it was listed.
    ///
    /// # Errors
    /// [`RepoError::Object`] if it is damaged, or not an index of what its name says.
    pub fn read_index(&self, stored: &StoredIndex) -> Result<Option<Vec<IndexedSegment>>, RepoError> {
        let StoredIndex { middle, timeline, digest, key, .. } = stored;
        let Some(bytes) = self.repository.store.get_up_to(key, INDEX_LIMIT)? else { return Ok(None) };
        let identity = layout::index_identity(self.id(), *timeline, middle, digest);
        let members = index::decode(&bytes, &identity).map_err(|source| RepoError::object(key, source))?;
        let own = |one: &IndexedSegment| one.segment.timeline() == *timeline && one.segment.middle() == *middle;
        if index::members_digest(&members) != *digest || !members.iter().all(own) {
            let problem = "it holds other segments than its name says".to_owned();
            return Err(RepoError::object(key, FormatError::Nonsense { document: "index", problem }));
        }
        Ok(Some(members))
    }
}
