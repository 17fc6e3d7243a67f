//! Signs of life for a server that has nothing to archive, so that nobody takes its timeline meanwhile.
//!
//! An agent sees what a command that PostgreSQL calls cannot: that the server is there although it calls nobody. It says so
//! in the repository, see [`crate::repo`], for whoever archived through it and for the server in `pgdata`, once neither a
//! file nor a sign was stored for a third of `owner_grace`. Only for a primary that certainly runs: one that was stopped,
//! demoted, or moved to another host must fall silent. So must one that has something to archive and does not, also where
//! nothing waits because archiving was switched off.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::ahead::{Followed, waiting_in};
use super::house::House;
use crate::archive::Writer;
use crate::error::one_line;
use crate::instance::{DataDirectory, RecoveryMode, certainly_runs};
use crate::pg::control::DbState;
use crate::pg::segment::SegmentNo;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::repo::{LaneFacts, LaneId, RepoError, Signed};

/// Time that a sign gives the store.
const BUDGET: Duration = Duration::from_secs(30);
/// How often it is looked whether a sign is due, at least: one that failed is tried again then.
const LOOK: Duration = Duration::from_secs(60);
/// The shortest time between two signs.
const SHORTEST: Duration = Duration::from_secs(1);
/// Servers on one host that are spoken for; there are few.
const MOST: usize = 64;

/// The servers that are spoken for, by their tokens.
#[derive(Debug, Default)]
pub(super) struct Signs {
    servers: Mutex<BTreeMap<String, Server>>,
    changed: Condvar,
}

#[derive(Clone, Debug)]
struct Server {
    data: PathBuf,
    writer: Writer,
    /// When something of it was last stored.
    heard: Instant,
    /// Whether the last try failed, which is told once.
    failing: bool,
}

/// What came of the wish to speak for a server.
#[derive(Debug, PartialEq, Eq)]
enum Spoken {
    Given,
    /// It writes a timeline that another one owns.
    NotOwner,
    /// It has something to archive, and that it has not done so is silence.
    Waits,
    /// It is not there, or no primary, or not of this cluster.
    Gone,
}

impl Signs {
    /// Notes that something of a server was stored just now.
    pub fn heard_of(&self, from: &Followed) {
        let token = &from.writer.token;
        if let Some(server) = self.servers().get_mut(token) {
            (server.heard, server.writer) = (Instant::now(), from.writer.clone());
            return;
        }
        if let Some(data) = from.directory.data_directory() {
            self.take_up(&data, &from.writer);
        }
    }

    fn take_up(&self, data: &Path, writer: &Writer) {
        let mut servers = self.servers();
        if servers.len() >= MOST || servers.contains_key(&writer.token) {
            return;
        }
        let (data, writer, heard) = (data.to_path_buf(), writer.clone(), Instant::now());
        servers.insert(writer.token.clone(), Server { data, writer, heard, failing: false });
        self.changed.notify_all();
    }

    fn servers(&self) -> MutexGuard<'_, BTreeMap<String, Server>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a sign may be due, or there is another server.
    pub fn wait(&self) {
        let servers = self.servers();
        let pause = pause(&servers);
        drop(self.changed.wait_timeout(servers, pause));
    }
}

/// How long it may take until the next sign is due.
fn pause(servers: &BTreeMap<String, Server>) -> Duration {
    servers.values().filter_map(interval).fold(LOOK, Duration::min)
}

/// Time between two signs of a server: two may fail within the grace. `None` if nobody waits for it.
fn interval(server: &Server) -> Option<Duration> {
    let grace = server.writer.grace;
    (!grace.is_zero()).then(|| (grace / 3).max(SHORTEST))
}

/// Returns the timeline that a server writes, or will after its crash; `None` if it writes none.
fn written_by(data: &DataDirectory) -> Option<TimelineId> {
    writes(data.control.state, data.recovery_mode()).then_some(data.control.timeline)
}

/// Whether a running server is a primary. One that crashed as a primary and comes back as a standby has the signal file
/// from its first moment, and `pg_control` says so only once it has replayed its own log to the end.
///
/// Source: `InitWalRecovery` and `ReadRecord` in `src/backend/access/transam/xlogrecovery.c`.
fn writes(state: DbState, mode: RecoveryMode) -> bool {
    let primary = match state {
        DbState::InProduction | DbState::InCrashRecovery => true,
        DbState::Startup
        | DbState::ShutDown
        | DbState::ShutDownInRecovery
        | DbState::ShuttingDown
        | DbState::InArchiveRecovery => false,
    };
    primary && mode == RecoveryMode::NoSignal
}

/// Whether a server has archived what is known to be finished: what lies before its last checkpoint. Where archiving
/// was switched off nothing waits, and whoever else archives its log must not be kept waiting for it.
fn has_archived(newest: Option<SegmentNo>, checkpoint: SegmentNo) -> bool {
    // On a timeline that has just begun nothing is finished.
    newest.is_none_or(|newest| newest.next() >= checkpoint)
}

