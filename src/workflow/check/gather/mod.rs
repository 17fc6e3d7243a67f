//! Looking, without judging. Nothing here ends a check: what fails is a fact too.

mod command;
mod holdings;
mod round_trip;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::facts::{
    AgentFacts, CommandFacts, ConfigFacts, DataFacts, Facts, Known, LaneState, RepositoryFacts, Understood, Unknown,
    UserFacts,
};
use super::mend;
use crate::archive::Writer;
use crate::clock;
use crate::error::{self, ErrorKind};
use crate::instance::{
    ConnectionSettings, DataDirectory, Identity, Inspection, WalDirectory, environment_of, running_server,
};
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;
use crate::repo::{Lane, LaneFacts, LaneId, RepoError, Repository};
use crate::retention::{Overview, Policy};
use crate::store::{Access, Obstacle, RetryPolicy, Store, StoreError, StoreUrl, mount};

/// Time for each request to the store: a check waits for no store that hangs.
const REQUEST_BUDGET: Duration = Duration::from_secs(20);
/// Nor does it insist where nobody answers: the pauses between so many attempts are three seconds.
const ATTEMPTS: u32 = 6;

/// Reads a command's arguments as walvault would, in an environment.
pub type Understand<'a> = &'a dyn Fn(&[String], &BTreeMap<String, String>) -> Result<Understood, String>;

/// What a check begins with.
pub struct Inputs<'a> {
    /// The settings.
    pub config: Known<ConfigFacts>,
    /// The store that they name.
    pub store: Option<(StoreUrl, Access, RetryPolicy)>,
    /// The data directory, if it was named.
    pub data_directory: Option<PathBuf>,
    /// How to reach the server; with whether somebody said so, or only the data directory did.
    pub connection: Result<(ConnectionSettings, bool), String>,
    /// This program.
    pub program: PathBuf,
    /// The number of the user that runs it.
    pub uid: u32,
    /// Returns a user's name.
    pub user_name: &'a dyn Fn(u32) -> String,
    /// Returns who writes from a data directory.
    pub writer: &'a dyn Fn(&DataDirectory) -> Option<Writer>,
    /// Looks who listens at the agent's socket; `None` if it is not known where that is.
    pub agent: &'a dyn Fn() -> Option<AgentFacts>,
    /// Reads a command's arguments.
    pub understand: Understand<'a>,
    /// Whether an agent is there that may push from a standby.
    pub standby_agent: bool,
    /// What expire would keep by the settings.
    pub policy: Option<Policy>,
    /// How long to wait for a segment to go round; `None` sends none.
    pub round_trip: Option<Duration>,
    /// Told of every store that is opened.
    pub opened: &'a dyn Fn(&Store),
}

/// The server that answered, if one did.
struct Contact {
    inspection: Option<Inspection>,
    server: Known<Identity>,
}

/// The repository, if it opened.
struct Opened {
    repository: Repository,
    facts: RepositoryFacts,
}

