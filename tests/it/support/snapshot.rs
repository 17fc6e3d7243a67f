//! What a directory holds, to show afterwards that nothing, or just one thing, has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// Every entry below a directory: kind, mode, owner, and contents by digest. Times are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    contents: Contents,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Contents {
    File { bytes: u64, sha256: String },
    Directory,
    Link(String),
    Other,
}

impl Snapshot {
    /// Reads everything below `directory`, which nothing may be changing meanwhile.
    #[track_caller]
    pub fn of(directory: &Path) -> Self {
        let mut entries = BTreeMap::new();
        collect(directory, "", &mut entries).unwrap_or_else(|error| panic!("read {directory:?}: {error}"));
        Self(entries)
    }

    /// Leaves out what `belongs` denies of its name.
    pub fn only(mut self, belongs: impl Fn(&str) -> bool) -> Self {
        self.0.retain(|name, _| belongs(name));
        self
    }

    /// Returns the differences of `later` to this, one line each, in the order of names.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.keys().chain(later.0.keys()).collect();
        let difference = |name: &String| match (self.0.get(name), later.0.get(name)) {
            (Some(_), None) => Some(format!("removed {name}")),
            (None, Some(entry)) => Some(format!("added {name} ({entry})")),
            (Some(before), Some(after)) if before != after => Some(format!("changed {name} ({before} to {after})")),
            _ => None,
        };
        names.into_iter().filter_map(difference).collect()
    }

    /// Panics with the differences if `directory` is not what it was.
    #[track_caller]
    pub fn expect_unchanged(&self, directory: &Path) {
        let differences = self.differences(&Self::of(directory));
        assert!(differences.is_empty(), "{} changed:\n{}", directory.display(), differences.join("\n"));
    }

    /// Panics with the differences if a repository is not what it was, but for the words of those who read it.
    #[track_caller]
    pub fn expect_only_read(&self, repository: &Path) {
        let quiet = |snapshot: &Self| snapshot.clone().only(|name| !name.contains("/leases/read"));
        let differences = quiet(self).differences(&quiet(&Self::of(repository)));
        assert!(differences.is_empty(), "{} changed:\n{}", repository.display(), differences.join("\n"));
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there was nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn collect(directory: &Path, prefix: &str, entries: &mut BTreeMap<String, Entry>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        let metadata = match fs::symlink_metadata(&path) {
            // It has gone since it was listed: it is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let contents = if metadata.is_dir() {
            collect(&path, &format!("{name}/"), entries)?;
            Contents::Directory
        } else if metadata.is_symlink() {
            Contents::Link(fs::read_link(&path)?.to_string_lossy().into_owned())
        } else if metadata.is_file() {
            let bytes = match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                bytes => bytes?,
            };
            Contents::File { bytes: bytes.len() as u64, sha256: hex::encode(Sha256::digest(&bytes)) }
        } else {
            Contents::Other
        };
        let owner = (metadata.uid(), metadata.gid());
        entries.insert(name, Entry { mode: metadata.mode(), owner, contents });
    }
    Ok(())
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:o} {}:{} ", self.mode, self.owner.0, self.owner.1)?;
        match &self.contents {
            Contents::File { bytes, sha256 } => write!(f, "{bytes} bytes {}", &sha256[..12]),
            Contents::Directory => write!(f, "directory"),
            Contents::Link(target) => write!(f, "link to {target}"),
            Contents::Other => write!(f, "special file"),
        }
    }
}
