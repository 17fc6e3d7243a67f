//! Configuration files outside the data directory.
//!
//! If a single file of the configuration lies outside, all of them are kept beside the data, so that a restore can put
//! them up together. Found by reading them as the server does, and checked against what the server itself says it read.
//! Keys, certificates and password files are no configuration files and are never kept.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::budget::LEAF_PACK_BYTES;
use super::copy::CopyError;
use super::packs::{Filling, Shelf};
use crate::format::Sha256;
use crate::format::configuration::{ConfigurationContents, ConfigurationEntry, LeftOut, StoredConfiguration};
use crate::instance::ConfigurationPaths;
use crate::pg::configuration_file::{Language, ReferenceKind, Statement, is_read_in_directory, resolved, statements};

/// Most bytes that are kept: they share one frame, and hand-written files are far smaller.
const LIMIT: u64 = 8 << 20;

/// A server's configuration, some of which lies outside its data directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct FoundConfiguration {
    paths: ConfigurationPaths,
    /// Modes of files and directories by path; directories have no bytes.
    entries: BTreeMap<String, (u32, Option<Vec<u8>>)>,
    pub left_out: Vec<LeftOut>,
}

/// Reads the configuration; `None` if all of it lies where the backup takes it anyway.
pub(super) fn find(paths: &ConfigurationPaths, data_directory: &Path) -> Option<FoundConfiguration> {
    if paths.config_file.as_os_str().is_empty() {
        return None;
    }
    let found = FoundConfiguration { paths: paths.clone(), ..FoundConfiguration::default() };
    let mut finder = Finder { found, bytes: 0, data_directory, outside: false };
    finder.file(&paths.config_file, Language::Settings, true);
    finder.file(&paths.hba_file, Language::Authentication, true);
    finder.file(&paths.ident_file, Language::Authentication, true);
    for path in &paths.settings_files {
        finder.file(path, Language::Settings, true);
    }
    for path in &paths.authentication_files {
        finder.file(path, Language::Authentication, true);
    }
    finder.outside.then_some(finder.found)
}

struct Finder<'a> {
    found: FoundConfiguration,
    bytes: u64,
    data_directory: &'a Path,
    outside: bool,
}

impl Finder<'_> {
    /// Takes a file and all that it names.
    fn file(&mut self, path: &Path, language: Language, must_exist: bool) {
        if self.is_known(path) || self.is_automatic(path) {
            return;
        }
        let text = match self.read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => return,
            Err(error) => return self.leave_out(path, error.to_string()),
        };
        self.outside |= !self.is_copied(path);
        for statement in statements(language, &text) {
            let Statement::Reference(reference) = statement else { continue };
            let named = resolved(path, &reference.path);
            match reference.kind {
                ReferenceKind::File => self.file(&named, language, true),
                ReferenceKind::FileIfExists => self.file(&named, language, false),
                ReferenceKind::Directory => self.directory(&named, language),
            }
        }
    }

    fn directory(&mut self, path: &Path, language: Language) {
        if self.is_known(path) {
            return;
        }
        let names = std::fs::metadata(path).and_then(|metadata| {
            let names: std::io::Result<Vec<_>> = std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect();
            Ok((metadata.mode(), names?))
        });
        match names {
            Err(error) => self.leave_out(path, error.to_string()),
            Ok((mode, names)) => {
                // An empty one matters: PostgreSQL does not start without it.
                if let Err(error) = self.add(path, mode, None) {
                    return self.leave_out(path, error.to_string());
                }
                self.outside |= !self.is_copied(path);
                let read = names.iter().filter(|name| is_read_in_directory(name.as_bytes()));
                for file in read.map(|name| path.join(name)).filter(|file| !file.is_dir()) {
                    self.file(&file, language, true);
                }
            }
        }
    }

    fn read(&mut self, path: &Path) -> std::io::Result<Vec<u8>> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(std::io::Error::other("not a file"));
        }
        self.bytes += metadata.len();
        if self.bytes > LIMIT {
            return Err(std::io::Error::other(format!("more than {LIMIT} bytes of configuration")));
        }
        let bytes = std::fs::read(path)?;
        self.add(path, metadata.mode(), Some(bytes.clone()))?;
        Ok(bytes)
    }

    fn add(&mut self, path: &Path, mode: u32, bytes: Option<Vec<u8>>) -> std::io::Result<()> {
        let text = path.to_str().ok_or_else(|| std::io::Error::other("its name is not UTF-8"))?.to_owned();
        self.found.entries.insert(text, (mode & 0o777, bytes));
        Ok(())
    }

    fn is_known(&self, path: &Path) -> bool {
        path.to_str().is_some_and(|path| self.found.entries.contains_key(path))
    }

    fn leave_out(&mut self, path: &Path, problem: String) {
        let path = path.to_string_lossy().into_owned();
        if !self.found.left_out.iter().any(|known| known.path == path) {
            // Missing or not, it is none of those that are copied with the data.
            self.outside |= !self.is_copied(Path::new(&path));
            self.found.left_out.push(LeftOut { path, problem });
        }
    }

    /// Whether the copy of the data directory holds the file: its directory, links resolved, lies in there.
    fn is_copied(&self, path: &Path) -> bool {
        let directory = path.parent().unwrap_or(path);
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        real(directory).starts_with(real(self.data_directory))
    }

    /// `postgresql.auto.conf` belongs to the data directory, wherever the rest is.
    fn is_automatic(&self, path: &Path) -> bool {
        path.file_name().is_some_and(|name| name == "postgresql.auto.conf") && self.is_copied(path)
    }
}

