//! `walvault restore`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use clap::ValueEnum;
use tracing::debug;

use super::Cli;
use super::context::{self, CommandError, PATIENT, libpq_environment, repository, settings, user_named};
use super::exit::{Fault, LEFT_OUT};
use super::output;
use super::plan::{TargetArgs, decide};
use crate::catalog::LaneCatalog;
use crate::clock;
use crate::config::Settings;
use crate::error::{self, ErrorKind};
use crate::instance::Programs;
use crate::progress::Progress;
use crate::repo::{LaneId, RepoError};
use crate::restore::{
    Budget, Databases, Destination, Held, Hold, Measured, PlaceError, Plan, Purpose, RecoveryCommand, RestoreError,
    RestoreReport, RestoredConfiguration, Selection, SelectionError, Tablespaces, Target, TargetAction, choices,
    interrupted, is_ours, perform, recovery_time,
};
use crate::view;
use crate::workflow::{ClosedDatabase, Start, Started, close_left_out, start};

/// Restore a backup into a new data directory, ready to recover to a target
///
/// Never guesses: without a target, without --as, or where two branches fit, it lists the choices. Exits 0 once the
/// directory is complete and durable, 4 if it is but for databases that were left out as asked; 2 if nothing fits the
/// target; 3 if the backup is not what it says it is; 64 and 78 for a wrong command line or configuration; 1 for everything
/// else. Until it exits 0 or 4 the directory cannot be started, and the same command goes on with it.
#[derive(clap::Args, Debug)]
pub(super) struct RestoreArgs {
    /// New data directory; must be empty, not exist, or hold what the same restore left when it was interrupted; with --delta
    /// one that is there
    directory: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// What the copy is for: takes the server's place, follows its primary, or stands beside it without reaching out
    #[arg(long = "as", value_name = "PURPOSE", help_heading = "Recovery")]
    purpose: Option<PurposeArg>,
    /// What the server does when the target is reached
    #[arg(long, value_name = "ACTION", default_value = "pause", help_heading = "Recovery")]
    target_action: ActionArg,
    /// New place of a tablespace
    #[arg(long = "tablespace", value_name = "OID=DIR", help_heading = "Places")]
    tablespaces: Vec<String>,
    /// Where tablespaces go that --tablespace does not name, each in a directory named by its number
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    tablespace_root: Option<PathBuf>,
    /// Where pg_wal lies, if not in the data directory
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    waldir: Option<PathBuf>,
    /// Where configuration files go that lay outside the data directory, such as in /etc; must be empty or not exist
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    config_dir: Option<PathBuf>,
    /// User that everything is given to, for a restore as root
    #[arg(long, value_name = "USER", help_heading = "Places")]
    owner: Option<String>,
    /// How a standby reaches its primary
    #[arg(long, value_name = "CONN", help_heading = "Recovery")]
    primary_conninfo: Option<String>,
    /// A setting of the copy's, such as port=5433
    #[arg(long = "set", value_name = "NAME=VALUE", help_heading = "Recovery")]
    settings: Vec<String>,
    /// Start the server, wait for the target, and compare where it stands with the plan
    #[arg(long, help_heading = "Recovery")]
    start: bool,
    /// Folder of PostgreSQL's programs, for --start [default: where distributions put them, then PATH]
    #[arg(long, value_name = "DIR", requires = "start", help_heading = "Recovery")]
    pg_bin: Option<PathBuf>,
    /// Seconds that recovery may take, for --start
    #[arg(long, value_name = "SECONDS", requires = "start", default_value_t = 86400, help_heading = "Recovery")]
    start_timeout: u64,
    /// Days that expire leaves alone what the recovery reads, once the files are in place; a recovery that --start sees
    /// open for writing needs none [default: one, and the time that the replay takes at 4 MiB a second]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(0..=90), help_heading = "Recovery")]
    hold_days: Option<u64>,
    /// Bring a directory that is there to the backup, such as a former primary's: only what differs is written, and what the
    /// backup does not have is removed. Only of the same system, and never under a running server
    #[arg(long)]
    delta: bool,
    /// Bring back only this database, those that initdb makes, and what all databases share. The others cannot be entered,
    /// and are to be dropped. Repeatable; the copy is a clone
    #[arg(long, value_name = "NAME", help_heading = "Databases", conflicts_with_all = ["exclude_database", "delta"])]
    only_database: Vec<String>,
    /// Leave this database out: it cannot be entered, and is to be dropped. Repeatable; the copy is a clone
    #[arg(long, value_name = "NAME", help_heading = "Databases", conflicts_with = "delta")]
    exclude_database: Vec<String>,
    /// Drop the databases that were left out once the server has opened for writing
    #[arg(long, help_heading = "Databases", requires = "start")]
    drop_excluded: bool,
    /// MiB of memory to use at most, at least 40 [default: the setting memory]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(40..=1 << 20))]
    memory: Option<u64>,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum PurposeArg {
    Primary,
    Standby,
    Clone,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum ActionArg {
    Pause,
    Promote,
    Shutdown,
}

pub(super) fn run(cli: &Cli, args: &RestoreArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let target = args.target.target()?;
    let purpose = args.purpose()?;
    let tablespaces = args.tablespaces()?;
    let chosen = args.settings()?;
    let lane = context::lane(cli, &repository(&settings, PATIENT)?)?;
    let decided = purpose.is_some() && (target.is_some() || purpose == Some(Purpose::Standby));
    // Before anything is looked for: what is found stays.
    let hold = decided.then(|| Hold::begin(&lane).map_err(|problem| not_held(&problem)).ok()).flatten();
    let catalogue = LaneCatalog::load(&lane)?;
    let (purpose, target) = match (purpose, target) {
        (Some(Purpose::Standby), Some(_)) => {
            return Err(CommandError::misuse(
                "a standby has no target: it follows its primary, and every later failover",
            ));
        }
        (Some(Purpose::Standby), None) if args.target.timeline.is_some() => {
            return Err(CommandError::misuse(
                "a standby has no --timeline: it follows the newest, and every later failover",
            ));
        }
        (Some(Purpose::Standby), None) => (Purpose::Standby, Target::Latest),
        (Some(purpose), Some(target)) => (purpose, target),
        (purpose, target) => {
            let choices = choices(&lane, &catalogue)?;
            output::complain(view::plan::choices_text(&catalogue, &choices).trim_end());
            let missing = match (purpose, target) {
                (None, None) => "a target and --as",
                (None, Some(_)) => "--as",
                _ => "a target",
            };
            return Err(CommandError::misuse(format!("restore never guesses: {missing} must be given"))
                .hint("for example --to-latest --as primary; see `walvault restore --help`"));
        }
    };
    let databases = args.databases(purpose)?;
    let mut request = args.target.request(target, purpose)?;
    let interrupted = interrupted(&args.directory).map_err(RestoreError::from)?;
    let continued =
        interrupted.filter(|_| !args.delta).filter(|it| it.lane == lane.id().to_string() && it.is_for(&request));
    if let Some(continued) = &continued {
        output::complain(&format!("going on with the interrupted restore in {}", args.directory.display()));
        // A newer backup may have been taken meanwhile; what is there is of the older one.
        request.backup.get_or_insert_with(|| continued.backup.clone());
    }
    let plan = decide(&lane, &catalogue, &request).map_err(|error| match &continued {
        Some(continued) => error.hint(format!(
            "the interrupted restore in {} began with backup {}; to use another, remove the directory",
            args.directory.display(),
            continued.backup
        )),
        None => error,
    })?;
    if let Some(hold) = &hold {
        narrow(hold, &plan)?;
    }
    let estimate = context::pace(&settings).map(|file| file.load()).unwrap_or_default().estimate(&plan);
    output::complain(view::plan::text(&plan, &estimate).trim_end());
    let selection = Selection::decide(&lane, &catalogue, &plan, &databases)?;
    if let Some(words) = view::restore::left_out_plan(&selection) {
        output::complain(&words);
    }
    if let Some(configuration) = &plan.manifest.root.configuration
        && args.start
        && args.config_dir.is_none()
    {
        let text = "--start needs --config-dir: the configuration lay outside the data directory, at";
        return Err(CommandError::misuse(format!("{text} {}", configuration.config_file)));
    }
    let destination = Destination {
        data_directory: args.directory.clone(),
        tablespaces,
        wal_directory: args.waldir.clone(),
        allowed_tablespace_paths: args.target.allow_tablespace_path.clone(),
        configuration_directory: args.config_dir.clone(),
        owner: args.owner()?,
        command: recovery_command(&settings, lane.id())?,
        action: args.action(),
        primary_conninfo: args.primary_conninfo.clone(),
        writer: context::writer_in(&args.directory, &settings).token,
        settings: chosen,
        budget: Budget::new(settings.memory(args.memory), settings.threads()),
        delta: args.delta,
        selection,
    };
    let started = Instant::now();
    let programs = args.start.then(|| programs(args, plan.manifest.envelope.major)).transpose()?;
    let progress = Progress::default();
    let report = output::shown("written", &progress, cli.json, || perform(&lane, &plan, &destination, &progress))?;
    let elapsed = started.elapsed();
    // One that went on with another wrote only a part.
    let measured = (report.kept.is_none()).then(|| Measured::new(report.bytes, elapsed, clock::now()));
    let begun = Instant::now();
    let running = programs.map(|programs| args.start(&programs, &plan, &report)).transpose();
    // A standby replays on and on.
    let reached = running.as_ref().ok().and_then(Option::as_ref).filter(|_| plan.purpose != Purpose::Standby);
    let replayed = reached.map(|running| {
        let bytes = running.reached - plan.manifest.envelope.start_lsn;
        Measured::new(bytes, begun.elapsed(), clock::now())
    });
    if let Some(Err(problem)) = context::pace(&settings).map(|file| file.note(measured, replayed)) {
        debug!(error = %problem, "how fast the restore went is not remembered");
    }
    let running = running?;
    let closed = args.close(&report, running.as_ref())?;
    // One that pauses at its target reads again if it is stopped and started, for another target or the same.
    let over = running.as_ref().is_some_and(|running| running.promoted_to.is_some());
    let held_until = hold.filter(|_| !over).and_then(|hold| args.leave(hold, &plan));
    if cli.json {
        let mut value = view::restore::json(&plan, &report, running.as_ref(), closed.as_deref());
        value["held_until"] = held_until.map(view::human::rfc3339).into();
        output::print_json(&value);
    } else {
        if let Some(until) = held_until {
            output::complain(&format!(
                "expire leaves what the recovery reads alone until {}",
                view::human::time(until)
            ));
        }
        let running = running.as_ref();
        output::print(&view::restore::text(&plan, &report, destination.action, elapsed, running, closed.as_deref()));
    }
    let gone = closed.is_some_and(|closed| closed.iter().all(|database| database.dropped));
    Ok(if report.left_out.is_empty() || gone { 0 } else { LEFT_OUT })
}

/// Says that nothing keeps expire from what is read. No reason not to restore.
fn not_held(problem: &RepoError) {
    output::complain(&format!(
        "warning: expire is not told that this restore reads ({}); if it takes longer than expire_grace, expire must not \
         run meanwhile",
        error::chain(problem)
    ));
}

/// Lets go of everything that the plan does not read.
fn narrow(hold: &Hold, plan: &Plan) -> Result<(), CommandError> {
    match hold.narrow(plan) {
        Ok(Held::Safe) => Ok(()),
        Ok(Held::MayBeGoing) => {
            let text = format!("backup {} or log that follows it is being expired", plan.manifest.envelope.backup);
            Err(CommandError::new(Fault::Failed(ErrorKind::Busy), text)
                .hint("expire was at work before this began: give the command again when it is done"))
        }
        Err(problem) => {
            not_held(&problem);
            Ok(())
        }
    }
}

fn is_setting(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
}

fn programs(args: &RestoreArgs, major: u16) -> Result<Programs, CommandError> {
    let path: Vec<PathBuf> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    let found = Programs::find(major, args.pg_bin.as_deref(), &path);
    found.map_err(|error| CommandError::new(Fault::Configuration, error))
}

impl RestoreArgs {
    /// Leaves what was held to the recovery; returns until when.
    fn leave(&self, hold: Hold, plan: &Plan) -> Option<DateTime<Utc>> {
        let lasting = self.hold_days.map_or_else(|| recovery_time(plan), |days| Duration::from_secs(days * 86400));
        if lasting.is_zero() {
            return None;
        }
        hold.leave(lasting).map_err(|problem| not_held(&problem)).ok()
    }

    fn start(&self, programs: &Programs, plan: &Plan, report: &RestoreReport) -> Result<Started, CommandError> {
        let environment = libpq_environment();
        let started = start(&Start {
            programs,
            data_directory: &report.data_directory,
            configuration_directory: match &report.configuration {
                RestoredConfiguration::PutUp(placed) => Some(&placed.directory),
                _ => None,
            },
            plan,
            environment: &environment,
            patience: Duration::from_secs(self.start_timeout),
        });
        started.map_err(|error| CommandError::new(Fault::Failed(error.kind()), error))
    }

    /// Which databases come back.
    fn databases(&self, purpose: Purpose) -> Result<Databases, CommandError> {
        let databases = match (self.only_database.as_slice(), self.exclude_database.as_slice()) {
            ([], []) => Databases::All,
            ([], left_out) => Databases::Except(left_out.to_vec()),
            (only, _) => Databases::Only(only.to_vec()),
        };
        match (&databases, purpose) {
            (Databases::All, _) if self.drop_excluded => {
                Err(CommandError::misuse("--drop-excluded goes with --only-database or --exclude-database"))
            }
            (Databases::All, _) => Ok(databases),
            // It would go on archiving as the whole cluster.
            (_, Purpose::Primary | Purpose::Standby) => {
                Err(CommandError::misuse("a copy without some of its databases stands in for nobody: give --as clone"))
            }
            _ if self.drop_excluded && !matches!(self.target_action, ActionArg::Promote) => {
                Err(CommandError::misuse("--drop-excluded needs --target-action promote"))
            }
            _ => Ok(databases),
        }
    }

    /// Closes the databases that were left out, if the server is open for writing.
    fn close(
        &self,
        report: &RestoreReport,
        running: Option<&Started>,
    ) -> Result<Option<Vec<ClosedDatabase>>, CommandError> {
        let open = running.is_some_and(|running| running.promoted_to.is_some());
        if !open || report.left_out.is_empty() {
            return Ok(None);
        }
        let closed = close_left_out(&report.data_directory, &libpq_environment(), self.drop_excluded);
        closed.map(Some).map_err(|error| {
            CommandError::new(Fault::Failed(error.kind()), error).hint(
                "the server runs at its target; mend what is in the way, and drop these databases before it is used: a database \
                 made from one of them as its template could be entered, and would be empty",
            )
        })
    }

    fn purpose(&self) -> Result<Option<Purpose>, CommandError> {
        let purpose = self.purpose.map(|purpose| match purpose {
            PurposeArg::Primary => Purpose::Primary,
            PurposeArg::Standby => Purpose::Standby,
            PurposeArg::Clone => Purpose::Clone,
        });
        if self.start && matches!(self.target_action, ActionArg::Shutdown) {
            return Err(CommandError::misuse("--start compares a running server: choose another --target-action"));
        }
        if self.primary_conninfo.is_some() && purpose != Some(Purpose::Standby) {
            return Err(CommandError::misuse("--primary-conninfo is for --as standby"));
        }
        Ok(purpose)
    }

    fn action(&self) -> TargetAction {
        match self.target_action {
            ActionArg::Pause => TargetAction::Pause,
            ActionArg::Promote => TargetAction::Promote,
            ActionArg::Shutdown => TargetAction::Shutdown,
        }
    }

    fn settings(&self) -> Result<Vec<(String, String)>, CommandError> {
        let parse = |text: &String| match text.split_once('=') {
            Some((name, _)) if is_ours(&name.to_ascii_lowercase()) => {
                Err(CommandError::misuse(format!("--set {text}: restore sets {name} itself")))
            }
            Some((name, value)) if is_setting(name) && !value.contains(['\n', '\r', '\0']) => {
                Ok((name.to_ascii_lowercase(), value.to_owned()))
            }
            _ => Err(CommandError::misuse(format!("--set {text}: write a setting's name, = and its value"))),
        };
        self.settings.iter().map(parse).collect()
    }

    /// User and group of `--owner`. Without it a restore as root is pointless: no server starts as root.
    fn owner(&self) -> Result<Option<(u32, u32)>, CommandError> {
        match &self.owner {
            Some(name) => {
                let found = user_named(name);
                found.map(Some).ok_or_else(|| CommandError::misuse(format!("--owner {name}: there is no such user")))
            }
            None => {
                if rustix::process::geteuid().is_root() {
                    output::complain(
                        "warning: the files will belong to root, and no server starts as root: give --owner",
                    );
                }
                Ok(None)
            }
        }
    }

    fn tablespaces(&self) -> Result<Tablespaces, CommandError> {
        let mut mapped = BTreeMap::new();
        for text in &self.tablespaces {
            let parsed = text.split_once('=').and_then(|(oid, place)| Some((oid.parse().ok()?, PathBuf::from(place))));
            let Some((oid, place)) = parsed.filter(|(_, place)| place.is_absolute()) else {
                let problem =
                    format!("--tablespace {text}: write the tablespace's number, = and an absolute directory");
                return Err(CommandError::misuse(problem));
            };
            if mapped.insert(oid, place).is_some() {
                return Err(CommandError::misuse(format!("--tablespace gives two places for {oid}")));
            }
        }
        Ok(Tablespaces { mapped, root: self.tablespace_root.clone() })
    }
}

/// The command that the copy fetches WAL with: this binary, this repository, this lane.
fn recovery_command(settings: &Settings, lane: LaneId) -> Result<RecoveryCommand, CommandError> {
    let binary = std::env::current_exe().and_then(std::fs::canonicalize);
    let binary = binary.map_err(|error| CommandError::new(Fault::Failed(ErrorKind::Internal), error))?;
    let mut words = vec![binary.to_string_lossy().into_owned()];
    words.extend(["--repo".to_owned(), settings.url.to_string(), "--cluster".to_owned(), settings.cluster.clone()]);
    if let Some(file) = &settings.file {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        words.extend(["--config".to_owned(), file.to_string_lossy().into_owned()]);
    }
    words.extend(["--lane".to_owned(), lane.to_string(), "wal".to_owned(), "fetch".to_owned()]);
    Ok(RecoveryCommand { words })
}

impl From<SelectionError> for CommandError {
    fn from(error: SelectionError) -> Self {
        let fault = match &error {
            SelectionError::Log(_) => Fault::Failed(error.kind()),
            _ => Fault::Usage,
        };
        Self::new(fault, error)
    }
}

impl From<RestoreError> for CommandError {
    fn from(error: RestoreError) -> Self {
        let hint = match &error {
            RestoreError::Place(PlaceError::NotEmpty { .. }) => {
                Some("restore into a new directory, or, if it is this cluster's, give --delta")
            }
            RestoreError::Place(PlaceError::Running { .. }) => Some("stop the server, or restore elsewhere"),
            RestoreError::Place(PlaceError::OtherRestore { .. }) => {
                Some("give the first command again to finish that one, or remove what it left")
            }
            RestoreError::Place(PlaceError::Foreign { .. }) => {
                Some("move it away to go on, or restore into a new directory")
            }
            RestoreError::Place(PlaceError::Started { .. } | PlaceError::Mark { .. }) => {
                Some("restore into a new directory")
            }
            RestoreError::Place(_) => None,
            error if matches!(error.kind(), ErrorKind::Full | ErrorKind::Denied | ErrorKind::Unavailable) => {
                Some("mend it and give the same command again: it goes on with what is there")
            }
            _ => None,
        };
        let fault = match &error {
            RestoreError::OtherSystem { .. } | RestoreError::Place(PlaceError::OtherSystem { .. }) => {
                Fault::NotThisLane
            }
            error => Fault::Failed(error.kind()),
        };
        Self { fault, error: Box::new(error), hint: hint.map(str::to_owned) }
    }
}
