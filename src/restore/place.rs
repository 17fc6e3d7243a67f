//! Where a restore may write: nowhere that holds anything already.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::resume::is_unnamed_mark;
use crate::format::FormatError;
use crate::format::manifest::Tablespace;
use crate::instance::running_server;
use crate::pg::system_id::SystemId;

/// Why a place cannot be written to.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A server runs there.
    #[error("a server runs in {} (pid {pid})", path.display())]
    Running {
        /// The directory.
        path: PathBuf,
        /// The server's process.
        pid: i32,
    },
    /// Something is there.
    #[error("{} is not empty", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The place is not a directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A tablespace's place exists on this host.
    #[error("tablespace {oid} was at {}, which exists on this host; give its new place with --tablespace {oid}=DIR", path.display())]
    TablespaceExists {
        /// The tablespace.
        oid: u32,
        /// Where it was.
        path: PathBuf,
    },
    /// The log creates a tablespace in a place that exists on this host.
    #[error("the log creates tablespace {oid} at {}, which exists on this host: replaying it here would write into that directory; restore on another host, or, if that directory is no server's any more, give --allow-tablespace-path {}", path.display(), path.display())]
    TablespaceReplayed {
        /// The tablespace.
        oid: u32,
        /// Where.
        path: PathBuf,
    },
    /// A mapping for a tablespace that the backup does not have.
    #[error("the backup has no tablespace {oid}; it has {}", known(.has))]
    NoSuchTablespace {
        /// The number given.
        oid: u32,
        /// Those that it has.
        has: Vec<u32>,
    },
    /// Two tablespaces, or a tablespace and the data directory, would share a place.
    #[error("{} would hold more than one tablespace or the data directory", path.display())]
    Shared {
        /// The path.
        path: PathBuf,
    },
    /// A restore is at work there.
    #[error("another restore is at work in {}", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// Another restore was cut off there.
    #[error("{} holds an interrupted restore of {found}; this would be {wanted}", path.display())]
    OtherRestore {
        /// The directory.
        path: PathBuf,
        /// What was restored there.
        found: String,
        /// What is to be restored.
        wanted: String,
    },
    /// A server has changed what was restored.
    #[error("{} was restored and then started, or its pg_control is not the restore's", path.display())]
    Started {
        /// The directory.
        path: PathBuf,
    },
    /// Something lies where only an interrupted restore's files should.
    #[error("{} is not of the restore that was interrupted here", path.display())]
    Foreign {
        /// What lies there.
        path: PathBuf,
    },
    /// The directory is of another system.
    #[error("{} is of system {found}, the backup of system {expected}; nothing was touched", path.display())]
    OtherSystem {
        /// The directory.
        path: PathBuf,
        /// Its system identifier.
        found: SystemId,
        /// The backup's.
        expected: SystemId,
    },
    /// A server may run there that cannot be seen from here.
    #[error(
        "{} has a postmaster.pid, which a crash left behind or a server on another host or in another container holds; if \
         no server runs there, remove the file and try again", path.display()
    )]
    LockFile {
        /// The directory.
        path: PathBuf,
    },
    /// Nothing says whose directory it is.
    #[error("{} is not known to be the cluster's: it has no pg_control that can be read", path.display())]
    Unknown {
        /// The directory.
        path: PathBuf,
    },
    /// The mark of an interrupted restore cannot be believed.
    #[error("read {}", path.display())]
    Mark {
        /// The mark.
        path: PathBuf,
        /// Why.
        source: FormatError,
    },
    /// A place could not be looked at or made.
    #[error("use {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

