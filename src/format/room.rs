//! Room for what is decompressed, and for objects that are put together, kept for the next file.
//!
//! A fresh buffer costs a page fault for each of its pages, which for a segment is a good part of the time that it takes to
//! come out or to be stored; a process that does so with one segment after the other uses a buffer again. One that is idle
//! lets go of them by [`clear`], and one that turned to other work by [`let_go_unused`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Buffers that are kept: for as many as fetch or archive at a time, mostly.
const KEPT: usize = 2;
/// Most bytes of one that is kept: a frame of a segment.
const LARGEST: usize = 4 << 20;

static IDLE: Mutex<Idle> = Mutex::new(Idle(Vec::new()));

struct Idle(Vec<Kept>);

struct Kept {
    bytes: Vec<u8>,
    /// Whether it was used since [`let_go_unused`] looked.
    used: bool,
}

/// A buffer that is kept for the next one when it is dropped. What is in it is left of whoever had it before.
pub(super) struct Room(Vec<u8>);

impl AsRef<[u8]> for Room {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Room {
    /// Returns one that was left, or a new one.
    pub fn take() -> Self {
        Self(idle().0.pop().map(|kept| kept.bytes).unwrap_or_default())
    }

    /// Returns the buffer itself, empty.
    pub fn empty(mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.0);
        bytes.clear();
        bytes
    }

    /// Returns bytes whose memory is kept once nobody has them any more.
    pub fn shared(bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Self(bytes))
    }

    /// Returns its first `len` bytes.
    pub fn first(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len {
            // No more than that: what is too large is not kept.
            self.0.reserve_exact(len - self.0.len());
            self.0.resize(len, 0);
        }
        &mut self.0[..len]
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        idle().keep(std::mem::take(&mut self.0));
    }
}

impl Idle {
    fn keep(&mut self, bytes: Vec<u8>) {
        if bytes.capacity() > 0 && bytes.capacity() <= LARGEST && self.0.len() < KEPT {
            self.0.push(Kept { bytes, used: true });
        }
    }

    fn let_go_unused(&mut self) {
        self.0.retain_mut(|kept| std::mem::take(&mut kept.used));
    }
}

/// Lets go of all that is kept.
pub(super) fn clear() {
    idle().0.clear();
}

/// Lets go of what nobody took since this was called last.
pub(super) fn let_go_unused() {
    idle().let_go_unused();
}

fn idle() -> MutexGuard<'static, Idle> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_buffers_of_a_usual_size_are_kept_for_as_long_as_they_are_used() {
        let mut idle = Idle(Vec::new());
        idle.keep(vec![0; LARGEST + 1]);
        assert!(idle.0.is_empty());
        (0..=KEPT).for_each(|_| idle.keep(vec![0; LARGEST]));
        assert_eq!(idle.0.len(), KEPT);
        idle.let_go_unused();
        assert_eq!(idle.0.len(), KEPT, "they were used since");
        let taken = idle.0.pop().expect("one that is kept").bytes;
        idle.keep(taken);
        idle.let_go_unused();
        assert_eq!(idle.0.len(), 1, "nobody took the other");
        idle.let_go_unused();
        assert!(idle.0.is_empty());
    }

    #[test]
    fn an_objects_memory_is_room_again_and_not_before_nobody_has_it() {
        let bytes = Room::shared(b"an object".to_vec());
        let (place, other) = (bytes.as_ptr(), bytes.clone());
        drop(bytes);
        assert!(idle().0.iter().all(|kept| kept.bytes.as_ptr() != place), "somebody has it");
        drop(other);
        // What was left in it is nobody's any more. Tests beside this one take from the same.
        assert!(Room(b"left".to_vec()).empty().is_empty());
    }

    #[test]
    fn a_stretch_has_the_length_that_was_asked_for() {
        let mut room = Room::take();
        assert_eq!(room.first(5000).len(), 5000);
        assert_eq!(room.first(10).len(), 10);
        assert_eq!(room.first(70_000).len(), 70_000);
    }
}
