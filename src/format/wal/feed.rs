//! A file on its way to those who encode it: each reads the part that is next, beside the others, and walks its records
//! once those of all parts before it were walked.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::{FRAME_BYTES, PIECE_BYTES, ZERO_TAIL_BYTES};
use crate::pg::page::{all_zero, zero_tail};
use crate::pg::wal_facts::FactsWalk;

/// Bytes read at a time, which a core's own cache holds while they are looked at; a multiple of every size of a page.
pub(super) const STEP_BYTES: usize = 256 * 1024;

/// Something that is read by position, by several threads at a time.
pub trait ReadAt: Sync {
    /// Reads what is at `place` into `buffer`, or the begin of it; returns how many bytes, 0 only at the end.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, buffer: &mut [u8], place: u64) -> io::Result<usize>;

    /// Fills `buffer` with what is from `place` on, as far as it goes; returns how far.
    ///
    /// # Errors
    /// What the system says.
    fn fill_at(&self, buffer: &mut [u8], place: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_at(&mut buffer[filled..], place + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], place: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, place)
    }
}

impl ReadAt for &[u8] {
    fn read_at(&self, buffer: &mut [u8], place: u64) -> io::Result<usize> {
        let rest = self.get(usize::try_from(place).unwrap_or(usize::MAX)..).unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }
}

/// Something that is shown all bytes of a file in their order.
pub(super) trait Walk {
    fn part(&mut self, bytes: &[u8]);
}

impl Walk for FactsWalk {
    fn part(&mut self, bytes: &[u8]) {
        self.part(bytes);
    }
}

/// A file that is read part by part.
pub(super) struct Feed<'a, W = FactsWalk> {
    file: &'a dyn ReadAt,
    /// The part that is taken next.
    next: AtomicUsize,
    walked: Mutex<Walked<W>>,
    passed: Condvar,
}

/// How far the walk is, and how the file ended.
struct Walked<W> {
    walk: Option<W>,
    /// The part whose turn it is.
    turn: usize,
    raw_len: u64,
    /// Set by whose turn it was; no part after it counts.
    end: Option<io::Result<()>>,
}

/// A part in a thread's buffer; of the zeros at its end only those that [`Feed::take`] says.
pub(super) struct Taken {
    pub place: usize,
    pub len: usize,
    /// From here on it is zero.
    pub zeros: usize,
}

impl Taken {
    /// Whether it ends in zeros that are worth a frame of their own.
    pub fn ends_in_zeros(&self) -> bool {
        self.len - self.zeros >= ZERO_TAIL_BYTES
    }
}

/// What was read of a part, and how much of that is in the buffer: what follows it is zero.
struct Read {
    len: usize,
    held: usize,
}

impl<'a, W: Walk> Feed<'a, W> {
    pub fn new(file: &'a dyn ReadAt, walk: Option<W>) -> Self {
        let walked = Mutex::new(Walked { walk, turn: 0, raw_len: 0, end: None });
        Self { file, next: AtomicUsize::new(0), walked, passed: Condvar::new() }
    }

    /// Takes the next part into a buffer of [`FRAME_BYTES`], unless the file has ended. Zeros at its end are in the buffer
    /// only as far as the piece goes in which they begin.
    pub fn take(&self, buffer: &mut [u8]) -> Option<Taken> {
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        // Dropped after the lock, so that it can end what a panic under the lock leaves.
        let waiting = Waiting { feed: self };
        let read = self.read(buffer, place as u64 * FRAME_BYTES as u64);
        // Somebody panicked if that fails: whoever joins that thread goes on with it.
        let mut walked = self.walked.lock().ok()?;
        while walked.turn != place && walked.end.is_none() {
            walked = self.passed.wait(walked).ok()?;
        }
        if walked.end.is_some() {
            return None;
        }
        let taken = match read {
            Ok(Read { len: 0, .. }) => None,
            Ok(read) => {
                walked.pass(buffer, &read);
                Some(Taken { place, len: read.len, zeros: zero_tail(&buffer[..read.held]) })
            }
            Err(error) => {
                walked.end = Some(Err(error));
                None
            }
        };
        walked.turn += 1;
        if walked.end.is_none() && taken.as_ref().is_none_or(|taken| taken.len < buffer.len()) {
            walked.end = Some(Ok(()));
        }
        drop(walked);
        std::mem::forget(waiting);
        self.passed.notify_all();
        taken
    }

