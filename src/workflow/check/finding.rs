//! What a check says: one finding for each thing it looks at.

use std::fmt;

/// How a finding stands. Ordered by what deserves attention first, last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It could not be looked at, for a reason that another finding gives or that was asked for.
    NotChecked,
    /// It works, and something about it wants mending.
    Warn,
    /// WAL, backups or a restore fail, or would.
    Fail,
}

impl Level {
    /// Returns the level as `--json` says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::NotChecked => "not checked",
            Level::Warn => "warn",
            Level::Fail => "fail",
        }
    }
}

/// Findings that belong together on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// This program, and who runs it.
    Program,
    /// The server and the way to it.
    Server,
    /// The server's settings.
    Settings,
    /// WAL on its way into the archive.
    Archiving,
    /// The repository and what this host may do there.
    Repository,
    /// What can be restored.
    Restoring,
}

impl Area {
    /// Returns the area in one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Area::Program => "program",
            Area::Server => "server",
            Area::Settings => "settings",
            Area::Archiving => "archiving",
            Area::Repository => "repository",
            Area::Restoring => "restoring",
        }
    }
}

macro_rules! codes {
    ($($name:ident $text:literal $area:ident $about:literal,)*) => {
        /// What a finding is about. The word is stable: programs may branch on it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $about] $name,)*
        }

        impl Code {
            /// Every code, in the order in which findings are given.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// Returns the word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// Returns what is looked at.
            pub const fn about(self) -> &'static str {
                match self { $(Code::$name => $about,)* }
            }

            /// Returns what it belongs to.
            pub const fn area(self) -> Area {
                match self { $(Code::$name => Area::$area,)* }
            }
        }
    };
}

codes! {
    Config "config" Program "the settings that walvault is called with",
    User "user" Program "the user that runs the check, against the owner of the data directory",
    Agent "agent" Program "the agent, if one listens: its version, cluster and repository against this program's",
    DataDirectory "data-directory" Server "the data directory and its `pg_control`",
    Server "server" Server "the connection, and that it leads to the server of this data directory",
    Pooler "pooler" Server "a connection pooler between walvault and the server",
    Privileges "privileges" Server "what the role may do of what a backup and this check need",
    WalLevel "wal-level" Settings "`wal_level`",
    FullPageWrites "full-page-writes" Settings "`full_page_writes`",
    Fsync "fsync" Settings "`fsync`",
    Checksums "checksums" Settings "`data_checksums`",
    WalSenders "wal-senders" Settings "`max_wal_senders`",
    Slots "slots" Settings "replication slots and `wal_keep_size`, which hold `pg_wal`",
    ArchiveMode "archive-mode" Archiving "`archive_mode` and `archive_library`",
    ArchiveCommand "archive-command" Archiving "`archive_command`: this program, this cluster, this repository",
    RestoreCommand "restore-command" Archiving "`restore_command`: this program, this cluster, this repository",
    ArchiveTimeout "archive-timeout" Archiving "`archive_timeout`",
    Archiver "archiver" Archiving "`pg_stat_archiver`",
    Backlog "backlog" Archiving "files that wait in `pg_wal` to be archived",
    Disk "disk" Archiving "room on the file system of `pg_wal`, and how long it lasts",
    FailoverWindow "failover-window" Archiving "what a standby does about WAL that its primary dies with",
    RoundTrip "round-trip" Archiving "a segment of now, through the archive and back",
    Repository "repository" Repository "that the repository is there and can be read",
    Place "place" Repository "that the repository is not on the data directory's file system",
    Lane "lane" Repository "that the lane is there, whole, and made for this server",
    Owner "owner" Repository "who writes the server's timeline",
    Contested "contested" Repository "files kept because other bytes had their name",
    Write "write" Repository "that this host may create objects",
    Read "read" Repository "that this host reads back and finds in a listing what it wrote",
    CreateOnly "create-only" Repository "that of creates that race exactly one wins",
    Clock "clock" Repository "this host's clock against the store's",
    Delete "delete" Repository "whether this host may delete objects",
    Backup "backup" Restoring "the newest backup and its age",
    Manifests "manifests" Restoring "that every committed backup's manifest can be read",
    Packs "packs" Restoring "that every pack which a manifest names is there, in its size",
    Holes "holes" Restoring "segments that are missing and must exist",
    Promotion "promotion" Restoring "the last promotion, against the archive of the timeline that it left",
    Restorable "restorable" Restoring "the newest moment that can be restored",
    Retention "retention" Restoring "what the policy keeps, and pins",
    Expire "expire" Restoring "when expire last ran, and what waits for it",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub code: Code,
    /// How it stands.
    pub level: Level,
    /// What was found, in one line.
    pub text: String,
    /// The next command or setting, where there is something to mend.
    pub mend: Option<String>,
}

impl Finding {
    /// As it should be.
    pub(super) fn ok(code: Code, text: impl Into<String>) -> Self {
        Self { code, level: Level::Ok, text: text.into(), mend: None }
    }

    /// Works, and wants mending.
    pub(super) fn warn(code: Code, text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { code, level: Level::Warn, text: text.into(), mend: Some(mend.into()) }
    }

    /// Does not work.
    pub(super) fn fail(code: Code, text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { code, level: Level::Fail, text: text.into(), mend: Some(mend.into()) }
    }

    /// Not looked at.
    pub(super) fn not_checked(code: Code, reason: impl Into<String>) -> Self {
        Self { code, level: Level::NotChecked, text: reason.into(), mend: None }
    }
}

/// Returns the level that the whole check has: what was not checked counts as sound.
pub fn worst(findings: &[Finding]) -> Level {
    let levels = findings.iter().map(|finding| finding.level).filter(|level| *level != Level::NotChecked);
    levels.max().unwrap_or(Level::Ok)
}
