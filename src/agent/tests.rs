//! The agent over a store that fails at every operation, and commands that meet agents of every kind.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use object_store::memory::InMemory;

use super::*;
use crate::archive::{Caller, FetchBudgets, WalFile, Writer};
use crate::metrics::{Count, Level};
use crate::pg::segment::SegmentName;
use crate::pg::wal_fixture::{one_mib, segments};
use crate::pg::wal_name::WalFileName;
use crate::repo::lane_fixture::{MAJOR, archive, facts_of};
use crate::repo::{LaneFacts, LaneId, ObjectName, RepoError, Repository};
use crate::store::fault::{Fault, FaultStore, When};
use crate::store::{Deleted, RetryPolicy, Store, Verb};
use crate::workflow::check::AgentFacts;

mod sync_ahead;

/// How long a test waits for what comes in any case.
const LIMIT: Duration = Duration::from_secs(60);

fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let until = Instant::now() + LIMIT;
    while !reached() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A `pg_wal` in which the fixture's first segments wait, an agent, and the repository behind it.
struct Site {
    directory: tempfile::TempDir,
    facts: LaneFacts,
    segments: Vec<(SegmentName, Vec<u8>)>,
    sound: Repository,
    faulty: FaultStore,
    house: Arc<House>,
}

impl Site {
    fn new(attempts: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path().join("pg_wal");
        fs::create_dir_all(wal.join("archive_status")).unwrap();
        fs::create_dir(directory.path().join("scratch")).unwrap();
        static SEGMENTS: OnceLock<Vec<(SegmentName, Vec<u8>)>> = OnceLock::new();
        let segments = SEGMENTS.get_or_init(|| segments(MAJOR, 1).into_iter().take(3).collect()).clone();
        for (name, raw) in &segments {
            fs::write(wal.join(name.to_string()), raw).unwrap();
            fs::write(wal.join(format!("archive_status/{name}.ready")), "").unwrap();
        }
        let memory = Arc::new(InMemory::new());
        let faulty = FaultStore::new(Arc::<InMemory>::clone(&memory));
        let store = Store::over(memory, "sound", RetryPolicy::brisk(1)).unwrap();
        let (sound, _) = Repository::init(store, "main").unwrap();
        let failing = faulty.clone();
        let open = move |_| {
            let store = Store::over(Arc::new(failing.clone()), "faulty", RetryPolicy::brisk(attempts)).unwrap();
            Repository::open(store, "main")
        };
        let limits = Limits {
            level: 1,
            backlog_level: 1,
            threads: 2,
            look_ahead: 16 << 20,
            prefetch: 16 << 20,
            scratch: Some(directory.path().join("scratch")),
            users: Vec::new(),
            own: None,
            stay: Stay::Resident,
        };
        let repository = (repository_digest("file:///r", "main"), Some("https://s3.here".to_owned()));
        let house = House::new(repository, "main".into(), Box::new(open), limits);
        let facts = facts_of(&segments[0].1);
        Self { directory, facts, segments, sound, faulty, house }
    }

    fn wal(&self, index: usize) -> PathBuf {
        self.directory.path().join("pg_wal").join(self.segments[index].0.to_string())
    }

    fn serve(&self) -> Running {
        let door = Door::open(&Door::path_in(self.directory.path(), "main"), None).unwrap();
        serve(Arc::clone(&self.house), door).unwrap()
    }

    /// A command that does not take an agent on a busy machine for one that hangs.
    fn client(&self) -> Client {
        let digest = repository_digest("file:///r", "main");
        Client::new(self.directory.path(), digest, "main", Vec::new()).bearing(LIMIT)
    }

    /// Waits until this many segments wait to be asked for.
    fn wait_fetched_ahead(&self, segments: u64) {
        wait_until("fetched ahead", || self.house.metrics.level(Level::PrefetchedBytes) == segments << 20);
    }

    fn push(&self, client: &Client, index: usize) -> Asked<()> {
        let file = WalFile::at(&self.wal(index)).unwrap();
        let writer = Writer {
            token: "0123456789abcdef".into(),
            former: None,
            host: "here".into(),
            grace: Duration::from_secs(900),
            takes_over: None,
            follows: false,
        };
        client.push(&Offered { file: &file, server: &self.facts, writer: &writer }, Duration::from_secs(60))
    }

