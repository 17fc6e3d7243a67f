//! What a restore reads, and what the recovery behind it will, held against expiry.
//!
//! Held from before the catalogue is loaded, when it is not known yet what will be read, until the recovery is over. A
//! restore that starts the server sees that end; any other leaves its hold behind, for a time that follows from the log.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Plan;
use crate::pg::segment::SegmentSize;
use crate::repo::{LONGEST_READING, Lane, Needs, Reading, RepoError, SegmentRange};

/// Time for an operator to look, to start the server, and to look again.
const AT_LEAST: Duration = Duration::from_secs(86400);
/// Bytes of log in a second that every recovery manages.
const SLOWEST: u64 = 4 << 20;

/// Keeps what is read from expiry until it is dropped or left behind.
#[derive(Debug)]
pub struct Hold(Reading);

/// Whether what a plan reads is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It stays while it is held.
    Safe,
    /// It is condemned, and an expiry that was at work before may be removing it just now.
    MayBeGoing,
}

impl Hold {
    /// Begins to hold whatever there is.
    ///
    /// # Errors
    /// [`RepoError`] if nobody can be told of it, such as where this host may only read. No reason not to restore.
    pub fn begin(lane: &Lane) -> Result<Self, RepoError> {
        Reading::begin(lane).map(Self)
    }

    /// Holds what a plan reads, and nothing else.
    ///
    /// # Errors
    /// [`RepoError`] if nobody can be told of it: then it is held for ten minutes.
    pub fn narrow(&self, plan: &Plan) -> Result<Held, RepoError> {
        let needs = needs(plan);
        self.0.needs(needs.clone())?;
        Ok(if self.0.came_too_late(&needs)? { Held::MayBeGoing } else { Held::Safe })
    }

    /// Leaves it to the recovery, for so long; returns until when it holds, by the store's clock.
    ///
    /// # Errors
    /// [`RepoError`] if nobody can be told of it.
    pub fn leave(self, lasting: Duration) -> Result<DateTime<Utc>, RepoError> {
        self.0.leave(lasting)
    }
}

/// Returns what a restore by this plan, and the recovery behind it, read.
fn needs(plan: &Plan) -> Needs {
    let envelope = &plan.manifest.envelope;
    let size = SegmentSize::new(envelope.segment_size).unwrap_or(SegmentSize::DEFAULT);
    Needs { backup: envelope.backup.clone(), wal: SegmentRange::of(plan.wal.iter().copied(), size) }
}

/// Returns how long the recovery of a plan is given, if nobody says: a day, and the time that a slow one takes.
pub fn recovery_time(plan: &Plan) -> Duration {
    time_for(plan.point.reach - plan.manifest.envelope.start_lsn)
}

fn time_for(replay_bytes: u64) -> Duration {
    (AT_LEAST + Duration::from_secs(replay_bytes / SLOWEST)).min(LONGEST_READING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_has_a_day_and_the_time_that_a_slow_one_takes() {
        assert_eq!(time_for(0), AT_LEAST);
        assert_eq!(time_for(1 << 40), AT_LEAST + Duration::from_secs(262_144), "a TiB takes three days more");
        assert_eq!(time_for(u64::MAX), LONGEST_READING);
    }
}
