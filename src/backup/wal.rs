//! The WAL that a backup cannot do without: from its start to its stop, in the archive, and readable.

use std::time::{Duration, Instant};

use super::marks::{Mark, Marks};
use crate::error::ErrorKind;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::pg::wal_event::WalEvent;
use crate::pg::wal_name::WalFileName;
use crate::pg::wal_page::{FirstPage, PageError};
use crate::pg::wal_record::Record;
use crate::pg::wal_walk::{SegmentEnd, SegmentWalk, Walker};
use crate::repo::{Lane, OpenedFile, RepoError};

/// Pause after the first look that finds nothing, half as long again each time up to the longest: a segment usually arrives at
/// once, and then no more than half of what it took is waited in vain.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// The part of the log that makes a backup one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needed {
    pub timeline: TimelineId,
    pub start: Lsn,
    pub stop: Lsn,
    /// The last segment that must be there.
    pub through: SegmentNo,
}

impl Needed {
    /// What lies from a backup's start to its stop.
    pub fn of(timeline: TimelineId, (start, stop): (Lsn, Lsn), size: SegmentSize) -> Self {
        // A stop on a boundary belongs to the segment that ends there.
        Self { timeline, start, stop, through: size.segment_ending_at(stop) }
    }

    /// The same for a backup of a standby: a restore to its end looks for the record behind it, which may lie in the next
    /// segment.
    pub fn and_the_next(self) -> Self {
        Self { through: self.through.next(), ..self }
    }
}

/// Why the WAL does not make the copy consistent.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// It did not reach the archive in time.
    #[error("segment {name} did not reach the archive within {} s", waited.as_secs())]
    Missing {
        /// The first one that is missing.
        name: SegmentName,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The archive holds something else under that name.
    #[error("the archived {name} is not what its name says")]
    FirstPage {
        /// The segment.
        name: SegmentName,
        /// What is wrong.
        source: PageError,
    },
    /// The records do not lead from start to stop.
    #[error("the archived log cannot be read up to {stop}: its records end at {end}, in segment {name}")]
    Broken {
        /// Where it must lead.
        stop: Lsn,
        /// Where it ends.
        end: Lsn,
        /// In which segment.
        name: SegmentName,
    },
    /// It leads from start to stop, and another server wrote it.
    #[error("the archived log is not this server's: {mark}; another server's log has these names")]
    NotThisServers {
        /// What only this server's log has.
        mark: Mark,
    },
    /// A database was copied file by file, and what it was copied from was dropped, both while the backup ran.
    #[error(
        "database {oid} was copied or moved to another tablespace, and its source dropped, while the backup ran: \
         recovery would copy from files that are not in the backup; take another backup"
    )]
    SourceDropped {
        /// The database that was copied from.
        oid: u32,
    },
    /// The repository failed.
    #[error("read the archived {name}")]
    Repository {
        /// The segment.
        name: SegmentName,
        /// Why.
        source: RepoError,
    },
}

impl WalError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            WalError::Missing { .. } => ErrorKind::NotFound,
            WalError::FirstPage { .. } | WalError::Broken { .. } => ErrorKind::Corrupt,
            WalError::NotThisServers { .. } => ErrorKind::Conflict,
            WalError::SourceDropped { .. } => ErrorKind::Unavailable,
            WalError::Repository { source, .. } => source.kind(),
        }
    }
}

/// Waits for every segment from start to stop, and reads the records from one to the other, which have to be this server's.
pub(super) fn verify(lane: &Lane, needed: Needed, mut marks: Marks, patience: Duration) -> Result<(), WalError> {
    let size = lane.segment_size();
    let system_id = lane.facts().system_id;
    let mut walker = Walker::new(Some(system_id), size);
    let mut copies = Copies::default();
    let mut number = size.segment_of(needed.start);
    let deadline = Instant::now() + patience;
    loop {
        let name = SegmentName::from_number(needed.timeline, number, size);
        let archived = wait_for(lane, name, deadline, patience)?;
        let end = walk(lane, name, &archived, &mut walker, &mut |record| {
            copies.note(record, needed);
            marks.note(record);
        })?;
        if let Some(oid) = copies.lost {
            return Err(WalError::SourceDropped { oid });
        }
        let reached = walker.last_complete().map_or(Lsn::INVALID, |(_, end)| end);
        if let SegmentEnd::Stopped { at, .. } = end
            && reached < needed.stop
        {
            return Err(WalError::Broken { stop: needed.stop, end: at, name });
        }
        if number >= needed.through {
            // Padding after a switch counts: `stop` may be the start of the segment that follows it.
            let complete = reached >= needed.stop || matches!(end, SegmentEnd::Switched { .. } | SegmentEnd::Clean);
            if !complete {
                return Err(WalError::Broken { stop: needed.stop, end: reached, name });
            }
            return marks.missing().map_or(Ok(()), |mark| Err(WalError::NotThisServers { mark }));
        }
        number = number.next();
    }
}

/// Walks one archived segment, of which a part is in memory at a time: what was found counts only once all of it came.
fn walk(
    lane: &Lane,
    name: SegmentName,
    archived: &OpenedFile,
    walker: &mut Walker,
    visit: &mut dyn FnMut(&Record<'_>),
) -> Result<SegmentEnd, WalError> {
    let (facts, size) = (lane.facts(), lane.segment_size());
    let (mut segment, mut begun) = (SegmentWalk::new(name), false);
    let belongs =
        |first: &[u8]| FirstPage::parse(first).and_then(|page| page.belongs_to(name, size, Some(facts.system_id)));
    let taken = archived.contents_to(&mut |part| {
        if !std::mem::replace(&mut begun, true) {
            belongs(part)?;
        }
        segment.part(walker, part, visit);
        Ok(())
    });
    let taken = taken.map_err(|source| WalError::Repository { name, source })?;
    let taken = if begun { taken } else { taken.and_then(|()| belongs(&[])) };
    taken.map_err(|source| WalError::FirstPage { name, source })?;
    Ok(segment.end(walker))
}

/// Databases that were copied file by file while the backup ran.
///
/// Replaying such a copy empties the new directory and fills it from the old one. If the old one was dropped before the
/// backup came to it, PostgreSQL makes an empty one, expects the new one to be dropped too, and goes on without a word:
/// the database is gone. That is what `ALTER DATABASE … SET TABLESPACE` leaves in a base backup that it ran beside.
///
/// Source: `dbase_redo` and `movedb` in `src/backend/commands/dbcommands.c`.
#[derive(Default)]
struct Copies {
    sources: Vec<u32>,
    lost: Option<u32>,
}

impl Copies {
    fn note(&mut self, record: &Record<'_>, needed: Needed) {
        if record.start < needed.start || record.start >= needed.stop {
            return;
        }
        match WalEvent::read(record) {
            Some(WalEvent::DatabaseCreated { copied_from: Some(source), .. }) => self.sources.push(source),
            Some(WalEvent::DatabaseDropped { oid }) if self.sources.contains(&oid) => self.lost = Some(oid),
            _ => {}
        }
    }
}

fn wait_for(lane: &Lane, name: SegmentName, deadline: Instant, waited: Duration) -> Result<OpenedFile, WalError> {
    let mut pause = LOOK_AGAIN;
    loop {
        let stored = lane.open_wal(&WalFileName::Segment(name));
        match stored.map_err(|source| WalError::Repository { name, source })? {
            Some(stored) => return Ok(stored),
            None if Instant::now() >= deadline => return Err(WalError::Missing { name, waited }),
            None => std::thread::sleep(pause),
        }
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}
