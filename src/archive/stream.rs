//! WAL that a server streams, put together into segments and archived as `wal push` archives files.
//!
//! For a server that archives nothing, or whose `archive_command` fails. A segment is stored once all of it came: what is
//! not finished is never stored under a segment's name. Where the server's own archiving is at work on the timeline, it
//! stays the timeline's owner: its segments are waited for, and compared with what was streamed.
//!
//! One thread reads and answers the server; another compresses and stores, with one finished segment in hand at most. So
//! two segments and what one compresses to are held in memory, and a slow store holds back the reading, not the answers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Writer;
use super::deliver::is_silent;
use super::push::{OpenWal, PushError, PushOptions, push};
use crate::clock;
use crate::error::ErrorKind;
use crate::format::Sha256;
use crate::instance::replication::{ReplicationClient, ReplicationError, Streamed, WalRequest, WalStream};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNo};
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::repo::{Lane, RepoError};

/// How long the reader waits before it looks whether it is to end.
const LOOK_UP: Duration = Duration::from_millis(500);
/// How often the server hears of us; the manual's own tools take as long.
const STATUS: Duration = Duration::from_secs(10);
/// Pause between two looks at whether somebody else has archived a segment.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Why the streamed WAL is not in the archive.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The server did not send it.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// A segment was not archived.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepoError),
    /// A segment could not be put together.
    #[error("keep the WAL that is streamed")]
    Keep(#[from] std::io::Error),
    /// The server goes on with another timeline.
    #[error("timeline {timeline} ended on the server{}: it was promoted, or follows another primary", of_next(.next))]
    TimelineEnd {
        /// The timeline that was streamed.
        timeline: TimelineId,
        /// What comes after it, and from where on.
        next: Option<(TimelineId, Lsn)>,
    },
    /// The timeline's owner archived something else.
    #[error(
        "{name} is archived with other contents than the server streams: stored {stored}, streamed {streamed}; {owner} archives the timeline"
    )]
    Other {
        /// Which file.
        name: WalFileName,
        /// SHA-256 of what is archived.
        stored: Sha256,
        /// SHA-256 of what came.
        streamed: Sha256,
        /// Host of the timeline's owner.
        owner: String,
    },
    /// The server did not finish a segment in time.
    #[error("the server has not finished segment {name} within {} s", waited.as_secs())]
    Unfinished {
        /// Which.
        name: SegmentName,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The timeline's owner did not archive a segment in time.
    #[error("{owner} archives this timeline, and has not archived {name} within {} s", waited.as_secs())]
    NotArchived {
        /// Which file.
        name: WalFileName,
        /// The owner's host.
        owner: String,
        /// How long it was waited for.
        waited: Duration,
    },
}

fn of_next(next: &Option<(TimelineId, Lsn)>) -> String {
    next.map_or_else(String::new, |(timeline, at)| format!(" at {at}, and timeline {timeline} follows"))
}

impl StreamError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Replication(source) => source.kind(),
            Self::Push(source) => source.kind(),
            Self::Repository(source) => source.kind(),
            Self::Keep(_) => ErrorKind::Unavailable,
            Self::TimelineEnd { .. } => ErrorKind::Unavailable,
            Self::Other { .. } => ErrorKind::Conflict,
            Self::Unfinished { .. } | Self::NotArchived { .. } => ErrorKind::NotFound,
        }
    }

    /// The one next thing to do, where there is one.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Replication(source) => source.hint(),
            Self::Other { .. } | Self::Push(PushError::Conflict { .. }) => {
                Some("two servers may be writing one timeline; find out which before anything else")
            }
            Self::Push(PushError::NotOwner { .. }) | Self::NotArchived { .. } => Some(
                "look at archive_command on that server; when it has been silent for owner_grace, this takes its place",
            ),
            Self::Unfinished { .. } => Some("on a quiet primary `select pg_switch_wal()` finishes a segment"),
            Self::TimelineEnd { .. } => Some("take another backup"),
            _ => None,
        }
    }
}

