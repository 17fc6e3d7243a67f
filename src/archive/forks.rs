//! Which timelines forked off from which, and where, by the histories that a lane holds.
//!
//! A history never changes, so one that was read is kept. Which histories there are is asked again after a moment: a
//! branch that comes to light must be seen before a segment of its parent past the fork is served.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::pg::lsn::Lsn;
use crate::pg::timeline::{History, TimelineId};
use crate::repo::{Asides, Lane, RepoError};

/// How long a listing of timelines counts; a history that arrives later than that before a request is seen by it.
const FRESH: Duration = Duration::from_secs(1);

/// What is remembered of one lane's histories.
#[derive(Debug, Default)]
pub struct Forks(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    histories: BTreeMap<TimelineId, History>,
    listed: Option<(Instant, Vec<TimelineId>)>,
    asides: Option<(Instant, Asides)>,
}

impl Forks {
    /// Returns the timelines of `lane` that forked off from `parent`, and where.
    ///
    /// # Errors
    /// [`RepoError`] if the lane could not be listed or a history not be read; nothing is remembered of that.
    pub fn of(&self, lane: &Lane, parent: TimelineId) -> Result<Vec<(TimelineId, Lsn)>, RepoError> {
        let mut children = Vec::new();
        for timeline in self.timelines(lane)?.into_iter().filter(|timeline| *timeline > parent) {
            let Some(history) = self.history(lane, timeline)? else { continue };
            children.extend(history.fork_of(parent).map(|fork| (timeline, fork)));
        }
        Ok(children)
    }

    /// Returns a timeline's history, if it is archived.
    ///
    /// # Errors
    /// As [`Lane::history`].
    pub fn history(&self, lane: &Lane, timeline: TimelineId) -> Result<Option<History>, RepoError> {
        if let Some(history) = self.known().histories.get(&timeline) {
            return Ok(Some(history.clone()));
        }
        let history = lane.history(timeline)?;
        if let Some(history) = &history {
            self.known().histories.insert(timeline, history.clone());
        }
        Ok(history)
    }

    /// Returns what is archived and not to be believed.
    ///
    /// # Errors
    /// As [`Lane::asides`].
    pub fn asides(&self, lane: &Lane) -> Result<Asides, RepoError> {
        if let Some((when, asides)) = &self.known().asides
            && when.elapsed() < FRESH
        {
            return Ok(asides.clone());
        }
        let asked = Instant::now();
        let asides = lane.asides()?;
        self.known().asides = Some((asked, asides.clone()));
        Ok(asides)
    }

    fn timelines(&self, lane: &Lane) -> Result<Vec<TimelineId>, RepoError> {
        if let Some((when, timelines)) = &self.known().listed
            && when.elapsed() < FRESH
        {
            return Ok(timelines.clone());
        }
        let asked = Instant::now();
        let timelines = lane.wal_timelines()?;
        self.known().listed = Some((asked, timelines.clone()));
        Ok(timelines)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
