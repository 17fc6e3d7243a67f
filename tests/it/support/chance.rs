//! Numbers that look like chance: the same ones each time, but in a soak. The seed is printed when a test fails, and
//! `WALVAULT_SEED` sets it.

use std::cell::Cell;

use super::soaking;

/// The seed of every run that is no soak.
const USUAL: u64 = 20_261_121;

/// A source of numbers.
#[derive(Debug)]
pub struct Chance(Cell<u64>);

impl Chance {
    /// Begins with the usual seed, with a new one in a soak, or with that of `WALVAULT_SEED`.
    #[allow(clippy::print_stderr, reason = "the test run shows it when the test fails")]
    pub fn new() -> Self {
        let given = std::env::var("WALVAULT_SEED").ok();
        let seed = given.map_or_else(
            || if soaking() { getrandom::u64().expect("the system has chance") } else { USUAL },
            |seed| seed.parse().expect("WALVAULT_SEED is a whole number"),
        );
        eprintln!("WALVAULT_SEED={seed}");
        Self(Cell::new(seed))
    }

    /// Returns a number below `end`, which must not be 0.
    ///
    /// Source: Sebastiano Vigna, `splitmix64.c`.
    pub fn below(&self, end: u64) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// Returns one of `several`, which must not be empty.
    pub fn pick<'a, T>(&self, several: &'a [T]) -> &'a T {
        &several[self.below(several.len() as u64) as usize]
    }
}
