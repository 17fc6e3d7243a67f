//! Databases that a restore left out, in a server that runs: closed for everybody, or dropped.
//!
//! Which they are, their own directories say and not what was asked for: replay may have copied such a database to another,
//! renamed it or dropped it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::ErrorKind;
use crate::format::left_out::is_left_out;
use crate::instance::{ConnectionError, ConnectionSettings, DatabaseSession, LibpqEnvironment, SessionError};

/// A database that was left out, and is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedDatabase {
    /// Its number.
    pub oid: u32,
    /// Its name, now.
    pub name: String,
    /// Whether it was dropped.
    pub dropped: bool,
}

/// Why databases that were left out could not be closed or dropped. Nobody can connect to them all the same.
#[derive(Debug, thiserror::Error)]
pub enum LeftOutError {
    /// Their directories could not be looked at.
    #[error("look for databases left out in {}", path.display())]
    Look {
        /// The data directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server did not do it.
    #[error("close the databases that were left out")]
    Close {
        /// Why.
        #[from]
        source: SessionError,
    },
    /// One could not be dropped.
    #[error("drop database {name}, which was left out")]
    Drop {
        /// The database.
        name: String,
        /// Why.
        source: SessionError,
    },
    /// The server cannot be reached as libpq's variables say.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl LeftOutError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            LeftOutError::Look { .. } => ErrorKind::Unavailable,
            LeftOutError::Close { source } | LeftOutError::Drop { source, .. } => source.kind(),
            LeftOutError::Connection(_) => ErrorKind::Invalid,
        }
    }
}

/// Closes every database of a server open for writing that a restore left out, and drops it if asked to.
pub fn close_left_out(
    data_directory: &Path,
    environment: &LibpqEnvironment,
    drop: bool,
) -> Result<Vec<ClosedDatabase>, LeftOutError> {
    let marked = marked(data_directory);
    let marked = marked.map_err(|source| LeftOutError::Look { path: data_directory.to_path_buf(), source })?;
    let marked: Vec<u32> = marked.into_iter().collect();
    let settings = ConnectionSettings::resolve(None, environment, Some(data_directory))?;
    let session = DatabaseSession::connect(&settings)?;
    session.close(&marked)?;
    let mut closed = Vec::new();
    for (oid, name) in session.names(&marked)? {
        if drop {
            session.drop_database(oid).map_err(|source| LeftOutError::Drop { name: name.clone(), source })?;
        }
        closed.push(ClosedDatabase { oid, name, dropped: drop });
    }
    Ok(closed)
}

/// Returns the databases of a data directory that carry the mark.
fn marked(data_directory: &Path) -> io::Result<BTreeSet<u32>> {
    let mut places = vec![data_directory.join("base")];
    for tablespace in subdirectories(&data_directory.join("pg_tblspc"))? {
        places.extend(subdirectories(&tablespace)?);
    }
    let mut marked = BTreeSet::new();
    for place in places {
        for database in subdirectories(&place)? {
            let oid: Option<u32> = database.file_name().and_then(|name| name.to_str()?.parse().ok());
            match fs::read(database.join("PG_VERSION")) {
                Ok(contents) if is_left_out(&contents) => marked.extend(oid),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(marked)
}

/// Returns the directories in a directory, links to them included.
fn subdirectories(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    let paths = paths.collect::<io::Result<Vec<PathBuf>>>()?;
    Ok(paths.into_iter().filter(|path| path.is_dir()).collect())
}
