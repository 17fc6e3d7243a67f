//! Archiving, and archiving ahead: the next finished segments go in parallel with the one that was asked for.
//!
//! Each is acknowledged by its own durable store only, and only when PostgreSQL asks for it: the file must then be the
//! one that was read, by inode, length and times. A file that was touched within the grain of the file system's clock
//! before it was read is read again and its bytes compared. And the store must have it still: a volume may have been mounted
//! anew in the meantime, an older copy of it even, and the file in `pg_wal` may be the only one that is left.
//!
//! Source: which files wait, `pgarch_readyXlog` in `src/backend/postmaster/pgarch.c`.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::Final;
use super::house::{House, failed, is_the_stores};
use super::wire::{PushTask, Reply};
use crate::archive::{FileIdentity, OpenWal, PushError, PushOptions, Pushed, Receipt, WalFile, Writer, push};
use crate::clock;
use crate::error::{ErrorKind, one_line};
use crate::format::Sha256;
use crate::metrics::{Count, Level, Metrics, Step};
use crate::pg::segment::SegmentName;
use crate::pg::system_id::SystemId;
use crate::pg::wal_name::WalFileName;
use crate::repo::LaneFacts;

/// Files that wait from which on the level drops.
const BACKLOG: usize = 32;
/// A listing of what waits counts so long.
const LISTED: Duration = Duration::from_secs(1);
/// After a failure nothing is tried ahead for so long; PostgreSQL asks meanwhile, and that is tried.
const PAUSE: Duration = Duration::from_secs(5);
/// Time that archiving ahead gives the store.
const BUDGET: Duration = Duration::from_secs(60);

/// A server's `pg_wal`, as a process of the server opened it.
#[derive(Debug)]
pub(super) struct PgWal(File);

impl PgWal {
    /// A path to the directory itself.
    pub fn path(&self) -> PathBuf {
        self.join("")
    }

    /// Returns the data directory that it is part of, if this process sees it under the path that the server's process used.
    /// Unlike the directory itself, a path keeps no volume busy.
    pub fn data_directory(&self) -> Option<PathBuf> {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", self.0.as_raw_fd())).ok()?;
        let data = path.parent()?.to_path_buf();
        let (held, found) = (self.0.metadata().ok()?, std::fs::metadata(data.join("pg_wal")).ok()?);
        ((held.dev(), held.ino()) == (found.dev(), found.ino())).then_some(data)
    }

    /// A path to something in it. The directory may have another path here than there, or none.
    fn join(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }

    /// Returns the finished segments that wait, in the order in which PostgreSQL asks for them.
    fn ready(&self) -> io::Result<Vec<SegmentName>> {
        let mut found = Vec::new();
        for segment in waiting_in(&self.path())? {
            found.push(segment?);
        }
        found.sort_unstable();
        Ok(found)
    }

    fn is_ready(&self, segment: SegmentName) -> bool {
        self.join(&format!("archive_status/{segment}.ready")).exists()
    }
}

/// Returns the finished segments that wait in a server's `pg_wal`, in no order.
pub(super) fn waiting_in(pg_wal: &Path) -> io::Result<impl Iterator<Item = io::Result<SegmentName>> + use<>> {
    let entries = std::fs::read_dir(pg_wal.join("archive_status"))?;
    Ok(entries.filter_map(|entry| match entry {
        Ok(entry) => Some(Ok(entry.file_name().to_str()?.strip_suffix(".ready")?.parse().ok()?)),
        Err(error) => Some(Err(error)),
    }))
}

/// A directory from which files are archived, and for whom.
#[derive(Clone, Debug)]
pub(super) struct Followed {
    pub directory: Arc<PgWal>,
    pub server: LaneFacts,
    pub writer: Writer,
    asked: Instant,
}

type FileKey = (SystemId, WalFileName);

#[derive(Debug)]
enum Entry {
    /// Nobody may begin with it: it is in somebody's hands, or next.
    Taken,
    /// It is durable.
    Archived(Remembered),
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    identity: FileIdentity,
    digest: Sha256,
    /// Whether the identity alone tells that nothing was written since.
    settled: bool,
    /// Bytes of the object that was stored.
    stored_bytes: u64,
    /// Through which opening of the repository.
    opening: u64,
}

