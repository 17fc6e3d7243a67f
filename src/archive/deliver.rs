//! Where the bytes of a pushed file go, by who pushes them.
//!
//! - The same bytes as are stored already are a success, whoever brings them.
//! - The owner of a timeline stores what it writes. The first to push becomes the owner, and so does the first to push
//!   after the owner has been silent for a grace, by the store's clock.
//! - The bytes of anybody else are kept apart, but for a standby's: it waits for the owner to store the same ones.
//! - A timeline that forked off while its parent's owner was at work is stored like any other, and recorded as waiting.
//!
//! What belongs to a promotion rather than to a timeline's writer has no owner: the `.partial` of the timeline that was
//! left, which has its digest in its key, and the notes of backups. So no stranger is in the way of a failover.
//!
//! In the steady state this asks nothing: who the owner is counts for a while after it was asked, and for less than half
//! the grace, so that whoever was silent for a grace asks again before it writes. The time is asked only for a second
//! writer.

use chrono::Duration;

use super::Writer;
use crate::clock;
use crate::format::wal::{self, EncodedWal};
use crate::format::{FormatError, Sha256};
use crate::pg::timeline::{History, TimelineId};
use crate::pg::wal_name::WalFileName;
use crate::repo::{Claim, Lane, OWNER_VERSION, Owner, OwnerRecord, Owners, RepoError, WaitsFor, WalCreated};
use crate::store::Created;

/// Longest history that makes sense; the longest real ones have a few hundred lines.
const HISTORY_LIMIT: u64 = 16 << 20;
/// Claims that are lost to somebody faster before it is given up: each time there must be one more record.
const ROUNDS: usize = 16;

/// What became of the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// They are stored now.
    Stored,
    /// They were stored already.
    AlreadyStored,
    /// Other bytes have the name.
    Conflict {
        /// SHA-256 of these; `None` if they are damaged.
        stored: Option<Sha256>,
        /// Key under which ours were kept.
        kept: String,
    },
    /// Somebody else writes the timeline.
    NotOwner {
        /// The owner's host.
        owner: String,
        /// How long it has been silent, by the store's clock.
        silent: Duration,
        /// Key under which ours were kept.
        kept: String,
    },
    /// Somebody else writes the timeline, a standby brings it, and nothing has its name yet.
    NotYet {
        /// The owner's host.
        owner: String,
    },
}

/// What a writer may do on a timeline.
enum Right {
    Write,
    /// Nothing needs to be written.
    SameBytes,
    None {
        owner: String,
        silent: Duration,
    },
}

/// Stores a file's bytes, or keeps them apart.
pub(super) fn deliver(
    lane: &Lane,
    name: &WalFileName,
    encoded: &EncodedWal,
    writer: &Writer,
) -> Result<Delivered, RepoError> {
    let offer = Offer { lane, name, encoded, writer };
    match owned(name).map_or(Ok(Right::Write), |timeline| offer.right_to(timeline))? {
        Right::Write => {}
        Right::SameBytes => return Ok(Delivered::AlreadyStored),
        // What it received from its primary lies there still; kept apart it would be an alarm that means nothing. If other
        // bytes have the name, it is one.
        Right::None { owner, .. } if writer.follows && lane.stored_bytes(name)?.is_none() => {
            return Ok(Delivered::NotYet { owner });
        }
        // Stored since it was looked for.
        Right::None { .. } if writer.follows && offer.is_stored()? => return Ok(Delivered::AlreadyStored),
        Right::None { owner, silent } => {
            let kept = lane.keep_contested(&writer.token, name, encoded)?;
            return Ok(Delivered::NotOwner { owner, silent, kept });
        }
    }
    Ok(match lane.create_wal(name, encoded)? {
        WalCreated::New => Delivered::Stored,
        WalCreated::Same => Delivered::AlreadyStored,
        WalCreated::Other { stored } => {
            let kept = lane.keep_contested(&writer.token, name, encoded)?;
            Delivered::Conflict { stored, kept }
        }
    })
}

/// Returns the timeline whose owner must have written a file.
fn owned(name: &WalFileName) -> Option<TimelineId> {
    match name {
        WalFileName::Segment(segment) => Some(segment.timeline()),
        WalFileName::History(timeline) => Some(*timeline),
        WalFileName::Partial(_) | WalFileName::BackupHistory { .. } | WalFileName::Other(_) => None,
    }
}

/// Whether an owner counts as gone. One without a grace is never waited for.
pub(super) fn is_silent(silent: Duration, grace: std::time::Duration) -> bool {
    grace.is_zero() || silent > Duration::from_std(grace).unwrap_or(Duration::MAX)
}

struct Offer<'a> {
    lane: &'a Lane,
    name: &'a WalFileName,
    encoded: &'a EncodedWal,
    writer: &'a Writer,
}

