//! `walvault wal fetch`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::context::{self, CommandError, end_after, lenient_settings, repository};
use super::exit::{Fault, PROVEN_ABSENT, Role, failure};
use super::{Cli, LINE_BYTES, helper, output};
use crate::agent::{Asked, Brought, Wanted};
use crate::archive::{Caller, FetchBudgets, FetchError, Fetched, Fetcher, copy_own_history, history_in, never_exists};
use crate::config::Settings;
use crate::error::{self, ErrorKind};
use crate::format::FormatError;
use crate::format::recovery_plan::{RECOVERY_PLAN_PATH, RecoveryPlan};
use crate::instance::{DataDirectory, LocateError, RecoveryMode};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::{NameError, WalFileName};
use crate::repo::{Lane, LaneId, Repository};

/// Fetch one WAL file
///
/// Set as `restore_command = '/usr/bin/walvault --cluster main wal fetch %f "%p"'`. Exits 0 once the file is in place and
/// verified; 1 if it is proven not to exist; above 125 for everything else, so that recovery stops instead of taking an
/// error for the end of the log. On a standby, which asks again, everything but success exits 1. Silent on success and on
/// proven absence.
#[derive(clap::Args, Debug)]
pub(super) struct FetchArgs {
    /// Name of the file (`%f`)
    pub(super) name: String,
    /// Where to put it, relative to the data directory (`%p`)
    pub(super) destination: PathBuf,
    /// Start no helper, however many segments are fetched in a row
    #[arg(long)]
    pub(super) no_helper: bool,
}

/// What is left for the work itself, however long the agent took.
const LEAST: Duration = Duration::from_secs(1);
pub(super) const SEE_LIST: &str = "see `walvault wal list`; the archive is not complete";

impl FetchArgs {
    /// The words that stand for the file.
    pub fn files(&self) -> Vec<String> {
        vec![self.name.clone(), self.destination.display().to_string()]
    }
}

pub(super) fn run(cli: &Cli, args: &FetchArgs) -> Result<u8, CommandError> {
    let began = Instant::now();
    let settings = lenient_settings(cli)?;
    settings.unknown.iter().for_each(|line| output::complain(&format!("walvault: warning: {line}")));
    let mode = RecoveryMode::of_wal_path(&args.destination, settings.data_directory().as_deref());
    let standby_hole = settings.seconds("standby_hole_timeout");
    let (budget, limit) = match mode {
        RecoveryMode::Standby => {
            let budget = settings.seconds("standby_timeout");
            // Waiting for a hole to close is longer than waiting for an answer, and includes it.
            (budget, budget + standby_hole)
        }
        RecoveryMode::Archive | RecoveryMode::NoSignal => {
            let budget = settings.seconds("fetch_timeout");
            (budget, budget)
        }
    };
    let role = Role::Fetch(mode);
    end_after(limit, format!("fetch {}", args.name), failure(role, Fault::Failed(ErrorKind::Unavailable)));
    let name: WalFileName = args.name.parse().map_err(|error: NameError| CommandError::new(Fault::Usage, error))?;
    if never_exists(&name) {
        return Ok(PROVEN_ABSENT);
    }
    let hole = settings.seconds("hole_timeout");
    let server = DataDirectory::of_wal_path(&args.destination, settings.data_directory().as_deref());
    // The server's own copy of a history is as good, so the archive is not waited for as long. A recovery that is told to
    // recover can stop and be started again; a promotion, which has removed its signal file by then, cannot.
    let own = OwnHistory::of(&name, &server).filter(|_| mode != RecoveryMode::Archive);
    let patient = |time: Duration| if own.is_some() { time.min(settings.seconds("standby_timeout")) } else { time };
    let (budget, limit) = (patient(budget), patient(limit));
    let asked = match &server {
        Ok(server) => ask(cli, args, mode, &name, server, &settings, (budget, limit, standby_hole))?,
        Err(_) => Asked::Nobody,
    };
    let itself = || {
        // Waiting for the agent took of the time; what is left is enough for one look.
        let left = limit.saturating_sub(began.elapsed()).max(LEAST);
        let budgets = FetchBudgets { hole: hole.min(left.mul_f32(0.9)), standby_hole: standby_hole.min(left) };
        fetch(cli, args, mode, &name, &repository(&settings, budget.min(left))?, budgets, &server)
    };
    let answer = match asked {
        Asked::Answered(Brought::InPlace) => Ok(0),
        Asked::Answered(Brought::ProvenAbsent) => Ok(PROVEN_ABSENT),
        Asked::Settled(failure) => Err(failure.into()),
        Asked::Unsettled(_, note) => itself().inspect(|_| note.did_it_myself()),
        Asked::Nobody => itself().inspect(|status| {
            // Without a signal file nothing is fetched ahead.
            let recovers = *status == 0 && mode != RecoveryMode::NoSignal;
            if let (Ok(server), WalFileName::Segment(segment), true) = (&server, &name, recovers && !args.no_helper) {
                helper::after_fetch(cli, &settings, server, *segment);
            }
        }),
    };
    match (answer, own) {
        (Err(failure), Some(own)) => own.instead(args, failure),
        (answer, _) => answer,
    }
}

