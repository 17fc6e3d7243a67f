//! Pushes over a store that fails: at every operation, in every way.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use object_store::memory::InMemory;

use super::*;
use crate::instance::DataDirectory;
use crate::pg::control::ControlFile;
use crate::pg::system_id::SystemId;
use crate::pg::wal_fixture::{one_mib, segments};
use crate::repo::Repository;
use crate::store::fault::{Fault, FaultStore, When};
use crate::store::{RetryPolicy, Store, Verb};

const MAJOR: u16 = 15;

/// A data directory on disk with the fixture's log in `pg_wal`; removed when dropped.
struct Site {
    server: DataDirectory,
    segments: Vec<(SegmentName, Vec<u8>)>,
}

impl Site {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("walvault-push-{}-{name}", std::process::id()));
        std::fs::create_dir_all(path.join("pg_wal")).unwrap();
        let segments = segments(MAJOR, 1);
        for (name, raw) in &segments {
            std::fs::write(path.join("pg_wal").join(name.to_string()), raw).unwrap();
        }
        let control = std::fs::read(format!("{}/fixtures/pgdata/15/pg_control", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let mut control = ControlFile::parse(&control).unwrap();
        control.system_id = FirstPage::parse(&segments[0].1).unwrap().system_id;
        control.segment_size = one_mib();
        Self { server: DataDirectory { path, control }, segments }
    }

    fn push(&self, repository: &Repository, index: usize) -> Result<Pushed, PushError> {
        let file = WalFile::at(&self.server.path.join("pg_wal").join(self.segments[index].0.to_string())).unwrap();
        let writer = Writer {
            token: "0123456789abcdef".to_owned(),
            former: None,
            host: "here".to_owned(),
            grace: Duration::from_secs(900),
            takes_over: None,
            follows: false,
        };
        let file = OpenWal::open(&file)?;
        let options = PushOptions { level: 1, threads: 1 };
        let facts = LaneFacts::of(&self.server.control);
        push(|| repository.lane_for(&facts), &facts, &file, &writer, options).map(|receipt| receipt.pushed)
    }

    /// Returns the archived bytes of a segment, read without faults.
    fn archived(&self, repository: &Repository, index: usize) -> Option<Vec<u8>> {
        let lane = repository.lane_for(&LaneFacts::of(&self.server.control)).unwrap();
        lane.read_wal(&WalFileName::Segment(self.segments[index].0)).unwrap().map(|stored| stored.raw)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.server.path);
    }
}

/// An empty repository and, beside it, the same one over a store that can be made to fail.
fn repositories(attempts: u32) -> (Repository, Repository, FaultStore) {
    let memory = Arc::new(InMemory::new());
    let faulty = FaultStore::new(Arc::<InMemory>::clone(&memory));
    let store = |backend, name| Store::over(backend, name, RetryPolicy::brisk(attempts)).unwrap();
    let sound = Repository::init(store(memory, "sound"), "main").unwrap().0;
    let repository = Repository::open(store(Arc::new(faulty.clone()), "faulty"), "main").unwrap();
    (sound, repository, faulty)
}

#[allow(clippy::print_stderr, reason = "the test run shows the counts")]
fn told(points: u32) {
    eprintln!("push over a failing store: {points} points");
}

#[test]
fn whatever_fails_what_was_acknowledged_is_there_and_what_is_there_is_whole() {
    let site = Site::new("crash-points");
    let faults = [
        Fault::Before(std::io::ErrorKind::Other),
        Fault::After(std::io::ErrorKind::Other),
        Fault::Before(std::io::ErrorKind::TimedOut),
        Fault::Before(std::io::ErrorKind::PermissionDenied),
        Fault::Before(std::io::ErrorKind::StorageFull),
        Fault::Truncate { to: 0 },
        Fault::Truncate { to: 100 },
        Fault::FlipBit { bit: 3000 },
        Fault::Die,
        Fault::DieAfter,
    ];
    let mut points = 0;
    for attempts in [1, 3] {
        let (_, repository, faulty) = repositories(attempts);
        let before = faulty.operations();
        site.push(&repository, 0).unwrap();
        site.push(&repository, 1).unwrap();
        let operations = faulty.operations() - before;
        for operation in 1..=operations {
            for fault in &faults {
                points += 1;
                let (sound, repository, faulty) = repositories(attempts);
                // A reply can be damaged on its way to us; what a store keeps is its own promise.
                let verb = matches!(fault, Fault::Truncate { .. } | Fault::FlipBit { .. }).then_some(Verb::Get);
                faulty.script(When { verb, ..When::nth(operation) }, *fault);
                let results = [site.push(&repository, 0), site.push(&repository, 1)];
                for (index, result) in results.iter().enumerate() {
                    let archived = site.archived(&sound, index);
                    let whole = archived.as_ref().is_none_or(|archived| *archived == site.segments[index].1);
                    assert!(whole, "{fault:?} at {operation}: other bytes are archived");
                    assert!(
                        result.is_err() || archived.is_some(),
                        "{fault:?} at {operation}: acknowledged and not there"
                    );
                }
                // PostgreSQL asks again, of a store that is well again.
                for index in [0, 1] {
                    site.push(&sound, index).unwrap();
                    assert_eq!(site.archived(&sound, index).as_ref(), Some(&site.segments[index].1));
                }
            }
        }
    }
    told(points);
    assert!(points > 100, "only {points} crash points");
}

