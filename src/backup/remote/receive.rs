//! What a server streams, taken apart: files to be stored, files that steer the backup, files that are left out.

use std::collections::HashMap;

use super::super::budget::{Budget, LEAF_PACK_BYTES};
use super::super::gather::Totals;
use super::super::leaves::{FileLeaves, LentLeaves};
use super::super::lending::Lending;
use super::super::packs::{PlaceSet, Shelf};
use super::super::perform::BackupError;
use super::RemoteError;
use super::base::{KeptFiles, is_main_fork};
use super::copy::{self, Intake, Stopped};
use super::incremental_file::{HeadingError, HeadingReader, PREFIX};
use super::items::Items;
use super::overlay::Older;
use super::server_manifest::{Listed, Remainder, ServerManifest, ServerManifestError};
use super::tar::{TarEntry, TarError, TarKind, TarPart, TarReader};
use super::worker::Pages;
use crate::clock;
use crate::format::tables::LeafRef;
use crate::instance::replication::{BackupEvent, BaseBackup, Refusal, RemoteTablespace};
use crate::pg::data_directory::{Class, DataDirectory, FileKind, RelationPath};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::progress::Progress;

const CONTROL: &[u8] = b"global/pg_control";
const LABEL: &[u8] = b"backup_label";
const MAP: &[u8] = b"tablespace_map";
/// Most bytes of a file that steers the backup.
const STEERING_LIMIT: u64 = 1 << 20;

/// What a stream held.
pub(super) struct Received {
    pub leaves: Vec<LeafRef>,
    /// Packs of the older backup that leaves and pieces name.
    pub named: PlaceSet,
    pub totals: Totals,
    pub control: Vec<u8>,
    pub label: Vec<u8>,
    /// Where the tablespaces are that are links; none if there are none.
    pub map: Option<Vec<u8>>,
    /// How far the server's clock was ahead of this host's, in seconds, when it wrote the label.
    pub ahead: i64,
    pub manifest: Remainder,
    pub stop: Lsn,
    pub timeline: TimelineId,
    pub damaged: Option<Refusal>,
    /// Remarks of the server's: links and special files that it passed over.
    pub notices: Vec<String>,
}

/// How it is stored.
#[derive(Clone, Copy)]
pub(super) struct Storing<'a> {
    pub shelf: &'a Shelf<'a>,
    pub rules: &'a DataDirectory,
    pub pages: Pages,
    pub budget: Budget,
    pub level: i32,
    /// The backup that it builds on, if the server sends changes.
    pub older: Option<&'a Lending<'a>>,
    /// Small files of that backup.
    pub kept: &'a KeptFiles,
}

/// Stores everything that the server streams.
pub(super) fn receive(
    stream: &mut BaseBackup<'_>,
    storing: Storing<'_>,
    progress: &Progress,
) -> Result<Received, BackupError> {
    let Storing { shelf, rules, pages, budget, level, older, kept } = storing;
    let mut sorter = Sorter::new(rules, older.map(|_| pages));
    let copied =
        copy::copy(shelf, budget, level, pages, kept, |intake| archives(stream, &mut sorter, intake, progress));
    let (items, mut totals) = copied??;
    let (aside, changes) = (&mut sorter.aside, sorter.changes.map(|_| rules));
    let seen = vec![false; items.count()];
    let listed = Comparison { items: &items, aside, changes, files: totals.files, seen };
    let (manifest, (stop, timeline, damaged)) = listed.run(stream)?;
    let lent =
        older.map_or_else(LentLeaves::default, |older| LentLeaves::new(&older.tables.leaves, &older.renewal.packs));
    let leaves = FileLeaves::new(shelf, LEAF_PACK_BYTES, level, lent);
    let (leaves, named, unread) = items.store(leaves, older.map(|older| Older::new(older, shelf, budget, level)))?;
    totals.unread = unread;
    let steering = |file: Option<Vec<u8>>, name| file.ok_or(RemoteError::Missing { name });
    Ok(Received {
        leaves,
        named,
        totals,
        control: steering(sorter.control, "global/pg_control")?,
        label: steering(sorter.label, "backup_label")?,
        map: sorter.map,
        ahead: sorter.ahead,
        manifest,
        stop,
        timeline,
        damaged,
        notices: stream.take_notices(),
    })
}

