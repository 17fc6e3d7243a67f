//! What commands share: settings, the repository, the lane, and how their failures are told.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Cli;
use super::exit::Fault;
use crate::agent::Client;
use crate::archive::Writer;
use crate::catalog::LaneCatalog;
use crate::config::{ConfigError, Given, Settings, is_of_a_cloud};
use crate::error::ErrorKind;
use crate::format::recovery_plan::{RECOVERY_PLAN_PATH, RecoveryPlan};
use crate::instance::{DataDirectory, LibpqEnvironment, LocateError, RecoveryMode};
use crate::repo::{Lane, LaneId, RepoError, Repository};
use crate::restore::PaceFile;
use crate::store::{RequestCounts, Store, StoreError, StoreUrl, Traffic};

/// Time that a command which no server waits for gives the store.
pub(super) const PATIENT: Duration = Duration::from_secs(120);

/// Why a command failed, and the one next thing to do.
#[derive(Debug)]
pub(super) struct CommandError {
    pub fault: Fault,
    pub error: Box<dyn Error + Send + Sync>,
    pub hint: Option<String>,
}

impl CommandError {
    pub fn new(fault: Fault, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { fault, error: error.into(), hint: None }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What clap says, without its own "error:".
    pub fn usage(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned();
        Self::new(Fault::Usage, text)
    }

    /// A mistake in the command line that clap does not know of.
    pub fn misuse(text: impl Into<String>) -> Self {
        Self::new(Fault::Usage, text.into())
    }
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        let hint = error.hint();
        Self { hint, ..Self::new(Fault::Configuration, error) }
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        Self::new(Fault::Failed(error.kind()), error)
    }
}

impl From<LocateError> for CommandError {
    fn from(error: LocateError) -> Self {
        let not_found = matches!(error, LocateError::NotFound { .. });
        let failure = Self::new(Fault::Failed(error.kind()), error);
        if not_found { failure.hint("say where the data directory is with WALVAULT_PGDATA") } else { failure }
    }
}

impl From<RepoError> for CommandError {
    fn from(error: RepoError) -> Self {
        let (fault, hint) = match &error {
            RepoError::NotInitialised { .. } => (
                Fault::Configuration,
                Some("is it the right place, and mounted? If it is a new repository, run `walvault init`"),
            ),
            RepoError::TooNew { .. } | RepoError::OtherMode { .. } => (Fault::Configuration, None),
            RepoError::Key(_) => (Fault::Configuration, Some("a cluster's name has letters, digits and ._-+=@ only")),
            RepoError::OtherLane { .. } => (Fault::NotThisLane, None),
            RepoError::Store(denied) if denied.kind() == ErrorKind::Denied && denied.store().starts_with("file:") => (
                Fault::Failed(ErrorKind::Denied),
                Some("run it as the server's user, to whom the repository has to belong, all of it (chown -R)"),
            ),
            error => (Fault::Failed(error.kind()), None),
        };
        Self { fault, error: Box::new(error), hint: hint.map(str::to_owned) }
    }
}

/// Settings; unknown keys end the command.
pub(super) fn settings(cli: &Cli) -> Result<Settings, CommandError> {
    Ok(Settings::gather(&given(cli), true)?)
}

/// Settings for the commands that WAL moves by: an unknown key is reported, and the WAL moves.
pub(super) fn lenient_settings(cli: &Cli) -> Result<Settings, CommandError> {
    Ok(Settings::gather(&given(cli), false)?)
}

fn given(cli: &Cli) -> Given<'_> {
    let own = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let name = name.to_str()?.strip_prefix("WALVAULT_")?.to_ascii_lowercase();
        Some((name, value.to_str()?.to_owned()))
    };
    // Those of the test suite are not settings.
    let environment: BTreeMap<String, String> = std::env::vars_os().filter_map(own).collect();
    let cloud = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let name = name.to_str().filter(|name| is_of_a_cloud(name))?.to_owned();
        Some((name, value.to_str()?.to_owned()))
    };
    Given {
        repository: cli.repo.as_deref(),
        cluster: cli.cluster.as_deref(),
        file: cli.config.as_deref(),
        environment,
        clouds: std::env::vars_os().filter_map(cloud).collect(),
    }
}

/// Every store that this process opened, for the requests that were made.
static OPENED: Mutex<Vec<Store>> = Mutex::new(Vec::new());

/// Remembers a store, so that its requests are counted with the command's.
pub(super) fn remember(store: &Store) {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner).push(store.clone());
}

