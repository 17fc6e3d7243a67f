//! Databases that nobody may take for whole: closed, or dropped.

use tokio::runtime::Runtime;
use tokio_postgres::Client;

use super::conninfo::ConnectionSettings;
use super::session::{SessionError, get};
use super::sql;

/// How PostgreSQL itself marks a database whose `DROP` was cut off: nobody connects to it or copies it, autovacuum passes
/// it by, and only `DROP DATABASE` is left. Servers before August 2023 do not know it, and keep to `datallowconn`.
///
/// Source: `DATCONNLIMIT_INVALID_DB` in `src/include/catalog/pg_database.h`.
const CLOSE: &str = "update pg_database set datallowconn = false, datistemplate = false, datconnlimit = -2 \
    where oid = any($1)";
const NAMES: &str = "select oid, datname::text from pg_database where oid = any($1) order by 2";
const DROP: &str = "select format('drop database %I', datname) from pg_database where oid = $1";

/// A connection of a superuser's.
pub struct DatabaseSession {
    runtime: Runtime,
    client: Client,
}

impl DatabaseSession {
    /// Connects.
    pub fn connect(settings: &ConnectionSettings) -> Result<Self, SessionError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| SessionError::Runtime { source })?;
        let (client, _) = runtime.block_on(sql::connect(settings, |_| ()))?;
        Ok(Self { runtime, client })
    }

    /// Returns those of these databases that there are, with their names.
    pub fn names(&self, databases: &[u32]) -> Result<Vec<(u32, String)>, SessionError> {
        const ACTION: &str = "ask the server for the names of databases";
        let rows = self.runtime.block_on(self.client.query(NAMES, &[&databases]));
        let rows = rows.map_err(|source| SessionError::Statement { action: ACTION, source })?;
        rows.iter().map(|row| Ok((get(row, 0, ACTION)?, get(row, 1, ACTION)?))).collect()
    }

    /// Closes databases for everything but `DROP DATABASE`.
    pub fn close(&self, databases: &[u32]) -> Result<(), SessionError> {
        const ACTION: &str = "close databases";
        let closed = self.runtime.block_on(self.client.execute(CLOSE, &[&databases]));
        closed.map(drop).map_err(|source| SessionError::Statement { action: ACTION, source })
    }

    /// Drops a database.
    pub fn drop_database(&self, database: u32) -> Result<(), SessionError> {
        const ACTION: &str = "drop a database";
        let failed = |source| SessionError::Statement { action: ACTION, source };
        let row = self.runtime.block_on(self.client.query_one(DROP, &[&database])).map_err(failed)?;
        let statement: String = get(&row, 0, ACTION)?;
        self.runtime.block_on(self.client.batch_execute(&statement)).map_err(failed)
    }
}
