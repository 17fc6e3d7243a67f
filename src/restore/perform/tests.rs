//! Restores of a small backup out of a store that fails, and of backups that lie.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use object_store::memory::InMemory;

use super::*;
use crate::catalog::LaneCatalog;
use crate::format::frame::{Compressor, FRAME_BYTES};
use crate::format::leaf::{self, Part};
use crate::format::leaf::{Entry, Node, Piece};
use crate::format::manifest::{Envelope, Root};
use crate::format::pack::{BlockHash, PackWriter};
use crate::format::tables::{LeafRef, PackTable, Tables};
use crate::format::{Sha256, sample};
use crate::repo::lane_fixture::{MAJOR, archive, facts_of};
use crate::repo::{Lane, Repository};
use crate::restore::{Request, Target, plan};
use crate::store::fault::{Fault, FaultStore, When};
use crate::store::{RetryPolicy, Store, Verb};

mod delta;

const BACKUP: &str = "the-backup";
/// So that the small backup has several leaves.
const ENTRIES_IN_LEAF: usize = 2;

/// A lane with the fixture's log, the same one over a store that can be made to fail, and a place to restore to.
struct Site {
    sound: Lane,
    lane: Lane,
    faulty: FaultStore,
    directory: PathBuf,
}

impl Site {
    fn new(name: &str) -> Self {
        let memory = Arc::new(InMemory::new());
        let faulty = FaultStore::new(Arc::<InMemory>::clone(&memory));
        let store = |backend, name| Store::over(backend, name, RetryPolicy::brisk(1)).unwrap();
        let segments = crate::pg::wal_fixture::segments(MAJOR, 1);
        let facts = facts_of(&segments[0].1);
        let sound = Repository::init(store(memory, "sound"), "main").unwrap().0.lane_for(&facts).unwrap();
        archive(&sound, &crate::pg::wal_name::WalFileName::Segment(segments[0].0), &segments[0].1);
        let repository = Repository::open(store(Arc::new(faulty.clone()), "faulty"), "main").unwrap();
        let lane = repository.lane_for(&facts).unwrap();
        let directory = std::env::temp_dir().join(format!("walvault-restore-{}-{name}", std::process::id()));
        Self { sound, lane, faulty, directory }
    }

    fn commit(&self, entries: &[Entry], contents: &Contents) {
        self.commit_leaves(&entries.chunks(ENTRIES_IN_LEAF).collect::<Vec<_>>(), contents);
    }

    fn commit_leaves(&self, all: &[&[Entry]], contents: &Contents) {
        let Contents { large, small } = contents;
        let mut pack = PackWriter::new(&self.sound.pack_identity(BACKUP, 1), 8192).unwrap();
        let mut compressor = Compressor::new(1);
        for raw in large.chunks(FRAME_BYTES) {
            let hashes: Vec<BlockHash> = raw.chunks(8192).map(BlockHash::of).collect();
            pack.append(raw, &hashes, &mut compressor).unwrap();
        }
        pack.append(small, &[], &mut compressor).unwrap();
        let mut leaves = Vec::new();
        for entries in all {
            let mut raw = leaf::start();
            entries.iter().for_each(|entry| leaf::append(entry, &mut raw));
            let frame = pack.append(&raw, &[], &mut compressor).unwrap();
            let (digest, first) = (Sha256::of(&raw), entries[0].path.clone());
            leaves.push(LeafRef { pack: 0, frame, entries: entries.len() as u32, digest, first });
        }
        let (reference, _) = self.sound.create_pack(&BACKUP.into(), 1, pack.finish()).unwrap();
        let tables = Tables { packs: PackTable::new(vec![Some(reference)]), leaves, relations: Vec::new() };
        self.sound.commit(&manifest(&self.sound, &all.concat()), &tables).unwrap();
    }

    fn restore(&self) -> Result<RestoreReport, RestoreError> {
        self.perform(false, Selection::default())
    }

    fn delta(&self) -> Result<RestoreReport, RestoreError> {
        self.perform(true, Selection::default())
    }

