//! What was fetched ahead, and the disk that PostgreSQL wants it on.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

impl Site {
    /// Has a segment fetched for a recovery, and compares it.
    fn recovers(&self, index: usize) {
        let (name, raw) = &self.segments[index];
        let (asked, destination) = self.fetch(&self.client(), &name.to_string(), &Caller::Recovery(None));
        assert!(matches!(asked, Asked::Answered(Brought::InPlace)), "{asked:?}");
        assert!(&fs::read(destination).unwrap() == raw, "{name}");
    }

    /// Has `sync` answer for the disk; returns how often it is asked.
    fn syncing_by(&self, sync: fn(&File) -> std::io::Result<()>) -> Arc<AtomicU32> {
        let asked = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&asked);
        let counting = move |file: &File| {
            let outcome = sync(file);
            counted.fetch_add(1, Ordering::SeqCst);
            outcome
        };
        assert!(self.house.prefetch.sync.instead.set(Box::new(counting)).is_ok());
        asked
    }
}

#[test]
fn what_is_fetched_ahead_is_durable_before_it_is_asked_for() {
    let site = Site::new(1);
    site.archive();
    let synced = site.syncing_by(File::sync_data);
    let running = site.serve();
    site.recovers(0);
    site.wait_fetched_ahead(2);
    // Not the one that the recovery waited for.
    assert_eq!(synced.load(Ordering::SeqCst), 2);
    (1..3).for_each(|index| site.recovers(index));
    assert_eq!(site.house.metrics.count(Count::PrefetchHits), 2);
    running.stop();
}

#[test]
fn what_the_disk_did_not_take_is_not_handed_over() {
    let site = Site::new(1);
    site.archive();
    // One at a time, so that none comes whose sync was left out because somebody waits.
    site.house.set_limits(Limits { prefetch: 1 << 20, ..site.house.limits() });
    let failed = site.syncing_by(|_| Err(std::io::ErrorKind::Other.into()));
    let running = site.serve();
    site.recovers(0);
    wait_until("synced", || failed.load(Ordering::SeqCst) > 0);
    site.recovers(1);
    assert_eq!(site.house.metrics.count(Count::PrefetchHits), 0);
    running.stop();
}
