//! Archived files of a lane.

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::RepoError;
use super::lane::Lane;
use super::layout;
use crate::format::wal::{self, EncodedWal, OpenedWal, StoredWal};
use crate::format::{FormatError, Sha256};
use crate::pg::segment::SegmentName;
use crate::pg::timeline::{History, TimelineId};
use crate::pg::wal_facts::WalFacts;
use crate::pg::wal_name::WalFileName;
use crate::store::{Created, Key, Meta};

/// Bytes read from an object's end to find the hint in its trailer; nearly every trailer is shorter.
const TRAILER_GUESS: u64 = 4096;
/// Longest file besides segments that makes sense.
const SMALL_FILE_LIMIT: u64 = 16 << 20;

/// Most bytes that an object may be longer than its contents: front, trailer, frames that did not shrink.
const OBJECT_OVERHEAD: u64 = 4 << 20;

/// What became of a file that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalCreated {
    /// It is stored now.
    New,
    /// The same bytes were stored already.
    Same,
    /// Other bytes are stored under this name; nothing was changed.
    Other {
        /// SHA-256 of the file that is stored; `None` if the stored object is damaged.
        stored: Option<Sha256>,
    },
}

/// An archived file whose stored bytes are verified; its contents come out by [`OpenedFile::contents_to`].
pub struct OpenedFile {
    key: Key,
    limit: u64,
    opened: OpenedWal,
}

impl OpenedFile {
    /// Bytes of the file.
    pub fn raw_len(&self) -> u64 {
        self.opened.raw_len()
    }

    /// Hands the file to `take` one stretch after the other, in order; it is verified once this returns, and not before.
    ///
    /// # Errors
    /// [`RepoError::Object`] if it is damaged; within the outer result what `take` fails with.
    pub fn contents_to<E>(&self, take: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<Result<(), E>, RepoError> {
        self.opened.contents_to(self.limit, take).map_err(|source| RepoError::object(&self.key, source))
    }
}

/// One archived file, as a listing shows it.
#[derive(Clone, Debug)]
pub struct StoredName {
    /// Its name.
    pub name: WalFileName,
    /// Bytes of the stored object.
    pub stored_bytes: u64,
    /// When it was stored, by the store's clock.
    pub stored_at: DateTime<Utc>,
    /// Only of what has more in its key than its name: a `.partial`.
    key: Option<Key>,
}

impl StoredName {
    /// A segment that a listing showed.
    pub(crate) fn of_segment(name: SegmentName, stored_bytes: u64, stored_at: DateTime<Utc>) -> Self {
        Self { name: WalFileName::Segment(name), stored_bytes, stored_at, key: None }
    }

    /// A segment that is nowhere.
    #[cfg(test)]
    pub(crate) fn sample(name: SegmentName) -> Self {
        Self::of_segment(name, 0, DateTime::UNIX_EPOCH)
    }
}

impl Lane {
    /// What an archived file's object is made for; [`wal::encode`] wants it.
    pub fn wal_identity(&self, name: &WalFileName) -> String {
        layout::wal_identity(self.id(), name)
    }

    /// Stores a file once; it is durable when this returns.
    ///
    /// Safe to repeat: a crash before PostgreSQL noted our success, or a reply that was lost, finds the same bytes.
    pub fn create_wal(&self, name: &WalFileName, encoded: &EncodedWal) -> Result<WalCreated, RepoError> {
        let key = self.wal_key(name, &encoded.digest)?;
        let digest = encoded.digest;
        match self.repository.store.create_of(&key, *digest.bytes(), vec![encoded.object.clone()])? {
            Created::New => Ok(WalCreated::New),
            // Read whole and decoded: a front frame that looks right may lead a body that was cut.
            Created::Existing => match self.read_key(&key, name) {
                Ok(Some(stored)) if stored.digest == digest => Ok(WalCreated::Same),
                Ok(Some(stored)) => Ok(WalCreated::Other { stored: Some(stored.digest) }),
                Ok(None) => Err(RepoError::Missing { key: key.to_string() }),
                Err(RepoError::Object { .. }) => Ok(WalCreated::Other { stored: None }),
                Err(error) => Err(error),
            },
        }
    }

