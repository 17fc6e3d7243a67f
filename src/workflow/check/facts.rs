//! What a check knows before it judges.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::archive::Promotion;
use crate::format::Sha256;
use crate::instance::{ArchiverState, Between, Identity, Rights, Slot, WalDirectory};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;
use crate::repo::{LaneId, Owner, Probe};
use crate::retention::Overview;
use crate::store::Roots;

/// A fact, or why there is none.
pub type Known<T> = Result<T, Unknown>;

/// Why a fact is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// It was looked for, and that failed.
    Failed {
        /// How.
        problem: String,
        /// The next thing to do, if one is known.
        mend: Option<String>,
    },
    /// It was not looked for.
    NotChecked(String),
}

impl Unknown {
    /// It was looked for, and that failed.
    pub fn failed(problem: impl Into<String>) -> Self {
        Self::Failed { problem: problem.into(), mend: None }
    }

    /// It was looked for and that failed, and this is to be done.
    pub fn mendable(problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Failed { problem: problem.into(), mend: Some(mend.into()) }
    }

    /// It was not looked for.
    pub fn not_checked(reason: impl Into<String>) -> Self {
        Self::NotChecked(reason.into())
    }
}

/// Everything.
#[derive(Debug)]
pub struct Facts {
    /// When.
    pub now: DateTime<Utc>,
    /// The settings.
    pub config: Known<ConfigFacts>,
    /// Who runs the check.
    pub user: UserFacts,
    /// The agent.
    pub agent: Known<AgentFacts>,
    /// The data directory.
    pub data: Known<DataFacts>,
    /// Where the connection goes.
    pub target: String,
    /// The server.
    pub server: Known<Identity>,
    /// What stands before it.
    pub between: Known<Between>,
    /// What the role may do.
    pub rights: Known<Rights>,
    /// The server's settings that the role may read.
    pub settings: Known<BTreeMap<String, String>>,
    /// `archive_command`.
    pub archive_command: Known<CommandFacts>,
    /// `restore_command`.
    pub restore_command: Known<CommandFacts>,
    /// The archiver.
    pub archiver: Known<ArchiverState>,
    /// Replication slots.
    pub slots: Known<Vec<Slot>>,
    /// `pg_wal`.
    pub wal: Known<WalDirectory>,
    /// The repository.
    pub repository: Known<RepositoryFacts>,
    /// The server's lane; `None` if there is none yet.
    pub lane: Known<Option<LaneState>>,
    /// Tries on scratch objects.
    pub probe: Known<Probe>,
    /// What the lane holds.
    pub holdings: Known<Holdings>,
    /// How retention stands; `None` if there is no lane yet.
    pub retention: Known<Option<Overview>>,
    /// What became of the segment that was sent round.
    pub round_trip: Known<RoundTrip>,
    /// Whether an agent is there that may push from a standby.
    pub standby_agent: bool,
}

/// Who listens at the agent's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentFacts {
    /// Nobody.
    Nobody,
    /// Somebody who runs as a user that commands do not believe.
    Stranger,
    /// Somebody who does not answer as an agent does.
    Silent {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        problem: String,
    },
    /// An agent.
    Agent {
        /// Its version; `None` for one that is too old to tell.
        version: Option<String>,
        /// Whether it is the agent of this cluster and repository.
        ours: bool,
    },
}

/// The settings that walvault is called with.
#[derive(Clone, Debug)]
pub struct ConfigFacts {
    /// The file, if one was read.
    pub file: Option<PathBuf>,
    /// Where the repository is.
    pub destination: Destination,
    /// How this program is called with these settings, as a shell takes it.
    pub call: String,
    /// One line for each key that is no setting.
    pub unknown: Vec<String>,
}

/// Where commands read and write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The repository's URL.
    pub repository: String,
    /// The cluster's name.
    pub cluster: String,
}

/// Who runs the check.
#[derive(Clone, Debug)]
pub struct UserFacts {
    /// The user.
    pub name: String,
    /// The owner of the data directory, if it is another one.
    pub owner: Option<String>,
}

/// The data directory.
#[derive(Clone, Debug)]
pub struct DataFacts {
    /// Where.
    pub path: PathBuf,
    /// Its system.
    pub system_id: SystemId,
    /// Major of its server.
    pub major: u16,
    /// Timeline of its last checkpoint.
    pub timeline: TimelineId,
    /// Whether a server runs in it.
    pub running: bool,
}

