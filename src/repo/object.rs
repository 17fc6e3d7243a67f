//! Every object of a lane by one listing, each told by its key; and their removal, which nothing but retention asks for.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::RepoError;
use super::lane::Lane;
use super::lease::Purpose;
use crate::error::ErrorKind;
use crate::format::document;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::store::{Created, Key};

/// Objects removed with one request.
const BATCH: usize = 1000;

/// Version of what says that a backup is void. Readers know every version, writers write the last.
/// - 1: first release.
pub const VOID_VERSION: u32 = 1;

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// `lane.json`.
    Lane,
    /// Who writes a timeline.
    Owner,
    /// That a timeline's owner was there.
    Sign {
        /// The timeline.
        timeline: TimelineId,
        /// The owner.
        writer: String,
        /// The sign's number.
        number: u32,
    },
    /// What was decided about contested bytes.
    Resolution,
    /// Segments that were given up.
    Hole,
    /// A segment, a `.backup` or a `.history`.
    Wal(WalFileName),
    /// A `.partial` of a segment.
    Partial(SegmentName),
    /// An index of a folder of segments, or what they change.
    Index {
        /// The timeline.
        timeline: TimelineId,
        /// Digits 9 to 16 of the segments' names.
        middle: String,
    },
    /// Bytes of another writer.
    Contested {
        /// The writer.
        writer: String,
        /// The name under which they were offered.
        name: WalFileName,
        /// Their digest.
        digest: String,
    },
    /// A pack.
    Pack {
        /// The backup that stored it.
        backup: Arc<str>,
        /// Its number there.
        number: u32,
    },
    /// A manifest.
    Manifest {
        /// The backup.
        backup: String,
        /// Its generation.
        generation: u32,
    },
    /// That a backup was declared void before it was committed.
    Void {
        /// The backup.
        backup: String,
    },
    /// A record of a lease.
    Lease {
        /// What for.
        purpose: Purpose,
        /// Its number.
        number: u32,
    },
    /// A record of somebody who reads.
    Reading {
        /// Who.
        holder: String,
        /// The record's number.
        number: u32,
    },
    /// What is to be removed.
    Tombstone {
        /// Its number.
        number: u32,
    },
    /// That a backup is kept, or no longer.
    Pin {
        /// The backup.
        backup: String,
        /// The record's number.
        number: u32,
    },
    /// Nothing that this walvault knows.
    Unknown,
}

/// One object of a lane, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub name: ObjectName,
    /// Its bytes.
    pub bytes: u64,
    /// When it was stored, by the store's clock.
    pub stored_at: DateTime<Utc>,
    key: Key,
}

impl Object {
    /// Its key, for people.
    pub fn key(&self) -> &str {
        self.key.as_str()
    }

    /// An object that is nowhere.
    #[cfg(test)]
    pub(crate) fn sample(key: &str, name: ObjectName, bytes: u64, stored_at: DateTime<Utc>) -> Self {
        Self { key: key.parse().expect("a key"), name, bytes, stored_at }
    }
}

/// That a backup can no longer be committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Void {
    version: u32,
    /// The backup.
    void: String,
}

/// What became of the wish to make a backup's name useless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// It can no longer be committed.
    Void,
    /// It is committed.
    Committed,
}

/// What became of objects that were to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many are gone.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that the store does not let go: a lock, or a right that is not given; and what it said of the last one.
    pub refused: Vec<String>,
    /// What it said of the last one.
    pub refusal: Option<String>,
}

impl Lane {
    /// Returns every object of the lane, in order of their keys.
    pub fn objects(&self) -> Result<Vec<Object>, RepoError> {
        let layout = &self.repository.layout;
        let listed = self.repository.store.list(Some(&layout.lane_folder(self.id())?))?;
        let named = |meta: crate::store::Meta| Object {
            name: layout.object(self.id(), &meta.key),
            bytes: meta.size,
            stored_at: meta.last_modified,
            key: meta.key,
        };
        Ok(listed.into_iter().map(named).collect())
    }

