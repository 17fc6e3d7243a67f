//! Lanes: one history inside a cluster's repository.
//!
//! A cluster's name can outlive its data: after `pg_upgrade` or another `initdb` the same names of WAL files mean other
//! bytes. So everything lies under a lane, which is the system identifier and an epoch.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::known::Claims;
use super::lane_id::LaneId;
use super::repository::Repository;
use crate::pg::control::ControlFile;
use crate::pg::segment::SegmentSize;
use crate::pg::system_id::SystemId;

/// Version of `lane.json`. Readers know every version, writers write the last.
/// - 1: first release.
pub const LANE_VERSION: u32 = 1;

/// What `lane.json` says: facts of the server that no later write can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneFacts {
    /// [`LANE_VERSION`].
    pub version: u32,
    /// The server's system identifier.
    pub system_id: SystemId,
    /// 1 for the first lane of a system identifier.
    pub epoch: u32,
    /// Server major.
    pub major: u16,
    /// Catalogue version, which tells majors with one control version apart.
    pub catalog_version: u32,
    /// Bytes in a WAL segment.
    pub segment_size: u32,
    /// Bytes in a data page.
    pub block_size: u32,
    /// Bytes in a WAL page.
    pub wal_block_size: u32,
    /// The lane that this one forked off.
    pub parent: Option<String>,
}

impl LaneFacts {
    /// Returns the facts of the server that wrote `control`, for its first lane.
    pub fn of(control: &ControlFile) -> Self {
        Self {
            version: LANE_VERSION,
            system_id: control.system_id,
            epoch: 1,
            major: control.major,
            catalog_version: control.catalog_version,
            segment_size: control.segment_size.bytes() as u32,
            block_size: control.block_size.bytes(),
            wal_block_size: control.wal_block_size,
            parent: None,
        }
    }

    /// Facts of a server that does not exist.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        Self {
            version: LANE_VERSION,
            system_id: SystemId::new(7),
            epoch: 1,
            major: 17,
            catalog_version: 202_406_281,
            segment_size: 16 << 20,
            block_size: 8192,
            wal_block_size: 8192,
            parent: None,
        }
    }

    /// Returns whether a server with these facts may write here.
    pub fn fits(&self, server: &Self) -> bool {
        self.major == server.major
            && self.catalog_version == server.catalog_version
            && self.segment_size == server.segment_size
            && self.block_size == server.block_size
            && self.wal_block_size == server.wal_block_size
    }
}

impl fmt::Display for LaneFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PostgreSQL {} (catalogue {}, segments of {} bytes, pages of {} and {})",
            self.major, self.catalog_version, self.segment_size, self.block_size, self.wal_block_size
        )
    }
}

/// A lane that is there.
#[derive(Clone, Debug)]
pub struct Lane {
    pub(super) repository: Repository,
    id: LaneId,
    facts: LaneFacts,
    pub(super) claims: Claims,
}

impl Lane {
    pub(super) fn new(repository: Repository, id: LaneId, facts: LaneFacts) -> Self {
        Self { repository, id, facts, claims: Claims::default() }
    }

    /// Returns the same lane, with another limit to the time of one request to its store.
    pub fn with_budget(&self, budget: std::time::Duration) -> Self {
        Self { repository: self.repository.with_budget(budget), ..self.clone() }
    }

    /// Returns the same lane, with no more time for one request to its store than this.
    pub(super) fn within(&self, limit: std::time::Duration) -> Self {
        Self { repository: self.repository.within(limit), ..self.clone() }
    }

    /// Its name.
    pub fn id(&self) -> LaneId {
        self.id
    }

    /// Facts of the server it was made for.
    pub fn facts(&self) -> &LaneFacts {
        &self.facts
    }

    /// The repository it lies in.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Bytes in a WAL segment; the default if the document holds nonsense, which no server's segment will fit.
    pub fn segment_size(&self) -> SegmentSize {
        SegmentSize::new(self.facts.segment_size).unwrap_or(SegmentSize::DEFAULT)
    }
}
