//! Back-fill: what only a standby holds of a log that its primary never archived.
//!
//! A standby marks what it received as archived, because archiving it was the primary's work. When the primary dies with
//! segments that it had not archived, nobody would ever push them. So the new primary pushes, with the first files of its
//! timeline, every finished segment of the timelines before it that the archive lacks; and a standby pushes, after a
//! while, what the archive still lacks, because the new primary may have recycled it before it is asked.
//!
//! Nothing is acknowledged to PostgreSQL here, so nothing here may fail or delay what is. What is pushed is proven to be
//! finished; whoever owns a timeline stays its owner.
//!
//! Source: `XLogArchiveForceDone` in `src/backend/replication/walreceiver.c`; `RemoveNonParentXlogFiles` and
//! `RemoveOldXlogFiles` in `src/backend/access/transam/xlog.c`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::proof::{Finished, Proof, WalFolder};
use super::{PushOptions, Writer};
use crate::catalog::Branch;
use crate::error::ErrorKind;
use crate::format::Sha256;
use crate::format::digest::ContentsHasher;
use crate::format::wal::{self, EncodeError, EncodedWal, ReadAt};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::{History, HistoryError, TimelineId};
use crate::pg::wal_facts::FactsWalk;
use crate::pg::wal_name::WalFileName;
use crate::repo::{Lane, LaneFacts, RepoError, WalCreated};

/// Files of a new timeline that are archived until nothing more is back-filled with them: by then everything was tried
/// several times, and a server that keeps its log for long must not list the archive with every segment for ever.
const FIRST_FILES: u64 = 16;

/// A history is a few lines.
const HISTORY_LIMIT: u64 = 16 << 20;

/// Whose log it is, and for whom it is pushed.
#[derive(Clone, Debug)]
pub struct Backfill<'a> {
    /// The server's `pg_wal`.
    pub directory: &'a Path,
    /// Facts of the server.
    pub server: &'a LaneFacts,
    /// Who pushes.
    pub writer: &'a Writer,
    /// How much a push may use.
    pub options: PushOptions,
}

/// Which segments are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of the timelines before the server's, below the fork: the new primary's.
    BelowTheFork,
    /// Those of the server's timeline too, unless they were written to since this moment: a standby's.
    UntouchedSince(SystemTime),
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Backfilled {
    /// Segments that the archive lacked and has now.
    pub pushed: Vec<SegmentName>,
    /// Segments that were there with the same bytes.
    pub same: u64,
    /// Segments that are there with other bytes; ours were kept under the key.
    pub contested: Vec<(SegmentName, String)>,
    /// Segments that the archive lacks and that are not proven to be finished, and why.
    pub unproven: Vec<(SegmentName, String)>,
    /// Whether time ran out before everything was looked at.
    pub unfinished: bool,
}

/// Why nothing more was back-filled.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// A file or directory could not be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server's own history makes no sense.
    #[error("read {}", path.display())]
    History {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: HistoryError,
    },
    /// The repository failed.
    #[error("back-fill the archive")]
    Repository(#[from] RepoError),
}

impl BackfillError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BackfillError::Read { .. } => ErrorKind::Unavailable,
            BackfillError::History { .. } => ErrorKind::Corrupt,
            BackfillError::Repository(source) => source.kind(),
        }
    }
}

/// Returns the timeline whose past is to be looked at, after a file of this name was archived: it is one of the first of
/// a timeline that forked off, by the history in `directory`.
///
/// # Errors
/// [`BackfillError::Read`], [`BackfillError::History`].
pub fn is_due(directory: &Path, name: &WalFileName, size: SegmentSize) -> Result<Option<History>, BackfillError> {
    let Some(timeline) = name.timeline().filter(|timeline| *timeline != TimelineId::FIRST) else { return Ok(None) };
    let number = match name {
        WalFileName::History(_) => None,
        WalFileName::Segment(segment) => segment.number(size).ok(),
        _ => return Ok(None),
    };
    let Some(history) = history_in(directory, timeline)? else { return Ok(None) };
    let fork = history.forks().last().map(|fork| size.segment_of(fork.at));
    let first = number.zip(fork).is_none_or(|(number, fork)| number.0.saturating_sub(fork.0) < FIRST_FILES);
    Ok(first.then_some(history))
}