/// What is streamed, into which lane, and in whose name.
pub struct WalStreaming {
    /// Where it goes.
    pub lane: Lane,
    /// The slot that keeps it on the server.
    pub slot: Option<String>,
    /// From the segment of this position on.
    pub start: Lsn,
    /// On this timeline.
    pub timeline: TimelineId,
    /// Who archives it.
    pub writer: Writer,
    /// How much a push may use.
    pub options: PushOptions,
    /// Whether the slot ends with the session, so that it need not be moved on at the end.
    pub temporary: bool,
    /// Whether the slot is moved on while the log streams, so that the server can remove what is archived. Not with
    /// synchronous standbys: a server might count us among them, and commits wait for our next segment.
    pub moves_slot: bool,
    /// How long the server's own archiving may take to be the first on a timeline that nobody archives yet: whoever is first
    /// keeps it, and the other is refused for a grace.
    pub gives_way: Duration,
}

/// What was archived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Archived {
    /// Segments that came whole.
    pub segments: u64,
    /// Those of them that were left to the timeline's owner.
    pub left_to_owner: u64,
}

/// How far a stream is to go; shared with whoever decides it.
#[derive(Clone, Debug, Default)]
pub struct Goal(Arc<Mutex<End>>);

#[derive(Clone, Copy, Debug, Default)]
enum End {
    /// Nobody knows yet.
    #[default]
    Open,
    /// Behind this segment, which must come within `patience`, by the deadline.
    Through { segment: SegmentNo, deadline: Instant, patience: Duration },
    /// Wherever it is.
    GivenUp,
}

impl Goal {
    /// Sets the last segment that is wanted, and how long it and what the timeline's owner archives are waited for.
    pub fn set(&self, segment: SegmentNo, patience: Duration) {
        *self.end() = End::Through { segment, deadline: Instant::now() + patience, patience };
    }