impl Remembered {
    /// Returns whether a file that PostgreSQL offers is the one that was archived.
    fn is(&self, file: &OpenWal) -> Result<bool, PushError> {
        Ok(self.identity == file.identity()? && (self.settled || self.digest == file.digest()?))
    }
}

#[derive(Debug)]
struct Job {
    from: Followed,
    segment: SegmentName,
}

/// What is being archived, and what was and has not been asked for.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<FileKey, Entry>,
    queue: VecDeque<Job>,
    workers: usize,
    followed: Vec<Followed>,
    waiting: Waiting,
    listed: Option<Instant>,
    paused: Option<Instant>,
}

/// How much waits, by the last look.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    files: usize,
    bytes: u64,
}

impl House {
    /// Archives a file that a command passed.
    pub(super) fn push(self: &Arc<Self>, task: &PushTask, mut files: Vec<File>, deadline: Instant) -> Reply {
        let began = Instant::now();
        let declined = |reason: &str| Reply::Declined { reason: reason.to_owned() };
        if files.is_empty() {
            return declined("no file came with the request");
        }
        let Ok(name) = task.name.parse::<WalFileName>() else { return declined("not a name of a file of WAL") };
        let directory = (files.len() > 1).then(|| files.swap_remove(1));
        let file = OpenWal::received(name.clone(), PathBuf::from(&task.path), files.swap_remove(0));
        let grace = Duration::from_secs(task.grace_seconds);
        let (token, former, host) = (task.token.clone(), task.former.clone(), task.host.clone());
        let writer = Writer { token, former, host, grace, takes_over: task.takes_over, follows: task.follows };
        let key = (task.server.system_id, name.clone());
        let remembered = self.ahead.take(&key, deadline);
        let _held = Held { ahead: &self.ahead, key };
        let from = directory.map(|directory| {
            let directory = Arc::new(PgWal(directory));
            Followed { directory, server: task.server.clone(), writer: writer.clone(), asked: began }
        });
        from.iter().for_each(|from| self.follow(from.clone()));
        let known: Result<bool, PushError> = remembered.map_or(Ok(false), |remembered| {
            Ok(remembered.is(&file)? && self.holds_still(&task.server, &name, &remembered, deadline))
        });
        let reply = match known {
            Ok(true) => {
                info!(segment = %name, elapsed_ms = began.elapsed().as_millis() as u64, "was archived ahead");
                Reply::Archived
            }
            Ok(false) => self.archive(&task.server, &file, &writer, deadline),
            Err(error) => failed(error.kind(), &error, None),
        };
        self.metrics.took(Step::Push, began.elapsed());
        if let (Reply::Archived, Some(from)) = (&reply, from) {
            self.signs.heard_of(&from);
            self.look_back(from, &name);
        }
        reply
    }

    /// Whether the store to which a push would go now has what was archived ahead. A volume says so for next to nothing; a
    /// bucket is asked only if the repository was opened anew since. The size is proof enough: a name is stored once, so other
    /// bytes of this very size could only be another writer's, in a copy of the repository from before.
    fn holds_still(&self, server: &LaneFacts, name: &WalFileName, stored: &Remembered, deadline: Instant) -> bool {
        // Whoever archives it is refused at once then, or tries.
        if self.breaker.is_open() {
            return false;
        }
        let budget = deadline.saturating_duration_since(Instant::now());
        let Ok(lane) = self.lane_for(server, budget) else { return false };
        if lane.is_in_bucket() && self.opening() == stored.opening {
            return true;
        }
        let found = lane.stored_bytes(name);
        found.is_ok_and(|found| found == Some(stored.stored_bytes))
    }