impl Offer<'_> {
    fn right_to(&self, timeline: TimelineId) -> Result<Right, RepoError> {
        if self.lane.is_known_to_be_of(timeline, &self.writer.token, self.writer.grace, clock::now()) {
            return Ok(Right::Write);
        }
        for _ in 0..ROUNDS {
            let asked = clock::now();
            let owners = self.lane.owners(timeline)?;
            let claim = match &owners.current {
                None => Claim::First,
                Some(record) if record.owner.writer == self.writer.token => {
                    if self.settle(timeline, &owners, record)? {
                        self.lane.remember_owner(timeline, &self.writer.token, asked);
                    }
                    return Ok(Right::Write);
                }
                Some(record) if self.writer.was(&record.owner.writer) => {
                    // From now on a copy of the machine is another one. Whatever came first, it is looked at again.
                    self.record(timeline, owners.next, Claim::Settled, record.owner.waits_for.clone())?;
                    continue;
                }
                Some(_) if self.is_stored()? => return Ok(Right::SameBytes),
                Some(record) => {
                    let silent = self.silence(timeline, record)?;
                    if !is_silent(silent, self.writer.grace) {
                        return Ok(Right::None { owner: record.owner.host.clone(), silent });
                    }
                    Claim::Silence
                }
            };
            let waits_for = self.waits_for(timeline)?;
            let counts = waits_for.is_none();
            if self.record(timeline, owners.next, claim, waits_for)? == Created::New {
                if counts {
                    self.lane.remember_owner(timeline, &self.writer.token, asked);
                }
                return Ok(Right::Write);
            }
            // Somebody was faster, and is the owner now.
        }
        Err(RepoError::Taken { key: format!("the record of who owns timeline {timeline}") })
    }

    fn record(
        &self,
        timeline: TimelineId,
        number: u32,
        claim: Claim,
        waits_for: Option<WaitsFor>,
    ) -> Result<Created, RepoError> {
        let Writer { token, host, .. } = self.writer;
        let (writer, host, since) = (token.clone(), host.clone(), self.name.to_string());
        let owner = Owner { version: OWNER_VERSION, writer, host, since, claim, waits_for };
        self.lane.record_owner(timeline, number, &owner)
    }

    /// Whether these very bytes are stored; damaged ones are not.
    fn is_stored(&self) -> Result<bool, RepoError> {
        match self.lane.read_wal(self.name) {
            Ok(stored) => Ok(stored.is_some_and(|stored| stored.digest == self.encoded.digest)),
            Err(RepoError::Object { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How long an owner has been silent, by the store's clock.
    fn silence(&self, timeline: TimelineId, record: &OwnerRecord) -> Result<Duration, RepoError> {
        if self.writer.grace.is_zero() {
            return Ok(Duration::MAX);
        }
        let last = self.lane.last_sign(timeline, record)?;
        Ok(self.lane.store_time()? - last)
    }

    /// Records that the writer's own timeline waits no longer, once that is so; returns whether it does not. From then on
    /// it counts, whoever wakes up.
    fn settle(&self, timeline: TimelineId, owners: &Owners, record: &OwnerRecord) -> Result<bool, RepoError> {
        let Some(waits) = &record.owner.waits_for else { return Ok(true) };
        let awaited = self.lane.owners(waits.timeline)?.current;
        let over = match awaited {
            // The ancestor's owner is gone, or is us: nobody is waited for.
            None => true,
            Some(awaited) if self.writer.is(&awaited.owner.writer) => true,
            Some(awaited) => is_silent(self.silence(waits.timeline, &awaited)?, self.writer.grace),
        };
        // Whatever record comes first, it is ours or an operator's.
        Ok(over && self.record(timeline, owners.next, Claim::Settled, None)? == Created::New)
    }

    /// Decides whether a timeline that is claimed has to wait: whether the owner of its parent is another one and at work.
    fn waits_for(&self, timeline: TimelineId) -> Result<Option<WaitsFor>, RepoError> {
        let Some(history) = self.history(timeline)? else { return Ok(None) };
        let Some(parent) = history.forks().last().map(|fork| fork.parent) else { return Ok(None) };
        // An operator restored the server to take the lane over.
        if self.writer.takes_over == Some(parent) {
            return Ok(None);
        }
        let Some(record) = self.lane.owners(parent)?.current else { return Ok(None) };
        let own = self.writer.is(&record.owner.writer);
        if own || is_silent(self.silence(parent, &record)?, self.writer.grace) {
            // A branch of a branch that waits, waits too.
            return Ok(record.owner.waits_for.filter(|_| !self.writer.grace.is_zero()));
        }
        let grace_seconds = self.writer.grace.as_secs();
        Ok(Some(WaitsFor { timeline: parent, host: record.owner.host, grace_seconds }))
    }

    /// The history of a timeline: the file that is pushed, or the archived one. PostgreSQL archives it before any segment.
    fn history(&self, timeline: TimelineId) -> Result<Option<History>, RepoError> {
        if timeline == TimelineId::FIRST {
            return Ok(None);
        }
        if *self.name != WalFileName::History(timeline) {
            return match self.lane.history(timeline) {
                // Fetching it will fail loudly; archiving needs not.
                Err(RepoError::Object { .. }) => Ok(None),
                history => history,
            };
        }
        let identity = self.lane.wal_identity(self.name);
        let decoded = wal::decode(&self.encoded.object, &identity, HISTORY_LIMIT);
        let raw = decoded.map_err(|source| self.nonsense(source))?.raw;
        // Nonsense that PostgreSQL handed over is archived like everything else, and refused when it is fetched.
        Ok(std::str::from_utf8(&raw).ok().and_then(|text| History::parse(timeline, text).ok()))
    }

    fn nonsense(&self, source: FormatError) -> RepoError {
        RepoError::Object { key: self.name.to_string(), source }
    }
}

#[cfg(test)]
mod tests;
