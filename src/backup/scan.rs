//! What a backup copies: the files of the data directory and its tablespaces, as they are at one look.
//!
//! The directory changes underneath: a name that is gone a moment later is no error. Everything else that cannot be read
//! ends the backup.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::format::manifest::{Link, LinkKept};
use crate::pg::data_directory::{Class, DataDirectory, FileKind, RelationPath, unlogged};
use crate::pg::relation_file::RelationFile;

/// How often, and how long after each other, a tablespace is looked for that its link says is there.
const LOOKS: u32 = 50;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Something to copy.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Path relative to the data directory.
    pub path: Vec<u8>,
    pub mode: u32,
    pub node: FoundNode,
}

#[derive(Clone, Debug)]
pub(super) enum FoundNode {
    Directory,
    File {
        size: u64,
        modified: i64,
        /// Where the relation is, for a file made of pages.
        relation: Option<RelationPath>,
    },
}

/// Why the data directory could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read {}", path.display())]
pub struct ScanError {
    path: PathBuf,
    source: io::Error,
}

/// A walk through the data directory in the order of paths, as bytes; `global/pg_control` is passed over.
///
/// Holds the names of the directories that it is in, and nothing of those that it left or has not reached.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    root: &'a Path,
    rules: &'a DataDirectory,
    levels: Vec<Level>,
    begun: bool,
    /// Where tablespaces lie, links resolved.
    locations: Vec<PathBuf>,
    /// Tablespaces that are links: number and place.
    pub tablespaces: Vec<(u32, PathBuf)>,
    /// Other links, and what is kept in their place.
    pub links: Vec<Link>,
}

/// A directory that is being walked through.
#[derive(Debug)]
struct Level {
    path: Vec<u8>,
    names: Names,
    next: usize,
    /// Names of directories that were passed and not entered yet: what is in `a` comes after `a-b`, and before `a0`.
    waiting: Vec<Vec<u8>>,
    unlogged: HashSet<u32>,
}

impl<'a> Walk<'a> {
    pub fn new(root: &'a Path, rules: &'a DataDirectory) -> Self {
        let (locations, tablespaces, links) = (Vec::new(), Vec::new(), Vec::new());
        Self { root, rules, levels: Vec::new(), begun: false, locations, tablespaces, links }
    }