    fn archive(self: &Arc<Self>, server: &LaneFacts, file: &OpenWal, writer: &Writer, deadline: Instant) -> Reply {
        if let Some(refusal) = self.breaker.refuses(Instant::now()) {
            return Reply::Failed { kind: ErrorKind::Unavailable, text: refusal, settled: Some(Final::StoreGone) };
        }
        let began = Instant::now();
        let budget = deadline.saturating_duration_since(began);
        let alone = self.ahead.state().workers == 0;
        match push(|| self.lane_for(server, budget), server, file, writer, self.options(alone)) {
            Ok(receipt) => {
                self.store_worked();
                self.archived(&receipt);
                let elapsed_ms = began.elapsed().as_millis() as u64;
                let (segment, bytes, stored_bytes) = (file.name(), receipt.identity.len(), receipt.stored_bytes);
                match receipt.pushed {
                    Pushed::Stored => info!(%segment, bytes, stored_bytes, elapsed_ms, "archived"),
                    Pushed::AlreadyStored => info!(%segment, bytes, elapsed_ms, "was in the archive already"),
                }
                Reply::Archived
            }
            Err(error @ PushError::NotYet { .. }) => {
                info!(segment = %file.name(), "waits for the primary to archive it");
                failed(error.kind(), &error, Some(Final::NotYet))
            }
            Err(error) => {
                self.metrics.add(Count::PushFailures, 1);
                let conflict = error.kind() == ErrorKind::Conflict;
                if conflict {
                    self.metrics.add(Count::Conflicts, 1);
                } else {
                    // Whatever is open may be what is wrong.
                    self.forget();
                }
                warn!(segment = %file.name(), error = %one_line(&error, 400), "not archived");
                let settled = match error {
                    PushError::NotOwner { .. } => Some(Final::NotOwner),
                    _ => conflict.then_some(Final::Conflict),
                };
                failed(error.kind(), &error, settled)
            }
        }
    }

    fn archived(&self, receipt: &Receipt) {
        self.metrics.add(Count::ArchivedFiles, 1);
        self.metrics.add(Count::ArchivedBytes, receipt.identity.len());
        self.metrics.add(Count::StoredBytes, receipt.stored_bytes);
        let written = receipt.identity.modified().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.metrics.archived_written_at(written.as_secs());
    }

    fn options(&self, alone: bool) -> PushOptions {
        let limits = self.limits();
        let behind = self.ahead.state().waiting.files > BACKLOG;
        let level = if behind { limits.level.min(limits.backlog_level) } else { limits.level };
        PushOptions { level, threads: if alone { limits.threads } else { 1 } }
    }

    /// Takes up what waits in a directory besides the file that was asked for.
    fn follow(self: &Arc<Self>, from: Followed) {
        let limits = self.limits();
        let mut state = self.ahead.state();
        let place = state.followed.iter().position(|known| known.writer.token == from.writer.token);
        match place {
            Some(place) => state.followed[place] = from.clone(),
            None => state.followed.push(from.clone()),
        }
        state.let_go_of_idle_directories(limits.stay.holds_directories());
        let fresh = state.listed.is_some_and(|listed| listed.elapsed() < LISTED);
        if limits.look_ahead == 0 || (fresh && (state.waiting.files == 0 || !state.queue.is_empty())) {
            return;
        }
        if state.paused.is_some_and(|since| since.elapsed() < PAUSE) {
            return;
        }
        let Ok(ready) = from.directory.ready() else {
            debug!("the directory of what waits cannot be read; nothing is archived ahead");
            return;
        };
        let segment_bytes = u64::from(from.server.segment_size);
        state.listed = Some(Instant::now());
        state.waiting = Waiting { files: ready.len(), bytes: ready.len() as u64 * segment_bytes };
        // What does not wait any more was archived without us, or is gone.
        state.entries.retain(|(system, name), entry| match (entry, name) {
            (Entry::Archived(_), WalFileName::Segment(segment)) if *system == from.server.system_id => {
                ready.binary_search(segment).is_ok()
            }
            _ => true,
        });
        let most = (limits.look_ahead / segment_bytes.max(1)) as usize;
        for segment in ready {
            if state.entries.len() > most {
                break;
            }
            let key = (from.server.system_id, WalFileName::Segment(segment));
            if let std::collections::btree_map::Entry::Vacant(vacant) = state.entries.entry(key) {
                vacant.insert(Entry::Taken);
                state.queue.push_back(Job { from: from.clone(), segment });
            }
        }
        while state.workers < limits.workers().min(state.queue.len()) {
            state.workers += 1;
            let house = Arc::clone(self);
            std::thread::spawn(move || house.work_ahead());
        }
    }

