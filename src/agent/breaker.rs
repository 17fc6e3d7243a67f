//! Failing at once while the store fails anyway.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row after which the store counts as gone.
const FAILURES: u32 = 3;
/// How often it is tried again then.
const AGAIN: Duration = Duration::from_secs(15);

/// What is known of the store's health.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    last: String,
    tried: Option<Instant>,
}

impl Breaker {
    /// Returns why there is no use in trying at `now`; whoever hears `None` tries.
    pub fn refuses(&self, now: Instant) -> Option<String> {
        let mut state = self.state();
        if state.failures < FAILURES {
            return None;
        }
        match state.tried {
            Some(tried) if now.duration_since(tried) < AGAIN => Some(format!(
                "the store failed {} times in a row and is tried again every {} s; it last said: {}",
                state.failures,
                AGAIN.as_secs(),
                state.last
            )),
            _ => {
                state.tried = Some(now);
                None
            }
        }
    }

    /// Whether the store counts as gone, tried again or not.
    pub fn is_open(&self) -> bool {
        self.state().failures >= FAILURES
    }

    /// Notes that the store failed; returns whether that made it count as gone.
    pub fn failed(&self, now: Instant, what: &str) -> bool {
        let mut state = self.state();
        state.failures += 1;
        state.last = what.to_owned();
        state.tried = Some(now);
        state.failures == FAILURES
    }

    /// Notes that the store works; returns whether it counted as gone.
    pub fn worked(&self) -> bool {
        let before = std::mem::take(&mut *self.state());
        before.failures >= FAILURES
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_three_failures_one_in_fifteen_seconds_tries() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!([1, 2, 3].map(|second| breaker.failed(at(second), "disk gone")), [false, false, true]);
        assert!(breaker.refuses(at(4)).is_some_and(|why| why.contains("disk gone")));
        assert!(breaker.refuses(at(17)).is_some());
        assert_eq!(breaker.refuses(at(18)), None);
        assert!(breaker.refuses(at(18)).is_some(), "one tries, not all");
        assert!(!breaker.failed(at(20), "disk gone"));
        assert!(breaker.refuses(at(34)).is_some());
        assert!(breaker.worked());
        assert_eq!(breaker.refuses(at(34)), None);
        assert!(!breaker.worked());
    }
}
