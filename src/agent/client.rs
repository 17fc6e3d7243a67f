//! The command's side: asks the agent, and knows when to do the work itself.
//!
//! A command believes an agent only if it runs as the same user, as root, or as a user that is named. It waits for the
//! answer as long as signs of life come, and keeps some of its own time back.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, linkat};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::wire::{self, DidItMyself, FetchTask, Mode, PushTask, Reply, Request, Task};
use super::{AgentFailure, Door, peer};
use crate::archive::{Caller, FetchBudgets, FileIdentity, WalFile, Writer};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::pg::wal_page::{FirstPage, PageHeader};
use crate::repo::{LaneFacts, LaneId};
use crate::store::mount::hear_of_lost_writes;

/// An agent that shows no sign of life for so long is none: it hangs, or was stopped.
const SILENCE: Duration = Duration::from_secs(2);
/// How long to wait for a place in the agent's queue.
const CONNECT: Duration = Duration::from_millis(500);

/// Whom to ask.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    repository: String,
    server: Option<String>,
    cluster: String,
    users: Vec<u32>,
    /// [`SILENCE`], but in tests.
    silence: Duration,
}

/// What became of asking.
#[derive(Debug)]
pub enum Asked<T> {
    /// The work is done.
    Answered(T),
    /// It failed, and would again.
    Settled(AgentFailure),
    /// It failed; whoever can do the work tells so by the [`Note`].
    Unsettled(AgentFailure, Note),
    /// Nobody was there who could be asked or believed, or nobody came to an end.
    Nobody,
}

/// The way to tell an agent that what failed it can be done.
#[derive(Debug)]
pub struct Note(UnixStream);

impl Note {
    /// Tells that the command did the work itself.
    pub fn did_it_myself(self) {
        // An agent that has gone needs not know.
        let _ = wire::send(&self.0, &DidItMyself, &[]);
    }
}

/// A file to be archived.
#[derive(Debug)]
pub struct Offered<'a> {
    /// The file.
    pub file: &'a WalFile,
    /// The server that wrote it.
    pub server: &'a LaneFacts,
    /// Who archives it.
    pub writer: &'a Writer,
}

/// A file that is wanted.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Its name.
    pub name: &'a WalFileName,
    /// Where it goes.
    pub destination: &'a Path,
    /// The lane to take it from.
    pub lane: LaneId,
    /// Bytes in the server's segments.
    pub segment_size: SegmentSize,
    /// Who asks.
    pub caller: &'a Caller,
    /// How far a standby has certainly replayed, and on which timeline.
    pub replayed: Option<(TimelineId, Lsn)>,
    /// Whether a signal file says that a recovery is under way, which will ask for what comes next.
    pub signalled: bool,
    /// Time for one request to the store.
    pub request: Duration,
    /// Time for what is expected to appear.
    pub budgets: FetchBudgets,
}

/// What the agent did about a file that was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brought {
    /// It is in place.
    InPlace,
    /// It is proven not to exist.
    ProvenAbsent,
}

impl Client {
    /// Makes a client of the agent for a cluster of the repository with this digest; `users` are believed besides our own
    /// and root.
    pub fn new(runtime: &Path, repository: String, cluster: &str, users: Vec<u32>) -> Self {
        Self {
            socket: Door::path_in(runtime, cluster),
            repository,
            server: None,
            cluster: cluster.to_owned(),
            users,
            silence: SILENCE,
        }
    }

    /// Declines an agent whose settings name another server for the bucket.
    pub fn at(self, server: Option<String>) -> Self {
        Self { server, ..self }
    }

    /// Takes an agent for one that hangs only after so long.
    #[cfg(test)]
    pub(super) fn bearing(self, silence: Duration) -> Self {
        Self { silence, ..self }
    }

    /// Has a file archived within `budget`.
    pub fn push(&self, offered: &Offered<'_>, budget: Duration) -> Asked<()> {
        let asked = self.try_push(offered, Instant::now() + budget);
        // Whatever went wrong with the conversation, the file is there still.
        asked.unwrap_or(Asked::Nobody)
    }

