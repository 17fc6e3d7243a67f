//! WAL in and out: what stands behind `archive_command` and `restore_command`.

mod backfill;
mod deliver;
mod fetch;
mod forks;
mod own_history;
mod promotion;
mod proof;
mod push;
mod resolve;
mod writer;

pub use backfill::{Backfill, BackfillError, Backfilled, Scope, history_in, is_due};
pub use fetch::{Absence, Caller, FetchBudgets, FetchError, Fetched, Fetcher, Found, Loaded};
pub use forks::Forks;
pub use own_history::{copy_own_history, never_exists};
pub use promotion::Promotion;
pub use push::{FileIdentity, OpenWal, PushError, PushOptions, Pushed, Receipt, WalFile, push};
pub use resolve::{ResolveError, adopt_timeline, decide_on, give_up, given_up};
pub use writer::Writer;
