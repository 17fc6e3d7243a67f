//! Configuration files that lay outside the data directory: put up in a directory of their own, so that the copy starts
//! from them and from nothing that belongs to the server it was copied from.
//!
//! The main file becomes `postgresql.conf` there and names the new data directory; names of other files follow them to
//! where they are now. Nothing else in them changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use super::files::FilesError;
use crate::format::FormatError;
use crate::format::configuration::StoredConfiguration;
use crate::format::manifest::Manifest;
use crate::format::tables::Tables;
use crate::pg::configuration_file::{
    self, ConfigurationSource, Language, Reference, Statement, quoted, renamed, resolved, statements,
};
use crate::repo::Lane;

/// Directory for files that lay neither in nor below the main file's.
const ELSEWHERE: &str = "elsewhere";

/// Settings that name files which are never in a backup.
const OTHER_FILES: [&str; 7] = [
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "ssl_dh_params_file",
    "krb_server_keyfile",
];

/// A server's configuration as it was backed up.
#[derive(Clone, Debug)]
pub struct KeptConfiguration {
    stored: StoredConfiguration,
    /// Bytes of files, by where they were; `None` is a directory.
    files: BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>,
}

/// A file or directory to make.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    path: PathBuf,
    mode: u32,
    /// `None` for a directory.
    bytes: Option<Vec<u8>>,
}

/// Where configuration was put up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedConfiguration {
    /// The directory to start the server with.
    pub directory: PathBuf,
    /// Files written.
    pub files: usize,
    /// Files that the configuration names and that are neither in the backup nor on this host, as `name = path`.
    pub missing: Vec<String>,
}

impl KeptConfiguration {
    /// Reads the configuration of a backup; `None` if it lay in the data directory and comes back with it.
    pub fn load(lane: &Lane, manifest: &Manifest, tables: &Tables) -> Result<Option<Self>, FilesError> {
        let Some(stored) = &manifest.root.configuration else { return Ok(None) };
        let vacant =
            || FormatError::Nonsense { document: "configuration", problem: format!("no pack {}", stored.pack) };
        let pack = lane.open_pack(tables.packs.get(stored.pack).ok_or_else(vacant)?)?;
        let (place, mut raw) = (stored.frame, Vec::new());
        pack.decode(&pack.read(place, place)?, place, place, &mut raw)?;
        let contents = stored.contents(&raw)?.into_iter();
        let files = contents
            .map(|(entry, bytes)| (PathBuf::from(&entry.path), (entry.mode & 0o777, bytes.map(<[u8]>::to_vec))));
        Ok(Some(Self { stored: stored.clone(), files: files.collect() }))
    }

    /// Where the main file was.
    pub fn config_file(&self) -> &str {
        &self.stored.config_file
    }

    /// Whether there is a main file to start from.
    pub(super) fn has_main_file(&self) -> bool {
        self.files.contains_key(Path::new(&self.stored.config_file))
    }

    /// Every setting, in the order of reading; `None` if something that the configuration needs is not in the backup.
    pub(super) fn settings(&self) -> Option<Vec<(String, String)>> {
        configuration_file::settings(Path::new(&self.stored.config_file), &mut Kept(&self.files))
    }

    /// Writes the files into a new directory, which must be empty or not exist. With a data directory they are made to
    /// start a server there; without one they come as they were, but for the names of files that moved.
    pub fn put_up(
        &self,
        directory: &Path,
        data_directory: Option<&Path>,
        owner: Option<(u32, u32)>,
    ) -> io::Result<PlacedConfiguration> {
        make_directory(directory, 0o700)?;
        let placed = self.placed(directory, data_directory);
        for placed in &placed {
            let write = || match &placed.bytes {
                None => make_directory(&placed.path, 0o700),
                Some(bytes) => {
                    make_directory(placed.path.parent().unwrap_or(directory), 0o700)?;
                    write_new(&placed.path, bytes)
                }
            };
            write().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", placed.path.display())))?;
        }
        if let Some(owner) = owner {
            give_all(directory, owner)?;
        }
        // Modes last: a directory that may not be written to had to be filled.
        for placed in placed.iter().rev() {
            std::fs::set_permissions(&placed.path, std::fs::Permissions::from_mode(placed.mode))?;
        }
        let files = placed.iter().filter(|placed| placed.bytes.is_some()).count();
        Ok(PlacedConfiguration { directory: directory.to_path_buf(), files, missing: self.missing() })
    }

