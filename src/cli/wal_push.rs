//! `walvault wal push`.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Cli;
use super::context::{self, CommandError, end_after, lenient_settings, store, writer};
use super::exit::{Fault, Role, failure};
use super::wal_backfill::{self, Archived};
use super::wal_fetch::SEE_LIST;
use super::{helper, output};
use crate::agent::{AgentFailure, Asked, Final, Offered};
use crate::archive::{OpenWal, PushError, PushOptions, WalFile, Writer, given_up, push};
use crate::clock;
use crate::config::Settings;
use crate::error::ErrorKind;
use crate::instance::DataDirectory;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::repo::{Known, LaneFacts, LaneId, RepoError, Repository};

/// Archive one WAL file
///
/// Set as `archive_command = '/usr/bin/walvault --cluster main wal push "%p"'`. Exits 0 only once the file is durable in
/// the repository, or was already there with the same contents; 3 if other contents are archived under its name (both are
/// kept); 4 if file or server do not belong to the lane; 64 and 78 for a wrong command line or configuration; 1 for
/// everything else, which is worth another try. Silent on success.
#[derive(clap::Args, Debug)]
pub(super) struct PushArgs {
    /// WAL file, relative to the data directory (`%p`)
    pub(super) path: PathBuf,
    /// Start no helper, however much waits
    #[arg(long)]
    pub(super) no_helper: bool,
}

/// What is left for the work itself, however long the agent took.
const LEAST: Duration = Duration::from_secs(1);

impl PushArgs {
    /// The words that stand for the file.
    pub fn files(&self) -> Vec<String> {
        vec![self.path.display().to_string()]
    }
}

pub(super) fn run(cli: &Cli, args: &PushArgs) -> Result<u8, CommandError> {
    let settings = lenient_settings(cli)?;
    settings.unknown.iter().for_each(|line| output::complain(&format!("walvault: warning: {line}")));
    let budget = settings.seconds("push_timeout");
    let too_late = failure(Role::Push, Fault::Failed(ErrorKind::Unavailable));
    let done = end_after(budget, format!("archive {}", args.path.display()), too_late);
    let began = Instant::now();
    let file = WalFile::at(&args.path)?;
    let server = DataDirectory::of_wal_path(&args.path, settings.data_directory().as_deref())?;
    let (facts, writer) = (LaneFacts::of(&server.control), writer(&server, &settings));
    let left = || budget.saturating_sub(began.elapsed()).max(LEAST);
    let itself = || {
        let store = store(&settings, left())?;
        let (state, cluster) = (settings.state_directory(), &settings.cluster);
        let known = Known::take_up(state.as_deref(), &store, cluster, facts.system_id, clock::now());
        let repository = known.repository(store, cluster)?;
        let pushed = push_itself(&known, &repository, &settings, &facts, &file, &writer);
        if pushed.is_err() {
            // Whatever is known may be what is wrong.
            known.forget();
        }
        pushed?;
        done.is_done();
        let archived = Archived { path: &args.path, name: &file.name, server: &facts, writer: &writer };
        wal_backfill::after(&archived, options(&settings), left(), &repository);
        Ok(0)
    };
    let offered = Offered { file: &file, server: &facts, writer: &writer };
    match context::agent(&settings).push(&offered, context::agents_share(budget)) {
        Asked::Answered(()) => Ok(0),
        Asked::Settled(failure) if failure.settled.is_some_and(Final::is_the_files) => {
            let repository = context::repository(&settings, left())?;
            unless_given_up(&repository, &facts, &file, failure.into()).map(|()| 0)
        }
        Asked::Settled(failure) => Err(failure.into()),
        Asked::Unsettled(_, note) => itself().inspect(|_| note.did_it_myself()),
        Asked::Nobody => itself().inspect(|_| {
            if let Some(pg_wal) = args.path.parent().filter(|_| !args.no_helper) {
                helper::after_push(cli, &settings, pg_wal);
            }
        }),
    }
}