    fn perform(&self, delta: bool, selection: Selection) -> Result<RestoreReport, RestoreError> {
        let catalog = LaneCatalog::load(&self.sound).unwrap();
        let request = Request {
            target: Target::BackupEnd,
            purpose: Purpose::Clone,
            exclusive: false,
            timeline: None,
            backup: None,
        };
        let plan = plan(&self.sound, &catalog, &request).unwrap();
        let destination = Destination {
            data_directory: self.directory.clone(),
            tablespaces: Tablespaces::default(),
            wal_directory: None,
            allowed_tablespace_paths: Vec::new(),
            configuration_directory: None,
            owner: None,
            writer: String::new(),
            command: RecoveryCommand { words: vec!["walvault".to_owned()] },
            action: TargetAction::Pause,
            primary_conninfo: None,
            settings: Vec::new(),
            // Every leaf a window of its own.
            budget: Budget { workers: 2, read_bytes: 1 << 20, window_bytes: 1 },
            delta,
            selection,
        };
        perform(&self.lane, &plan, &destination, &Progress::default())
    }

    fn clear(&self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.clear();
    }
}

fn manifest(lane: &Lane, entries: &[Entry]) -> Manifest {
    let sizes = entries.iter().filter_map(|entry| match &entry.node {
        Node::File(part) => Some((u64::from(part.file.is_some()), part.end() - part.at)),
        Node::Directory { .. } => None,
    });
    let (files, bytes) = sizes.fold((1, 8192), |(files, bytes), (file, size)| (files + file, bytes + size));
    let Manifest { envelope, root } = sample::manifest(&lane.id().to_string(), lane.id().system_id(), BACKUP);
    let envelope = Envelope {
        major: MAJOR,
        start_lsn: "0/700028".parse().unwrap(),
        stop_lsn: "0/7000D8".parse().unwrap(),
        segment_size: 1 << 20,
        bytes,
        files,
        packs: 1,
        ..envelope
    };
    let root = Root {
        backup_label: "START WAL LOCATION: 0/700028\n".to_owned(),
        server_version: "15".to_owned(),
        pg_control: control_of(lane),
        ..root
    };
    Manifest { envelope, root }
}

fn control_of(lane: &Lane) -> Vec<u8> {
    let path = format!("{}/fixtures/pgdata/15/pg_control", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = std::fs::read(path).unwrap();
    bytes[0..8].copy_from_slice(&lane.id().system_id().number().to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..288]);
    bytes[288..292].copy_from_slice(&crc.to_le_bytes());
    bytes.resize(8192, 0);
    bytes
}

fn file(path: &str, contents: &[u8], pieces: Vec<Piece>) -> Entry {
    let file = leaf::File {
        size: contents.len() as u64,
        mode: 0o600,
        modified: 0,
        crc: crc32c::crc32c(contents),
        digest: None,
        relation: false,
    };
    let part = Part { at: 0, pieces, file: Some(file) };
    Entry { path: path.as_bytes().to_vec(), node: Node::File(part) }
}

fn directory(path: &str) -> Entry {
    Entry { path: path.as_bytes().to_vec(), node: Node::Directory { mode: 0o700 } }
}

/// A large file over several frames with zeros in the middle, two files in one frame, one in the leaf.
struct Contents {
    large: Vec<u8>,
    small: Vec<u8>,
}

impl Contents {
    fn new() -> Self {
        let large = (0..FRAME_BYTES * 2 + 1000).map(|n| (n / 3 % 251) as u8).collect();
        Self { large, small: b"one file and another".to_vec() }
    }

