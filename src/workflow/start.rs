//! Start a restored directory, wait until it has reached its target, and compare where it stands with the plan.
//!
//! PostgreSQL reports success also for a recovery that ended early. So success here is only what the plan said: the same
//! position, on the same timeline; anything else is a failed restore, whatever the server says.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::error::ErrorKind;
use crate::instance::{
    ConnectionError, ConnectionSettings, LibpqEnvironment, Programs, RecoveryState, SessionError, running_server,
};
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::timeline::{History, TimelineId};
use crate::restore::{Plan, Purpose};

const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What to start and how.
#[derive(Debug)]
pub struct Start<'a> {
    /// PostgreSQL's programs, of the directory's major.
    pub programs: &'a Programs,
    /// The restored directory.
    pub data_directory: &'a Path,
    /// Where its configuration is, if not in there.
    pub configuration_directory: Option<&'a Path>,
    /// What it was restored by.
    pub plan: &'a Plan,
    /// How to ask the server.
    pub environment: &'a LibpqEnvironment,
    /// How long recovery may take.
    pub patience: Duration,
}

/// Where the server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// The position that recovery reached, compared with the plan; a standby's is where it is now.
    pub reached: Lsn,
    /// The new timeline, if it was promoted.
    pub promoted_to: Option<TimelineId>,
    /// The time of the last transaction that was replayed, compared with the plan.
    pub last_transaction: Option<PgTime>,
}

/// Why the restored server is not what was planned.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The server did not start, or stopped.
    #[error("the server did not come up; the end of {} says: {said}", log.display())]
    NotUp {
        /// The server's log.
        log: PathBuf,
        /// Its last lines.
        said: String,
    },
    /// `pg_ctl` could not be run.
    #[error("run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server could not be asked.
    #[error("ask the restored server where it stands")]
    Ask {
        /// Why.
        #[from]
        source: SessionError,
    },
    /// The server cannot be reached as libpq's variables say.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// Recovery took too long.
    #[error("recovery has not reached its target after {} s; the server goes on, see {}", waited.as_secs(), log.display())]
    TooLong {
        /// How long it was waited for.
        waited: Duration,
        /// The server's log.
        log: PathBuf,
    },
    /// Recovery ended elsewhere.
    #[error(
        "recovery ended at {reached} on timeline {timeline}, the plan was {planned} on timeline {planned_timeline}: this is a failed restore, do not use it"
    )]
    Elsewhere {
        /// Where it ended.
        reached: Lsn,
        /// On which timeline.
        timeline: TimelineId,
        /// Where it should have.
        planned: Lsn,
        /// On which timeline.
        planned_timeline: TimelineId,
    },
    /// Recovery ended in the right place, after another commit than planned.
    #[error("recovery ended at {reached} as planned, but {difference}: this is a failed restore, do not use it")]
    OtherCommit {
        /// Where it ended.
        reached: Lsn,
        /// What the plan said, and what the server says.
        difference: String,
    },
    /// The new timeline's history is not there or makes no sense.
    #[error("the server opened for writing, and {} does not say where it left the old timeline", path.display())]
    NoHistory {
        /// The file.
        path: PathBuf,
    },
}

impl StartError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StartError::NotUp { .. } | StartError::Run { .. } | StartError::TooLong { .. } => ErrorKind::Unavailable,
            StartError::Ask { source } => source.kind(),
            StartError::Connection(_) => ErrorKind::Invalid,
            StartError::Elsewhere { .. } | StartError::OtherCommit { .. } | StartError::NoHistory { .. } => {
                ErrorKind::Corrupt
            }
        }
    }
}

/// Starts the server and returns once it stands where the plan said. One that stands elsewhere is stopped again.
pub fn start(start: &Start<'_>) -> Result<Started, StartError> {
    let log = start.data_directory.join("walvault-start.log");
    launch(start, &log)?;
    let outcome = wait(start, log);
    if outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Corrupt) {
        let stop = ["stop", "-s", "-m", "fast", "-D"];
        // The comparison's own error is the one to report.
        let _ = Command::new(start.programs.program("pg_ctl")).args(stop).arg(start.data_directory).status();
    }
    outcome
}