    fn fetch(&self, client: &Client, name: &str, caller: &Caller) -> (Asked<Brought>, PathBuf) {
        let destination = self.directory.path().join("RECOVERYXLOG");
        let _ = fs::remove_file(&destination);
        let now = FetchBudgets { hole: Duration::ZERO, standby_hole: Duration::ZERO };
        let wanted = Wanted {
            name: &name.parse().unwrap(),
            destination: &destination,
            lane: LaneId::first(self.facts.system_id),
            segment_size: one_mib(),
            caller,
            replayed: None,
            signalled: true,
            request: Duration::from_secs(30),
            budgets: now,
        };
        (client.fetch(&wanted, Duration::from_secs(60)), destination)
    }

    /// Archives all segments without faults and without the agent.
    fn archive(&self) {
        let lane = self.sound.lane_for(&self.facts).unwrap();
        self.segments.iter().for_each(|(name, raw)| archive(&lane, &WalFileName::Segment(*name), raw));
    }

    /// Has the store lose a segment.
    fn lose(&self, index: usize) {
        let lane = self.sound.lane_for(&self.facts).unwrap();
        let name = ObjectName::Wal(WalFileName::Segment(self.segments[index].0));
        let objects = lane.objects().unwrap();
        let lost: Vec<_> = objects.iter().filter(|object| object.name == name).collect();
        assert_eq!(lane.remove::<RepoError>(&lost, || Ok(())).unwrap().objects, 1);
    }

    fn archived(&self, index: usize) -> Option<Vec<u8>> {
        let lane = self.sound.lane_for(&self.facts).unwrap();
        lane.read_wal(&WalFileName::Segment(self.segments[index].0)).unwrap().map(|stored| stored.raw)
    }
}

const FAULTS: [Fault; 8] = [
    Fault::Before(std::io::ErrorKind::Other),
    Fault::After(std::io::ErrorKind::Other),
    Fault::Before(std::io::ErrorKind::TimedOut),
    Fault::Before(std::io::ErrorKind::StorageFull),
    Fault::Truncate { to: 100 },
    Fault::FlipBit { bit: 3000 },
    Fault::Die,
    Fault::DieAfter,
];

#[allow(clippy::print_stderr, reason = "the test run shows the counts")]
fn told(what: &str, points: u32) {
    eprintln!("{what} over a failing store: {points} points");
}

fn faults(operation: u64) -> Vec<Fault> {
    let soaking = std::env::var_os("WALVAULT_SOAK").is_some();
    crate::store::fault::in_turn(&FAULTS, operation, soaking)
}

#[test]
fn whatever_fails_what_the_agent_acknowledges_is_there_and_whole() {
    let counting = Site::new(1);
    let running = counting.serve();
    (0..3).for_each(|index| assert!(matches!(counting.push(&counting.client(), index), Asked::Answered(()))));
    running.stop();
    let (mut points, mut refused) = (0, 0);
    for operation in 1..=counting.faulty.operations() {
        for fault in faults(operation) {
            points += 1;
            let site = Site::new(1);
            // A reply can be damaged on its way to us; what a store keeps is its own promise.
            let verb = matches!(fault, Fault::Truncate { .. } | Fault::FlipBit { .. }).then_some(Verb::Get);
            site.faulty.script(When { verb, ..When::nth(operation) }, fault);
            let running = site.serve();
            for index in 0..3 {
                let asked = site.push(&site.client(), index);
                let archived = site.archived(index);
                assert!(archived.as_ref().is_none_or(|archived| *archived == site.segments[index].1));
                match asked {
                    Asked::Answered(()) => assert!(archived.is_some(), "{fault:?} at {operation}: not there"),
                    Asked::Settled(_) | Asked::Unsettled(..) | Asked::Nobody => refused += 1,
                }
            }
            // Then the store is well again, and so is the agent, once it has heard of every failure.
            wait_until("heard", || running.is_idle());
            site.faulty.heal();
            site.house.breaker.worked();
            for index in 0..3 {
                assert!(matches!(site.push(&site.client(), index), Asked::Answered(())), "{fault:?} at {operation}");
                assert_eq!(site.archived(index).as_ref(), Some(&site.segments[index].1));
            }
            running.stop();
        }
    }
    told("agent, push", points);
    assert!(points > 20 && refused > 5, "{points} crash points, {refused} refusals");
}

