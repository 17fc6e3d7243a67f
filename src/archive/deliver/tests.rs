//! Whose bytes are stored: by hand, one case each, and two writers at every place of each other's work.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fmt;
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::Duration as Time;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path as Location;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result as StoreResult,
};

use super::*;
use crate::archive::{Caller, FetchBudgets, FetchError, Fetcher, adopt_timeline, decide_on, given_up};
use crate::format::recovery_plan::{PlannedStretch, RECOVERY_PLAN_VERSION, RecoveryPlan};
use crate::pg::lsn::Lsn;
use crate::pg::system_id::SystemId;
use crate::repo::{Decision, LANE_VERSION, LaneFacts, Repository};
use crate::store::{RetryPolicy, Store};

/// Nobody falls silent within a test, or everybody has.
const LONG: Time = Time::from_secs(900);
const SHORT: Time = Time::from_nanos(1);

fn writer(token: char, grace: Time) -> Writer {
    Writer {
        token: token.to_string().repeat(16),
        former: None,
        host: format!("host {token}"),
        grace,
        takes_over: None,
        follows: false,
    }
}

fn facts() -> LaneFacts {
    LaneFacts {
        version: LANE_VERSION,
        system_id: SystemId::new(7),
        epoch: 1,
        major: 17,
        catalog_version: 202_406_281,
        segment_size: 16 << 20,
        block_size: 8192,
        wal_block_size: 8192,
        parent: None,
    }
}

fn lane_over(backend: Arc<dyn ObjectStore>) -> Lane {
    let store = Store::over(backend, "memory", RetryPolicy::brisk(1)).unwrap();
    Repository::init(store, "main").unwrap().0.lane_for(&facts()).unwrap()
}

fn lane() -> Lane {
    lane_over(Arc::new(InMemory::new()))
}

fn encoded(lane: &Lane, name: &WalFileName, contents: &str) -> EncodedWal {
    let raw = contents.as_bytes();
    wal::encode(&lane.wal_identity(name), &raw, raw.len() as u64, 1, 1, None).unwrap()
}

fn offer(lane: &Lane, name: &str, contents: &str, writer: &Writer) -> Delivered {
    let name: WalFileName = name.parse().unwrap();
    deliver(lane, &name, &encoded(lane, &name, contents), writer).unwrap()
}

fn stored(lane: &Lane, name: &str) -> Option<String> {
    let stored = lane.read_wal(&name.parse().unwrap()).unwrap();
    stored.map(|stored| String::from_utf8(stored.raw).unwrap())
}

fn kept(lane: &Lane) -> Vec<String> {
    let contents = |contested| String::from_utf8(lane.read_contested(&contested).unwrap().raw).unwrap();
    lane.contested().unwrap().into_iter().map(contents).collect()
}

/// Writer, claim and whether it waits, of each record of a timeline's owners.
fn owner(lane: &Lane, timeline: u32) -> Option<(char, Claim, Option<u32>)> {
    let owner = lane.owners(TimelineId::new(timeline).unwrap()).unwrap().current?.owner;
    let waits = owner.waits_for.map(|waits| waits.timeline.number());
    Some((owner.writer.chars().next().unwrap(), owner.claim, waits))
}

const SEGMENTS: [&str; 3] = ["000000010000000000000007", "000000010000000000000008", "000000010000000000000009"];

#[test]
fn a_second_writer_is_kept_apart_while_the_owner_is_at_work() {
    let (lane, a, b) = (lane(), writer('a', LONG), writer('b', LONG));
    assert_eq!(offer(&lane, SEGMENTS[0], "a7", &a), Delivered::Stored);
    assert_eq!(offer(&lane, SEGMENTS[0], "a7", &b), Delivered::AlreadyStored, "the same bytes by anyone");
    for (name, contents) in [(SEGMENTS[0], "b7"), (SEGMENTS[1], "b8"), (SEGMENTS[1], "b8")] {
        let Delivered::NotOwner { owner, .. } = offer(&lane, name, contents, &b) else { panic!("{name} was taken") };
        assert_eq!(owner, "host a");
    }
    assert_eq!(kept(&lane), ["b7", "b8"]);
    // The owner goes on where the stranger was refused.
    assert_eq!(offer(&lane, SEGMENTS[1], "a8", &a), Delivered::Stored);
    assert_eq!(offer(&lane, SEGMENTS[0], "a7", &a), Delivered::AlreadyStored);
    assert_eq!(stored(&lane, SEGMENTS[0]).unwrap(), "a7");
    assert_eq!(owner(&lane, 1), Some(('a', Claim::First, None)));
}

