//! What use is made of a process that serves: a helper ends when there is none, or when an agent wants its place.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::house::{House, Stay};
use super::wire::Reply;

/// When it was last of use, and whether somebody else takes over.
#[derive(Debug)]
pub(super) struct UseMade {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    last: Instant,
    over: bool,
}

impl Default for UseMade {
    fn default() -> Self {
        Self { state: Mutex::new(State { last: Instant::now(), over: false }), changed: Condvar::new() }
    }
}

/// A use that is being made; it counts when it begins and when it ends.
pub(super) struct Using<'a>(&'a UseMade);

impl Drop for Using<'_> {
    fn drop(&mut self) {
        self.0.state().last = Instant::now();
    }
}

impl UseMade {
    /// Notes that it is of use.
    pub fn begin(&self) -> Using<'_> {
        self.state().last = Instant::now();
        Using(self)
    }

    /// Returns how long it was of no use.
    pub fn since(&self) -> Duration {
        self.state().last.elapsed()
    }

    /// Notes that somebody else takes over.
    fn end(&self) {
        self.state().over = true;
        self.changed.notify_all();
    }

    /// Waits for so long; returns at once, and `true`, when somebody else takes over.
    pub fn is_over_within(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), time, |state| !state.over);
        waited.unwrap_or_else(PoisonError::into_inner).0.over
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl House {
    /// Lets an agent have the socket, if this is a helper.
    pub(super) fn make_way(&self) -> Reply {
        match self.limits().stay {
            Stay::UntilIdle(_) => {
                self.use_made.end();
                Reply::MakingWay
            }
            Stay::Resident => Reply::Declined { reason: "an agent makes way for nobody".to_owned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_counts_until_its_end_and_whoever_takes_over_is_heard_at_once() {
        let made = UseMade::default();
        let begun = made.begin();
        std::thread::sleep(Duration::from_millis(30));
        assert!(made.since() >= Duration::from_millis(30));
        drop(begun);
        assert!(!made.is_over_within(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| made.is_over_within(Duration::from_secs(600)));
            made.end();
            assert!(waiting.join().expect("no panic"));
        });
    }
}
