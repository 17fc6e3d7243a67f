//! What brings the WAL of a backup into the archive beside it, where nothing else does.
//!
//! Here is only what a backup asks of it; whoever puts a backup together says who it is.

use std::error::Error;
use std::time::Duration;

use crate::error::ErrorKind;
use crate::instance::replication::Canceller;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNo;
use crate::pg::timeline::TimelineId;
use crate::repo::Lane;

/// Whoever streams the WAL. It keeps the log on the server from before the backup begins.
pub trait WalBeside {
    /// Begins with the segment of the backup's start. If it fails, it ends the backup by `backup`. For a second attempt at
    /// the backup nothing changes: the log streams on from where it began.
    fn begin(&mut self, lane: &Lane, at: (Lsn, TimelineId), backup: Option<Canceller>);

    /// Returns why it failed, if it did.
    fn failure(&mut self) -> Option<WalBesideError>;

    /// Returns once every segment up to this one is in the archive.
    ///
    /// # Errors
    /// [`WalBesideError`], [`ErrorKind::NotFound`] if that took longer than `patience`.
    fn end(&mut self, through: SegmentNo, patience: Duration) -> Result<(), WalBesideError>;
}

/// Why the WAL is not in the archive.
#[derive(Debug, thiserror::Error)]
#[error("the WAL that streams beside the backup did not reach the archive; nothing was committed")]
pub struct WalBesideError {
    /// What a caller can do about it.
    pub kind: ErrorKind,
    /// The one next thing to do, where there is one.
    pub hint: Option<&'static str>,
    /// What happened.
    pub source: Box<dyn Error + Send + Sync>,
}
