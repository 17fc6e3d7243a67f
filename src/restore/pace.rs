//! How fast restores went on this host, and what that says of the next one.
//!
//! Every restore that ran through leaves a measurement in `state_dir`, and every one that was started and reached its
//! target leaves another, of the replay. They are estimates and no more: the file may be lost, damaged or another user's
//! at any moment, and then nothing is known and that is said.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Plan;

/// Version of the file. Another one's measurements are not known.
const VERSION: u32 = 1;
/// Measurements kept of each kind: the last ones, since hosts and networks change.
const KEPT: usize = 8;
/// Less than this says more about how long it takes to begin than about how fast it goes.
const LEAST: u64 = 16 << 20;

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Bytes: of files written, or of log replayed.
    pub bytes: u64,
    /// How long that took, in milliseconds.
    pub ms: u64,
    /// When.
    pub at: DateTime<Utc>,
}

/// What was measured here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    version: u32,
    /// Restores, by the bytes of the files.
    #[serde(default)]
    pub restores: Vec<Measured>,
    /// Replays, by the bytes of the log.
    #[serde(default)]
    pub replays: Vec<Measured>,
}

/// What a plan will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Bytes to be fetched: of the backup and of the log, as they are stored.
    pub fetch_bytes: u64,
    /// Bytes of files to be written.
    pub write_bytes: u64,
    /// Bytes of log to be replayed.
    pub replay_bytes: u64,
    /// How long the files take; `None` if nothing was measured here.
    pub restore: Option<Duration>,
    /// How long the replay takes, with what it fetches; `None` likewise.
    pub replay: Option<Duration>,
    /// The last measurement that it rests on.
    pub measured_at: Option<DateTime<Utc>>,
}

/// Where a host's measurements of one repository and cluster are kept.
#[derive(Clone, Debug)]
pub struct PaceFile {
    directory: PathBuf,
    name: String,
}

impl PaceFile {
    /// Names the file in a state directory; `digest` tells the cluster of this repository from every other.
    pub fn new(directory: &Path, digest: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            name: digest.chars().filter(char::is_ascii_alphanumeric).take(16).collect(),
        }
    }

    fn of_user(&self, uid: u32) -> PathBuf {
        self.directory.join(format!("pace-{uid}-{}", self.name))
    }

    /// Reads what this user, or root, measured; nothing known is an empty value.
    pub fn load(&self) -> Pace {
        let own = rustix::process::geteuid().as_raw();
        let mut pace = read(&self.of_user(own));
        if own != 0 {
            let roots = read(&self.of_user(0));
            pace.restores.extend(roots.restores);
            pace.replays.extend(roots.replays);
        }
        pace
    }

    /// Adds measurements; those too small to say anything are left out.
    ///
    /// # Errors
    /// Whatever the system says. A directory that is not there is made by nobody, and no error.
    pub fn note(&self, restore: Option<Measured>, replay: Option<Measured>) -> io::Result<()> {
        let file = self.of_user(rustix::process::geteuid().as_raw());
        let mut pace = Pace { version: VERSION, ..read(&file) };
        let counts = |measured: &Measured| measured.bytes >= LEAST && measured.ms > 0;
        for (list, new) in [(&mut pace.restores, restore), (&mut pace.replays, replay)] {
            list.extend(new.filter(counts));
            list.drain(..list.len().saturating_sub(KEPT));
        }
        if !self.directory.is_dir() {
            return Ok(());
        }
        let beside = file.with_extension(std::process::id().to_string());
        let text = serde_json::to_vec(&pace).expect("plain values");
        let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&beside)?;
        let written = new.write_all(&text).and_then(|()| fs::rename(&beside, &file));
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

fn read(file: &Path) -> Pace {
    let pace = fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Pace>(&bytes).ok());
    pace.filter(|pace| pace.version == VERSION).unwrap_or_default()
}

impl Measured {
    /// Notes what was done in `elapsed`.
    pub fn new(bytes: u64, elapsed: Duration, at: DateTime<Utc>) -> Self {
        Self { bytes, ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), at }
    }
}

impl Pace {
    /// Says what a plan will take, as far as it is known.
    pub fn estimate(&self, plan: &Plan) -> Estimate {
        let envelope = &plan.manifest.envelope;
        let replay_bytes = plan.point.reach - envelope.start_lsn;
        let used = self.restores.iter().chain(&self.replays);
        Estimate {
            fetch_bytes: envelope.stored_bytes + plan.wal_stored_bytes,
            write_bytes: envelope.bytes,
            replay_bytes,
            restore: time_for(&self.restores, envelope.bytes),
            replay: time_for(&self.replays, replay_bytes),
            measured_at: used.map(|measured| measured.at).max(),
        }
    }
}

/// How long so many bytes take at the pace of all measurements together: large ones weigh more.
fn time_for(measured: &[Measured], bytes: u64) -> Option<Duration> {
    let done: u64 = measured.iter().map(|one| one.bytes).sum();
    let ms: u64 = measured.iter().map(|one| one.ms).sum();
    (done > 0).then(|| Duration::from_secs_f64(bytes as f64 / done as f64 * ms as f64 / 1000.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn measured(mib: u64, seconds: u64) -> Measured {
        Measured::new(mib << 20, Duration::from_secs(seconds), DateTime::UNIX_EPOCH)
    }

    #[test]
    fn what_was_measured_says_how_long_the_next_takes() {
        assert_eq!(time_for(&[], 100), None);
        assert_eq!(time_for(&[measured(100, 1)], 300 << 20), Some(Duration::from_secs(3)));
        assert_eq!(time_for(&[measured(100, 1), measured(300, 7)], 50 << 20), Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_last_measurements_stay_and_small_ones_are_not_kept() {
        let place = tempfile::tempdir().unwrap();
        let file = PaceFile::new(place.path(), "abc/../def");
        assert_eq!(file.load(), Pace::default());
        for number in 1..=10 {
            file.note(Some(measured(100, number)), Some(measured(1, number))).unwrap();
        }
        let pace = file.load();
        assert_eq!(pace.restores, (3..=10).map(|number| measured(100, number)).collect::<Vec<_>>());
        assert!(pace.replays.is_empty());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
        // What cannot be read is not known, and is written anew.
        fs::write(file.of_user(rustix::process::geteuid().as_raw()), "x").unwrap();
        assert_eq!(file.load(), Pace::default());
        file.note(None, Some(measured(64, 2))).unwrap();
        assert_eq!(file.load().replays, [measured(64, 2)]);
    }

    #[test]
    fn a_directory_that_is_not_there_is_not_made() {
        let place = tempfile::tempdir().unwrap();
        let gone = place.path().join("gone");
        PaceFile::new(&gone, "x").note(Some(measured(100, 1)), None).unwrap();
        assert!(!gone.exists());
    }
}