/// Returns the history of `timeline` that lies in a `pg_wal`, if there is one.
///
/// # Errors
/// [`BackfillError::Read`], [`BackfillError::History`].
pub fn history_in(directory: &Path, timeline: TimelineId) -> Result<Option<History>, BackfillError> {
    let path = directory.join(WalFileName::History(timeline).to_string());
    let mut text = String::new();
    let read = File::open(&path).and_then(|file| file.take(HISTORY_LIMIT).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(BackfillError::Read { path, source }),
        Ok(_) => {}
    }
    match History::parse(timeline, &text) {
        Ok(history) => Ok(Some(history)),
        Err(source) => Err(BackfillError::History { path, source }),
    }
}

/// Returns which of the segments in a `pg_wal` are of interest: a pure choice by name, proven later.
fn chosen(folder: &WalFolder<'_>, scope: Scope) -> Vec<SegmentName> {
    let size = folder.segment_size();
    let fork = folder.branch().stretches().last().map(|own| size.segment_of(own.begin));
    // The segment in which the server's timeline begins is its own, and goes the ordinary way.
    let below = |name: &SegmentName| name.number(size).is_ok_and(|number| Some(number) < fork);
    folder.segments().filter(|name| scope != Scope::BelowTheFork || below(name)).collect()
}

