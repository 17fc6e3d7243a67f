//! Backups of a server that is played, into a store that fails: at every operation, in every way.

#![allow(clippy::unwrap_used)]

mod played;
mod resume;

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::memory::InMemory;

use super::*;
use crate::format::leaf::{Node, Part, Piece};
use crate::format::relations::Relation;
use crate::pg::segment::SegmentName;
use crate::pg::wal_fixture::{control_of, with_backup_end};
use crate::repo::StoredBackup;
use crate::repo::lane_fixture::{MAJOR, archive};
use crate::store::fault::{Fault, FaultStore, When};
use crate::store::{RetryPolicy, Store, Verb};
use played::*;

fn committed(repository: &Repository) -> Vec<StoredBackup> {
    let lane = repository.lane(repository.lane_ids().unwrap()[0]).unwrap().unwrap();
    lane.backups().unwrap()
}

/// Reads every frame of a committed backup.
fn read_whole(repository: &Repository, backup: &StoredBackup) {
    let lane = repository.lane(repository.lane_ids().unwrap()[0]).unwrap().unwrap();
    let manifest = lane.manifest(backup).unwrap();
    let tables = lane.tables(&manifest).unwrap();
    let mut raw = Vec::new();
    for reference in tables.packs.iter() {
        let pack = lane.open_pack(reference).unwrap();
        for frame in 0..reference.frames {
            let stored = pack.read(frame, frame).unwrap();
            pack.decode(&stored, frame, frame, &mut raw).unwrap();
        }
    }
}

#[test]
fn whatever_fails_a_backup_that_is_listed_is_whole_and_one_that_failed_is_not_listed() {
    let mut server = PlayedServer::new("crash-points");
    let (_, repository, faulty) = repositories(&server);
    let before = faulty.operations();
    take(&repository, &mut server).unwrap();
    let operations = faulty.operations() - before;
    let faults = [
        Fault::Before(std::io::ErrorKind::Other),
        Fault::Before(std::io::ErrorKind::StorageFull),
        Fault::After(std::io::ErrorKind::Other),
        Fault::Truncate { to: 50 },
        Fault::Die,
        Fault::DieAfter,
    ];
    let mut points = 0;
    for operation in 1..=operations {
        for fault in faults {
            points += 1;
            let (sound, repository, faulty) = repositories(&server);
            let verb = matches!(fault, Fault::Truncate { .. }).then_some(Verb::Get);
            faulty.script(When { verb, ..When::nth(operation) }, fault);
            let result = take(&repository, &mut server);
            let listed = committed(&sound);
            assert!(listed.len() <= 1);
            listed.iter().for_each(|backup| read_whole(&sound, backup));
            assert!(result.is_err() || listed.len() == 1, "{fault:?} at {operation}: success, and nothing is listed");
            // The next one works whatever the last one left.
            take(&sound, &mut server).unwrap();
            assert_eq!(committed(&sound).len(), listed.len() + 1);
        }
    }
    assert!(points >= 24, "only {points} crash points");
}

#[test]
fn leaves_list_everything_in_order_and_name_every_relation() {
    let mut server = PlayedServer::new("leaves");
    let many = server.directory.join("base/2");
    std::fs::create_dir_all(&many).unwrap();
    // More than the window holds, so that the walk has to wait for what was copied.
    for n in 0..6000 {
        std::fs::write(many.join(format!("{n}")), format!("{n}").repeat(n % 40)).unwrap();
    }
    let (sound, ..) = repositories(&server);
    let report = take(&sound, &mut server).unwrap();
    let lane = sound.lane(sound.lane_ids().unwrap()[0]).unwrap().unwrap();
    let manifest = lane.manifest(&committed(&sound)[0]).unwrap();
    let tables = lane.tables(&manifest).unwrap();
    let mut leaves = lane.leaves(&tables);
    let (mut paths, mut bytes) = (Vec::new(), 0);
    while let Some(entries) = leaves.next_leaf().unwrap() {
        for entry in entries {
            if let Node::File(Part { file: Some(file), .. }) = &entry.node {
                bytes += file.size;
                paths.push(String::from_utf8(entry.path).unwrap());
            }
        }
    }
    assert!(tables.leaves.len() > 1 && paths.is_sorted());
    for name in files().into_keys() {
        assert!(paths.iter().any(|path| path == name), "{name}");
    }
    assert_eq!(paths.iter().filter(|path| path.starts_with("base/2/")).count(), 6000);
    assert_eq!(report.envelope.files, paths.len() as u64 + 1);
    assert_eq!(report.envelope.bytes, bytes + manifest.root.pg_control.len() as u64);

    let mut relations = lane.relations(&tables);
    let mut found = 0;
    while let Some(names) = relations.next_leaf().unwrap() {
        found += names.len() as u32;
    }
    assert_eq!(found, RELATIONS);
    assert!(tables.relations.len() > 1);
    assert_eq!(manifest.root.databases[0].relations, Some(RELATIONS.into()));
}

