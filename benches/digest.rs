//! Digests pieces of a megabyte one after another and several at once, and prints GB/s and the ratio of the two.
//!
//! `cargo bench --bench digest`. The ways take turns, and the best of many turns counts; the digests are compared. *Hot* is
//! the same memory again, *cold* is memory that no cache holds any more.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use walvault::format::Sha256;
use walvault::format::digest::{PIECE_BYTES, pieces_of};

const TURNS: usize = 40;
/// More than any cache holds.
const MEMORY: usize = 256 << 20;

fn main() {
    let mut word = 1u64;
    let mut next = || {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (word >> 32) as u32
    };
    let memory: Vec<u8> = (0..MEMORY / 4).flat_map(|_| next().to_le_bytes()).collect();
    for cold in [false, true] {
        for pieces in [1, 2, 3, 4, 16] {
            let (alone, together) = measure(&memory, pieces * PIECE_BYTES, cold);
            let speed = |seconds: f64| (pieces * PIECE_BYTES) as f64 / seconds / 1e9;
            println!(
                "{} {pieces:>3} pieces   one after another {:>5.2} GB/s   at once {:>5.2} GB/s   {:.2}x",
                if cold { "cold" } else { "hot " },
                speed(alone),
                speed(together),
                alone / together
            );
        }
    }
}

/// Returns the seconds of one after another and of all at once, in the best turn of each.
fn measure(memory: &[u8], len: usize, cold: bool) -> (f64, f64) {
    let mut stretches = memory.chunks_exact(len).cycle();
    let mut take = || if cold { stretches.next().unwrap_or(memory) } else { &memory[..len] };
    let (mut alone, mut together) = (f64::MAX, f64::MAX);
    for _ in 0..TURNS {
        let stretch = take();
        let (seconds, plain) = timed(|| stretch.chunks(PIECE_BYTES).map(Sha256::of).collect::<Vec<_>>());
        alone = alone.min(seconds);
        let other = take();
        let (seconds, digests) = timed(|| pieces_of(other, other.len()));
        together = together.min(seconds);
        // Not measured: each stretch digested in both ways.
        assert!(pieces_of(stretch, len) == plain, "other digests");
        assert!(other.chunks(PIECE_BYTES).map(Sha256::of).eq(digests), "other digests");
    }
    (alone, together)
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let started = Instant::now();
    let made = black_box(work());
    (started.elapsed().as_secs_f64(), made)
}
