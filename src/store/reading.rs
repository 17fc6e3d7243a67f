//! One object read in order, with as few requests as that takes.
//!
//! A bucket sends the whole stretch in answer to one request, and its bytes are taken as they arrive; a volume's file is
//! opened once and read part by part. Neither is ever held whole. What breaks off goes on where it broke off: no byte comes
//! twice and none is left out, whatever number of requests that takes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::{GetOptions, GetRange, GetResultPayload};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::error::{BackendError, kind_of_io};
use super::retry::Effort;
use super::{Failure, Key, Store, StoreError, Verb, past_end};

/// Bytes of a file that are read at once.
const PART: u64 = 1 << 20;

/// An object that is being read, from one place on to another.
///
/// It asks for nothing before the first bytes are taken, and lets go of its connection or file when it is dropped.
pub struct Reading {
    store: Store,
    key: Key,
    /// Where the byte lies that is taken next.
    at: u64,
    /// Where those end that will be taken: of a file nothing behind it is read ahead.
    until: u64,
    /// Where the stretch ends that is asked for.
    end: u64,
    begun: bool,
    progress: Mutex<Progress>,
}

/// What an abandoned attempt leaves to the next.
#[derive(Default)]
struct Progress {
    source: Option<Source>,
    /// Bytes that arrived; those before `taken` were handed out.
    buffer: Vec<u8>,
    taken: usize,
}

enum Source {
    Stream(BoxStream<'static, object_store::Result<Bytes>>),
    File(Arc<File>),
}

impl Store {
    /// Begins to read the bytes of an object from `range.start` up to `range.end`, in order.
    pub fn reading(&self, key: &Key, range: Range<u64>) -> Reading {
        self.reading_into(Vec::new(), key, range)
    }

    /// As [`Store::reading`], in memory that an earlier one gave back with [`Reading::into_memory`].
    pub fn reading_into(&self, mut memory: Vec<u8>, key: &Key, range: Range<u64>) -> Reading {
        memory.clear();
        let progress = Mutex::new(Progress { buffer: memory, ..Progress::default() });
        let (store, key) = (self.clone(), key.clone());
        Reading { store, key, at: range.start, until: range.end, end: range.end, begun: false, progress }
    }
}

impl Reading {
    /// Says that everything up to `end` will be taken next: of a file so much may be read ahead, and nothing behind it.
    pub fn expect(&mut self, end: u64) {
        self.until = end.min(self.end);
    }

    /// Passes over everything up to `at`; what lies there of a file is not even read. `None` if there is no object.
    ///
    /// # Errors
    /// As [`Reading::take`].
    pub fn skip_to(&mut self, at: u64) -> Result<Option<()>, StoreError> {
        while self.at < at {
            let progress = self.progress.get_mut();
            let passed = (at - self.at).min(progress.at_hand() as u64);
            if passed > 0 {
                progress.taken += passed as usize;
                self.at += passed;
            } else if let Some(Source::Stream(_)) = progress.source {
                let passed = (at - self.at).min(PART) as usize;
                if self.take(passed)?.is_none() {
                    return Ok(None);
                }
            } else {
                self.at = at;
            }
        }
        Ok(Some(()))
    }

    /// Returns the next `len` bytes; `None` if there is no object.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::error::ErrorKind::Corrupt) if the object ends before the stretch does: whoever knows the stretch knew more bytes.
    pub fn take(&mut self, len: usize) -> Result<Option<&[u8]>, StoreError> {
        let to = self.at.saturating_add(len as u64);
        let missing = len.saturating_sub(self.progress.get_mut().at_hand());
        if missing > 0 && !self.bring(to, missing as u64)? {
            return Ok(None);
        }
        self.at = to;
        let progress = self.progress.get_mut();
        let from = progress.taken;
        progress.taken += len;
        Ok(Some(&progress.buffer[from..from + len]))
    }

    /// Gives back the memory that bytes were brought into.
    pub fn into_memory(self) -> Vec<u8> {
        self.progress.into_inner().buffer
    }