#[test]
fn other_bytes_under_a_taken_name_are_kept_apart_and_the_first_stay() {
    let site = Site::new("conflict");
    let (sound, _, _) = repositories(1);
    assert_eq!(site.push(&sound, 0).unwrap(), Pushed::Stored);
    assert_eq!(site.push(&sound, 0).unwrap(), Pushed::AlreadyStored);
    let path = site.server.path.join("pg_wal").join(site.segments[0].0.to_string());
    let mut other = site.segments[0].1.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &other).unwrap();
    for _ in 0..2 {
        let Err(PushError::Conflict { stored, offered, kept, .. }) = site.push(&sound, 0) else {
            panic!("no conflict")
        };
        assert_eq!(stored, Some(Sha256::of(&site.segments[0].1)));
        assert_eq!(offered, Sha256::of(&other));
        let kept = sound.store().get(&kept.parse().unwrap()).unwrap().unwrap();
        assert_eq!(zstd::decode_all(&kept[..]).unwrap(), other);
    }
    assert_eq!(site.archived(&sound, 0).as_ref(), Some(&site.segments[0].1));
}

#[test]
fn a_damaged_copy_in_the_archive_is_no_success() {
    let site = Site::new("damaged");
    let (sound, repository, faulty) = repositories(1);
    site.push(&sound, 0).unwrap();
    faulty.script(When::every(Verb::Get).on("00000007"), Fault::FlipBit { bit: 5000 });
    let refused = site.push(&repository, 0);
    assert!(matches!(refused, Err(PushError::Conflict { stored: None, .. })), "{refused:?}");
}

#[test]
fn a_file_of_another_server_or_another_place_in_the_log_is_refused() {
    let mut site = Site::new("other");
    let (sound, _, _) = repositories(1);
    let names: Vec<_> = site.segments.iter().map(|(name, _)| name.to_string()).collect();
    let wal = site.server.path.join("pg_wal");
    std::fs::write(wal.join(&names[1]), &site.segments[0].1).unwrap();
    assert!(matches!(site.push(&sound, 1), Err(PushError::FirstPage { .. })));
    std::fs::write(wal.join(&names[1]), &site.segments[1].1[1..]).unwrap();
    assert!(matches!(site.push(&sound, 1), Err(PushError::Size { .. })));
    std::fs::write(wal.join(&names[1]), vec![0; 1 << 20]).unwrap();
    assert!(matches!(site.push(&sound, 1), Err(PushError::FirstPage { .. })));
    site.server.control.system_id = SystemId::new(5);
    assert!(matches!(site.push(&sound, 0), Err(PushError::OtherSystem { .. })));
    assert_eq!(sound.lane_ids().unwrap(), [], "a file that was refused opened a lane");
}

#[test]
fn a_history_of_another_promotion_under_the_same_number_is_found_out_and_both_are_kept() {
    // A promotion that could not ask the archive takes a number that is taken; its first push tells.
    let site = Site::new("history");
    let (sound, _, _) = repositories(1);
    let path = site.server.path.join("pg_wal/00000002.history");
    let push_it = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let file = OpenWal::open(&WalFile::at(&path).unwrap()).unwrap();
        let writer = Writer {
            token: "0123456789abcdef".to_owned(),
            former: None,
            host: "here".to_owned(),
            grace: Duration::from_secs(900),
            takes_over: None,
            follows: false,
        };
        let facts = LaneFacts::of(&site.server.control);
        let options = PushOptions { level: 1, threads: 1 };
        push(|| sound.lane_for(&facts), &facts, &file, &writer, options)
    };
    let (first, second) =
        ("1\t0/900000\tno recovery target specified\n", "1\t0/A00000\tno recovery target specified\n");
    push_it(first).unwrap();
    assert!(matches!(push_it(second), Err(PushError::Conflict { .. })));
    assert_eq!(push_it(first).unwrap().pushed, Pushed::AlreadyStored);
    let lane = sound.lane_for(&LaneFacts::of(&site.server.control)).unwrap();
    assert_eq!(lane.contested().unwrap().len(), 1);
    let history = lane.history(crate::pg::timeline::TimelineId::new(2).unwrap()).unwrap().unwrap();
    assert_eq!(history.forks()[0].at.to_string(), "0/900000");
}
