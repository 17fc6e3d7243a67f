//! `walvault backup`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use tokio_postgres::error::SqlState;

use super::Cli;
use super::backup_source::{Named, Source, SourceArg};
use super::context::{CommandError, PATIENT, libpq_environment, repository, settings};
use super::exit::Fault;
use super::interrupt;
use super::output;
use super::wal_index;
use crate::archive::{Archived, PushOptions, Writer};
use crate::backup::{BackupError, BackupOptions, BackupReport, Doubted, RUN, Rate, Wanted, annotations, taken_in_run};
use crate::catalog::LaneCatalog;
use crate::clock;
use crate::config::Settings;
use crate::error::{self, ErrorKind};
use crate::format::manifest::Envelope;
use crate::instance::{ConnectionSettings, LocateError, ServerRole, SessionError, choose_host};
use crate::metrics::{BackupFacts, backup_text};
use crate::progress::Progress;
use crate::repo::Repository;
use crate::view;

/// Take a backup of a running server
///
/// Builds on the newest backup there is: what did not change since is not stored again, and the new one restores alone.
/// Reads the data directory where it can be seen, which takes a user that may read it; elsewhere the server sends its
/// files over the replication protocol, which takes a user with the attribute REPLICATION. Exits 0 once the backup is
/// committed and the WAL that it needs is verified in the archive, or --only-if-role says that there is nothing to do,
/// or --run that it is done; 2 if another backup of this server is at work; 3 if that WAL did not arrive; 64 and 78 for
/// a wrong command line or configuration; 1 for everything else. Until it exits 0 there is no backup.
#[derive(clap::Args, Debug)]
pub(super) struct BackupArgs {
    /// Where the files come from [default: local where the server's data directory can be seen, else remote]
    #[arg(long, value_name = "SOURCE")]
    from: Option<SourceArg>,
    /// Data directory [default: the setting pgdata, then where the server says]
    #[arg(long, value_name = "DIR")]
    pgdata: Option<PathBuf>,
    /// Connection string or URI [default: libpq's variables, then the server in --pgdata]
    #[arg(long, value_name = "CONN")]
    dbname: Option<String>,
    /// Ask for an immediate checkpoint instead of waiting for the next one
    #[arg(long)]
    fast: bool,
    /// Store everything, whatever earlier backups have
    #[arg(long, conflicts_with = "read_all")]
    full: bool,
    /// Read everything and compare it with the backup before, also where the log or the server's summaries say what changed
    #[arg(long)]
    read_all: bool,
    /// Stream the WAL that the backup needs into the archive too, beside it: for a server that archives nothing, or whose
    /// archive_command fails. Takes a second connection, and a replication slot while the backup runs; --from remote
    #[arg(long)]
    with_wal: bool,
    /// Replication slot that keeps the WAL for --with-wal [default: one that is gone with the connection]
    #[arg(long, value_name = "NAME", requires = "with_wal", value_parser = slot_name)]
    slot: Option<String>,
    /// MiB of memory to use at most, at least 40 [default: the setting memory]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(40..=1 << 20))]
    memory: Option<u64>,
    /// Read at most so many bytes of the data directory in a second, with all threads together, such as 50MiB
    #[arg(long, value_name = "BYTES")]
    rate_limit: Option<Rate>,
    /// Store at most so many bytes in a second, with all threads together, such as 20MiB
    #[arg(long, value_name = "BYTES")]
    send_limit: Option<Rate>,
    /// Go on at full speed also while the server's disk answers more slowly than when it was quiet
    #[arg(long)]
    no_yield: bool,
    /// Note about the backup, shown by show and list --json; may be repeated
    #[arg(long = "annotation", value_name = "KEY=VALUE")]
    annotations: Vec<String>,
    /// Do nothing and exit 0 unless the server has this role, so that every host of a cluster can have the same timer
    #[arg(long, value_name = "ROLE")]
    only_if_role: Option<RoleArg>,
    /// Of several hosts, how far behind a standby may be that target_session_attrs=prefer-standby takes; with =standby, one that
    /// is further behind is refused [default: 300 where the primary is the other choice]
    #[arg(long, value_name = "SECONDS")]
    max_standby_lag: Option<u32>,
    /// Name of this run, noted with the backup: if one of the last backups has it, do nothing and exit 0
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    /// Write what became of it to this file too, for the textfile collector of Prometheus' node exporter
    #[arg(long, value_name = "FILE")]
    metrics_file: Option<PathBuf>,
    /// Wait for up to so many seconds first, by chance, so that many clusters do not begin at once
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    jitter: u32,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum RoleArg {
    Primary,
    Standby,
}

impl From<RoleArg> for ServerRole {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Primary => ServerRole::Primary,
            RoleArg::Standby => ServerRole::Standby,
        }
    }
}