    /// Brings everything up to `to`.
    fn bring(&mut self, to: u64, missing: u64) -> Result<bool, StoreError> {
        if !std::mem::replace(&mut self.begun, true) {
            self.store.bridge.begin();
        }
        let this = &*self;
        let attempt = || async {
            let mut progress = this.progress.lock().await;
            this.fill(&mut progress, to).await
        };
        self.store.run_uncounted(Verb::GetRange, Some(&self.key), Effort::up_to(missing), attempt)
    }

    async fn fill(&self, progress: &mut Progress, to: u64) -> Result<bool, Failure> {
        if to > self.end {
            return Err(past_end(&(self.at..to), self.end));
        }
        loop {
            let from = self.at + progress.at_hand() as u64;
            if from >= to {
                return Ok(true);
            }
            // Put back only after it has answered: a source that failed, or was waited for in vain, is asked no more.
            let source = match progress.source.take() {
                Some(source) => Some(source),
                None => self.open(from).await?,
            };
            let Some(mut source) = source else { return Ok(false) };
            match &mut source {
                Source::Stream(stream) => {
                    let part = self.store.in_time(stream.next()).await?;
                    let left = self.end - from;
                    let part = part.ok_or(Failure::CutOff { expected: left, got: 0 })??;
                    if part.len() as u64 > left {
                        return Err(Failure::CutOff { expected: left, got: part.len() as u64 });
                    }
                    progress.make_room();
                    // No more than what is waited for: the rest of this part comes on top.
                    progress.buffer.reserve_exact(part.len().max((to - from) as usize));
                    progress.buffer.extend_from_slice(&part);
                }
                Source::File(file) => {
                    let end = to.max((from + PART).min(self.until));
                    let file = Arc::clone(file);
                    progress.make_room();
                    let memory = std::mem::take(&mut progress.buffer);
                    let read = spawn_blocking(move || read_to(&file, memory, from..end));
                    let read = self.store.in_time(read).await?.map_err(object_store::Error::from)?;
                    progress.buffer = read.map_err(|error| BackendError::new(kind_of_io(&error), error))?;
                }
            }
            progress.source = Some(source);
        }
    }

    /// Asks for everything from `from` on.
    async fn open(&self, from: u64) -> Result<Option<Source>, Failure> {
        let range = from..self.end;
        self.store.bridge.count(Verb::GetRange);
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..Default::default() };
        let reply = match self.store.ask(&self.key, options).await? {
            Ok(reply) => reply,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.store.range_refused(&self.key, &range, error).await),
        };
        if reply.meta.size < range.end {
            return Err(past_end(&range, reply.meta.size));
        }
        if reply.range != range {
            let got = reply.range.end.saturating_sub(reply.range.start);
            return Err(Failure::CutOff { expected: range.end - range.start, got });
        }
        Ok(Some(match reply.payload {
            GetResultPayload::Stream(stream) => Source::Stream(stream),
            GetResultPayload::File(file, _) => Source::File(Arc::new(file)),
        }))
    }
}

impl Progress {
    fn at_hand(&self) -> usize {
        self.buffer.len() - self.taken
    }

    /// Moves what was not taken yet to the front.
    fn make_room(&mut self) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
    }
}

