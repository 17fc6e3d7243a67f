//! `walvault agent`.

use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::Cli;
use super::context::{self, CommandError, group_named, settings, user_number};
use super::exit::Fault;
use super::log;
use crate::agent::{Door, DoorError, House, Limits, OwnServer, Running, Stay, listen_http, serve};
use crate::config::Settings;
use crate::error::{ErrorKind, one_line};
use crate::repo::{RepoError, Repository};
use crate::store::Store;

/// Serve `wal push` and `wal fetch` of one cluster
///
/// Optional: the commands find it by its socket and do the work themselves when it is not there. It archives the next
/// finished segments before PostgreSQL asks for them, fetches the next ones for a recovery, and serves metrics. It can be
/// killed and started at any moment. SIGHUP reads the settings again. Runs until SIGTERM or SIGINT and exits 0 then.
#[derive(clap::Args, Debug)]
pub(super) struct AgentArgs {
    /// Log every step
    #[arg(long)]
    verbose: bool,
}

pub(super) fn run(cli: &Cli, args: &AgentArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    log::to_stderr(args.verbose);
    let mut signals = Signals::catch().map_err(internal)?;
    let house = house(&settings)?;
    // A repository that is not there now may be there later; settings that make no sense stay that way.
    if let Err(error) = house.repository(settings.seconds("attempt_timeout")) {
        let failure = CommandError::from(error);
        if failure.fault == Fault::Configuration {
            return Err(failure);
        }
        warn!(error = %one_line(failure.error.as_ref(), 400), "the repository cannot be opened yet");
    }
    let group = settings.agent_group().map(|name| {
        let misuse = || CommandError::new(Fault::Configuration, format!("agent_group is {name}, which is no group"));
        group_named(name).ok_or_else(misuse)
    });
    let path = Door::path_in(&settings.runtime_directory(), &settings.cluster);
    let door = open_door(&path, group.transpose()?, &settings)?;
    let running = serve(Arc::clone(&house), door).map_err(internal)?;
    if let Some(address) = settings.metrics_address() {
        let bound = listen_http(&house, address).map_err(|error| {
            let text = format!("metrics_listen is {address}: {error}");
            CommandError::new(Fault::Configuration, text)
        })?;
        info!(address = %bound, "serving metrics");
    }
    let limits = house.limits();
    let memory = limits.memory_bytes(16 << 20);
    info!(socket = %path.display(), threads = limits.threads, most_memory_bytes = memory, "ready");
    notify("READY=1");
    wait(cli, &running, &mut signals);
    notify("STOPPING=1");
    running.stop();
    info!("stopped");
    Ok(0)
}

/// Opens the door; a helper that has it makes way.
fn open_door(path: &Path, group: Option<u32>, settings: &Settings) -> Result<Door, DoorError> {
    /// A helper ends within this time, whatever it is at.
    const PATIENCE: Duration = Duration::from_secs(30);
    const LOOK_AGAIN: Duration = Duration::from_millis(50);
    let (client, until) = (context::agent(settings), Instant::now() + PATIENCE);
    // One that is busy may take longer to answer than a client waits.
    const ASKED: u32 = 5;
    let (mut promised, mut asked) = (false, 0);
    loop {
        match Door::open(path, group) {
            Err(DoorError::Taken(_)) if Instant::now() < until => {
                // It hears nobody any more while it ends.
                promised |= client.asks_to_make_way();
                asked += 1;
                if !promised && asked >= ASKED {
                    return Err(DoorError::Taken(path.to_path_buf()));
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            opened => return opened,
        }
    }
}

fn wait(cli: &Cli, running: &Running, signals: &mut Signals) {
    while signals.next() {
        match reload(cli) {
            Ok(limits) => {
                running.house().set_limits(limits);
                info!("settings were read again; repository, socket and addresses stay");
            }
            Err(failure) => error!(error = %one_line(failure.error.as_ref(), 400), "settings were not read again"),
        }
    }
}

/// Settings that change while the agent runs: a mistake in them must not end what works.
fn reload(cli: &Cli) -> Result<Limits, CommandError> {
    let settings = context::lenient_settings(cli)?;
    settings.unknown.iter().for_each(|line| warn!("{line}"));
    limits(&settings)
}

pub(super) fn house(settings: &Settings) -> Result<Arc<House>, CommandError> {
    let own = settings.clone();
    let open = move |budget| -> Result<Repository, RepoError> {
        let store = Store::open(&own.url, &own.access, own.retry_policy(budget))?;
        Repository::open(store, &own.cluster)
    };
    let repository = (context::repository_digest(settings), settings.access.server(&settings.url));
    Ok(House::new(repository, settings.cluster.clone(), Box::new(open), limits(settings)?))
}

fn limits(settings: &Settings) -> Result<Limits, CommandError> {
    let number = |name: &str| {
        let text = format!("agent_users names {name}, which is no user");
        user_number(name).ok_or_else(|| CommandError::new(Fault::Configuration, text))
    };
    let scratch = settings.scratch_directory().filter(|path| usable(path));
    if scratch.is_none() && settings.mebibytes("prefetch") > 0 {
        warn!("scratch_dir cannot be written to; nothing is fetched ahead");
    }
    Ok(Limits {
        level: settings.compression_level(),
        backlog_level: settings.backlog_level(),
        threads: settings.threads(),
        look_ahead: settings.mebibytes("look_ahead"),
        prefetch: settings.mebibytes("prefetch"),
        scratch,
        users: settings.agent_users().map(number).collect::<Result<_, _>>()?,
        own: settings.data_directory().map(|path| OwnServer {
            writer: context::writer_in(&path, settings),
            data_directory: path,
            delay: settings.seconds("standby_push_delay"),
        }),
        stay: Stay::Resident,
    })
}

/// Makes the directory if its parent is there; returns whether it can be written to.
pub(super) fn usable(path: &Path) -> bool {
    use std::os::unix::fs::DirBuilderExt;
    // It may be there, or not be ours to make; trying to write tells.
    let _ = std::fs::DirBuilder::new().mode(0o700).create(path);
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

/// Tells the service manager, if there is one.
///
/// Source: sd_notify(3).
fn notify(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => std::os::unix::net::SocketAddr::from_abstract_name(name),
        _ => std::os::unix::net::SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        warn!(%error, "the service manager was not told");
    }
}

/// Signals that the agent acts on.
struct Signals {
    pipe: UnixStream,
    end: Arc<AtomicBool>,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let (pipe, wake) = UnixStream::pair()?;
        let end = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&end))?;
        }
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
        }
        Ok(Self { pipe, end })
    }

    /// Waits; returns whether the settings are to be read again, and `false` when it is time to end.
    fn next(&mut self) -> bool {
        let mut byte = [0];
        let woken = loop {
            match self.pipe.read(&mut byte) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other.is_ok_and(|read| read > 0),
            }
        };
        woken && !self.end.load(Ordering::SeqCst)
    }
}

pub(super) fn internal(error: std::io::Error) -> CommandError {
    CommandError::new(Fault::Failed(ErrorKind::Internal), error)
}

impl From<DoorError> for CommandError {
    fn from(error: DoorError) -> Self {
        let hint = match &error {
            DoorError::Taken(_) => "one agent serves all servers of a cluster on this host",
            DoorError::TooLong(_) => "a socket's path is short by the system's rule",
            DoorError::System { .. } => "runtime_dir must exist and belong to the agent's user",
        };
        CommandError::new(Fault::Failed(ErrorKind::Unavailable), error).hint(hint)
    }
}