/// Returns the requests that this process made of any store.
pub(super) fn requests() -> RequestCounts {
    let opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    opened.iter().map(Store::requests).fold(RequestCounts::default(), RequestCounts::plus)
}

/// Returns what this process sent to buckets and received of them.
pub(super) fn traffic() -> Traffic {
    let opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    opened.iter().map(Store::traffic).fold(Traffic::default(), Traffic::plus)
}

/// How to ask the cluster's agent.
pub(super) fn agent(settings: &Settings) -> Client {
    // A user that does not exist here cannot run an agent here.
    let users = settings.agent_users().filter_map(user_number).collect();
    let client = Client::new(&settings.runtime_directory(), repository_digest(settings), &settings.cluster, users);
    client.at(settings.access.server(&settings.url))
}

/// What tells this cluster of this repository from every other.
pub(super) fn repository_digest(settings: &Settings) -> String {
    crate::agent::repository_digest(&settings.url.to_string(), &settings.cluster)
}

/// Where this host keeps how fast restores went.
pub(super) fn pace(settings: &Settings) -> Option<PaceFile> {
    settings.state_directory().map(|directory| PaceFile::new(&directory, &repository_digest(settings)))
}

/// Time that a command gives the agent; the rest is for doing the work itself if the agent does not come to an end.
pub(super) fn agents_share(budget: Duration) -> Duration {
    const OWN: Duration = Duration::from_secs(15);
    budget - OWN.min(budget / 3)
}

/// Opens the repository that the settings name.
pub(super) fn repository(settings: &Settings, budget: Duration) -> Result<Repository, CommandError> {
    Ok(Repository::open(store(settings, budget)?, &settings.cluster)?)
}

/// Opens the store that the settings name.
pub(super) fn store(settings: &Settings, budget: Duration) -> Result<Store, CommandError> {
    let store = Store::open(&settings.url, &settings.access, settings.retry_policy(budget)).map_err(|error| {
        let unreachable = error.kind() == ErrorKind::Unavailable && matches!(settings.url, StoreUrl::Volume(_));
        let failure = CommandError::from(error);
        let hint = "is the volume mounted? If the repository is new, run `walvault init`";
        if unreachable { failure.hint(hint) } else { failure }
    })?;
    remember(&store);
    Ok(store)
}

/// Opens one lane: the one that is named, or the only one there is.
pub(super) fn lane(cli: &Cli, repository: &Repository) -> Result<Lane, CommandError> {
    let id = match &cli.lane {
        Some(text) => text.parse::<LaneId>().map_err(|error| CommandError::new(Fault::Usage, error))?,
        None => only_lane(repository)?,
    };
    let lane = repository.lane(id)?;
    lane.ok_or_else(|| CommandError::new(Fault::NoPlan, format!("the repository has no lane {id}")))
}

fn only_lane(repository: &Repository) -> Result<LaneId, CommandError> {
    match repository.lane_ids()?.as_slice() {
        [only] => Ok(*only),
        [] => {
            let text = format!("nothing was archived or backed up for cluster {} yet", repository.cluster());
            Err(CommandError::new(Fault::NoPlan, text).hint("`walvault check` says what is missing"))
        }
        several => {
            let names: Vec<String> = several.iter().map(LaneId::to_string).collect();
            let text = format!("cluster {} has more than one lane: {}", repository.cluster(), names.join(", "));
            Err(CommandError::new(Fault::NoPlan, text).hint("choose one with --lane"))
        }
    }
}

/// Opens every lane, or the one that is named. None is passed over in silence: whoever asks for all that is there, or
/// whether it is sound, must not be told of the rest alone.
pub(super) fn lanes(cli: &Cli, repository: &Repository) -> Result<Vec<Lane>, CommandError> {
    if cli.lane.is_some() {
        return Ok(vec![lane(cli, repository)?]);
    }
    let mut lanes = Vec::new();
    for id in repository.lane_ids()? {
        let lane = match repository.lane(id)? {
            None if repository.is_empty_lane(id)? => continue,
            // It may have come to be since it was looked for.
            None => repository.lane(id)?,
            lane => lane,
        };
        let headless = || {
            let text = format!("{}/{id}/lane.json is missing: half a copy of a repository?", repository.cluster());
            CommandError::new(Fault::Failed(ErrorKind::Corrupt), text)
                .hint("copy the repository again, whole; --lane chooses another lane")
        };
        lanes.push(lane.ok_or_else(headless)?);
    }
    Ok(lanes)
}