#[test]
fn a_silent_owner_is_succeeded_and_is_the_stranger_when_it_comes_back() {
    let (lane, a, b) = (lane(), writer('a', LONG), writer('b', SHORT));
    offer(&lane, SEGMENTS[0], "a7", &a);
    assert_eq!(offer(&lane, SEGMENTS[0], "a7", &b), Delivered::AlreadyStored);
    assert_eq!(owner(&lane, 1), Some(('a', Claim::First, None)), "the same bytes are no reason to take over");
    assert_eq!(offer(&lane, SEGMENTS[1], "b8", &b), Delivered::Stored);
    assert_eq!(owner(&lane, 1), Some(('b', Claim::Silence, None)));
    // What it knew has aged meanwhile.
    let lane = lane.repository().lane_for(&facts()).unwrap();
    assert!(matches!(offer(&lane, SEGMENTS[2], "a9", &a), Delivered::NotOwner { .. }));
    assert!(matches!(offer(&lane, SEGMENTS[1], "a8", &a), Delivered::NotOwner { .. }));
    assert_eq!((stored(&lane, SEGMENTS[1]).unwrap(), stored(&lane, SEGMENTS[2])), ("b8".to_owned(), None));
    assert_eq!(kept(&lane), ["a8", "a9"]);
}

#[test]
fn who_gets_a_state_directory_stays_the_owner_and_shares_that_with_nobody() {
    let lane = lane();
    let named = |token: char| Writer { former: Some("a".repeat(16)), ..writer(token, LONG) };
    offer(&lane, SEGMENTS[0], "a7", &writer('a', LONG));
    assert_eq!(offer(&lane, SEGMENTS[1], "a8", &named('b')), Delivered::Stored);
    assert_eq!(owner(&lane, 1), Some(('b', Claim::Settled, None)));
    // Another host that looked the same came later.
    assert!(matches!(offer(&lane, SEGMENTS[2], "c9", &named('c')), Delivered::NotOwner { .. }));
    let lane = lane.repository().lane_for(&facts()).unwrap();
    assert!(matches!(offer(&lane, SEGMENTS[2], "a9", &writer('a', LONG)), Delivered::NotOwner { .. }));
}

#[test]
fn a_standby_waits_for_its_primary_and_alarms_only_where_the_two_differ() {
    let (lane, a) = (lane(), writer('a', LONG));
    let standby = Writer { follows: true, ..writer('b', LONG) };
    offer(&lane, SEGMENTS[0], "a7", &a);
    assert_eq!(offer(&lane, SEGMENTS[0], "a7", &standby), Delivered::AlreadyStored);
    assert_eq!(offer(&lane, SEGMENTS[1], "a8", &standby), Delivered::NotYet { owner: "host a".to_owned() });
    assert_eq!((kept(&lane), stored(&lane, SEGMENTS[1])), (vec![], None));
    assert_eq!(offer(&lane, SEGMENTS[1], "a8", &a), Delivered::Stored);
    assert_eq!(offer(&lane, SEGMENTS[1], "a8", &standby), Delivered::AlreadyStored);
    // It follows somebody else than who owns the timeline.
    assert!(matches!(offer(&lane, SEGMENTS[1], "other", &standby), Delivered::NotOwner { .. }));
    assert_eq!(kept(&lane), ["other"]);
    // Promoted, it is as good as any other server.
    assert!(matches!(offer(&lane, SEGMENTS[2], "b9", &writer('b', LONG)), Delivered::NotOwner { .. }));
}

#[test]
fn an_owner_that_offers_other_bytes_is_told_of_the_conflict() {
    let (lane, a) = (lane(), writer('a', LONG));
    offer(&lane, SEGMENTS[0], "a7", &a);
    assert!(matches!(offer(&lane, SEGMENTS[0], "other", &a), Delivered::Conflict { stored: Some(_), .. }));
    assert_eq!((stored(&lane, SEGMENTS[0]).unwrap(), kept(&lane)), ("a7".to_owned(), vec!["other".to_owned()]));
}

