//! What the agent does beside what it is asked for: it looks back after a promotion, and a standby's agent pushes what
//! the archive lacks.
//!
//! Both are back-fill, see [`crate::archive::Backfill`]. After a promotion one thread a timeline works until everything
//! was looked at, whatever the store does meanwhile. On a standby, where PostgreSQL archives nothing, the data directory
//! is looked at from time to time: what lies in it unchanged for a while and is not archived is pushed, before the next
//! restartpoint recycles it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::ahead::Followed;
use super::house::House;
use crate::archive::{Backfill, BackfillError, Backfilled, Promotion, PushOptions, Scope, Writer, history_in, is_due};
use crate::clock;
use crate::error::one_line;
use crate::instance::{DataDirectory, RecoveryMode};
use crate::metrics::{Count, Level};
use crate::pg::segment::SegmentSize;
use crate::pg::system_id::SystemId;
use crate::pg::timeline::{History, TimelineId};
use crate::pg::wal_name::WalFileName;
use crate::repo::{LaneFacts, LaneId};

/// Time for one pass over a server's past.
const PASS: Duration = Duration::from_secs(300);
/// Pause between two passes when the store failed.
const PAUSE: Duration = Duration::from_secs(10);
/// Passes after which the next file that PostgreSQL passes begins anew.
const PASSES: usize = 60;

/// The server of the agent's own settings: its log is pushed while it is a standby, and it is spoken for while it is an idle
/// primary.
#[derive(Clone, Debug)]
pub struct OwnServer {
    /// Its data directory.
    pub data_directory: PathBuf,
    /// How long a standby's segment lies unchanged and unarchived until it is pushed.
    pub delay: Duration,
    /// In whose name.
    pub writer: Writer,
}

impl OwnServer {
    /// How often it is looked for a standby's segments.
    pub(super) fn interval(&self) -> Duration {
        (self.delay / 2).clamp(Duration::from_secs(1), Duration::from_secs(30))
    }
}

/// Which timelines are looked through now, and which were.
#[derive(Debug, Default)]
pub(super) struct Past {
    looked: Mutex<BTreeSet<(SystemId, String, TimelineId)>>,
    looking: AtomicUsize,
}

impl Past {
    /// Whether a past is looked through now.
    pub fn is_looking(&self) -> bool {
        self.looking.load(Ordering::SeqCst) > 0
    }

