//! Backups that were cut off, and those that come after them.

use super::*;
use crate::repo::{PackRange, TOMBSTONE_VERSION, Tombstone};

/// Large enough for many packs of the least size, and of several files.
const BIG: usize = 4 << 20;

fn big_server(name: &str) -> PlayedServer {
    let server = PlayedServer::new(name);
    rewrite(&server, "base/1/2600", |bytes| *bytes = noise(BIG));
    rewrite(&server, "base/1/2601", |bytes| *bytes = noise(700_000));
    (0..40).for_each(|n| rewrite(&server, &format!("base/1/s{n}"), |bytes| *bytes = noise(9000 + n)));
    server
}

fn take_in_small_packs(repository: &Repository, server: &mut PlayedServer) -> Result<BackupReport, BackupError> {
    let options = BackupOptions { budget: Budget { workers: 2, pack_bytes: 1 << 20 }, ..options() };
    perform(repository, server, &options, &Progress::default())
}

/// Bytes of packs that no manifest names, and how many.
fn left(repository: &Repository) -> (u64, usize) {
    let lane = repository.lane(repository.lane_ids().unwrap()[0]).unwrap().unwrap();
    let packs = lane.list_packs().unwrap();
    (packs.iter().map(|pack| pack.stored_bytes).sum(), packs.len())
}

/// A repository in which a backup died after so many operations, and those are fewer than it takes.
fn cut_off(server: &mut PlayedServer, operations: u64) -> (Repository, Repository, FaultStore) {
    let (sound, repository, faulty) = repositories(server);
    faulty.script(When::nth(operations), Fault::DieAfter);
    take_in_small_packs(&repository, server).unwrap_err();
    (sound, repository, faulty)
}

/// A repository in which everything of a backup is stored but its manifest.
fn cut_off_at_its_end(server: &mut PlayedServer) -> (Repository, Repository, FaultStore) {
    let (sound, repository, faulty) = repositories(server);
    faulty.script(When::every(Verb::Create).on("/backups/"), Fault::Die);
    take_in_small_packs(&repository, server).unwrap_err();
    (sound, repository, faulty)
}

/// Operations after which a dying backup has left so many packs; found by trying.
fn operations_until(server: &mut PlayedServer, packs: usize) -> u64 {
    let enough = |operations: &u64| left(&cut_off(server, *operations).0).1 >= packs;
    (8..40).find(enough).unwrap()
}

#[test]
fn wherever_a_backup_was_cut_off_the_next_one_stores_only_what_is_not_there() {
    let mut server = big_server("cut-off");
    let (sound, repository, faulty) = repositories(&server);
    let before = faulty.operations();
    let fresh = take_in_small_packs(&repository, &mut server).unwrap();
    assert_eq!(fresh.taken_over, None);
    let operations = faulty.operations() - before;
    assert!(left(&sound).1 > 5, "{:?}", left(&sound));
    let (mut resumed, mut most) = (0, 0);
    for operation in 1..=operations {
        for fault in crate::store::fault::in_turn(&[Fault::Die, Fault::DieAfter, Fault::Die], operation, false) {
            let (sound, repository, faulty) = repositories(&server);
            faulty.script(When::nth(operation), fault);
            let first = take_in_small_packs(&repository, &mut server);
            let (there, committed_first) = (left(&sound).0, committed(&sound).len());
            let second = take_in_small_packs(&sound, &mut server).unwrap();
            expect_as_it_is(&sound, &server);
            read_whole(&sound, &committed(&sound).pop().unwrap());
            if committed_first == 1 {
                assert_eq!((second.taken_over, second.envelope.stored_bytes), (None, 0), "{fault:?} at {operation}");
                continue;
            }
            assert!(first.is_err());
            let stored = second.envelope.stored_bytes;
            // Leaves and names are stored again; so is what another division among the workers put together otherwise.
            let expected = fresh.envelope.stored_bytes.saturating_sub(there) + 600_000;
            assert!(
                stored <= expected,
                "{fault:?} at {operation}: {stored} of {:?} stored, {there} left",
                fresh.envelope
            );
            if let Some(taken) = second.taken_over {
                resumed += 1;
                most = most.max(taken.bytes);
                assert!(stored < fresh.envelope.stored_bytes);
                let of = packs_of(&sound, &second.envelope.backup);
                let old = of.iter().filter(|(backup, _)| taken.backups.contains(backup)).count() as u64;
                assert!(old >= taken.packs && taken.packs > 0);
            }
        }
    }
    assert!(resumed > 3 && most > BIG as u64, "{resumed} resumed, {most} bytes at most");
}

#[test]
fn a_backup_that_was_taken_over_and_cut_off_again_is_taken_over() {
    let mut server = big_server("cut-off-again");
    let at = operations_until(&mut server, 3);
    let mut thrice = 0;
    for operation in 1..30 {
        let (sound, repository, faulty) = cut_off(&mut server, at);
        let first = left(&sound).0;
        faulty.heal();
        faulty.script(When::nth(operation), if operation % 2 == 0 { Fault::Die } else { Fault::DieAfter });
        let second = take_in_small_packs(&repository, &mut server);
        let there = left(&sound).0;
        let done = committed(&sound).len();
        let third = take_in_small_packs(&sound, &mut server).unwrap();
        expect_as_it_is(&sound, &server);
        if done == 1 {
            break;
        }
        assert!(second.is_err());
        let taken = third.taken_over.unwrap();
        assert!(taken.bytes + 800_000 > there.min(BIG as u64), "{operation}: {taken:?} of {there}");
        thrice += usize::from(there > first && taken.backups.len() == 2);
    }
    assert!(thrice > 0, "both backups that were cut off gave something");
}

