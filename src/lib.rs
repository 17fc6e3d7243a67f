//! walvault: backup, WAL archiving and point-in-time recovery for PostgreSQL.
//!
//! Three invariants hold everywhere:
//!
//! - every object is created once and never changed;
//! - what names something is written after it and removed before it;
//! - deciding and doing are separate functions, and the decision can be printed.
//!
//! And one rule stands above them. `wal fetch` exits 1, *there is no such file*, only if PostgreSQL has a target that it
//! must reach, or the branch's end is proven by record walk: PostgreSQL takes that answer for the end of the log and
//! opens for writing.

pub mod agent;
pub mod archive;
pub mod backup;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod config;
pub mod error;
pub mod format;
pub mod instance;
pub mod metrics;
pub mod pg;
pub mod progress;
pub mod repo;
pub mod restore;
pub mod retention;
pub mod store;
pub mod verify;
pub mod view;
pub mod workflow;
