//! How fast a backup goes beside a server that needs the disk: slower, once the disk answers more slowly than when it was
//! quiet.
//!
//! Measured is how long the backup's own reads take that find nothing in memory, against the quickest that they were. The
//! kernel's figures of pressure would tell less: the backup's own waiting is in them. Half the speed when reads take several
//! times as long; more again, step by step, once they do not.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Reads from which one judgement is made.
const READS: usize = 8;
/// What is too slow: so many times the quiet time, and no less than this.
const TIMES: u32 = 4;
const NOTICEABLE: Duration = Duration::from_millis(10);
/// What is quick again.
const QUICK_TIMES: u32 = 2;
/// The least speed, of a hundred.
const LEAST: u32 = 12;
/// The quiet time is forgotten at so much of a hundred with every judgement: what lasts is the disk, and not the server.
const FORGOTTEN: u32 = 1;
/// Longest pause at once.
const LONGEST: Duration = Duration::from_secs(1);

/// What was read: they take different times on a quiet disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A small file.
    Small,
    /// A frame of a large one.
    Frame,
}

/// How a backup slowed itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slowed {
    /// How long its threads paused, all together.
    pub paused: Duration,
    /// How many times as long as on the quiet disk reads took at worst, in tenths.
    pub tenths: u64,
}

/// The pace of one backup, for all its threads.
pub(super) struct Pace {
    state: Mutex<State>,
    disk: Box<dyn Disk>,
}

/// What is measured, and what is done about it.
pub(super) trait Disk: Send + Sync {
    /// Returns how long a read took that the disk was asked for; `measured` is that, if it was.
    fn took(&self, read: Read, measured: Option<Duration>) -> Option<Duration>;

    /// Leaves the disk to the server for a while.
    fn rest(&self, pause: Duration);
}

/// The disk as it is.
struct Real;

impl Disk for Real {
    fn took(&self, _: Read, measured: Option<Duration>) -> Option<Duration> {
        measured
    }

    fn rest(&self, pause: Duration) {
        std::thread::sleep(pause);
    }
}

struct State {
    judge: Judge,
    slowed: Slowed,
}

/// What is decided, from a series of times.
struct Judge {
    kinds: [Kind; 2],
    /// Of a hundred.
    speed: u32,
}

#[derive(Default)]
struct Kind {
    recent: VecDeque<Duration>,
    quiet: Option<Duration>,
}

impl Pace {
    pub fn new() -> Self {
        Self::over(Box::new(Real))
    }

    pub fn over(disk: Box<dyn Disk>) -> Self {
        let slowed = Slowed { paused: Duration::ZERO, tenths: 10 };
        Self { state: Mutex::new(State { judge: Judge { kinds: Default::default(), speed: 100 }, slowed }), disk }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Notes a read, and how long it took if the disk was asked for it.
    pub fn note(&self, read: Read, measured: Option<Duration>) {
        let Some(took) = self.disk.took(read, measured) else { return };
        let mut state = self.state();
        if let Some(tenths) = state.judge.note(read, took) {
            state.slowed.tenths = state.slowed.tenths.max(tenths);
        }
    }

    /// Pauses a thread that was busy since `began`, if the pace is not the full one, and returns from when on it is busy
    /// again.
    pub fn pause(&self, began: Instant) -> Instant {
        let pause = {
            let mut state = self.state();
            let pause = pause_after(began.elapsed(), state.judge.speed);
            state.slowed.paused += pause;
            pause
        };
        if !pause.is_zero() {
            self.disk.rest(pause);
        }
        Instant::now()
    }

    /// Returns how it slowed the backup, if it did.
    pub fn slowed(&self) -> Option<Slowed> {
        Some(self.state().slowed).filter(|slowed| !slowed.paused.is_zero())
    }
}

/// How long to pause after some time of work, for so much of the full speed.
fn pause_after(busy: Duration, speed: u32) -> Duration {
    (busy * (100 - speed) / speed.max(1)).min(LONGEST)
}

impl Judge {
    /// Takes in a time; returns how many times the quiet time reads take, in tenths, when enough of them came to judge.
    fn note(&mut self, read: Read, took: Duration) -> Option<u64> {
        let kind = &mut self.kinds[read as usize];
        kind.recent.push_back(took);
        if kind.recent.len() < READS {
            return None;
        }
        let mut times: Vec<Duration> = kind.recent.drain(..).collect();
        times.sort_unstable();
        let median = times[READS / 2];
        let quiet = kind.quiet.map_or(median, |quiet| (quiet + quiet * FORGOTTEN / 100).min(median));
        kind.quiet = Some(quiet);
        if median >= quiet * TIMES && median >= NOTICEABLE {
            self.speed = (self.speed / 2).max(LEAST);
        } else if median <= quiet * QUICK_TIMES || median < NOTICEABLE {
            self.speed = (self.speed * 3).div_ceil(2).min(100);
        }
        Some((median.as_nanos() * 10 / quiet.as_nanos().max(1)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Speeds after each judgement over a series of times, each of which holds for one of them.
    fn speeds(series: &[u64]) -> Vec<u32> {
        let mut judge = Judge { kinds: Default::default(), speed: 100 };
        let mut speeds = Vec::new();
        for millis in series {
            for _ in 0..READS {
                judge.note(Read::Frame, ms(*millis));
            }
            speeds.push(judge.speed);
        }
        speeds
    }

    #[test]
    fn it_yields_while_the_disk_is_slow_and_comes_back() {
        assert_eq!(
            speeds(&[3, 4, 3, 30, 40, 50, 60, 3, 3, 3, 3, 3, 3]),
            [100, 100, 100, 50, 25, 12, 12, 18, 27, 41, 62, 93, 100]
        );
        // In between nothing changes.
        assert_eq!(speeds(&[5, 30, 15, 15, 15]), [100, 50, 50, 50, 50]);
    }

    #[test]
    fn what_nobody_notices_or_was_always_so_slows_nothing() {
        // Fifty times as long, and yet quick.
        assert_eq!(speeds(&[0, 5, 9, 1]), [100; 4]);
        // A disk that is slow.
        assert_eq!(speeds(&[80, 100, 90, 120]), [100; 4]);
        // A single slow read, or three, among others.
        let mut judge = Judge { kinds: Default::default(), speed: 100 };
        for round in 0..10 {
            for read in 0..READS {
                judge.note(Read::Frame, if read < 3 && round > 0 { ms(900) } else { ms(3) });
            }
        }
        assert_eq!(judge.speed, 100);
        // Kinds are compared with their own.
        for _ in 0..READS {
            judge.note(Read::Small, ms(90));
        }
        assert_eq!(judge.speed, 100);
    }

    #[test]
    fn a_disk_that_became_slow_for_good_is_the_norm_after_a_while() {
        let speeds = speeds(&[&[5][..], &[40; 200]].concat());
        assert_eq!(speeds[10], LEAST);
        assert_eq!(speeds.last(), Some(&100));
    }

    #[test]
    fn a_pause_gives_the_share_of_time_that_the_speed_leaves_and_never_stops_the_backup() {
        assert_eq!(pause_after(ms(10), 100), Duration::ZERO);
        assert_eq!(pause_after(ms(10), 50), ms(10));
        assert_eq!(pause_after(ms(10), 25), ms(30));
        assert_eq!(pause_after(Duration::from_secs(60), LEAST), LONGEST);
        let pace = Pace::new();
        pace.pause(Instant::now());
        assert_eq!(pace.slowed(), None);
    }
}
