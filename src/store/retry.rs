//! How long a verb may take, what is tried again, and when.
//!
//! Retry is decided here and nowhere else: what reaches a caller has already been tried as often as it is worth.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::error::Failure;
use crate::error::ErrorKind;

/// How long a verb may take and how it is tried again.
///
/// Only [`ErrorKind::Unavailable`] and [`ErrorKind::Busy`] are tried again, and a try that got no answer in time.
/// A verb returns within `budget`; one that creates an object, within `budget` and the time of its body at `slowest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Longest time one attempt may go without an answer, not counting its body.
    pub attempt: Duration,
    /// Longest time all attempts and pauses together may take, not counting the body.
    pub budget: Duration,
    /// Most attempts, at least one.
    pub attempts: u32,
    /// Pause after the first failure, doubled after each further one.
    pub first_pause: Duration,
    /// Longest pause.
    pub max_pause: Duration,
    /// The transfer rate, in bytes per second, below which a connection counts as stuck: a body of n bytes may take
    /// n / `slowest` seconds more, so that a large object on a slow line is not given up again and again.
    pub slowest: u64,
    /// Seed of the pauses' jitter; `None` takes one from the operating system.
    pub seed: Option<u64>,
}

impl Default for RetryPolicy {
    /// Attempts of 30 s within 60 s, pauses from 100 ms to 5 s, bodies at 4 MiB/s or faster.
    fn default() -> Self {
        Self {
            attempt: Duration::from_secs(30),
            budget: Duration::from_secs(60),
            attempts: 64,
            first_pause: Duration::from_millis(100),
            max_pause: Duration::from_secs(5),
            slowest: 4 << 20,
            seed: None,
        }
    }
}

impl RetryPolicy {
    /// Returns a policy of at most `attempts` attempts with pauses of microseconds and a fixed seed, for tests.
    pub fn brisk(attempts: u32) -> Self {
        Self {
            attempts,
            first_pause: Duration::from_micros(10),
            max_pause: Duration::from_micros(100),
            seed: Some(1),
            ..Self::default()
        }
    }

    /// Returns the pauses between attempts, without end: pause n is between half of and all of
    /// `first_pause` × 2ⁿ, at most `max_pause`. The same seed gives the same pauses.
    pub(super) fn pauses(&self, seed: u64) -> impl Iterator<Item = Duration> + use<> {
        let (first, longest) = (self.first_pause, self.max_pause);
        (0u32..).map(move |n| {
            let whole = first.saturating_mul(1 << n.min(30)).min(longest);
            whole / 2 + (whole / 2).mul_f64(fraction(seed, n))
        })
    }

    /// Returns how long one attempt, and all of them, may take.
    fn times(&self, effort: Effort) -> Times {
        let attempt = if effort.in_pieces { self.budget } else { self.attempt + self.body_time(effort.attempt) };
        Times { attempt, budget: self.budget + self.body_time(effort.budget) }
    }

    fn body_time(&self, bytes: u64) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1000) / self.slowest.max(1))
    }
}

/// How much a verb moves, and so how long it may take beyond the policy's own times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Bytes whose time each attempt may take longer.
    attempt: u64,
    /// Bytes whose time all attempts together may take longer.
    budget: u64,
    /// Whether the attempt times its own pieces; then only the budget bounds the whole.
    in_pieces: bool,
}

impl Effort {
    /// A question and an answer without a body to speak of.
    pub(super) const SMALL: Self = Self { attempt: 0, budget: 0, in_pieces: false };
    /// An answer that comes in pieces, each timed by the attempt itself.
    pub(super) const PIECES: Self = Self { in_pieces: true, ..Self::SMALL };

    /// A body of `bytes` that is at hand.
    pub(super) const fn body(bytes: u64) -> Self {
        Self { attempt: bytes, budget: bytes, in_pieces: false }
    }

    /// A body of `bytes` at most, by somebody's word: the budget stays what it is.
    pub(super) const fn up_to(bytes: u64) -> Self {
        Self { attempt: bytes, budget: 0, in_pieces: false }
    }
}