/// Reads the archives, up to where the manifest begins.
fn archives(
    stream: &mut BaseBackup<'_>,
    sorter: &mut Sorter<'_>,
    intake: &mut Intake<'_>,
    progress: &Progress,
) -> Result<Result<(), RemoteError>, Stopped> {
    let mut reader: Option<TarReader> = None;
    loop {
        let event = match stream.event() {
            Ok(event) => event,
            Err(error) => return Ok(Err(error.into())),
        };
        match event {
            BackupEvent::Archive(_) | BackupEvent::Manifest => {
                if let Some(Err(source)) = reader.take().map(|reader| reader.finish()) {
                    return Ok(Err(sorter.nonsense(source)));
                }
                let BackupEvent::Archive(tablespace) = event else { return Ok(Ok(())) };
                sorter.archive(tablespace, intake);
                reader = Some(TarReader::new());
            }
            BackupEvent::Data(mut bytes) => {
                progress.advance(bytes.len() as u64);
                let Some(reader) = &mut reader else {
                    return Ok(Err(RemoteError::Missing { name: "the archive's beginning" }));
                };
                loop {
                    progress.advance(std::mem::take(&mut sorter.unsent));
                    match reader.next(&mut bytes) {
                        Ok(None) => break,
                        Ok(Some(part)) => match sorter.part(part, intake)? {
                            Ok(()) => {}
                            Err(error) => return Ok(Err(error)),
                        },
                        Err(source) => return Ok(Err(sorter.nonsense(source))),
                    }
                }
            }
            BackupEvent::ManifestData(_) | BackupEvent::End { .. } => {
                return Ok(Err(RemoteError::Missing { name: "the server's manifest" }));
            }
        }
    }
}

/// Decides what becomes of each entry.
struct Sorter<'a> {
    rules: &'a DataDirectory,
    /// What files are made of, if the server sends changes.
    changes: Option<Pages>,
    /// `pg_tblspc/<oid>/`, in a tablespace's archive.
    prefix: Vec<u8>,
    name: String,
    open: Open,
    control: Option<Vec<u8>>,
    label: Option<Vec<u8>>,
    map: Option<Vec<u8>>,
    ahead: i64,
    /// Bytes of files that need not be sent: the server announces whole files.
    unsent: u64,
    /// Files that are not stored as such, though the manifest lists them: size and CRC-32C.
    aside: HashMap<Vec<u8>, (u64, u32)>,
}

/// The file that is coming.
enum Open {
    None,
    Stored,
    /// Changes, of which the heading is not complete.
    Changes {
        path: Vec<u8>,
        facts: (u32, i64),
        relation: RelationPath,
        reader: HeadingReader,
    },
    Aside {
        path: Vec<u8>,
        size: u64,
        crc: u32,
        kept: Option<Vec<u8>>,
    },
}

impl<'a> Sorter<'a> {
    fn new(rules: &'a DataDirectory, changes: Option<Pages>) -> Self {
        Self {
            rules,
            changes,
            prefix: Vec::new(),
            name: String::new(),
            open: Open::None,
            control: None,
            label: None,
            map: None,
            ahead: 0,
            unsent: 0,
            aside: HashMap::new(),
        }
    }

    fn archive(&mut self, tablespace: RemoteTablespace, intake: &mut Intake<'_>) {
        self.prefix.clear();
        self.name = "the data directory".to_owned();
        if let Some(oid) = tablespace.oid {
            let directory = format!("pg_tblspc/{oid}");
            self.name = format!("tablespace {oid}");
            if !tablespace.location.starts_with('/') {
                // A tablespace in place is a directory, not a link.
                intake.directory(directory.clone().into_bytes(), 0o700, clock::now().timestamp());
            }
            self.prefix = format!("{directory}/").into_bytes();
        }
    }

    fn nonsense(&self, source: TarError) -> RemoteError {
        RemoteError::Tar { archive: self.name.clone(), source }
    }

