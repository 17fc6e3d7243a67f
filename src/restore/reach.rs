//! What can be restored on each branch: intervals in the log and in time.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::survey::{Survey, SurveyError};
use crate::catalog::{BackupSpan, Branch, ChainEnd, HoleProof, LaneCatalog};
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::segment::{SegmentName, SegmentNo};
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
    catalog.branches().iter().map(|branch| along(&survey, catalog, branch, &spans)).collect()
}

/// Finds what can be restored along one branch. Damage, and a `.partial`, end a stretch that names alone do not; from
/// the backups behind it the next one leads on.
fn along(
    survey: &Survey<'_>,
    catalog: &LaneCatalog,
    branch: &Branch,
    spans: &[BackupSpan],
) -> Result<Reach, SurveyError> {
    let size = catalog.segment_size();
    let first_of = |span: &BackupSpan| size.segment_of(span.start);
    let mut spans = spans.to_vec();
    let (mut restorable, mut incomplete) = (Vec::new(), BTreeSet::new());
    loop {
        let (intervals, lacking) = branch.intervals(catalog, &spans);
        incomplete.extend(lacking.into_iter().map(|span| (span.start, span.id)));
        let mut damaged: Option<SegmentNo> = None;
        for interval in intervals {
            let Some(first) = interval.segments.first().and_then(|name| name.number(size).ok()) else { continue };
            let (readable, broken) = survey.readable(&interval.segments)?;
            let last = match interval.segments[..readable].last().filter(|last| survey.is_partial(**last)) {
                Some(left) => survey.last_record_until(&interval.segments[..readable], catalog.left_at(*left))?,
                None => survey.last_record(&interval.segments[..readable])?,
            };
            let to = last.map_or(interval.backup.start, |last| last.end);
            let next = SegmentNo(first.0 + readable as u64);
            damaged = match broken {
                // The one that is damaged itself, or the one whose records stop.
                Some(at) if next.start(size) == at || readable == 0 => Some(next),
                Some(_) => Some(SegmentNo(next.0 - 1)),
                // A `.partial`, with more behind it.
                None if readable < interval.segments.len() => Some(SegmentNo(next.0 - 1)),
                None => None,
            };
            let own = first..SegmentNo(first.0 + interval.segments.len() as u64);
            let begins = |span: &&BackupSpan| {
                branch.holds(span.timeline, span.start, span.stop)
                    && own.contains(&first_of(span))
                    && damaged.is_none_or(|damaged| first_of(span) <= damaged)
            };
            let (led, cut): (Vec<&BackupSpan>, Vec<&BackupSpan>) =
                spans.iter().filter(begins).partition(|span| span.stop <= to);
            incomplete.extend(cut.into_iter().map(|span| (span.start, span.id.clone())));
            if let Some(earliest) = led.iter().min_by_key(|span| (span.stop, span.start)) {
                let end = match (broken, survey.hole(&interval.segments, readable, interval.end)) {
                    (Some(_), _) => ReachEnd::Broken,
                    (None, ChainEnd::Hole { missing, proof }) => ReachEnd::Hole { missing, proof },
                    (None, ChainEnd::Newest) => ReachEnd::Newest,
                };
                restorable.push(Restorable {
                    backup: earliest.id.clone(),
                    backups: led.len(),
                    from: earliest.stop,
                    from_time: earliest.stopped_at,
                    to,
                    to_time: survey.latest_time(&interval.segments[..readable])?,
                    end,
                });
            }
            if damaged.is_some() {
                break;
            }
        }
        let Some(damaged) = damaged else { break };
        spans.retain(|span| first_of(span) > damaged);
    }
    let incomplete = incomplete.into_iter().map(|(_, id)| id).collect();
    Ok(Reach { timeline: branch.timeline(), restorable, incomplete })
}