    /// Ends the stream wherever it is.
    pub fn give_up(&self) {
        *self.end() = End::GivenUp;
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A finished segment on its way into the archive.
struct Finished {
    number: SegmentNo,
    file: File,
}

/// What was left to the timeline's owner, to be compared once it is archived.
struct Left {
    name: WalFileName,
    digest: Sha256,
    owner: String,
}

impl WalStreaming {
    /// Streams until the goal is reached and everything up to there is in the archive.
    ///
    /// # Errors
    /// [`StreamError`]; what was archived stays archived.
    pub fn perform(&self, client: &mut ReplicationClient, goal: &Goal) -> Result<Archived, StreamError> {
        let mut pusher = Pusher { streaming: self, left: Vec::new(), gives_way: self.gives_way };
        pusher.history(client)?;
        let first = self.lane.segment_size().segment_of(self.start);
        let start = first.start(self.lane.segment_size());
        let request = WalRequest { slot: self.slot.clone(), start, timeline: self.timeline };
        let mut stream = client.stream_wal(&request)?;
        let (jobs, work) = channel();
        let (told, durable) = channel();
        let (read, pushed) = std::thread::scope(|scope| {
            let pushing = scope.spawn(move || {
                let result = pusher.work(&work, told);
                (pusher, result)
            });
            let reader = Reader { streaming: self, goal, jobs, durable, waiting: false, safe: start };
            let read = reader.run(&mut stream, first);
            (read, pushing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (pusher, pushed) = pushed;
        // Why nothing is stored any more comes before what the reader makes of it.
        pushed?;
        let next = read?;
        let segments = next.0 - first.0;
        let left_to_owner = pusher.left.iter().filter(|left| matches!(left.name, WalFileName::Segment(_))).count();
        pusher.await_owner(goal)?;
        if !self.temporary {
            let _ = stream.confirm(Some(next.start(self.lane.segment_size())));
        }
        stream.finish();
        Ok(Archived { segments, left_to_owner: left_to_owner as u64 })
    }
}

/// The thread that listens to the server.
struct Reader<'a> {
    streaming: &'a WalStreaming,
    goal: &'a Goal,
    jobs: Sender<Finished>,
    durable: Receiver<Lsn>,
    /// Whether a segment is on its way.
    waiting: bool,
    /// Up to where everything is archived.
    safe: Lsn,
}

impl Reader<'_> {
    /// Reads until the goal is reached; returns the first segment that is not whole.
    fn run(mut self, stream: &mut WalStream<'_>, first: SegmentNo) -> Result<SegmentNo, StreamError> {
        let size = self.streaming.lane.segment_size();
        let (mut number, mut filled, mut file) = (first, 0, None);
        let mut told = Instant::now();
        loop {
            let end = *self.goal.end();
            match end {
                End::Open => {}
                End::Through { segment, deadline, .. } if number <= segment && Instant::now() < deadline => {}
                End::Through { segment, patience, .. } if number <= segment => {
                    let name = SegmentName::from_number(self.streaming.timeline, number, size);
                    return Err(StreamError::Unfinished { name, waited: patience });
                }
                End::Through { .. } | End::GivenUp => {
                    self.settle(stream, &mut told)?;
                    return Ok(number);
                }
            }
            let mut asked = false;
            match stream.next(LOOK_UP)? {
                Streamed::Log { mut bytes, .. } => {
                    // What comes together may end one segment and begin the next.
                    let mut finished = Vec::new();
                    while !bytes.is_empty() {
                        let room = usize::try_from(size.bytes() - filled).unwrap_or(usize::MAX);
                        let (some, rest) = bytes.split_at(bytes.len().min(room));
                        let into = match &file {
                            Some(file) => file,
                            None => file.insert(scratch()?),
                        };
                        into.write_all_at(some, filled)?;
                        filled += some.len() as u64;
                        bytes = rest;
                        if filled == size.bytes() {
                            finished.extend(file.take().map(|file| Finished { number, file }));
                            (number, filled) = (number.next(), 0);
                        }
                    }
                    for segment in finished {
                        self.settle(stream, &mut told)?;
                        self.waiting = self.jobs.send(segment).is_ok();
                    }
                }
                Streamed::Alive { asks } => asked = asks,
                Streamed::Silence => {}
                Streamed::TimelineEnd { next } => {
                    return Err(StreamError::TimelineEnd { timeline: self.streaming.timeline, next });
                }
            }
            while let Ok(safe) = self.durable.try_recv() {
                (self.safe, self.waiting) = (safe, false);
            }
            if asked || told.elapsed() >= STATUS {
                self.tell(stream, &mut told)?;
            }
        }
    }

    /// Waits until nothing is on its way any more; the server hears of us meanwhile.
    fn settle(&mut self, stream: &mut WalStream<'_>, told: &mut Instant) -> Result<(), StreamError> {
        while self.waiting {
            match self.durable.recv_timeout(STATUS.saturating_sub(told.elapsed())) {
                Ok(safe) => (self.safe, self.waiting) = (safe, false),
                Err(RecvTimeoutError::Timeout) => self.tell(stream, told)?,
                // It ended with an error of its own, which counts.
                Err(RecvTimeoutError::Disconnected) => {
                    self.waiting = false;
                    self.goal.give_up();
                }
            }
        }
        Ok(())
    }

    fn tell(&self, stream: &mut WalStream<'_>, told: &mut Instant) -> Result<(), StreamError> {
        *told = Instant::now();
        Ok(stream.confirm(self.streaming.moves_slot.then_some(self.safe))?)
    }
}

/// The thread that stores.
struct Pusher<'a> {
    streaming: &'a WalStreaming,
    left: Vec<Left>,
    /// What is left of that time.
    gives_way: Duration,
}

impl Pusher<'_> {
    fn work(&mut self, work: &Receiver<Finished>, told: Sender<Lsn>) -> Result<(), StreamError> {
        let size = self.streaming.lane.segment_size();
        while let Ok(Finished { number, file }) = work.recv() {
            let name = SegmentName::from_number(self.streaming.timeline, number, size);
            self.archive(WalFileName::Segment(name), file)?;
            // The reader may be gone.
            let _ = told.send(number.end(size));
        }
        Ok(())
    }

    /// Archives the timeline's history, without which nothing can be restored on it.
    fn history(&mut self, client: &mut ReplicationClient) -> Result<(), StreamError> {
        let timeline = self.streaming.timeline;
        if timeline == TimelineId::FIRST {
            return Ok(());
        }
        let bytes = client.timeline_history(timeline)?;
        let file = scratch()?;
        file.write_all_at(&bytes, 0)?;
        self.archive(WalFileName::History(timeline), file)
    }

    fn archive(&mut self, name: WalFileName, file: File) -> Result<(), StreamError> {
        let WalStreaming { lane, writer, options, timeline, .. } = self.streaming;
        let until = Instant::now() + std::mem::take(&mut self.gives_way);
        while Instant::now() < until && lane.owners(*timeline)?.current.is_none() {
            std::thread::sleep(LOOK_AGAIN);
        }
        let file = OpenWal::received(name.clone(), path_of(&name), file);
        if let Some(owner) = at_work(lane, *timeline, writer)? {
            self.left.push(Left { name, digest: file.digest()?, owner });
            return Ok(());
        }
        push(|| Ok(lane.clone()), lane.facts(), &file, writer, *options)?;
        Ok(())
    }

    /// Waits for what the owner has to archive, and compares it.
    fn await_owner(self, goal: &Goal) -> Result<(), StreamError> {
        let End::Through { deadline, patience, .. } = *goal.end() else { return Ok(()) };
        for Left { name, digest: streamed, owner } in self.left {
            let stored = loop {
                match self.streaming.lane.read_wal(&name)? {
                    Some(stored) => break stored.digest,
                    None if Instant::now() >= deadline => {
                        return Err(StreamError::NotArchived { name, owner, waited: patience });
                    }
                    None => std::thread::sleep(LOOK_AGAIN),
                }
            };
            if stored != streamed {
                return Err(StreamError::Other { name, stored, streamed, owner });
            }
        }
        Ok(())
    }
}

/// Returns the host of the timeline's owner if that is somebody else who is at work.
fn at_work(lane: &Lane, timeline: TimelineId, writer: &Writer) -> Result<Option<String>, RepoError> {
    if lane.is_known_to_be_of(timeline, &writer.token, writer.grace, clock::now()) {
        return Ok(None);
    }
    let Some(record) = lane.owners(timeline)?.current.filter(|record| !writer.is(&record.owner.writer)) else {
        return Ok(None);
    };
    if writer.grace.is_zero() {
        return Ok(None);
    }
    let silent = lane.store_time()? - lane.last_sign(timeline, &record)?;
    Ok((!is_silent(silent, writer.grace)).then_some(record.owner.host))
}

/// What a file is called in messages that has no place on a disk.
fn path_of(name: &WalFileName) -> PathBuf {
    Path::new("(streamed)").join(name.to_string())
}

/// A file in memory: a host that only streams need not have a place to write to.
fn scratch() -> std::io::Result<File> {
    let file = rustix::fs::memfd_create("walvault-segment", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(File::from(file))
}

impl Writer {
    /// Returns the writer of WAL that is streamed from a server, named by `source`: the same on every host that streams
    /// from there. What leads to a server only on this very host, such as a socket, is `local`.
    pub fn streaming(source: &str, local: bool, grace: Duration) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
        let place = if local { [&machine[..], b"\0", host.as_bytes()].concat() } else { Vec::new() };
        let digest = Sha256::of_parts([&b"streamed from\0"[..], source.as_bytes(), b"\0", &place]);
        let host = format!("{host}, streaming from {source}");
        Self { token: digest.to_string()[..16].to_owned(), former: None, host, grace, takes_over: None, follows: false }
    }
}

#[cfg(test)]
mod tests;