fn wait(start: &Start<'_>, log: PathBuf) -> Result<Started, StartError> {
    let settings = ConnectionSettings::resolve(None, start.environment, Some(start.data_directory))?;
    let deadline = Instant::now() + start.patience;
    loop {
        if running_server(start.data_directory).is_none() {
            return Err(not_up(&log));
        }
        let state = RecoveryState::ask(&settings)?;
        match (start.plan.purpose, state) {
            (Purpose::Standby, RecoveryState { in_recovery: true, replayed, last_transaction, .. }) => {
                return Ok(Started { reached: replayed.unwrap_or_default(), promoted_to: None, last_transaction });
            }
            (_, RecoveryState { paused: true, replayed: Some(reached), .. }) => {
                compare(start, reached)?;
                return compare_commit(
                    start,
                    &settings,
                    &state,
                    Started { reached, promoted_to: None, last_transaction: None },
                );
            }
            (_, RecoveryState { in_recovery: false, .. }) => {
                return compare_commit(start, &settings, &state, promoted(start)?);
            }
            _ => {}
        }
        if Instant::now() >= deadline {
            return Err(StartError::TooLong { waited: start.patience, log });
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn launch(start: &Start<'_>, log: &Path) -> Result<(), StartError> {
    let program = start.programs.program("pg_ctl");
    let seconds = start.patience.as_secs().max(1).to_string();
    let status = Command::new(&program)
        .args(["start", "-s", "-w", "-t", &seconds, "-o", &own_directory(start.data_directory), "-D"])
        .arg(start.configuration_directory.unwrap_or(start.data_directory))
        .arg("-l")
        .arg(log)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .map_err(|source| StartError::Run { program, source })?;
    if status.success() { Ok(()) } else { Err(not_up(log)) }
}

/// The option that keeps a server in this directory, whatever its configuration says: it may come from another place.
fn own_directory(data_directory: &Path) -> String {
    let path = data_directory.to_string_lossy().replace('\'', "'\\''");
    format!("-c 'data_directory={path}'")
}

fn not_up(log: &Path) -> StartError {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let said = lines[lines.len().saturating_sub(4)..].join(" | ");
    StartError::NotUp { log: log.to_path_buf(), said }
}

/// Reads from the new timeline's history where the old one was left: the server's own word, written for good.
fn promoted(start: &Start<'_>) -> Result<Started, StartError> {
    let wal = start.data_directory.join("pg_wal");
    let newest = newest_history(&wal).filter(|timeline| *timeline > start.plan.timeline());
    let Some(timeline) = newest else { return Err(StartError::NoHistory { path: wal }) };
    let path = wal.join(format!("{}.history", timeline.hex()));
    let text = std::fs::read_to_string(&path).map_err(|_| StartError::NoHistory { path: path.clone() })?;
    let history = History::parse(timeline, &text).map_err(|_| StartError::NoHistory { path: path.clone() })?;
    let last = history.forks().last().ok_or(StartError::NoHistory { path })?;
    compare(start, last.at)?;
    if last.parent != planned_timeline(start.plan) {
        return Err(elsewhere(start.plan, last.at, last.parent));
    }
    Ok(Started { reached: last.at, promoted_to: Some(timeline), last_transaction: None })
}

fn newest_history(wal: &Path) -> Option<TimelineId> {
    let names = std::fs::read_dir(wal).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let number = |name: String| u32::from_str_radix(name.strip_suffix(".history")?, 16).ok();
    names.filter_map(number).filter_map(TimelineId::new).max()
}

/// The timeline that the last record lies on: the branch may lead on to a younger one.
fn planned_timeline(plan: &Plan) -> TimelineId {
    let holds = |part: &&crate::pg::timeline::Stretch| part.end.is_none_or(|end| plan.point.reach <= end);
    plan.path.iter().find(holds).map_or(plan.timeline(), |part| part.timeline)
}

fn compare(start: &Start<'_>, reached: Lsn) -> Result<(), StartError> {
    match reached == start.plan.point.reach {
        true => Ok(()),
        false => Err(elsewhere(start.plan, reached, planned_timeline(start.plan))),
    }
}

/// Holds what the server replayed against the last commit that the plan found in the log: by the time of the last
/// transaction, which the server keeps, and by what its own commit log says of the transaction. A position alone is a
/// number, and another history has it too.
fn compare_commit(
    start: &Start<'_>,
    settings: &ConnectionSettings,
    state: &RecoveryState,
    started: Started,
) -> Result<Started, StartError> {
    let differs = |difference| StartError::OtherCommit { reached: started.reached, difference };
    let (planned, found) = (start.plan.last_seen, state.last_transaction);
    if planned != found {
        let said = |time: Option<PgTime>| time.map_or_else(|| "none".to_owned(), |time| time.to_string());
        let (planned, found) = (said(planned), said(found));
        return Err(differs(format!("the last transaction replayed is of {found}, in the plan it is of {planned}")));
    }
    if let Some(commit) = start.plan.last_commit {
        let status = RecoveryState::status_of(settings, commit.xid)?;
        if let Some(status) = status.filter(|status| status != "committed") {
            let xid = commit.xid;
            return Err(differs(format!("transaction {xid}, the last commit of the plan, is {status}")));
        }
    }
    Ok(Started { last_transaction: found, ..started })
}

fn elsewhere(plan: &Plan, reached: Lsn, timeline: TimelineId) -> StartError {
    let (planned, planned_timeline) = (plan.point.reach, planned_timeline(plan));
    StartError::Elsewhere { reached, timeline, planned, planned_timeline }
}