#[test]
fn what_belongs_to_a_promotion_is_stored_whoever_brings_it() {
    let (lane, a, b) = (lane(), writer('a', LONG), writer('b', LONG));
    offer(&lane, SEGMENTS[0], "a7", &a);
    // Two promotions within one segment, and the demotion of the old primary.
    for (contents, by) in [("one", &b), ("two", &b), ("three", &a)] {
        assert_eq!(offer(&lane, "000000010000000000000008.partial", contents, by), Delivered::Stored);
    }
    assert_eq!(offer(&lane, "000000010000000000000008.00000028.backup", "START", &b), Delivered::Stored);
    assert_eq!(offer(&lane, "future.file", "x", &b), Delivered::Stored);
    assert_eq!(kept(&lane), [""; 0]);
}

const HISTORY: &str = "1\t0/8000100\tno recovery target specified\n";

#[test]
fn a_branch_that_began_while_its_parents_owner_was_at_work_is_stored_and_waits() {
    let (lane, a, b) = (lane(), writer('a', LONG), writer('b', LONG));
    offer(&lane, SEGMENTS[0], "a7", &a);
    assert_eq!(offer(&lane, "00000002.history", HISTORY, &b), Delivered::Stored);
    assert_eq!(offer(&lane, "000000020000000000000008", "b8", &b), Delivered::Stored);
    assert_eq!(owner(&lane, 2), Some(('b', Claim::First, Some(1))));
    assert_eq!(lane.waits_for(TimelineId::new(2).unwrap()).unwrap().unwrap().host, "host a");
    // A branch of it waits with it, also by another hand.
    let of_two = format!("{HISTORY}2\t0/8000200\tx\n");
    for (timeline, by) in [(3, &b), (4, &writer('c', LONG))] {
        offer(&lane, &format!("0000000{timeline}.history"), &of_two, by);
    }
    assert_eq!(owner(&lane, 3), Some(('b', Claim::First, Some(1))));
    assert_eq!(owner(&lane, 4), Some(('c', Claim::First, Some(2))));
    // The parent's owner goes on, on its own.
    assert_eq!(offer(&lane, SEGMENTS[1], "a8", &a), Delivered::Stored);
    assert_eq!(kept(&lane), [""; 0]);
}

#[test]
fn a_branch_counts_once_the_parents_owner_is_silent_and_that_is_recorded_for_good() {
    let (lane, a) = (lane(), writer('a', LONG));
    offer(&lane, SEGMENTS[0], "a7", &a);
    offer(&lane, "00000002.history", HISTORY, &writer('b', LONG));
    assert_eq!(owner(&lane, 2), Some(('b', Claim::First, Some(1))));
    offer(&lane, "000000020000000000000008", "b8", &writer('b', SHORT));
    assert_eq!(owner(&lane, 2), Some(('b', Claim::Settled, None)));
    offer(&lane, SEGMENTS[1], "a8", &a);
    offer(&lane, "000000020000000000000009", "b9", &writer('b', LONG));
    assert_eq!(owner(&lane, 2), Some(('b', Claim::Settled, None)), "whoever wakes up");
}

#[test]
fn a_promotion_of_the_owner_or_after_a_silence_or_of_what_was_restored_to_take_over_counts_at_once() {
    let restored = Writer { takes_over: Some(TimelineId::FIRST), ..writer('b', LONG) };
    let others = [(writer('b', SHORT), 'b'), (writer('b', Time::ZERO), 'b'), (restored, 'b')];
    for (by, expected) in [(writer('a', LONG), 'a')].into_iter().chain(others) {
        let lane = lane();
        offer(&lane, SEGMENTS[0], "a7", &writer('a', LONG));
        offer(&lane, "00000002.history", HISTORY, &by);
        assert_eq!(owner(&lane, 2), Some((expected, Claim::First, None)));
    }
}

