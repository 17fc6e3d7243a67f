//! The one SQL session of a base backup, from `pg_backup_start` to `pg_backup_stop`.
//!
//! A backup belongs to the session that started it: when the session ends, so does the backup, and nothing that was
//! copied may be used.
//!
//! Source: "Making a Base Backup Using the Low Level API" of the manual; `src/backend/access/transam/xlogfuncs.c`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;

use super::configuration::ConfigurationPaths;
use super::conninfo::ConnectionSettings;
use super::sql;
use crate::error::ErrorKind;
use crate::format::relations::Relation;
use crate::pg::lsn::Lsn;
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_summary::{ChangedBlock, Summary};

/// What the server says of itself before a backup.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// `server_version_num`: 150020 for 15.20.
    pub version_number: u32,
    /// `server_version`, as it prints it.
    pub version: String,
    /// Its system identifier.
    pub system_id: SystemId,
    /// Where its data directory is, as it sees it.
    pub data_directory: String,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// `archive_mode`.
    pub archive_mode: String,
    /// Where its configuration is.
    pub configuration: ConfigurationPaths,
    /// Tablespaces outside the data directory: number and place.
    pub tablespaces: Vec<(u32, String)>,
    /// Databases.
    pub databases: Vec<DatabaseFacts>,
}

/// What the server says of one database.
#[derive(Clone, Debug)]
pub struct DatabaseFacts {
    /// Its number.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its default tablespace.
    pub tablespace: u32,
    /// Whether it lets itself be connected to; `template0` does not.
    pub connectable: bool,
}

/// What a server is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerRole {
    /// Open for writing.
    Primary,
    /// Replaying the log of another, or of the archive.
    Standby,
}

impl fmt::Display for ServerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServerRole::Primary => "primary",
            ServerRole::Standby => "standby",
        })
    }
}

impl ServerFacts {
    /// What the server is now; a promotion changes it.
    pub fn role(&self) -> ServerRole {
        if self.in_recovery { ServerRole::Standby } else { ServerRole::Primary }
    }
}

/// What the server gives at the end of a backup.
#[derive(Clone, Debug)]
pub struct StoppedBackup {
    /// The position that recovery must reach.
    pub stop_lsn: Lsn,
    /// Contents of `backup_label`.
    pub label: String,
    /// When the server answered, by its clock.
    pub stopped_at: DateTime<Utc>,
}

/// Why the server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error("connect to {target}")]
    Connect {
        /// Where.
        target: String,
        /// What the driver says.
        source: tokio_postgres::Error,
    },
    /// Encryption cannot be set up.
    #[error("connect to {target}: encrypt the connection")]
    Encryption {
        /// Where.
        target: String,
        /// Why.
        source: std::io::Error,
    },
    /// The host is there, and is not what was asked for.
    #[error("{target} is not what target_session_attrs={wanted} asks for")]
    OtherRole {
        /// Where.
        target: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// Of several hosts none will do.
    #[error("no host will do for a backup: {problems}")]
    NoHost {
        /// What is wrong with each.
        problems: String,
    },
    /// A server of another cluster answers there.
    #[error("{target} leads by SQL to system {found}, and over the replication protocol to {expected}")]
    OtherSystem {
        /// Where.
        target: String,
        /// The system that answers.
        found: SystemId,
        /// The one that is backed up.
        expected: SystemId,
    },
    /// A statement failed.
    #[error("{action}")]
    Statement {
        /// What it was for.
        action: &'static str,
        /// What the server says.
        source: tokio_postgres::Error,
    },
    /// The server's answer makes no sense.
    #[error("{action}: the server answered {answer:?}")]
    Answer {
        /// What was asked.
        action: &'static str,
        /// What came back.
        answer: String,
    },
    /// This machine gives no runtime.
    #[error("start the connection's runtime")]
    Runtime {
        /// What the system said.
        source: std::io::Error,
    },
}

impl SessionError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SessionError::Statement { source, .. } | SessionError::Connect { source, .. } => match source.code() {
                Some(code) if code.code().starts_with("28") || code.code() == "42501" => ErrorKind::Denied,
                Some(code) if code.code() == "55000" => ErrorKind::Busy,
                _ => ErrorKind::Unavailable,
            },
            SessionError::Encryption { .. } => ErrorKind::Invalid,
            SessionError::OtherRole { .. } | SessionError::NoHost { .. } | SessionError::OtherSystem { .. } => {
                ErrorKind::Unavailable
            }
            SessionError::Answer { .. } | SessionError::Runtime { .. } => ErrorKind::Internal,
        }
    }
}

