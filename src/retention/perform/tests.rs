//! Expiry over a store that fails at every operation.

#![allow(clippy::unwrap_used)]

mod beside;

use std::io::ErrorKind as Os;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::*;
use crate::catalog::LaneCatalog;
use crate::format::manifest::{Envelope, Manifest};
use crate::format::tables::{PackRef, PackSource, PackTable, Tables};
use crate::format::{Sha256, sample};
use crate::pg::lsn::Lsn;
use crate::repo::lane_fixture::put;
use crate::repo::{LaneFacts, Repository};
use crate::retention;
use crate::store::fault::{Fault, FaultStore, When, in_turn};
use crate::store::{RetryPolicy, Store, Verb};

const SEGMENT: u64 = 16 << 20;
const PACK: &[u8] = b"what a pack holds does not matter here";

fn open(backend: Arc<dyn ObjectStore>) -> Repository {
    Repository::open(Store::over(backend, "test", RetryPolicy::brisk(1)).unwrap(), "main").unwrap()
}

fn lane_of(repository: &Repository) -> Lane {
    repository.lane(repository.lane_ids().unwrap()[0]).unwrap().unwrap()
}

/// A backup in one segment, of packs that are its own or another's.
fn manifest(lane: &Lane, id: &str, segment: u64, packs: &[(&str, u32)]) -> (Manifest, Tables) {
    let at = DateTime::from_timestamp(1_795_000_000 + segment as i64 * 3600, 0).unwrap();
    let start = Lsn::new(segment * SEGMENT + 40);
    let Manifest { envelope, root } = sample::manifest(&lane.id().to_string(), lane.id().system_id(), id);
    let envelope = Envelope {
        start_lsn: start,
        stop_lsn: start + 1000,
        started_at: at,
        stopped_at: at,
        packs: packs.len() as u64,
        ..envelope
    };
    let pack = |(owner, number): &(&str, u32)| {
        let digest = Sha256::of(PACK);
        let source = PackSource::Lane { backup: (*owner).into(), number: *number };
        Some(PackRef { source, stored_bytes: PACK.len() as u64, frames: 1, sha256: digest, table_sha256: digest })
    };
    let packs = PackTable::new(packs.iter().map(pack).collect());
    (Manifest { envelope, root }, Tables { packs, leaves: Vec::new(), relations: Vec::new() })
}

fn put_packs(lane: &Lane, packs: &[(&str, u32)]) {
    packs.iter().for_each(|(owner, number)| put(lane, &format!("packs/{owner}/{number:06}.zst"), PACK));
}

fn back_up(lane: &Lane, id: &str, segment: u64, packs: &[(&str, u32)]) {
    let (manifest, tables) = manifest(lane, id, segment, packs);
    lane.commit(&manifest, &tables).unwrap();
}

fn put_log(lane: &Lane, numbers: std::ops::Range<u64>) {
    for number in numbers {
        put(lane, &format!("wal/00000001/00000000/00000001{:016X}.zst", number), b"a segment");
    }
}

/// Three backups that share packs, log from before the first one on, and what a dead backup left.
fn history() -> (Arc<InMemory>, Lane) {
    let memory = Arc::<InMemory>::default();
    let store = Store::over(Arc::<InMemory>::clone(&memory), "sound", RetryPolicy::brisk(1)).unwrap();
    let (repository, _) = Repository::init(store, "main").unwrap();
    let lane = repository.lane_for(&LaneFacts::sample()).unwrap();
    put_log(&lane, 1..4);
    put_packs(&lane, &[("b1", 1), ("b1", 2), ("dead", 1)]);
    back_up(&lane, "b1", 2, &[("b1", 1), ("b1", 2)]);
    put_log(&lane, 4..6);
    put_packs(&lane, &[("b2", 1), ("b2", 2)]);
    back_up(&lane, "b2", 4, &[("b1", 2), ("b2", 1), ("b2", 2)]);
    put_log(&lane, 6..9);
    put_packs(&lane, &[("b3", 1)]);
    back_up(&lane, "b3", 7, &[("b1", 2), ("b2", 1), ("b3", 1)]);
    (memory, lane)
}

/// What is left of it once everything is done.
const LEFT: [&str; 5] = ["b1/2", "b2/1", "b3/1", "7", "8"];

fn keep_one() -> Request {
    let policy = Policy { backups: 1, ..Policy::default() };
    Request { policy, forget: None, host: "db1".to_owned() }
}

fn expire(lane: &Lane) -> Result<LaneOutcome, RetentionError> {
    perform(std::slice::from_ref(lane), &keep_one()).map(|mut outcomes| outcomes.remove(0))
}

/// Packs and segments that are there.
fn left(lane: &Lane) -> Vec<String> {
    let name = |object: Object| match object.name {
        ObjectName::Pack { backup, number } => Some(format!("{backup}/{number}")),
        ObjectName::Wal(WalFileName::Segment(segment)) => {
            Some(segment.number(lane.segment_size()).unwrap().0.to_string())
        }
        _ => None,
    };
    lane.objects().unwrap().into_iter().filter_map(name).collect()
}