#[test]
fn a_history_that_is_nonsense_is_stored_like_any_file() {
    let (lane, a) = (lane(), writer('a', LONG));
    for (name, contents) in [("00000002.history", "nonsense"), ("00000003.history", "\0\u{fffd}")] {
        assert_eq!(offer(&lane, name, contents, &a), Delivered::Stored);
    }
    assert_eq!(offer(&lane, "000000020000000000000008", "a8", &a), Delivered::Stored);
}

#[test]
fn what_a_former_owner_stores_after_an_adoption_is_kept_found_and_never_served() {
    let (lane, a, b) = (lane(), writer('a', LONG), writer('b', LONG));
    offer(&lane, SEGMENTS[0], "a7", &a);
    // The one who was refused goes on with another history; an operator believes it.
    assert!(matches!(offer(&lane, SEGMENTS[1], "b8", &b), Delivered::NotOwner { .. }));
    let elsewhere = lane.repository().lane_for(&facts()).unwrap();
    assert_eq!(elsewhere.disputed().unwrap(), []);
    adopt_timeline(&elsewhere, TimelineId::FIRST, None, "db3").unwrap();
    // The former owner has asked a moment ago, and goes by that.
    assert_eq!(offer(&lane, SEGMENTS[1], "a8", &a), Delivered::Stored);
    assert_eq!(elsewhere.disputed().unwrap().len(), 1, "what was kept before the adoption tells already");
    assert!(matches!(offer(&elsewhere, SEGMENTS[1], "b8", &b), Delivered::Conflict { .. }));
    assert_eq!(offer(&elsewhere, SEGMENTS[2], "b9", &b), Delivered::Stored);
    assert!(matches!(offer(&lane, SEGMENTS[2], "a9", &a), Delivered::Conflict { .. }));
    // Nothing was overwritten, nothing is lost.
    let all: Vec<_> = SEGMENTS.iter().map(|name| stored(&lane, name).unwrap()).collect();
    assert_eq!(
        (all, kept(&lane)),
        (vec!["a7".to_owned(), "a8".into(), "b9".into()], vec!["a9".to_owned(), "b8".into()])
    );
    // It is named, nobody is served it, and the new owner's archiver does not pass it by.
    let gaps = elsewhere.disputed().unwrap();
    let segment: WalFileName = SEGMENTS[1].parse().unwrap();
    assert!(gaps.len() == 1 && gaps[0].to_string().contains("given to writer bbbb"), "{gaps:?}");
    let now = FetchBudgets { hole: Time::ZERO, standby_hole: Time::ZERO };
    // Whoever planned a restore before the new owner's bytes came to light is not served it either.
    let plan = RecoveryPlan {
        primary: None,
        version: RECOVERY_PLAN_VERSION,
        system_id: elsewhere.id().system_id(),
        lane: elsewhere.id().to_string(),
        backup: "b".to_owned(),
        segment_size: elsewhere.facts().segment_size,
        path: vec![PlannedStretch { timeline: TimelineId::FIRST, begin: Lsn::INVALID, end: None }],
        needed_before: Lsn::new(1 << 40),
        partial: None,
        target: String::new(),
    };
    for caller in [Caller::Recovery(None), Caller::Recovery(Some(plan)), Caller::Standby] {
        let fetcher = Fetcher::new(&elsewhere, caller, now);
        // Nor what was fetched ahead before that.
        assert!(!fetcher.may_serve(SEGMENTS[1].parse().unwrap()).unwrap());
        assert!(fetcher.may_serve(SEGMENTS[2].parse().unwrap()).unwrap());
        let fetched = fetcher.load(&segment);
        assert!(
            matches!(&fetched, Err(FetchError::Hole { reason, .. }) if reason.contains("not to be believed")),
            "{fetched:?}"
        );
    }
    assert_eq!(given_up(&elsewhere, &segment).unwrap(), None);
    // Who looks again is the stranger.
    let lane = lane.repository().lane_for(&facts()).unwrap();
    assert!(matches!(offer(&lane, "00000001000000000000000A", "a10", &a), Delivered::NotOwner { .. }));
    // The operator decides that the bytes under the name are the right ones after all.
    let own = lane.contested().unwrap().into_iter().find(|kept| kept.name == segment && kept.writer.starts_with('b'));
    decide_on(&lane, &own.unwrap(), Decision::Discarded, "db3").unwrap();
    assert_eq!(lane.disputed().unwrap(), []);
}