    /// What the restored files hold.
    fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let zeros = [&self.large[..FRAME_BYTES], &vec![0; 100_000][..], &self.large[FRAME_BYTES..]].concat();
        let (one, another) = (self.small[..8].to_vec(), self.small[9..].to_vec());
        vec![("base/large", zeros), ("base/one", one), ("base/another", another), ("base/inline", b"15\n".to_vec())]
    }

    fn entries(&self) -> Vec<Entry> {
        let files = self.files();
        let frames = |frame, offset, len: usize| Piece::Frames { pack: 0, frame, offset, len: len as u64 };
        let rest = self.large.len() - FRAME_BYTES;
        let large = vec![frames(0, 0, FRAME_BYTES), Piece::Zeros { len: 100_000 }, frames(1, 0, rest)];
        let mut entries = vec![
            directory("base"),
            directory("global"),
            directory("pg_wal"),
            file("base/large", &files[0].1, large),
            file("base/one", &files[1].1, vec![frames(3, 0, 8)]),
            file("base/another", &files[2].1, vec![frames(3, 9, 11)]),
            file("base/inline", &files[3].1, vec![Piece::Inline(files[3].1.clone())]),
        ];
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        entries
    }
}

#[test]
fn every_byte_comes_back_and_pg_control_cannot_be_used_without_its_label() {
    let site = Site::new("whole");
    let contents = Contents::new();
    site.commit(&contents.entries(), &contents);
    site.restore().unwrap();
    for (name, expected) in contents.files() {
        assert!(std::fs::read(site.directory.join(name)).unwrap() == expected, "{name} differs");
    }
    let control = std::fs::read(site.directory.join("global/pg_control")).unwrap();
    assert!(ControlFile::parse(&control).unwrap().is_poisoned());
    assert!(site.directory.join("backup_label").exists() && site.directory.join("recovery.signal").exists());
    assert!(!site.directory.join("tablespace_map").exists());
    let settings = std::fs::read_to_string(site.directory.join("postgresql.auto.conf")).unwrap();
    assert!(settings.contains("\npromote_trigger_file = ''\n"), "{settings}");
}

#[test]
fn leaves_and_frame_tables_are_asked_for_once_however_many_windows_there_are() {
    let site = Site::new("requests");
    let contents = Contents::new();
    site.commit(&contents.entries(), &contents);
    let before = site.faulty.operations();
    site.restore().unwrap();
    let asked = site.faulty.seen().into_iter().filter(|seen| seen.number > before && seen.verb == Verb::GetRange);
    // The pack with its leaves and table; the frames of the large file; those of the small ones, which two windows want.
    assert!(asked.clone().count() <= 4, "{:?}", asked.collect::<Vec<_>>());
}

#[test]
fn whatever_fails_a_restore_that_failed_has_no_pg_control_and_one_that_succeeded_is_whole() {
    let site = Site::new("crash-points");
    let contents = Contents::new();
    site.commit(&contents.entries(), &contents);
    site.restore().unwrap();
    let whole = tree(&site.directory);
    let faults = [
        Fault::Before(std::io::ErrorKind::Other),
        Fault::After(std::io::ErrorKind::Other),
        Fault::Truncate { to: 0 },
        Fault::Truncate { to: 100 },
        Fault::FlipBit { bit: 0 },
        Fault::FlipBit { bit: 900 },
        Fault::FlipBit { bit: 20_001 },
        Fault::Forget,
        Fault::Die,
    ];
    let mut failed = 0;
    'operations: for operation in 1.. {
        for fault in faults {
            site.clear();
            site.faulty.heal();
            // One request for each pack's table and frames: the range is what a fault hits.
            site.faulty.script(When { verb: Some(Verb::GetRange), ..When::nth(operation) }, fault);
            let control = site.directory.join("global/pg_control");
            match site.restore() {
                // This many requests are not made.
                Ok(_) if fault == faults[0] => break 'operations,
                Ok(_) => {
                    for (name, expected) in contents.files() {
                        assert!(std::fs::read(site.directory.join(name)).unwrap() == expected, "{fault:?}: {name}");
                    }
                }
                Err(_) => {
                    failed += 1;
                    assert!(!control.exists(), "{fault:?} at {operation}: a failed restore can be started");
                    site.faulty.heal();
                    site.restore().unwrap();
                    assert_eq!(tree(&site.directory), whole, "{fault:?} at {operation}, and gone on");
                }
            }
        }
    }
    assert!(failed > 20, "only {failed} faults were felt");
}

