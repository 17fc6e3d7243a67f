//! The operating-system user that servers and the program run as.
//!
//! PostgreSQL refuses to run as root. A test run by root therefore starts everything as `postgres`, the user that
//! Debian's packages create; any other test run starts everything as itself.

use std::fs;
use std::os::unix::fs::lchown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The user that owns data directories and repositories.
#[derive(Debug)]
pub struct ServerUser {
    uid: u32,
    gid: u32,
    /// True when the test run is root's and commands have to change user.
    switched: bool,
}

impl ServerUser {
    /// Returns this machine's server user.
    pub fn get() -> &'static Self {
        static USER: OnceLock<ServerUser> = OnceLock::new();
        USER.get_or_init(|| {
            let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            if uid != 0 {
                return Self { uid, gid, switched: false };
            }
            let (uid, gid) = look_up("postgres").expect("user postgres exists: run tests/pg/install.sh test");
            Self { uid, gid, switched: true }
        })
    }

    /// Makes `command` run as this user, with no supplementary groups.
    pub fn run_as(&self, command: &mut Command) {
        if self.switched {
            command.gid(self.gid).uid(self.uid);
        }
    }

    /// Returns the words with which root's shell runs a command as this user; `None` if the test run is not root's.
    pub fn setpriv(&self) -> Option<String> {
        let Self { uid, gid, switched } = self;
        switched.then(|| format!("/usr/bin/setpriv --reuid={uid} --regid={gid} --clear-groups"))
    }

    /// Gives `path` itself to this user; a link is not followed.
    pub fn take_over_itself(&self, path: &Path) {
        if self.switched {
            lchown(path, Some(self.uid), Some(self.gid)).unwrap_or_else(|error| panic!("chown {path:?}: {error}"));
        }
    }

    /// Gives `path`, and all that is below it, to this user.
    pub fn take_over(&self, path: &Path) {
        self.take_over_itself(path);
        if self.switched && path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(path).unwrap_or_else(|error| panic!("list {path:?}: {error}")) {
                self.take_over(&entry.expect("a listed entry").path());
            }
        }
    }
}

/// Finds a user's numbers in the password file: name, password, uid, gid, ...
fn look_up(name: &str) -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let mut fields = passwd
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.skip(1)))?;
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