/// Looks at everything.
pub fn gather(inputs: &Inputs<'_>) -> Facts {
    let given = inputs.data_directory.as_ref().map(|path| open_data(path));
    let contact = contact(inputs, given.as_ref().and_then(|given| given.as_ref().ok()));
    let directory = given.unwrap_or_else(|| data_of(&contact.server));
    let inspection = contact.inspection.as_ref();
    let ask = |what: &str| Unknown::not_checked(format!("{what}: the server was not reached"));
    let asked = |what: &'static str| inspection.ok_or_else(|| ask(what));

    let settings = asked("its settings").and_then(|inspection| guarded(|| known(inspection.settings())));
    let rights = asked("the role's rights").and_then(|inspection| {
        let version = contact.server.as_ref().map_or(0, |server| server.version_number);
        guarded(|| known(inspection.rights(version)))
    });
    let between = match (&contact.server, inspection) {
        (Err(Unknown::Failed { problem, .. }), _) if problem.contains("unsupported startup parameter") => {
            Err(Unknown::failed(format!("a pooler answers, which refuses options, as PgBouncer does: {problem}")))
        }
        (_, Some(inspection)) => guarded(|| known(inspection.between())),
        (_, None) => Err(ask("what stands before it")),
    };
    let opened = guarded(|| open_repository(inputs, directory.as_ref().ok()));
    let system_id = system_of(&directory, &contact.server);
    let round_trip = guarded(|| {
        let ready =
            round_trip::Ready::new(inputs, &contact.server, inspection, settings.as_ref().ok(), rights.as_ref().ok())?;
        let repository = &opened.as_ref().map_err(|_| not_open())?.repository;
        ready.perform(repository, system_id?, directory.as_ref().ok())
    });
    let lane = guarded(|| {
        let repository = &opened.as_ref().map_err(|_| not_open())?.repository;
        let id = LaneId::first(system_of(&directory, &contact.server)?);
        if opened.as_ref().is_ok_and(|opened| opened.facts.headless.contains(&id)) {
            return Err(Unknown::not_checked("lane.json is missing"));
        }
        repository.lane(id).map_err(unknown_repo)
    });
    let lane_state = lane.as_ref().map_err(Clone::clone).and_then(|lane| match lane {
        None => Ok(None),
        Some(lane) => guarded(|| lane_state(inputs, lane, directory.as_ref().ok()).map(Some)),
    });
    Facts {
        now: clock::now(),
        config: inputs.config.clone(),
        user: user(inputs, directory.as_ref().ok()),
        agent: guarded(|| (inputs.agent)().ok_or_else(|| Unknown::not_checked("no repository is set"))),
        target: inputs.connection.as_ref().map_or_else(|_| String::new(), |(settings, _)| settings.target()),
        data: directory.as_ref().map(data_facts).map_err(Clone::clone),
        between,
        rights,
        archive_command: command_facts(inputs, "archive_command", &settings, directory.as_ref().ok()),
        restore_command: command_facts(inputs, "restore_command", &settings, directory.as_ref().ok()),
        archiver: asked("its archiver").and_then(|inspection| guarded(|| known(inspection.archiver()))),
        slots: asked("its slots").and_then(|inspection| guarded(|| known(inspection.slots()))),
        wal: guarded(|| wal_directory(directory.as_ref().map_err(|_| no_directory())?)),
        probe: guarded(|| probe(inputs, opened.as_ref().map_err(|_| not_open())?, directory.as_ref().ok())),
        holdings: guarded(|| match lane.as_ref().map_err(|_| Unknown::not_checked("the lane does not open"))? {
            Some(_)
                if lane_state
                    .as_ref()
                    .is_ok_and(|state| state.as_ref().is_some_and(|state| state.misfit.is_some())) =>
            {
                Err(Unknown::not_checked("the lane is another server's"))
            }
            Some(lane) => holdings::of(lane, directory.as_ref().ok().map(|directory| directory.control.timeline)),
            None => Ok(Default::default()),
        }),
        retention: guarded(|| retention(inputs, lane.as_ref(), &lane_state)),
        repository: opened.map(|opened| opened.facts),
        lane: lane_state,
        settings,
        server: contact.server,
        round_trip,
        standby_agent: inputs.standby_agent,
    }
}

fn retention(
    inputs: &Inputs<'_>,
    lane: Result<&Option<Lane>, &Unknown>,
    state: &Known<Option<LaneState>>,
) -> Known<Option<Overview>> {
    let Some(lane) = lane.map_err(|_| Unknown::not_checked("the lane does not open"))? else { return Ok(None) };
    if state.as_ref().is_ok_and(|state| state.as_ref().is_some_and(|state| state.misfit.is_some())) {
        return Err(Unknown::not_checked("the lane is another server's"));
    }
    known(Overview::look(lane, &inputs.policy.unwrap_or_default(), clock::now())).map(Some)
}

/// A bug while looking at one thing must not keep the others from being looked at.
fn guarded<T>(look: impl FnOnce() -> Known<T>) -> Known<T> {
    catch_unwind(AssertUnwindSafe(look))
        .unwrap_or_else(|_| Err(Unknown::mendable("an internal error, see above", "please report it")))
}

fn known<T, E: std::error::Error>(answer: Result<T, E>) -> Known<T> {
    answer.map_err(|error| Unknown::failed(error::chain(&error).to_string()))
}

fn not_open() -> Unknown {
    Unknown::not_checked("the repository does not open")
}

fn no_directory() -> Unknown {
    Unknown::not_checked("the data directory is not known")
}

fn open_data(path: &Path) -> Known<DataDirectory> {
    guarded(|| known(DataDirectory::open(path)))
}

/// Opens the data directory that the server names, where it is on this host.
fn data_of(server: &Known<Identity>) -> Known<DataDirectory> {
    match server.as_ref().map(|server| server.data_directory.as_deref()) {
        Ok(Some(path)) if Path::new(path).exists() => open_data(Path::new(path)),
        Ok(Some(path)) => Err(Unknown::not_checked(format!("{path} is not on this host"))),
        Ok(None) => Err(Unknown::failed("the role may not read where the data directory is")),
        Err(_) => Err(Unknown::failed("nothing says where the data directory is")),
    }
}

