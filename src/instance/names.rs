//! What databases and relations are called, asked by SQL beside a backup that comes over the replication protocol.
//!
//! Any user may ask for it. A backup does not depend on the answers.

use tokio::runtime::Runtime;

use super::conninfo::ConnectionSettings;
use super::session::{DatabaseFacts, SessionError, ask_databases, ask_relations, get};
use super::sql;
use crate::format::relations::Relation;

const CATALOG: &str = "select catalog_version_no::int8 from pg_control_system()";

/// A connection of SQL to the server that is backed up.
pub struct NameSession {
    runtime: Runtime,
    settings: ConnectionSettings,
    /// `catalog_version_no` of its `pg_control`.
    pub catalog_version: u32,
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
        let databases = ask_databases(&runtime, &client)?;
        Ok(Self { runtime, settings, catalog_version, databases })
    }

    /// Asks a database for its relations, in the order of schemas and names; stops when `found` returns `false`.
    pub fn relations(
        &mut self,
        database: &DatabaseFacts,
        found: &mut dyn FnMut(Relation) -> bool,
    ) -> Result<(), SessionError> {
        ask_relations(&self.runtime, &self.settings, database, found)
    }
}