/// Puts together every file of a committed backup, by path.
fn contents(repository: &Repository, backup: &StoredBackup) -> BTreeMap<String, Vec<u8>> {
    let lane = repository.lane(repository.lane_ids().unwrap()[0]).unwrap().unwrap();
    let manifest = lane.manifest(backup).unwrap();
    let tables = lane.tables(&manifest).unwrap();
    let mut leaves = lane.leaves(&tables);
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    while let Some(entries) = leaves.next_leaf().unwrap() {
        for entry in entries {
            let Node::File(part) = entry.node else { continue };
            let file = files.entry(String::from_utf8(entry.path).unwrap()).or_default();
            assert_eq!(file.len() as u64, part.at);
            part.pieces.iter().for_each(|piece| file.extend(bytes_of(&lane, &tables, piece)));
            if let Some(facts) = part.file {
                assert_eq!((facts.size, facts.crc), (file.len() as u64, crc32c::crc32c(file)));
            }
        }
    }
    files
}

fn bytes_of(lane: &Lane, tables: &Tables, piece: &Piece) -> Vec<u8> {
    match piece {
        Piece::Zeros { len } => vec![0; *len as usize],
        Piece::Inline(bytes) => bytes.clone(),
        Piece::Frames { pack, frame, offset, len } => {
            let pack = lane.open_pack(tables.packs.get(*pack).unwrap()).unwrap();
            let (mut bytes, mut raw, mut frame, mut skip) = (Vec::new(), Vec::new(), *frame, *offset as usize);
            while (bytes.len() as u64) < *len {
                pack.decode(&pack.read(frame, frame).unwrap(), frame, frame, &mut raw).unwrap();
                let left = *len as usize - bytes.len();
                bytes.extend_from_slice(&raw[skip..(skip + left).min(raw.len())]);
                (frame, skip) = (frame + 1, 0);
            }
            bytes
        }
    }
}

/// Panics unless the newest backup holds what the server's directory does.
#[track_caller]
fn expect_as_it_is(repository: &Repository, server: &PlayedServer) {
    let newest = committed(repository).pop().unwrap();
    for (path, bytes) in contents(repository, &newest) {
        assert!(std::fs::read(server.directory.join(&path)).unwrap() == bytes, "{path}");
    }
}

#[test]
fn each_backup_restores_alone_and_stores_only_what_changed() {
    let mut server = PlayedServer::new("overlay");
    let (sound, ..) = repositories(&server);
    let first = take(&sound, &mut server).unwrap();
    assert_eq!((first.envelope.parent, first.basis.method), (None, Method::Full));
    for round in 0..27 {
        let before = committed(&sound).pop().unwrap();
        change(&server, round);
        let report = take(&sound, &mut server).unwrap();
        assert_eq!(report.envelope.parent, Some(before.id), "round {round}");
        assert_eq!(report.basis.method, Method::Hashes);
        expect_as_it_is(&sound, &server);
        match round % 9 {
            // Leaves and names are those of the parent, too: there is nothing to store.
            0 => assert_eq!(report.envelope.stored_bytes, 0, "round {round}"),
            1 => assert!(report.envelope.stored_bytes < 40_000, "round {round}: {}", report.envelope.stored_bytes),
            _ => {}
        }
    }
    let options = |basis| BackupOptions { basis, ..options() };
    let full = perform(&sound, &mut server, &options(Wanted::Full), &Progress::default()).unwrap();
    assert_eq!(full.envelope.parent, None);
    assert_eq!(full.envelope.packs, packs_of(&sound, &full.envelope.backup).len() as u64);
    expect_as_it_is(&sound, &server);
}

