//! How fast a backup may read: one budget that all its workers share.
//!
//! Every read takes the next free stretch of time, as long as its bytes are worth at the rate, and begins when that
//! stretch does. Stretches do not overlap, so no more is ever read than the rate allows for the time that has passed,
//! but for the one read under way; and time in which nobody read is not made up for.

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Slowest rate that makes sense: a frame in four seconds.
const LEAST: u64 = 64 << 10;
/// Longest sleep before a worker looks whether the backup has failed meanwhile.
const NAP: Duration = Duration::from_millis(500);

/// Bytes in a second, at least 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u64);

/// Why a text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// Not a number with a unit.
    #[error("write bytes per second as a number, or with KiB, MiB or GiB, such as 50MiB")]
    Form,
    /// Too slow, or past all numbers.
    #[error("a rate is at least 64KiB a second, and less than 16 EiB")]
    Range,
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            // MB is 10^6 to some and 2^20 to PostgreSQL: nobody is made to guess.
            _ => return Err(RateError::Form),
        };
        if number.is_empty() {
            return Err(RateError::Form);
        }
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        bytes.filter(|bytes| *bytes >= LEAST).map(Self).ok_or(RateError::Range)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(shift, _)| self.0.trailing_zeros() >= *shift) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Rate {
    /// Returns the bytes.
    pub(super) fn bytes(self) -> u64 {
        self.0
    }

    /// How long so many bytes take.
    fn time_of(self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.0));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The budget.
#[derive(Debug)]
pub(super) struct RateLimit {
    rate: Rate,
    started: Instant,
    /// When the next read may begin, since `started`.
    free_at: Mutex<Duration>,
}

impl RateLimit {
    pub fn new(rate: Rate) -> Self {
        Self { rate, started: Instant::now(), free_at: Mutex::new(Duration::ZERO) }
    }

    /// Waits until so many bytes may be read, or the backup has failed.
    pub fn wait(&self, bytes: u64, failed: impl Fn() -> bool) {
        let begin = self.take(bytes, self.started.elapsed());
        while !failed() {
            match begin.checked_sub(self.started.elapsed()) {
                Some(left) if !left.is_zero() => std::thread::sleep(left.min(NAP)),
                _ => break,
            }
        }
    }

    /// Takes the next free stretch for so many bytes and returns when it begins.
    fn take(&self, bytes: u64, now: Duration) -> Duration {
        let mut free_at = self.free_at.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let begin = now.max(*free_at);
        *free_at = begin.saturating_add(self.rate.time_of(bytes));
        begin
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rate_has_a_unit_that_nobody_can_mistake() {
        for (text, bytes, shown) in [
            ("50MiB", 50 << 20, "50MiB"),
            ("65536", 65_536, "64KiB"),
            ("65537B", 65_537, "65537B"),
            ("2GiB", 2 << 30, "2GiB"),
            ("1024KiB", 1 << 20, "1MiB"),
        ] {
            let rate: Rate = text.parse().expect("a rate");
            assert_eq!((rate.0, rate.to_string().as_str()), (bytes, shown));
        }
        for text in ["", "MiB", "50MB", "50 MiB", "50mib", "-1", "1.5MiB", "50M", "x"] {
            assert_eq!(text.parse::<Rate>(), Err(RateError::Form), "{text:?}");
        }
        for text in ["0", "65535", "63KiB", "99999999999999999999", "99999999999GiB"] {
            assert_eq!(text.parse::<Rate>(), Err(RateError::Range), "{text:?}");
        }
    }

    proptest! {
        /// Workers on a clock of their own making: each reads, is busy for a while, and reads again.
        #[test]
        fn whatever_the_workers_do_no_more_is_read_than_time_allows(
            rate in LEAST..1 << 32,
            workers in prop::collection::vec(prop::collection::vec((1u64..1 << 20, 0u64..2_000_000_000), 1..20), 1..6),
        ) {
            let limit = RateLimit::new(Rate(rate));
            let mut clocks = vec![(Duration::ZERO, 0); workers.len()];
            let mut reads = Vec::new();
            loop {
                let next = (0..workers.len()).filter(|worker| clocks[*worker].1 < workers[*worker].len());
                let Some(worker) = next.min_by_key(|worker| clocks[*worker].0) else { break };
                let (now, step) = clocks[worker];
                let (bytes, busy) = workers[worker][step];
                let begin = limit.take(bytes, now);
                prop_assert!(begin >= now);
                reads.push((begin, bytes));
                clocks[worker] = (begin + Duration::from_nanos(busy), step + 1);
            }
            let mut before = 0u128;
            for (begin, bytes) in &reads {
                prop_assert!(before * 1_000_000_000 <= begin.as_nanos() * u128::from(rate), "{before} bytes by {begin:?}");
                before += u128::from(*bytes);
            }
        }

        /// Workers that do nothing but wait use all that is allowed: the limit costs no more than it says.
        #[test]
        fn the_whole_budget_can_be_used(rate in LEAST..1 << 32, bytes in prop::collection::vec(1u64..1 << 20, 1..50)) {
            let limit = RateLimit::new(Rate(rate));
            let mut now = Duration::ZERO;
            let mut before = 0u128;
            for bytes in bytes {
                now = limit.take(bytes, now);
                // Each read rounds up to a nanosecond.
                prop_assert!(now.as_nanos() <= before * 1_000_000_000 / u128::from(rate) + 51);
                before += u128::from(bytes);
            }
        }
    }

    #[test]
    fn a_failed_backup_does_not_wait() {
        let limit = RateLimit::new(Rate(LEAST));
        limit.wait(u64::MAX / 4, || true);
        limit.wait(1, || true);
    }
}