/// What a backup asks of a server, all in one session.
pub trait BackupServer {
    /// What the server says of itself.
    fn facts(&self) -> &ServerFacts;

    /// Returns whether what the server just wrote shows in this directory: only its own data directory is that, and none of
    /// another server of the same cluster or a copy of it.
    fn lives_in(&mut self, _directory: &Path) -> Result<bool, SessionError> {
        Ok(true)
    }

    /// Starts a backup and returns the position that recovery will begin at, and when; waits for a checkpoint.
    fn start(&mut self, label: &str, fast: bool) -> Result<(Lsn, DateTime<Utc>), SessionError>;

    /// Asks a database for its relations, in the order of schemas and names; stops when `found` returns `false`.
    fn relations(
        &mut self,
        database: &DatabaseFacts,
        found: &mut dyn FnMut(Relation) -> bool,
    ) -> Result<(), SessionError>;

    /// Ends the backup. Does not wait for the archive: whoever commits the backup looks into it.
    fn stop(&mut self) -> Result<StoppedBackup, SessionError>;

    /// Returns whether the server summarizes its log, and the summaries that it has.
    fn summaries(&mut self) -> Result<(bool, Vec<Summary>), SessionError> {
        Ok((false, Vec::new()))
    }

    /// Hands over what a summary says.
    fn summary_contents(&mut self, summary: Summary, _found: &mut dyn FnMut(ChangedBlock)) -> Result<(), SessionError> {
        Err(SessionError::Answer { action: "read a summary of the log", answer: format!("{summary:?}") })
    }
}

/// A connection, used by one thread, with at most one backup under way in it.
pub struct BackupSession {
    runtime: Runtime,
    client: tokio_postgres::Client,
    settings: ConnectionSettings,
    facts: ServerFacts,
}

const FACTS: &str = "select current_setting('server_version_num')::int4, current_setting('server_version'), \
    (select system_identifier::text from pg_control_system()), current_setting('data_directory'), pg_is_in_recovery(), \
    current_setting('archive_mode'), current_setting('config_file'), current_setting('hba_file'), \
    current_setting('ident_file')";
const SETTINGS_FILES: &str = "select distinct sourcefile from pg_file_settings where sourcefile is not null order by 1";
/// Since 16, when these files could first include others.
const AUTHENTICATION_FILES: &str = "select file_name from pg_hba_file_rules where file_name is not null \
    union select file_name from pg_ident_file_mappings where file_name is not null order by 1";
const SUMMARIES: &str = "select tli::int8, start_lsn::text, end_lsn::text from pg_available_wal_summaries()";
const SUMMARY_CONTENTS: &str = "select reltablespace::int8, reldatabase::int8, relfilenode::int8, relforknumber, \
    relblocknumber, is_limit_block from pg_wal_summary_contents($1, $2::text::pg_lsn, $3::text::pg_lsn) \
    where relforknumber = 0";
const TABLESPACES: &str = "select oid::int8, pg_tablespace_location(oid) from pg_tablespace \
    where pg_tablespace_location(oid) <> '' order by oid";
const DATABASES: &str =
    "select oid::int8, datname::text, dattablespace::int8, datallowconn from pg_database order by oid";

/// Composite types have no file and no name of their own; another session's temporary tables are not backed up. Names are
/// asked as bytes: a database of encoding SQL_ASCII may hold what is no text.
const RELATIONS: &str = "with spelling as (select case getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' \
    else 'UTF8' end as encoding) \
    select convert_to(n.nspname::text, s.encoding), convert_to(c.relname::text, s.encoding), c.oid::int8, \
    coalesce(pg_relation_filenode(c.oid), 0)::int8, c.reltablespace::int8, c.relkind::text \
    from pg_class c join pg_namespace n on n.oid = c.relnamespace, spelling s \
    where c.relkind <> 'c' and c.relpersistence <> 't' order by 1, 2";
/// A relation that names no tablespace is in its database's.
const DATABASE_DEFAULT: i64 = 0;
/// Time for a file that the server wrote to show where its files are said to be, and how often it is looked for.
const SHOWS_PATIENCE: Duration = Duration::from_secs(1);
const SHOWS_PAUSE: Duration = Duration::from_millis(50);
/// Time for one database to begin answering.
const NAMES_PATIENCE: Duration = Duration::from_secs(60);