/// Appends a stretch of a file.
fn read_to(file: &File, mut memory: Vec<u8>, range: Range<u64>) -> io::Result<Vec<u8>> {
    let whole = memory.len() + (range.end - range.start) as usize;
    memory.reserve_exact(whole - memory.len());
    let mut at = range.start;
    while memory.len() < whole {
        match rustix::io::pread(file.as_fd(), rustix::buffer::spare_capacity(&mut memory), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => at += read as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    memory.truncate(whole);
    Ok(memory)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::error::ErrorKind;
    use crate::store::fault::{Fault, FaultStore, When};
    use crate::store::tests::Scratch;
    use crate::store::{Created, RetryPolicy};

    /// Three parts and some.
    fn contents() -> Vec<u8> {
        (0..PART as usize * 3 + 1000).map(|n| (n / 7 % 251) as u8).collect()
    }

    fn holding(store: &Store, bytes: &[u8]) -> Key {
        let key: Key = "a/b".parse().unwrap();
        assert_eq!(store.create(&key, vec![Bytes::copy_from_slice(bytes)]).unwrap(), Created::New);
        key
    }

    fn faulty(attempts: u32) -> (FaultStore, Store) {
        let faults = FaultStore::in_memory();
        let store = Store::over(Arc::new(faults.clone()), "memory", RetryPolicy::brisk(attempts)).unwrap();
        (faults, store)
    }

    #[test]
    fn one_request_brings_every_byte_in_order_and_what_is_passed_over_is_not_handed_out() {
        let (bytes, scratch) = (contents(), Scratch::new());
        for store in [faulty(1).1, scratch.store(RetryPolicy::brisk(1))] {
            let key = holding(&store, &bytes);
            let before = store.requests();
            let mut reading = store.reading(&key, 10..bytes.len() as u64 - 3);
            for (from, len) in [(10, 1), (11, 70_000), (80_000, 5), (PART as usize * 2 + 7, PART as usize + 900)] {
                reading.expect((from + len) as u64);
                reading.skip_to(from as u64).unwrap().unwrap();
                assert!(reading.take(len).unwrap().unwrap() == &bytes[from..from + len], "{len} bytes from {from}");
            }
            assert_eq!(store.requests().of(Verb::GetRange) - before.of(Verb::GetRange), 1);
            assert_eq!(store.retries(), 0);
        }
    }

    #[test]
    fn of_a_file_nothing_behind_what_is_expected_is_read() {
        let (bytes, scratch) = (contents(), Scratch::new());
        let store = scratch.store(RetryPolicy::brisk(1));
        let key = holding(&store, &bytes);
        let mut reading = store.reading(&key, 0..bytes.len() as u64);
        reading.expect(100);
        reading.take(40).unwrap().unwrap();
        assert_eq!(reading.into_memory().len(), 100);
    }

    #[test]
    fn what_breaks_off_goes_on_where_it_broke_off() {
        let bytes = contents();
        let (faults, store) = faulty(3);
        let key = holding(&store, &bytes);
        for (skip, to) in [5, 0, 1000].into_iter().enumerate() {
            faults.script(When { skip: skip as u64, ..When::next(Verb::GetRange) }, Fault::Truncate { to });
        }
        let mut reading = store.reading(&key, 0..bytes.len() as u64);
        let mut read = Vec::new();
        for len in [3, 900, bytes.len() - 903] {
            read.extend_from_slice(reading.take(len).unwrap().unwrap());
        }
        assert!(read == bytes);
        assert_eq!((store.requests().of(Verb::GetRange), store.retries()), (4, 3));
    }

    #[test]
    fn a_reading_that_always_breaks_off_ends_and_hands_nothing_out() {
        let (faults, store) = faulty(3);
        let key = holding(&store, b"one two three");
        faults.script(When::every(Verb::GetRange), Fault::Truncate { to: 0 });
        let error = store.reading(&key, 0..13).take(5).unwrap_err();
        assert_eq!((error.kind(), error.attempts(), error.key()), (ErrorKind::Unavailable, 3, Some(&key)));
        assert!(matches!(error.failure(), Failure::CutOff { expected: 13, got: 0 }), "{error:?}");
    }

    #[test]
    fn absence_is_a_value_and_an_end_that_comes_too_soon_is_damage() {
        let scratch = Scratch::new();
        for store in [faulty(2).1, scratch.store(RetryPolicy::brisk(2))] {
            let key = holding(&store, b"one two three");
            assert_eq!(store.reading(&"gone".parse().unwrap(), 0..5).take(5).unwrap(), None);
            for range in [0..14, 20..30] {
                let error = store.reading(&key, range.clone()).take(2).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{range:?}: {error:?}");
            }
            let mut reading = store.reading(&key, 4..7);
            assert_eq!(reading.take(4).unwrap_err().kind(), ErrorKind::Corrupt, "more than was asked for");
        }
    }

    #[test]
    fn no_error_is_taken_for_absence() {
        let (faults, store) = faulty(2);
        let key = holding(&store, b"one two three");
        for fault in [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::Other] {
            faults.heal();
            faults.script(When::default(), Fault::Before(fault));
            assert!(store.reading(&key, 0..3).take(3).is_err(), "{fault}");
        }
    }
}
