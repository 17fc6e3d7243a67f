//! The log between two backups, looked through in archives in memory and in a `pg_wal` on the disk.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::catalog::{ChangesJob, LaneCatalog, perform_changes};
use crate::clock;
use crate::format::wal;
use crate::pg::data_directory::RelationPath;
use crate::pg::relation_file::RelationFile;
use crate::pg::wal_fixture::{one_mib, segments};
use crate::repo::HOLE_VERSION;
use crate::repo::lane_fixture::{MAJOR, Original, archive, lane_of};
use crate::store::Verb;
use crate::store::fault::{Fault, When};

type Segments = Vec<(SegmentName, Vec<u8>)>;

fn all() -> Segments {
    segments(MAJOR, 1)
}

/// From the first segment's start to the end of the last one, data so small that next to nothing may be walked.
fn between() -> Between {
    let all = all();
    let number = |place: usize| all[place].0.number(one_mib()).unwrap();
    let (start, end) = (number(0).start(one_mib()), number(all.len() - 1).end(one_mib()));
    Between { timeline: TimelineId::FIRST, start, end, data_bytes: 1 << 20 }
}

fn empty() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn run(lane: &Lane, pg_wal: &Path) -> Result<Told, String> {
    changed(lane, pg_wal, between()).unwrap()
}

/// As [`run`], with nothing left of what may be walked.
fn unwalked(lane: &Lane) -> Result<Told, String> {
    let nothing = empty();
    let search = Search { lane, pg_wal: nothing.path(), between: between(), walked: ALWAYS_WALKED };
    search.run().map_err(|failure| match failure {
        Failure::Reason(reason) => reason,
        Failure::Repo(problem) => panic!("{problem}"),
    })
}

/// Whether the blocks are told that one walk over all of the log finds.
fn expect_all(told: &Told) {
    let mut walker = crate::pg::Walker::new(None, one_mib());
    let mut blocks = 0;
    for (name, raw) in all() {
        walker.segment(name, &raw, &mut |record| {
            for block in record.body().unwrap().blocks.iter().filter(|one| one.fork == crate::pg::RelationFork::Main) {
                let file = RelationFile::parse(block.relation.relation.to_string().as_bytes()).unwrap();
                let (tablespace, database) = (block.relation.tablespace, block.relation.database);
                let of = told.changed.of(&RelationPath { tablespace, database, file }, 131_072);
                assert!(of.is_none_or(|changes| changes.has(block.block)), "{block:?}");
                blocks += 1;
            }
        });
    }
    assert!(blocks > 100, "{blocks}");
    assert_eq!(told.segments, all().len());
    let file = RelationFile::parse(b"4242").unwrap();
    let untouched = told.changed.of(&RelationPath { tablespace: 1663, database: 1, file }, 131_072);
    assert!(untouched.unwrap().is_empty());
}

/// Archives a segment as an earlier version did, or one that could not be walked.
fn archive_silently(lane: &Lane, name: SegmentName, raw: &[u8]) {
    let name = WalFileName::Segment(name);
    let encoded = wal::encode(&lane.wal_identity(&name), &raw, raw.len() as u64, 1, 1, None).unwrap();
    lane.create_wal(&name, &encoded).unwrap();
}

fn put(pg_wal: &Path, name: SegmentName, raw: &[u8]) {
    std::fs::write(pg_wal.join(name.to_string()), raw).unwrap();
}

#[test]
fn what_is_archived_tells_everything_and_needs_no_walk() {
    let lane = lane_of(&all());
    expect_all(&unwalked(&lane).unwrap());
}

#[test]
fn what_is_not_archived_yet_is_walked_in_pg_wal() {
    let all = all();
    let (last, before) = all.split_last().unwrap();
    let (lane, pg_wal) = (lane_of(before), empty());
    let reason = run(&lane, pg_wal.path()).unwrap_err();
    assert!(reason.contains("is not in the archive") && reason.contains(&last.0.to_string()), "{reason}");
    put(pg_wal.path(), last.0, &last.1);
    expect_all(&run(&lane, pg_wal.path()).unwrap());
    // Its file was recycled: other log, under its name.
    for (raw, said) in [
        (&before[0].1[..], "does not go on with what is before it"),
        (&vec![0; 1 << 20], "does not go on with what is before it"),
        (&last.1[..500_000], "is not in the archive"),
    ] {
        put(pg_wal.path(), last.0, raw);
        let reason = run(&lane, pg_wal.path()).unwrap_err();
        assert!(reason.contains(said), "{reason}");
    }
    // In between, too.
    let without: Segments =
        all.iter().enumerate().filter(|(place, _)| *place != 3).map(|(_, one)| one.clone()).collect();
    let (lane, pg_wal) = (lane_of(&without), empty());
    assert!(run(&lane, pg_wal.path()).is_err());
    put(pg_wal.path(), all[3].0, &all[3].1);
    expect_all(&run(&lane, pg_wal.path()).unwrap());
}

/// The same segment after another log: its first record names another one before it.
fn after_another(name: SegmentName, raw: &[u8]) -> Vec<u8> {
    let mut first = None;
    let mut walker = crate::pg::Walker::new(None, one_mib());
    walker.segment(name, raw, &mut |record| {
        first.get_or_insert_with(|| (record.start, record.data.to_vec()));
    });
    let (start, mut record) = first.unwrap();
    let previous = u64::from_le_bytes(record[8..16].try_into().unwrap()) - 8;
    record[8..16].copy_from_slice(&previous.to_le_bytes());
    let checksum = crate::pg::record_checksum(&record).unwrap();
    record[20..24].copy_from_slice(&checksum.to_le_bytes());
    let mut raw = raw.to_vec();
    // Its header is all that differs, and lies in one page.
    raw[one_mib().offset_of(start) as usize..][..24].copy_from_slice(&record[..24]);
    raw
}

