//! PostgreSQL's own programs: where `pg_ctl` is.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder that holds `pg_ctl` and `postgres` of one major.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

/// Why PostgreSQL's programs cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("no pg_ctl of PostgreSQL {major} in {}; say where with --pg-bin", listed(.tried))]
pub struct ProgramsError {
    major: u16,
    tried: Vec<PathBuf>,
}

/// Why no new server can be made.
#[derive(Debug, thiserror::Error)]
#[error("no initdb, pg_ctl and postgres of PostgreSQL {OLDEST} or newer in {}", listed(.tried))]
pub struct NoServerPrograms {
    tried: Vec<PathBuf>,
}

/// Oldest major that is supported.
const OLDEST: u16 = 13;

fn listed(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Programs {
    /// Finds the programs of a major: in the folder given, or where distributions put them, or among `path`.
    pub fn find(major: u16, given: Option<&Path>, path: &[PathBuf]) -> Result<Self, ProgramsError> {
        let tried: Vec<PathBuf> = match given {
            Some(folder) => vec![folder.to_path_buf()],
            None => {
                let usual = [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")];
                usual.into_iter().map(PathBuf::from).chain(path.iter().cloned()).collect()
            }
        };
        let found = tried.iter().find(|folder| major_of(folder) == Some(major)).cloned();
        found.map(|folder| Self { folder }).ok_or(ProgramsError { major, tried })
    }

    /// Finds the programs that make and run a new server, with their major: in the folder given; or where `pg_config`
    /// says, else the newest that Debian's packages installed, else the first of `path`.
    pub fn for_new_server(given: Option<&Path>, path: &[PathBuf]) -> Result<(Self, u16), NoServerPrograms> {
        let tried: Vec<PathBuf> = match given {
            Some(folder) => vec![std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf())],
            None => configured(path).into_iter().chain(packaged()).chain(path.iter().cloned()).collect(),
        };
        let usable = |folder: &PathBuf| {
            let major = major_of(folder).filter(|major| *major >= OLDEST && folder.join("initdb").exists())?;
            Some((Self { folder: folder.clone() }, major))
        };
        tried.iter().find_map(usable).ok_or(NoServerPrograms { tried })
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns one program's path.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Asks the first `pg_config` for its folder, which need not hold a server.
fn configured(path: &[PathBuf]) -> Option<PathBuf> {
    let program = path.iter().map(|folder| folder.join("pg_config")).find(|program| program.exists())?;
    let said = Command::new(program).arg("--bindir").output().ok()?;
    let folder = String::from_utf8(said.stdout).ok()?;
    Some(PathBuf::from(folder.trim_end())).filter(|folder| folder.is_absolute())
}

/// Debian's folders, the newest major first.
fn packaged() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u16>().ok());
    let mut numbers: Vec<u16> = numbers.collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers.into_iter().map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))).collect()
}

/// Asks the `postgres` beside `pg_ctl` for its major: `postgres (PostgreSQL) 15.20 (Debian …)`.
fn major_of(folder: &Path) -> Option<u16> {
    if !folder.join("pg_ctl").exists() {
        return None;
    }
    let said = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = text.split(' ').nth(2)?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
