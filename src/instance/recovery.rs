//! What a recovering server says of itself.

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::conninfo::ConnectionSettings;
use super::session::SessionError;
use super::sql;
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;

/// How far a recovery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryState {
    /// Whether the server still replays.
    pub in_recovery: bool,
    /// Whether it waits at its target.
    pub paused: bool,
    /// The position after the last record replayed; `None` once it is open for writing.
    pub replayed: Option<Lsn>,
    /// The time of the last transaction that was replayed since the server started.
    pub last_transaction: Option<PgTime>,
}

const STATE: &str = "select pg_is_in_recovery(), \
    case when pg_is_in_recovery() then pg_is_wal_replay_paused() else false end, \
    case when pg_is_in_recovery() then pg_last_wal_replay_lsn()::text end, \
    pg_last_xact_replay_timestamp()";

/// The 32 bits of an id in the log, with those above them that make it one of the past.
const STATUS: &str = "with past as (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as xmax), \
    near as (select xmax, ((xmax >> 32) << 32) + $1::bigint as id from past), \
    whole as (select case when id < xmax then id else id - 4294967296 end as id from near) \
    select case when id < 3 then 'unknown to the server' else pg_xact_status(id::text::xid8) end from whole";

impl RecoveryState {
    /// Asks the server, over a connection of its own.
    pub fn ask(settings: &ConnectionSettings) -> Result<Self, SessionError> {
        const ACTION: &str = "ask the server how far its recovery is";
        let failed = |source| SessionError::Statement { action: ACTION, source };
        let row = one_row(settings, ACTION, STATE, &[])?;
        let text: Option<String> = row.try_get(2).map_err(failed)?;
        let replayed = text.map(|text| text.parse()).transpose();
        let replayed = replayed.map_err(|_| SessionError::Answer { action: ACTION, answer: "no position".into() })?;
        let time: Option<DateTime<Utc>> = row.try_get(3).map_err(failed)?;
        Ok(Self {
            in_recovery: row.try_get(0).map_err(failed)?,
            paused: row.try_get(1).map_err(failed)?,
            replayed,
            last_transaction: time.and_then(PgTime::from_utc),
        })
    }

    /// Asks the server what became of a transaction: `committed`, `aborted`, `in progress`; `None` if it is long past.
    pub fn status_of(settings: &ConnectionSettings, xid: u32) -> Result<Option<String>, SessionError> {
        const ACTION: &str = "ask the server for the last commit of the plan";
        let row = one_row(settings, ACTION, STATUS, &[&i64::from(xid)])?;
        row.try_get(0).map_err(|source| SessionError::Statement { action: ACTION, source })
    }
}

/// Asks the server for one row, over a connection of its own.
fn one_row(
    settings: &ConnectionSettings,
    action: &'static str,
    statement: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Row, SessionError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| SessionError::Runtime { source })?;
    runtime.block_on(async {
        let (client, _) = sql::connect(settings, |_| ()).await?;
        let row = client.query_one(statement, parameters).await;
        row.map_err(|source| SessionError::Statement { action, source })
    })
}
