//! A session that only looks: what a server says of its settings, its archiver, its slots and the role that asks.
//!
//! Each question stands alone: one that is refused or hangs leaves the others. All use the simple protocol, so that they
//! work through whatever may stand between; telling what stands there is one of the questions.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::conninfo::ConnectionSettings;
use super::session::SessionError;
use super::sql;
use crate::pg::lsn::Lsn;
use crate::pg::system_id::SystemId;

/// No question is worth more time.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A session that only looks.
pub struct Inspection {
    runtime: Runtime,
    client: tokio_postgres::Client,
    mark: String,
}

/// Which server it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `server_version_num`.
    pub version_number: u32,
    /// `server_version`, as it prints it.
    pub version: String,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Its system identifier, if the role may know.
    pub system_id: Option<SystemId>,
    /// Its data directory, if the role may know.
    pub data_directory: Option<String>,
    /// The role that asks.
    pub role: String,
    /// The end of its log: written, or on a standby replayed.
    pub position: Option<Lsn>,
}

/// What the archiver has done since the statistics were reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiverState {
    /// The last file that was archived.
    pub last_archived: Option<String>,
    /// Seconds since then.
    pub archived_ago: Option<i64>,
    /// The last file that failed.
    pub last_failed: Option<String>,
    /// Seconds since then.
    pub failed_ago: Option<i64>,
    /// Failures, those above status 125 left out.
    pub failures: u64,
    /// Whether the last thing it did was to fail.
    pub failing: bool,
}

/// A replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Whether somebody reads it.
    pub active: bool,
    /// Bytes of log that it keeps.
    pub held_bytes: u64,
    /// `wal_status`: reserved, extended, unreserved, lost.
    pub status: String,
}

/// What the role that asks may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Signatures of the functions that a backup calls and that the role may not.
    pub missing_functions: Vec<String>,
    /// Whether it may read every setting.
    pub all_settings: bool,
    /// Whether it may end a segment.
    pub switch_wal: bool,
}

/// What stands between the session and the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Between {
    /// pgpool's version, if it answered.
    pub pgpool: Option<String>,
    /// The startup options did not reach the server.
    pub options_lost: bool,
    /// The server process changed between two statements.
    pub process_changed: bool,
}

