//! Why settings cannot be used, in words that name the key and the place.

use std::io;
use std::path::{Path, PathBuf};

use super::DIRECTORY;
use crate::store::UrlError;

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nothing says where the repository is.
    #[error("no repository is set; give --repo, WALVAULT_REPO, or repo in {}", file.display())]
    NoRepository {
        /// The file that was looked for.
        file: PathBuf,
    },
    /// Nothing says which cluster.
    #[error("no cluster is set; give --cluster or WALVAULT_CLUSTER")]
    NoCluster,
    /// The file cannot be read.
    #[error("read {}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no TOML. The line is not repeated: it may hold a password, such as a proxy's.
    #[error("read {}: line {line}: {problem}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        problem: String,
    },
    /// A key that does not exist.
    #[error("{place} sets {name}, which is no setting; did you mean {nearest}?")]
    Unknown {
        /// File or environment.
        place: String,
        /// The key.
        name: String,
        /// The key most like it.
        nearest: &'static str,
    },
    /// A value that is no number in its range.
    #[error("{name} = {value:?} is not a whole number from {least} to {most}")]
    Range {
        /// The key.
        name: &'static str,
        /// The value.
        value: String,
        /// Least.
        least: u64,
        /// Most.
        most: u64,
    },
    /// A value that is none of the few there are.
    #[error("{name} = {value:?} is none of {choices}")]
    Choice {
        /// The key.
        name: &'static str,
        /// The value.
        value: String,
        /// What there is.
        choices: &'static str,
    },
    /// The repository's URL cannot be used.
    #[error("the repository that is set cannot be used")]
    Url {
        /// Why. The URL is not repeated: it may hold a password.
        source: UrlError,
    },
}

impl ConfigError {
    /// Returns the one next thing to do, where something can be said beyond the error itself.
    pub fn hint(&self) -> Option<String> {
        match self {
            ConfigError::NoCluster => known_clusters(Path::new(DIRECTORY)),
            ConfigError::NoRepository { file } if !file.exists() => known_clusters(file.parent()?),
            ConfigError::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run it as the user that the server runs as, or let this one read the file".to_owned())
            }
            ConfigError::Syntax { .. } => Some(
                "write name = value in each line, texts in quotes: repo = \"file:///mnt/backup/postgresql\"".to_owned(),
            ),
            _ => None,
        }
    }
}

/// Says for which clusters a directory has settings.
fn known_clusters(directory: &Path) -> Option<String> {
    let names = std::fs::read_dir(directory).ok()?.filter_map(|entry| {
        let path = entry.ok()?.path();
        let named = path.extension().is_some_and(|extension| extension == "toml");
        named.then(|| path.file_stem()?.to_str().map(str::to_owned)).flatten()
    });
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    let place = directory.display();
    (!names.is_empty()).then(|| format!("{place} has settings of these clusters: {}", names.join(", ")))
}
