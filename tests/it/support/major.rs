//! The PostgreSQL servers on this machine, by major version.
//!
//! `tests/pg/install.sh test` puts each one's programs under `<cache>/<major>/bin`. A server that is not there fails
//! the test that asks for it: a skipped journey proves nothing.

use std::fmt;
use std::path::{Path, PathBuf};

/// A major version of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Major(u32);

impl Major {
    /// PostgreSQL 13; this build has the server's own programs only, and borrows the client programs of 15.
    pub const V13: Self = Self(13);
    /// PostgreSQL 14; this build has the server's own programs only, and borrows the client programs of 15.
    pub const V14: Self = Self(14);
    /// PostgreSQL 15, Debian 12's own.
    pub const V15: Self = Self(15);
    /// PostgreSQL 16; this build has no amcheck.
    pub const V16: Self = Self(16);
    /// PostgreSQL 17.
    pub const V17: Self = Self(17);
    /// PostgreSQL 18.
    pub const V18: Self = Self(18);

    /// Returns the majors that every journey runs on.
    pub fn all() -> [Self; 3] {
        [Self::V15, Self::V17, Self::V18]
    }

    /// Returns every major that can be started here, for the checks that are worth it.
    pub fn every() -> [Self; 6] {
        [Self::V13, Self::V14, Self::V15, Self::V16, Self::V17, Self::V18]
    }

    /// Returns the number, 15 for 15.20.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Returns the path of one of this major's programs, links resolved.
    ///
    /// PostgreSQL 13 and 14 get 15's client programs: their builds have none, and they understand the older servers.
    #[track_caller]
    pub fn program(self, name: &str) -> PathBuf {
        let servers = cache();
        let own = servers.join(self.0.to_string()).join("bin");
        let found = own.join(name).canonicalize().or_else(|error| {
            if self <= Self::V14 && own.is_dir() {
                servers.join("15/bin").join(name).canonicalize()
            } else {
                Err(error)
            }
        });
        found.unwrap_or_else(|error| {
            panic!("{name} of PostgreSQL {self} is not in {own:?} ({error}): run tests/pg/install.sh test")
        })
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns the folder that `tests/pg/install.sh` fills, by the same rule.
pub fn cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = variable("WALVAULT_TEST_PG") {
        return path;
    }
    let root = if rustix::process::getuid().is_root() {
        Path::new("/var/cache").to_owned()
    } else {
        let home = || variable("HOME").map(|home| home.join(".cache"));
        variable("XDG_CACHE_HOME").or_else(home).expect("HOME is set")
    };
    root.join("walvault-test/pg")
}
