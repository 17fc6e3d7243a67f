//! The replication protocol: what a server gives to a program that sees none of its files.
//!
//! A connection is one socket and one thread: messages are read where they are worked on. [`ReplicationClient`] logs in
//! and asks; [`BaseBackup`] is a backup as it streams by, [`WalStream`] the log. [`Canceller`] ends either from another
//! thread.
//!
//! Source: "Streaming Replication Protocol" and "Frontend/Backend Protocol" in the manual.

mod base_backup;
mod cancel;
mod client;
mod error;
mod frames;
mod link;
mod login;
#[cfg(test)]
pub(crate) mod server_fixture;
mod slot;
mod upload;
mod wal_stream;

pub use base_backup::{BackupEvent, BackupRequest, BaseBackup, RemoteTablespace};
pub use cancel::Canceller;
pub use client::{Identification, ReplicationClient};
pub use error::{Refusal, ReplicationError};
pub use slot::SlotPosition;
pub use wal_stream::{Streamed, WalRequest, WalStream};
