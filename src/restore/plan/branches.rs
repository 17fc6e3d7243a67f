//! Several branches that fit: which of them come to the same, and what there is to choose from.

use super::{Candidate, Choice, Planner, Refusal, RefusalReason};
use crate::catalog::Branch;
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::timeline::TimelineId;
use crate::repo::WaitsFor;
use crate::restore::survey::SurveyError;
use crate::restore::target::{Purpose, Target};

impl Planner<'_> {
    /// Leaves one candidate for each different outcome, the simplest way to it.
    pub(super) fn distinct(&self, candidates: Vec<Candidate>) -> Result<Vec<Candidate>, SurveyError> {
        let mut distinct: Vec<Candidate> = Vec::new();
        for candidate in candidates {
            let same = |other: &Candidate| outcome(other) == outcome(&candidate);
            if !distinct.iter().any(same) {
                distinct.push(candidate);
            }
        }
        // For the newest moment, a timeline that another one left at or after its own end adds nothing.
        if self.request.target == Target::Latest || self.request.purpose == Purpose::Standby {
            // One that does not count yet may be a stranger's, so what it left stays to be chosen.
            let counts = |other: &Candidate| self.catalog.waits_for(&other.branch).is_none();
            let swallowed = |one| distinct.iter().any(|other| counts(other) && swallows(other, one));
            let swallowed: Vec<bool> = distinct.iter().map(swallowed).collect();
            let mut swallowed = swallowed.into_iter();
            distinct.retain(|_| !swallowed.next().unwrap_or(false));
        }
        Ok(distinct)
    }

    /// Returns the timeline that a way passes, unbidden, although it does not count yet.
    pub(super) fn waits(&self, only: &Candidate) -> Option<(TimelineId, WaitsFor)> {
        let passed = only.branch.stretches().iter().filter(|stretch| stretch.begin <= only.point.record);
        let mut waiting = passed.filter_map(|stretch| {
            let found = self.catalog.timelines.iter().find(|archived| archived.timeline == stretch.timeline)?;
            Some((stretch.timeline, found.waits_for.clone()?))
        });
        waiting.next().filter(|_| self.request.timeline.is_none())
    }

    /// Whether another branch, which was refused, is known to go on from here: then this is not the newest moment.
    pub(super) fn knows_more_than(&self, only: &Candidate, refusals: &[Refusal]) -> bool {
        self.request.target == Target::Latest
            && self.request.timeline.is_none()
            && self.request.purpose != Purpose::Standby
            && refusals.iter().any(|refusal| {
                let continues = self.catalog.branches().into_iter().any(|branch| {
                    branch.timeline() == refusal.timeline
                        && branch.stretches().iter().any(|part| part.timeline == only.branch.timeline())
                });
                continues && !matches!(refusal.reason, RefusalReason::NoBackup | RefusalReason::OtherBackup { .. })
            })
    }

    pub(super) fn choice(&self, branch: &Branch) -> Result<Choice, SurveyError> {
        let archived = self.catalog.timelines.iter().find(|archived| archived.timeline == branch.timeline());
        let segments = archived.map_or(&[][..], |archived| &archived.segments);
        let begin = branch.stretches().last().map(|stretch| stretch.begin).filter(|begin| begin.is_valid());
        let tail = &segments[segments.len().saturating_sub(2)..];
        Ok(Choice {
            timeline: branch.timeline(),
            forked_at: begin,
            newest: self.survey.last_record(tail)?.map(|last| last.end),
            newest_time: self.survey.latest_time(segments)?.map(PgTime::to_utc),
            waits_for: self.catalog.waits_for(branch).cloned(),
        })
    }
}

/// What a recovery comes to: the same position on the same timeline is the same outcome, whichever branch leads there.
fn outcome(candidate: &Candidate) -> (Lsn, TimelineId) {
    (candidate.point.record, candidate.branch.timeline_at(candidate.point.record))
}

/// Whether `other` is a branch that passes through the end of `one` and goes on.
fn swallows(other: &Candidate, one: &Candidate) -> bool {
    let timeline = one.branch.timeline();
    let part = other.branch.stretches().iter().find(|part| part.timeline == timeline);
    part.is_some_and(|part| part.end.is_some_and(|end| end >= one.point.reach))
}
