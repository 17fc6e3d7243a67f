//! A base backup: every page of a running server, and the WAL that makes them one moment.
//!
//! The order is the safety: lane, start, copy, `pg_control` last, stop, packs, the WAL from start to stop verified in the
//! archive, and only then the manifest. Until the manifest is there, there is no backup.

mod annotation;
mod blocks;
mod budget;
mod changed;
mod checks;
mod configuration;
mod copy;
mod detection;
mod gather;
mod leaves;
mod lending;
mod log;
mod marks;
mod mixed;
mod pace;
mod packs;
mod pages;
mod parent;
mod perform;
mod prior;
mod rate;
mod relations;
mod remains;
mod remote;
mod renewal;
mod run;
mod scan;
mod visit;
mod wal;
mod witness;

pub use annotation::{AnnotationError, annotations};
pub use budget::Budget;
pub use detection::{Basis, Doubted, Method, Wanted};
pub use pace::Slowed;
pub use perform::{BackupError, BackupOptions, BackupReport, perform};
pub use rate::{Rate, RateError};
pub use remains::TakenOver;
pub use remote::{HeadingError, RemoteError, ServerManifestError, TarError, WalBeside, WalBesideError, perform_remote};
pub use run::{RUN, taken_in_run};

use crate::progress::Progress;
