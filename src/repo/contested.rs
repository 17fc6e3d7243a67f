//! Files kept apart because somebody else's bytes have, or may have, their names; and what became of them.
//!
//! A resolution is an object of its own, created once for each file that was kept: adopted or discarded. The kept bytes stay
//! as they are, whatever is decided.

use std::collections::BTreeSet;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::lane::Lane;
use super::wal::WalCreated;
use super::{RepoError, versioned};
use crate::format::document;
use crate::format::wal::{EncodedWal, StoredWal};
use crate::pg::wal_name::WalFileName;
use crate::store::{Created, Key};

/// Version of a resolution's document. Readers know every version, writers write the last.
/// - 1: first release.
pub const RESOLUTION_VERSION: u32 = 1;

/// A file that is kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contested {
    /// Token of the writer that offered it.
    pub writer: String,
    /// Its name.
    pub name: WalFileName,
    /// SHA-256 of its bytes, as its key says.
    pub digest: String,
    /// Bytes of the stored object.
    pub stored_bytes: u64,
    /// When it was stored, by the store's clock.
    pub stored_at: DateTime<Utc>,
    /// Whether something was decided about it.
    pub resolved: bool,
    key: Key,
}

impl Contested {
    /// Its name among all that are kept: writer, file, and the beginning of the digest.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.writer, self.name, &self.digest[..12.min(self.digest.len())])
    }

    /// The object's key.
    pub fn key(&self) -> &str {
        self.key.as_str()
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The bytes belong to the timeline, and are stored there.
    Adopted,
    /// They are of no use.
    Discarded,
}

/// What was decided about a file that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// [`RESOLUTION_VERSION`].
    pub version: u32,
    /// What was decided.
    pub decision: Decision,
    /// On which host.
    pub host: String,
    /// When, by that host's clock.
    pub decided_at: DateTime<Utc>,
}

/// What became of the wish to adopt a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// It is stored under its name, and recorded.
    Stored,
    /// Its name has other bytes; nothing was changed.
    NameTaken,
}

impl Lane {
    /// Returns the files that are kept apart, in order of writer and name.
    pub fn contested(&self) -> Result<Vec<Contested>, RepoError> {
        let (store, layout) = (&self.repository.store, &self.repository.layout);
        let listed = store.list(Some(&layout.contested_root(self.id())?))?;
        if listed.is_empty() {
            return Ok(Vec::new());
        }
        let resolved = store.list(Some(&layout.resolutions(self.id())?))?;
        let resolved: BTreeSet<Key> = resolved.into_iter().map(|meta| meta.key).collect();
        let mut found = Vec::new();
        for meta in listed {
            let Some((writer, name, digest)) = layout.contested_name(&meta.key) else { continue };
            let resolution = layout.resolution(self.id(), &writer, &name, &digest)?;
            found.push(Contested {
                resolved: resolved.contains(&resolution),
                writer,
                name,
                digest,
                stored_bytes: meta.size,
                stored_at: meta.last_modified,
                key: meta.key,
            });
        }
        Ok(found)
    }

    /// Returns a kept file, verified.
    pub fn read_contested(&self, contested: &Contested) -> Result<StoredWal, RepoError> {
        let stored = self.read_key(&contested.key, &contested.name)?;
        stored.ok_or_else(|| RepoError::Missing { key: contested.key.to_string() })
    }

    /// Returns what was decided about a kept file.
    pub fn resolution(&self, contested: &Contested) -> Result<Option<Resolution>, RepoError> {
        let key = self.resolution_key(contested)?;
        let Some(stored) = self.repository.store.get(&key)? else { return Ok(None) };
        let resolution: Resolution =
            document::decode(&stored, "resolution").map_err(|source| RepoError::object(&key, source))?;
        versioned(&key, resolution.version, RESOLUTION_VERSION)?;
        Ok(Some(resolution))
    }

    /// Records what was decided about a kept file; the first decision stands.
    pub fn resolve(&self, contested: &Contested, resolution: &Resolution) -> Result<Created, RepoError> {
        let key = self.resolution_key(contested)?;
        Ok(self.repository.store.create(&key, vec![Bytes::from(document::encode(resolution))])?)
    }