impl BackupSession {
    /// Connects and asks the server what it is.
    pub fn connect(settings: &ConnectionSettings) -> Result<Self, SessionError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| SessionError::Runtime { source })?;
        let (client, settings) = runtime.block_on(sql::connect(settings, |_| ()))?;
        let facts = ask_facts(&runtime, &client)?;
        Ok(Self { runtime, client, settings, facts })
    }

    /// Returns the settings for the one host that this is.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// Asks when the postmaster started, in seconds since 1970, as its `postmaster.pid` says it.
    pub fn started(&self) -> Result<i64, SessionError> {
        const ACTION: &str = "ask the server when it was started";
        let statement = "select floor(extract(epoch from pg_postmaster_start_time()))::int8";
        let row = self.runtime.block_on(self.client.query_one(statement, &[]));
        get(&row.map_err(|source| SessionError::Statement { action: ACTION, source })?, 0, ACTION)
    }
}

impl BackupServer for BackupSession {
    fn facts(&self) -> &ServerFacts {
        &self.facts
    }

    /// The server writes an exported snapshot into a file of its data directory for as long as the transaction is open; on
    /// a standby too, and for every user.
    ///
    /// Source: `ExportSnapshot` in `src/backend/utils/time/snapmgr.c`.
    fn lives_in(&mut self, directory: &Path) -> Result<bool, SessionError> {
        const ACTION: &str = "have the server write into its data directory";
        let failed = |source| SessionError::Statement { action: ACTION, source };
        self.runtime.block_on(self.client.batch_execute("begin isolation level repeatable read")).map_err(failed)?;
        let row = self.runtime.block_on(self.client.query_one("select pg_export_snapshot()", &[])).map_err(failed)?;
        let name: String = get(&row, 0, ACTION)?;
        let shows = shows_within(&directory.join("pg_snapshots"), &name, SHOWS_PATIENCE);
        self.runtime.block_on(self.client.batch_execute("rollback")).map_err(failed)?;
        Ok(shows)
    }

    fn start(&mut self, label: &str, fast: bool) -> Result<(Lsn, DateTime<Utc>), SessionError> {
        const ACTION: &str = "start the backup";
        let statement = match self.facts.version_number {
            150000.. => "select pg_backup_start($1, $2)::text, clock_timestamp()",
            _ => "select pg_start_backup($1, $2, false)::text, clock_timestamp()",
        };
        let row = self.runtime.block_on(self.client.query_one(statement, &[&label, &fast]));
        let row = row.map_err(|source| SessionError::Statement { action: ACTION, source })?;
        let text: String = get(&row, 0, ACTION)?;
        let lsn = text.parse().map_err(|_| SessionError::Answer { action: ACTION, answer: text })?;
        Ok((lsn, get(&row, 1, ACTION)?))
    }

    fn relations(
        &mut self,
        database: &DatabaseFacts,
        found: &mut dyn FnMut(Relation) -> bool,
    ) -> Result<(), SessionError> {
        ask_relations(&self.runtime, &self.settings, database, found)
    }

    fn stop(&mut self) -> Result<StoppedBackup, SessionError> {
        const ACTION: &str = "stop the backup";
        let statement = match self.facts.version_number {
            150000.. => "select lsn::text, labelfile, clock_timestamp() from pg_backup_stop(false)",
            _ => "select lsn::text, labelfile, clock_timestamp() from pg_stop_backup(false, false)",
        };
        let row = self.runtime.block_on(self.client.query_one(statement, &[]));
        let row = row.map_err(|source| SessionError::Statement { action: ACTION, source })?;
        let text: String = get(&row, 0, ACTION)?;
        let stop_lsn = text.parse().map_err(|_| SessionError::Answer { action: ACTION, answer: text })?;
        Ok(StoppedBackup { stop_lsn, label: get(&row, 1, ACTION)?, stopped_at: get(&row, 2, ACTION)? })
    }

    fn summaries(&mut self) -> Result<(bool, Vec<Summary>), SessionError> {
        ask_summaries(&self.runtime, &self.client)
    }