    /// Returns the walk and the bytes of all parts, after the last.
    ///
    /// # Errors
    /// If the file could not be read to its end.
    pub fn finish(self) -> io::Result<(Option<W>, u64)> {
        let Walked { walk, raw_len, end, .. } = self.walked.into_inner().unwrap_or_else(PoisonError::into_inner);
        end.unwrap_or(Ok(())).map(|()| (walk, raw_len))
    }

    /// Reads as much of the file from `place` on as the buffer holds.
    fn read(&self, buffer: &mut [u8], place: u64) -> io::Result<Read> {
        let (mut len, mut held) = (0, 0);
        while len < buffer.len() {
            // Over the zeros before: a segment that was switched early goes through one small stretch of memory.
            let room = STEP_BYTES.min(buffer.len() - len);
            let filled = self.file.fill_at(&mut buffer[held..held + room], place + len as u64)?;
            if !all_zero(&buffer[held..held + filled]) {
                if len > held {
                    buffer.copy_within(held..held + filled, len);
                    buffer[held..len].fill(0);
                }
                held = len + filled;
            }
            len += filled;
            if filled < room {
                break;
            }
        }
        // A piece that is not all zeros is digested as it is, and so is the last one of a file.
        let piece = if len.is_multiple_of(PIECE_BYTES) { held.next_multiple_of(PIECE_BYTES) } else { len };
        buffer[held..piece.max(held + STEP_BYTES).min(len)].fill(0);
        Ok(Read { len, held })
    }
}

impl<W: Walk> Walked<W> {
    fn pass(&mut self, buffer: &[u8], read: &Read) {
        self.raw_len += read.len as u64;
        let Some(walk) = &mut self.walk else { return };
        if read.held > 0 {
            walk.part(&buffer[..read.held]);
        }
        for zeros in (read.held..read.len).step_by(STEP_BYTES) {
            let zeros = STEP_BYTES.min(read.len - zeros);
            walk.part(&buffer[read.held..read.held + zeros]);
        }
    }
}

/// A thread that has taken a part and is not done with its turn; if it panics, the others do not wait for it.
struct Waiting<'a, W> {
    feed: &'a Feed<'a, W>,
}

impl<W> Drop for Waiting<'_, W> {
    fn drop(&mut self) {
        let mut walked = self.feed.walked.lock().unwrap_or_else(PoisonError::into_inner);
        walked.end.get_or_insert_with(|| Err(io::Error::other("whoever read a part of it panicked")));
        drop(walked);
        self.feed.passed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use super::*;

    /// Its second part is there before its first.
    struct Backwards(AtomicBool);

    impl ReadAt for Backwards {
        fn read_at(&self, buffer: &mut [u8], place: u64) -> io::Result<usize> {
            if place >= FRAME_BYTES as u64 {
                self.0.store(true, Ordering::SeqCst);
            } else {
                while !self.0.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                // Time for the other to wait for its turn.
                (0..10_000).for_each(|_| std::thread::yield_now());
            }
            Ok(buffer.len())
        }
    }

    struct Stumbling;

    impl Walk for Stumbling {
        fn part(&mut self, _: &[u8]) {
            panic!("the walk stumbles");
        }
    }

    #[test]
    fn a_panic_of_the_walk_ends_those_who_wait_for_their_turn() {
        static FILE: Backwards = Backwards(AtomicBool::new(false));
        let feed = Arc::new(Feed::new(&FILE, Some(Stumbling)));
        let (ended, ends) = mpsc::channel();
        for _ in 0..2 {
            let (feed, ended) = (Arc::clone(&feed), ended.clone());
            std::thread::spawn(move || {
                let take = || feed.take(&mut [0; 64]).is_some();
                let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(take));
                drop(feed);
                let _ = ended.send(taken.ok());
            });
        }
        let limit = Duration::from_secs(60);
        let mut all = [(); 2].map(|()| ends.recv_timeout(limit).expect("nobody waits for ever"));
        all.sort_unstable();
        assert_eq!(all, [None, Some(false)], "one panicked, and the other got nothing");
        let feed = Arc::into_inner(feed).expect("nobody has it any more");
        assert!(feed.finish().is_err());
    }
}
