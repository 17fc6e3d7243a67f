//! Files that PostgreSQL archives, as stored objects.
//!
//! A file is read once, part by part; each part is digested, walked and compressed while it is in the processor's cache,
//! and its buffer used again. Parts are compressed on idle cores. The zeros at the end of a segment that was switched
//! early become run-length blocks. What the record walk found rides in the trailer as a hint; a hint speeds a search and
//! proves nothing. What the records change is in a skippable frame of its own before the trailer ([`super::changes`]).

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;

use super::FormatError;
use super::changes;
use super::digest::{Sha256, Sha256Hasher};
use super::frame::{self, Compressor};
use super::object::{Kind, NewObject, Object, Tail};
use crate::pg::page::zero_tail;
use crate::pg::wal_facts::{FactsWalk, WalFacts};

/// Raw bytes compressed as one frame: enough to lose nothing against one frame a segment, few enough for two cores.
const FRAME_BYTES: usize = 4 << 20;
/// Zeros at the end of a part are worth a frame of their own from here on.
const ZERO_TAIL_BYTES: usize = 64 * 1024;

/// A file ready to be stored.
pub struct EncodedWal {
    /// The whole object.
    pub object: Bytes,
    /// SHA-256 of the file's bytes.
    pub digest: Sha256,
    /// Bytes of the file.
    pub raw_len: u64,
    /// What the record walk found, for a segment.
    pub facts: Option<WalFacts>,
}

/// Why a file was not encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// It could not be read.
    #[error("read the file")]
    Read(#[from] io::Error),
    /// It has no place in an object.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// A file read back.
pub struct StoredWal {
    /// The file's bytes, verified.
    pub raw: Vec<u8>,
    /// SHA-256 of the file's bytes.
    pub digest: Sha256,
    /// The hint in the trailer, if it has one that this version can read.
    pub facts: Option<WalFacts>,
}

/// Encodes a file of about `len` bytes for `identity`, on at most `threads` threads; `walk` gathers a segment's facts.
///
/// # Errors
/// [`EncodeError::Read`] if `file` cannot be read to its end, [`FormatError::Identity`].
pub fn encode(
    identity: &str,
    file: &mut dyn Read,
    len: u64,
    level: i32,
    threads: usize,
    walk: Option<FactsWalk>,
) -> Result<EncodedWal, EncodeError> {
    let mut object = NewObject::new(Kind::Wal, identity)?;
    let frames = len.div_ceil(FRAME_BYTES as u64);
    let helpers = frames.min(threads as u64).saturating_sub(1) as usize;
    let line = Line::default();
    let (whole, frames) = std::thread::scope(|scope| {
        let helping: Vec<_> = (0..helpers).map(|_| scope.spawn(|| line.help(level))).collect();
        let mut frames = Vec::new();
        let mut compressor = Compressor::new(level);
        let reader = Reader { file, len, line: &line, most_waiting: helpers, walk };
        let closing = Closing(&line);
        let whole = reader.run(&mut |part| frames.push(part.compress(&mut compressor)));
        drop(closing);
        while let Some(part) = line.take() {
            frames.push(part.compress(&mut compressor));
        }
        let helped = helping.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        frames.extend(helped.flatten());
        (whole, frames)
    });
    let Whole { digest, raw_len, mut facts } = whole?;
    append(frames, object.body());
    if raw_len == 0 {
        frame::append_zeros(0, object.body());
    }
    let changes = facts.as_mut().and_then(|facts| facts.changes.take());
    changes.iter().for_each(|changes| changes::append(changes, &digest, object.body()));
    let section = facts.as_ref().map_or_else(Vec::new, |facts| serde_json::to_vec(facts).expect("plain values"));
    let (object, _) = object.finish(digest, raw_len, &section);
    Ok(EncodedWal { object: object.into(), digest, raw_len, facts })
}

fn append(mut frames: Vec<Frame>, body: &mut Vec<u8>) {
    frames.sort_by_key(|frame| frame.place);
    body.reserve(frames.iter().map(|frame| frame.bytes.len()).sum());
    frames.iter().for_each(|frame| body.extend_from_slice(&frame.bytes));
}

/// Reads a file that was stored for `identity`; every byte is verified.
///
/// # Errors
/// Whatever [`Object::open`] and [`Object::contents`] find; a file longer than `limit` bytes is refused unread.
pub fn decode(stored: &[u8], identity: &str, limit: u64) -> Result<StoredWal, FormatError> {
    let object = Object::open(stored, Kind::Wal, identity)?;
    let raw = object.contents(limit)?;
    Ok(StoredWal { raw, digest: object.tail.raw, facts: facts(object.section) })
}

/// Reads the hint from an object's last bytes, which reach back at least to the trailer, and the digest of the file that
/// the object says it holds.
///
/// # Errors
/// [`FormatError::Truncated`] if they do not reach back that far, [`FormatError::Damaged`].
pub fn decode_facts(last: &[u8], object_len: u64) -> Result<(Sha256, Option<WalFacts>), FormatError> {
    let tail = Tail::decode(last, object_len)?;
    Ok((tail.raw, facts(tail.section(last, object_len)?)))
}

/// A hint that cannot be read is no hint: the segment itself can still be walked.
fn facts(section: &[u8]) -> Option<WalFacts> {
    serde_json::from_slice(section).ok()
}

/// What is known of a file once it was read to its end.
struct Whole {
    digest: Sha256,
    raw_len: u64,
    facts: Option<WalFacts>,
}

/// Reads a file, digests and walks it, and hands its parts on to be compressed.
struct Reader<'a> {
    file: &'a mut dyn Read,
    len: u64,
    line: &'a Line,
    /// Parts that may wait for helpers; with more, this thread compresses too.
    most_waiting: usize,
    walk: Option<FactsWalk>,
}

