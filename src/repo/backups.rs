//! Packs and manifests of a lane.

use std::sync::Arc;

use bytes::Bytes;

use super::RepoError;
use super::lane::Lane;
use super::layout;
use crate::format::FormatError;
use crate::format::digest::Sha256Hasher;
use crate::format::manifest::Manifest;
use crate::format::object::TAIL_BYTES;
use crate::format::pack::{FinishedPack, FrameEntry, FrameTable};
use crate::format::tables::{PackRef, PackSource, Tables};
use crate::store::{Created, Key, Store};

/// Most bytes of a manifest: some three million packs.
const MANIFEST_LIMIT: u64 = 512 << 20;

/// A backup that a listing found: a committed manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBackup {
    /// Its name.
    pub id: String,
    /// The highest generation of its manifest.
    pub generation: u32,
}

/// A pack that a listing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPack {
    /// The backup that wrote it.
    pub backup: String,
    /// Its number within that backup.
    pub number: u32,
    /// Bytes of the stored object.
    pub stored_bytes: u64,
}

impl Lane {
    /// What a pack is made for.
    pub fn pack_identity(&self, backup: &str, number: u32) -> String {
        layout::pack_identity(self.id(), backup, number)
    }

    /// Stores a pack once and returns the reference that a manifest keeps, and the memory that the pack was in.
    pub fn create_pack(
        &self,
        backup: &Arc<str>,
        number: u32,
        pack: FinishedPack,
    ) -> Result<(PackRef, Vec<u8>), RepoError> {
        let key = self.repository.layout.pack(self.id(), backup, number)?;
        let reference = PackRef {
            source: PackSource::Lane { backup: Arc::clone(backup), number },
            stored_bytes: pack.object.len() as u64,
            frames: pack.frames,
            sha256: pack.digest,
            table_sha256: pack.table_digest,
        };
        let body = Bytes::from(pack.object);
        self.create_own(&key, body.clone())?;
        // An attempt that was abandoned may still hold it; then there is none to give back.
        Ok((reference, body.try_into_mut().map(Vec::from).unwrap_or_default()))
    }

    /// Stores a manifest: from here on the backup exists.
    pub fn commit(&self, manifest: &Manifest, tables: &Tables) -> Result<(), RepoError> {
        let Manifest { envelope, .. } = manifest;
        let key = self.repository.layout.manifest(self.id(), &envelope.backup, envelope.generation)?;
        let identity = layout::manifest_identity(self.id(), &envelope.backup, envelope.generation);
        let encoded = manifest.encode(tables, &identity).map_err(|source| RepoError::object(&key, source))?;
        // What was just encoded is decoded and compared before it is sent: nobody will look again until a restore.
        let decoded = Manifest::decode_whole(&encoded, &identity).map_err(|source| RepoError::object(&key, source))?;
        if (&decoded.0, &decoded.1) != (manifest, tables) {
            return Err(RepoError::object(&key, FormatError::Damaged { part: "manifest" }));
        }
        drop(decoded);
        self.create_own(&key, Bytes::from(encoded))
    }

    /// Creates an object whose name is ours alone; a lost reply finds our own bytes.
    fn create_own(&self, key: &Key, body: Bytes) -> Result<(), RepoError> {
        match self.repository.store.create(key, vec![body.clone()])? {
            Created::New => Ok(()),
            Created::Existing => {
                // The manifest of a very large cluster may be larger than objects usually are.
                let limit = Store::WHOLE_OBJECT.max(body.len() as u64);
                match self.repository.store.get_up_to(key, limit)? == Some(body) {
                    true => Ok(()),
                    false => Err(RepoError::Taken { key: key.to_string() }),
                }
            }
        }
    }

    /// Returns the packs that are there, in order of their backups' names; some may belong to no committed backup.
    pub fn list_packs(&self) -> Result<Vec<StoredPack>, RepoError> {
        self.packs_below(self.repository.layout.packs(self.id())?)
    }

    /// Returns the packs that one backup stored and that are there.
    pub fn list_packs_of(&self, backup: &str) -> Result<Vec<StoredPack>, RepoError> {
        self.packs_below(self.repository.layout.packs(self.id())?.join(backup)?)
    }

    fn packs_below(&self, prefix: Key) -> Result<Vec<StoredPack>, RepoError> {
        let named = |meta: crate::store::Meta| {
            let (backup, number) = self.repository.layout.pack_name(&meta.key)?;
            Some(StoredPack { backup, number, stored_bytes: meta.size })
        };
        Ok(self.repository.store.list(Some(&prefix))?.into_iter().filter_map(named).collect())
    }

    /// Returns the committed backups, oldest first; those that were declared void are none.
    pub fn backups(&self) -> Result<Vec<StoredBackup>, RepoError> {
        let prefix = self.repository.layout.backups(self.id())?;
        let mut backups: Vec<StoredBackup> = Vec::new();
        for meta in self.repository.store.list(Some(&prefix))? {
            // It sorts behind the generations.
            if let Some(void) = self.repository.layout.void_name(&meta.key) {
                backups.retain(|backup| backup.id != void);
                continue;
            }
            let Some((id, generation)) = self.repository.layout.manifest_name(&meta.key) else { continue };
            match backups.last_mut() {
                Some(last) if last.id == id => last.generation = last.generation.max(generation),
                _ => backups.push(StoredBackup { id, generation }),
            }
        }
        Ok(backups)
    }