impl FoundConfiguration {
    /// Stores the files and returns what the manifest says of them.
    pub fn store(self, shelf: &Shelf<'_>, level: i32) -> Result<StoredConfiguration, CopyError> {
        let (mut raw, mut entries) = (Vec::new(), Vec::new());
        for (path, (mode, bytes)) in self.entries {
            let file = bytes.map(|bytes| {
                raw.extend_from_slice(&bytes);
                ConfigurationContents { size: bytes.len() as u64, sha256: Sha256::of(&bytes) }
            });
            entries.push(ConfigurationEntry { path, mode, file });
        }
        let mut packs = Filling::new(shelf, LEAF_PACK_BYTES, level);
        let (pack, frame) = packs.append(&raw, &[])?;
        packs.close()?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Ok(StoredConfiguration {
            config_file: text(&self.paths.config_file),
            hba_file: text(&self.paths.hba_file),
            ident_file: text(&self.paths.ident_file),
            pack,
            frame,
            entries,
            left_out: self.left_out,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::PathBuf;

    use super::*;

    /// A place with a data directory and a directory for configuration; removed on drop.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("walvault-conf-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(path.join("data")).unwrap();
            std::fs::create_dir_all(path.join("etc/conf.d")).unwrap();
            let place = Self(std::fs::canonicalize(path).unwrap());
            for name in ["data/postgresql.conf", "data/pg_hba.conf", "data/pg_ident.conf", "data/postgresql.auto.conf"]
            {
                place.write(name, "# nothing\n");
            }
            place
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.join(name), text).unwrap();
        }

        fn paths(&self, main: &str) -> ConfigurationPaths {
            ConfigurationPaths {
                config_file: self.0.join(main),
                hba_file: self.0.join("data/pg_hba.conf"),
                ident_file: self.0.join("data/pg_ident.conf"),
                settings_files: vec![self.0.join("data/postgresql.auto.conf")],
                authentication_files: vec![self.0.join("data/pg_hba.conf")],
            }
        }

        fn find(&self, main: &str) -> Option<(Vec<String>, Vec<String>)> {
            let found = find(&self.paths(main), &self.0.join("data"))?;
            let short = |path: &Path| path.strip_prefix(&self.0).unwrap_or(path).display().to_string();
            let left_out = found.left_out.iter().map(|file| short(Path::new(&file.path))).collect();
            Some((found.entries.keys().map(|path| short(Path::new(path))).collect(), left_out))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const INSIDE: [&str; 3] = ["data/pg_hba.conf", "data/pg_ident.conf", "data/postgresql.conf"];

    #[test]
    fn a_configuration_that_is_copied_anyway_is_not_kept_again() {
        let place = Place::new("inside");
        assert_eq!(place.find("data/postgresql.conf"), None);
        place.write("data/more.conf", "");
        place.write("data/postgresql.conf", "include 'more.conf'\ninclude_if_exists 'none'");
        assert_eq!(place.find("data/postgresql.conf"), None);
        // A link to a file is copied as that file.
        place.write("etc/main.conf", "port = 5433\n");
        std::fs::remove_file(place.0.join("data/postgresql.conf")).unwrap();
        std::os::unix::fs::symlink(place.0.join("etc/main.conf"), place.0.join("data/postgresql.conf")).unwrap();
        assert_eq!(place.find("data/postgresql.conf"), None);
    }

    #[test]
    fn as_soon_as_one_file_lies_outside_all_are_kept() {
        let place = Place::new("outside");
        place.write("etc/postgresql.conf", "include_dir 'conf.d'\ninclude_if_exists '../none'\ninclude 'gone.conf'");
        place.write("etc/conf.d/a.conf", "port = 5433\n");
        place.write("etc/conf.d/a.conf.old", "port = 1\n");
        place.write("data/pg_hba.conf", "local all @../etc/users peer\n");
        place.write("etc/users", "alice\n@more\n");
        place.write("etc/more", "bob\n");
        let etc = ["etc/conf.d", "etc/conf.d/a.conf", "etc/more", "etc/postgresql.conf", "etc/users"];
        let expected: Vec<String> = INSIDE[..2].iter().chain(&etc).map(|name| (*name).to_owned()).collect();
        assert_eq!(place.find("etc/postgresql.conf"), Some((expected, vec!["etc/gone.conf".to_owned()])));

        // A directory that is a link is not copied with the data, so what is in it lies outside.
        place.write("data/pg_hba.conf", "# nothing\n");
        std::os::unix::fs::symlink(place.0.join("etc/conf.d"), place.0.join("data/conf.d")).unwrap();
        place.write("data/postgresql.conf", "include_dir 'conf.d'");
        let mut expected: Vec<String> = INSIDE.iter().map(|name| (*name).to_owned()).collect();
        expected.splice(0..0, ["data/conf.d".to_owned(), "data/conf.d/a.conf".to_owned()]);
        assert_eq!(place.find("data/postgresql.conf"), Some((expected, Vec::new())));
    }
}