/// How long a verb may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    attempt: Duration,
    budget: Duration,
}

/// A verb that was given up.
#[derive(Debug)]
pub(super) struct GaveUp {
    pub(super) failure: Failure,
    pub(super) attempts: u32,
}

/// Makes attempts until one succeeds, fails for good, or time or attempts run out.
pub(super) async fn run<T, A>(
    policy: &RetryPolicy,
    seed: u64,
    effort: Effort,
    mut attempt: impl FnMut() -> A,
) -> Result<T, GaveUp>
where
    A: Future<Output = Result<T, Failure>>,
{
    let Times { budget, attempt: longest } = policy.times(effort);
    let end = Instant::now() + budget;
    let mut pauses = policy.pauses(seed);
    let mut told: Option<Failure> = None;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let began = Instant::now();
        let until = end.min(began + longest);
        let cut_short = until < began + longest;
        let failure = match timeout_at(until, attempt()).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(failure)) => failure,
            // An earlier failure that said why is worth more than the silence of a try the budget cut short.
            Err(_) => told.take().filter(|_| cut_short).unwrap_or_else(|| Failure::TimedOut(until - began)),
        };
        let pause = pauses.next().unwrap_or_default();
        let over = attempts >= policy.attempts || Instant::now() + pause >= end;
        if over || !worth_another_try(failure.kind()) {
            return Err(GaveUp { failure, attempts });
        }
        told = Some(failure);
        sleep(pause).await;
    }
}

const fn worth_another_try(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Unavailable | ErrorKind::Busy => true,
        ErrorKind::NotFound
        | ErrorKind::Conflict
        | ErrorKind::Denied
        | ErrorKind::Full
        | ErrorKind::Corrupt
        | ErrorKind::Invalid
        | ErrorKind::Cancelled
        | ErrorKind::Internal => false,
    }
}

/// Returns a number from 0 up to 1, evenly spread over all (seed, n).
///
/// Source: the output function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
fn fraction(seed: u64, n: u32) -> f64 {
    (mix(seed.wrapping_add(u64::from(n))) >> 11) as f64 / (1u64 << 53) as f64
}