/// Panics unless every backup that is listed has its packs, and the log from its start to its end.
fn expect_whole(lane: &Lane, story: &str) -> Vec<String> {
    let left = left(lane);
    let mut listed = Vec::new();
    for stored in lane.backups().unwrap() {
        // One that was fenced and not yet said to be void is none.
        if lane.is_void(&stored.id).unwrap() {
            continue;
        }
        let (manifest, tables) = lane.manifest_whole(&stored).unwrap();
        for pack in tables.packs.iter() {
            let PackSource::Lane { backup, number } = &pack.source;
            assert!(left.contains(&format!("{backup}/{number}")), "{story}: {} lacks {backup}/{number}", stored.id);
        }
        let segment = lane.segment_size().segment_of(manifest.envelope.start_lsn).0;
        assert!(left.contains(&segment.to_string()), "{story}: {} lacks {segment}", stored.id);
        listed.push(stored.id);
    }
    listed
}

#[test]
fn what_goes_is_condemned_first_and_removed_when_its_time_has_come() {
    let (_, lane) = history();
    let patient =
        Request { policy: Policy { grace: std::time::Duration::from_secs(3600), ..keep_one().policy }, ..keep_one() };
    let before = left(&lane);
    let outcome = perform(std::slice::from_ref(&lane), &patient).unwrap().remove(0);
    assert_eq!((outcome.removed.objects, left(&lane)), (0, before));
    assert!(outcome.waiting.0 > 0 && outcome.due.is_some());
    // A second look changes nothing, and condemns nothing twice.
    perform(std::slice::from_ref(&lane), &patient).unwrap();
    assert_eq!(lane.tombstones().unwrap().len(), 1);
    expire(&lane).unwrap();
    assert_eq!(left(&lane), LEFT);
    assert_eq!(expect_whole(&lane, ""), ["b3"]);
    // What expired is no hole, also after the tombstone that said so is gone.
    let gap = "000000010000000000000006".parse().unwrap();
    assert!(lane.expired().unwrap().iter().any(|range| range.holds(gap)));
    put_log(&lane, 9..12);
    put_packs(&lane, &[("b4", 1)]);
    back_up(&lane, "b4", 10, &[("b4", 1)]);
    expire(&lane).unwrap();
    expire(&lane).unwrap();
    assert_eq!(left(&lane), ["b4/1", "10", "11"]);
    assert_eq!(lane.tombstones().unwrap().len(), 1);
    let expired = lane.expired().unwrap();
    assert_eq!(expired.len(), 1);
    assert!(expired[0].holds(gap) && expired[0].holds("000000010000000000000009".parse().unwrap()));
    let catalog = LaneCatalog::load(&lane).unwrap();
    assert_eq!(catalog.gaps(&catalog.timelines[0]), 0);
}

#[test]
fn a_backup_that_is_kept_alone_ends_where_its_log_expired_and_that_is_no_hole() {
    let (_, lane) = history();
    retention::pin(&lane, "b1", true, Some("audit".to_owned()), None, "db1").unwrap();
    expire(&lane).unwrap();
    assert_eq!(left(&lane), ["b1/1", "b1/2", "b2/1", "b3/1", "2", "7", "8"]);
    let catalog = LaneCatalog::load(&lane).unwrap();
    assert_eq!(catalog.gaps(&catalog.timelines[0]), 0);
    let (intervals, incomplete) = catalog.branches()[0].intervals(&catalog, &catalog.spans());
    assert_eq!((intervals.len(), incomplete.len()), (2, 0));
    let crate::catalog::ChainEnd::Hole { proof, .. } = &intervals[0].end else { panic!("{intervals:?}") };
    assert!(matches!(proof, crate::catalog::HoleProof::Expired(_)), "{proof}");
    retention::pin(&lane, "b1", false, None, None, "db1").unwrap();
    expire(&lane).unwrap();
    assert_eq!(left(&lane), LEFT);
}