    /// Keeps the bytes of a file apart, because others have its name or may have it; returns where.
    pub fn keep_contested(&self, writer: &str, name: &WalFileName, encoded: &EncodedWal) -> Result<String, RepoError> {
        let key = self.repository.layout.contested(self.id(), writer, name, &encoded.digest)?;
        self.repository.store.create_of(&key, *encoded.digest.bytes(), vec![encoded.object.clone()])?;
        Ok(key.to_string())
    }

    /// Returns a file other than a `.partial`, verified, if it is stored.
    ///
    /// `Ok(None)` is the store's own *not found* and nothing else.
    pub fn read_wal(&self, name: &WalFileName) -> Result<Option<StoredWal>, RepoError> {
        self.read_key(&self.wal_key(name, &Sha256::from_bytes([0; 32]))?, name)
    }

    /// As [`Lane::read_wal`]; only the stored bytes are verified, and it takes no more memory than they do.
    pub fn open_wal(&self, name: &WalFileName) -> Result<Option<OpenedFile>, RepoError> {
        self.open_key(&self.wal_key(name, &Sha256::from_bytes([0; 32]))?, name)
    }

    /// Returns the hint in a listed file's trailer, without reading its body.
    pub fn wal_facts(&self, stored: &StoredName) -> Result<Option<WalFacts>, RepoError> {
        Ok(self.wal_hint(stored)?.1)
    }

    /// As [`Lane::wal_facts`], with the file's digest as the trailer has it.
    pub fn wal_hint(&self, stored: &StoredName) -> Result<(Sha256, Option<WalFacts>), RepoError> {
        let len = stored.stored_bytes;
        let mut wanted = TRAILER_GUESS.min(len);
        loop {
            let last = self.wal_end(stored, wanted)?;
            match wal::decode_facts(&last, len) {
                Ok(hint) => return Ok(hint),
                Err(FormatError::Truncated { .. }) if wanted < len => wanted = (wanted * 16).min(len),
                Err(source) => return Err(RepoError::object(&self.stored_key(stored)?, source)),
            }
        }
    }

    /// Returns the key of a listed file's object.
    pub(crate) fn stored_key(&self, stored: &StoredName) -> Result<Key, RepoError> {
        match &stored.key {
            Some(key) => Ok(key.clone()),
            None => self.wal_key(&stored.name, &Sha256::from_bytes([0; 32])),
        }
    }

    /// Returns the last `wanted` bytes of a listed file's object.
    pub(super) fn wal_end(&self, stored: &StoredName, wanted: u64) -> Result<Bytes, RepoError> {
        let len = stored.stored_bytes;
        let key = self.stored_key(stored)?;
        let last = self.repository.store.get_range(&key, len - wanted.min(len)..len)?;
        last.ok_or_else(|| RepoError::Missing { key: key.to_string() })
    }

    /// Returns the archived segments of a timeline whose names have these digits 9 to 16, in order.
    pub fn list_wal_folder(&self, timeline: TimelineId, middle: &str) -> Result<Vec<StoredName>, RepoError> {
        let folder = self.repository.layout.wal_timeline(self.id(), timeline)?.join(middle)?;
        let found = self.repository.store.list(Some(&folder))?.into_iter().filter_map(|meta| self.named(meta));
        Ok(found.filter(|stored| matches!(stored.name, WalFileName::Segment(_))).collect())
    }

    /// Returns the timelines that anything is archived of, in order.
    pub fn wal_timelines(&self) -> Result<Vec<TimelineId>, RepoError> {
        let children = self.repository.store.list_children(Some(&self.repository.layout.wal_root(self.id())?))?;
        let number = |folder: &Key| TimelineId::new(u32::from_str_radix(folder.name(), 16).ok()?);
        let mut timelines: Vec<TimelineId> = children.folders.iter().filter_map(number).collect();
        timelines.sort();
        Ok(timelines)
    }

    /// Returns the archived files of a timeline in order of their names; `.partial`s are not among them.
    pub fn list_wal(&self, timeline: TimelineId) -> Result<Vec<StoredName>, RepoError> {
        let prefix = self.repository.layout.wal_timeline(self.id(), timeline)?;
        Ok(self.repository.store.list_wide(&prefix)?.into_iter().filter_map(|meta| self.named(meta)).collect())
    }

