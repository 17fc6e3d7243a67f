//! The copy beside a disk that answers more slowly for a while.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::memory::InMemory;

use super::*;
use crate::backup::pace::Disk;
use crate::pg::data_directory::DataDirectory;
use crate::repo::{LaneFacts, Repository};
use crate::store::{RetryPolicy, Store};

/// Reads after which a judgement is made.
const READS: usize = 8;
const QUIET: Duration = Duration::from_millis(2);
const BUSY: Duration = Duration::from_millis(80);
/// Reads: first on a quiet disk, then beside a server that needs it, then on a quiet one again.
const SLOW: std::ops::Range<usize> = 2 * READS..6 * READS;
const IN_ALL: usize = 15 * READS;

/// A disk that takes as long as it is told to, and notes before which read it was left alone.
#[derive(Default)]
struct Played {
    reads: AtomicUsize,
    rests: Mutex<Vec<usize>>,
}

impl Disk for Arc<Played> {
    fn took(&self, read: Read, _: Option<Duration>) -> Option<Duration> {
        assert_eq!(read, Read::Frame);
        let number = self.reads.fetch_add(1, Ordering::Relaxed);
        Some(if SLOW.contains(&number) { BUSY } else { QUIET })
    }

    fn rest(&self, pause: Duration) {
        assert!(!pause.is_zero());
        self.rests.lock().unwrap().push(self.reads.load(Ordering::Relaxed));
    }
}

#[test]
fn a_copy_rests_before_each_read_while_the_disk_is_slow_and_for_some_time_after() {
    let root = tempfile::tempdir().unwrap();
    for folder in ["base/5", "pg_tblspc"] {
        std::fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    let file = File::create(root.path().join("base/5/16384")).unwrap();
    file.set_len((IN_ALL * FRAME_BYTES) as u64).unwrap();
    let store = Store::over(Arc::new(InMemory::new()), "memory", RetryPolicy::brisk(1)).unwrap();
    let (repository, _) = Repository::init(store, "main").unwrap();
    let lane = repository.lane_for(&LaneFacts::sample()).unwrap();
    let shelf = Shelf::new(&lane, "b", 8192, None);
    let (played, progress) = (Arc::new(Played::default()), Progress::default());
    let pace = Pace::over(Box::new(Arc::clone(&played)));
    let source = Source {
        root: root.path(),
        block_size: 8192,
        relation_segment_blocks: 131_072,
        checksums: true,
        start_lsn: Lsn::new(1),
        lending: None,
        rate: None,
        pace: Some(&pace),
        progress: &progress,
    };
    let rules = DataDirectory::new(17, 202_406_281);
    let one = Budget { workers: 1, pack_bytes: 1 << 20 };
    let copied = copy(Walk::new(root.path(), &rules), &source, &shelf, one, 1).unwrap();
    assert_eq!(
        (copied.totals.files, copied.totals.bytes),
        (1, (IN_ALL * FRAME_BYTES) as u64),
        "it copies all the same"
    );

    // From the first eight slow reads on, and until six times as many quick ones brought it back to its full speed.
    let resting: Vec<usize> = (SLOW.start + READS..SLOW.end + 6 * READS).collect();
    assert_eq!(*played.rests.lock().unwrap(), resting);
    let slowed = pace.slowed().unwrap();
    assert!(slowed.paused > Duration::ZERO && (300..=400).contains(&slowed.tenths), "{slowed:?}");
}