    fn summary_contents(&mut self, summary: Summary, found: &mut dyn FnMut(ChangedBlock)) -> Result<(), SessionError> {
        ask_summary(&self.runtime, &self.client, SUMMARY_CONTENTS, summary, found)
    }
}

/// Asks whether the server summarizes its log, and for the summaries that it has.
pub(super) fn ask_summaries(
    runtime: &Runtime,
    client: &tokio_postgres::Client,
) -> Result<(bool, Vec<Summary>), SessionError> {
    const ACTION: &str = "ask for summaries of the log";
    let failed = |source| SessionError::Statement { action: ACTION, source };
    let setting = "select coalesce(current_setting('summarize_wal', true), 'off') = 'on'";
    let row = runtime.block_on(client.query_one(setting, &[])).map_err(failed)?;
    let rows = runtime.block_on(client.query(SUMMARIES, &[])).map_err(failed)?;
    let summary = |row: &tokio_postgres::Row| {
        let timeline: i64 = get(row, 0, ACTION)?;
        let no_timeline = || SessionError::Answer { action: ACTION, answer: timeline.to_string() };
        let number = u32::try_from(timeline).ok().and_then(TimelineId::new).ok_or_else(no_timeline)?;
        Ok(Summary { timeline: number, start: get_lsn(row, 1, ACTION)?, end: get_lsn(row, 2, ACTION)? })
    };
    Ok((get(&row, 0, ACTION)?, rows.iter().map(summary).collect::<Result<_, SessionError>>()?))
}

/// Asks for a summary's contents in the words of `statement`.
pub(super) fn ask_summary(
    runtime: &Runtime,
    client: &tokio_postgres::Client,
    statement: &str,
    summary: Summary,
    found: &mut dyn FnMut(ChangedBlock),
) -> Result<(), SessionError> {
    const ACTION: &str = "read a summary of the log";
    let failed = |source| SessionError::Statement { action: ACTION, source };
    let (timeline, start) = (i64::from(summary.timeline.number()), summary.start.to_string());
    let end = summary.end.to_string();
    runtime.block_on(async {
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&timeline, &start, &end];
        let asked = client.query_raw(statement, parameters).await;
        let mut rows = std::pin::pin!(asked.map_err(failed)?);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            found(ChangedBlock {
                tablespace: get::<i64>(&row, 0, ACTION)? as u32,
                database: get::<i64>(&row, 1, ACTION)? as u32,
                relation: get::<i64>(&row, 2, ACTION)? as u32,
                fork: get::<i16>(&row, 3, ACTION)? as u16,
                block: get::<i64>(&row, 4, ACTION)? as u32,
                limit: get(&row, 5, ACTION)?,
            });
        }
        Ok(())
    })
}

/// Returns whether a name is in a directory, or comes to be. The directory is listed: over NFS a lookup alone may be answered
/// from what was there a while ago.
fn shows_within(directory: &Path, name: &str, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let names = std::fs::read_dir(directory).into_iter().flatten();
        if names.flatten().any(|entry| entry.file_name() == name) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(SHOWS_PAUSE);
    }
}

fn get_lsn(row: &tokio_postgres::Row, column: usize, action: &'static str) -> Result<Lsn, SessionError> {
    let text: String = get(row, column, action)?;
    text.parse().map_err(|_| SessionError::Answer { action, answer: text })
}

/// Asks one database for its relations, over a connection of its own.
pub(super) fn ask_relations(
    runtime: &Runtime,
    settings: &ConnectionSettings,
    database: &DatabaseFacts,
    found: &mut dyn FnMut(Relation) -> bool,
) -> Result<(), SessionError> {
    const ACTION: &str = "ask a database for its relations";
    let failed = |source| SessionError::Statement { action: ACTION, source };
    runtime.block_on(async {
        let there = |config: &mut tokio_postgres::Config| {
            config.dbname(&database.name);
        };
        let (client, _) = sql::connect(settings, there).await?;
        let none: [&str; 0] = [];
        let asked = tokio::time::timeout(NAMES_PATIENCE, client.query_raw(RELATIONS, none)).await;
        let no_answer = |_| SessionError::Answer { action: ACTION, answer: "nothing in time".to_owned() };
        let mut rows = std::pin::pin!(asked.map_err(no_answer)?.map_err(failed)?);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            if !found(relation_of(&row, database, ACTION)?) {
                break;
            }
        }
        Ok(())
    })
}