impl Reader<'_> {
    fn run(mut self, compress: &mut dyn FnMut(Part)) -> io::Result<Whole> {
        let mut digest = Sha256Hasher::default();
        let mut raw_len = 0;
        let mut buffers: Vec<Arc<Vec<u8>>> = Vec::new();
        for place in 0.. {
            let raw = self.next(&mut buffers)?;
            if raw.is_empty() {
                break;
            }
            raw_len += raw.len() as u64;
            self.line.add(Part { place, raw: Arc::clone(&raw) });
            digest.update(&raw);
            self.walk.iter_mut().for_each(|walk| walk.part(&raw));
            buffers.push(raw);
            while self.line.waiting() > self.most_waiting {
                self.line.take().into_iter().for_each(&mut *compress);
            }
        }
        Ok(Whole { digest: digest.finish(), raw_len, facts: self.walk.map(FactsWalk::finish) })
    }

    /// Fills a buffer that nobody compresses any more, or a new one.
    fn next(&mut self, buffers: &mut Vec<Arc<Vec<u8>>>) -> io::Result<Arc<Vec<u8>>> {
        let free = buffers.iter().position(|buffer| Arc::strong_count(buffer) == 1);
        let free = free.map(|at| buffers.swap_remove(at)).and_then(Arc::into_inner);
        let mut buffer = free.unwrap_or_default();
        buffer.resize(self.len.clamp(1, FRAME_BYTES as u64) as usize, 0);
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        Ok(Arc::new(buffer))
    }
}

/// A stretch of the file.
struct Part {
    place: usize,
    raw: Arc<Vec<u8>>,
}

/// What it became.
struct Frame {
    place: usize,
    bytes: Vec<u8>,
}

impl Part {
    fn compress(self, compressor: &mut Compressor) -> Frame {
        let raw = &self.raw[..];
        let head = match zero_tail(raw) {
            head if raw.len() - head >= ZERO_TAIL_BYTES => head,
            _ => raw.len(),
        };
        let mut bytes = Vec::new();
        if head > 0 {
            compressor.append(&raw[..head], &mut bytes);
        }
        if head < raw.len() {
            frame::append_zeros(raw.len() - head, &mut bytes);
        }
        Frame { place: self.place, bytes }
    }
}

/// Parts that wait to be compressed.
#[derive(Default)]
struct Line {
    parts: Mutex<Parts>,
    changed: Condvar,
}