    /// Returns a backup's manifest without its tables.
    ///
    /// # Errors
    /// [`RepoError::Missing`] if it went away since it was listed, [`RepoError::Object`] if it is damaged.
    pub fn manifest(&self, backup: &StoredBackup) -> Result<Manifest, RepoError> {
        let key = self.repository.layout.manifest(self.id(), &backup.id, backup.generation)?;
        let stored = self.repository.store.get_up_to(&key, MANIFEST_LIMIT)?;
        let stored = stored.ok_or_else(|| RepoError::Missing { key: key.to_string() })?;
        let identity = layout::manifest_identity(self.id(), &backup.id, backup.generation);
        Manifest::decode(&stored, &identity).map_err(|source| RepoError::object(&key, source))
    }

    /// Returns a backup's manifest with its tables.
    ///
    /// # Errors
    /// As [`Lane::manifest`].
    pub fn manifest_whole(&self, backup: &StoredBackup) -> Result<(Manifest, Tables), RepoError> {
        let key = self.repository.layout.manifest(self.id(), &backup.id, backup.generation)?;
        let stored = self.repository.store.get_up_to(&key, MANIFEST_LIMIT)?;
        let stored = stored.ok_or_else(|| RepoError::Missing { key: key.to_string() })?;
        let identity = layout::manifest_identity(self.id(), &backup.id, backup.generation);
        Manifest::decode_whole(&stored, &identity).map_err(|source| RepoError::object(&key, source))
    }

    /// Returns the tables of a manifest that was read before.
    ///
    /// # Errors
    /// As [`Lane::manifest`]; also if the manifest is not the one that was read before.
    pub fn tables(&self, manifest: &Manifest) -> Result<Tables, RepoError> {
        let Manifest { envelope, .. } = manifest;
        let key = self.repository.layout.manifest(self.id(), &envelope.backup, envelope.generation)?;
        let stored = self.repository.store.get_up_to(&key, MANIFEST_LIMIT)?;
        let stored = stored.ok_or_else(|| RepoError::Missing { key: key.to_string() })?;
        let identity = layout::manifest_identity(self.id(), &envelope.backup, envelope.generation);
        let whole = Manifest::decode_whole(&stored, &identity).map_err(|source| RepoError::object(&key, source))?;
        match whole.0 == *manifest {
            true => Ok(whole.1),
            false => Err(RepoError::object(&key, FormatError::Damaged { part: "manifest" })),
        }
    }

    /// Reads a whole pack with one request, without holding it, and compares it with the digest that a manifest has of it.
    ///
    /// # Errors
    /// [`RepoError::Missing`] if it is gone, [`RepoError::Object`] if it is not what was stored.
    pub fn verify_pack(&self, pack: &PackRef) -> Result<(), RepoError> {
        const PART: u64 = 1 << 20;
        let PackSource::Lane { backup, number } = &pack.source;
        let key = self.repository.layout.pack(self.id(), backup, *number)?;
        let mut hasher = Sha256Hasher::default();
        let mut reading = self.repository.store.reading(&key, 0..pack.stored_bytes);
        let mut left = pack.stored_bytes;
        while left > 0 {
            let part = reading.take(left.min(PART) as usize)?;
            let part = part.ok_or_else(|| RepoError::Missing { key: key.to_string() })?;
            hasher.update(part);
            left -= part.len() as u64;
        }
        match hasher.finish() == pack.sha256 {
            true => Ok(()),
            false => Err(RepoError::object(&key, FormatError::Damaged { part: "pack" })),
        }
    }

    /// Another pack of the same shape has another table; what it holds is not this backup's.
    pub(super) fn pack_reader(&self, pack: &PackRef, key: Key, table: FrameTable) -> Result<PackReader, RepoError> {
        match table.digest == pack.table_sha256 && table.len() as u32 == pack.frames {
            true => Ok(PackReader { store: self.repository.store.clone(), key, table: Arc::new(table) }),
            false => Err(RepoError::object(&key, FormatError::Damaged { part: "frame table" })),
        }
    }

    /// Returns how many bytes each frame of a pack holds; none for a place that is vacant.
    pub fn frame_lengths(&self, tables: &Tables, place: u32) -> Result<Vec<u32>, RepoError> {
        let Some(pack) = tables.packs.get(place) else { return Ok(Vec::new()) };
        let pack = self.open_pack(pack)?;
        (0..pack.table().len() as u32).map(|frame| Ok(pack.frame(frame)?.raw_len)).collect()
    }

