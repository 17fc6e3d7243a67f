//! Owners: who writes a timeline.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::lane::Lane;
use super::{RepoError, versioned};
use crate::format::document;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::store::Created;

/// Version of an owner's document. Readers know every version, writers write the last.
/// - 1: first release.
pub const OWNER_VERSION: u32 = 1;

/// Who writes a timeline; the first to push on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// [`OWNER_VERSION`].
    pub version: u32,
    /// The writer's token.
    pub writer: String,
    /// Its host, for people.
    pub host: String,
    /// The first file it pushed.
    pub since: String,
}

impl Lane {
    /// Returns the first owner of a timeline, if it has one.
    pub fn owner(&self, timeline: TimelineId) -> Result<Option<Owner>, RepoError> {
        let key = self.repository.layout.owner(self.id(), timeline, 1)?;
        let Some(stored) = self.repository.store.get(&key)? else { return Ok(None) };
        let owner: Owner = document::decode(&stored, "owner").map_err(|source| RepoError::object(&key, source))?;
        versioned(&key, owner.version, OWNER_VERSION)?;
        Ok(Some(owner))
    }

    /// Records the owner of a timeline that has none; another writer's claim that came first stands.
    pub fn claim(&self, timeline: TimelineId, writer: &str, host: &str, since: &WalFileName) -> Result<(), RepoError> {
        let key = self.repository.layout.owner(self.id(), timeline, 1)?;
        let (writer, host, since) = (writer.to_owned(), host.to_owned(), since.to_string());
        let owner = Owner { version: OWNER_VERSION, writer, host, since };
        if self.repository.store.create(&key, vec![Bytes::from(document::encode(&owner))])? == Created::New {
            self.remember_owner(timeline, &owner.writer);
        }
        Ok(())
    }
}