    /// Decides what is written where.
    fn placed(&self, directory: &Path, data_directory: Option<&Path>) -> Vec<Placed> {
        let languages = self.languages();
        let mut placed = Vec::new();
        for (path, (mode, bytes)) in &self.files {
            let new = self.place_of(path, directory);
            let bytes = bytes.as_ref().map(|bytes| {
                let language = languages.get(path).copied().unwrap_or(Language::Settings);
                let mut bytes = renamed(language, bytes, |reference| self.moved(path, &new, reference, directory));
                if path == Path::new(&self.stored.config_file) {
                    bytes.extend_from_slice(self.last_words(directory, data_directory).as_bytes());
                }
                bytes
            });
            placed.push(Placed { path: new, mode: *mode, bytes });
        }
        placed.sort_by(|a, b| a.path.cmp(&b.path));
        placed
    }

    fn place_of(&self, path: &Path, directory: &Path) -> PathBuf {
        let stored = &self.stored;
        let own = [
            (&stored.config_file, "postgresql.conf"),
            (&stored.hba_file, "pg_hba.conf"),
            (&stored.ident_file, "pg_ident.conf"),
        ];
        if let Some((_, name)) = own.iter().find(|(file, _)| Path::new(file) == path) {
            return directory.join(name);
        }
        let origin = Path::new(&stored.config_file).parent().unwrap_or(Path::new("/"));
        let is_taken =
            |below: &Path| own.iter().any(|(_, name)| below == Path::new(name)) || below.starts_with(ELSEWHERE);
        match path.strip_prefix(origin) {
            // A tree that is as it was needs no name changed.
            Ok(below) if !below.as_os_str().is_empty() && !is_taken(below) => directory.join(below),
            _ => directory.join(ELSEWHERE).join(path.strip_prefix("/").unwrap_or(path)),
        }
    }

    /// Where a name must lead from now on, if the words that spell it do not lead there.
    fn moved(&self, file: &Path, new_file: &Path, reference: &Reference, directory: &Path) -> Option<PathBuf> {
        let was = resolved(file, &reference.path);
        let place = self.files.contains_key(&was).then(|| self.place_of(&was, directory))?;
        (resolved(new_file, &reference.path) != place).then_some(place)
    }

