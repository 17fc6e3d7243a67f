//! Whether a server was promoted before it had all that its parent timeline had archived.
//!
//! A standby that is promoted asks `restore_command` a last time and takes *not there* for the end, whatever the reason;
//! the command cannot see that a promotion has begun. So what came of it is compared afterwards: where the new timeline
//! forked off, and how far the archive holds the one that it left.
//!
//! Source: `getRecoveryStopReason` in `src/backend/access/transam/xlogrecovery.c`, which writes the history's last column.

use crate::pg::lsn::Lsn;
use crate::pg::timeline::{History, TimelineId};
use crate::pg::wal_name::WalFileName;
use crate::repo::{Lane, RepoError};

/// What the history says of a promotion that no recovery target ended.
const UNAIMED: &str = "no recovery target specified";

/// A promotion, and the archive of the timeline that it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The timeline that began.
    pub timeline: TimelineId,
    /// The one that it left.
    pub parent: TimelineId,
    /// Where.
    pub fork: Lsn,
    /// Whether somebody chose the place, by a recovery target.
    pub aimed: bool,
    /// Where the last archived record of the parent ends; `None` if nothing of it is archived.
    pub archived_end: Option<Lsn>,
    /// Segments of the parent before the fork that come after the last one archived.
    pub missing: u64,
}

impl Promotion {
    /// Looks at the last fork of a history; `None` if it has none.
    ///
    /// # Errors
    /// [`RepoError`] if the parent's newest segment cannot be looked up.
    pub fn look(lane: &Lane, history: &History) -> Result<Option<Self>, RepoError> {
        let Some(fork) = history.forks().last() else { return Ok(None) };
        let size = lane.segment_size();
        let (at, mut archived_end, mut missing) = (size.segment_of(fork.at), None, 0);
        if let Some(newest) = lane.newest_segment(fork.parent)?
            && let WalFileName::Segment(name) = newest.name
            && let Ok(number) = name.number(size)
        {
            missing = at.0.saturating_sub(number.next().0);
            let facts = lane.wal_facts(&newest)?;
            let end = facts.and_then(|facts| facts.last_complete_end);
            // Without facts a later segment is proof enough that records follow the fork.
            archived_end = Some(end.unwrap_or_else(|| number.start(size)));
        }
        Ok(Some(Self {
            timeline: history.timeline(),
            parent: fork.parent,
            fork: fork.at,
            aimed: fork.reason != UNAIMED,
            archived_end,
            missing,
        }))
    }

    /// Returns the bytes of the parent's log that are archived and that the new timeline does not have; 0 if somebody
    /// wanted it so.
    pub fn short_by(&self) -> u64 {
        let past = self.archived_end.map_or(0, |end| end.bytes().saturating_sub(self.fork.bytes()));
        if self.aimed { 0 } else { past }
    }

    /// Returns whether anything is to be told: rows are archived that the new timeline does not have, or the other way.
    pub fn is_wrong(&self) -> bool {
        self.short_by() > 0 || self.missing > 0
    }
}

impl std::fmt::Display for Promotion {
    /// Says what is wrong, or that nothing is.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { timeline, parent, fork, missing, .. } = self;
        match self.archived_end {
            Some(end) if self.short_by() > 0 => {
                write!(
                    f,
                    "promoted short: timeline {timeline} left {parent} at {fork}, the archive holds {parent} to {end}"
                )
            }
            Some(end) if *missing > 0 => write!(
                f,
                "timeline {timeline} left {parent} at {fork}, of which the archive lacks {missing} segments after {end}"
            ),
            _ => write!(f, "timeline {timeline} left {parent} at {fork} with all that is archived of it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::lane_fixture::lane_without;

    fn history(at: &str, reason: &str) -> History {
        let two = TimelineId::new(2).expect("not zero");
        History::parse(two, &format!("1\t{at}\t{reason}\n")).expect("a history")
    }

    fn look(lane: &Lane, at: &str, reason: &str) -> (u64, u64) {
        let promotion = Promotion::look(lane, &history(at, reason)).expect("a store that works").expect("a fork");
        assert_eq!(promotion.to_string().contains("promoted short"), promotion.short_by() > 0);
        (promotion.short_by(), promotion.missing)
    }

    #[test]
    fn a_fork_before_the_archived_end_of_the_parent_is_short_unless_it_was_aimed_at() {
        let lane = lane_without(&[]);
        // The parent's records end at 0/11A9850 or so, in the segment of the fork.
        let (short, missing) = look(&lane, "0/1110560", UNAIMED);
        assert!(short > 0 && short < 1 << 20, "{short}");
        assert_eq!(missing, 0);
        assert!(look(&lane, "0/F00000", UNAIMED).0 > 2 << 20);
        for reason in ["before LSN 0/1110560", "before 2026-01-01 00:00:00+00", "at restore point \"x\""] {
            assert_eq!(look(&lane, "0/1110560", reason), (0, 0), "{reason}");
        }
        // The parent's part of the fork's segment only the child has, as after any real failover.
        let whole = lane_without(&["000000010000000000000011"]);
        assert_eq!(look(&whole, "0/1110560", UNAIMED), (0, 0));
        assert_eq!(look(&whole, "0/1100000", UNAIMED), (0, 0), "a fork where a segment begins");
        let lacking =
            lane_without(&["000000010000000000000011", "000000010000000000000010", "00000001000000000000000F"]);
        assert_eq!(look(&lacking, "0/1110560", UNAIMED), (0, 2));
    }

    #[test]
    fn the_first_timeline_was_never_promoted() {
        let lane = lane_without(&[]);
        assert_eq!(Promotion::look(&lane, &History::root(TimelineId::FIRST)).expect("nothing is asked"), None);
    }
}
