//! What a thread encodes with: a buffer for the part it reads, the frames that it made, and a compressor's tables.
//!
//! To make them anew costs a few thousand page faults a segment, so a process that archives one segment after the other
//! keeps some; one that is idle lets go of them by [`clear`], and one that turned to other work by [`let_go_unused`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::room;
use super::FRAME_BYTES;
use super::frame::Compressor;

/// Benches that are kept.
const KEPT: usize = 4;
/// Room for frames that is kept: what WAL becomes that compresses well.
const ROOM_KEPT: usize = 4 << 20;

static IDLE: Mutex<Vec<Bench>> = Mutex::new(Vec::new());

pub(super) struct Bench {
    level: i32,
    /// Whether it was used since [`let_go_unused`] looked.
    used: bool,
    pub raw: Vec<u8>,
    pub frames: Vec<u8>,
    pub compressor: Compressor,
}

impl Bench {
    /// Returns one that was put back, or a new one.
    pub fn take(level: i32) -> Self {
        let known = {
            let mut idle = idle();
            let place = idle.iter().position(|bench| bench.level == level);
            place.map(|place| idle.swap_remove(place))
        };
        known.unwrap_or_else(|| Self {
            level,
            used: true,
            raw: vec![0; FRAME_BYTES],
            frames: Vec::new(),
            compressor: Compressor::for_wal(level),
        })
    }

    /// Lets the next one who encodes have it.
    pub fn put_back(mut self) {
        self.used = true;
        self.frames.clear();
        self.frames.shrink_to(ROOM_KEPT);
        let mut idle = idle();
        idle.push(self);
        // Those of a level that is not used any more go first.
        let more = idle.len().saturating_sub(KEPT);
        idle.drain(..more);
    }
}

/// Lets go of all that is kept to read or to write files with.
pub fn clear() {
    idle().clear();
    room::clear();
}

/// Lets go of what nobody used since this was called last.
pub fn let_go_unused() {
    idle().retain_mut(|bench| std::mem::take(&mut bench.used));
    room::let_go_unused();
}

fn idle() -> MutexGuard<'static, Vec<Bench>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}