pub(super) fn run(cli: &Cli, args: &BackupArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let (begun, started) = (clock::now(), Instant::now());
    let outcome = take(cli, args, &settings);
    if let Some(file) = &args.metrics_file {
        let taken = outcome.as_ref().ok().and_then(Option::as_ref).map(|envelope| {
            let committed = clock::now().timestamp().cast_unsigned();
            [committed, started.elapsed().as_secs(), envelope.bytes, envelope.stored_bytes]
        });
        let attempted = begun.timestamp().cast_unsigned();
        let facts = BackupFacts { attempted, failed: outcome.is_err(), taken };
        output::write_metrics(file, |before| backup_text(&settings.cluster, facts, before));
    }
    outcome.map(|_| 0)
}

/// Takes the backup and says so; returns what was committed, `None` if nothing was to be done.
fn take(cli: &Cli, args: &BackupArgs, settings: &Settings) -> Result<Option<Envelope>, CommandError> {
    let run = args.run.iter().map(|run| format!("{RUN}={run}"));
    let notes: Vec<String> = args.annotations.iter().cloned().chain(run).collect();
    let annotations = annotations(&notes).map_err(|error| CommandError::new(Fault::Usage, error))?;
    let data_directory = args.pgdata.clone().or_else(|| settings.data_directory());
    let connection =
        ConnectionSettings::resolve(args.dbname.as_deref(), &libpq_environment(), data_directory.as_deref())
            .map_err(|error| CommandError::new(Fault::Configuration, error))?;
    // All places that were named, not the one that is taken this time.
    let (places, of_this_host) = connection.places();
    std::thread::sleep(by_chance(args.jitter));
    let from = match (args.with_wal, args.from) {
        (true, Some(SourceArg::Local)) => {
            return Err(CommandError::misuse("--with-wal streams from the server: it goes with --from remote"));
        }
        (true, None) => Some(SourceArg::Remote),
        (_, from) => from,
    };
    let named = Named::new(data_directory.as_deref(), connection.hosts());
    let connection = one_host(connection, args.max_standby_lag)?;
    let mut source = Source::choose(from, &connection, named)?;
    let role = source.role();
    if let Some(wanted) = args.only_if_role.map(ServerRole::from).filter(|wanted| *wanted != role) {
        skip(cli, wanted, role);
        return Ok(None);
    }
    let origin = source.origin();
    if origin.remote && args.from.is_none() {
        output::complain(&format!("the server sends its files over the replication protocol: {}", origin.reason));
    }
    let repository = repository(settings, PATIENT)?;
    if let Some(run) = &args.run
        && let Some(backup) = taken_in_run(&repository, source.system_id()?, run).map_err(BackupError::from)?
    {
        skip_run(cli, run, &backup);
        return Ok(None);
    }
    if let Source::Remote(remote) = &mut source {
        if args.with_wal {
            // The backup has the other threads.
            let options = PushOptions { level: settings.compression_level(), threads: 1 };
            let writer = Writer::streaming(&places, of_this_host, settings.seconds("owner_grace"));
            remote.stream_wal(args.slot.as_deref(), writer, options).map_err(BackupError::from)?;
        }
        if let Err(problem) = interrupt::cancel_on_signals(remote.cancellers()) {
            output::complain(&format!("warning: signals are not caught: {problem}"));
        }
    }
    let options = BackupOptions {
        data_directory,
        fast: args.fast,
        level: settings.compression_level(),
        budget: source.budget(settings.memory(args.memory), settings.threads()),
        wal_patience: settings.seconds("wal_timeout"),
        rate: args.rate_limit,
        send_rate: args.send_limit,
        yielding: !args.no_yield,
        annotations,
        basis: match (args.full, args.read_all) {
            (true, _) => Wanted::Full,
            (false, true) => Wanted::ReadAll,
            (false, false) => Wanted::Cheapest,
        },
    };
    let started = Instant::now();
    let progress = Progress::default();
    let performed = output::shown("read", &progress, cli.json, || source.perform(&repository, &options, &progress));
    // Between the first look and the lease another one may have committed.
    if let Err(BackupError::RunTaken { run, backup }) = &performed {
        skip_run(cli, run, backup);
        return Ok(None);
    }
    let report = performed.map_err(|error| beside_role(error, source.role()))?;
    if let Source::Remote(remote) = &source
        && let Some(streamed) = remote.streamed()
    {
        output::complain(&streamed_text(streamed));
    }
    warn(&report);
    index(&repository, &report);
    if cli.json {
        output::print_json(&view::backups::taken_json(&report, &origin));
    } else {
        output::print(&view::backups::taken_text(&report, &origin, started.elapsed()));
    }
    Ok(Some(report.envelope))
}

