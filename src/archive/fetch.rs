//! `wal fetch`: one file from the repository to where PostgreSQL wants it, or the proof that it does not exist.
//!
//! PostgreSQL takes "not there" for the end of the log and opens for writing. So there are three answers: *in place*,
//! verified; *proven absent*, which only [`Absence`] can carry; and everything else, an error. What makes a name's
//! absence believable:
//!
//! - the repository's and the lane's own documents were read from the same store first, and the store itself said *not
//!   found*;
//! - under a plan that a restore left, the name lies past the target or off the branch: recovery must reach a target, and
//!   PostgreSQL refuses to open before it does;
//! - without a plan, nothing in the archive says that it must exist (no later segment, no child timeline), and the
//!   segment before it is there, intact, and its records lead to its very end.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use super::forks::Forks;
use crate::error::ErrorKind;
use crate::format::recovery_plan::{Planned, RecoveryPlan};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::{History, TimelineId};
use crate::pg::wal_facts::{FactsEnd, FactsWalk};
use crate::pg::wal_name::WalFileName;
use crate::repo::{Lane, RepoError};
use crate::store::mount::hear_of_lost_writes;

pub use error::FetchError;
pub use found::Found;

mod error;
mod found;

/// Pause between two looks at what is expected to appear.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Who asks, which decides what may be answered.
#[derive(Clone, Debug)]
pub enum Caller {
    /// A server in archive recovery, with the plan that its restore left, if there is one.
    Recovery(Option<RecoveryPlan>),
    /// A standby: it asks again for ever, but a promotion makes the last answer count.
    Standby,
    /// `pg_rewind`, which knows which file it wants and takes no absence for the end of the log.
    Exact,
}

/// How long to wait for what is expected to appear.
#[derive(Clone, Copy, Debug)]
pub struct FetchBudgets {
    /// In recovery, for a hole to close: longer than the longest upload.
    pub hole: Duration,
    /// On a standby, when the archive is known to hold more.
    pub standby_hole: Duration,
}

/// What became of the request.
#[derive(Debug)]
pub enum Fetched {
    /// The file is where it was wanted, every byte verified.
    InPlace,
    /// It does not exist; recovery may believe so.
    ProvenAbsent(Absence),
}

/// Proof that a file does not exist. Made in one place.
#[derive(Debug)]
pub struct Absence(&'static str);

impl Absence {
    /// Why it is believed, in a few words.
    pub fn reason(&self) -> &'static str {
        self.0
    }
}

/// One look at the archive.
enum Look {
    Found(Found),
    Absent(Absence),
    /// It must exist: worth waiting for, never to be called absent.
    Hole(String),
    /// It lies on a branch that was left, and the branch that goes on has not arrived yet.
    LeftBranch(String),
}

/// What the archive has of a file.
#[derive(Debug)]
pub enum Loaded {
    /// It is there.
    Here(Found),
    /// It does not exist; recovery may believe so.
    ProvenAbsent(Absence),
}

/// Answers requests of one server out of one lane.
pub struct Fetcher<'a> {
    lane: &'a Lane,
    caller: Caller,
    budgets: FetchBudgets,
    forks: Option<&'a Forks>,
    replayed: Option<(TimelineId, Lsn)>,
    proves_absence: bool,
}

impl<'a> Fetcher<'a> {
    /// Makes a fetcher; that `lane` is open proves that the repository's and the lane's documents were read.
    pub fn new(lane: &'a Lane, caller: Caller, budgets: FetchBudgets) -> Self {
        Self { lane, caller, budgets, forks: None, replayed: None, proves_absence: true }
    }

    /// Lets what was read of histories a moment ago count.
    pub fn remembering(self, forks: &'a Forks) -> Self {
        Self { forks: Some(forks), ..self }
    }

    /// Leaves out the proof that a segment does not exist, which costs a walk over the one before, and what stands in for a
    /// segment under a plan: what is not there is a hole then, and never absent.
    pub fn only_for_what_is_there(self) -> Self {
        Self { proves_absence: false, ..self }
    }