    /// Stores a kept file under its name, unless that has other bytes. The object is the one that was kept.
    pub fn adopt(&self, contested: &Contested) -> Result<Adopted, RepoError> {
        let kept = self.read_contested(contested)?;
        let missing = || RepoError::Missing { key: contested.key.to_string() };
        let object = self.repository.store.get_up_to(&contested.key, contested.stored_bytes)?.ok_or_else(missing)?;
        let raw_len = kept.raw.len() as u64;
        let encoded = EncodedWal { object, digest: kept.digest, raw_len, facts: kept.facts };
        match self.create_wal(&contested.name, &encoded)? {
            WalCreated::New | WalCreated::Same => Ok(Adopted::Stored),
            WalCreated::Other { .. } => Ok(Adopted::NameTaken),
        }
    }

    fn resolution_key(&self, contested: &Contested) -> Result<Key, RepoError> {
        let Contested { writer, name, digest, .. } = contested;
        Ok(self.repository.layout.resolution(self.id(), writer, name, digest)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::clock;
    use crate::format::wal;
    use crate::pg::wal_fixture::segments;
    use crate::repo::lane_fixture::{MAJOR, lane_of};

    fn encoded(lane: &Lane, name: &WalFileName, raw: &[u8]) -> EncodedWal {
        wal::encode(&lane.wal_identity(name), &raw, raw.len() as u64, 1, 1, None).unwrap()
    }

    fn decided(decision: Decision) -> Resolution {
        Resolution { version: RESOLUTION_VERSION, decision, host: "db1".to_owned(), decided_at: clock::now() }
    }

    #[test]
    fn what_is_adopted_gets_a_free_name_and_never_one_that_is_taken() {
        let all = segments(MAJOR, 1);
        let lane = lane_of(&all[..1]);
        let taken = WalFileName::Segment(all[0].0);
        let free: WalFileName = "00000009.history".parse().unwrap();
        lane.keep_contested("0123456789abcdef", &taken, &encoded(&lane, &taken, &all[1].1)).unwrap();
        lane.keep_contested("0123456789abcdef", &free, &encoded(&lane, &free, b"1\t0/1000\tx\n")).unwrap();
        let found = lane.contested().unwrap();
        assert_eq!(found.iter().map(|found| found.resolved).collect::<Vec<_>>(), [false, false]);
        let of = |name: &WalFileName| found.iter().find(|found| found.name == *name).unwrap();
        assert_eq!(lane.adopt(of(&taken)).unwrap(), Adopted::NameTaken);
        assert_eq!(lane.read_wal(&taken).unwrap().unwrap().raw, all[0].1);
        for _ in 0..2 {
            assert_eq!(lane.adopt(of(&free)).unwrap(), Adopted::Stored);
        }
        assert_eq!(lane.read_wal(&free).unwrap().unwrap().raw, b"1\t0/1000\tx\n");
    }

    #[test]
    fn the_first_decision_stands_and_the_bytes_stay() {
        let all = segments(MAJOR, 1);
        let lane = lane_of(&all[..1]);
        let name = WalFileName::Segment(all[0].0);
        lane.keep_contested("0123456789abcdef", &name, &encoded(&lane, &name, &all[1].1)).unwrap();
        let contested = lane.contested().unwrap().remove(0);
        assert_eq!(contested.id(), format!("0123456789abcdef/{name}/{}", &contested.digest[..12]));
        assert_eq!(lane.resolution(&contested).unwrap(), None);
        assert_eq!(lane.resolve(&contested, &decided(Decision::Discarded)).unwrap(), Created::New);
        assert_eq!(lane.resolve(&contested, &decided(Decision::Adopted)).unwrap(), Created::Existing);
        assert_eq!(lane.resolution(&contested).unwrap().unwrap().decision, Decision::Discarded);
        let contested = lane.contested().unwrap().remove(0);
        assert!(contested.resolved);
        assert_eq!(lane.read_contested(&contested).unwrap().raw, all[1].1);
    }
}