/// Settles on one of several hosts, where that takes more than the first one that will do, and says which and why.
fn one_host(settings: ConnectionSettings, lag: Option<u32>) -> Result<ConnectionSettings, BackupError> {
    let lag = lag.map(|seconds| Duration::from_secs(seconds.into()));
    Ok(match choose_host(&settings, lag)? {
        Some((only, why)) => {
            output::complain(&format!("backing up {why}"));
            only
        }
        None => settings,
    })
}

/// Says what helps beside a standby: the log that is missing is its primary's.
fn beside_role(error: BackupError, role: ServerRole) -> CommandError {
    let missing = matches!(error, BackupError::Wal { .. }) && error.is_missing_wal() && !error.is_anothers_wal();
    let missing = missing && role == ServerRole::Standby;
    let error = CommandError::from(error);
    let hint = "run select pg_switch_wal() on the primary if it is quiet; else look at pg_stat_archiver there";
    CommandError { hint: if missing { Some(hint.to_owned()) } else { error.hint }, ..error }
}

/// Says why there is nothing to do. No repository was opened and nothing was asked of the server but its role.
fn skip(cli: &Cli, wanted: ServerRole, role: ServerRole) {
    output::complain(&format!("no backup taken: the server is a {role}, and --only-if-role asks for a {wanted}"));
    if cli.json {
        output::print_json(&view::backups::skipped_json(wanted, role));
    }
}

/// Says that the run is over.
fn skip_run(cli: &Cli, run: &str, backup: &str) {
    output::complain(&format!("no backup taken: the run {run} took {backup}"));
    if cli.json {
        output::print_json(&view::backups::skipped_run_json(run, backup));
    }
}

/// Says what of the WAL was streamed.
fn streamed_text(Archived { segments, left_to_owner }: Archived) -> String {
    let stored = segments - left_to_owner;
    match left_to_owner {
        0 => format!("{stored} segments of WAL were streamed into the archive"),
        left => format!(
            "{stored} segments of WAL were streamed into the archive, and {left} more compared with what the server archived"
        ),
    }
}

/// Reads the name of a replication slot.
///
/// Source: `ReplicationSlotValidateName` in `src/backend/replication/slot.c`.
fn slot_name(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    match plain && (1..=63).contains(&text.len()) {
        true => Ok(text.to_owned()),
        false => Err("a slot's name has lower-case letters, digits and underscores, at most 63".to_owned()),
    }
}