    /// Tells how far a standby has certainly replayed, and on which timeline.
    pub fn having_replayed(self, replayed: Option<(TimelineId, Lsn)>) -> Self {
        Self { replayed, ..self }
    }

    /// Brings `name` to `destination`, or proves that it does not exist.
    ///
    /// # Errors
    /// [`FetchError`], which is never to be taken for an absence.
    pub fn fetch(&self, name: &WalFileName, destination: &Path) -> Result<Fetched, FetchError> {
        match self.load(name)? {
            Loaded::Here(found) => {
                let failed = |source| FetchError::Write { path: destination.to_path_buf(), source };
                put_in_place(destination, failed, &mut |file| found.write_to(destination, file))?;
                Ok(Fetched::InPlace)
            }
            Loaded::ProvenAbsent(absence) => Ok(Fetched::ProvenAbsent(absence)),
        }
    }

    /// Returns `name` as it was found, or the proof that it does not exist.
    ///
    /// # Errors
    /// [`FetchError`], which is never to be taken for an absence.
    pub fn load(&self, name: &WalFileName) -> Result<Loaded, FetchError> {
        match self.look_patiently(name)? {
            Look::Found(found) => Ok(Loaded::Here(found)),
            Look::Absent(absence) => Ok(Loaded::ProvenAbsent(absence)),
            Look::Hole(reason) => Err(FetchError::Hole { name: name.clone(), reason }),
            Look::LeftBranch(reason) => Err(FetchError::LeftBranch { name: name.clone(), reason }),
        }
    }

    /// Returns whether a segment that was loaded earlier may still be handed over: the branch is the recovery's, and no
    /// other has come to light since.
    ///
    /// # Errors
    /// [`FetchError::Repository`] if that cannot be told.
    pub fn may_serve(&self, segment: SegmentName) -> Result<bool, FetchError> {
        let name = WalFileName::Segment(segment);
        if self.aside(segment, &name)?.is_some() {
            return Ok(false);
        }
        if let Caller::Recovery(Some(plan)) = &self.caller {
            return Ok(plan.segment(segment) == Planned::Needed);
        }
        let size = self.lane.segment_size();
        let Ok(number) = segment.number(size) else { return Ok(false) };
        let children = self.children_of(segment.timeline());
        let children = children.map_err(|source| self.failed(&name, source))?;
        Ok(children.iter().all(|(_, fork)| number < size.segment_of(*fork)))
    }