/// Opens lanes as [`lanes`] does, and loads what they hold.
pub(super) fn catalogues(cli: &Cli, repository: &Repository) -> Result<Vec<LaneCatalog>, CommandError> {
    lanes(cli, repository)?.iter().map(|lane| Ok(LaneCatalog::load(lane)?)).collect()
}

/// Who pushes from this data directory.
pub(super) fn writer(server: &DataDirectory, settings: &Settings) -> Writer {
    let writer = writer_in(&server.path, settings);
    let plan =
        std::fs::read(server.path.join(RECOVERY_PLAN_PATH)).ok().and_then(|plan| RecoveryPlan::decode(&plan).ok());
    let plan = plan.filter(|plan| plan.system_id == server.control.system_id);
    // An operator restored this very directory to take the lane over; a copy of it is another writer.
    let plan = plan.filter(|plan| plan.primary.as_deref() == Some(writer.token.as_str()));
    let takes_over = plan.and_then(|plan| Some(plan.path.last()?.timeline));
    Writer { takes_over, follows: server.recovery_mode() == RecoveryMode::Standby, ..writer }
}

/// Who would push from a data directory.
pub(super) fn writer_in(data: &Path, settings: &Settings) -> Writer {
    Writer::of(data, settings.state_directory().as_deref(), settings.seconds("owner_grace"))
}

/// This host's name, for people.
pub(super) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The variables that libpq reads.
pub(super) fn libpq_environment() -> LibpqEnvironment {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let path = |name: &str| variable(name).map(PathBuf::from);
    let home = std::env::home_dir();
    let services = path("PGSERVICEFILE").or_else(|| Some(home.as_ref()?.join(".pg_service.conf")));
    let shared = path("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".into()).join("pg_service.conf");
    LibpqEnvironment {
        host: variable("PGHOST"),
        port: variable("PGPORT"),
        user: variable("PGUSER"),
        dbname: variable("PGDATABASE"),
        password: variable("PGPASSWORD"),
        passfile: path("PGPASSFILE").or_else(|| Some(home.as_ref()?.join(".pgpass"))),
        sslmode: variable("PGSSLMODE"),
        more: LIBPQ_VARIABLES
            .iter()
            .filter_map(|(name, parameter)| Some(((*parameter).to_owned(), variable(name)?)))
            .collect(),
        service_files: services.into_iter().chain([shared]).collect(),
        certificates: home.map(|home| home.join(".postgresql")),
        os_user: os_user(),
    }
}

/// Further variables of libpq's, and the parameters that they stand for.
const LIBPQ_VARIABLES: [(&str, &str); 16] = [
    ("PGHOSTADDR", "hostaddr"),
    ("PGSERVICE", "service"),
    ("PGOPTIONS", "options"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLCRL", "sslcrl"),
    ("PGSSLCRLDIR", "sslcrldir"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
    ("PGREQUIREAUTH", "require_auth"),
    ("PGREQUIREPEER", "requirepeer"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGGSSENCMODE", "gssencmode"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
];

/// Returns a user's number, by its name or itself.
pub(super) fn user_number(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| Some(user_named(name)?.0))
}

/// Returns a group's number, by its name or itself.
pub(super) fn group_named(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let group = groups.lines().find(|line| line.split(':').next() == Some(name))?;
    group.split(':').nth(2)?.parse().ok()
}

/// Returns a user's number and that of its group.
pub(super) fn user_named(name: &str) -> Option<(u32, u32)> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let user = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut numbers = user.split(':').skip(2);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn os_user() -> Option<String> {
    name_of(rustix::process::geteuid().as_raw())
}

/// Returns a user's name, or its number where it has none.
pub(super) fn user_name(uid: u32) -> String {
    name_of(uid).unwrap_or_else(|| format!("user {uid}"))
}

fn name_of(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let user = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid.to_string()))?;
    user.split(':').next().map(str::to_owned)
}

/// Whether a command has done what it was called for, so that what is left may be cut short.
#[derive(Clone, Debug, Default)]
pub(super) struct Done(Arc<AtomicBool>);

impl Done {
    /// Notes that it has.
    pub fn is_done(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Ends the process when a command has had its time, whatever it hangs in: a server is waiting. Until then [`Done`] may
/// turn that end into a success.
pub(super) fn end_after(budget: Duration, what: String, status: u8) -> Done {
    let done = Done::default();
    let watched = done.clone();
    std::thread::spawn(move || {
        std::thread::sleep(budget);
        if watched.0.load(Ordering::SeqCst) {
            std::process::exit(0);
        }
        super::output::complain(&format!("walvault: error: {what}: gave up after {} s", budget.as_secs()));
        std::process::exit(i32::from(status));
    });
    done
}
