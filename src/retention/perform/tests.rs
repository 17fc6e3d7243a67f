//! Expiry over a store that fails at every operation, and beside backups and pins at every point of both.

#![allow(clippy::unwrap_used)]

use std::fmt;
use std::io::ErrorKind as Os;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as Location;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};

use super::*;
use crate::catalog::LaneCatalog;
use crate::format::Sha256;
use crate::format::manifest::{Envelope, Limits, MANIFEST_VERSION, Manifest, Root};
use crate::format::tables::{PackRef, PackSource, PackTable, Tables};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNo;
use crate::repo::lane_fixture::put;
use crate::repo::{LaneFacts, Needs, Reading, Repository};
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
    let envelope = Envelope {
        version: MANIFEST_VERSION,
        backup: id.to_owned(),
        lane: lane.id().to_string(),
        generation: 1,
        parent: None,
        major: 17,
        timeline: TimelineId::FIRST,
        start_lsn: start,
        stop_lsn: start + 1000,
        started_at: at,
        stopped_at: at,
        segment_size: SEGMENT as u32,
        bytes: 0,
        stored_bytes: 0,
        named_bytes: None,
        files: 0,
        packs: packs.len() as u64,
        annotations: Default::default(),
        wal: Vec::new(),
    };
    let limits = Limits {
        max_connections: 50,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 10,
        max_locks_per_transaction: 64,
    };
    let root = Root {
        version: MANIFEST_VERSION,
        system_id: lane.id().system_id(),
        backup_label: String::new(),
        tablespaces: Vec::new(),
        databases: Vec::new(),
        limits,
        server_version: "17".to_owned(),
        block_size: 8192,
        relation_segment_blocks: 131_072,
        wal_block_size: 8192,
        data_checksums: true,
        pg_control: Vec::new(),
        configuration: None,
        links: Vec::new(),
        damaged_pages: Vec::new(),
        damaged_total: 0,
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

/// A store in which something happens before a certain operation, and whose clock may be ahead for whoever asks the time.
struct Hooked {
    backend: Arc<dyn ObjectStore>,
    left: AtomicU64,
    hook: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    ahead: chrono::Duration,
}

impl Hooked {
    fn over(backend: Arc<dyn ObjectStore>, ahead: chrono::Duration) -> Arc<Self> {
        Arc::new(Self { backend, left: AtomicU64::new(u64::MAX), hook: Mutex::default(), ahead })
    }

    /// Lets `hook` happen before the `number`-th operation from now on.
    fn before(&self, number: u64, hook: impl FnOnce() + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
        self.left.store(number, Ordering::SeqCst);
    }

    fn has_happened(&self) -> bool {
        self.hook.lock().unwrap().is_none()
    }

    fn note(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1
            && let Some(hook) = self.hook.lock().unwrap().take()
        {
            // A thread of its own: this one carries a runtime out.
            std::thread::spawn(hook).join().unwrap();
        }
    }
}

impl fmt::Display for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hooked")
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

#[async_trait]
impl ObjectStore for Hooked {
    async fn put_opts(
        &self,
        location: &Location,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.note();
        self.backend.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Location,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.backend.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> object_store::Result<GetResult> {
        self.note();
        let mut reply = self.backend.get_opts(location, options).await?;
        if location.as_ref().contains("/probe/") {
            reply.meta.last_modified += self.ahead;
        }
        Ok(reply)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Location>>,
    ) -> BoxStream<'static, object_store::Result<Location>> {
        self.note();
        self.backend.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.note();
        self.backend.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> object_store::Result<ListResult> {
        self.note();
        self.backend.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Location, to: &Location, options: CopyOptions) -> object_store::Result<()> {
        self.backend.copy_opts(from, to, options).await
    }
}

/// Takes a backup that shares every pack of the oldest one that is not condemned.
fn share_oldest(lane: &Lane) -> Result<(), crate::repo::LeaseError> {
    share(lane, true)
}

/// Takes a backup that shares every pack of the oldest one, if it is `careful` of one that is not condemned.
fn share(lane: &Lane, careful: bool) -> Result<(), crate::repo::LeaseError> {
    let lease = Lease::take(lane, Purpose::Backup)?;
    lease.name("b4")?;
    let stones = lane.tombstones()?;
    let all = lane.backups()?;
    let sound = |id: &str| id != "b4" && !(careful && stones.iter().any(|stone| stone.tombstone.condemns(id)));
    let parent = all.iter().find(|stored| sound(&stored.id)).expect("the newest is never condemned").clone();
    let (_, tables) = lane.manifest_whole(&parent)?;
    let shared: Vec<(String, u32)> = tables
        .packs
        .iter()
        .map(|pack| {
            let PackSource::Lane { backup, number } = &pack.source;
            (backup.to_string(), *number)
        })
        .collect();
    put_packs(lane, &[("b4", 1)]);
    put_log(lane, 9..10);
    let packs: Vec<(&str, u32)> =
        shared.iter().map(|(owner, number)| (owner.as_str(), *number)).chain([("b4", 1)]).collect();
    let (manifest, tables) = manifest(lane, "b4", 9, &packs);
    lease.commit(&manifest, &tables)
}

type Act = fn(&Lane) -> bool;

/// Lets `second` happen at every point of `first`, and calls `judge` with the lane and whether each succeeded.
fn interleaved(first: Act, second: Act, ahead: [i64; 2], judge: impl Fn(&Lane, bool, bool, &str)) -> (u64, u64, u64) {
    let (original, _) = history();
    let (mut points, mut first_done, mut second_done) = (0, 0, 0);
    for point in 1.. {
        let memory: Arc<InMemory> = Arc::new(original.fork());
        let clock = |hours| chrono::Duration::hours(hours);
        let hooked = Hooked::over(Arc::<InMemory>::clone(&memory), clock(ahead[0]));
        let other = Hooked::over(Arc::<InMemory>::clone(&memory), clock(ahead[1]));
        let lane = lane_of(&open(hooked.clone()));
        let answer = Arc::new(Mutex::new(None));
        let noted = Arc::clone(&answer);
        hooked.before(point, move || *noted.lock().unwrap() = Some(second(&lane_of(&open(other)))));
        let did_first = first(&lane);
        if !hooked.has_happened() {
            return (points, first_done, second_done);
        }
        let did_second = answer.lock().unwrap().expect("it happened");
        points += 1;
        first_done += u64::from(did_first);
        second_done += u64::from(did_second);
        judge(&lane_of(&open(memory)), did_first, did_second, &format!("at operation {point}"));
    }
    unreachable!("every act ends")
}

fn expects_b4(lane: &Lane, committed: bool, story: &str) {
    let listed = expect_whole(lane, story);
    assert_eq!(listed.contains(&"b4".to_owned()), committed, "{story}: {listed:?}");
    assert!(committed || listed.contains(&"b3".to_owned()), "{story}: {listed:?}");
    // And it stays so.
    let again = expire(lane).and_then(|_| expire(lane)).map(|outcome| outcome.deferred);
    let left = expect_whole(lane, story);
    assert_eq!(left, [if committed { "b4" } else { "b3" }], "{story}: {again:?}");
}

#[test]
fn a_backup_beside_an_expiry_is_committed_whole_or_not_at_all() {
    let backup: Act = |lane| share_oldest(lane).is_ok();
    let expiry: Act = |lane| expire(lane).is_ok();
    let (points, backups, _) =
        interleaved(backup, expiry, [0, 0], |lane, committed, _, story| expects_b4(lane, committed, story));
    assert!(points > 15 && backups * 4 > points * 3, "{points} points, {backups} backups");
    let (points, _, backups) =
        interleaved(expiry, backup, [0, 0], |lane, _, committed, story| expects_b4(lane, committed, story));
    assert!(points > 30 && backups * 4 > points * 3, "{points} points, {backups} backups");
}

#[test]
fn a_backup_that_expiry_takes_for_dead_too_early_is_committed_whole_or_not_at_all() {
    let backup: Act = |lane| share_oldest(lane).is_ok();
    let expiry: Act = |lane| expire(lane).is_ok();
    // The clock is an hour ahead for the expiry: every lease has run out.
    let (points, backups, _) =
        interleaved(backup, expiry, [0, 1], |lane, committed, _, story| expects_b4(lane, committed, story));
    assert!(points > 15 && backups < points, "{points} points, {backups} backups");
    interleaved(expiry, backup, [1, 0], |lane, _, committed, story| expects_b4(lane, committed, story));
}

#[test]
fn a_backup_that_shares_what_is_condemned_is_stopped_at_its_commit() {
    let careless: Act = |lane| share(lane, false).is_ok();
    let expiry: Act = |lane| expire(lane).is_ok();
    let (points, _, backups) =
        interleaved(expiry, careless, [0, 0], |lane, _, committed, story| expects_b4(lane, committed, story));
    assert!(backups > 3 && backups < points, "{points} points, {backups} backups");
}

#[test]
fn a_commit_looks_once_more_whether_all_that_it_names_is_there_and_stays() {
    let (_, lane) = history();
    let patient =
        Request { policy: Policy { grace: std::time::Duration::from_secs(3600), ..keep_one().policy }, ..keep_one() };
    perform(std::slice::from_ref(&lane), &patient).unwrap();
    let lease = Lease::take(&lane, Purpose::Backup).unwrap();
    lease.name("b4").unwrap();
    put_packs(&lane, &[("b4", 1)]);
    let commit = |packs: &[(&str, u32)]| {
        let (manifest, tables) = manifest(&lane, "b4", 8, packs);
        lease.commit(&manifest, &tables)
    };
    use crate::repo::LeaseError;
    assert!(matches!(commit(&[("b4", 1), ("b1", 1)]), Err(LeaseError::Condemned { number: 1, .. })));
    assert!(matches!(commit(&[("b4", 1), ("b4", 2)]), Err(LeaseError::PackMissing { number: 2, .. })));
    assert_eq!(lane.fence("b4").unwrap(), Fenced::Void);
    assert!(matches!(commit(&[("b4", 1), ("b3", 1)]), Err(LeaseError::Void)));
    assert_eq!(expect_whole(&lane, ""), ["b1", "b2", "b3"]);
}

/// The log that a restore of `b1` to segment 5 reads.
fn log_of_b1(lane: &Lane) -> Vec<SegmentRange> {
    let segment = |number| SegmentName::from_number(TimelineId::FIRST, SegmentNo(number), lane.segment_size());
    vec![SegmentRange { from: segment(2), through: segment(5) }]
}

/// Restores the oldest backup to a moment after it, and leaves the recovery to itself; returns whether it saw all of it.
fn read_oldest(lane: &Lane) -> bool {
    let Ok(reading) = Reading::begin(lane) else { return false };
    let Ok(listed) = lane.backups() else { return false };
    let needs = Needs { backup: "b1".to_owned(), wal: log_of_b1(lane) };
    let there = listed.iter().any(|stored| stored.id == "b1") && has_all_of_b1(lane);
    let safe = reading.needs(needs.clone()).is_ok() && reading.came_too_late(&needs).is_ok_and(|late| !late);
    there && safe && reading.leave(std::time::Duration::from_secs(3600)).is_ok()
}

fn has_all_of_b1(lane: &Lane) -> bool {
    let left = left(lane);
    ["b1/1", "b1/2", "2", "3", "4", "5"].iter().all(|name| left.contains(&(*name).to_owned()))
}

#[test]
fn a_restore_beside_an_expiry_keeps_what_it_reads_or_is_told_that_it_came_too_late() {
    let expiry: Act = |lane| expire(lane).is_ok();
    let judge = |lane: &Lane, reads: bool, story: &str| {
        assert!(!reads || has_all_of_b1(lane), "{story}: {:?}", left(lane));
        expire(lane).unwrap();
        assert!(!reads || has_all_of_b1(lane), "{story}, later: {:?}", left(lane));
        expect_whole(lane, story);
    };
    let (points, _, restores) =
        interleaved(expiry, read_oldest, [0, 0], |lane, _, reads, story| judge(lane, reads, story));
    assert!(restores > 10 && restores < points, "{points} points, {restores} restores");
    let (points, restores, _) =
        interleaved(read_oldest, expiry, [0, 0], |lane, reads, _, story| judge(lane, reads, story));
    assert!(points > 5 && restores > 3, "{points} points, {restores} restores");
}

#[test]
fn what_is_read_goes_once_nobody_reads_it_and_a_reader_who_needs_anything_defers_it_all() {
    let (_, lane) = history();
    let before = left(&lane);
    let reading = Reading::begin(&lane).unwrap();
    let outcome = expire(&lane).unwrap();
    assert_eq!(outcome.deferred.map(|deferred| deferred.what), Some("restore"));
    assert_eq!(left(&lane), before);
    reading.needs(Needs { backup: "b1".to_owned(), wal: log_of_b1(&lane) }).unwrap();
    assert_eq!(expire(&lane).unwrap().deferred, None);
    assert_eq!(left(&lane), ["b1/1", "b1/2", "b2/1", "b3/1", "2", "3", "4", "5", "7", "8"]);
    // Not even by an operator's word.
    retention::forget(&lane, "b1", true, std::time::Duration::ZERO, "db1").unwrap();
    assert!(has_all_of_b1(&lane));
    drop(reading);
    expire(&lane).unwrap();
    assert_eq!(left(&lane), LEFT);
}

#[test]
fn a_backup_that_is_pinned_beside_an_expiry_stays_or_the_pin_is_refused() {
    let expiry: Act = |lane| expire(lane).is_ok();
    let pin: Act = |lane| retention::pin(lane, "b1", true, None, None, "db1").is_ok();
    let judge = |lane: &Lane, pinned: bool, story: &str| {
        let listed = expect_whole(lane, story);
        assert!(!pinned || listed.contains(&"b1".to_owned()), "{story}: {listed:?}");
        expire(lane).unwrap();
        assert!(!pinned || expect_whole(lane, story).contains(&"b1".to_owned()), "{story}");
    };
    let (points, _, pins) = interleaved(expiry, pin, [0, 0], |lane, _, pinned, story| judge(lane, pinned, story));
    assert!(points > 30 && pins > 3, "{points} points, {pins} pins");
    interleaved(pin, expiry, [0, 0], |lane, pinned, _, story| judge(lane, pinned, story));
}