    /// Opens a pack that a manifest names: reads its frame table.
    pub fn open_pack(&self, pack: &PackRef) -> Result<PackReader, RepoError> {
        let PackSource::Lane { backup, number } = &pack.source;
        let key = self.repository.layout.pack(self.id(), backup, *number)?;
        let guess = FrameTable::most_bytes(pack.frames);
        let table = self.frame_table(&key, pack.stored_bytes, guess)?;
        self.pack_reader(pack, key, table)
    }

    /// Reads the frame table at the end of a pack that is `len` bytes long, in one request if it has no more than `guess`.
    pub(super) fn frame_table(&self, key: &Key, len: u64, guess: u64) -> Result<FrameTable, RepoError> {
        let mut wanted = guess.max(TAIL_BYTES as u64).min(len);
        loop {
            let last = self.repository.store.get_range(key, len - wanted..len)?;
            let last = last.ok_or_else(|| RepoError::Missing { key: key.to_string() })?;
            match FrameTable::decode(&last, len) {
                Ok(table) => return Ok(table),
                Err(FormatError::Truncated { .. }) if wanted < len => wanted = (wanted * 8).min(len),
                Err(source) => return Err(RepoError::object(key, source)),
            }
        }
    }
}

/// A pack that is open for reading; a clone is the same pack.
#[derive(Clone, Debug)]
pub struct PackReader {
    pub(super) store: Store,
    pub(super) key: Key,
    pub(super) table: Arc<FrameTable>,
}

impl PackReader {
    /// The pack's frame table.
    pub fn table(&self) -> &FrameTable {
        &self.table
    }

    /// Returns a frame's entry.
    pub fn frame(&self, place: u32) -> Result<&FrameEntry, RepoError> {
        self.table.frame(place).map_err(|source| RepoError::object(&self.key, source))
    }

    /// Returns an error that names this pack.
    pub fn wrong(&self, source: FormatError) -> RepoError {
        RepoError::object(&self.key, source)
    }

    /// Reads the stored bytes of frames `first..=last` in one request.
    pub fn read(&self, first: u32, last: u32) -> Result<Bytes, RepoError> {
        let (first, last) = (self.frame(first)?, self.frame(last)?);
        let range = first.at..last.at + u64::from(last.stored_len);
        let stored = self.store.get_range(&self.key, range)?;
        stored.ok_or_else(|| RepoError::Missing { key: self.key.to_string() })
    }

    /// Decompresses one frame out of bytes that [`PackReader::read`] returned, starting at frame `first`.
    pub fn decode(&self, stored: &[u8], first: u32, place: u32, raw: &mut Vec<u8>) -> Result<(), RepoError> {
        let (start, frame) = (self.frame(first)?.at, self.frame(place)?);
        let at = (frame.at - start) as usize;
        let bytes = stored.get(at..at + frame.stored_len as usize);
        let bytes = bytes.ok_or_else(|| RepoError::object(&self.key, FormatError::Truncated { part: "pack" }))?;
        frame.read(bytes, raw).map_err(|source| RepoError::object(&self.key, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::frame::Compressor;
    use crate::format::pack::PackWriter;
    use crate::repo::lane_fixture::empty_lane;
    use crate::repo::{LaneFacts, Repository};
    use crate::store::fault::{Fault, FaultStore, When};
    use crate::store::{RetryPolicy, Verb};

    fn stored(lane: &Lane, backup: &str, contents: u8) -> PackRef {
        let mut pack = PackWriter::new(&lane.pack_identity(backup, 1), 8192).expect("a short identity");
        pack.append(&[contents; 100_000], &[], &mut Compressor::new(3)).expect("a small frame");
        lane.create_pack(&backup.into(), 1, pack.finish()).expect("a free name").0
    }

    #[test]
    fn an_object_larger_than_most_is_our_own_also_where_the_reply_was_lost() {
        let faults = FaultStore::in_memory();
        let store = Store::over(Arc::new(faults.clone()), "memory", RetryPolicy::brisk(2)).expect("a runtime");
        let (repository, _) = Repository::init(store, "main").expect("an empty store");
        let lane = repository.lane_for(&LaneFacts::sample()).expect("a new lane");
        let key = repository.layout.manifest(lane.id(), "b", 1).expect("a key");
        let large = Bytes::from(vec![7; Store::WHOLE_OBJECT as usize + 1]);
        faults.script(When::next(Verb::Create), Fault::After(std::io::ErrorKind::ConnectionReset));
        lane.create_own(&key, large).expect("our own bytes are there");
        let other = lane.create_own(&key, Bytes::from_static(b"another's"));
        assert!(other.is_err(), "{other:?}");
    }

    #[test]
    fn a_pack_of_the_same_shape_is_not_taken_for_another() {
        let lane = empty_lane();
        let (first, second) = (stored(&lane, "first", 1), stored(&lane, "second", 2));
        assert_eq!((first.stored_bytes, first.frames), (second.stored_bytes, second.frames));
        lane.open_pack(&first).expect("what was stored");
        let swapped = PackRef { source: second.source, ..first };
        assert!(matches!(lane.open_pack(&swapped), Err(RepoError::Object { .. })));
    }
}
