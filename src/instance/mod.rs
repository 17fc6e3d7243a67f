//! The live server: where its data directory is, whether it runs, and the SQL session of a base backup.

mod configuration;
mod conninfo;
mod inspection;
mod locate;
mod postmaster;
mod programs;
mod recovery;
mod session;
mod wal_directory;

pub use configuration::ConfigurationPaths;
pub use conninfo::{ConnectionError, ConnectionSettings, LibpqEnvironment};
pub use inspection::{ArchiverState, Between, Identity, Inspection, Rights, Slot};
pub use locate::{DataDirectory, LocateError, RecoveryMode};
pub use postmaster::{Postmaster, environment_of, running_server};
pub use programs::{NoServerPrograms, Programs, ProgramsError};
pub use recovery::RecoveryState;
pub use session::{BackupServer, BackupSession, DatabaseFacts, ServerFacts, ServerRole, SessionError, StoppedBackup};
pub use wal_directory::WalDirectory;