fn push_itself(
    known: &Known,
    repository: &Repository,
    settings: &Settings,
    facts: &LaneFacts,
    file: &WalFile,
    writer: &Writer,
) -> Result<(), CommandError> {
    let lane = RefCell::new(None);
    let open = || known.lane_for(repository, facts).inspect(|opened| drop(lane.replace(Some(opened.clone()))));
    match OpenWal::open(file).and_then(|opened| push(open, facts, &opened, writer, options(settings))) {
        Ok(_) => lane.take().iter().for_each(|lane| known.keep(lane)),
        Err(error) if error.is_the_files() => unless_given_up(repository, facts, file, error.into())?,
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// How much a push may use.
fn options(settings: &Settings) -> PushOptions {
    PushOptions { level: settings.compression_level(), threads: settings.threads() }
}

/// Lets the archiver pass a file that cannot be archived, if an operator has given it up, and says so.
fn unless_given_up(
    repository: &Repository,
    server: &LaneFacts,
    file: &WalFile,
    failure: CommandError,
) -> Result<(), CommandError> {
    let Some(lane) = repository.lane(LaneId::first(server.system_id))? else { return Err(failure) };
    let Some(hole) = given_up(&lane, &file.name)? else { return Err(failure) };
    let line = format!("walvault: warning: {} is not archived: {hole}; only a new backup leads on", file.name);
    output::complain(&crate::error::cut(line, super::LINE_BYTES - 1));
    Ok(())
}

impl From<PushError> for CommandError {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Repository { source: source @ RepoError::OtherLane { .. }, .. } => source.into(),
            PushError::OtherSystem { .. } => CommandError::new(Fault::NotThisLane, error)
                .hint("the file was not written by the server in this data directory"),
            PushError::NotOwner { ref name, .. } | PushError::Conflict { ref name, .. } if is_of_a_promotion(name) => {
                let fault = match error {
                    PushError::NotOwner { .. } => Fault::NotThisLane,
                    _ => Fault::Failed(ErrorKind::Conflict),
                };
                CommandError::new(fault, error).hint(ONE_NUMBER)
            }
            PushError::NotOwner { .. } => CommandError::new(Fault::NotThisLane, error).hint(NOT_OWNER),
            PushError::Conflict { .. } => {
                CommandError::new(Fault::Failed(ErrorKind::Conflict), error).hint(TWO_SERVERS)
            }
            error => CommandError::new(Fault::Failed(error.kind()), error),
        }
    }
}

/// Whether a file is of a timeline that began with a promotion: somebody else may have begun one of that number.
fn is_of_a_promotion(name: &WalFileName) -> bool {
    name.timeline().is_some_and(|timeline| timeline != TimelineId::FIRST)
}

/// The same of what an agent tells, which begins with the file's name.
fn first_word_is_of_a_promotion(text: &str) -> bool {
    text.split(' ').next().and_then(|name| name.parse().ok()).is_some_and(|name| is_of_a_promotion(&name))
}

const TWO_SERVERS: &str = "two servers may be writing one timeline; find out which before anything else";

const ONE_NUMBER: &str =
    "a copy, or two servers promoted to one number? See `walvault conflict list`, and docs/operations.md";

const NOT_OWNER: &str = "is this a copy? Else see `walvault lane list`, and `walvault lane adopt`";

impl From<AgentFailure> for CommandError {
    fn from(failure: AgentFailure) -> Self {
        let hint = match failure.settled {
            Some(Final::Conflict | Final::NotOwner) if failure.text.contains(".history ") => {
                Some(ONE_NUMBER.to_owned())
            }
            Some(Final::Conflict | Final::NotOwner) if first_word_is_of_a_promotion(&failure.text) => {
                Some(ONE_NUMBER.to_owned())
            }
            Some(Final::Conflict) => Some(TWO_SERVERS.to_owned()),
            Some(Final::NotOwner) => Some(NOT_OWNER.to_owned()),
            Some(Final::Hole) => Some(SEE_LIST.to_owned()),
            Some(Final::LeftBranch | Final::StoreGone | Final::NotYet) | None => None,
        };
        let fault = match failure.settled {
            Some(Final::NotOwner) => Fault::NotThisLane,
            _ => Fault::Failed(failure.kind),
        };
        Self { fault, error: Box::new(failure), hint }
    }
}