    fn try_push(&self, offered: &Offered<'_>, deadline: Instant) -> io::Result<Asked<()>> {
        let stream = self.connect()?;
        let path = &offered.file.path;
        let file = File::open(path)?;
        let before = FileIdentity::of(&file.metadata()?);
        let task = Task::Push(PushTask {
            name: offered.file.name.to_string(),
            path: path.display().to_string(),
            server: offered.server.clone(),
            token: offered.writer.token.clone(),
            former: offered.writer.former.clone(),
            host: offered.writer.host.clone(),
            grace_seconds: offered.writer.grace.as_secs(),
            takes_over: offered.writer.takes_over,
            follows: offered.writer.follows,
        });
        let parent = path.parent().filter(|parent| parent.join("archive_status").is_dir());
        let directory = parent.map(File::open).transpose()?;
        let files: Vec<_> = std::iter::once(&file).chain(&directory).map(AsFd::as_fd).collect();
        let (reply, _) = self.ask(&stream, offered.server.system_id, task, &files, deadline)?;
        match reply {
            // What was archived is what was passed; it must also be what is there under the name.
            Reply::Archived if before.same_contents(&FileIdentity::of(&fs::metadata(path)?)) => Ok(Asked::Answered(())),
            other => Ok(failure(other, stream)),
        }
    }

    /// Has a file brought within `budget`.
    pub fn fetch(&self, wanted: &Wanted<'_>, budget: Duration) -> Asked<Brought> {
        self.try_fetch(wanted, Instant::now() + budget).unwrap_or(Asked::Nobody)
    }

    fn try_fetch(&self, wanted: &Wanted<'_>, deadline: Instant) -> io::Result<Asked<Brought>> {
        let stream = self.connect()?;
        let millis = |time: Duration| time.as_millis() as u64;
        let (mode, plan) = match wanted.caller {
            Caller::Recovery(plan) if wanted.signalled => (Mode::Recovery, plan.clone()),
            Caller::Recovery(plan) => (Mode::Unsignalled, plan.clone()),
            Caller::Standby => (Mode::Standby, None),
            Caller::Exact => (Mode::Exact, None),
        };
        let task = Task::Fetch(FetchTask {
            name: wanted.name.to_string(),
            lane: wanted.lane.to_string(),
            mode,
            plan,
            replayed: wanted.replayed,
            device: device_for(&stream, wanted.destination),
            request_ms: millis(wanted.request),
            hole_ms: millis(wanted.budgets.hole),
            standby_hole_ms: millis(wanted.budgets.standby_hole),
        });
        let (reply, mut files) = self.ask(&stream, wanted.lane.system_id(), task, &[], deadline)?;
        match reply {
            Reply::Here => {
                let file = files.pop().ok_or(io::ErrorKind::InvalidData)?;
                check(&file, wanted)?;
                put_in_place(&file, wanted.destination)?;
                Ok(Asked::Answered(Brought::InPlace))
            }
            Reply::Absent => Ok(Asked::Answered(Brought::ProvenAbsent)),
            other => Ok(failure(other, stream)),
        }
    }

    /// Whether nobody listens at all: no socket, or one that a dead process left.
    pub fn finds_nobody(&self) -> bool {
        let gone =
            |error: io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        self.connect().is_err_and(gone)
    }

    /// Asks who listens to let go of the socket; returns whether it does, as a helper and not as an agent.
    pub fn asks_to_make_way(&self) -> bool {
        let Ok(stream) = self.connect() else { return false };
        let deadline = Instant::now() + self.silence;
        let asked = self.ask(&stream, SystemId::new(0), Task::MakeWay, &[], deadline);
        matches!(asked, Ok((Reply::MakingWay, _)))
    }

    /// The agent's socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The digest of the repository and the cluster whose agent is meant.
    pub(super) fn wants(&self) -> (&str, &str) {
        (&self.repository, &self.cluster)
    }

