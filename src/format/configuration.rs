//! What a manifest says of configuration files outside the data directory.
//!
//! The files' bytes, one after the other, are the contents of one frame.

use serde::{Deserialize, Serialize};

use super::FormatError;
use super::digest::Sha256;

/// Configuration files that a backup keeps because some of them lie outside the data directory; then all of them are here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredConfiguration {
    /// `config_file` of the server.
    pub config_file: String,
    /// `hba_file`.
    pub hba_file: String,
    /// `ident_file`.
    pub ident_file: String,
    /// Place in the pack table.
    pub pack: u32,
    /// Frame in that pack.
    pub frame: u32,
    /// Files and directories, in the order of their bytes in the frame.
    pub entries: Vec<ConfigurationEntry>,
    /// Files that the configuration names and that could not be read.
    pub left_out: Vec<LeftOut>,
}

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationEntry {
    /// Absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What a file holds; `None` for a directory, of which files were included by being there.
    pub file: Option<ConfigurationContents>,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationContents {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of them.
    pub sha256: Sha256,
}

/// A configuration file that is not in the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The file.
    pub path: String,
    /// Why.
    pub problem: String,
}

/// An entry, and a file's bytes.
pub type EntryContents<'a> = (&'a ConfigurationEntry, Option<&'a [u8]>);

impl StoredConfiguration {
    /// Returns every entry with its bytes, out of the frame's contents.
    ///
    /// # Errors
    /// [`FormatError::Nonsense`] if sizes or paths make no sense, [`FormatError::Damaged`] if a digest does not fit.
    pub fn contents<'a>(&'a self, frame: &'a [u8]) -> Result<Vec<EntryContents<'a>>, FormatError> {
        let nonsense = |problem: String| FormatError::Nonsense { document: "configuration", problem };
        let mut rest = frame;
        let mut found = Vec::new();
        for entry in &self.entries {
            let inside = entry.path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
            if !entry.path.starts_with('/') || !inside || entry.path.contains('\0') {
                return Err(nonsense(format!("a file at {:?}", entry.path)));
            }
            let Some(file) = &entry.file else {
                found.push((entry, None));
                continue;
            };
            let size = usize::try_from(file.size).ok().filter(|size| *size <= rest.len());
            let size =
                size.ok_or_else(|| nonsense(format!("{} has {} bytes of {}", entry.path, file.size, rest.len())))?;
            let (bytes, after) = rest.split_at(size);
            if Sha256::of(bytes) != file.sha256 {
                return Err(FormatError::Damaged { part: "configuration" });
            }
            found.push((entry, Some(bytes)));
            rest = after;
        }
        if rest.is_empty() { Ok(found) } else { Err(nonsense(format!("{} bytes more than files", rest.len()))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(path: &str, size: u64, bytes: &[u8]) -> StoredConfiguration {
        let file = Some(ConfigurationContents { size, sha256: Sha256::of(bytes) });
        let entries = vec![
            ConfigurationEntry { path: "/etc/d".to_owned(), mode: 0o755, file: None },
            ConfigurationEntry { path: path.to_owned(), mode: 0o640, file },
        ];
        let name = || "/etc/x".to_owned();
        let (config_file, hba_file, ident_file, left_out) = (name(), name(), name(), Vec::new());
        StoredConfiguration { config_file, hba_file, ident_file, pack: 0, frame: 0, entries, left_out }
    }

    #[test]
    fn files_come_back_and_lies_do_not() {
        let good = stored("/etc/x", 3, b"abc");
        let found = good.contents(b"abc").expect("as stored");
        assert_eq!(found.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(), [None, Some(&b"abc"[..])]);
        for frame in [&b"ab"[..], b"abcd", b"abd", b""] {
            assert!(good.contents(frame).is_err(), "{frame:?}");
        }
        for path in ["etc/x", "/etc/../x", "/etc//x", "/", "", "/etc/./x", "/etc/x\0"] {
            assert!(stored(path, 3, b"abc").contents(b"abc").is_err(), "{path:?}");
        }
        assert!(stored("/etc/x", u64::MAX, b"abc").contents(b"abc").is_err());
    }
}