impl Inspection {
    /// Connects.
    pub fn connect(settings: &ConnectionSettings) -> Result<Self, SessionError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| SessionError::Runtime { source })?;
        let mark = format!("{:08x}", std::process::id());
        // A setting that only this session has: whoever keeps options to itself loses it.
        let marked = |config: &mut tokio_postgres::Config| {
            let options = config.get_options().unwrap_or_default().to_owned();
            config.options(format!("{options} -c walvault.session={mark}"));
        };
        let (client, _) = runtime.block_on(sql::connect(settings, marked))?;
        Ok(Self { runtime, client, mark })
    }

    /// Returns which server it is.
    pub fn identity(&self) -> Result<Identity, SessionError> {
        const ACTION: &str = "ask the server what it is";
        let row = self.one(
            ACTION,
            "select current_setting('server_version_num'), current_setting('server_version'), pg_is_in_recovery(), \
             current_user, case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end",
        )?;
        let system_id = self.one(ACTION, "select system_identifier from pg_control_system()").ok();
        // pg_control_system() prints it as a signed number.
        let system_id = system_id.and_then(|row| text(&row, 0)?.parse::<i64>().ok());
        let directory = self.one(ACTION, "select setting from pg_settings where name = 'data_directory'").ok();
        Ok(Identity {
            version_number: number(&row, 0).unwrap_or_default() as u32,
            version: text(&row, 1).unwrap_or_default(),
            in_recovery: text(&row, 2).as_deref() == Some("t"),
            role: text(&row, 3).unwrap_or_default(),
            position: text(&row, 4).and_then(|text| text.parse().ok()),
            system_id: system_id.map(|number| SystemId::new(number as u64)),
            data_directory: directory.and_then(|row| text(&row, 0)),
        })
    }

    /// Returns every setting that the role may read, in its own unit; sizes and times in bytes and seconds.
    pub fn settings(&self) -> Result<BTreeMap<String, String>, SessionError> {
        let statement = "select name, case unit when '8kB' then (setting::numeric * 8192)::text \
             when 'kB' then (setting::numeric * 1024)::text when 'MB' then (setting::numeric * 1048576)::text \
             when 'B' then setting when 'min' then (setting::numeric * 60)::text else setting end \
             from pg_settings";
        let rows = self.ask("ask the server for its settings", statement)?;
        Ok(rows.iter().filter_map(|row| Some((text(row, 0)?, text(row, 1)?))).collect())
    }

    /// Returns what the archiver has done.
    pub fn archiver(&self) -> Result<ArchiverState, SessionError> {
        let statement = "select last_archived_wal, extract(epoch from clock_timestamp() - last_archived_time)::int8, \
             last_failed_wal, extract(epoch from clock_timestamp() - last_failed_time)::int8, failed_count, \
             last_failed_time > coalesce(last_archived_time, '-infinity') from pg_stat_archiver";
        let row = self.one("ask the server for its archiver", statement)?;
        Ok(ArchiverState {
            last_archived: text(&row, 0),
            archived_ago: number(&row, 1),
            last_failed: text(&row, 2),
            failed_ago: number(&row, 3),
            failures: number(&row, 4).unwrap_or_default() as u64,
            failing: text(&row, 5).as_deref() == Some("t"),
        })
    }

    /// Returns the replication slots.
    pub fn slots(&self) -> Result<Vec<Slot>, SessionError> {
        let statement = "select slot_name, active, greatest(0, pg_wal_lsn_diff(case when pg_is_in_recovery() \
             then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, restart_lsn))::int8, \
             coalesce(wal_status, '') from pg_replication_slots order by slot_name";
        let rows = self.ask("ask the server for its replication slots", statement)?;
        let slot = |row: &SimpleQueryRow| {
            Some(Slot {
                name: text(row, 0)?,
                active: text(row, 1)? == "t",
                held_bytes: number(row, 2).unwrap_or_default() as u64,
                status: text(row, 3)?,
            })
        };
        Ok(rows.iter().filter_map(slot).collect())
    }

    /// Returns what the role may do.
    pub fn rights(&self, version_number: u32) -> Result<Rights, SessionError> {
        let own: &[&str] = match version_number {
            150_000.. => &["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"],
            _ => &["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"],
        };
        let mut rights = Rights::default();
        for function in own.iter().chain(&["pg_control_system()"]) {
            if !self.may_call(function)? {
                rights.missing_functions.push((*function).to_owned());
            }
        }
        rights.switch_wal = self.may_call("pg_switch_wal()")?;
        let statement = "select pg_has_role(current_user, 'pg_read_all_settings', 'usage')";
        rights.all_settings = self.truth(statement)?;
        Ok(rights)
    }

    fn may_call(&self, function: &str) -> Result<bool, SessionError> {
        self.truth(&format!("select has_function_privilege('{function}', 'execute')"))
    }

    fn truth(&self, statement: &str) -> Result<bool, SessionError> {
        Ok(text(&self.one("ask the server what the role may do", statement)?, 0).as_deref() == Some("t"))
    }

    /// Returns what stands between the session and the server.
    pub fn between(&self) -> Result<Between, SessionError> {
        const ACTION: &str = "ask what stands before the server";
        let statement = "select pg_backend_pid(), current_setting('walvault.session', true)";
        let (first, second) = (self.one(ACTION, statement)?, self.one(ACTION, statement)?);
        // The server itself knows no such parameter; pgpool answers in its place.
        let pgpool = self.one(ACTION, "show pool_version").ok().and_then(|row| text(&row, 0));
        let third = self.one(ACTION, statement)?;
        let process = |row: &SimpleQueryRow| text(row, 0);
        Ok(Between {
            pgpool,
            options_lost: text(&third, 1).as_deref() != Some(&self.mark),
            process_changed: process(&first) != process(&second) || process(&second) != process(&third),
        })
    }

    /// Ends the current segment, with something in it, and returns its name.
    pub fn switch_wal(&self) -> Result<String, SessionError> {
        const ACTION: &str = "end the current WAL segment";
        self.one(ACTION, "select pg_logical_emit_message(false, 'walvault', 'check')")?;
        let row = self.one(ACTION, "select pg_walfile_name(pg_switch_wal())")?;
        text(&row, 0).ok_or_else(|| SessionError::Answer { action: ACTION, answer: "nothing".to_owned() })
    }

    fn one(&self, action: &'static str, statement: &str) -> Result<SimpleQueryRow, SessionError> {
        let rows = self.ask(action, statement)?;
        rows.into_iter().next().ok_or_else(|| SessionError::Answer { action, answer: "no row".to_owned() })
    }

    fn ask(&self, action: &'static str, statement: &str) -> Result<Vec<SimpleQueryRow>, SessionError> {
        let answer = self.in_time(self.client.simple_query(statement));
        let messages = match answer {
            Some(answer) => answer.map_err(|source| SessionError::Statement { action, source })?,
            None => {
                let answer = format!("nothing for {} s", ANSWER_LIMIT.as_secs());
                return Err(SessionError::Answer { action, answer });
            }
        };
        let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    fn in_time<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        self.runtime.block_on(async { tokio::time::timeout(ANSWER_LIMIT, answer).await.ok() })
    }
}

fn text(row: &SimpleQueryRow, column: usize) -> Option<String> {
    row.try_get(column).ok().flatten().map(str::to_owned)
}

fn number(row: &SimpleQueryRow, column: usize) -> Option<i64> {
    text(row, column)?.parse().ok()
}