    /// The server that the command's settings name for the bucket.
    pub(super) fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }

    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let address = SocketAddrUnix::new(&self.socket)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(CONNECT))?;
        connect(&socket, &address)?;
        if !peer::is_trusted(peer::user_of(&socket)?, &self.users) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let stream = UnixStream::from(socket);
        stream.set_write_timeout(Some(self.silence))?;
        stream.set_read_timeout(Some(self.silence))?;
        Ok(stream)
    }

    fn ask(
        &self,
        stream: &UnixStream,
        system_id: SystemId,
        task: Task,
        files: &[std::os::fd::BorrowedFd<'_>],
        deadline: Instant,
    ) -> io::Result<(Reply, Vec<File>)> {
        let request = Request {
            protocol: wire::PROTOCOL,
            version: wire::VERSION.to_owned(),
            repository: self.repository.clone(),
            server: self.server.clone(),
            cluster: self.cluster.clone(),
            system_id,
            budget_ms: deadline.saturating_duration_since(Instant::now()).as_millis() as u64,
            task,
        };
        wire::send(stream, &request, files)?;
        wire::receive(stream, || match Instant::now() < deadline {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        })
    }
}

fn failure<T>(reply: Reply, stream: UnixStream) -> Asked<T> {
    match reply {
        Reply::Failed { kind, text, settled } => {
            let failure = AgentFailure { kind, text, settled };
            if settled.is_some() { Asked::Settled(failure) } else { Asked::Unsettled(failure, Note(stream)) }
        }
        _ => Asked::Nobody,
    }
}

/// Looks whether what came is what was asked for: bytes were verified, and this is the last moment to see a mix-up.
fn check(file: &File, wanted: &Wanted<'_>) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let WalFileName::Segment(segment) = wanted.name else { return Ok(()) };
    let mut start = [0; PageHeader::LONG];
    file.read_exact_at(&mut start, 0)?;
    let fits = file.metadata()?.len() == wanted.segment_size.bytes() && is_start_of(*segment, &start, wanted);
    if fits { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn is_start_of(segment: SegmentName, start: &[u8], wanted: &Wanted<'_>) -> bool {
    let page = FirstPage::parse(start);
    page.is_ok_and(|page| page.belongs_to(segment, wanted.segment_size, Some(wanted.lane.system_id())).is_ok())
}

/// Returns the file system of the directory that a file goes to, if what the agent writes there may be linked by us.
fn device_for(agent: &UnixStream, destination: &Path) -> Option<u64> {
    let own = peer::user_of(agent).is_ok_and(|user| user == rustix::process::geteuid().as_raw());
    let directory = destination.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(fs::metadata(directory).ok().filter(|_| own)?.dev())
}

/// Gives the file its name: links it where that can be done, and copies it elsewhere.
///
/// Under an unfinished name first, as an own fetch does. Nobody but us writes to what gets the name: the agent has done
/// with it.
fn put_in_place(file: &File, destination: &Path) -> io::Result<()> {
    let mut unfinished = destination.as_os_str().to_owned();
    unfinished.push(".walvault");
    let unfinished = PathBuf::from(unfinished);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let own = file.metadata()?.uid() == rustix::process::geteuid().as_raw();
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    let linked = own && linkat(CWD, name.as_str(), CWD, &unfinished, AtFlags::SYMLINK_FOLLOW).is_ok();
    let placed = if linked { Ok(()) } else { copy(file, &unfinished) };
    let placed = placed.and_then(|()| fs::rename(&unfinished, destination));
    if placed.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&unfinished);
    }
    placed
}

fn copy(file: &File, to: &Path) -> io::Result<()> {
    use std::io::Seek;
    let mut from = file;
    from.rewind()?;
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let copied = io::copy(&mut from, &mut copy)?;
    if copied != file.metadata()?.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    hear_of_lost_writes(&copy)
}