#[test]
fn whatever_fails_the_repository_is_whole_and_the_next_run_finishes() {
    let (original, _) = history();
    let count = |faulty: &FaultStore| {
        let lane = lane_of(&open(Arc::new(faulty.clone())));
        let before = faulty.operations();
        let result = expire(&lane);
        (result, before, faulty.operations())
    };
    let (result, before, after) = count(&FaultStore::new(Arc::new(original.fork())));
    result.unwrap();
    let faults = [
        Fault::Before(Os::TimedOut),
        Fault::Before(Os::PermissionDenied),
        Fault::After(Os::Other),
        Fault::Forget,
        Fault::Die,
        Fault::DieAfter,
    ];
    let soaking = std::env::var_os("WALVAULT_SOAK").is_some_and(|value| value == "1");
    let mut points = 0;
    for operation in 1..=after - before {
        for fault in in_turn(&faults, operation, soaking) {
            let memory = Arc::new(original.fork());
            let faulty = FaultStore::new(Arc::<InMemory>::clone(&memory));
            let failing = lane_of(&open(Arc::new(faulty.clone())));
            faulty.script(When::nth(operation), fault);
            let story = format!("{fault:?} at {operation}: {:?}", expire(&failing).map(|outcome| outcome.removed));
            faulty.heal();
            let lane = lane_of(&open(memory));
            assert!(expect_whole(&lane, &story).contains(&"b3".to_owned()), "{story}");
            assert!(LEFT.iter().all(|name| left(&lane).contains(&(*name).to_owned())), "{story}: {:?}", left(&lane));
            // Twice: what was left half is seen by one run and condemned, or removed by the next.
            expire(&lane).unwrap_or_else(|error| panic!("{story}: {error}"));
            expire(&lane).unwrap_or_else(|error| panic!("{story}: {error}"));
            assert_eq!(
                (left(&lane), expect_whole(&lane, &story)),
                (LEFT.map(str::to_owned).to_vec(), vec!["b3".to_owned()]),
                "{story}"
            );
            points += 1;
        }
    }
    assert!(points > 80, "only {points} points");
}

#[test]
fn objects_that_the_store_does_not_let_go_are_named_and_go_later() {
    let (memory, _) = history();
    let faulty = FaultStore::new(memory);
    let lane = lane_of(&open(Arc::new(faulty.clone())));
    faulty.script(When::every(Verb::Delete).on("/packs/b1/000001"), Fault::Before(Os::PermissionDenied));
    let outcome = expire(&lane).unwrap();
    assert_eq!(outcome.removed.refused.len(), 1);
    assert!(outcome.removed.refused[0].ends_with("packs/b1/000001.zst") && outcome.removed.refusal.is_some());
    faulty.heal();
    expire(&lane).unwrap();
    assert_eq!(left(&lane), LEFT);
    // A manifest that is locked keeps what it names.
    let (memory, _) = history();
    let faulty = FaultStore::new(memory);
    let lane = lane_of(&open(Arc::new(faulty.clone())));
    let before = left(&lane);
    faulty.script(When::every(Verb::Delete).on("/backups/b2/"), Fault::Before(Os::PermissionDenied));
    assert_eq!(expire(&lane).unwrap().removed.refused.len(), 1);
    assert_eq!(left(&lane), before);
}

#[test]
fn a_backup_that_was_there_and_is_not_listed_stops_everything_until_it_is_forgotten() {
    let (_, lane) = history();
    let keep_two = Request { policy: Policy { backups: 2, ..Policy::default() }, ..keep_one() };
    perform(std::slice::from_ref(&lane), &keep_two).unwrap();
    let before = left(&lane);
    let gone: Vec<Object> = lane.objects().unwrap();
    let gone: Vec<&Object> = gone
        .iter()
        .filter(|object| object.name == ObjectName::Manifest { backup: "b3".to_owned(), generation: 1 })
        .collect();
    lane.remove(&gone, || Ok::<(), RetentionError>(())).unwrap();
    assert!(matches!(expire(&lane), Err(RetentionError::Vanished { .. })));
    assert_eq!(left(&lane), before);
    retention::forget(&lane, "b3", true, std::time::Duration::ZERO, "db1").unwrap();
    expire(&lane).unwrap();
    assert_eq!(expect_whole(&lane, ""), ["b2"]);
}

#[test]
fn one_backup_is_forgotten_with_what_only_it_needs_and_the_last_one_only_by_force() {
    let (_, lane) = history();
    let forget = |id: &str, force| retention::forget(&lane, id, force, std::time::Duration::ZERO, "db1");
    assert!(matches!(forget("b9", false), Err(RetentionError::NoSuchBackup { .. })));
    retention::pin(&lane, "b2", true, None, None, "db1").unwrap();
    assert!(matches!(forget("b2", true), Err(RetentionError::Pinned { .. })));
    retention::pin(&lane, "b2", false, None, None, "db1").unwrap();
    forget("b2", false).unwrap();
    // No log, and nothing of a backup that died: nobody asked for that.
    let log = (1..9).map(|number: u64| number.to_string());
    let expected: Vec<String> =
        ["b1/1", "b1/2", "b2/1", "b3/1", "dead/1"].map(str::to_owned).into_iter().chain(log).collect();
    assert_eq!((left(&lane), expect_whole(&lane, "")), (expected, vec!["b1".to_owned(), "b3".to_owned()]));
    forget("b3", false).unwrap();
    assert!(matches!(forget("b1", false), Err(RetentionError::LastOne { .. })));
    assert_eq!(expect_whole(&lane, ""), ["b1"]);
    forget("b1", true).unwrap();
    assert_eq!(expect_whole(&lane, ""), [""; 0]);
    assert!(matches!(expire(&lane), Err(RetentionError::NoBackup)));
}