    /// Removes objects; `between` is asked before each request and may end it.
    ///
    /// # Errors
    /// [`RepoError`] if the store fails, or what `between` says; some may be gone.
    pub fn remove<E: From<RepoError>>(
        &self,
        objects: &[&Object],
        mut between: impl FnMut() -> Result<(), E>,
    ) -> Result<Removed, E> {
        let store = &self.repository.store;
        let mut removed = Removed::default();
        for batch in objects.chunks(BATCH) {
            between()?;
            let keys: Vec<Key> = batch.iter().map(|object| object.key.clone()).collect();
            match store.delete_all(&keys) {
                Ok(()) => {
                    removed.objects += batch.len() as u64;
                    removed.bytes += batch.iter().map(|object| object.bytes).sum::<u64>();
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Denied => {}
                Err(error) => return Err(RepoError::from(error).into()),
            }
            // One of them is locked, or all are: each by itself tells.
            for object in batch {
                match store.delete(&object.key) {
                    Ok(_) => {
                        removed.objects += 1;
                        removed.bytes += object.bytes;
                    }
                    Err(error) if error.kind() == ErrorKind::Denied => {
                        removed.refused.push(object.key.to_string());
                        removed.refusal = Some(crate::error::chain(&error).to_string());
                    }
                    Err(error) => return Err(RepoError::from(error).into()),
                }
            }
        }
        Ok(removed)
    }

    /// Makes it impossible that a backup is committed from now on, unless it is already: something else gets the name of
    /// its manifest, which is created once. Then, and only then, says so beside it.
    ///
    /// # Errors
    /// [`RepoError::Object`] if what has that name is neither.
    pub fn fence(&self, backup: &str) -> Result<Fenced, RepoError> {
        let (store, layout) = (&self.repository.store, &self.repository.layout);
        let key = layout.manifest(self.id(), backup, 1)?;
        let void = Bytes::from(document::encode(&Void { version: VOID_VERSION, void: backup.to_owned() }));
        if store.create(&key, vec![void.clone()])? == Created::Existing {
            let stored = store.get_up_to(&key, crate::store::Store::WHOLE_OBJECT);
            // A manifest that is too large for this is none the less no such word.
            match stored {
                Ok(Some(stored)) if document::decode::<Void>(&stored, "void").is_ok_and(|void| void.void == backup) => {
                }
                Ok(None) => return Err(RepoError::Missing { key: key.to_string() }),
                Ok(Some(_)) => return Ok(Fenced::Committed),
                Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(Fenced::Committed),
                Err(error) => return Err(error.into()),
            }
        }
        store.create(&layout.void(self.id(), backup)?, vec![void])?;
        Ok(Fenced::Void)
    }

    /// Returns whether what has the name of a backup's first manifest says that it is void: `fence` was interrupted.
    pub fn is_void(&self, backup: &str) -> Result<bool, RepoError> {
        let key = self.repository.layout.manifest(self.id(), backup, 1)?;
        let stored = self.repository.store.get(&key)?;
        Ok(stored.is_some_and(|stored| document::decode::<Void>(&stored, "void").is_ok_and(|void| void.void == backup)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::repo::lane_fixture::lane_without;

    #[test]
    fn every_object_of_a_real_lane_is_told_by_its_key() {
        let lane = lane_without(&[]);
        let names: Vec<ObjectName> = lane.objects().unwrap().into_iter().map(|object| object.name).collect();
        assert!(names.contains(&ObjectName::Lane));
        assert!(names.contains(&ObjectName::Wal("00000002.history".parse().unwrap())));
        assert!(names.contains(&ObjectName::Wal("000000010000000000000008".parse().unwrap())));
        assert!(!names.contains(&ObjectName::Unknown), "{names:?}");
        let layout = &lane.repository.layout;
        let name = |rest: &str| layout.object(lane.id(), &layout.lane_folder(lane.id()).unwrap().join(rest).unwrap());
        let segment: SegmentName = "000000010000000000000008".parse().unwrap();
        let digest = "0".repeat(64);
        for (rest, expected) in [
            (format!("wal/00000001/00000000/{segment}.partial/{digest}.zst"), ObjectName::Partial(segment)),
            (
                format!("wal/00000001/00000000/{segment}.00000028.backup.zst"),
                ObjectName::Wal(format!("{segment}.00000028.backup").parse().unwrap()),
            ),
            ("packs/b/000007.zst".to_owned(), ObjectName::Pack { backup: "b".into(), number: 7 }),
            ("backups/b/000001.zst".to_owned(), ObjectName::Manifest { backup: "b".to_owned(), generation: 1 }),
            ("backups/b/void".to_owned(), ObjectName::Void { backup: "b".to_owned() }),
            ("leases/backup/12".to_owned(), ObjectName::Lease { purpose: Purpose::Backup, number: 12 }),
            ("leases/read/x/2".to_owned(), ObjectName::Reading { holder: "x".to_owned(), number: 2 }),
            (
                "signs/0000000A/0123456789abcdef/7".to_owned(),
                ObjectName::Sign {
                    timeline: TimelineId::new(10).unwrap(),
                    writer: "0123456789abcdef".to_owned(),
                    number: 7,
                },
            ),
            ("signs/0000000A/0123456789abcdef/7.zst".to_owned(), ObjectName::Unknown),
            ("tombstones/3".to_owned(), ObjectName::Tombstone { number: 3 }),
            ("pins/b/2".to_owned(), ObjectName::Pin { backup: "b".to_owned(), number: 2 }),
            // Nothing that anybody may take for something that is expired.
            ("wal/other/strange.zst".to_owned(), ObjectName::Unknown),
            ("wal/00000001/00000000/strange.zst".to_owned(), ObjectName::Unknown),
            (format!("wal/00000001/00000000/{segment}"), ObjectName::Unknown),
            ("packs/b/000007".to_owned(), ObjectName::Unknown),
            ("proofs/1".to_owned(), ObjectName::Unknown),
        ] {
            assert_eq!(name(&rest), expected, "{rest}");
        }
    }

    #[test]
    fn a_fenced_backup_is_no_backup_and_a_committed_one_is_not_fenced() {
        let lane = lane_without(&[]);
        assert_eq!(lane.fence("dead").unwrap(), Fenced::Void);
        assert_eq!(lane.fence("dead").unwrap(), Fenced::Void);
        assert!(lane.is_void("dead").unwrap());
        assert_eq!(lane.backups().unwrap(), []);
        let key = lane.repository.layout.manifest(lane.id(), "alive", 1).unwrap();
        lane.repository.store.create(&key, vec![Bytes::from_static(b"anything else")]).unwrap();
        assert_eq!(lane.fence("alive").unwrap(), Fenced::Committed);
        assert!(!lane.is_void("alive").unwrap());
        assert_eq!(lane.backups().unwrap().len(), 1);
    }
}