    /// Returns every archived `.partial` of a timeline's segment: a promotion left it behind.
    pub fn partials(&self, segment: SegmentName) -> Result<Vec<StoredName>, RepoError> {
        let name = WalFileName::Partial(segment);
        let one = self.wal_key(&name, &Sha256::from_bytes([0; 32]))?;
        let Some(folder) = one.parent() else { return Ok(Vec::new()) };
        let found = self.repository.store.list(Some(&folder))?.into_iter();
        let stored = |meta: Meta| StoredName {
            name: name.clone(),
            stored_bytes: meta.size,
            stored_at: meta.last_modified,
            key: Some(meta.key),
        };
        Ok(found.map(stored).collect())
    }

    /// Returns a listed file, verified, if it is still there.
    pub fn read_listed(&self, stored: &StoredName) -> Result<Option<StoredWal>, RepoError> {
        self.read_key(&self.stored_key(stored)?, &stored.name)
    }

    /// Returns the `.partial` of a segment that has these contents, if it is stored; only its stored bytes are verified.
    pub fn open_partial(&self, segment: SegmentName, digest: &Sha256) -> Result<Option<OpenedFile>, RepoError> {
        let name = WalFileName::Partial(segment);
        self.open_key(&self.wal_key(&name, digest)?, &name)
    }

    /// Returns the newest archived segment of a timeline, in few requests however long the archive is.
    pub fn newest_segment(&self, timeline: TimelineId) -> Result<Option<StoredName>, RepoError> {
        let prefix = self.repository.layout.wal_timeline(self.id(), timeline)?;
        let folders = self.repository.store.list_children(Some(&prefix))?.folders;
        // The newest folder may hold nothing but what follows a segment.
        for folder in folders.iter().rev() {
            let found = self.repository.store.list(Some(folder))?.into_iter().filter_map(|meta| self.named(meta));
            let segments = found.filter(|stored| matches!(stored.name, WalFileName::Segment(_)));
            if let Some(newest) = segments.max_by(|a, b| a.name.to_string().cmp(&b.name.to_string())) {
                return Ok(Some(newest));
            }
        }
        Ok(None)
    }

    fn named(&self, meta: Meta) -> Option<StoredName> {
        let name = self.repository.layout.wal_name(&meta.key)?;
        Some(StoredName { name, stored_bytes: meta.size, stored_at: meta.last_modified, key: None })
    }

    /// Returns a timeline's history as it is archived, if it is. Timeline 1 has none.
    ///
    /// # Errors
    /// [`RepoError::Object`] with [`FormatError::Nonsense`] if the file is no history.
    pub fn history(&self, timeline: TimelineId) -> Result<Option<History>, RepoError> {
        let name = WalFileName::History(timeline);
        let Some(stored) = self.read_wal(&name)? else { return Ok(None) };
        let nonsense = |problem: String| RepoError::Object {
            key: name.to_string(),
            source: FormatError::Nonsense { document: "timeline history", problem },
        };
        let text = String::from_utf8(stored.raw).map_err(|error| nonsense(error.to_string()))?;
        History::parse(timeline, &text).map(Some).map_err(|error| nonsense(error.to_string()))
    }

    fn wal_key(&self, name: &WalFileName, digest: &Sha256) -> Result<Key, RepoError> {
        Ok(self.repository.layout.wal(self.id(), name, digest)?)
    }

    pub(super) fn read_key(&self, key: &Key, name: &WalFileName) -> Result<Option<StoredWal>, RepoError> {
        let Some(stored) = self.load_key(key)? else { return Ok(None) };
        let decoded = wal::decode(&stored, &self.wal_identity(name), self.file_limit());
        decoded.map(Some).map_err(|source| RepoError::object(key, source))
    }

    fn open_key(&self, key: &Key, name: &WalFileName) -> Result<Option<OpenedFile>, RepoError> {
        let Some(stored) = self.load_key(key)? else { return Ok(None) };
        let opened = OpenedWal::open(stored, &self.wal_identity(name));
        let opened = opened.map_err(|source| RepoError::object(key, source))?;
        Ok(Some(OpenedFile { key: key.clone(), limit: self.file_limit(), opened }))
    }

    fn load_key(&self, key: &Key) -> Result<Option<bytes::Bytes>, RepoError> {
        Ok(self.repository.store.get_up_to(key, self.file_limit() + OBJECT_OVERHEAD)?)
    }

    /// Longest file that makes sense here.
    fn file_limit(&self) -> u64 {
        self.segment_size().bytes().max(SMALL_FILE_LIMIT)
    }
}