#[test]
fn whatever_fails_the_agent_never_says_that_what_is_there_is_absent() {
    let recovery = Caller::Recovery(None);
    let counting = Site::new(1);
    counting.archive();
    let running = counting.serve();
    let all = |site: &Site| -> Vec<Asked<Brought>> {
        let fetched = |index: usize| {
            let name = site.segments[index].0.to_string();
            let (asked, destination) = site.fetch(&site.client(), &name, &recovery);
            if matches!(asked, Asked::Answered(Brought::InPlace)) {
                assert!(fs::read(destination).unwrap() == site.segments[index].1, "{name}");
            } else {
                assert!(!destination.exists());
            }
            asked
        };
        (0..3).map(fetched).collect()
    };
    assert!(all(&counting).iter().all(|asked| matches!(asked, Asked::Answered(Brought::InPlace))));
    running.stop();
    let (mut points, mut refused) = (0, 0);
    for operation in 1..=counting.faulty.operations() {
        for fault in faults(operation) {
            points += 1;
            let site = Site::new(1);
            site.archive();
            site.faulty.script(When::nth(operation), fault);
            let running = site.serve();
            for asked in all(&site) {
                assert!(!matches!(asked, Asked::Answered(Brought::ProvenAbsent)), "{fault:?} at {operation}");
                refused += u32::from(!matches!(asked, Asked::Answered(_)));
            }
            site.faulty.heal();
            assert!(all(&site).iter().all(|asked| matches!(asked, Asked::Answered(Brought::InPlace))));
            running.stop();
        }
    }
    told("agent, fetch", points);
    assert!(points > 10 && refused > 2, "{points} crash points, {refused} refusals");
}

#[test]
fn what_was_fetched_ahead_is_there_when_it_is_asked_for() {
    let site = Site::new(1);
    site.archive();
    let running = site.serve();
    let fetch = |index: usize| {
        let name = site.segments[index].0.to_string();
        let (asked, destination) = site.fetch(&site.client(), &name, &Caller::Recovery(None));
        assert!(matches!(asked, Asked::Answered(Brought::InPlace)), "{asked:?}");
        assert!(fs::read(destination).unwrap() == site.segments[index].1, "{name}");
    };
    fetch(0);
    site.wait_fetched_ahead(2);
    (1..3).for_each(fetch);
    assert_eq!(site.house.metrics.count(Count::PrefetchHits), 2);
    running.stop();
}