/// Returns some time up to so many seconds. Without chance everybody waits for as long.
fn by_chance(seconds: u32) -> Duration {
    let chance = getrandom::u32().unwrap_or(u32::MAX);
    Duration::from_secs(u64::from(seconds)).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

/// Time after which no further index is begun.
const INDEXING: Duration = Duration::from_secs(30);

/// Makes the indexes that finished log still lacks. The backup is committed, and does not depend on them.
fn index(repository: &Repository, report: &BackupReport) {
    let indexed = report.envelope.lane.parse().ok().and_then(|lane| repository.lane(lane).transpose());
    let indexed = indexed.map(|lane| {
        lane.and_then(|lane| wal_index::make(&lane, &LaneCatalog::load(&lane)?, Some(Instant::now() + INDEXING)))
    });
    if let Some(Err(problem)) = indexed {
        output::complain(&format!("warning: no index of the archived log was made: {}", error::chain(&problem)));
    }
}

fn warn(report: &BackupReport) {
    for page in &report.damaged_pages {
        output::complain(&format!("warning: damaged page, copied as it is: {page}"));
    }
    if let Doubted { files, first: Some(first) } = &report.basis.doubted {
        output::complain(&format!(
            "warning: files that somebody made or wrote since the backup before though the log does not say so: {files}, such \
             as {first}; they were read whole and compared. Unless the data directory was moved, something beside the server \
             writes there, or its log does not tell everything"
        ));
    }
    for database in &report.names_unknown {
        output::complain(&format!("warning: names of relations not kept for database {database}"));
    }
    for remark in &report.remarks {
        output::complain(&format!("warning: the server says: {remark}"));
    }
    for link in &report.not_followed {
        output::complain(&format!(
            "warning: link left out with all that it leads to: {} to {}",
            link.path, link.target
        ));
    }
    for file in &report.configuration_left_out {
        output::complain(&format!("warning: configuration file left out: {}: {}", file.path, file.problem));
    }
}

impl From<BackupError> for CommandError {
    fn from(error: BackupError) -> Self {
        let (fault, hint) = match &error {
            error if error.is_anothers_wal() => (
                Fault::WalMissing,
                Some(
                    "two servers wrote one timeline: back up a copy, such as a snapshot that was started, into a repository of \
                     its own (walvault init); if this one is the right one, see walvault conflict list",
                ),
            ),
            error if error.is_missing_wal() => {
                (Fault::WalMissing, Some("look at archive_command and at pg_stat_archiver on the server"))
            }
            error if error.is_held() => {
                (Fault::LeaseHeld, Some("wait for it; a host that died holds it no longer than that"))
            }
            BackupError::NotArchiving { .. } => (
                Fault::Configuration,
                Some("set archive_mode = on and archive_command, and restart the server; or add --with-wal"),
            ),
            BackupError::OtherSystem { .. } => (Fault::Configuration, Some("check --pgdata and --dbname")),
            BackupError::Session(SessionError::Connect { source, .. }) => {
                (Fault::Failed(error.kind()), not_connected(source.code().map(SqlState::code)))
            }
            BackupError::Locate(LocateError::Unreadable { .. } | LocateError::NotFound { .. }) => (
                Fault::Failed(error.kind()),
                Some("is this the server's data directory? Check --pgdata, or the setting pgdata"),
            ),
            BackupError::NotItsFiles { .. } | BackupError::OtherServer { .. } => (
                Fault::Configuration,
                Some("check --pgdata and --dbname, or let the server send its files: --from remote"),
            ),
            BackupError::Copy(_) if error.kind() == ErrorKind::Invalid => (Fault::Configuration, None),
            BackupError::Remote(error) => match error.kind() {
                ErrorKind::NotFound => (Fault::WalMissing, error.hint()),
                ErrorKind::Invalid => (Fault::Configuration, error.hint()),
                kind => (Fault::Failed(kind), error.hint()),
            },
            error => (Fault::Failed(error.kind()), None),
        };
        Self { fault, error: Box::new(error), hint: hint.map(str::to_owned) }
    }
}

/// Says what helps where the server was not to be connected to; `code` is what it answered, if it did.
///
/// Source: `src/backend/utils/errcodes.txt`.
fn not_connected(code: Option<&str>) -> Option<&'static str> {
    match code {
        None => Some("does the server run, and are host, port and socket right? See --dbname, PGHOST and PGPORT"),
        Some("28000") => Some(
            "run it as the user that the server runs as, or name a database user with --dbname user=… or PGUSER, and let it in \
             by pg_hba.conf",
        ),
        Some("28P01") => Some("correct the password: PGPASSWORD, or the file that PGPASSFILE names"),
        Some("53300") => Some("the server has no connection left: end some, or raise max_connections"),
        Some("57P03") => Some("the server starts or stops: try again in a moment"),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_not_let_in_is_told_why_and_who_is() {
        let hint = |code| not_connected(code).unwrap_or_default();
        assert!(hint(None).contains("does the server run"));
        assert!(hint(Some("28000")).contains("the user that the server runs as"));
        assert!(hint(Some("28P01")).contains("password"));
        assert!(hint(Some("53300")).contains("max_connections"));
        assert_eq!(not_connected(Some("XX000")), None);
    }
}