/// Packs that a backup needs, as the backup that stored each and its number.
fn packs_of(repository: &Repository, backup: &str) -> Vec<(String, u32)> {
    let lane = repository.lane(repository.lane_ids().unwrap()[0]).unwrap().unwrap();
    let manifest = lane.manifest(&StoredBackup { id: backup.to_owned(), generation: 1 }).unwrap();
    let tables = lane.tables(&manifest).unwrap();
    let name = |pack: &PackRef| {
        let PackSource::Lane { backup, number } = &pack.source;
        (backup.to_string(), *number)
    };
    tables.packs.iter().map(name).collect()
}

#[test]
fn packs_that_nothing_names_any_more_are_let_go() {
    let mut server = PlayedServer::new("let-go");
    let (sound, ..) = repositories(&server);
    let first = take(&sound, &mut server).unwrap().envelope.backup;
    for name in files().into_keys() {
        rewrite(&server, name, |bytes| *bytes = noise(bytes.len() + 10));
    }
    let second = take(&sound, &mut server).unwrap().envelope.backup;
    let left = packs_of(&sound, &second).into_iter().filter(|(backup, _)| *backup == first).count();
    // What is left is the names of relations.
    assert!(left <= 1, "{left} packs of the first backup");
    for name in ["base/1/noise", "base/1/zeros"] {
        rewrite(&server, name, |bytes| *bytes = noise(bytes.len()));
    }
    let third = take(&sound, &mut server).unwrap().envelope.backup;
    expect_as_it_is(&sound, &server);
    assert!(packs_of(&sound, &third).iter().any(|(backup, _)| *backup == second));
}

#[test]
fn a_parent_that_is_not_whole_is_not_built_on() {
    let mut server = PlayedServer::new("parent");
    let mut fell_back = 0;
    let faults = [Fault::Forget, Fault::FlipBit { bit: 9000 }];
    for (verb, fault) in faults.map(|fault| (Verb::GetRange, fault)).into_iter().chain([(Verb::List, Fault::Forget)]) {
        // Before anything is lent, and while the copy is under way.
        for skip in 0..8 {
            let (sound, repository, faulty) = repositories(&server);
            take(&sound, &mut server).unwrap();
            change(&server, 1);
            faulty.script(When { skip, ..When::every(verb).on("/packs") }, fault);
            let report = match take(&repository, &mut server) {
                // Packs that were there and are not: nothing is committed.
                Err(BackupError::Lease(LeaseError::PackMissing { .. })) if verb == Verb::List => {
                    assert_eq!(committed(&sound).len(), 1);
                    continue;
                }
                report => report.unwrap(),
            };
            fell_back += usize::from(report.envelope.parent.is_none());
            assert_eq!(
                report.envelope.parent.is_none(),
                report.basis.reason.contains("pack"),
                "{}",
                report.basis.reason
            );
            expect_as_it_is(&sound, &server);
            let again = take(&sound, &mut server).unwrap();
            assert_eq!(again.envelope.parent, Some(report.envelope.backup));
            expect_as_it_is(&sound, &server);
        }
    }
    assert!(fell_back > 4, "{fell_back} times");
}

#[test]
fn whatever_fails_an_incremental_backup_that_is_listed_is_whole() {
    let mut server = PlayedServer::new("overlay-crash-points");
    let prepared = |server: &mut PlayedServer| {
        for (name, bytes) in files() {
            std::fs::write(server.directory.join(name), bytes).unwrap();
        }
        let (sound, repository, faulty) = repositories(server);
        take(&sound, server).unwrap();
        [1, 2, 4].into_iter().for_each(|round| change(server, round));
        (sound, repository, faulty)
    };
    let (_, repository, faulty) = prepared(&mut server);
    let before = faulty.operations();
    take(&repository, &mut server).unwrap();
    let operations = faulty.operations() - before;
    let faults = [
        Fault::Before(std::io::ErrorKind::Other),
        Fault::After(std::io::ErrorKind::Other),
        Fault::Truncate { to: 50 },
        Fault::FlipBit { bit: 9000 },
        Fault::Die,
        Fault::DieAfter,
    ];
    let soaking = std::env::var_os("WALVAULT_SOAK").is_some();
    for operation in 1..=operations {
        for fault in crate::store::fault::in_turn(&faults, operation, soaking) {
            let (sound, repository, faulty) = prepared(&mut server);
            let verb = match fault {
                Fault::Truncate { .. } => Some(Verb::Get),
                Fault::FlipBit { .. } => Some(Verb::GetRange),
                _ => None,
            };
            faulty.script(When { verb, ..When::nth(operation) }, fault);
            let result = take(&repository, &mut server);
            let listed = committed(&sound);
            assert!(result.is_err() || listed.len() == 2, "{fault:?} at {operation}: success, and nothing is listed");
            if listed.len() == 2 {
                expect_as_it_is(&sound, &server);
            }
            take(&sound, &mut server).unwrap();
            expect_as_it_is(&sound, &server);
        }
    }
}