fn data_facts(directory: &DataDirectory) -> DataFacts {
    DataFacts {
        path: directory.path.clone(),
        system_id: directory.control.system_id,
        major: directory.control.major,
        timeline: directory.control.timeline,
        running: running_server(&directory.path).is_some(),
    }
}

fn contact(inputs: &Inputs<'_>, data: Option<&DataDirectory>) -> Contact {
    let (settings, said) = match &inputs.connection {
        Ok(connection) => connection,
        Err(problem) => return Contact { inspection: None, server: Err(Unknown::failed(problem)) },
    };
    if let Some(data) = data
        && !said
        && running_server(&data.path).is_none()
    {
        let reason = format!("no server runs in {}", data.path.display());
        return Contact { inspection: None, server: Err(Unknown::NotChecked(reason)) };
    }
    match guarded(|| known(Inspection::connect(settings))) {
        Ok(inspection) => {
            let server = guarded(|| known(inspection.identity()));
            Contact { inspection: Some(inspection), server }
        }
        Err(problem) => Contact { inspection: None, server: Err(problem) },
    }
}

fn system_of(directory: &Known<DataDirectory>, server: &Known<Identity>) -> Known<SystemId> {
    let asked = server.as_ref().ok().and_then(|server| server.system_id);
    let local = directory.as_ref().ok().map(|directory| directory.control.system_id);
    local.or(asked).ok_or_else(|| Unknown::not_checked("which server this is, is not known"))
}

fn user(inputs: &Inputs<'_>, directory: Option<&DataDirectory>) -> UserFacts {
    let owner = directory.and_then(|directory| Some(std::fs::metadata(&directory.path).ok()?.uid()));
    let owner = owner.filter(|owner| *owner != inputs.uid);
    UserFacts { name: (inputs.user_name)(inputs.uid), owner: owner.map(|owner| (inputs.user_name)(owner)) }
}

fn command_facts(
    inputs: &Inputs<'_>,
    name: &str,
    settings: &Known<BTreeMap<String, String>>,
    directory: Option<&DataDirectory>,
) -> Known<CommandFacts> {
    let settings =
        settings.as_ref().map_err(|_| Unknown::not_checked(format!("{name}: the server was not reached")))?;
    let Some(text) = settings.get(name) else {
        return Err(Unknown::not_checked(format!("the role may not read {name}")));
    };
    if name == "archive_command" && settings.get("archive_mode").is_some_and(|mode| mode == "off") {
        return Err(Unknown::not_checked("archive_mode is off"));
    }
    let environment = directory.and_then(|directory| environment_of(&running_server(&directory.path)?));
    let place = directory.map(|directory| directory.path.clone());
    guarded(|| Ok(command::read(text, inputs, environment.map(BTreeMap::from_iter), place.as_deref())))
}

fn wal_directory(directory: &DataDirectory) -> Known<WalDirectory> {
    let looked = WalDirectory::look(&directory.path, directory.control.segment_size, clock::now());
    looked.map_err(|error| Unknown::failed(format!("read {}/pg_wal: {error}", directory.path.display())))
}

fn open_repository(inputs: &Inputs<'_>, directory: Option<&DataDirectory>) -> Known<Opened> {
    let Some((url, access, policy)) = &inputs.store else { return Err(Unknown::not_checked("no repository is set")) };
    let cluster = inputs.config.as_ref().map_err(Clone::clone)?.destination.cluster.clone();
    let attempt = policy.attempt.min(REQUEST_BUDGET);
    let policy = RetryPolicy { budget: REQUEST_BUDGET, attempt, attempts: ATTEMPTS, ..policy.clone() };
    let store = Store::open(url, access, policy).map_err(|error| unopened(url, &error))?;
    (inputs.opened)(&store);
    let repository = Repository::open(store.clone(), &cluster).map_err(|error| match error {
        RepoError::NotInitialised { .. } => not_initialised(url, &store, &cluster, &error),
        error => unopened_bucket(access, url, error),
    })?;
    let mut headless = Vec::new();
    for id in repository.lane_ids().map_err(unknown_repo)? {
        // A lane that cannot be read is the lane's own finding.
        if matches!(repository.lane(id), Ok(None)) {
            headless.push(id);
        }
    }
    let place = url.directory().zip(directory);
    let facts = RepositoryFacts {
        name: format!("{url}, cluster {cluster},"),
        is_volume: url.directory().is_some(),
        roots: store.address().is_some_and(|address| address.starts_with("https:")).then(|| access.roots(url)),
        shares_disk: place.and_then(|(place, data)| mount::share_a_file_system(place, &data.path)),
        headless,
    };
    Ok(Opened { repository, facts })
}

