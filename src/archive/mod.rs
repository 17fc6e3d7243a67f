//! WAL in and out: what stands behind `archive_command` and `restore_command`.

mod deliver;
mod fetch;
mod forks;
mod push;
mod resolve;
mod writer;

pub use fetch::{Absence, Caller, FetchBudgets, FetchError, Fetched, Fetcher, Loaded};
pub use forks::Forks;
pub use push::{FileIdentity, OpenWal, PushError, PushOptions, Pushed, Receipt, WalFile, push};
pub use resolve::{ResolveError, adopt_timeline, decide_on, give_up, given_up};
pub use writer::Writer;