fn known(oids: &[u32]) -> String {
    match oids {
        [] => "none".to_owned(),
        oids => oids.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// New places for tablespaces.
#[derive(Clone, Debug, Default)]
pub struct Tablespaces {
    /// By number.
    pub mapped: BTreeMap<u32, PathBuf>,
    /// Where those go that are not mapped, each in a directory named by its number.
    pub root: Option<PathBuf>,
}

impl Tablespaces {
    /// Returns where each of a backup's tablespaces goes; `owns` tells the places that an interrupted restore began.
    ///
    /// # Errors
    /// [`PlaceError`] before anything is written.
    pub(super) fn places(
        &self,
        tablespaces: &[Tablespace],
        data_directory: &Path,
        owns: impl Fn(&Path) -> bool,
    ) -> Result<Vec<(u32, PathBuf)>, PlaceError> {
        let has: Vec<u32> = tablespaces.iter().map(|tablespace| tablespace.oid).collect();
        if let Some(oid) = self.mapped.keys().find(|oid| !has.contains(oid)) {
            return Err(PlaceError::NoSuchTablespace { oid: *oid, has });
        }
        let mut places: Vec<(u32, PathBuf)> = Vec::new();
        // Those that go where they were may lie in each other as they did.
        let mut as_they_were: Vec<PathBuf> = Vec::new();
        for tablespace in tablespaces {
            let oid = tablespace.oid;
            let place = match (self.mapped.get(&oid), &self.root) {
                (Some(place), _) => absolute(place)?,
                (None, Some(root)) => absolute(root)?.join(oid.to_string()),
                (None, None) if tablespace.inside.is_some() => {
                    let place = inside(data_directory, tablespace)?;
                    if !owns(&place) {
                        check_empty(&place)?;
                    }
                    places.push((oid, place));
                    continue;
                }
                (None, None) => {
                    let path = PathBuf::from(&tablespace.path);
                    if exists(&path)? && !owns(&path) {
                        return Err(PlaceError::TablespaceExists { oid, path });
                    }
                    as_they_were.push(path.clone());
                    path
                }
            };
            let shared = |other: &Path| place.starts_with(other) || other.starts_with(&place);
            let nested = |other: &PathBuf| {
                *other != place && as_they_were.contains(other) && as_they_were.last() == Some(&place)
            };
            if places.iter().any(|(_, other)| shared(other) && !nested(other)) || shared(data_directory) {
                return Err(PlaceError::Shared { path: place });
            }
            if !owns(&place) {
                check_empty(&place)?;
            }
            places.push((oid, place));
        }
        Ok(places)
    }
}

/// Where a tablespace goes that lay within the data directory.
fn inside(data_directory: &Path, tablespace: &Tablespace) -> Result<PathBuf, PlaceError> {
    let below = PathBuf::from(tablespace.inside.as_deref().unwrap_or_default());
    let stays = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    match stays && below.components().next().is_some() {
        true => Ok(data_directory.join(below)),
        false => Err(PlaceError::Shared { path: below }),
    }
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, PlaceError> {
    std::path::absolute(path).map_err(|source| PlaceError::Io { path: path.to_path_buf(), source })
}

/// Checks that a directory does not exist, or is empty and no server's.
///
/// # Errors
/// [`PlaceError`] with what is there.
pub fn check_empty(path: &Path) -> Result<(), PlaceError> {
    if path.metadata().is_ok_and(|metadata| !metadata.is_dir()) {
        return Err(PlaceError::NotADirectory { path: path.to_path_buf() });
    }
    check_no_server(path)?;
    match std::fs::read_dir(path) {
        // A mark that was not yet given its name is nobody's.
        Ok(mut names) => {
            match names.find(|name| !name.as_ref().is_ok_and(|name| is_unnamed_mark(name.file_name().as_bytes()))) {
                None => Ok(()),
                Some(_) => Err(PlaceError::NotEmpty { path: path.to_path_buf() }),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(PlaceError::Io { path: path.to_path_buf(), source }),
    }
}

/// Checks that no two places are one directory. By their names they are apart; but a link above one of them may lead to
/// another, and the files of both would mingle.
///
/// # Errors
/// [`PlaceError::Shared`] with the second one.
pub(super) fn check_distinct<'a>(places: impl Iterator<Item = &'a Path>) -> Result<(), PlaceError> {
    let mut seen = BTreeSet::new();
    for path in places {
        let real = path.canonicalize().map_err(|source| PlaceError::Io { path: path.to_path_buf(), source })?;
        if !seen.insert(real) {
            return Err(PlaceError::Shared { path: path.to_path_buf() });
        }
    }
    Ok(())
}

/// Checks that no server runs in a directory.
pub(super) fn check_no_server(path: &Path) -> Result<(), PlaceError> {
    match running_server(path) {
        Some(server) => Err(PlaceError::Running { path: path.to_path_buf(), pid: server.pid }),
        None => Ok(()),
    }
}

/// Refuses a log that creates tablespaces in places that exist here: replaying it would write into them. `allowed` names
/// directories in and below which the operator lets it.
///
/// # Errors
/// [`PlaceError::TablespaceReplayed`] with the first one.
pub fn check_created(created: &[(u32, String)], allowed: &[PathBuf]) -> Result<(), PlaceError> {
    for (oid, path) in created.iter().filter(|(_, path)| !path.is_empty()) {
        let path = PathBuf::from(path);
        let is_allowed = allowed.iter().any(|allowed| path.starts_with(allowed));
        if !is_allowed && exists(&path)? {
            return Err(PlaceError::TablespaceReplayed { oid: *oid, path });
        }
    }
    Ok(())
}

fn exists(path: &Path) -> Result<bool, PlaceError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(source) => Err(PlaceError::Io { path: path.to_path_buf(), source }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn two_names_of_one_directory_are_one_place() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for directory in ["real/space", "real/data"] {
            std::fs::create_dir_all(at(directory)).unwrap();
        }
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        let check = |names: &[&str]| {
            check_distinct(names.iter().map(|name| at(name)).collect::<Vec<_>>().iter().map(PathBuf::as_path))
        };
        check(&["real/space", "link/data"]).unwrap();
        for names in [["real/space", "link/space"], ["link/data", "real/data"]] {
            assert!(matches!(check(&names), Err(PlaceError::Shared { path }) if path == at(names[1])));
        }
    }
}