impl House {
    /// Gives the signs that are due.
    pub(super) fn give_signs(&self) {
        if let Some(own) = self.limits().own {
            self.signs.take_up(&own.data_directory, &own.writer);
        }
        let due = |server: &Server| interval(server).is_some_and(|interval| server.heard.elapsed() >= interval);
        let all: Vec<Server> = self.signs.servers().values().filter(|server| due(server)).cloned().collect();
        for server in all {
            let spoken = self.speak_for(&server);
            if let Some(known) = self.signs.servers().get_mut(&server.writer.token) {
                known.failing = spoken.is_err();
                // For the others only files were looked at: that is done again soon.
                if matches!(spoken, Ok(Spoken::Given | Spoken::NotOwner)) {
                    known.heard = Instant::now();
                }
            }
            match spoken {
                Ok(spoken) => debug!(data = %server.data.display(), ?spoken, "a sign of life was due"),
                Err(error) => {
                    // Whatever is open may be what is wrong.
                    self.forget();
                    if !server.failing {
                        warn!(error = %one_line(&error, 400), "the archive cannot be told that the server is alive");
                    }
                }
            }
        }
    }

    fn speak_for(&self, server: &Server) -> Result<Spoken, RepoError> {
        let Ok(data) = DataDirectory::open(&server.data) else { return Ok(Spoken::Gone) };
        let Some(timeline) = written_by(&data).filter(|_| certainly_runs(&data.path)) else { return Ok(Spoken::Gone) };
        // Also where it cannot be seen: only what is idle for certain is spoken for.
        if waiting_in(&data.path.join("pg_wal")).map_or(true, |mut waiting| waiting.next().is_some()) {
            return Ok(Spoken::Waits);
        }
        let facts = LaneFacts::of(&data.control);
        let lane = self.lane(LaneId::first(facts.system_id), BUDGET)?.map(|(lane, _)| lane);
        let Some(lane) = lane.filter(|lane| lane.facts().fits(&facts)) else { return Ok(Spoken::Gone) };
        let size = data.control.segment_size;
        let newest = match lane.newest_segment(timeline)?.map(|newest| newest.name) {
            Some(WalFileName::Segment(name)) => name.number(size).ok(),
            _ => None,
        };
        if !has_archived(newest, size.segment_of(data.control.checkpoint)) {
            return Ok(Spoken::Waits);
        }
        Ok(match lane.give_sign(timeline, |token| server.writer.is(token), &server.writer.host)? {
            Signed::Given => Spoken::Given,
            Signed::NotOwner => Spoken::NotOwner,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn writer(token: &str, grace: Duration) -> Writer {
        Writer {
            token: token.to_owned(),
            former: None,
            host: "db1".to_owned(),
            grace,
            takes_over: None,
            follows: false,
        }
    }

    #[test]
    fn only_a_primary_writes_and_one_that_comes_back_as_a_standby_is_none_from_its_first_moment() {
        let primaries = [DbState::InProduction, DbState::InCrashRecovery];
        let others = [DbState::Startup, DbState::ShutDown, DbState::ShutDownInRecovery, DbState::ShuttingDown];
        for state in primaries {
            assert!(writes(state, RecoveryMode::NoSignal), "{state:?}");
            assert!(!writes(state, RecoveryMode::Standby) && !writes(state, RecoveryMode::Archive), "{state:?}");
        }
        for state in others.into_iter().chain([DbState::InArchiveRecovery]) {
            assert!(!writes(state, RecoveryMode::NoSignal), "{state:?}");
        }
    }

    #[test]
    fn who_finished_a_segment_and_did_not_archive_it_is_silent_though_nothing_waits() {
        let archived = |newest: Option<u64>, checkpoint| has_archived(newest.map(SegmentNo), SegmentNo(checkpoint));
        // The checkpoint is in the segment after it, or in one that a backup or a switch has finished since.
        assert!(archived(Some(7), 8) && archived(Some(8), 8) && archived(Some(9), 8));
        assert!(!archived(Some(6), 8) && !archived(Some(0), 8));
        assert!(archived(None, 8), "of a new timeline only the history is there");
    }

    #[test]
    fn signs_come_three_to_a_grace_and_nobody_waits_without_one() {
        let signs = Signs::default();
        assert_eq!(pause(&signs.servers()), LOOK);
        for (token, seconds, expected) in [("a", 0, 60), ("b", 900, 60), ("c", 30, 10), ("d", 1, 1)] {
            signs.take_up(Path::new("/data"), &writer(token, Duration::from_secs(seconds)));
            assert_eq!(pause(&signs.servers()), Duration::from_secs(expected), "{token}");
        }
        let intervals: Vec<_> = signs.servers().values().map(interval).collect();
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(intervals, [None, seconds(300), seconds(10), seconds(1)]);
    }
}