/// Every file below a directory: path, mode, digest of the contents.
fn tree(directory: &Path) -> Vec<(PathBuf, u32, Sha256)> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let mode = std::os::unix::fs::PermissionsExt::mode(&path.symlink_metadata().unwrap().permissions());
            if path.is_dir() {
                open.push(path.clone());
                found.push((path, mode, Sha256::of(b"")));
            } else {
                let bytes = std::fs::read(&path).unwrap();
                found.push((path, mode, Sha256::of(&bytes)));
            }
        }
    }
    found.sort();
    found
}

/// A restore that stopped because the store did, a few files in.
fn cut_off(name: &str) -> (Site, Contents) {
    let site = Site::new(name);
    let contents = Contents::new();
    site.commit(&contents.entries(), &contents);
    let fault = Fault::Before(std::io::ErrorKind::Other);
    let before = site.faulty.operations();
    for operation in 1.. {
        site.faulty.heal();
        site.faulty.script(When { verb: Some(Verb::GetRange), ..When::nth(operation) }, fault);
        assert!(site.restore().is_err(), "no fault left a file behind");
        if std::fs::metadata(site.directory.join("base/inline")).is_ok_and(|file| file.len() > 0) {
            break;
        }
        assert!(site.faulty.operations() > before);
    }
    site.faulty.heal();
    (site, contents)
}

#[test]
fn a_restore_that_leaves_a_database_out_goes_on_only_as_the_same() {
    let site = Site::new("left-out");
    let contents = Contents::new();
    let mut entries = contents.entries();
    let frame = Piece::Frames { pack: 0, frame: 0, offset: 0, len: FRAME_BYTES as u64 };
    entries.push(directory("base/16400"));
    entries.push(file("base/16400/16500", &contents.large[..FRAME_BYTES], vec![frame]));
    entries.push(file("base/16400/PG_VERSION", b"15\n", vec![Piece::Inline(b"15\n".to_vec())]));
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    site.commit(&entries, &contents);
    let without = || Selection::leaving_out(16400, "app");
    for operation in 1.. {
        site.faulty.heal();
        let when = When { verb: Some(Verb::GetRange), ..When::nth(operation) };
        site.faulty.script(when, Fault::Before(std::io::ErrorKind::Other));
        assert!(site.perform(false, without()).is_err(), "no fault came after the restore had begun");
        if site.directory.join("walvault.restore").exists() {
            break;
        }
    }
    site.faulty.heal();
    let refused = site.restore();
    assert!(matches!(refused, Err(RestoreError::Place(PlaceError::OtherRestore { .. }))), "{refused:?}");
    let report = site.perform(false, without()).unwrap();
    assert_eq!((report.left_out.as_slice(), report.kept.is_some()), (&[(16400, "app".to_owned())][..], true));
    assert_eq!(report.left_out_bytes, FRAME_BYTES as u64 + 3);
    let read = |name: &str| std::fs::read(site.directory.join(name)).unwrap();
    assert!(read("base/16400/16500") == vec![0; FRAME_BYTES]);
    assert_eq!(read("base/16400/PG_VERSION"), crate::format::left_out::LEFT_OUT);
    for (name, expected) in contents.files() {
        assert!(read(name) == expected, "{name} differs");
    }
}

#[test]
fn what_a_crash_left_in_a_file_is_found_out_and_written_again() {
    let (site, contents) = cut_off("goes-on");
    let base = site.directory.join("base");
    // Of the right size and the right time, and wrong.
    let inline = std::fs::metadata(base.join("inline")).unwrap();
    std::fs::write(base.join("inline"), b"16\n").unwrap();
    std::fs::File::open(base.join("inline")).unwrap().set_modified(inline.modified().unwrap()).unwrap();
    // Whole, and with another name elsewhere: writing to the one would change the other.
    let other = site.directory.with_extension("other");
    std::fs::write(&other, &contents.files()[1].1).unwrap();
    let _ = std::fs::remove_file(base.join("one"));
    std::fs::hard_link(&other, base.join("one")).unwrap();
    let report = site.restore().unwrap();
    assert!(report.kept.is_some());
    for (name, expected) in contents.files() {
        assert!(std::fs::read(site.directory.join(name)).unwrap() == expected, "{name} differs");
    }
    std::fs::write(&other, "changed").unwrap();
    assert!(std::fs::read(base.join("one")).unwrap() == contents.files()[1].1, "one file has two names");
    std::fs::remove_file(other).unwrap();
}