/// A copy of the server, or the server set back to a snapshot, whose archiver was told that all is well: the names of what it
/// wrote are those of the other one's log, which is archived.
#[test]
fn what_is_archived_has_to_lead_to_what_the_server_wrote_itself() {
    let all = all();
    let (lane, pg_wal) = (lane_of(&all), empty());
    let (name, raw) = all.last().unwrap();
    put(pg_wal.path(), *name, raw);
    expect_all(&run(&lane, pg_wal.path()).unwrap());
    // Sound, of the same system, and after another record than the archive ends with.
    let mut log = after_another(*name, raw);
    put(pg_wal.path(), *name, &log);
    let reason = run(&lane, pg_wal.path()).unwrap_err();
    assert!(reason.contains("does not go on with what is before it"), "{reason}");
    log.truncate(500_000);
    put(pg_wal.path(), *name, &log);
    expect_all(&run(&lane, pg_wal.path()).unwrap());
}

#[test]
fn a_segment_that_does_not_say_is_fetched_and_walked_unless_there_are_too_many() {
    let all = all();
    let lane = lane_of(&all[..2]);
    all[2..].iter().for_each(|(name, raw)| archive_silently(&lane, *name, raw));
    expect_all(&run(&lane, empty().path()).unwrap());
    let reason = unwalked(&lane).unwrap_err();
    assert!(reason.contains("without saying what it changes"), "{reason}");
    assert_eq!((walked_at_most(0), walked_at_most(1 << 40)), (64 << 20, 1 << 38));
}

#[test]
fn what_was_gathered_of_a_folder_is_taken_if_it_is_of_what_is_stored() {
    let all = all();
    let job = ChangesJob {
        timeline: TimelineId::FIRST,
        middle: "00000000".to_owned(),
        segments: all.iter().map(|(name, _)| *name).collect(),
    };
    let lane = lane_of(&all[..1]);
    all[1..].iter().for_each(|(name, raw)| archive_silently(&lane, *name, raw));
    assert!(unwalked(&lane).is_err());
    assert!(perform_changes(&lane, &LaneCatalog::load(&lane).unwrap(), &job).unwrap());
    assert!(!perform_changes(&lane, &LaneCatalog::load(&lane).unwrap(), &job).unwrap(), "made once");
    expect_all(&unwalked(&lane).unwrap());
    // Gathered of other objects than are stored: one byte more tells.
    let [stored] = lane.changes_of(job.timeline, &job.middle).unwrap().try_into().unwrap();
    let mut members = lane.read_changes(&stored).unwrap().unwrap();
    members[4].stored_bytes += 1;
    let lane = lane_of(&all[..1]);
    all[1..].iter().for_each(|(name, raw)| archive_silently(&lane, *name, raw));
    assert!(lane.create_changes(job.timeline, &job.middle, &members).unwrap());
    assert!(unwalked(&lane).unwrap_err().contains("without saying"));
    // It is walked, then.
    expect_all(&run(&lane, empty().path()).unwrap());
}

#[test]
fn damage_and_gaps_are_reasons_and_a_store_that_fails_is_an_error() {
    let all = all();
    let lane = lane_of(&all);
    let hole = Hole {
        version: HOLE_VERSION,
        from: all[4].0,
        through: all[5].0,
        reason: "disk".to_owned(),
        host: "db1".to_owned(),
        decided_at: clock::now(),
        disputed: false,
    };
    lane.record_hole(&hole).unwrap();
    let reason = run(&lane, empty().path()).unwrap_err();
    assert!(reason.contains("not to be relied on"), "{reason}");

    let lane = lane_of(&all);
    let stored = lane.list_wal_folder(TimelineId::FIRST, "00000000").unwrap().remove(4);
    let store = lane.repository().store();
    let key = lane.stored_key(&stored).unwrap();
    let mut bytes = store.get(&key).unwrap().unwrap().to_vec();
    // In the frame: its last byte but the trailer's and its own footer's.
    let tail = crate::format::object::Tail::decode(&bytes, bytes.len() as u64).unwrap();
    bytes[tail.trailer_at as usize - 41] ^= 1;
    store.delete(&key).unwrap();
    store.create(&key, vec![bytes.into()]).unwrap();
    let reason = run(&lane, empty().path()).unwrap_err();
    assert!(reason.contains("damaged"), "{reason}");

    let (sound, failing, faulty) = Original::without(&[]).copy();
    expect_all(&run(&sound, empty().path()).unwrap());
    faulty.script(When::every(Verb::List), Fault::Before(std::io::ErrorKind::TimedOut));
    assert!(changed(&failing, empty().path(), between()).is_err());
}

#[test]
fn a_segment_of_another_history_under_the_name_is_found_out() {
    let all = all();
    // The second segment of another cluster's log, pushed under this one's name.
    let strange = segments(16, 1);
    let mut mixed = all.clone();
    let place = mixed.iter().position(|(name, _)| *name == strange[2].0).unwrap();
    mixed[place].1 = strange[2].1.clone();
    let lane = lane_of(&mixed[..1]);
    mixed[1..].iter().for_each(|(name, raw)| archive(&lane, &WalFileName::Segment(*name), raw));
    assert!(run(&lane, empty().path()).is_err());
}