    /// What language each file is in, by who names it.
    fn languages(&self) -> BTreeMap<PathBuf, Language> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![
            (PathBuf::from(&self.stored.hba_file), Language::Authentication),
            (PathBuf::from(&self.stored.ident_file), Language::Authentication),
            (PathBuf::from(&self.stored.config_file), Language::Settings),
        ];
        while let Some((path, language)) = waiting.pop() {
            let Some((_, Some(bytes))) = self.files.get(&path) else {
                let inside = self.files.range(path.clone()..).take_while(|(below, _)| below.starts_with(&path));
                let inside = inside.filter(|(below, (_, bytes))| bytes.is_some() && below.parent() == Some(&path));
                waiting.extend(
                    inside.map(|(below, _)| (below.clone(), language)).filter(|(below, _)| !found.contains_key(below)),
                );
                continue;
            };
            if found.insert(path.clone(), language).is_some() {
                continue;
            }
            for statement in statements(language, bytes) {
                if let Statement::Reference(reference) = statement {
                    let named = resolved(&path, &reference.path);
                    if !found.contains_key(&named) && self.files.contains_key(&named) {
                        waiting.push((named, language));
                    }
                }
            }
        }
        found
    }

    /// The last settings of the main file, which count: nothing of the old server's places is left.
    fn last_words(&self, directory: &Path, data_directory: Option<&Path>) -> String {
        let Some(data_directory) = data_directory else { return String::new() };
        let mut text = "\n# written by walvault\n".to_owned();
        let mut set = |name: &str, value: &Path| {
            text.push_str(&format!("{name} = {}\n", quoted(&value.to_string_lossy())));
        };
        set("data_directory", data_directory);
        for (name, file) in [("hba_file", &self.stored.hba_file), ("ident_file", &self.stored.ident_file)] {
            if self.files.contains_key(Path::new(file)) {
                set(name, &self.place_of(Path::new(file), directory));
            }
        }
        // Or the copy would write over the file by which others know the original.
        let settings = self.settings().unwrap_or_default();
        if settings.iter().any(|(name, value)| name == "external_pid_file" && !value.is_empty()) {
            set("external_pid_file", &directory.join("external.pid"));
        }
        text
    }

    /// What the copy will look for and not find.
    fn missing(&self) -> Vec<String> {
        let settings = self.settings().unwrap_or_default();
        let last = |wanted: &str| settings.iter().rfind(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let on =
            last("ssl").is_some_and(|value| ["on", "true", "yes", "1"].contains(&value.to_ascii_lowercase().as_str()));
        let is_used = |name: &str| on || !name.starts_with("ssl_");
        let named = OTHER_FILES.into_iter().filter(|name| is_used(name));
        let named = named.filter_map(|name| Some((name, last(name).filter(|path| path.starts_with('/'))?)));
        let gone = named.filter(|(_, path)| !Path::new(path).exists());
        let gone = gone.map(|(name, path)| format!("{name} = {path}"));
        let left_out = self.stored.left_out.iter().filter(|file| !Path::new(&file.path).exists());
        let left_out: BTreeSet<String> = left_out.map(|file| file.path.clone()).collect();
        gone.chain(left_out).collect()
    }
}

/// The kept files as PostgreSQL would find them where they were.
struct Kept<'a>(&'a BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>);

impl ConfigurationSource for Kept<'_> {
    fn file(&mut self, path: &Path) -> Option<Vec<u8>> {
        self.0.get(path)?.1.clone()
    }

    fn names(&mut self, path: &Path) -> Option<Vec<PathBuf>> {
        self.0.get(path).filter(|(_, bytes)| bytes.is_none())?;
        let inside = self.0.iter().filter(|(below, (_, bytes))| bytes.is_some() && below.parent() == Some(path));
        Some(inside.filter_map(|(below, _)| below.file_name().map(PathBuf::from)).collect())
    }
}

