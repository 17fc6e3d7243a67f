//! WAL in and out: what stands behind `archive_command` and `restore_command`.

mod backfill;
mod fetch;
mod forks;
mod own_history;
mod promotion;
mod proof;
mod push;

pub use backfill::{Backfill, BackfillError, Backfilled, Scope, history_in, is_due};
pub use fetch::{Absence, Caller, FetchBudgets, FetchError, Fetched, Fetcher, Loaded};
pub use forks::Forks;
pub use own_history::{copy_own_history, never_exists};
pub use promotion::Promotion;
pub use push::{FileIdentity, OpenWal, PushError, PushOptions, Pushed, Receipt, WalFile, push};

/// Who pushes: a token that no copy of the data directory takes along, and the host's name for people.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The token, part of keys.
    pub token: String,
    /// The host's name.
    pub host: String,
}
