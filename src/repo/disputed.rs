//! Segments that a former owner stored after an operator gave its timeline to somebody else.
//!
//! An owner asks now and then whether it still is one (see [`super::FRESH`]), so for a while after an adoption it may go on
//! storing what it writes. Nothing that the new owner has is overwritten by that; but where the former one was first, the
//! name holds the bytes of a history that was left. The new owner's own bytes are then kept apart, and tell: what was stored
//! under a name after the adoption, and is not what the timeline's owner wrote, is a gap in the log, until an operator has
//! decided on what was kept.

use std::collections::BTreeMap;

use super::RepoError;
use super::hole::{HOLE_VERSION, Hole};
use super::lane::Lane;
use super::owner::{Claim, OwnerRecord};
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;

impl Lane {
    /// Returns the segments that are not what their timeline's owner wrote, as gaps. Nobody decided on them: an archiver does
    /// not pass them by.
    ///
    /// # Errors
    /// [`RepoError`] if the lane cannot be listed.
    pub fn disputed(&self) -> Result<Vec<Hole>, RepoError> {
        let mut adopted: BTreeMap<TimelineId, Option<OwnerRecord>> = BTreeMap::new();
        let mut found = Vec::new();
        for kept in self.contested()?.into_iter().filter(|kept| !kept.resolved) {
            let WalFileName::Segment(segment) = kept.name else { continue };
            let timeline = segment.timeline();
            let record = match adopted.entry(timeline) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(unknown) => {
                    let current = self.owners(timeline)?.current;
                    unknown.insert(current.filter(|record| record.owner.claim == Claim::Adoption))
                }
            };
            let Some(record) = record.as_ref().filter(|record| record.owner.writer == kept.writer) else { continue };
            let stored = self.list_wal(timeline)?.into_iter().find(|stored| stored.name == kept.name);
            let Some(stored) = stored.filter(|stored| stored.stored_at >= record.recorded_at) else { continue };
            found.push(Hole {
                version: HOLE_VERSION,
                from: segment,
                through: segment,
                reason: format!(
                    "it was stored after timeline {timeline} was given to writer {}, and has other bytes than that one wrote; \
                     see `walvault conflict show {}`",
                    kept.writer,
                    kept.id()
                ),
                host: record.owner.host.clone(),
                decided_at: stored.stored_at,
                disputed: true,
            });
        }
        Ok(found)
    }
}
