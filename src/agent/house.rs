//! What all requests share: the open repository, the limits, the store's health, and what is counted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::ahead::Ahead;
use super::breaker::Breaker;
use super::past::{OwnServer, Past};
use super::prefetch::Prefetch;
use super::signs::Signs;
use super::use_made::UseMade;
use super::wire::{Reply, Request, Task};
use super::{AgentFailure, Final, wire};
use crate::archive::Forks;
use crate::error::{ErrorKind, one_line};
use crate::metrics::{Count, Level, Metrics};
use crate::repo::{FRESH, Lane, LaneFacts, LaneId, RepoError, Repository};

/// Opens the repository within a time.
pub type OpenRepository = Box<dyn Fn(Duration) -> Result<Repository, RepoError> + Send + Sync>;

/// How long a lane's document counts where files are fetched: somebody may have removed the repository and made another.
const LANE_FRESH: Duration = Duration::from_secs(60);

/// How much the agent may use, and who may ask.
#[derive(Clone, Debug)]
pub struct Limits {
    /// zstd level.
    pub level: i32,
    /// zstd level while many files wait, if that is lower.
    pub backlog_level: i32,
    /// Threads that compress, and as many that decompress.
    pub threads: usize,
    /// Bytes of segments archived before they are asked for.
    pub look_ahead: u64,
    /// Bytes of segments fetched before they are asked for.
    pub prefetch: u64,
    /// Where these wait.
    pub scratch: Option<PathBuf>,
    /// Users that may ask besides our own and root.
    pub users: Vec<u32>,
    /// The server whose data directory the settings name, if they do.
    pub own: Option<OwnServer>,
    /// How long it stays.
    pub stay: Stay,
}

/// How long a process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// Until it is told to end: an agent.
    Resident,
    /// Until nobody has asked for anything in so long, or an agent wants its place: a helper.
    UntilIdle(Duration),
}

impl Stay {
    /// Returns how long a directory is held after something was archived from it: it keeps its volume busy.
    pub(super) fn holds_directories(self) -> Duration {
        const RESIDENT: Duration = Duration::from_secs(120);
        const HELPER: Duration = Duration::from_secs(5);
        match self {
            Stay::Resident => RESIDENT,
            Stay::UntilIdle(idle) => HELPER.min(idle),
        }
    }
}

impl Limits {
    /// Returns how many files are archived, and how many fetched, ahead at one time: more threads than that would take
    /// memory for a rate that no server writes at.
    pub(super) fn workers(&self) -> usize {
        const MOST: usize = 4;
        self.threads.clamp(1, MOST)
    }

    /// Returns the most memory that archiving ahead takes at one time, in bytes, for segments of `segment` bytes that do not
    /// compress: each worker holds a file's frames, the object that is made of them, and what it encodes and writes with.
    pub fn memory_bytes(&self, segment: u64) -> u64 {
        const BENCH: u64 = 5 << 20;
        self.workers() as u64 * (2 * segment + BENCH)
    }
}

/// The agent's inside. Everything in it may be lost at any moment.
pub struct House {
    repository: String,
    /// The server that the settings name for the bucket.
    server: Option<String>,
    cluster: String,
    open: OpenRepository,
    limits: RwLock<Limits>,
    opened: Mutex<Opened>,
    pub(super) breaker: Breaker,
    pub(super) ahead: Ahead,
    pub(super) prefetch: Prefetch,
    pub(super) past: Past,
    pub(super) signs: Arc<Signs>,
    pub(super) use_made: UseMade,
    /// What is counted.
    pub metrics: Metrics,
}

#[derive(Default)]
struct Opened {
    repository: Option<(Repository, Instant)>,
    lanes: BTreeMap<LaneId, KnownLane>,
    /// How often the repository was opened.
    openings: u64,
    /// Retries that were counted already.
    retries: u64,
}

#[derive(Clone)]
struct KnownLane {
    lane: Lane,
    read: Instant,
    forks: Arc<Forks>,
}

