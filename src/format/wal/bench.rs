//! What a thread encodes with: a buffer for the part it reads, the frames that it made, and a compressor's tables; and the
//! memory that an object is put together in.
//!
//! To make them anew costs a few thousand page faults a segment, so a process that archives one segment after the other
//! keeps some; one that is idle lets go of them by [`clear`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::FRAME_BYTES;
use super::frame::Compressor;

/// Benches that are kept.
const KEPT: usize = 4;
/// Room for frames that is kept: what WAL becomes that compresses well.
const ROOM_KEPT: usize = 4 << 20;

static IDLE: Mutex<Vec<Bench>> = Mutex::new(Vec::new());
static ROOMS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

pub(super) struct Bench {
    level: i32,
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
            raw: vec![0; FRAME_BYTES],
            frames: Vec::new(),
            compressor: Compressor::for_wal(level),
        })
    }

    /// Lets the next one who encodes have it.
    pub fn put_back(mut self) {
        self.frames.clear();
        self.frames.shrink_to(ROOM_KEPT);
        let mut idle = idle();
        idle.push(self);
        // Those of a level that is not used any more go first.
        let more = idle.len().saturating_sub(KEPT);
        idle.drain(..more);
    }
}

/// Returns memory for an object, empty.
pub(super) fn room() -> Vec<u8> {
    rooms().pop().unwrap_or_default()
}

/// Returns an object whose memory is kept once nobody has it any more.
pub(super) fn shared(object: Vec<u8>) -> Bytes {
    Bytes::from_owner(Room(object))
}

struct Room(Vec<u8>);

impl AsRef<[u8]> for Room {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut room = std::mem::take(&mut self.0);
        let mut rooms = rooms();
        if room.capacity() <= ROOM_KEPT && rooms.len() < KEPT {
            room.clear();
            rooms.push(room);
        }
    }
}

/// Lets go of what is kept.
pub fn clear() {
    idle().clear();
    rooms().clear();
}

fn rooms() -> MutexGuard<'static, Vec<Vec<u8>>> {
    ROOMS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn idle() -> MutexGuard<'static, Vec<Bench>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}
