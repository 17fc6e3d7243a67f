//! What can be restored on each branch: intervals in the log and in time.

use chrono::{DateTime, Utc};

use super::survey::{Survey, SurveyError};
use crate::catalog::{ChainEnd, HoleProof, LaneCatalog};
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::repo::Lane;

/// What can be restored on one branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The timeline that the branch ends on.
    pub timeline: TimelineId,
    /// Stretches of the log, oldest first. They may begin on an ancestor.
    pub restorable: Vec<Restorable>,
    /// Backups on the branch that cannot be restored, because log that they need is missing.
    pub incomplete: Vec<String>,
}

/// Consecutive moments, any of which can be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restorable {
    /// The backup that reaches back furthest.
    pub backup: String,
    /// How many backups lead here.
    pub backups: usize,
    /// The earliest position: the end of that backup.
    pub from: Lsn,
    /// When the backup ended.
    pub from_time: DateTime<Utc>,
    /// The end of the last complete record.
    pub to: Lsn,
    /// The latest commit or abort in the stretch, by the server's clock; `None` if its log holds none.
    pub to_time: Option<PgTime>,
    /// What ends it.
    pub end: ReachEnd,
}

/// What ends a stretch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReachEnd {
    /// Nothing later is archived.
    Newest,
    /// A segment is missing.
    Hole {
        /// The segment.
        missing: SegmentName,
        /// What proves that it existed.
        proof: HoleProof,
    },
    /// The records cannot be read any further, though later segments are there.
    Broken,
}

/// Finds what can be restored on each branch of a lane.
///
/// # Errors
/// [`SurveyError`] if a segment's hint, or the newest segments, cannot be read.
pub fn reach(lane: &Lane, catalog: &LaneCatalog) -> Result<Vec<Reach>, SurveyError> {
    let survey = Survey::new(lane, catalog);
    let spans = catalog.spans();
    let mut reached = Vec::new();
    for branch in catalog.branches() {
        let (intervals, incomplete) = branch.intervals(catalog, &spans);
        let mut incomplete: Vec<String> = incomplete.into_iter().map(|backup| backup.id).collect();
        let mut restorable = Vec::new();
        for interval in intervals {
            let (readable, broken) = survey.readable(&interval.segments)?;
            let chain = &interval.segments[..readable];
            let to = survey.last_record(chain)?.map_or(interval.backup.start, |last| last.end);
            if to < interval.backup.stop {
                incomplete.push(interval.backup.id);
                continue;
            }
            let end = match (broken, interval.end) {
                (Some(_), _) => ReachEnd::Broken,
                (None, ChainEnd::Hole { missing, proof }) => ReachEnd::Hole { missing, proof },
                (None, ChainEnd::Newest) => ReachEnd::Newest,
            };
            restorable.push(Restorable {
                backup: interval.backup.id,
                backups: interval.backups,
                from: interval.backup.stop,
                from_time: interval.backup.stopped_at,
                to,
                to_time: survey.latest_time(chain)?,
                end,
            });
        }
        reached.push(Reach { timeline: branch.timeline(), restorable, incomplete });
    }
    Ok(reached)
}