    /// Returns the next thing to copy.
    pub fn step(&mut self) -> Result<Option<Found>, ScanError> {
        if !self.begun {
            self.begun = true;
            self.locations = tablespace_locations(self.root)?;
            self.enter(Vec::new())?;
        }
        while let Some(level) = self.levels.last_mut() {
            let name = level.names.get(level.next);
            let enters = level.waiting.last().is_some_and(|waiting| name.is_none_or(|name| precedes(waiting, name)));
            if enters {
                let name = level.waiting.pop().expect("looked at above");
                let path = join(&level.path, &name);
                self.enter(path)?;
                continue;
            }
            let Some(name) = name else {
                self.levels.pop();
                continue;
            };
            let path = join(&level.path, name);
            level.next += 1;
            if let Some(found) = self.look(path)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Returns when a file was made, in seconds since 1970, if its file system knows.
    pub fn born(&self, path: &[u8]) -> Option<i64> {
        use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
        let found = statx(CWD, self.place(path), AtFlags::empty(), StatxFlags::BTIME).ok()?;
        (found.stx_mask & StatxFlags::BTIME.bits() != 0).then_some(found.stx_btime.tv_sec)
    }

    fn enter(&mut self, path: Vec<u8>) -> Result<(), ScanError> {
        let place = self.place(&path);
        let Some(names) = present(Names::read(&place), &place)? else { return Ok(()) };
        let unlogged = unlogged(names.iter());
        self.levels.push(Level { path, names, next: 0, waiting: Vec::new(), unlogged });
        Ok(())
    }

    /// Has the directory that was just looked at entered when its turn comes.
    fn enter_later(&mut self, path: &[u8]) {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if let Some(level) = self.levels.last_mut() {
            level.waiting.push(name.to_vec());
        }
    }

    fn look(&mut self, path: Vec<u8>) -> Result<Option<Found>, ScanError> {
        let reset = |relation: RelationFile| {
            self.levels.last().is_some_and(|level| relation.is_reset_by_recovery(&level.unlogged))
        };
        match self.rules.classify(&path) {
            Class::Skip(_) | Class::File(FileKind::ControlFile) => Ok(None),
            Class::File(FileKind::Relation(relation)) if reset(relation.file) => Ok(None),
            // What is in it and not itself of this class is skipped by its own name.
            Class::SkipContents(_) => self.emptied(path),
            Class::File(FileKind::Relation(relation)) => self.node(path, Some(relation)),
            Class::File(FileKind::Other) => self.node(path, None),
        }
    }

    /// A directory that is kept and whose contents are not, but for such directories in it; also where a link leads.
    fn emptied(&mut self, path: Vec<u8>) -> Result<Option<Found>, ScanError> {
        let place = self.place(&path);
        match present(std::fs::metadata(&place), &place)? {
            Some(metadata) if metadata.is_dir() => {
                if let Ok(target) = std::fs::read_link(&place) {
                    self.link(&path, &target, LinkKept::Emptied);
                }
                Ok(Some(self.directory(path, &metadata)))
            }
            _ => Ok(None),
        }
    }

    fn node(&mut self, path: Vec<u8>, relation: Option<RelationPath>) -> Result<Option<Found>, ScanError> {
        let place = self.place(&path);
        let Some(mut metadata) = present(std::fs::symlink_metadata(&place), &place)? else { return Ok(None) };
        if metadata.is_symlink() {
            if let Some(oid) = tablespace_link(&path) {
                return self.tablespace(oid, path, &place);
            }
            let Some(target) = present(std::fs::read_link(&place), &place)? else { return Ok(None) };
            let Some(found) = leads_to(&place)? else {
                self.link(&path, &target, LinkKept::Nothing);
                return Ok(None);
            };
            let kept = if found.is_dir() { is_servers_own(&path) } else { found.is_file() };
            self.link(&path, &target, if kept { LinkKept::Contents } else { LinkKept::Nothing });
            if !kept {
                return Ok(None);
            }
            metadata = found;
        }
        if metadata.is_dir() && self.is_tablespace(&place) {
            // A tablespace within the data directory is copied below `pg_tblspc`, and only there.
            return Ok(None);
        }
        if metadata.is_dir() {
            return Ok(Some(self.directory(path, &metadata)));
        }
        // Sockets, pipes and devices are not data.
        Ok(metadata.is_file().then(|| {
            let node = FoundNode::File { size: metadata.len(), modified: metadata.mtime(), relation };
            Found { path, mode: metadata.mode() & 0o777, node }
        }))
    }

    fn directory(&mut self, path: Vec<u8>, metadata: &Metadata) -> Found {
        self.enter_later(&path);
        Found { path, mode: metadata.mode() & 0o777, node: FoundNode::Directory }
    }

    fn tablespace(&mut self, oid: u32, path: Vec<u8>, place: &Path) -> Result<Option<Found>, ScanError> {
        let Some(target) = present(std::fs::read_link(place), place)? else { return Ok(None) };
        let own = place.join(self.rules.version_directory());
        let mut looks = 0;
        while !own.is_dir() {
            // A drop removes the directory and then the link; a volume that is not mounted leaves the link for good.
            if present(std::fs::symlink_metadata(place), place)?.is_none() {
                return Ok(None);
            }
            if looks == LOOKS {
                let source = io::Error::new(
                    io::ErrorKind::NotFound,
                    "the tablespace's files are not there; is its volume mounted?",
                );
                return Err(ScanError { path: own, source });
            }
            looks += 1;
            std::thread::sleep(LOOK_AGAIN);
        }
        self.tablespaces.push((oid, self.root.join("pg_tblspc").join(target)));
        self.enter_later(&path);
        Ok(None)
    }

    fn is_tablespace(&self, place: &Path) -> bool {
        !self.locations.is_empty() && std::fs::canonicalize(place).is_ok_and(|place| self.locations.contains(&place))
    }

    fn link(&mut self, path: &[u8], target: &Path, kept: LinkKept) {
        let path = String::from_utf8_lossy(path).into_owned();
        self.links.push(Link { path, target: target.to_string_lossy().into_owned(), kept });
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }
}

/// Whether what is in the directory comes before the name beside it.
fn precedes(directory: &[u8], name: &[u8]) -> bool {
    directory.iter().chain(b"/").lt(name.iter())
}

/// The names in one directory, sorted: one allocation for all, and 5 bytes a name besides itself.
#[derive(Debug, Default)]
struct Names {
    /// Each ends in a NUL.
    bytes: Vec<u8>,
    starts: Vec<u32>,
}

impl Names {
    fn read(place: &Path) -> io::Result<Self> {
        let mut names = Self::default();
        for entry in std::fs::read_dir(place)? {
            let name = entry?.file_name();
            let start = u32::try_from(names.bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
            names.starts.push(start);
            names.bytes.extend_from_slice(name.as_bytes());
            names.bytes.push(0);
        }
        let Self { bytes, starts } = &mut names;
        starts.sort_unstable_by(|a, b| name_at(bytes, *a).cmp(name_at(bytes, *b)));
        Ok(names)
    }

    fn get(&self, place: usize) -> Option<&[u8]> {
        self.starts.get(place).map(|start| name_at(&self.bytes, *start))
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.starts.iter().map(|start| name_at(&self.bytes, *start))
    }
}

fn name_at(bytes: &[u8], start: u32) -> &[u8] {
    let rest = &bytes[start as usize..];
    &rest[..rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len())]
}

/// Returns where the links of tablespaces lead, links resolved.
fn tablespace_locations(root: &Path) -> Result<Vec<PathBuf>, ScanError> {
    let links = root.join("pg_tblspc");
    let names = present(Names::read(&links), &links)?.unwrap_or_default();
    let places = names.iter().map(|name| links.join(OsStr::from_bytes(name))).filter(|place| place.is_symlink());
    Ok(places.filter_map(|place| std::fs::canonicalize(place).ok()).collect())
}

/// What a link leads to; `None` if it leads nowhere, or round in a circle.
fn leads_to(place: &Path) -> Result<Option<Metadata>, ScanError> {
    match std::fs::metadata(place) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Ok(None),
        found => present(found, place),
    }
}

/// A name that is gone is a value, any other failure ends the backup.
fn present<T>(result: io::Result<T>, place: &Path) -> Result<Option<T>, ScanError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ScanError { path: place.to_path_buf(), source }),
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        b"" => name.to_vec(),
        path => [path, b"/", name].concat(),
    }
}