#[test]
fn what_is_not_of_the_interrupted_restore_is_refused_and_left_alone() {
    type Disturb = fn(&Path);
    let cases: [(&str, Disturb); 6] = [
        ("a file", |root| std::fs::write(root.join("base/letter"), "dear").unwrap()),
        ("a directory", |root| std::fs::create_dir(root.join("base/2")).unwrap()),
        ("a segment", |root| std::fs::write(root.join("pg_wal/000000010000000000000007"), "stale").unwrap()),
        ("a link out of the directory", |root| {
            std::fs::remove_dir(root.join("global")).unwrap();
            symlink("/nowhere", root.join("global")).unwrap();
        }),
        ("a directory in a file's place", |root| {
            std::fs::remove_file(root.join("base/inline")).unwrap();
            std::fs::create_dir(root.join("base/inline")).unwrap();
        }),
        ("a pg_control that a server changed", |root| {
            std::fs::write(root.join("global/pg_control"), "other").unwrap();
        }),
    ];
    for (what, disturb) in cases {
        let (site, _) = cut_off("foreign");
        for directory in ["global", "pg_wal"] {
            std::fs::create_dir_all(site.directory.join(directory)).unwrap();
        }
        disturb(&site.directory);
        let listing = |root: &Path| {
            let mut open = vec![root.to_path_buf()];
            let mut found = Vec::new();
            while let Some(next) = open.pop() {
                for entry in std::fs::read_dir(next).unwrap().map(Result::unwrap) {
                    let metadata = entry.metadata().unwrap();
                    if metadata.is_dir() {
                        open.push(entry.path());
                    }
                    found.push((entry.path(), metadata.modified().unwrap(), metadata.len()));
                }
            }
            found.sort();
            found
        };
        let before = listing(&site.directory);
        let refused = site.restore().unwrap_err();
        let expected = matches!(refused, RestoreError::Place(PlaceError::Foreign { .. } | PlaceError::Started { .. }));
        assert!(expected, "{what}: {refused}");
        assert_eq!(listing(&site.directory), before, "{what}");
    }
}

#[test]
fn two_restores_do_not_work_in_one_directory() {
    let (site, _) = cut_off("two");
    let first = super::super::resume::look(&site.directory).unwrap();
    assert!(first.is_some());
    assert!(matches!(site.restore().unwrap_err(), RestoreError::Place(PlaceError::Busy { .. })));
    drop(first);
    site.restore().unwrap();
    assert!(matches!(site.restore().unwrap_err(), RestoreError::Place(PlaceError::NotEmpty { .. })));
}