    /// Looks again while a hole may be an upload that has not ended: a later segment can be stored before this one.
    fn look_patiently(&self, name: &WalFileName) -> Result<Look, FetchError> {
        let patience = match &self.caller {
            Caller::Recovery(_) => self.budgets.hole,
            Caller::Standby => self.budgets.standby_hole,
            Caller::Exact => Duration::ZERO,
        };
        let deadline = Instant::now() + patience;
        loop {
            let look = self.look(name);
            let worth_waiting = match &look {
                Ok(Look::Hole(_)) => true,
                // The new primary's current segment: a standby streams it meanwhile.
                Ok(Look::LeftBranch(_)) => !matches!(self.caller, Caller::Standby),
                // On a standby the archive is known to hold more, and a promotion must not pass it by.
                Err(error) => matches!(self.caller, Caller::Standby) && error.kind() == ErrorKind::Corrupt,
                Ok(_) => false,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if !worth_waiting || left.is_zero() {
                return look;
            }
            std::thread::sleep(LOOK_AGAIN.min(left));
        }
    }

    fn look(&self, name: &WalFileName) -> Result<Look, FetchError> {
        match (&self.caller, name) {
            (Caller::Recovery(Some(plan)), WalFileName::Segment(segment)) => self.planned(plan, *segment, name),
            (Caller::Recovery(Some(plan)), WalFileName::History(timeline)) if plan.passes(*timeline) => {
                match self.open(name)? {
                    None if *timeline != TimelineId::FIRST && *timeline != plan.path[0].timeline => {
                        Ok(Look::Hole("the plan of this recovery runs along that timeline".to_owned()))
                    }
                    None => Ok(Look::Absent(Absence("the first timeline of a branch has no history"))),
                    Some(found) => Ok(Look::Found(found)),
                }
            }
            (_, WalFileName::History(timeline)) => self.history(*timeline, name),
            (Caller::Exact, _) => match self.open(name)? {
                Some(found) => Ok(Look::Found(found)),
                None => Ok(Look::Absent(Absence("the archive does not have it"))),
            },
            (_, WalFileName::Segment(segment)) => self.unplanned(*segment, name),
            _ => match self.open(name)? {
                Some(found) => Ok(Look::Found(found)),
                None => Ok(Look::Absent(Absence("recovery does not depend on it"))),
            },
        }
    }

    /// Under a plan everything is known before the archive is asked.
    fn planned(&self, plan: &RecoveryPlan, segment: SegmentName, name: &WalFileName) -> Result<Look, FetchError> {
        match plan.segment(segment) {
            Planned::PastTarget => return Ok(Look::Absent(Absence("it lies past the recovery target"))),
            Planned::OffBranch => return Ok(Look::Absent(Absence("it is not on the branch that is recovered"))),
            Planned::Needed => {}
        }
        if let Some(gap) = self.aside(segment, name)? {
            return Ok(gap);
        }
        if let Some(found) = self.open(name)? {
            return Ok(Look::Found(found));
        }
        // What is fetched ahead goes to whoever asks for the name next, and this is the segment to nobody else.
        let partial = if self.proves_absence { self.partial(plan, segment, name)? } else { None };
        Ok(match partial {
            Some(found) => Look::Found(found),
            None => Look::Hole("the plan of this recovery needs it".to_owned()),
        })
    }

    /// Returns the `.partial` that the plan names for the segment in which its target lies: every record up to the target
    /// is in it, and PostgreSQL goes no further.
    fn partial(
        &self,
        plan: &RecoveryPlan,
        segment: SegmentName,
        name: &WalFileName,
    ) -> Result<Option<Found>, FetchError> {
        let size = plan.segment_size();
        let last = segment.number(size).is_ok_and(|number| number == size.segment_ending_at(plan.needed_before));
        let Some(digest) = plan.partial.filter(|_| last) else { return Ok(None) };
        let opened = self.lane.open_partial(segment, &digest).map_err(|source| self.failed(name, source))?;
        opened.map(|opened| Found::stored(segment, opened, self.lane)).transpose()
    }

    /// A history that is absent although its timeline has segments, or children, is a hole: the server that wrote them
    /// archived it.
    fn history(&self, timeline: TimelineId, name: &WalFileName) -> Result<Look, FetchError> {
        if let Some(found) = self.open(name)? {
            return Ok(self.withheld(timeline, name, &found)?.unwrap_or(Look::Found(found)));
        }
        if timeline == TimelineId::FIRST {
            return Ok(Look::Absent(Absence("the first timeline has no history")));
        }
        let failed = |source| self.failed(name, source);
        let archived = self.lane.list_wal(timeline).map_err(failed)?;
        if let Some(stored) = archived.iter().find(|stored| matches!(stored.name, WalFileName::Segment(_))) {
            return Ok(Look::Hole(format!("{} is there", stored.name)));
        }
        match self.children_of(timeline).map_err(failed)?.first() {
            Some((child, fork)) => Ok(Look::Hole(format!("timeline {child} forked off from it at {fork}"))),
            None => Ok(Look::Absent(Absence("nothing of that timeline is archived"))),
        }
    }

    /// Withholds a history whose timeline waits for its parent's owner to fall silent: it may be a stray copy's, and whoever
    /// goes after the latest timeline would follow it. A standby past the fork follows it in no case, and must know the
    /// number to choose another one when it is promoted.
    fn withheld(&self, timeline: TimelineId, name: &WalFileName, found: &Found) -> Result<Option<Look>, FetchError> {
        if matches!(self.caller, Caller::Exact | Caller::Recovery(Some(_))) {
            return Ok(None);
        }
        let waits = self.lane.waits_for(timeline).map_err(|source| self.failed(name, source))?;
        let Some(waits) = waits else { return Ok(None) };
        // PostgreSQL looks for the newest one up to the first gap: without this one it would not find a later one.
        if self.is_passed_over(timeline).map_err(|source| self.failed(name, source))? {
            return Ok(None);
        }
        if matches!(self.caller, Caller::Standby) {
            let history = found.history();
            let fork = history.and_then(|history| history.fork_of(waits.timeline));
            let past = |(own, at): (TimelineId, Lsn)| {
                own == timeline || own == waits.timeline && fork.is_some_and(|fork| at > fork)
            };
            return Ok(match self.replayed.is_some_and(past) {
                true => None,
                false => Some(Look::Absent(Absence("its timeline does not count yet; a standby asks again"))),
            });
        }
        Ok(Some(Look::LeftBranch(format!(
            "timeline {timeline} began while {}, who writes timeline {}, was at work; if it is no stray copy's run \
             `walvault lane adopt {timeline}`, else restore with `walvault restore --timeline`",
            waits.host, waits.timeline
        ))))
    }

    /// Whether a later timeline counts, which whoever goes after the latest one follows instead.
    fn is_passed_over(&self, timeline: TimelineId) -> Result<bool, RepoError> {
        for later in self.lane.wal_timelines()?.into_iter().filter(|later| *later > timeline) {
            if self.lane.history(later)?.is_some() && self.lane.waits_for(later)?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns why a segment is not to be believed whatever is archived under its name: it was given up, or a former owner
    /// of its timeline stored it. A plan that was made before that came to light changes nothing.
    fn aside(&self, segment: SegmentName, name: &WalFileName) -> Result<Option<Look>, FetchError> {
        let asides = match self.forks {
            Some(forks) => forks.asides(self.lane),
            None => self.lane.asides(),
        };
        let asides = asides.map_err(|source| self.failed(name, source))?;
        let gap = asides.holes.iter().chain(&asides.disputed).find(|gap| gap.holds(segment));
        Ok(gap.map(|gap| Look::Hole(gap.to_string())))
    }

    fn unplanned(&self, segment: SegmentName, name: &WalFileName) -> Result<Look, FetchError> {
        let size = self.lane.segment_size();
        let Ok(number) = segment.number(size) else {
            return Ok(Look::Absent(Absence("no segment of this size has that name")));
        };
        let failed = |source| self.failed(name, source);
        let children = self.children_of(segment.timeline()).map_err(failed)?;
        // A server on the latest timeline asks for the child's segment first. Serving the parent's instead, past the
        // fork, would replay the branch that was left.
        if let Some((child, fork)) = children.iter().find(|(_, fork)| number >= size.segment_of(*fork)) {
            let own = segment.timeline();
            return Ok(Look::LeftBranch(format!(
                "timeline {child} forked off at {fork} and its own segment must come first; to recover timeline {own} \
                 past the fork use `walvault restore --timeline {own}`",
            )));
        }
        if let Some(gap) = self.aside(segment, name)? {
            return Ok(gap);
        }
        if let Some(found) = self.open(name)? {
            return Ok(Look::Found(found));
        }
        if !self.proves_absence {
            return Ok(Look::Hole("nobody asked whether it must be".to_owned()));
        }
        if let Some((child, fork)) = children.first() {
            return Ok(Look::Hole(format!("timeline {child} forked off later, at {fork}")));
        }
        let archived = self.lane.list_wal(segment.timeline()).map_err(failed)?;
        let later =
            archived.iter().find(|stored| matches!(stored.name, WalFileName::Segment(other) if other > segment));
        if let Some(later) = later {
            return Ok(Look::Hole(format!("{} is there", later.name)));
        }
        match self.caller {
            // It asks again, and the end of the log proves nothing to it: the primary goes on writing.
            Caller::Standby => Ok(Look::Absent(Absence("nothing later is archived; a standby asks again"))),
            _ => self.end_of_branch(segment, size, name),
        }
    }

    /// Proves that the log ends before `segment`: the segment before it on its branch is there, intact, and its records
    /// reach its end.
    fn end_of_branch(&self, segment: SegmentName, size: SegmentSize, name: &WalFileName) -> Result<Look, FetchError> {
        let failed = |source| self.failed(name, source);
        let number = segment.number(size).ok();
        let Some((number, previous)) = number.and_then(|number| Some((number, number.previous()?))) else {
            return Ok(Look::Hole("recovery cannot begin before the first segment".to_owned()));
        };
        let history = self.lane.history(segment.timeline()).map_err(failed)?;
        let history = history.unwrap_or_else(|| History::root(segment.timeline()));
        if let Some(fork) = history.forks().last() {
            let first = size.segment_of(fork.at);
            if number < first {
                return Ok(Look::Absent(Absence("its timeline begins later")));
            }
            if number == first {
                // A server archives its timeline's history before the segment that it has just begun.
                return Ok(Look::Hole(format!("timeline {} begins in it, at {}", segment.timeline(), fork.at)));
            }
        }
        let before = SegmentName::from_number(segment.timeline(), previous, size);
        let before_name = WalFileName::Segment(before);
        let Some(found) = self.open(&before_name)? else {
            return Ok(Look::Hole(format!(
                "neither is {before}, the segment before it, so the end of the log is not proven"
            )));
        };
        let mut walk = FactsWalk::new(before, size, Some(self.lane.facts().system_id));
        found.hand_to(&mut |part| {
            walk.part(part);
            Ok(())
        })?;
        Ok(match walk.finish().end {
            FactsEnd::Stopped { at, .. } => {
                Look::Hole(format!("the records of {before} end at {at}, before the segment does"))
            }
            _ => Look::Absent(Absence("the archived log ends before it")),
        })
    }

    /// Returns the timelines that forked off from `parent` and where, by the archived histories.
    fn children_of(&self, parent: TimelineId) -> Result<Vec<(TimelineId, Lsn)>, RepoError> {
        let mut children = match self.forks {
            Some(forks) => forks.of(self.lane, parent),
            None => Forks::default().of(self.lane, parent),
        }?;
        // A standby stays on the branch that counts, past the fork of one that does not.
        if matches!(self.caller, Caller::Standby) {
            let mut counting = Vec::new();
            for child in children {
                if self.lane.waits_for(child.0)?.is_none() {
                    counting.push(child);
                }
            }
            children = counting;
        }
        Ok(children)
    }

    /// Looks for a file under its name; what is there is checked as far as it can be without its contents.
    fn open(&self, name: &WalFileName) -> Result<Option<Found>, FetchError> {
        let failed = |source| self.failed(name, source);
        if let WalFileName::Segment(segment) = name {
            let opened = self.lane.open_wal(name).map_err(failed)?;
            return opened.map(|opened| Found::stored(*segment, opened, self.lane)).transpose();
        }
        let stored = self.lane.read_wal(name).map_err(failed)?;
        stored.map(|stored| Found::whole(name, stored.raw)).transpose()
    }

    fn failed(&self, name: &WalFileName, source: RepoError) -> FetchError {
        FetchError::Repository { name: name.clone(), source }
    }
}

/// Writes beside the destination and renames, so that PostgreSQL never sees a part of a file.
///
/// The unfinished file has a fixed name: one that a kill left behind is overwritten by the next call. Nothing is made durable:
/// after a crash PostgreSQL asks again. But what is not all there must not get the name.
pub(super) fn put_in_place<E>(
    destination: &Path,
    failed: impl Fn(std::io::Error) -> E,
    write: &mut dyn FnMut(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut unfinished = destination.as_os_str().to_owned();
    unfinished.push(".walvault");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&unfinished).map_err(&failed).and_then(|mut file| {
        write(&mut file)?;
        hear_of_lost_writes(&file).map_err(&failed)
    });
    let placed = written.and_then(|()| std::fs::rename(&unfinished, destination).map_err(&failed));
    if placed.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_file(&unfinished);
    }
    placed
}

#[cfg(test)]
mod tests;