/// Gives a directory that nobody else writes to, and all that is in it, to a user.
fn give_all(path: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    lchown(path, Some(user), Some(group))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_all(&entry?.path(), (user, group))?;
        }
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Writes a file that must not exist, and brings it to the disk.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: &str = "/etc/pg/main/postgresql.conf";

    fn kept(files: &[(&str, Option<&str>)]) -> KeptConfiguration {
        let stored = StoredConfiguration {
            config_file: MAIN.to_owned(),
            hba_file: "/etc/pg/access/hba".to_owned(),
            ident_file: "/data/pg_ident.conf".to_owned(),
            pack: 0,
            frame: 0,
            entries: Vec::new(),
            left_out: Vec::new(),
        };
        let file = |text: &Option<&str>| (0o640, text.map(|text| text.as_bytes().to_vec()));
        KeptConfiguration {
            stored,
            files: files.iter().map(|(path, text)| (PathBuf::from(path), file(text))).collect(),
        }
    }

    #[test]
    fn every_name_leads_to_where_its_file_is_now() {
        let kept = kept(&[
            (
                MAIN,
                Some(
                    "data_directory = '/data'\ninclude_dir 'conf.d'\ninclude '/etc/pg/common.conf'\ninclude_if_exists 'none'\n",
                ),
            ),
            ("/etc/pg/main/conf.d", None),
            ("/etc/pg/main/conf.d/a.conf", Some("include '../b.conf'\nwork_mem = '1MB'")),
            ("/etc/pg/main/b.conf", Some("max_connections = 200\n")),
            ("/etc/pg/common.conf", Some("include 'common.d/x.conf'\n")),
            ("/etc/pg/common.d/x.conf", Some("shared_buffers = '1GB'\nexternal_pid_file = '/run/x.pid'\n")),
            ("/etc/pg/access/hba", Some("local all @users peer\n")),
            ("/etc/pg/access/users", Some("alice\n")),
            ("/data/pg_ident.conf", Some("# none\n")),
        ]);
        let placed = kept.placed(Path::new("/new"), Some(Path::new("/restored")));
        let text = |path: &str| {
            let found = placed.iter().find(|placed| placed.path == Path::new(path));
            let bytes = found.unwrap_or_else(|| panic!("no {path} in {placed:?}")).bytes.clone();
            String::from_utf8(bytes.expect("a file")).expect("text")
        };
        assert_eq!(placed.len(), 9);
        assert_eq!(
            text("/new/postgresql.conf"),
            "data_directory = '/data'\ninclude_dir 'conf.d'\ninclude '/new/elsewhere/etc/pg/common.conf'\n\
             include_if_exists 'none'\n\n# written by walvault\ndata_directory = '/restored'\n\
             hba_file = '/new/pg_hba.conf'\nident_file = '/new/pg_ident.conf'\nexternal_pid_file = '/new/external.pid'\n"
        );
        assert_eq!(text("/new/conf.d/a.conf"), "include '../b.conf'\nwork_mem = '1MB'");
        assert_eq!(text("/new/elsewhere/etc/pg/common.conf"), "include 'common.d/x.conf'\n");
        assert_eq!(text("/new/pg_hba.conf"), "local all @\"/new/elsewhere/etc/pg/access/users\" peer\n");
        let settings = kept.settings().expect("nothing is missing");
        let last = |name: &str| settings.iter().rfind(|(found, _)| found == name).map(|(_, value)| value.as_str());
        assert_eq!((last("max_connections"), last("shared_buffers")), (Some("200"), Some("1GB")));

        let verbatim = kept.placed(Path::new("/new"), None);
        assert!(
            !verbatim.iter().any(
                |placed| String::from_utf8_lossy(placed.bytes.as_deref().unwrap_or_default()).contains("/restored")
            )
        );
    }

    #[test]
    fn two_files_never_share_a_place() {
        let kept = kept(&[
            (MAIN, Some("include 'pg_hba.conf'\ninclude 'elsewhere/x.conf'\n")),
            ("/etc/pg/main/pg_hba.conf", Some("a = 1\n")),
            ("/etc/pg/main/elsewhere/x.conf", Some("b = 1\n")),
            ("/etc/pg/access/hba", Some("")),
        ]);
        let placed = kept.placed(Path::new("/new"), None);
        let paths: BTreeSet<&Path> = placed.iter().map(|placed| placed.path.as_path()).collect();
        assert_eq!(paths.len(), 4, "{placed:?}");
        assert!(paths.contains(Path::new("/new/elsewhere/etc/pg/main/pg_hba.conf")));
    }

    #[test]
    fn keys_and_files_that_are_not_here_are_named() {
        let text =
            "ssl = on\nssl_key_file = '/nowhere/x.key'\nssl_cert_file = 'server.crt'\nssl_ca_file = '/etc/passwd'\n";
        let mut kept = kept(&[(MAIN, Some(text))]);
        kept.stored.left_out =
            vec![crate::format::configuration::LeftOut { path: "/nowhere/y".to_owned(), problem: "x".to_owned() }];
        assert_eq!(kept.missing(), ["ssl_key_file = /nowhere/x.key", "/nowhere/y"]);
        kept.files.insert(MAIN.into(), (0, Some(b"ssl_key_file = '/nowhere/x.key'\n".to_vec())));
        assert_eq!(kept.missing(), ["/nowhere/y"]);
    }
}
