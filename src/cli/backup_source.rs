//! Where a backup comes from: the server's files, if they can be seen here, or else the replication protocol.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::wal_beside::Beside;
use crate::archive::{Archived, PushOptions, Writer};
use crate::backup::{
    BackupError, BackupOptions, BackupReport, Budget, RemoteError, WalBeside, perform, perform_remote,
};
use crate::error::ErrorKind;
use crate::instance::replication::{Canceller, ReplicationClient};
use crate::instance::{
    BackupServer, BackupSession, ConnectionSettings, DataDirectory, NameSession, ServerRole, SessionError,
};
use crate::pg::system_id::SystemId;
use crate::progress::Progress;
use crate::repo::Repository;
use crate::view::backups::Origin;

/// Seconds that a server may take from its lock file to its start.
const MOMENT: i64 = 60;

/// What `--from` says.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceArg {
    /// The data directory, read on this host
    Local,
    /// The server itself, over the replication protocol
    Remote,
}

/// What was said of the data directory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Named<'a> {
    /// Nothing: it is where the server says.
    Nothing,
    /// Where it is.
    TheServers(&'a Path),
    /// Where that of one of the hosts is that were named.
    OneHosts(&'a Path),
}

impl<'a> Named<'a> {
    pub fn new(directory: Option<&'a Path>, hosts: usize) -> Self {
        match directory {
            None => Self::Nothing,
            Some(path) if hosts > 1 => Self::OneHosts(path),
            Some(path) => Self::TheServers(path),
        }
    }

    fn path(self) -> Option<&'a Path> {
        match self {
            Self::Nothing => None,
            Self::TheServers(path) | Self::OneHosts(path) => Some(path),
        }
    }
}

/// A source, connected to.
pub(super) enum Source {
    /// And why its files are read.
    Local(Box<BackupSession>, String),
    Remote(Box<Remote>),
}

/// A server that sends what is to be stored.
pub(super) struct Remote {
    client: ReplicationClient,
    role: ServerRole,
    settings: ConnectionSettings,
    /// What brings its WAL into the archive.
    beside: Option<Beside>,
    /// Why its files are not read.
    reason: String,
}

impl Source {
    /// Connects to the source that was asked for, or to the one that there is.
    pub fn choose(
        from: Option<SourceArg>,
        settings: &ConnectionSettings,
        data_directory: Named<'_>,
    ) -> Result<Self, BackupError> {
        let local = |session, reason: &str| Ok(Self::Local(Box::new(session), reason.to_owned()));
        match from {
            Some(SourceArg::Remote) => Self::remote(settings, "asked for with --from remote".to_owned()),
            Some(SourceArg::Local) => local(BackupSession::connect(settings)?, "asked for with --from local"),
            // Who names a data directory wants that one; beside several hosts it is one of theirs.
            None if matches!(data_directory, Named::TheServers(_)) => {
                local(BackupSession::connect(settings)?, "the data directory was named")
            }
            None => match BackupSession::connect(settings) {
                Ok(mut session) => match not_here(&mut session, data_directory.path())? {
                    None => local(session, "the server's data directory is seen on this host"),
                    // The same server, where several would do.
                    Some(reason) => Self::remote(session.settings(), reason),
                },
                Err(SessionError::Statement { source, .. })
                    if source.code().is_some_and(|code| code.code() == "42501") =>
                {
                    Self::remote(settings, "this user may not know where the data directory is".to_owned())
                }
                Err(error) => Err(error.into()),
            },
        }
    }

    fn remote(settings: &ConnectionSettings, reason: String) -> Result<Self, BackupError> {
        let mut client = ReplicationClient::connect(settings).map_err(RemoteError::from)?;
        let standby = client.in_recovery().map_err(RemoteError::from)?;
        let role = if standby { ServerRole::Standby } else { ServerRole::Primary };
        // Names are asked of the server that is backed up, not of another that would do as well.
        let settings = settings.only(client.endpoint());
        Ok(Self::Remote(Box::new(Remote { client, role, settings, beside: None, reason })))
    }

