//! The program puts a copy of itself into a directory: an image that holds nothing else has no `cp`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::ErrorKind;

/// Name of the copy: manifests and `archive_command` count on it, whatever the original is called.
pub const PROGRAM: &str = "walvault";

/// Everybody may run it; only its owner may change it.
const MODE: u32 = 0o755;

/// What became of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// There was none.
    Created,
    /// Another one was there.
    Replaced,
    /// The same was there already, and was not touched.
    AlreadyThere,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The directory does not exist.
    #[error("there is no directory {}", directory.display())]
    NoDirectory {
        /// As it was named.
        directory: PathBuf,
    },
    /// Something else stands where the directory was expected.
    #[error("{} is not a directory", directory.display())]
    NotADirectory {
        /// As it was named.
        directory: PathBuf,
    },
    /// A directory, link or device has the copy's name.
    #[error("{} is there, and is not a file", place.display())]
    Taken {
        /// The copy's place.
        place: PathBuf,
    },
    /// The program itself cannot be read.
    #[error("read the running program")]
    Unreadable {
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl InstallError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoDirectory { .. } => ErrorKind::NotFound,
            Self::NotADirectory { .. } => ErrorKind::Invalid,
            Self::Taken { .. } => ErrorKind::Conflict,
            Self::Unreadable { source } | Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
                _ => ErrorKind::Unavailable,
            },
        }
    }
}

/// Puts a copy of `program` into `directory`, which must exist, as [`PROGRAM`].
///
/// The copy appears whole, with its mode, and durable, or not at all: it is written beside its place and renamed. So it
/// can be replaced while a server runs it. A directory is not created: where one is missing, a volume is not mounted.
///
/// # Errors
/// [`InstallError`]; what was there before is there still.
pub fn install(mut program: File, directory: &Path) -> Result<Installed, InstallError> {
    let place = directory.join(PROGRAM);
    let before = look(directory, &place)?;
    let mut bytes = Vec::new();
    program.read_to_end(&mut bytes).map_err(|source| InstallError::Unreadable { source })?;
    if before && is_same(&place, &bytes) {
        return Ok(Installed::AlreadyThere);
    }
    let name = unique_name().map_err(io::Error::other);
    let part = directory.join(io_at("name a file in", directory, name)?);
    let written = write(&part, &bytes).and_then(|()| io_at("rename", &part, fs::rename(&part, &place)));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written?;
    io_at("sync", directory, File::open(directory).and_then(|directory| directory.sync_all()))?;
    Ok(if before { Installed::Replaced } else { Installed::Created })
}

/// Tells whether a file is there already; refuses what is neither file nor nothing.
fn look(directory: &Path, place: &Path) -> Result<bool, InstallError> {
    match fs::metadata(directory) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(InstallError::NotADirectory { directory: directory.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(InstallError::NoDirectory { directory: directory.to_owned() });
        }
        Err(source) => return Err(InstallError::Io { action: "find", path: directory.to_owned(), source }),
    }
    match fs::symlink_metadata(place) {
        Ok(found) if found.is_file() => Ok(true),
        Ok(_) => Err(InstallError::Taken { place: place.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(InstallError::Io { action: "find", path: place.to_owned(), source }),
    }
}

/// What cannot be read is not the same: it is replaced.
fn is_same(place: &Path, bytes: &[u8]) -> bool {
    let like = |found: fs::Metadata| found.mode() & 0o7777 == MODE && found.len() == bytes.len() as u64;
    fs::metadata(place).is_ok_and(like) && fs::read(place).is_ok_and(|there| there == bytes)
}

/// Two containers may install into one volume at a time, each as its process number 1.
fn unique_name() -> Result<String, getrandom::Error> {
    let mut unique = [0; 8];
    getrandom::fill(&mut unique)?;
    Ok(format!(".{PROGRAM}.{}", hex::encode(unique)))
}

fn write(part: &Path, bytes: &[u8]) -> Result<(), InstallError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part);
    let mut file = io_at("create", part, opened)?;
    // The umask has no say: the copy is for other users too.
    let written = file.write_all(bytes).and_then(|()| file.set_permissions(Permissions::from_mode(MODE)));
    io_at("write", part, written.and_then(|()| file.sync_all()))
}

fn io_at<T>(action: &'static str, path: &Path, outcome: io::Result<T>) -> Result<T, InstallError> {
    outcome.map_err(|source| InstallError::Io { action, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(directory: &Path, bytes: &[u8]) -> File {
        let path = directory.join("original");
        fs::write(&path, bytes).expect("a directory of ours");
        File::open(path).expect("it was written")
    }

    #[test]
    fn a_copy_is_created_then_left_alone_then_replaced() {
        let place = tempfile::tempdir().expect("a directory");
        let copy = place.path().join(PROGRAM);
        let install = |bytes: &[u8]| install(program(place.path(), bytes), place.path()).expect("installed");
        assert_eq!(install(b"one"), Installed::Created);
        let inode = fs::metadata(&copy).expect("it is there").ino();
        assert_eq!(install(b"one"), Installed::AlreadyThere);
        assert_eq!(fs::metadata(&copy).expect("it is there").ino(), inode);
        assert_eq!(install(b"two"), Installed::Replaced);
        assert_eq!(fs::read(&copy).expect("it is there"), b"two");
        assert_eq!(fs::metadata(&copy).expect("it is there").mode() & 0o7777, MODE);
        assert_eq!(fs::read_dir(place.path()).expect("a directory").count(), 2, "only the original and the copy");
    }

    #[test]
    fn a_copy_that_nobody_may_run_is_mended() {
        let place = tempfile::tempdir().expect("a directory");
        let copy = place.path().join(PROGRAM);
        fs::write(&copy, "one").expect("a directory of ours");
        fs::set_permissions(&copy, Permissions::from_mode(0o600)).expect("ours");
        let installed = install(program(place.path(), b"one"), place.path());
        assert_eq!(installed.expect("installed"), Installed::Replaced);
        assert_eq!(fs::metadata(&copy).expect("it is there").mode() & 0o7777, MODE);
    }

    #[test]
    fn what_is_no_file_is_refused_and_left() {
        let place = tempfile::tempdir().expect("a directory");
        let refused = |directory: &Path| install(program(place.path(), b"one"), directory).expect_err("refused").kind();
        assert_eq!(refused(&place.path().join("missing")), ErrorKind::NotFound);
        assert_eq!(refused(&place.path().join("original")), ErrorKind::Invalid);
        let copy = place.path().join(PROGRAM);
        std::os::unix::fs::symlink("original", &copy).expect("a directory of ours");
        assert_eq!(refused(place.path()), ErrorKind::Conflict);
        assert!(copy.is_symlink());
        fs::remove_file(&copy).expect("ours");
        fs::create_dir(&copy).expect("a directory of ours");
        assert_eq!(refused(place.path()), ErrorKind::Conflict);
    }
}
