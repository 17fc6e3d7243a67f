//! Waiting with a limit, and how much work a run may do.

use std::time::{Duration, Instant};

/// Waits until `reached` answers true; panics with `what` when `limit` has passed first.
#[track_caller]
pub fn within(limit: Duration, mut reached: impl FnMut() -> bool, what: &str) {
    let started = Instant::now();
    while !reached() {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Tells whether this is the long run (`make soak`): the same tests, with more seeds, targets and crash points.
pub fn soaking() -> bool {
    std::env::var_os("WALVAULT_SOAK").is_some_and(|value| value == "1")
}