/// Says why a store did not open; on a volume, whether it ought to be mounted.
fn unopened(url: &StoreUrl, error: &StoreError) -> Unknown {
    let problem = error::chain(error).to_string();
    match (url.directory().and_then(mount::unmounted), error.kind()) {
        (Some(point), _) => Unknown::mendable(
            format!("nothing is mounted on {}: {problem}", point.display()),
            format!("mount {}", point.display()),
        ),
        (None, ErrorKind::Denied) => Unknown::mendable(problem, "let the server's user read, write and enter it"),
        (None, _) if url.directory().is_some() => {
            Unknown::mendable(problem, "mount the volume; if it is new, run `walvault init`")
        }
        (None, _) => Unknown::mendable(problem, "check the repository's URL, the network and the credentials"),
    }
}

/// Says why a bucket's repository did not open; of a certificate also whose signature would be believed.
fn unopened_bucket(access: &Access, url: &StoreUrl, error: RepoError) -> Unknown {
    let untrusted = matches!(&error, RepoError::Store(error) if error.obstacle() == Some(Obstacle::Authority));
    match unknown_repo(error) {
        Unknown::Failed { problem, mend } if untrusted => {
            Unknown::Failed { problem: format!("{problem}; believed are {}", access.roots(url)), mend }
        }
        other => other,
    }
}

fn not_initialised(url: &StoreUrl, store: &Store, cluster: &str, error: &RepoError) -> Unknown {
    let lanes = Repository::lane_folders(store, cluster).unwrap_or_default();
    if let Some(lane) = lanes.first() {
        return Unknown::mendable(
            format!("{cluster}/repository.json is missing and {cluster}/{lane} is there: half a copy of a repository?"),
            "copy the repository again, whole; do not run `walvault init` over it",
        );
    }
    if let Some(point) = url.directory().and_then(mount::unmounted) {
        let text = format!("nothing is mounted on {}", point.display());
        return Unknown::mendable(text, format!("mount {}", point.display()));
    }
    let mend = match url {
        StoreUrl::Volume(_) => {
            "is the volume mounted, and the cluster's name right? For a new repository run `walvault init`"
        }
        StoreUrl::S3(_) | StoreUrl::Gcs(_) => {
            "are bucket, folder and the cluster's name right? For a new repository run `walvault init`"
        }
    };
    Unknown::mendable(error::chain(error).to_string(), mend)
}

fn unknown_repo(error: RepoError) -> Unknown {
    let problem = error::chain(&error).to_string();
    if let Some(mend) = mend::of(&error) {
        return Unknown::mendable(problem, mend);
    }
    match error.kind() {
        ErrorKind::Denied => Unknown::mendable(problem, "let the server's user read, write and enter the repository"),
        ErrorKind::Corrupt => Unknown::mendable(problem, "bring the object back from a copy of the repository"),
        ErrorKind::Unavailable => Unknown::mendable(problem, "find out why the store does not answer, and check again"),
        _ => Unknown::failed(problem),
    }
}

fn lane_state(inputs: &Inputs<'_>, lane: &Lane, directory: Option<&DataDirectory>) -> Known<LaneState> {
    let misfit = directory.map(|directory| LaneFacts::of(&directory.control)).filter(|own| !lane.facts().fits(own));
    let misfit = misfit.map(|own| format!("lane {} was made for {}, this server has {own}", lane.id(), lane.facts()));
    let timeline = directory.map_or(TimelineId::FIRST, |directory| directory.control.timeline);
    let others = lane.repository().lane_ids().map_err(unknown_repo)?.len().saturating_sub(1);
    let contested = lane.contested().map_err(unknown_repo)?;
    Ok(LaneState {
        id: lane.id(),
        misfit,
        others,
        timeline,
        owner: lane.owners(timeline).map_err(unknown_repo)?.current.map(|record| record.owner),
        writer: directory.and_then(inputs.writer).map_or_else(String::new, |writer| writer.token),
        contested: contested.iter().filter(|file| !file.resolved).map(|file| file.key().to_owned()).collect(),
    })
}

fn probe(inputs: &Inputs<'_>, opened: &Opened, directory: Option<&DataDirectory>) -> Known<crate::repo::Probe> {
    // What another user writes on a volume would be in the way of the server's own.
    if let Some(owner) = user(inputs, directory).owner
        && opened.facts.is_volume
    {
        return Err(Unknown::not_checked(format!("to be tried as {owner}")));
    }
    opened.repository.probe(REQUEST_BUDGET).map_err(unknown_repo)
}