#[test]
fn what_changed_since_is_stored_and_the_blocks_beside_it_are_not() {
    let mut server = big_server("cut-off-changed");
    let (sound, ..) = cut_off_at_its_end(&mut server);
    // Of 32 blocks in each frame, three.
    rewrite(&server, "base/1/2600", |bytes| bytes.iter_mut().step_by(90_000).for_each(|byte| *byte ^= 1));
    rewrite(&server, "base/1/s7", |bytes| bytes.truncate(8500));
    std::fs::remove_file(server.directory.join("base/1/text")).unwrap();
    // The same bytes under another name and at another place.
    let moved = std::fs::read(server.directory.join("base/1/2600")).unwrap();
    rewrite(&server, "base/1/9999", |bytes| *bytes = [&noise(8192 * 3), &moved[..8192 * 60]].concat());
    let taken = take_in_small_packs(&sound, &mut server).unwrap().taken_over.unwrap();
    expect_as_it_is(&sound, &server);
    assert!(taken.bytes > 3 << 20, "{taken:?}");
    take_in_small_packs(&sound, &mut server).unwrap();
    expect_as_it_is(&sound, &server);
}

#[test]
fn an_incremental_backup_that_was_cut_off_is_taken_over_too() {
    let mut server = big_server("cut-off-incremental");
    let (sound, repository, faulty) = repositories(&server);
    let parent = take_in_small_packs(&sound, &mut server).unwrap().envelope.backup;
    rewrite(&server, "base/1/2600", |bytes| bytes.iter_mut().step_by(20_000).for_each(|byte| *byte ^= 1));
    rewrite(&server, "base/1/new", |bytes| *bytes = noise(2 << 20));
    // Everything is stored but the manifest.
    faulty.script(When::every(Verb::Create).on("/backups/"), Fault::Die);
    take_in_small_packs(&repository, &mut server).unwrap_err();
    let report = take_in_small_packs(&sound, &mut server).unwrap();
    assert_eq!(report.envelope.parent, Some(parent));
    let taken = report.taken_over.unwrap();
    assert!(taken.bytes > 3 << 20 && report.envelope.stored_bytes < 300_000, "{taken:?} {:?}", report.envelope);
    expect_as_it_is(&sound, &server);
    // Once it is committed nothing was cut off, and what it took over is lent to the next.
    let next = take_in_small_packs(&sound, &mut server).unwrap();
    assert_eq!((next.taken_over, next.envelope.stored_bytes), (None, 0));
    expect_as_it_is(&sound, &server);
}

#[test]
fn what_is_damaged_or_condemned_or_cannot_be_read_is_stored_again() {
    let mut server = big_server("cut-off-damaged");
    let all = {
        let (sound, ..) = cut_off_at_its_end(&mut server);
        take_in_small_packs(&sound, &mut server).unwrap().taken_over.unwrap().bytes
    };
    let faults = [Fault::FlipBit { bit: 40_000 }, Fault::Forget, Fault::Before(std::io::ErrorKind::PermissionDenied)];
    for fault in faults {
        let (sound, repository, faulty) = cut_off_at_its_end(&mut server);
        faulty.heal();
        faulty.script(When::every(Verb::GetRange).on("/packs/"), fault);
        let report = take_in_small_packs(&repository, &mut server).unwrap();
        assert_eq!(report.taken_over, None, "{fault:?}");
        expect_as_it_is(&sound, &server);
    }
    // One of several.
    let (sound, repository, faulty) = cut_off_at_its_end(&mut server);
    faulty.heal();
    faulty.script(When::every(Verb::GetRange).on("000003"), Fault::FlipBit { bit: 40_000 });
    let some = take_in_small_packs(&repository, &mut server).unwrap().taken_over.unwrap().bytes;
    assert!(some < all, "{some} of {all}");
    expect_as_it_is(&sound, &server);

    let (sound, ..) = cut_off_at_its_end(&mut server);
    let lane = sound.lane(sound.lane_ids().unwrap()[0]).unwrap().unwrap();
    let backup = lane.cut_off().unwrap().remove(0);
    let range = PackRange { backup, from: 1, through: 1000 };
    let tombstone = Tombstone {
        version: TOMBSTONE_VERSION,
        host: "here".to_owned(),
        decided_at: Utc::now(),
        backups: Vec::new(),
        forgotten: Vec::new(),
        packs: vec![range],
        wal: Vec::new(),
        expired: Vec::new(),
        kept: Vec::new(),
    };
    lane.create_tombstone(1, &tombstone).unwrap();
    assert_eq!(take_in_small_packs(&sound, &mut server).unwrap().taken_over, None);
    expect_as_it_is(&sound, &server);
}

/// What is taken over is named by frame and offset; a small file, and the end of a stream's, by its frame alone.
#[test]
fn a_small_file_that_is_a_block_in_the_middle_of_a_frame_is_that_block() {
    let mut server = big_server("cut-off-block");
    let (sound, repository, faulty) = repositories(&server);
    take_in_small_packs(&repository, &mut server).unwrap();
    // Two blocks that changed share a frame.
    for block in [3, 9] {
        rewrite(&server, "base/1/2600", |bytes| bytes[block * 8192..][..8192].copy_from_slice(&noise(8192)));
    }
    faulty.script(When::every(Verb::Create).on("/backups/"), Fault::Die);
    take_in_small_packs(&repository, &mut server).unwrap_err();
    let second = std::fs::read(server.directory.join("base/1/2600")).unwrap()[9 * 8192..][..8192].to_vec();
    std::fs::write(server.directory.join("base/1/s99"), second).unwrap();
    let taken = take_in_small_packs(&sound, &mut server).unwrap().taken_over.unwrap();
    assert!(taken.bytes >= 2 * 8192, "{taken:?}");
    expect_as_it_is(&sound, &server);
}