#[test]
fn wal_that_is_missing_or_damaged_commits_nothing() {
    let mut server = PlayedServer::new("wal");
    let (sound, repository, faulty) = repositories(&server);
    faulty.script(When::every(Verb::Get).on("000000010000000000000007"), Fault::FlipBit { bit: 4000 });
    let refused = take(&repository, &mut server);
    assert!(matches!(refused, Err(BackupError::Wal { .. })), "{refused:?}");
    assert_eq!(committed(&sound), []);
    server.segments[0].0 = "000000010000000000000009".parse().unwrap();
    let memory = Store::over(Arc::new(InMemory::new()), "memory", RetryPolicy::brisk(1)).unwrap();
    let (empty, _) = Repository::init(memory, "main").unwrap();
    let refused = take(&empty, &mut server).unwrap_err();
    assert!(refused.is_missing_wal(), "{refused}");
    assert_eq!(committed(&empty), []);
}

/// The names are right, the system is, and the log can be read from start to stop: the log of the server that this one is a
/// copy of, and whose end of this backup it lacks.
#[test]
fn a_log_with_the_right_names_that_another_server_wrote_commits_nothing() {
    let mut server = PlayedServer::new("copy");
    server.segments = crate::pg::wal_fixture::segments(MAJOR, 1);
    let (sound, ..) = repositories(&server);
    let refused = take(&sound, &mut server).unwrap_err();
    assert!(refused.is_anothers_wal(), "{refused:?}");
    assert_eq!((refused.kind(), committed(&sound)), (ErrorKind::Conflict, Vec::new()));
}

#[test]
fn a_server_that_cannot_be_backed_up_is_told_so_before_anything_is_started() {
    let mut server = PlayedServer::new("refused");
    let (sound, _, _) = repositories(&server);
    server.facts.archive_mode = "off".to_owned();
    assert!(matches!(take(&sound, &mut server), Err(BackupError::NotArchiving { .. })));
    server.facts.archive_mode = "on".to_owned();
    server.facts.system_id = SystemId::new(1);
    assert!(matches!(take(&sound, &mut server), Err(BackupError::OtherSystem { .. })));
    assert_eq!(committed(&sound), []);
}