    fn part(&mut self, part: TarPart<'_>, intake: &mut Intake<'_>) -> Result<Result<(), RemoteError>, Stopped> {
        match part {
            TarPart::Entry(entry) => self.entry(entry, intake),
            TarPart::Bytes(mut bytes) => match &mut self.open {
                Open::Stored => intake.bytes(bytes).map(Ok),
                Open::Changes { path, facts, relation, reader } => {
                    let heading = match reader.take(&mut bytes) {
                        Ok(None) => return Ok(Ok(())),
                        Ok(Some(heading)) => heading,
                        Err(source) => return Ok(Err(changes(path, source))),
                    };
                    let all = u64::from(heading.truncation).saturating_sub(heading.blocks.len() as u64);
                    self.unsent += all * self.changes.map_or(0, |pages| pages.block_size.into());
                    intake.changes(std::mem::take(path), *facts, *relation, heading)?;
                    self.open = Open::Stored;
                    intake.bytes(bytes).map(Ok)
                }
                Open::Aside { crc, kept, .. } => {
                    *crc = crc32c::crc32c_append(*crc, bytes);
                    if let Some(kept) = kept {
                        kept.extend_from_slice(bytes);
                    }
                    Ok(Ok(()))
                }
                Open::None => Ok(Ok(())),
            },
            TarPart::End => match std::mem::replace(&mut self.open, Open::None) {
                Open::Stored => intake.end().map(Ok),
                Open::Changes { path, .. } => Ok(Err(changes(&path, HeadingError::Cut))),
                Open::Aside { path, size, crc, kept } => {
                    match path.as_slice() {
                        CONTROL => self.control = kept,
                        LABEL => self.label = kept,
                        MAP => self.map = kept,
                        _ => {}
                    }
                    let twice = self.aside.insert(path.clone(), (size, crc)).is_some();
                    let path = String::from_utf8_lossy(&path).into_owned();
                    Ok(if twice { Err(RemoteError::Twice { path }) } else { Ok(()) })
                }
                Open::None => Ok(Ok(())),
            },
        }
    }

    fn entry(&mut self, entry: TarEntry, intake: &mut Intake<'_>) -> Result<Result<(), RemoteError>, Stopped> {
        let path = [self.prefix.as_slice(), &entry.path].concat();
        let class = self.rules.classify(&path);
        let size = match entry.kind {
            // Tablespaces are linked to from the list that the server gives of them; no other link is in its archives.
            TarKind::Link if path.starts_with(b"pg_tblspc/") => return Ok(Ok(())),
            TarKind::Link => {
                let path = String::from_utf8_lossy(&path).into_owned();
                return Ok(Err(self.nonsense(TarError::Kind { path, kind: '2' })));
            }
            TarKind::Directory => {
                if !matches!(class, Class::Skip(_)) {
                    intake.directory(path, entry.mode, entry.modified);
                }
                return Ok(Ok(()));
            }
            TarKind::File(size) => size,
        };
        // A standby's end is taken from it: what came behind it might be younger.
        if self.control.is_some() {
            return Ok(Err(RemoteError::Behind { path: String::from_utf8_lossy(&path).into_owned() }));
        }
        if let Some(pages) = self.changes
            && let Some((path, relation)) = changed_file(self.rules, &path)
        {
            let reader = HeadingReader::new(size, pages.block_size, pages.relation_segment_blocks);
            self.open = Open::Changes { path, facts: (entry.mode, entry.modified), relation, reader };
            return Ok(Ok(()));
        }
        let steers = matches!(path.as_slice(), CONTROL | LABEL | MAP);
        if path == LABEL {
            self.ahead = entry.modified - clock::now().timestamp();
        }
        let relation = match class {
            Class::File(FileKind::Relation(relation)) => Some(relation),
            Class::File(FileKind::Other) => None,
            _ if steers && size > STEERING_LIMIT => {
                return Ok(Err(RemoteError::Large { path: String::from_utf8_lossy(&path).into_owned() }));
            }
            _ => {
                self.open = Open::Aside { path, size, crc: 0, kept: steers.then(Vec::new) };
                return Ok(Ok(()));
            }
        };
        self.open = Open::Stored;
        intake.file(path, (entry.mode, entry.modified), size, relation).map(Ok)
    }
}