/// The history of a timeline, in the server's own `pg_wal`.
struct OwnHistory<'a> {
    wal: PathBuf,
    name: &'a WalFileName,
}

impl<'a> OwnHistory<'a> {
    fn of(name: &'a WalFileName, server: &Result<DataDirectory, LocateError>) -> Option<Self> {
        let wal = server.as_ref().ok()?.path.join("pg_wal");
        let WalFileName::History(timeline) = name else { return None };
        matches!(history_in(&wal, *timeline), Ok(Some(_))).then_some(Self { wal, name })
    }

    /// Hands it over in place of what the archive failed to give.
    fn instead(&self, args: &FetchArgs, failure: CommandError) -> Result<u8, CommandError> {
        match copy_own_history(&self.wal, self.name, &args.destination) {
            Ok(true) => {
                let room = LINE_BYTES - 120;
                let problem = error::one_line(failure.error.as_ref(), room);
                output::complain(&format!("walvault: warning: {problem}; the server's own {} was used", self.name));
                Ok(0)
            }
            Ok(false) | Err(_) => Err(failure),
        }
    }
}

/// Asks the cluster's agent.
fn ask(
    cli: &Cli,
    args: &FetchArgs,
    mode: RecoveryMode,
    name: &WalFileName,
    server: &DataDirectory,
    settings: &Settings,
    (request, limit, standby_hole): (Duration, Duration, Duration),
) -> Result<Asked<Brought>, CommandError> {
    let first = LaneId::first(server.control.system_id);
    let lane = match cli.lane.as_deref().map(str::parse::<LaneId>) {
        None => first,
        Some(Ok(named)) if named.system_id() == first.system_id() => named,
        // What is wrong with it is told without the agent.
        Some(_) => return Ok(Asked::Nobody),
    };
    let share = context::agents_share(limit);
    let most = share.mul_f32(0.9);
    let wanted = Wanted {
        name,
        destination: &args.destination,
        lane,
        segment_size: server.control.segment_size,
        caller: &caller(args, mode, Some(server))?,
        replayed: replayed(server),
        signalled: mode != RecoveryMode::NoSignal,
        request: request.min(most),
        budgets: FetchBudgets {
            hole: settings.seconds("hole_timeout").min(most),
            standby_hole: standby_hole.min(most),
        },
    };
    Ok(context::agent(settings).fetch(&wanted, share))
}