    /// Returns where the files come from, and why from there.
    pub fn origin(&self) -> Origin {
        let (remote, target, reason) = match self {
            Self::Local(session, reason) => (false, session.settings().target(), reason),
            Self::Remote(remote) => (true, remote.settings.target(), &remote.reason),
        };
        Origin { remote, target, role: self.role(), reason: reason.clone() }
    }

    pub fn role(&self) -> ServerRole {
        match self {
            Self::Local(session, _) => session.facts().role(),
            Self::Remote(remote) => remote.role,
        }
    }

    /// Asks which server it is.
    pub fn system_id(&mut self) -> Result<SystemId, BackupError> {
        match self {
            Self::Local(session, _) => Ok(session.facts().system_id),
            Self::Remote(remote) => Ok(remote.client.identify().map_err(RemoteError::from)?.system_id),
        }
    }

    /// Divides the memory as this source needs it.
    pub fn budget(&self, memory: u64, threads: usize) -> Budget {
        match self {
            Self::Local(..) => Budget::new(memory, threads),
            Self::Remote(_) => Budget::remote(memory, threads),
        }
    }

    /// Takes the backup.
    pub fn perform(
        &mut self,
        repository: &Repository,
        options: &BackupOptions,
        progress: &Progress,
    ) -> Result<BackupReport, BackupError> {
        match self {
            Self::Local(session, _) => perform(repository, session.as_mut(), options, progress),
            Self::Remote(remote) => {
                let names = NameSession::connect(&remote.settings);
                let beside = remote.beside.as_mut().map(|beside| beside as &mut dyn WalBeside);
                perform_remote(repository, &mut remote.client, names, options, progress, beside)
            }
        }
    }
}

impl Remote {
    /// Has the WAL of the backup streamed into the archive, in this writer's name: kept by the slot that is named, or by one
    /// of its own.
    pub fn stream_wal(&mut self, slot: Option<&str>, writer: Writer, options: PushOptions) -> Result<(), RemoteError> {
        let system_id = self.client.identify()?.system_id;
        self.beside = Some(Beside::open(&self.settings, system_id, slot, writer, options)?);
        Ok(())
    }

    /// What was streamed into the archive beside the backup.
    pub fn streamed(&self) -> Option<Archived> {
        self.beside.as_ref()?.archived()
    }

    /// What ends everything that the server does for the backup.
    pub fn cancellers(&self) -> Vec<Canceller> {
        let beside = self.beside.as_ref().and_then(Beside::canceller);
        self.client.canceller().into_iter().chain(beside).collect()
    }
}

/// Returns why the server's files cannot be read here; `None` if they can.
///
/// The directory must be the running server's own: a copy of it on this host has the same path and the same system
/// identifier, and not the same postmaster; and what the server writes does not show there.
fn not_here(session: &mut BackupSession, named: Option<&Path>) -> Result<Option<String>, BackupError> {
    let path = named.map_or_else(|| PathBuf::from(&session.facts().data_directory), Path::to_path_buf);
    let path = path.as_path();
    let shown = path.display();
    let directory = match DataDirectory::open(path) {
        Ok(directory) => directory,
        Err(error) if matches!(error.kind(), ErrorKind::Denied) => {
            return Ok(Some(format!("the data directory {shown} may not be read by this user")));
        }
        Err(_) => return Ok(Some(format!("the data directory {shown} cannot be seen on this host"))),
    };
    let started = std::fs::read_to_string(path.join("postmaster.pid")).unwrap_or_default();
    let started = started.lines().nth(2).and_then(|line| line.trim().parse::<i64>().ok());
    // The server notes its time a moment after the file's: it has shared memory to set up in between.
    let after = started.map(|started| session.started().map(|running| running - started)).transpose()?;
    let same = directory.control.system_id == session.facts().system_id
        && after.is_some_and(|seconds| (-1..=MOMENT).contains(&seconds))
        && session.lives_in(path)?;
    Ok((!same).then(|| format!("{shown} on this host is not the data directory of the server")))
}