    fn work_ahead(&self) {
        loop {
            let mut state = self.ahead.state();
            let Some(job) = state.queue.pop_front() else {
                state.workers -= 1;
                return;
            };
            drop(state);
            let key = (job.from.server.system_id, WalFileName::Segment(job.segment));
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.archive_ahead(&job)));
            let mut state = self.ahead.state();
            match done.ok().flatten() {
                Some(remembered) => drop(state.entries.insert(key, Entry::Archived(remembered))),
                None => drop(state.entries.remove(&key)),
            }
            drop(state);
            self.ahead.changed.notify_all();
        }
    }

    fn archive_ahead(&self, job: &Job) -> Option<Remembered> {
        let Followed { directory, server, writer, .. } = &job.from;
        // It may have been archived without us since it was listed.
        if !directory.is_ready(job.segment) || self.breaker.refuses(Instant::now()).is_some() {
            return None;
        }
        let (began, moment) = (Instant::now(), clock::now());
        // What is opened anew meanwhile may be another one.
        let opening = self.opening();
        let name = WalFileName::Segment(job.segment);
        let file = WalFile { path: directory.join(&name.to_string()), name };
        // A pipe would never open, and a link leads to what is not the server's.
        if !std::fs::symlink_metadata(&file.path).is_ok_and(|found| found.is_file()) {
            return None;
        }
        let pushed = OpenWal::open(&file)
            .and_then(|file| push(|| self.lane_for(server, BUDGET), server, &file, writer, self.options(false)));
        self.metrics.took(Step::LookAhead, began.elapsed());
        match pushed {
            Ok(receipt) => {
                self.archived(&receipt);
                let elapsed_ms = began.elapsed().as_millis() as u64;
                let (bytes, stored_bytes) = (receipt.identity.len(), receipt.stored_bytes);
                info!(segment = %job.segment, bytes, stored_bytes, elapsed_ms, "archived ahead");
                let settled = receipt.identity.settled_before(moment.into());
                let (identity, digest) = (receipt.identity, receipt.digest);
                Some(Remembered { identity, digest, settled, stored_bytes, opening })
            }
            Err(error) => {
                // PostgreSQL will ask for it and be told; here it is only not done ahead.
                debug!(segment = %job.segment, error = %one_line(&error, 400), "not archived ahead");
                if is_the_stores(error.kind()) {
                    self.metrics.add(Count::PushFailures, 1);
                    let mut state = self.ahead.state();
                    state.paused = Some(Instant::now());
                    state.give_up_queue();
                }
                None
            }
        }
    }
}

impl Ahead {
    /// Takes a file out of the others' hands: waits for who has it, and returns what came of it.
    fn take(&self, key: &FileKey, deadline: Instant) -> Option<Remembered> {
        let mut state = self.state();
        loop {
            let queued = state
                .queue
                .iter()
                .position(|job| (job.from.server.system_id, WalFileName::Segment(job.segment)) == *key);
            if let Some(queued) = queued {
                state.queue.remove(queued);
                return None;
            }
            match state.entries.get(key) {
                Some(Entry::Archived(remembered)) => {
                    let remembered = *remembered;
                    state.entries.insert(key.clone(), Entry::Taken);
                    return Some(remembered);
                }
                None => {
                    state.entries.insert(key.clone(), Entry::Taken);
                    return None;
                }
                Some(Entry::Taken) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets go of the directories from which nothing was archived for `hold`, and of what was archived of them.
    pub fn tidy(&self, hold: Duration) {
        self.state().let_go_of_idle_directories(hold);
    }

    /// Measures what waits in the directories that are followed.
    pub fn measure(&self, metrics: &Metrics, hold: Duration) {
        let followed = {
            let mut state = self.state();
            state.let_go_of_idle_directories(hold);
            state.followed.clone()
        };
        let mut waiting = Waiting::default();
        for from in followed {
            let files = from.directory.ready().map_or(0, |ready| ready.len());
            waiting.files += files;
            waiting.bytes += files as u64 * u64::from(from.server.segment_size);
        }
        metrics.set(Level::BacklogFiles, waiting.files as u64);
        metrics.set(Level::BacklogBytes, waiting.bytes);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file in a request's hands; the others may have it again when this is dropped, after a panic too.
struct Held<'a> {
    ahead: &'a Ahead,
    key: FileKey,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.ahead.state().entries.remove(&self.key);
        self.ahead.changed.notify_all();
    }
}

impl State {
    fn give_up_queue(&mut self) {
        for job in std::mem::take(&mut self.queue) {
            self.entries.remove(&(job.from.server.system_id, WalFileName::Segment(job.segment)));
        }
    }

    fn let_go_of_idle_directories(&mut self, hold: Duration) {
        self.followed.retain(|from| from.asked.elapsed() < hold);
        if self.followed.is_empty() {
            self.entries.retain(|_, entry| matches!(entry, Entry::Taken));
        }
    }
}
