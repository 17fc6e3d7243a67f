//! Where the server is that called us, and what it is doing.
//!
//! PostgreSQL calls `archive_command` and `restore_command` with the data directory as working directory and a relative
//! path; Patroni calls with an absolute path from anywhere; `pg_rewind` calls with a path that ends in the file's own
//! name, from its own working directory. So the data directory is looked for where the path points first, and in the
//! working directory last.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::ErrorKind;
use crate::pg::control::{ControlError, ControlFile};

/// How often a torn `pg_control` is read again: the server may be writing it.
const CONTROL_ATTEMPTS: u32 = 5;
const CONTROL_PAUSE: Duration = Duration::from_millis(20);

/// A server's data directory and what its `pg_control` says.
#[derive(Clone, Debug)]
pub struct DataDirectory {
    /// Where it is.
    pub path: PathBuf,
    /// Its `pg_control`.
    pub control: ControlFile,
}

/// What the server that asks for WAL is doing; it decides how an unknown answer must look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryMode {
    /// `standby.signal` is there, alone or with the other: it asks again for ever.
    Standby,
    /// `recovery.signal` is there: it takes *not there* for the end of the log and opens for writing.
    Archive,
    /// Neither is there: `pg_rewind`, or a person. Treated with archive recovery's care.
    NoSignal,
}

/// Why the data directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// None of the places that were tried has one.
    #[error("no data directory at {}", list(.tried))]
    NotFound {
        /// Places that were tried.
        tried: Vec<PathBuf>,
    },
    /// `pg_control` could not be read.
    #[error("read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `pg_control` makes no sense.
    #[error("read {}", path.display())]
    Control {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ControlError,
    },
}

impl LocateError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            LocateError::NotFound { .. } => ErrorKind::Invalid,
            LocateError::Unreadable { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                ErrorKind::Denied
            }
            LocateError::Unreadable { .. } => ErrorKind::Unavailable,
            LocateError::Control { .. } => ErrorKind::Corrupt,
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}

impl DataDirectory {
    /// Opens the data directory at `path`.
    pub fn open(path: &Path) -> Result<Self, LocateError> {
        let control = read_control(path)?;
        Ok(Self { path: path.to_path_buf(), control })
    }

    /// Finds the data directory that a WAL file's path belongs to; `given` is where it is if the path does not tell.
    ///
    /// The path comes first: a copy on the same host calls with the settings of the server that it was copied from.
    ///
    /// # Errors
    /// [`LocateError::NotFound`] with every place that was tried.
    pub fn of_wal_path(wal_path: &Path, given: Option<&Path>) -> Result<Self, LocateError> {
        let tried = candidates(wal_path, given);
        for path in &tried {
            if path.join(CONTROL).exists() {
                return Self::open(path);
            }
        }
        Err(LocateError::NotFound { tried })
    }

    /// Returns whether a server runs here, or ended without tidying up.
    pub fn in_use(&self) -> bool {
        self.path.join("postmaster.pid").symlink_metadata().is_ok()
    }

    /// Returns what the server is doing, by its signal files.
    ///
    /// Source: `readRecoverySignalFile` in `src/backend/access/transam/xlogrecovery.c`: both files mean standby.
    pub fn recovery_mode(&self) -> RecoveryMode {
        recovery_mode_of(&self.path)
    }
}

/// As [`DataDirectory::recovery_mode`], for a directory whose `pg_control` may be unreadable.
pub(super) fn recovery_mode_of(path: &Path) -> RecoveryMode {
    // A link that points nowhere is still the operator's word for standby.
    let there = |name: &str| path.join(name).symlink_metadata().is_ok();
    if there("standby.signal") {
        RecoveryMode::Standby
    } else if there("recovery.signal") {
        RecoveryMode::Archive
    } else {
        RecoveryMode::NoSignal
    }
}

impl RecoveryMode {
    /// Returns what the server that a WAL path belongs to is doing, without reading anything that could fail.
    pub fn of_wal_path(wal_path: &Path, given: Option<&Path>) -> Self {
        let places = candidates(wal_path, given);
        let place = places.iter().find(|place| place.join(CONTROL).exists()).or(places.first());
        place.map_or(RecoveryMode::NoSignal, |place| recovery_mode_of(place))
    }
}

const CONTROL: &str = "global/pg_control";

/// Places where the data directory may be, the likeliest first.
fn candidates(wal_path: &Path, given: Option<&Path>) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let mut add = |place: &Path| {
        let place = if place.as_os_str().is_empty() { Path::new(".") } else { place };
        if !places.iter().any(|known: &PathBuf| known == place) {
            places.push(place.to_path_buf());
        }
    };
    // `<data>/pg_wal/<file>`, as it was written: `pg_wal` may be a link to another volume.
    let wal_directory =
        wal_path.parent().filter(|directory| directory.file_name().is_some_and(|name| name == "pg_wal"));
    if let Some(wal_directory) = wal_directory {
        add(wal_directory.parent().unwrap_or(Path::new(".")));
    }
    add(Path::new("."));
    given.map(add);
    places
}

fn read_control(data_directory: &Path) -> Result<ControlFile, LocateError> {
    let path = data_directory.join(CONTROL);
    let mut attempt = 1;
    loop {
        let bytes = std::fs::read(&path).map_err(|source| LocateError::Unreadable { path: path.clone(), source })?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok(control),
            Err(_) if attempt < CONTROL_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(CONTROL_PAUSE);
            }
            Err(source) => return Err(LocateError::Control { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_believed_before_the_working_directory() {
        let places = |path: &str| candidates(Path::new(path), None);
        assert_eq!(places("pg_wal/000000010000000000000001"), [PathBuf::from(".")]);
        assert_eq!(places("/data/pg_wal/x"), [PathBuf::from("/data"), PathBuf::from(".")]);
        assert_eq!(places("../data/pg_wal/x"), [PathBuf::from("../data"), PathBuf::from(".")]);
        assert_eq!(places("/somewhere/x"), [PathBuf::from(".")]);
        let given = candidates(Path::new("pg_wal/x"), Some(Path::new("/data")));
        assert_eq!(given, [PathBuf::from("."), PathBuf::from("/data")]);
    }
}