#[test]
fn a_manifest_that_lies_restores_nothing_that_can_be_started() {
    let contents = Contents::new();
    type Lie = fn(&mut Vec<Entry>);
    let lies: [(&str, Lie); 9] = [
        ("a file's checksum", |entries| part_of(entries, "base/large").file.as_mut().unwrap().crc ^= 1),
        ("a frame that is another's", |entries| {
            part_of(entries, "base/one").pieces = vec![Piece::Frames { pack: 0, frame: 0, offset: 0, len: 8 }];
        }),
        ("a frame that is not there", |entries| {
            part_of(entries, "base/one").pieces = vec![Piece::Frames { pack: 0, frame: 99, offset: 0, len: 8 }];
        }),
        ("a pack that is not there", |entries| {
            part_of(entries, "base/one").pieces = vec![Piece::Frames { pack: 9, frame: 0, offset: 0, len: 8 }];
        }),
        ("a path twice, in two leaves", |entries| {
            let again = entries[ENTRIES_IN_LEAF - 1].clone();
            entries.insert(ENTRIES_IN_LEAF, again);
        }),
        ("a file that does not end", |entries| {
            *entries = vec![entries.remove(0), entries.remove(0)];
            entries.push(file("base/zeros", &[], vec![Piece::Zeros { len: 7 }]));
            part_of(entries, "base/zeros").file = None;
            entries.sort_by(|a, b| a.path.cmp(&b.path));
        }),
        ("pg_control among the files", |entries| {
            entries.push(file("global/pg_control", b"x", vec![Piece::Inline(b"x".to_vec())]));
            entries.sort_by(|a, b| a.path.cmp(&b.path));
        }),
        ("a piece that runs past its pack", |entries| {
            let part = part_of(entries, "base/one");
            part.pieces = vec![Piece::Frames { pack: 0, frame: 3, offset: 0, len: 1 << 40 }];
            part.file.as_mut().unwrap().size = 1 << 40;
        }),
        ("an offset past its frame", |entries| {
            part_of(entries, "base/one").pieces = vec![Piece::Frames { pack: 0, frame: 3, offset: 5000, len: 8 }];
        }),
    ];
    for (lie, tell) in lies {
        let site = Site::new("lies");
        let mut entries = contents.entries();
        tell(&mut entries);
        site.commit(&entries, &contents);
        assert!(site.restore().is_err(), "{lie} was believed");
        assert!(!site.directory.join("global/pg_control").exists(), "{lie}: the directory can be started");
    }
}

#[test]
fn no_backup_decides_how_its_copy_recovers_or_brings_log_along() {
    for path in [
        "standby.signal",
        "recovery.signal",
        "recovery.conf",
        "backup_label",
        "tablespace_map",
        "postmaster.pid",
        "walvault.restore",
        "pg_wal/000000010000000000000007",
        "pg_wal/walvault.plan",
    ] {
        for node in [file(path, b"", Vec::new()), directory(path)] {
            let site = Site::new("reserved");
            let contents = Contents::new();
            let mut entries = contents.entries();
            entries.push(node);
            entries.sort_by(|a, b| a.path.cmp(&b.path));
            site.commit(&entries, &contents);
            let refused = site.restore().unwrap_err();
            assert!(
                crate::error::chain(&refused).to_string().contains(&format!("{path} among the files")),
                "{refused}"
            );
            assert!(!site.directory.exists(), "{path}: something was written");
        }
    }
}

#[test]
fn a_file_that_goes_on_over_several_leaves_and_windows_comes_back() {
    let site = Site::new("parts");
    let contents = Contents::new();
    let mut entries = contents.entries();
    let at = entries.iter().position(|entry| entry.path == b"base/large").unwrap();
    let Node::File(whole) = entries.remove(at).node else { panic!("a file") };
    let mut parts = Vec::new();
    let mut begin = 0;
    for piece in &whole.pieces {
        let part = Part { at: begin, pieces: vec![piece.clone()], file: None };
        begin = part.end();
        parts.push(part);
    }
    parts.last_mut().unwrap().file = whole.file;
    // The first part ends its leaf and each other begins one: two entries a leaf.
    let after = entries.split_off(at);
    for part in parts {
        entries.push(Entry { path: b"base/large".to_vec(), node: Node::File(part) });
    }
    entries.extend(after);
    site.commit_leaves(&[&entries[..at + 1], &entries[at + 1..at + 2], &entries[at + 2..]], &contents);
    site.restore().unwrap();
    let large = &contents.files()[0];
    assert!(std::fs::read(site.directory.join(large.0)).unwrap() == large.1);
}

fn part_of<'a>(entries: &'a mut [Entry], path: &str) -> &'a mut Part {
    let entry = entries.iter_mut().find(|entry| entry.path == path.as_bytes()).unwrap();
    match &mut entry.node {
        Node::File(part) => part,
        Node::Directory { .. } => panic!("{path} is a directory"),
    }
}