fn relation_of(
    row: &tokio_postgres::Row,
    database: &DatabaseFacts,
    action: &'static str,
) -> Result<Relation, SessionError> {
    let kind: String = get(row, 5, action)?;
    Ok(Relation {
        database: database.oid,
        schema: get(row, 0, action)?,
        name: get(row, 1, action)?,
        oid: get::<i64>(row, 2, action)? as u32,
        file: get::<i64>(row, 3, action)? as u32,
        tablespace: match get::<i64>(row, 4, action)? {
            DATABASE_DEFAULT => database.tablespace,
            other => other as u32,
        },
        kind: kind.bytes().next().unwrap_or(b'?'),
    })
}

fn ask_facts(runtime: &Runtime, client: &tokio_postgres::Client) -> Result<ServerFacts, SessionError> {
    const ACTION: &str = "ask the server what it is";
    let failed = |source| SessionError::Statement { action: ACTION, source };
    let row = runtime.block_on(client.query_one(FACTS, &[])).map_err(failed)?;
    let pairs = |statement: &str| -> Result<Vec<(u32, String)>, SessionError> {
        let rows = runtime.block_on(client.query(statement, &[])).map_err(failed)?;
        rows.iter().map(|row| Ok((get::<i64>(row, 0, ACTION)? as u32, get(row, 1, ACTION)?))).collect()
    };
    let system_id: String = get(&row, 2, ACTION)?;
    // pg_control_system() prints it as a signed number.
    let number = system_id.parse::<i64>().map_err(|_| SessionError::Answer { action: ACTION, answer: system_id })?;
    Ok(ServerFacts {
        version_number: get::<i32>(&row, 0, ACTION)? as u32,
        version: get(&row, 1, ACTION)?,
        system_id: SystemId::new(number as u64),
        data_directory: get(&row, 3, ACTION)?,
        in_recovery: get(&row, 4, ACTION)?,
        archive_mode: get(&row, 5, ACTION)?,
        configuration: ask_configuration(runtime, client, &row)?,
        tablespaces: pairs(TABLESPACES)?,
        databases: ask_databases(runtime, client)?,
    })
}

pub(super) fn ask_databases(
    runtime: &Runtime,
    client: &tokio_postgres::Client,
) -> Result<Vec<DatabaseFacts>, SessionError> {
    const ACTION: &str = "ask the server for its databases";
    let rows = runtime.block_on(client.query(DATABASES, &[]));
    let rows = rows.map_err(|source| SessionError::Statement { action: ACTION, source })?;
    let database = |row: &tokio_postgres::Row| {
        Ok(DatabaseFacts {
            oid: get::<i64>(row, 0, ACTION)? as u32,
            name: get(row, 1, ACTION)?,
            tablespace: get::<i64>(row, 2, ACTION)? as u32,
            connectable: get(row, 3, ACTION)?,
        })
    };
    rows.iter().map(database).collect()
}

/// Asks where the configuration is. Which files were read is more than most users may know; then what the files themselves
/// name has to do.
fn ask_configuration(
    runtime: &Runtime,
    client: &tokio_postgres::Client,
    facts: &tokio_postgres::Row,
) -> Result<ConfigurationPaths, SessionError> {
    const ACTION: &str = "ask the server where its configuration is";
    let files = |statement: &str| -> Result<Vec<PathBuf>, SessionError> {
        match runtime.block_on(client.query(statement, &[])) {
            Ok(rows) => rows.iter().map(|row| Ok(get::<String>(row, 0, ACTION)?.into())).collect(),
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(Vec::new()),
            Err(source) => Err(SessionError::Statement { action: ACTION, source }),
        }
    };
    let path =
        |column| get::<Option<String>>(facts, column, ACTION).map(|path| PathBuf::from(path.unwrap_or_default()));
    let authentication =
        if get::<i32>(facts, 0, ACTION)? >= 160_000 { files(AUTHENTICATION_FILES)? } else { Vec::new() };
    Ok(ConfigurationPaths {
        config_file: path(6)?,
        hba_file: path(7)?,
        ident_file: path(8)?,
        settings_files: files(SETTINGS_FILES)?,
        authentication_files: authentication,
    })
}

pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a tokio_postgres::Row,
    column: usize,
    action: &'static str,
) -> Result<T, SessionError> {
    row.try_get(column).map_err(|source| SessionError::Statement { action, source })
}
