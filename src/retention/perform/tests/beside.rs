//! Expiry beside backups, restores and pins, at every point of both.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::path::Path as Location;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};

use super::*;
use crate::pg::segment::SegmentNo;
use crate::repo::{LeaseError, Needs, Reading};

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
fn share_oldest(lane: &Lane) -> Result<(), LeaseError> {
    share(lane, true)
}

/// Takes a backup that shares every pack of the oldest one, if it is `careful` of one that is not condemned.
fn share(lane: &Lane, careful: bool) -> Result<(), LeaseError> {
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