/// Returns the file that changes belong to, by the name of what came: a main fork's. Whatever else has such a name is a file
/// of that name, left behind by somebody.
///
/// Source: `GetFileBackupMethod` in `basebackup_incremental.c`, which sends other forks whole; the manifest that the server
/// is given lists none of them either.
fn changed_file(rules: &DataDirectory, path: &[u8]) -> Option<(Vec<u8>, RelationPath)> {
    let name = path.iter().rposition(|byte| *byte == b'/')? + 1;
    let own = path[name..].strip_prefix(PREFIX)?;
    let path = [&path[..name], own].concat();
    match rules.classify(&path) {
        Class::File(FileKind::Relation(relation)) if is_main_fork(rules, &path) => Some((path, relation)),
        _ => None,
    }
}

fn changes(path: &[u8], source: HeadingError) -> RemoteError {
    RemoteError::Changes { path: String::from_utf8_lossy(path).into_owned(), source }
}

/// The server's manifest beside what came.
struct Comparison<'a> {
    items: &'a Items,
    /// The rules for names, if the server sends changes.
    changes: Option<&'a DataDirectory>,
    aside: &'a mut HashMap<Vec<u8>, (u64, u32)>,
    files: u64,
    /// Which of the items it lists.
    seen: Vec<bool>,
}

type End = (Lsn, TimelineId, Option<Refusal>);

