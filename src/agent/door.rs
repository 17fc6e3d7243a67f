//! The socket's place: taken by one agent at a time, and free again however that one ended.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Longest path of a socket, less the end of a temporary name.
///
/// Source: `sun_path` in unix(7).
const LONGEST: usize = 107 - ".new".len();

/// Why an agent cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Another agent serves this cluster.
    #[error("an agent for this cluster listens on {} already", .0.display())]
    Taken(PathBuf),
    /// The path is too long for a socket.
    #[error("the socket's path {} is longer than {LONGEST} bytes; set runtime_dir to a shorter one", .0.display())]
    TooLong(PathBuf),
    /// The system refused.
    #[error("listen on {}", path.display())]
    System {
        /// The socket, or what belongs to it.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A socket that listens; removed when dropped.
#[derive(Debug)]
pub struct Door {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: u64,
    /// Held as long as the agent lives, whatever becomes of the socket's name.
    _lock: File,
}

impl Door {
    /// Returns where the socket of a cluster is.
    pub fn path_in(runtime: &Path, cluster: &str) -> PathBuf {
        runtime.join(format!("{cluster}.sock"))
    }

    /// Listens at `path`, for this user and, if one is given, a group. A socket that a dead agent left is replaced.
    ///
    /// # Errors
    /// [`DoorError::Taken`] if an agent lives that listens there.
    pub fn open(path: &Path, group: Option<u32>) -> Result<Self, DoorError> {
        let failed = |source| DoorError::System { path: path.to_path_buf(), source };
        if path.as_os_str().len() > LONGEST {
            return Err(DoorError::TooLong(path.to_path_buf()));
        }
        if let Some(parent) = path.parent() {
            match DirBuilder::new().mode(0o755).create(parent) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
                _ => {}
            }
        }
        let lock =
            OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path.with_extension("lock"));
        let lock = lock.map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DoorError::Taken(path.to_path_buf())),
            Err(error) => return Err(failed(error.into())),
        }
        // Under a name of its own until its rights are right; then in one step over whatever is there.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        let settle = || {
            if let Some(group) = group {
                chown(&fresh, None, Some(group))?;
            }
            fs::set_permissions(&fresh, fs::Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
            let inode = fs::symlink_metadata(&fresh)?.ino();
            fs::rename(&fresh, path).map(|()| inode)
        };
        let inode = settle().map_err(failed)?;
        Ok(Self { listener, path: path.to_path_buf(), inode, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file beside it in which helpers keep what they counted.
    pub(super) fn counts(&self) -> PathBuf {
        self.path.with_extension("prom")
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn one_agent_at_a_time_and_a_dead_ones_socket_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Door::path_in(&directory.path().join("run"), "main");
        let door = Door::open(&path, None).expect("free");
        let mode = fs::metadata(&path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert!(matches!(Door::open(&path, None), Err(DoorError::Taken(_))));
        assert!(UnixStream::connect(&path).is_ok());
        drop(door);
        assert!(!path.exists());
        // What a killed agent leaves.
        drop(UnixListener::bind(&path).expect("free"));
        assert!(UnixStream::connect(&path).is_err());
        let door = Door::open(&path, None).expect("stale");
        assert!(UnixStream::connect(&path).is_ok());
        assert!(matches!(Door::open(&directory.path().join("x".repeat(120)), None), Err(DoorError::TooLong(_))));
        drop(door);
    }
}
