//! The replication protocol: what a server gives to a program that sees none of its files.
//!
//! A connection is one socket and one thread: messages are read where they are worked on. [`ReplicationClient`] logs in
//! and asks; [`BaseBackup`] is a backup as it streams by.
//!
//! Source: "Streaming Replication Protocol" and "Frontend/Backend Protocol" in the manual.

mod base_backup;
mod client;
mod error;
mod frames;
mod link;
mod login;
mod upload;

pub use base_backup::{BackupEvent, BackupRequest, BaseBackup, RemoteTablespace};
pub use client::{Identification, ReplicationClient};
pub use error::{Refusal, ReplicationError};