#[test]
fn a_file_that_is_not_the_one_archived_ahead_is_read_again() {
    let site = Site::new(1);
    let running = site.serve();
    assert!(matches!(site.push(&site.client(), 0), Asked::Answered(())));
    wait_until("archived ahead", || site.archived(2).is_some() && site.archived(1).is_some());
    // The same length at the same place: a new inode, then the same one with other bytes.
    let mut other = site.segments[1].1.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::remove_file(site.wal(1)).unwrap();
    fs::write(site.wal(1), &other).unwrap();
    File::options().write(true).open(site.wal(2)).unwrap().write_all(&[0; 4096]).unwrap();
    match site.push(&site.client(), 1) {
        Asked::Settled(failure) => assert_eq!(failure.kind, ErrorKind::Conflict, "{failure}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(site.push(&site.client(), 2), Asked::Unsettled(..)), "its first page is gone");
    assert_eq!(site.archived(1).as_ref(), Some(&site.segments[1].1));
    running.stop();
}

#[test]
fn what_was_archived_ahead_is_acknowledged_only_while_the_store_has_it() {
    let site = Site::new(1);
    let running = site.serve();
    assert!(matches!(site.push(&site.client(), 0), Asked::Answered(())));
    wait_until("archived ahead", || site.archived(2).is_some() && site.archived(1).is_some());
    // As if an older copy of the volume had been mounted in its place.
    site.lose(1);
    site.lose(2);
    assert!(matches!(site.push(&site.client(), 1), Asked::Answered(())));
    assert_eq!(site.archived(1).as_ref(), Some(&site.segments[1].1), "acknowledged and not there");
    site.faulty.script(When::default(), Fault::Before(std::io::ErrorKind::Other));
    assert!(matches!(site.push(&site.client(), 2), Asked::Unsettled(..)));
    running.stop();
}

#[test]
fn what_was_archived_ahead_is_not_looked_for_while_the_store_counts_as_gone() {
    let site = Site::new(1);
    let running = site.serve();
    assert!(matches!(site.push(&site.client(), 0), Asked::Answered(())));
    wait_until("archived ahead", || site.archived(2).is_some() && site.archived(1).is_some());
    let failure = AgentFailure { kind: ErrorKind::Unavailable, text: "disk gone".to_owned(), settled: None };
    (0..3).for_each(|_| site.house.store_failed(&failure));
    let before = site.faulty.operations();
    let asked = site.push(&site.client(), 1);
    assert!(matches!(&asked, Asked::Settled(failure) if failure.settled == Some(Final::StoreGone)), "{asked:?}");
    assert_eq!(site.faulty.operations(), before);
    running.stop();
}

#[test]
fn nothing_is_absent_for_a_recovery_where_the_lane_itself_is_gone() {
    let site = Site::new(1);
    site.archive();
    let running = site.serve();
    let ask = || site.fetch(&site.client(), "00000002.history", &Caller::Recovery(None)).0;
    assert!(matches!(ask(), Asked::Answered(Brought::ProvenAbsent)));
    let store = site.sound.store();
    store.list(None).unwrap().iter().for_each(|meta| assert_eq!(store.delete(&meta.key).unwrap(), Deleted::Gone));
    let asked = ask();
    assert!(matches!(asked, Asked::Nobody), "{asked:?}");
    running.stop();
}

#[test]
fn a_branch_that_comes_to_light_stops_what_was_fetched_ahead() {
    let site = Site::new(1);
    site.archive();
    let running = site.serve();
    let recovery = Caller::Recovery(None);
    let name = |index: usize| site.segments[index].0.to_string();
    let (asked, _) = site.fetch(&site.client(), &name(0), &recovery);
    assert!(matches!(asked, Asked::Answered(Brought::InPlace)));
    // What is fetched ahead looks for branches too, and that look counts for a second.
    site.wait_fetched_ahead(2);
    std::thread::sleep(Duration::from_millis(1100));
    let fork = site.segments[1].0.number(one_mib()).unwrap().start(one_mib());
    let history = format!("1\t{fork}\tno recovery target specified\n");
    let lane = site.sound.lane_for(&site.facts).unwrap();
    archive(&lane, &"00000002.history".parse().unwrap(), history.as_bytes());
    let (asked, destination) = site.fetch(&site.client(), &name(1), &recovery);
    assert!(matches!(&asked, Asked::Settled(failure) if failure.text.contains("timeline 2")), "{asked:?}");
    assert!(!destination.exists());
    running.stop();
}

#[test]
fn while_the_store_is_gone_pushes_fail_at_once_and_a_recovery_still_tries() {
    let site = Site::new(1);
    site.archive();
    let running = site.serve();
    site.faulty.script(When::default(), Fault::Before(std::io::ErrorKind::Other));
    let refused = |asked: Asked<()>| match asked {
        Asked::Unsettled(failure, note) => {
            drop(note);
            (failure, false)
        }
        Asked::Settled(failure) => (failure, true),
        other => panic!("{other:?}"),
    };
    let until = Instant::now() + Duration::from_secs(60);
    let (failure, asked) = loop {
        let before = site.faulty.operations();
        let (failure, settled) = refused(site.push(&site.client(), 0));
        assert_eq!(failure.kind, ErrorKind::Unavailable);
        if settled {
            break (failure, site.faulty.operations() - before);
        }
        assert!(Instant::now() < until, "it never refuses");
    };
    assert!(failure.text.contains("tried again every 15 s"), "{failure}");
    assert_eq!(asked, 0, "a refusal asks the store nothing");
    let name = site.segments[0].0.to_string();
    let (asked, _) = site.fetch(&site.client(), &name, &Caller::Standby);
    assert!(matches!(asked, Asked::Settled(_)), "{asked:?}");
    let before = site.faulty.operations();
    let (asked, _) = site.fetch(&site.client(), &name, &Caller::Recovery(None));
    assert!(matches!(asked, Asked::Unsettled(..)) && site.faulty.operations() > before, "{asked:?}");
    // A command that can do it shows that only the agent cannot.
    if let (Asked::Unsettled(_, note), _) = site.fetch(&site.client(), &name, &Caller::Recovery(None)) {
        note.did_it_myself();
    }
    wait_until("it does not refuse", || site.house.breaker.refuses(Instant::now()).is_none());
    running.stop();
}

/// What a thing at the other end of the socket does with a request.
type Behaviour = fn(UnixStream);

#[test]
fn nobody_is_believed_who_is_not_this_commands_agent() {
    let site = Site::new(1);
    let client = || site.client().bearing(Duration::from_secs(1));
    let behaviours: [(&str, Behaviour); 6] = [
        ("hangs up", drop),
        ("hears and dies", |stream| drop(wire::receive::<wire::Request>(&stream, || Ok(())))),
        ("says nothing", |stream| {
            std::thread::sleep(Duration::from_secs(4));
            drop(stream);
        }),
        ("babbles", |mut stream| drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"))),
        ("is another version", |stream| {
            drop(wire::send(&stream, &wire::Reply::Declined { reason: "another version".into() }, &[]));
        }),
        ("says that it is here and brings nothing", |stream| drop(wire::send(&stream, &wire::Reply::Here, &[]))),
    ];
    for (what, behaviour) in behaviours {
        let path = Door::path_in(site.directory.path(), "main");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            for _ in 0..2 {
                behaviour(listener.accept().unwrap().0);
            }
        });
        assert!(matches!(site.push(&client(), 0), Asked::Nobody), "{what}");
        let name = site.segments[0].0.to_string();
        let (asked, destination) = site.fetch(&client(), &name, &Caller::Recovery(None));
        assert!(matches!(asked, Asked::Nobody) && !destination.exists(), "{what}");
        thread.join().unwrap();
    }
    let _ = fs::remove_file(Door::path_in(site.directory.path(), "main"));
    assert!(matches!(site.push(&client(), 0), Asked::Nobody), "nobody is there");
}

#[test]
fn a_request_of_another_repository_cluster_or_system_is_declined() {
    let site = Site::new(1);
    let running = site.serve();
    let client = |url: &str, cluster: &str| {
        let runtime = site.directory.path();
        fs::hard_link(runtime.join("main.sock"), runtime.join(format!("{cluster}.sock"))).ok();
        Client::new(runtime, repository_digest(url, "main"), cluster, Vec::new()).bearing(LIMIT)
    };
    assert!(matches!(site.push(&client("file:///other", "main"), 0), Asked::Nobody));
    assert!(matches!(site.push(&client("file:///r", "other"), 0), Asked::Nobody));
    let moved = || site.client().at(Some("https://s3.elsewhere".to_owned()));
    assert!(matches!(site.push(&moved(), 0), Asked::Nobody));
    assert_eq!(site.house.metrics.count(Count::Declined), 3);
    assert_eq!(site.faulty.operations(), 0);
    assert!(matches!(site.push(&client("file:///r", "main"), 0), Asked::Answered(())));
    running.stop();
}

#[test]
fn who_listens_is_told_to_those_who_check() {
    let site = Site::new(1);
    assert_eq!(site.client().listener(), AgentFacts::Nobody);
    let running = site.serve();
    let version = Some(env!("CARGO_PKG_VERSION").to_owned());
    assert_eq!(site.client().listener(), AgentFacts::Agent { version: version.clone(), ours: true });
    let elsewhere = Client::new(site.directory.path(), repository_digest("file:///other", "main"), "main", Vec::new());
    assert_eq!(elsewhere.bearing(LIMIT).listener(), AgentFacts::Agent { version: version.clone(), ours: false });
    let moved = site.client().at(Some("https://s3.elsewhere".to_owned()));
    assert_eq!(moved.listener(), AgentFacts::Agent { version, ours: false });
    running.stop();
    assert_eq!(site.client().listener(), AgentFacts::Nobody);
    // Something else has the place.
    let other = UnixListener::bind(Door::path_in(site.directory.path(), "main")).unwrap();
    // It says so at once, or finds that nobody listens any more.
    let answering = std::thread::spawn(move || drop(other.accept().unwrap().0.write_all(b"what?\n")));
    assert!(matches!(site.client().listener(), AgentFacts::Silent { .. }));
    answering.join().unwrap();
}