/// A command that the server runs for each file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandFacts {
    /// There is none.
    Unset,
    /// It cannot be known without running it.
    Opaque(&'static str),
    /// It runs something else.
    Other {
        /// The program.
        program: String,
    },
    /// It runs walvault.
    Walvault(WalvaultCall),
}

/// How a command runs walvault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalvaultCall {
    /// The program, as written.
    pub program: String,
    /// What is behind that name.
    pub binary: Binary,
    /// Another program that runs it, if one does.
    pub wrapper: Option<String>,
    /// Whether the line's exit status may be another than walvault's.
    pub joined: Joined,
    /// What walvault makes of the arguments.
    pub understood: Result<Understood, String>,
}

/// Whether other commands stand around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// No.
    Alone,
    /// Yes, and no failure of walvault's is hidden.
    Honest,
    /// Yes, and walvault may fail while the line succeeds.
    Hiding,
}

/// What is behind a program's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binary {
    /// This program.
    This,
    /// Another file.
    Other {
        /// Where it was found.
        path: PathBuf,
    },
    /// Nothing.
    Missing,
    /// A file that cannot be run.
    NotExecutable,
}

/// What walvault makes of a command's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Understood {
    /// Which of its commands.
    pub verb: CalledVerb,
    /// The file's name and path that it would get, in that order where there are both.
    pub files: Vec<String>,
    /// Where it would read and write.
    pub destination: Result<Destination, String>,
}

/// Which of walvault's commands is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalledVerb {
    /// `wal push`.
    Push,
    /// `wal fetch`.
    Fetch,
    /// Another.
    Other,
}

/// The repository.
#[derive(Clone, Debug)]
pub struct RepositoryFacts {
    /// Its name.
    pub name: String,
    /// Whether it is a directory here, where whoever may write may delete.
    pub is_volume: bool,
    /// Whether it lies on the data directory's file system; `None` if not known.
    pub shares_disk: Option<bool>,
    /// Whose signatures on the server's certificate are believed, where there is one.
    pub roots: Option<Roots>,
    /// Folders of lanes that have no `lane.json`.
    pub headless: Vec<LaneId>,
}

/// The server's lane.
#[derive(Clone, Debug)]
pub struct LaneState {
    /// Its name.
    pub id: LaneId,
    /// What does not fit this server, if anything.
    pub misfit: Option<String>,
    /// Other lanes of the cluster.
    pub others: usize,
    /// The server's timeline.
    pub timeline: TimelineId,
    /// Who writes it.
    pub owner: Option<Owner>,
    /// This server's token as a writer.
    pub writer: String,
    /// Keys of files kept apart.
    pub contested: Vec<String>,
}

/// What the lane holds.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// The newest backup, and when it ended.
    pub newest_backup: Option<(String, DateTime<Utc>)>,
    /// Backups that can be read.
    pub backups: usize,
    /// Backups whose manifest cannot be read, with why.
    pub unreadable: Vec<String>,
    /// Packs that a manifest names and that are not there, or not whole.
    pub missing_packs: Vec<String>,
    /// The first missing segment of each hole after the oldest backup, with what proves it.
    pub holes: Vec<String>,
    /// The newest segment on the server's branch, and when it was stored.
    pub newest_segment: Option<(SegmentName, DateTime<Utc>)>,
    /// The end of what a backup and the segments after it lead to.
    pub reach: Option<Reach>,
    /// How the newest timeline began.
    pub promotion: Option<Promotion>,
}

/// Where the newest restore would end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The position.
    pub end: Lsn,
    /// The newest transaction's end in the last segments; or when the last segment was stored, or the backup ended.
    pub time: DateTime<Utc>,
}

/// What became of the segment that was sent round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// The segment.
    pub segment: String,
    /// How long it took to be archived.
    pub took: Duration,
    /// What came back.
    pub outcome: RoundTripEnd,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoundTripEnd {
    /// The very bytes that are in `pg_wal`.
    Same,
    /// An intact segment; the one in `pg_wal` could not be compared.
    Intact,
    /// Other bytes.
    Other {
        /// SHA-256 of what is archived.
        stored: Sha256,
        /// SHA-256 of what is in `pg_wal`.
        local: Sha256,
    },
    /// The server says that it is archived, and it is not in the repository.
    Absent,
    /// The command failed.
    CommandFailed,
    /// It was not archived in time.
    TooLate,
}
