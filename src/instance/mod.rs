//! The live server: where its data directory is, whether it runs, the SQL session of a base
//! backup, and the replication protocol.

mod choice;
mod configuration;
mod conninfo;
mod database_session;
mod inspection;
mod locate;
mod names;
mod postmaster;
mod programs;
mod recovery;
pub mod replication;
mod session;
mod sql;
mod tls;
mod wal_directory;

pub use choice::{STANDBY_LAG, choose_host};
pub use configuration::ConfigurationPaths;
pub use conninfo::{ConnectionError, ConnectionSettings, Endpoint, LibpqEnvironment, ParameterError, SessionAttrs};
pub use database_session::DatabaseSession;
pub use inspection::{ArchiverState, Between, Identity, Inspection, Rights, Slot};
pub use locate::{DataDirectory, LocateError, RecoveryMode};
pub use names::NameSession;
pub use postmaster::{Postmaster, certainly_runs, environment_of, running_server};
pub use programs::{NoServerPrograms, Programs, ProgramsError};
pub use recovery::RecoveryState;
pub use session::{BackupServer, BackupSession, DatabaseFacts, ServerFacts, ServerRole, SessionError, StoppedBackup};
pub use wal_directory::WalDirectory;