/// Returns 64 well-mixed bits of `state`.
pub(super) const fn mix(state: u64) -> u64 {
    let z = state.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::store::error::BackendError;
    use std::cell::Cell;

    fn failing(kind: ErrorKind) -> Failure {
        BackendError::new(kind, "as told").into()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    /// Runs a verb that fails as `kind` `failures` times; returns whether it succeeded, and its attempts.
    fn tries(policy: &RetryPolicy, kind: ErrorKind, failures: u32) -> (bool, u32) {
        let made = Cell::new(0);
        let outcome = block_on(run(policy, 1, Effort::SMALL, || {
            made.set(made.get() + 1);
            let fails = made.get() <= failures;
            async move { if fails { Err(failing(kind)) } else { Ok(()) } }
        }));
        if let Err(gave_up) = &outcome {
            assert_eq!(gave_up.attempts, made.get());
            assert_eq!(gave_up.failure.kind(), kind);
        }
        (outcome.is_ok(), made.get())
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        use ErrorKind::*;
        for kind in [Unavailable, Busy] {
            assert_eq!(tries(&RetryPolicy::brisk(5), kind, 3), (true, 4), "{kind}");
            assert_eq!(tries(&RetryPolicy::brisk(5), kind, 9), (false, 5), "{kind}");
        }
        for kind in [NotFound, Conflict, Denied, Full, Corrupt, Invalid, Cancelled, Internal] {
            assert_eq!(tries(&RetryPolicy::brisk(5), kind, 1), (false, 1), "{kind}");
        }
    }

    #[test]
    fn pauses_double_up_to_their_longest_and_keep_at_least_half() {
        let policy = RetryPolicy { seed: None, ..RetryPolicy::default() };
        for seed in 0..200 {
            let pauses: Vec<_> = policy.pauses(seed).take(40).collect();
            for (n, pause) in pauses.iter().enumerate() {
                let whole = Duration::from_millis((100u64 << n.min(30)).min(5000));
                assert!((whole / 2..=whole).contains(pause), "seed {seed}, pause {n}: {pause:?}");
            }
        }
        assert_eq!(policy.pauses(7).nth(3), policy.pauses(7).nth(3));
        let spread: std::collections::BTreeSet<_> = (0..100).filter_map(|seed| policy.pauses(seed).next()).collect();
        assert!(spread.len() > 90, "pauses of different processes hardly differ: {}", spread.len());
    }

    #[test]
    fn the_budget_bounds_all_attempts_together() {
        let policy = RetryPolicy {
            attempt: Duration::from_millis(20),
            budget: Duration::from_millis(100),
            ..RetryPolicy::brisk(u32::MAX)
        };
        let hanging = |policy: &RetryPolicy| {
            let began = std::time::Instant::now();
            let gave_up = block_on(run::<(), _>(policy, 1, Effort::SMALL, std::future::pending));
            let gave_up = gave_up.expect_err("it never answers");
            assert!(matches!(gave_up.failure, Failure::TimedOut(_)));
            (gave_up.attempts, began.elapsed())
        };
        let (attempts, elapsed) = hanging(&policy);
        // None is shorter than it may be, but the last.
        assert!(elapsed >= policy.budget && attempts <= 6, "{attempts} in {elapsed:?}");
        // However long one attempt may take.
        let (attempts, elapsed) = hanging(&RetryPolicy { attempt: Duration::from_secs(600), ..policy.clone() });
        assert!(elapsed < Duration::from_secs(300) && attempts == 1, "{attempts} in {elapsed:?}");
        // And however much time is left, each attempt ends.
        let patient = RetryPolicy { budget: Duration::from_secs(600), attempts: 3, ..policy };
        let (attempts, elapsed) = hanging(&patient);
        assert!(elapsed < Duration::from_secs(300) && attempts == 3, "{attempts} in {elapsed:?}");
    }

    #[test]
    fn a_body_lengthens_the_attempt_by_its_own_time() {
        let policy = RetryPolicy {
            attempt: Duration::from_millis(20),
            budget: Duration::from_millis(20),
            slowest: 1000,
            ..RetryPolicy::brisk(1)
        };
        let slow = || async {
            sleep(Duration::from_millis(100)).await;
            Ok(())
        };
        assert!(block_on(run(&policy, 1, Effort::body(500), slow)).is_ok());
        let times = |policy: &RetryPolicy, effort| {
            let Times { attempt, budget } = policy.times(effort);
            (attempt.as_millis(), budget.as_millis())
        };
        assert_eq!(times(&policy, Effort::SMALL), (20, 20));
        assert_eq!(times(&policy, Effort::up_to(500)), (520, 20), "the budget is not stretched by a guess");
        assert_eq!(times(&policy, Effort::body(500)), (520, 520));
        let patient = RetryPolicy { budget: Duration::from_secs(9), ..policy.clone() };
        assert_eq!(times(&patient, Effort::SMALL), (20, 9000));
        assert_eq!(times(&patient, Effort::up_to(500)), (520, 9000));
        assert_eq!(times(&patient, Effort::PIECES), (9000, 9000));
        assert_eq!(RetryPolicy::default().body_time(16 << 20), Duration::from_secs(4));
        assert!(RetryPolicy { slowest: 0, ..policy }.body_time(u64::MAX) > Duration::ZERO);
    }

    #[test]
    fn a_try_cut_short_by_the_budget_does_not_hide_the_cause() {
        let policy =
            RetryPolicy { attempt: Duration::from_secs(90), budget: Duration::from_secs(2), ..RetryPolicy::brisk(9) };
        let made = Cell::new(0);
        let gave_up = block_on(run::<(), _>(&policy, 1, Effort::SMALL, || {
            made.set(made.get() + 1);
            let first = made.get() == 1;
            async move { if first { Err(failing(ErrorKind::Busy)) } else { std::future::pending().await } }
        }));
        assert!(matches!(gave_up, Err(GaveUp { failure, attempts: 2 }) if failure.kind() == ErrorKind::Busy));
    }
}