impl Backfill<'_> {
    /// Pushes what the archive lacks along `history`, until `deadline`; then, if there is time, compares what it has.
    ///
    /// Safe to end anywhere and to repeat: what is stored is stored once, and the rest is found again.
    ///
    /// # Errors
    /// [`BackfillError`]; what was pushed before stays pushed.
    pub fn perform(
        &self,
        lane: &Lane,
        history: History,
        scope: Scope,
        deadline: Instant,
    ) -> Result<Backfilled, BackfillError> {
        let size = lane.segment_size();
        let folder = WalFolder::look(self.directory, Branch::new(history), size, self.server.system_id);
        let folder = folder.map_err(|source| BackfillError::Read { path: self.directory.to_path_buf(), source })?;
        let chosen = chosen(&folder, scope);
        let mut done = Backfilled::default();
        if chosen.is_empty() {
            return Ok(done);
        }
        let (lane, mut in_time) = (InTime { lane, deadline }, true);
        let Some(held) = lane.left().map(|lane| lane.held_of(&chosen)).transpose()? else {
            done.unfinished = true;
            return Ok(done);
        };
        // A copy of the server that went its own way on the same timeline has finished segments too. What fills a gap must
        // be of the log beside it.
        let lacking = chosen.iter().find(|segment| !held.contains(segment) && !self.is_touched(**segment, scope));
        let beside = lacking.and_then(|one| held.iter().rev().find(|segment| segment.timeline() == one.timeline()));
        if let Some(beside) = beside {
            self.compare(&lane, &folder, *beside, &mut done)?;
            if !done.contested.is_empty() {
                return Ok(done);
            }
        }
        let beside = beside.copied();
        // The oldest first: it is the next to be recycled.
        for segment in chosen.iter().filter(|segment| !held.contains(segment)) {
            in_time = in_time && lane.left().is_some();
            if !in_time {
                break;
            }
            if !self.is_touched(*segment, scope) {
                self.fill(&lane, &folder, *segment, &mut done)?;
            }
        }
        // Only a promotion asks for a comparison: a standby repeats itself.
        let compared = if scope == Scope::BelowTheFork { held } else { BTreeSet::new() };
        for segment in compared.iter().filter(|segment| Some(**segment) != beside) {
            in_time = in_time && lane.left().is_some();
            if !in_time {
                break;
            }
            self.compare(&lane, &folder, *segment, &mut done)?;
        }
        done.unfinished = !in_time;
        Ok(done)
    }

    fn is_touched(&self, segment: SegmentName, scope: Scope) -> bool {
        let Scope::UntouchedSince(moment) = scope else { return false };
        let written = std::fs::metadata(self.directory.join(segment.to_string())).and_then(|file| file.modified());
        written.is_ok_and(|written| written > moment)
    }

    fn fill(
        &self,
        lane: &InTime<'_>,
        folder: &WalFolder<'_>,
        segment: SegmentName,
        done: &mut Backfilled,
    ) -> Result<(), BackfillError> {
        match self.prove(lane, folder, segment)? {
            // Recycled before it was read: there is nothing left of it here.
            Proof::Vanished => Ok(()),
            Proof::NotProven(why) => {
                done.unproven.push((segment, why));
                Ok(())
            }
            Proof::Finished(finished) => self.store(lane, &finished, done),
        }
    }

    fn prove(&self, lane: &InTime<'_>, folder: &WalFolder<'_>, segment: SegmentName) -> Result<Proof, BackfillError> {
        // What cannot be read now proves nothing now.
        let archived =
            |name| lane.left()?.read_wal(&WalFileName::Segment(name)).ok().flatten().map(|stored| stored.raw);
        let path = || self.directory.join(segment.to_string());
        folder.prove(segment, &archived).map_err(|source| BackfillError::Read { path: path(), source })
    }

    /// Stores a segment under its name, or beside it if that is taken by other bytes.
    fn store(&self, lane: &InTime<'_>, finished: &Finished, done: &mut Backfilled) -> Result<(), BackfillError> {
        let name = WalFileName::Segment(finished.name);
        let Some(lane) = lane.left() else {
            done.unfinished = true;
            return Ok(());
        };
        // What is stored is what was walked: recycling writes over a file that is still open here.
        let encoded = self.encode(&lane, finished)?;
        if encoded.digest != finished.digest || !finished.is_unchanged() {
            return Ok(());
        }
        match lane.create_wal(&name, &encoded)? {
            WalCreated::New => done.pushed.push(finished.name),
            WalCreated::Same => done.same += 1,
            WalCreated::Other { .. } => {
                let kept = lane.keep_contested(&self.writer.token, &name, &encoded)?;
                done.contested.push((finished.name, kept));
            }
        }
        Ok(())
    }

    fn encode(&self, lane: &Lane, finished: &Finished) -> Result<EncodedWal, BackfillError> {
        let name = WalFileName::Segment(finished.name);
        let (size, system_id) = (lane.segment_size(), self.server.system_id);
        let walk = FactsWalk::new(finished.name, size, Some(system_id));
        let (level, threads) = (self.options.level, self.options.threads);
        let encoded = wal::encode(&lane.wal_identity(&name), &finished.file, size.bytes(), level, threads, Some(walk));
        encoded.map_err(|error| match error {
            EncodeError::Read(source) => BackfillError::Read { path: finished.path.clone(), source },
            EncodeError::Format(source) => RepoError::Object { key: name.to_string(), source }.into(),
        })
    }

    /// Compares a segment with what is archived under its name; other bytes are kept apart.
    fn compare(
        &self,
        lane: &InTime<'_>,
        folder: &WalFolder<'_>,
        segment: SegmentName,
        done: &mut Backfilled,
    ) -> Result<(), BackfillError> {
        let Some(own) = self.digest(segment)? else { return Ok(()) };
        let Some(within) = lane.left() else {
            done.unfinished = true;
            return Ok(());
        };
        let stored = match within.read_wal(&WalFileName::Segment(segment)) {
            Ok(stored) => stored.map(|stored| stored.digest),
            // A damaged copy is not ours; a sound one is kept beside it.
            Err(RepoError::Object { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        if stored == Some(own) {
            done.same += 1;
            return Ok(());
        }
        // Half a segment that was received differs and means nothing.
        match self.prove(lane, folder, segment)? {
            Proof::Finished(finished) => self.store(lane, &finished, done),
            Proof::NotProven(_) | Proof::Vanished => Ok(()),
        }
    }

    fn digest(&self, segment: SegmentName) -> Result<Option<Sha256>, BackfillError> {
        let path = self.directory.join(segment.to_string());
        let digested = File::open(&path).and_then(|file| {
            let mut hasher = ContentsHasher::default();
            let (mut buffer, mut place) = (vec![0; 1 << 20], 0);
            loop {
                match file.fill_at(&mut buffer, place)? {
                    0 => return Ok(hasher.finish()),
                    more => {
                        hasher.update(&buffer[..more]);
                        place += more as u64;
                    }
                }
            }
        });
        match digested {
            Ok(digest) => Ok(Some(digest)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BackfillError::Read { path, source }),
        }
    }
}

/// A lane, while there is time.
struct InTime<'a> {
    lane: &'a Lane,
    deadline: Instant,
}

impl InTime<'_> {
    /// Returns the lane with what is left of the time as its budget; `None` if too little is left to begin anything.
    fn left(&self) -> Option<Lane> {
        const LEAST: Duration = Duration::from_millis(200);
        let left = self.deadline.saturating_duration_since(Instant::now());
        (left >= LEAST).then(|| self.lane.with_budget(left))
    }
}

#[cfg(test)]
mod tests;