#[derive(Default)]
struct Parts {
    waiting: VecDeque<Part>,
    closed: bool,
}

/// Closes the line however the reading ends, by a panic too: the helpers would wait for ever.
struct Closing<'a>(&'a Line);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Line {
    fn add(&self, part: Part) {
        self.parts().waiting.push_back(part);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.parts().closed = true;
        self.changed.notify_all();
    }

    fn waiting(&self) -> usize {
        self.parts().waiting.len()
    }

    fn take(&self) -> Option<Part> {
        self.parts().waiting.pop_front()
    }

    /// Compresses parts until there will be no more.
    fn help(&self, level: i32) -> Vec<Frame> {
        let mut compressor = Compressor::new(level);
        let mut frames = Vec::new();
        loop {
            let parts = self.changed.wait_while(self.parts(), |parts| parts.waiting.is_empty() && !parts.closed);
            let part = parts.unwrap_or_else(|poisoned| poisoned.into_inner()).waiting.pop_front();
            match part {
                Some(part) => frames.push(part.compress(&mut compressor)),
                None => return frames,
            }
        }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::wal_fixture::{one_mib, segments};

    #[test]
    fn files_of_every_length_come_back() {
        for (len, zeros) in
            [(0, 0), (1, 0), (41, 0), (1 << 20, 0), (9 << 20, 3 << 20), (100_000, 65_536), (16 << 20, 16 << 20)]
        {
            let mut raw: Vec<u8> = (0..len).map(|n: usize| (n / 7 % 251) as u8 | 1).collect();
            raw[len - zeros..].fill(0);
            let threads = 1 + len % 3;
            let encoded = encode("7-1/x", &mut &raw[..], len as u64, 3, threads, None).expect("a short identity");
            let stored = decode(&encoded.object, "7-1/x", len as u64).expect("just made");
            assert_eq!(stored.raw, raw, "{len} bytes, {zeros} of them zeros at the end");
            assert_eq!(zstd::decode_all(&encoded.object[..]).expect("plain zstd"), raw);
        }
    }

    #[test]
    fn a_file_longer_or_shorter_than_it_was_said_to_be_is_read_to_its_end() {
        let raw = b"0123456789".repeat(1000);
        for len in [0, 1, 9_999, 10_001, 20 << 20] {
            let encoded = encode("7-1/x", &mut &raw[..], len, 3, 2, None).expect("a short identity");
            assert_eq!((encoded.raw_len, encoded.digest), (10_000, Sha256::of(&raw)));
            assert_eq!(decode(&encoded.object, "7-1/x", 10_000).expect("just made").raw, raw);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_to_its_end_is_refused() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::PermissionDenied.into())
            }
        }
        let mut file = io::repeat(7).take(9 << 20).chain(Broken);
        let refused = encode("7-1/x", &mut file, 16 << 20, 3, 3, None);
        assert!(matches!(refused, Err(EncodeError::Read(error)) if error.kind() == io::ErrorKind::PermissionDenied));
    }

    #[test]
    fn what_the_walk_finds_rides_in_the_trailer() {
        let (name, raw) = segments(15, 1).remove(0);
        let facts = WalFacts::of_segment(name, &raw, one_mib(), None);
        let walk = FactsWalk::new(name, one_mib(), None);
        let len = raw.len() as u64;
        let encoded = encode("7-1/x", &mut &raw[..], len, 3, 1, Some(walk)).expect("a short identity");
        assert!(facts.commits > 0);
        assert_eq!(decode(&encoded.object, "7-1/x", len).expect("just made").facts.as_ref(), Some(&facts));
        let stored_len = encoded.object.len() as u64;
        assert_eq!(decode_facts(&encoded.object, stored_len), Ok((encoded.digest, Some(facts))));
    }

    #[test]
    #[should_panic(expected = "the disk is on fire")]
    fn a_panic_while_reading_ends_the_helpers_too() {
        struct OnFire(bool);
        impl Read for OnFire {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                assert!(!std::mem::replace(&mut self.0, true), "the disk is on fire");
                Ok(buffer.len())
            }
        }
        let _ = encode("7-1/x", &mut OnFire(false), 16 << 20, 1, 3, None);
    }
}