#[test]
fn what_a_stranger_or_an_owner_of_its_own_right_has_kept_apart_is_no_gap() {
    let (lane, a, b) = (lane(), writer('a', LONG), writer('b', LONG));
    for (name, contents, by) in
        [(SEGMENTS[0], "a7", &a), (SEGMENTS[0], "b7", &b), (SEGMENTS[0], "other", &a), (SEGMENTS[1], "b8", &b)]
    {
        offer(&lane, name, contents, by);
    }
    assert_eq!((kept(&lane).len(), lane.disputed().unwrap()), (3, vec![]));
    // What was archived before the operator's word stays what it was.
    adopt_timeline(&lane, TimelineId::FIRST, Some(&b.token), "db3").unwrap();
    assert_eq!(lane.disputed().unwrap(), []);
}

/// Lets one operation of two writers go on at a time, in the order of a schedule.
#[derive(Default)]
struct Turns {
    state: Mutex<Schedule>,
    changed: Condvar,
}

#[derive(Default)]
struct Schedule {
    seed: u64,
    next: Option<usize>,
    done: [bool; 2],
}

impl Schedule {
    /// Draws whose operation comes next.
    fn draw(&mut self) -> usize {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) & 1) as usize
    }
}

impl Turns {
    /// Waits for the writer's turn; it lasts until the writer asks for the next one, or is done.
    fn wait(&self, writer: usize) {
        let mut state = self.state.lock().unwrap();
        if state.next == Some(writer) {
            state.next = None;
        }
        loop {
            let next = match state.next {
                Some(next) => next,
                None => {
                    let next = state.draw();
                    state.next = Some(next);
                    self.changed.notify_all();
                    next
                }
            };
            if next == writer || state.done[1 - writer] {
                state.next = Some(writer);
                return;
            }
            state = self.changed.wait(state).unwrap();
        }
    }

    fn done(&self, writer: usize) {
        let mut state = self.state.lock().unwrap();
        state.done[writer] = true;
        state.next = None;
        self.changed.notify_all();
    }

    fn begin(&self, seed: u64) {
        *self.state.lock().unwrap() = Schedule { seed, next: None, done: [false; 2] };
    }
}

/// One writer's way to the store that both share.
struct Scheduled {
    backend: Arc<InMemory>,
    turns: Arc<Turns>,
    writer: usize,
}

impl fmt::Display for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "writer {}", self.writer)
    }
}

impl fmt::Debug for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "writer {}", self.writer)
    }
}

#[async_trait]
impl ObjectStore for Scheduled {
    async fn put_opts(&self, at: &Location, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.turns.wait(self.writer);
        self.backend.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Location,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.backend.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Location, options: GetOptions) -> StoreResult<GetResult> {
        self.turns.wait(self.writer);
        self.backend.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        all: BoxStream<'static, StoreResult<Location>>,
    ) -> BoxStream<'static, StoreResult<Location>> {
        self.turns.wait(self.writer);
        self.backend.delete_stream(all)
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let (backend, turns, writer) = (Arc::clone(&self.backend), Arc::clone(&self.turns), self.writer);
        let prefix = prefix.cloned();
        let listing = async move {
            turns.wait(writer);
            let found: Vec<_> = backend.list(prefix.as_ref()).try_collect().await?;
            Ok::<_, object_store::Error>(futures_util::stream::iter(found).map(Ok))
        };
        listing.into_stream().try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> StoreResult<ListResult> {
        self.turns.wait(self.writer);
        self.backend.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Location, to: &Location, options: CopyOptions) -> StoreResult<()> {
        self.backend.copy_opts(from, to, options).await
    }
}

/// What both writers of one round were told, for each of the two names.
type Told = [[Delivered; 2]; 2];