#[test]
fn files_of_a_standby_or_of_an_old_copy_are_not_taken_for_the_servers() {
    let mut server = PlayedServer::new("foreign-files");
    let (sound, _, _) = repositories(&server);
    let path = server.directory.join("global/pg_control");
    let own = std::fs::read(&path).unwrap();
    let with = |state: u32, redo: u64| {
        let mut bytes = own.clone();
        bytes[16..20].copy_from_slice(&state.to_le_bytes());
        bytes[40..48].copy_from_slice(&redo.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let start = START.parse::<Lsn>().unwrap().bytes();
    // Shut down, in archive recovery, and in production before the checkpoint that began the backup.
    for (state, redo) in [(1, start), (5, start), (6, start - 8)] {
        std::fs::write(&path, with(state, redo)).unwrap();
        assert!(matches!(take(&sound, &mut server), Err(BackupError::NotItsFiles { .. })), "{state} {redo}");
    }
    assert_eq!(committed(&sound), []);
    // One that is in production and later, and no checkpoint of this log: another copy's.
    std::fs::write(&path, with(6, start + 8)).unwrap();
    let refused = take(&sound, &mut server).unwrap_err();
    assert!(refused.is_anothers_wal() && refused.is_missing_wal(), "{refused:?}");
    assert_eq!(committed(&sound), []);
    std::fs::write(&path, own).unwrap();
    take(&sound, &mut server).unwrap();
}

#[test]
fn a_standbys_backup_ends_where_its_own_pg_control_says_and_needs_one_segment_more() {
    let mut server = PlayedServer::new("standby");
    server.facts.in_recovery = true;
    server.facts.archive_mode = "off".to_owned();
    let path = server.directory.join("global/pg_control");
    let own = std::fs::read(&path).unwrap();
    let with = |state: u32, end: u64, timeline: u32| {
        let mut bytes = own.clone();
        bytes[16..20].copy_from_slice(&state.to_le_bytes());
        bytes[136..144].copy_from_slice(&end.to_le_bytes());
        bytes[144..148].copy_from_slice(&timeline.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
    };
    let stop = STOP.parse::<Lsn>().unwrap().bytes();
    let (sound, ..) = repositories(&server);
    // A primary's files, and those of a standby that was shut down.
    for state in [6, 2] {
        with(state, stop, 1);
        assert!(matches!(take(&sound, &mut server), Err(BackupError::NotItsFiles { .. })), "{state}");
    }
    // Another standby's, which is ahead; one on another timeline; one that never wrote a page.
    for (end, timeline, what) in [(stop + 8, 1, "pg_control"), (stop, 2, "the timeline"), (0, 0, "pg_control")] {
        with(5, end, timeline);
        let refused = take(&sound, &mut server).unwrap_err();
        assert!(matches!(&refused, BackupError::Changed { what: found } if *found == what), "{refused}");
    }
    // The segment behind its end is not archived.
    with(5, stop, 1);
    let memory = Store::over(Arc::new(InMemory::new()), "memory", RetryPolicy::brisk(1)).unwrap();
    let (shorter, _) = Repository::init(memory, "main").unwrap();
    let control = ControlFile::parse(&std::fs::read(&path).unwrap()).unwrap();
    let lane = shorter.lane_for(&LaneFacts::of(&control)).unwrap();
    archive(&lane, &crate::pg::wal_name::WalFileName::Segment(server.segments[0].0), &server.segments[0].1);
    assert!(take(&shorter, &mut server).unwrap_err().is_missing_wal());
    assert_eq!((committed(&sound), committed(&shorter)), (Vec::new(), Vec::new()));
    take(&sound, &mut server).unwrap();
    expect_as_it_is(&sound, &server);
}

/// Where the directory is on a file system that has anything to put out of memory.
#[test]
fn the_page_cache_is_left_as_it_was_found() {
    use crate::backup::visit::in_memory;
    use std::os::unix::fs::FileExt;

    let mut server = PlayedServer::new("page-cache");
    let (sound, ..) = repositories(&server);
    rewrite(&server, "base/1/2600", |bytes| *bytes = noise(3 << 20));
    let directory = server.directory.clone();
    let path = |name: &str| directory.join(name);
    let cold = || {
        for name in files().into_keys().chain(["base/1/2600"]) {
            let file = std::fs::File::open(path(name)).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
            if name == "base/1/2600" {
                // The server's own: the pages of one frame, and half of those of another.
                let mut buffer = vec![0; 384 << 10];
                file.read_exact_at(&mut buffer, 1 << 20).unwrap();
            }
        }
    };
    let held = || files().into_keys().chain(["base/1/2600"]).map(|name| in_memory(&path(name))).collect::<Vec<_>>();
    if held().contains(&None) {
        return;
    }
    for change in [false, true] {
        // The kernel may take a page at any time, and does not bring one by itself.
        let left_as_found = (0..40u8).any(|turn| {
            if change {
                // One that builds on the one before, and reads runs between what did not change.
                let file = std::fs::File::options().write(true).open(directory.join("base/1/2600")).unwrap();
                file.write_all_at(&[b'c', turn], 2 << 20).unwrap();
            }
            cold();
            let before = held();
            take(&sound, &mut server).unwrap();
            let after = held();
            assert!(after.iter().zip(&before).all(|(after, before)| after <= before), "{after:?} after {before:?}");
            before.last() == Some(&Some(384 << 10)) && after == before
        });
        assert!(left_as_found, "changed: {change}");
    }
}