impl Comparison<'_> {
    fn run(mut self, stream: &mut BaseBackup<'_>) -> Result<(Remainder, End), RemoteError> {
        let mut manifest = ServerManifest::new();
        let end = loop {
            match stream.event()? {
                BackupEvent::ManifestData(bytes) => manifest.take(bytes, |listed| self.compare(listed))?,
                BackupEvent::End { stop, timeline, damaged } => break (stop, timeline, damaged),
                _ => return Err(RemoteError::Missing { name: "the rest of the server's manifest" }),
            }
        };
        let remainder = manifest.finish()?;
        let seen = self.seen.iter().filter(|seen| **seen).count() as u64;
        if seen != self.files {
            let problem = format!("lists {seen} of the {} files that arrived", self.files);
            return Err(ServerManifestError::Form { problem }.into());
        }
        Ok((remainder, end))
    }

    fn compare(&mut self, listed: Listed) -> Result<(), RemoteError> {
        let changed = self.changes.and_then(|rules| changed_file(rules, &listed.path));
        let path = changed.as_ref().map_or(&listed.path, |(path, _)| path);
        let found = match self.items.sent(path, changed.is_some()) {
            Some(found) => {
                let seen = self.items.place(path).and_then(|place| self.seen.get_mut(place));
                if seen.is_some_and(|seen| std::mem::replace(seen, true)) {
                    let problem = format!("lists {} twice", String::from_utf8_lossy(&listed.path));
                    return Err(ServerManifestError::Form { problem }.into());
                }
                Some(found)
            }
            None => self.aside.remove(&listed.path),
        };
        let words = |(size, crc): (u64, u32)| format!("with {size} bytes and CRC-32C {crc:08x}");
        if found == Some((listed.size, listed.crc)) {
            return Ok(());
        }
        Err(ServerManifestError::File {
            path: String::from_utf8_lossy(&listed.path).into_owned(),
            found: found.map_or_else(|| "not at all".to_owned(), words),
            expected: words((listed.size, listed.crc)),
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::super::incremental_file::tests::heading;
    use super::super::tar::tests::{file, header};
    use super::*;
    use crate::repo::{LaneFacts, Repository};
    use crate::store::{RetryPolicy, Store};

    /// Takes an archive apart as one of changes, or of everything.
    fn take(archive: &[u8], changes: bool) -> Result<(), RemoteError> {
        let store = Store::over(Arc::new(InMemory::new()), "memory", RetryPolicy::brisk(1)).expect("a runtime");
        let (repository, _) = Repository::init(store, "main").expect("an empty store");
        let lane = repository.lane_for(&LaneFacts::sample()).expect("a new lane");
        let shelf = Shelf::new(&lane, "a", 8192, None);
        let pages =
            Pages { block_size: 8192, relation_segment_blocks: 131_072, checksums: true, start_lsn: Lsn::new(1) };
        let rules = DataDirectory::new(17, 202_406_281);
        let mut sorter = Sorter::new(&rules, changes.then_some(pages));
        let mut reader = TarReader::new();
        let budget = Budget { workers: 1, pack_bytes: 1 << 20 };
        let copied = copy::copy(&shelf, budget, 1, pages, &KeptFiles::default(), |intake| {
            let mut input = archive;
            while let Some(part) = reader.next(&mut input).expect("an archive") {
                if let Err(error) = sorter.part(part, intake)? {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        });
        copied.expect("a store in memory").map(drop)
    }

    #[test]
    fn changes_that_no_server_sends_are_refused() {
        let block = |heading: Vec<u8>| [heading, vec![7; 8192]].concat();
        let good = block(heading(9, &[3]));
        assert!(take(&file("base/5/INCREMENTAL.16384", &good), true).is_ok());
        let refused = |archive: &[u8]| take(archive, true).expect_err("nonsense");
        for (bytes, expected) in [
            (vec![7; 8192], "Magic"),
            (vec![], "Cut"),
            (good[..8].to_vec(), "Cut"),
            (good[..8192].to_vec(), "Size"),
            ([good.clone(), vec![0; 8192]].concat(), "Size"),
            (block(heading(9, &[131_072])), "Blocks"),
            ([heading(9, &[3, 3]), vec![7; 16_384]].concat(), "Order"),
        ] {
            let error = refused(&file("base/5/INCREMENTAL.16384", &bytes));
            assert!(matches!(&error, RemoteError::Changes { path, .. } if path == "base/5/16384"), "{error:?}");
            assert!(format!("{error:?}").contains(expected), "{expected} was expected: {error:?}");
        }
        // Nobody asked for changes of these: they are files of such a name.
        for path in [
            "base/5/INCREMENTAL.16384_vm",
            "base/5/INCREMENTAL.16384_fsm",
            "base/5/INCREMENTAL.PG_VERSION",
            "INCREMENTAL.16384",
        ] {
            for contents in [&good[..], b"whatever", b""] {
                take(&file(path, contents), true).unwrap_or_else(|error| panic!("{path}: {error:?}"));
            }
        }
        let both = [file("base/5/INCREMENTAL.16384", &good), file("base/5/16384", &[7; 8192])].concat();
        assert!(matches!(refused(&both), RemoteError::Twice { .. }));
        // In a stream of everything it is a file like any other.
        assert!(take(&file("base/5/INCREMENTAL.16384", &[7; 100]), false).is_ok());
    }

    #[test]
    fn links_lead_to_tablespaces_and_nowhere_else() {
        assert!(take(&header("pg_tblspc/16400", b'2', 0), false).is_ok());
        for path in ["base/5", "base/5/16384", "pg_wal", "pg_tblspc"] {
            let refused = take(&header(path, b'2', 0), false).expect_err(path);
            assert!(
                matches!(refused, RemoteError::Tar { source: TarError::Kind { kind: '2', .. }, .. }),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn changes_are_told_by_the_last_part_of_a_name() {
        let rules = DataDirectory::new(17, 202_406_281);
        for (path, expected) in [
            ("base/5/INCREMENTAL.16384", Some("base/5/16384")),
            ("base/5/INCREMENTAL.16384.1", Some("base/5/16384.1")),
            ("pg_tblspc/1/PG_17_202406281/5/INCREMENTAL.7", Some("pg_tblspc/1/PG_17_202406281/5/7")),
            ("pg_tblspc/1/PG_16_202307071/5/INCREMENTAL.7", None),
            ("base/5/INCREMENTAL.16384_vm", None),
            ("base/5/INCREMENTAL.16384_init", None),
            ("base/5/INCREMENTAL.t3_16384", None),
            ("base/5/INCREMENTAL.pg_filenode.map", None),
            ("base/5/INCREMENTAL.", None),
            ("base/INCREMENTAL.5/16384", None),
            ("INCREMENTAL.16384", None),
            ("base/5/incremental.16384", None),
            ("base/5/16384", None),
        ] {
            let found = changed_file(&rules, path.as_bytes()).map(|(path, _)| path);
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{path}");
        }
    }
}