impl House {
    /// Makes an agent for a cluster of the repository with this digest, on the server that the settings name for the bucket;
    /// nothing is opened yet.
    pub fn new(
        (repository, server): (String, Option<String>),
        cluster: String,
        open: OpenRepository,
        limits: Limits,
    ) -> Arc<Self> {
        Arc::new(Self {
            repository,
            server,
            cluster,
            open,
            limits: RwLock::new(limits),
            opened: Mutex::default(),
            breaker: Breaker::default(),
            ahead: Ahead::default(),
            prefetch: Prefetch::default(),
            past: Past::default(),
            signs: Arc::default(),
            use_made: UseMade::default(),
            metrics: Metrics::default(),
        })
    }

    /// The digest of the repository and the cluster that are served.
    pub(super) fn serves(&self) -> (&str, &str) {
        (&self.repository, &self.cluster)
    }

    /// The server that the settings name for the bucket.
    pub(super) fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }

    /// Returns the limits in force.
    pub fn limits(&self) -> Limits {
        self.limits.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other limits into force.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Returns the open repository, opening it if it is not.
    ///
    /// # Errors
    /// As opening it.
    pub fn repository(&self, budget: Duration) -> Result<Repository, RepoError> {
        let known = self.opened().repository.clone();
        if let Some((repository, asked)) = known {
            let repository = repository.with_budget(budget);
            if asked.elapsed() < LANE_FRESH {
                return Ok(repository);
            }
            if repository.is_unchanged()? {
                self.opened().repository = Some((repository.clone(), Instant::now()));
                return Ok(repository);
            }
            warn!("the repository was made anew, in another way");
            self.forget();
        }
        let repository = (self.open)(budget)?;
        let mut opened = self.opened();
        opened.retries = 0;
        opened.openings += 1;
        opened.repository = Some((repository.clone(), Instant::now()));
        Ok(repository.with_budget(budget))
    }

    /// Tells this opening of the repository from every other one.
    pub(super) fn opening(&self) -> u64 {
        self.opened().openings
    }

    /// Opens everything anew at the next request: a volume that was mounted again is another one to who had it open.
    pub(super) fn forget(&self) {
        self.count_retries();
        let mut opened = self.opened();
        opened.repository = None;
        opened.lanes.clear();
    }

    /// Returns the lane of a server, which is created if it is not there.
    pub(super) fn lane_for(&self, facts: &LaneFacts, budget: Duration) -> Result<Lane, RepoError> {
        let id = LaneId::first(facts.system_id);
        let known = self.known(id, self.fresh_for_pushes()).filter(|known| known.lane.facts() == facts);
        if let Some(known) = known {
            return Ok(known.lane.with_budget(budget));
        }
        let lane = self.repository(budget)?.lane_for(facts)?;
        self.remember(id, &lane);
        Ok(lane)
    }

    /// Returns a lane and what is known of its histories, if it is there.
    pub(super) fn lane(&self, id: LaneId, budget: Duration) -> Result<Option<(Lane, Arc<Forks>)>, RepoError> {
        if let Some(known) = self.known(id, LANE_FRESH) {
            return Ok(Some((known.lane.with_budget(budget), known.forks)));
        }
        let Some(lane) = self.repository(budget)?.lane(id)? else { return Ok(None) };
        let forks = self.remember(id, &lane);
        Ok(Some((lane, forks)))
    }

    /// Reads the documents of the repository and of a lane, whatever is known of them; returns whether they are there. What
    /// the store lacks is proven to be absent only by a store that has these.
    ///
    /// # Errors
    /// As opening the repository.
    pub(super) fn lane_is_there(&self, id: LaneId, budget: Duration) -> Result<bool, RepoError> {
        let known = self.opened().repository.clone();
        let Some((repository, _)) = known else { return Ok(self.repository(budget)?.lane(id)?.is_some()) };
        let repository = repository.with_budget(budget);
        Ok(repository.is_unchanged()? && repository.lane(id)?.is_some())
    }

    /// A request for a volume's document costs nothing, and tells that it is mounted still.
    fn fresh_for_pushes(&self) -> Duration {
        let opened = self.opened();
        let in_bucket = opened.repository.as_ref().is_some_and(|(repository, _)| repository.is_in_bucket());
        if in_bucket { FRESH } else { LANE_FRESH }
    }

    fn known(&self, id: LaneId, fresh: Duration) -> Option<KnownLane> {
        self.opened().lanes.get(&id).filter(|known| known.read.elapsed() < fresh).cloned()
    }

    fn remember(&self, id: LaneId, lane: &Lane) -> Arc<Forks> {
        let known = KnownLane { lane: lane.clone(), read: Instant::now(), forks: Arc::default() };
        let forks = Arc::clone(&known.forks);
        self.opened().lanes.insert(id, known);
        forks
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_retries(&self) {
        let mut opened = self.opened();
        let Some(now) = opened.repository.as_ref().map(|(repository, _)| repository.store().retries()) else { return };
        self.metrics.add(Count::Retries, now.saturating_sub(opened.retries));
        opened.retries = now;
    }

    /// Returns why a request is not for this agent.
    pub(super) fn declines(&self, request: &Request) -> Option<String> {
        // A helper of an earlier version, or of the repository that was set before, must not be in an agent's way.
        if matches!(request.task, Task::MakeWay) {
            return None;
        }
        if (request.protocol, request.version.as_str()) != (wire::PROTOCOL, wire::VERSION) {
            return Some(format!("this agent is walvault {}, the command {}", wire::VERSION, request.version));
        }
        if request.cluster != self.cluster {
            return Some(format!("this agent is cluster {}'s, the command's is {}", self.cluster, request.cluster));
        }
        if request.repository != self.repository {
            return Some("the command uses another repository".to_owned());
        }
        if !wire::may_stand_in(self.server(), request.server.as_deref()) {
            return Some("the command uses a bucket of that name on another server".to_owned());
        }
        let system_id = match &request.task {
            Task::Push(task) => Some(task.server.system_id),
            Task::Fetch(task) => task.lane.parse::<LaneId>().ok().map(LaneId::system_id),
            Task::MakeWay => Some(request.system_id),
        };
        let fits = system_id == Some(request.system_id);
        (!fits).then(|| format!("the request is of system {} and of another one too", request.system_id))
    }

    /// Notes the store's failure, once nobody else could do the work either.
    pub(super) fn store_failed(&self, failure: &AgentFailure) {
        if self.breaker.failed(Instant::now(), &failure.text) {
            warn!(error = %failure.text, "the store counts as gone; pushes fail at once until it answers");
        }
        self.metrics.set(Level::BreakerOpen, u64::from(self.breaker.refuses(Instant::now()).is_some()));
    }

    /// Notes that the store works.
    pub(super) fn store_worked(&self) {
        if self.breaker.worked() {
            info!("the store answers again");
        }
        self.metrics.set(Level::BreakerOpen, 0);
    }

    /// Notes that a command could do what the agent could not.
    pub(super) fn outdone(&self, failure: &AgentFailure) {
        error!(error = %failure.text, "a command did what this agent could not; look at the agent's rights and settings");
        self.breaker.worked();
        self.metrics.set(Level::BreakerOpen, 0);
    }

    /// Returns the metrics' text; levels are measured now.
    pub fn metrics_text(&self) -> String {
        self.count_retries();
        self.ahead.measure(&self.metrics, self.limits().stay.holds_directories());
        let now = crate::clock::now().timestamp().max(0) as u64;
        self.metrics.text(now)
    }
}

/// Makes a reply of a failure.
pub(super) fn failed(kind: ErrorKind, error: &(dyn std::error::Error + 'static), settled: Option<Final>) -> Reply {
    const LINE: usize = 400;
    Reply::Failed { kind, text: one_line(error, LINE), settled }
}

/// Whether a failure says something of the store, and not of the file.
pub(super) const fn is_the_stores(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Unavailable | ErrorKind::Busy | ErrorKind::Denied | ErrorKind::Full => true,
        ErrorKind::NotFound
        | ErrorKind::Conflict
        | ErrorKind::Corrupt
        | ErrorKind::Invalid
        | ErrorKind::Cancelled
        | ErrorKind::Internal => false,
    }
}