/// Panics unless nothing was overwritten, nothing was lost, and whoever was refused was told so.
fn judge(lane: &Lane, names: &[String; 2], told: &Told, what: &str) {
    let all_kept = kept(lane);
    for (index, name) in names.iter().enumerate() {
        let found = stored(lane, name);
        let winners: Vec<usize> = (0..2).filter(|&by| told[by][index] == Delivered::Stored).collect();
        assert!(winners.len() <= 1, "{what}: {name} was stored twice: {told:?}");
        let expected = winners.first().map(|by| contents(*by, name));
        assert_eq!(found, expected, "{what}: {name} is not what was acknowledged: {told:?}");
        for (by, told) in told.iter().enumerate() {
            let refused = matches!(told[index], Delivered::Conflict { .. } | Delivered::NotOwner { .. });
            assert_ne!(refused, winners.contains(&by), "{what}: writer {by} was told {:?}", told[index]);
            assert_eq!(refused, all_kept.contains(&contents(by, name)), "{what}: writer {by}'s {name}");
        }
    }
}

/// Some owners are thought silent at once: then the race is for the record of who comes next.
fn grace(round: u64, by: usize) -> Time {
    [LONG, SHORT][(round / 2 + by as u64 * round) as usize % 2]
}

fn contents(by: usize, name: &str) -> String {
    format!("{by} wrote {name}")
}

#[test]
fn two_writers_racing_on_one_name_never_overwrite_and_always_know() {
    let soaking = std::env::var_os("WALVAULT_SOAK").is_some_and(|value| value == "1");
    let rounds = if soaking { 10_000 } else { 1_000 };
    let seed = std::env::var("WALVAULT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| getrandom::u64().unwrap());
    eprintln!("WALVAULT_SEED={seed}");
    // A store of its own for each few rounds: a listing of what is kept grows with all that was.
    const TOGETHER: usize = 10;
    let mut tally = [0_usize; 3];
    for part in 0..rounds / TOGETHER {
        let backend = Arc::new(InMemory::new());
        let (judge_lane, turns) = (lane_over(Arc::<InMemory>::clone(&backend)), Arc::new(Turns::default()));
        let barrier = Barrier::new(2);
        let work = |by: usize| -> Vec<[Delivered; 2]> {
            let scheduled = Scheduled { backend: Arc::clone(&backend), turns: Arc::clone(&turns), writer: by };
            let store = Store::over(Arc::new(scheduled), "memory", RetryPolicy::brisk(1)).unwrap();
            let told = (0..TOGETHER).map(|round| {
                let number = (part * TOGETHER + round) as u64;
                if by == 0 {
                    turns.begin(seed.wrapping_add(number.wrapping_mul(0x1_0000_0001)));
                }
                barrier.wait();
                let lane = Repository::open(store.clone(), "main").unwrap().lane_for(&facts()).unwrap();
                let writer = writer(['a', 'b'][by], grace(number, by));
                let told = names(round).map(|name| offer(&lane, &name, &contents(by, &name), &writer));
                turns.done(by);
                barrier.wait();
                told
            });
            told.collect()
        };
        let (first, second) = std::thread::scope(|scope| {
            let second = scope.spawn(|| work(1));
            (work(0), second.join().unwrap())
        });
        for (round, told) in first.into_iter().zip(second).map(<[_; 2]>::from).enumerate() {
            let number = (part * TOGETHER + round) as u64;
            judge(&judge_lane, &names(round), &told, &format!("seed {seed}, round {number}"));
            let stored_by = |by: usize| told[by].contains(&Delivered::Stored);
            let patient = [0, 1].map(|by| grace(number, by)) == [LONG; 2];
            assert!(!patient || stored_by(0) != stored_by(1), "seed {seed}, round {number}: two owners: {told:?}");
            for told in told.iter().flatten() {
                tally[match told {
                    Delivered::Stored | Delivered::AlreadyStored => 0,
                    Delivered::Conflict { .. } => 1,
                    Delivered::NotOwner { .. } => 2,
                    Delivered::NotYet { .. } => unreachable!("nobody follows"),
                }] += 1;
            }
        }
    }
    eprintln!("{rounds} races: {} stored, {} other bytes, {} not the owner", tally[0], tally[1], tally[2]);
    assert!(tally.iter().all(|count| *count > rounds / 50), "a kind of end was hardly met: {tally:?}");
}

/// Two segments of a timeline that no other round has.
fn names(round: usize) -> [String; 2] {
    [7, 8].map(|segment| format!("{:08X}00000000{segment:08X}", round + 1))
}