fn fetch(
    cli: &Cli,
    args: &FetchArgs,
    mode: RecoveryMode,
    name: &WalFileName,
    repository: &Repository,
    budgets: FetchBudgets,
    server: &Result<DataDirectory, LocateError>,
) -> Result<u8, CommandError> {
    let caller = caller(args, mode, server.as_ref().ok())?;
    let lane = match server {
        Ok(server) if cli.lane.is_none() => lane_of(server, repository)?,
        Ok(server) => of_server(context::lane(cli, repository)?, server)?,
        Err(_) => context::lane(cli, repository)?,
    };
    let replayed = server.as_ref().ok().and_then(replayed);
    match Fetcher::new(&lane, caller, budgets).having_replayed(replayed).fetch(name, &args.destination)? {
        Fetched::InPlace => Ok(0),
        Fetched::ProvenAbsent(_) => Ok(PROVEN_ABSENT),
    }
}

/// How far the server has certainly replayed, and on which timeline.
fn replayed(server: &DataDirectory) -> Option<(TimelineId, Lsn)> {
    server.control.min_recovery_point.map(|point| (point.timeline, point.lsn))
}

/// The lane that the server itself writes to, and no other.
fn lane_of(server: &DataDirectory, repository: &Repository) -> Result<Lane, CommandError> {
    let id = LaneId::first(server.control.system_id);
    let lane = repository.lane(id)?;
    lane.ok_or_else(|| {
        let text = format!("the repository has no lane {id}: nothing was archived for this server yet");
        CommandError::new(Fault::Failed(ErrorKind::NotFound), text)
    })
}

/// A lane that was named must still be this server's: WAL of another would be worse than none.
fn of_server(lane: Lane, server: &DataDirectory) -> Result<Lane, CommandError> {
    if lane.id().system_id() == server.control.system_id {
        return Ok(lane);
    }
    let text = format!("lane {} is not of this server, which is system {}", lane.id(), server.control.system_id);
    Err(CommandError::new(Fault::NotThisLane, text))
}

fn caller(args: &FetchArgs, mode: RecoveryMode, server: Option<&DataDirectory>) -> Result<Caller, CommandError> {
    // PostgreSQL asks for RECOVERYXLOG or RECOVERYHISTORY. `pg_rewind` wants the file under its own name, in the data
    // directory of a server that is not running; a script between PostgreSQL and us may want that name too.
    let own_name = args.destination.file_name().is_some_and(|last| last.to_str() == Some(args.name.as_str()));
    let idle = server.is_some_and(|server| !server.in_use());
    match mode {
        _ if own_name && idle => Ok(Caller::Exact),
        RecoveryMode::Standby => Ok(Caller::Standby),
        RecoveryMode::Archive | RecoveryMode::NoSignal => {
            Ok(Caller::Recovery(server.map(plan_of).transpose()?.flatten()))
        }
    }
}

/// Reads the plan that a restore left. It is void once the server is on a timeline that the plan does not pass: then that
/// recovery has ended, and this is another one. And it is void once somebody changed the target that it was made for:
/// without that target PostgreSQL would take "not needed" for the end of the log.
fn plan_of(server: &DataDirectory) -> Result<Option<RecoveryPlan>, CommandError> {
    let failed = |error: FormatError| CommandError::new(Fault::Failed(error.kind()), error);
    let bytes = match std::fs::read(server.path.join(RECOVERY_PLAN_PATH)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CommandError::new(Fault::Failed(ErrorKind::Unavailable), error)),
    };
    let plan = RecoveryPlan::decode(&bytes).map_err(failed)?;
    let configuration = std::fs::read(server.path.join("postgresql.auto.conf")).unwrap_or_default();
    let valid = plan.system_id == server.control.system_id
        && plan.passes(server.control.timeline)
        && plan.is_target_of(&String::from_utf8_lossy(&configuration));
    Ok(valid.then_some(plan))
}

impl From<FetchError> for CommandError {
    fn from(error: FetchError) -> Self {
        let fault = Fault::Failed(error.kind());
        let hint = match &error {
            FetchError::Hole { .. } => Some(SEE_LIST),
            error if error.kind() == ErrorKind::Corrupt => Some("the stored object is damaged; look for another copy"),
            _ => None,
        };
        Self { fault, error: Box::new(error), hint: hint.map(str::to_owned) }
    }
}
