//! Stretches of a branch that can be restored: from the end of a backup to where the archived log that follows it ends.

use chrono::{DateTime, Utc};

use super::LaneCatalog;
use super::branch::{Branch, ChainEnd};
use crate::format::manifest::Manifest;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNo};
use crate::pg::timeline::TimelineId;

/// What of a backup matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSpan {
    /// Its name.
    pub id: String,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Where recovery begins to read.
    pub start: Lsn,
    /// The earliest position that can be restored from it.
    pub stop: Lsn,
    /// When it ended, by the server's clock.
    pub stopped_at: DateTime<Utc>,
}

impl From<&Manifest> for BackupSpan {
    fn from(manifest: &Manifest) -> Self {
        let envelope = &manifest.envelope;
        Self {
            id: envelope.backup.clone(),
            timeline: envelope.timeline,
            start: envelope.start_lsn,
            stop: envelope.stop_lsn,
            stopped_at: envelope.stopped_at,
        }
    }
}

/// Consecutive positions that can be restored, as far as the presence of segments tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interval {
    /// The backup that reaches back furthest.
    pub backup: BackupSpan,
    /// How many backups lead into it.
    pub backups: usize,
    /// The segments from that backup's first on.
    pub segments: Vec<SegmentName>,
    /// Why there are no more.
    pub end: ChainEnd,
}

impl Branch {
    /// Returns the restorable stretches of the branch, oldest first, and the backups on it whose own log is incomplete.
    ///
    /// `backups` may be of any timeline; those of other branches are left out.
    pub fn intervals(&self, catalog: &LaneCatalog, backups: &[BackupSpan]) -> (Vec<Interval>, Vec<BackupSpan>) {
        let size = catalog.segment_size();
        let mut own: Vec<&BackupSpan> =
            backups.iter().filter(|backup| self.holds(backup.timeline, backup.start, backup.stop)).collect();
        own.sort_by_key(|backup| (backup.start, backup.stop));
        let (mut intervals, mut incomplete): (Vec<(SegmentNo, Interval)>, Vec<BackupSpan>) = (Vec::new(), Vec::new());
        for backup in own {
            let first = size.segment_of(backup.start);
            let needed = size.segment_ending_at(backup.stop);
            match intervals.last_mut() {
                // No need to walk the segments again: the log of the backup before runs through this one's start.
                Some((after, interval)) if first < *after => {
                    if needed < *after {
                        interval.backups += 1;
                        if backup.stop < interval.backup.stop {
                            interval.backup = backup.clone();
                        }
                    } else {
                        incomplete.push(backup.clone());
                    }
                }
                _ => {
                    let chain = self.chain(catalog, first);
                    let after = SegmentNo(first.0 + chain.segments.len() as u64);
                    if needed < after {
                        let backup = backup.clone();
                        let interval = Interval { backup, backups: 1, segments: chain.segments, end: chain.end };
                        intervals.push((after, interval));
                    } else {
                        incomplete.push(backup.clone());
                    }
                }
            }
        }
        (intervals.into_iter().map(|(_, interval)| interval).collect(), incomplete)
    }
}

impl LaneCatalog {
    /// Returns what of its backups matters for what can be restored.
    pub fn spans(&self) -> Vec<BackupSpan> {
        self.backups.iter().map(BackupSpan::from).collect()
    }
}

#[cfg(test)]
mod tests;