fn tablespace_link(path: &[u8]) -> Option<u32> {
    let name = std::str::from_utf8(path.strip_prefix(b"pg_tblspc/")?).ok()?;
    name.parse().ok()
}

/// Whether a directory belongs to the server, so that a link in its place is followed. Others, such as a log directory
/// elsewhere, may hold anything.
fn is_servers_own(path: &[u8]) -> bool {
    let first = path.split(|byte| *byte == b'/').next().unwrap_or_default();
    matches!(first, b"base" | b"global") || first.starts_with(b"pg_") && first != b"pg_log"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn walked(root: &Path) -> (Vec<String>, Vec<(u32, PathBuf)>, usize) {
        let rules = DataDirectory::new(17, 202_406_281);
        let mut walk = Walk::new(root, &rules);
        let mut paths = Vec::new();
        while let Some(found) = walk.step().unwrap() {
            paths.push(String::from_utf8(found.path).unwrap());
        }
        let left_out = walk.links.iter().filter(|link| link.kept == LinkKept::Nothing).count();
        (paths, walk.tablespaces, left_out)
    }

    #[test]
    fn paths_come_in_the_order_of_their_bytes() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            "base/5/1",
            "base/5/10",
            "base/5/2",
            "base/5/2.1",
            "base/5-copy/1",
            "base-x/1",
            "base.conf",
            "base0",
            "a/b/c/d",
            "a/b-c",
            "a/b.d/e",
            "a/b0",
            "global/pg_control",
            "global/1262",
            "pg_wal/archive_status/x.done",
            "pg_wal/0001",
            "pg_replslot/one/state",
        ];
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"x").unwrap();
        }
        let (paths, ..) = walked(root.path());
        let mut sorted = paths.clone();
        sorted.sort();
        assert_eq!(paths, sorted);
        for file in &files[..12] {
            assert!(paths.iter().any(|path| path == file), "{file}");
        }
        for left_out in ["global/pg_control", "pg_wal/0001", "pg_wal/archive_status/x.done", "pg_replslot/one"] {
            assert!(!paths.iter().any(|path| path == left_out), "{left_out}");
        }
        for kept in ["pg_wal", "pg_wal/archive_status", "pg_replslot"] {
            assert!(paths.iter().any(|path| path == kept), "{kept}");
        }
    }

    #[test]
    fn links_are_followed_to_tablespaces_and_for_the_servers_own_directories_only() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        for folder in ["space/PG_17_202406281/5", "space/PG_16_202307071/5", "wal", "log"] {
            std::fs::create_dir_all(elsewhere.path().join(folder)).unwrap();
        }
        std::fs::write(elsewhere.path().join("space/PG_17_202406281/5/77"), b"x").unwrap();
        std::fs::create_dir(root.path().join("pg_tblspc")).unwrap();
        for (link, target) in [("pg_tblspc/16400", "space"), ("pg_wal", "wal"), ("log", "log")] {
            std::os::unix::fs::symlink(elsewhere.path().join(target), root.path().join(link)).unwrap();
        }
        let (paths, tablespaces, not_followed) = walked(root.path());
        let space = "pg_tblspc/16400/PG_17_202406281";
        assert_eq!(paths, ["pg_tblspc", space, &format!("{space}/5"), &format!("{space}/5/77"), "pg_wal"]);
        assert_eq!(tablespaces, [(16400, elsewhere.path().join("space"))]);
        assert_eq!(not_followed, 1);
    }

    #[test]
    fn unlogged_relations_are_left_out_but_for_their_init_fork() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("base/5")).unwrap();
        for name in ["100", "100_init", "100_fsm", "101"] {
            std::fs::write(root.path().join("base/5").join(name), b"x").unwrap();
        }
        assert_eq!(walked(root.path()).0, ["base", "base/5", "base/5/100_init", "base/5/101"]);
    }
}
