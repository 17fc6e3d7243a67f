//! What databases and relations are called, asked by SQL beside a backup that comes over the replication protocol.
//!
//! Any user may ask for it. A full backup does not depend on the answers.

use tokio::runtime::Runtime;

use super::conninfo::ConnectionSettings;
use super::session::{DatabaseFacts, SessionError, ask_databases, ask_relations, ask_summaries, ask_summary, get};
use super::sql;
use crate::format::relations::Relation;
use crate::pg::system_id::SystemId;
use crate::pg::wal_summary::{ChangedBlock, Summary};

const CATALOG: &str = "select catalog_version_no::int8, system_identifier::text from pg_control_system()";

/// Of the main forks: the others are asked for whole. Where they were cut off, and which blocks were written.
const LIMITS: &str = "select reltablespace::int8, reldatabase::int8, relfilenode::int8, relforknumber, \
    relblocknumber, is_limit_block from pg_wal_summary_contents($1, $2::text::pg_lsn, $3::text::pg_lsn) \
    where relforknumber = 0 and is_limit_block";

const WRITTEN: &str = "select reltablespace::int8, reldatabase::int8, relfilenode::int8, relforknumber, \
    relblocknumber, is_limit_block from pg_wal_summary_contents($1, $2::text::pg_lsn, $3::text::pg_lsn) \
    where relforknumber = 0 and not is_limit_block";

/// A connection of SQL to the server that is backed up.
pub struct NameSession {
    runtime: Runtime,
    client: tokio_postgres::Client,
    settings: ConnectionSettings,
    /// `catalog_version_no` of its `pg_control`.
    pub catalog_version: u32,
    system_id: SystemId,
    /// Databases.
    pub databases: Vec<DatabaseFacts>,
}

impl NameSession {
    /// Connects and asks for the databases.
    pub fn connect(settings: &ConnectionSettings) -> Result<Self, SessionError> {
        const ACTION: &str = "ask the server for its catalogue version";
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| SessionError::Runtime { source })?;
        let (client, settings) = runtime.block_on(sql::connect(settings, |_| ()))?;
        let row = runtime.block_on(client.query_one(CATALOG, &[]));
        let row = row.map_err(|source| SessionError::Statement { action: ACTION, source })?;
        let catalog_version = get::<i64>(&row, 0, ACTION)? as u32;
        let answer: String = get(&row, 1, ACTION)?;
        let system_id = answer.parse().map_err(|_| SessionError::Answer { action: ACTION, answer })?;
        let databases = ask_databases(&runtime, &client)?;
        Ok(Self { runtime, client, settings, catalog_version, system_id, databases })
    }

    /// Checks that this is a server of the cluster that is backed up: behind a name for several servers may be others.
    ///
    /// # Errors
    /// [`SessionError::OtherSystem`].
    pub fn expect_system(&self, expected: SystemId) -> Result<(), SessionError> {
        match self.system_id == expected {
            true => Ok(()),
            false => Err(SessionError::OtherSystem { target: self.settings.target(), found: self.system_id, expected }),
        }
    }

    /// Asks a database for its relations, in the order of schemas and names; stops when `found` returns `false`.
    pub fn relations(
        &mut self,
        database: &DatabaseFacts,
        found: &mut dyn FnMut(Relation) -> bool,
    ) -> Result<(), SessionError> {
        ask_relations(&self.runtime, &self.settings, database, found)
    }

    /// Returns whether the server summarizes its log, and the summaries that it has.
    pub fn summaries(&self) -> Result<(bool, Vec<Summary>), SessionError> {
        ask_summaries(&self.runtime, &self.client)
    }

    /// Hands over what a summary says of where relations were made, removed or cut off.
    pub fn summary_limits(&self, summary: Summary, found: &mut dyn FnMut(ChangedBlock)) -> Result<(), SessionError> {
        ask_summary(&self.runtime, &self.client, LIMITS, summary, found)
    }

    /// Hands over the blocks that a summary says were written, since their relation was last cut off in it.
    pub fn summary_blocks(&self, summary: Summary, found: &mut dyn FnMut(ChangedBlock)) -> Result<(), SessionError> {
        ask_summary(&self.runtime, &self.client, WRITTEN, summary, found)
    }
}