    fn looked(&self) -> MutexGuard<'_, BTreeSet<(SystemId, String, TimelineId)>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl House {
    /// Looks through the timelines before a file's, if it is one of the first of its own; returns at once.
    pub(super) fn look_back(self: &Arc<Self>, from: Followed, name: &WalFileName) {
        let Ok(size) = SegmentSize::new(from.server.segment_size) else { return };
        let history = match is_due(&from.directory.path(), name, size) {
            Ok(Some(history)) => history,
            Ok(None) => return,
            Err(error) => return warn!(error = %one_line(&error, 400), "timelines before cannot be looked through"),
        };
        let key = (from.server.system_id, from.writer.token.clone(), history.timeline());
        if !self.past.looked().insert(key.clone()) {
            return;
        }
        let house = Arc::clone(self);
        house.past.looking.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| house.look_through(&from, &history)));
            if !looked.unwrap_or(false) {
                house.past.looked().remove(&key);
            }
            house.past.looking.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// Looks through a server's past until nothing is left to look at; returns whether that came to pass.
    fn look_through(&self, from: &Followed, history: &History) -> bool {
        for _ in 0..PASSES {
            match self.fill(&from.directory.path(), &from.server, &from.writer, history, Scope::BelowTheFork) {
                Ok(done) if !done.unfinished => {
                    self.judge(&from.server, history);
                    return true;
                }
                Ok(_) => {}
                Err(error) => {
                    warn!(error = %one_line(&error, 400), "timelines before are not looked through yet");
                    std::thread::sleep(PAUSE);
                }
            }
        }
        false
    }

    /// Compares a promotion with what its parent had archived, and says so.
    fn judge(&self, server: &LaneFacts, history: &History) {
        let looked = self.lane_for(server, PASS).and_then(|lane| Promotion::look(&lane, history));
        match looked {
            Ok(Some(promotion)) => {
                self.metrics.set(Level::PromotedShortBytes, promotion.short_by());
                self.metrics.set(Level::PromotionMissingFiles, promotion.missing);
                match promotion.is_wrong() {
                    true => error!("{promotion}"),
                    false => info!("{promotion}"),
                }
            }
            Ok(None) => {}
            Err(error) => warn!(error = %one_line(&error, 400), "the promotion cannot be compared with the archive"),
        }
    }

    /// Back-fills from one directory, and tells of it.
    fn fill(
        &self,
        directory: &Path,
        server: &LaneFacts,
        writer: &Writer,
        history: &History,
        scope: Scope,
    ) -> Result<Backfilled, BackfillError> {
        let limits = self.limits();
        let options = PushOptions { level: limits.level, threads: 1 };
        let backfill = Backfill { directory, server, writer, options };
        // A standby opens no lane: only who writes a log does.
        let lane = match scope {
            Scope::BelowTheFork => self.lane_for(server, PASS)?,
            Scope::UntouchedSince(_) => match self.lane(LaneId::first(server.system_id), PASS)? {
                Some((lane, _)) if lane.facts().fits(server) => lane,
                _ => return Ok(Backfilled::default()),
            },
        };
        let done = backfill.perform(&lane, history.clone(), scope, Instant::now() + PASS)?;
        self.metrics.add(Count::BackfilledFiles, done.pushed.len() as u64);
        self.metrics.add(Count::Conflicts, done.contested.len() as u64);
        for segment in &done.pushed {
            info!(%segment, "back-filled: the archive lacked it");
        }
        for (segment, kept) in &done.contested {
            error!(%segment, %kept, "archived with other contents; ours were kept");
        }
        for (segment, why) in &done.unproven {
            match scope {
                Scope::BelowTheFork => warn!(%segment, %why, "the archive lacks it, and it cannot be pushed from here"),
                // Received in part, or recycled under a name that lies in the future.
                Scope::UntouchedSince(_) => debug!(%segment, %why, "not finished"),
            }
        }
        Ok(done)
    }

    /// Pushes what a standby holds and the archive lacks, if there is a standby.
    pub(super) fn push_from_standby(&self, standby: &OwnServer) {
        match self.try_push_from_standby(standby) {
            Ok(()) => {}
            Err(error) => warn!(error = %one_line(&error, 400), "the standby's log was not compared with the archive"),
        }
    }

    fn try_push_from_standby(&self, standby: &OwnServer) -> Result<(), BackfillError> {
        // No server there, or one that archives for itself.
        let Ok(data) = DataDirectory::open(&standby.data_directory) else { return Ok(()) };
        if data.recovery_mode() != RecoveryMode::Standby {
            return Ok(());
        }
        let directory = data.path.join("pg_wal");
        let server = LaneFacts::of(&data.control);
        let Some(history) = self.followed_by(&data, &directory, &server)? else { return Ok(()) };
        let moment = clock::now() - chrono::Duration::from_std(standby.delay).unwrap_or(chrono::Duration::MAX);
        let scope = Scope::UntouchedSince(moment.into());
        self.fill(&directory, &server, &standby.writer, &history, scope).map(drop)
    }

    /// Returns the history of the newest timeline that a standby knows of: it has it in `pg_wal`, or restored it.
    fn followed_by(
        &self,
        data: &DataDirectory,
        directory: &Path,
        server: &LaneFacts,
    ) -> Result<Option<History>, BackfillError> {
        let read = |source| BackfillError::Read { path: directory.to_path_buf(), source };
        let mut newest = data.control.timeline;
        for entry in std::fs::read_dir(directory).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            if let Some(Ok(WalFileName::History(timeline))) = name.to_str().map(str::parse) {
                newest = newest.max(timeline);
            }
        }
        if newest == TimelineId::FIRST {
            return Ok(Some(History::root(newest)));
        }
        if let Some(history) = history_in(directory, newest)? {
            return Ok(Some(history));
        }
        match self.lane(LaneId::first(server.system_id), PASS)? {
            Some((lane, forks)) => Ok(forks.history(&lane, newest)?),
            None => Ok(None),
        }
    }
}
