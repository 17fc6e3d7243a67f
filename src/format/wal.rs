//! Files that PostgreSQL archives, as stored objects.
//!
//! A file is read once, part by part, by as many threads as may help: each reads the next part, walks its records when it is
//! that part's turn, and digests and compresses it beside the others. The zeros at the end of a segment that was switched
//! early become run-length blocks. What the record walk found rides in the trailer as a hint; a hint speeds a search and
//! proves nothing. What the records change is in a skippable frame of its own before the trailer ([`super::changes`]).

use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::FormatError;
use super::changes;
use super::digest::{self, PIECE_BYTES, Sha256};
use super::frame;
use super::hint;
use super::object::{FRONT_BYTES, Front, Kind, NewObject, Object, Tail};
use super::room::Room;
use crate::pg::wal_facts::{FactsWalk, WalFacts};
use bench::Bench;
use feed::{Feed, Taken};

pub use bench::{clear as clear_kept, let_go_unused};
pub use feed::ReadAt;

mod bench;
mod feed;

/// Raw bytes compressed as one frame: enough to lose next to nothing against one frame a segment, few enough that two
/// threads end together.
const FRAME_BYTES: usize = 4 * PIECE_BYTES;
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
    file: &dyn ReadAt,
    len: u64,
    level: i32,
    threads: usize,
    walk: Option<FactsWalk>,
) -> Result<EncodedWal, EncodeError> {
    let mut object = NewObject::reusing(Room::take().empty(), Kind::Wal, identity)?;
    let helpers = len.div_ceil(FRAME_BYTES as u64).min(threads as u64).saturating_sub(1);
    let feed = Feed::new(file, walk);
    let mut worked = std::thread::scope(|scope| {
        let help = || {
            let mut work = Work::new(level);
            work.go_on(&feed);
            work
        };
        // Where no thread can be had there is none to help.
        let helping = (0..helpers).filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, help).ok());
        let helping: Vec<_> = helping.collect();
        let own = help();
        let helped = helping.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        std::iter::once(own).chain(helped.collect::<Vec<_>>()).collect::<Vec<_>>()
    });
    let (walk, raw_len) = feed.finish()?;
    let digest = append(&worked, raw_len, &mut object);
    worked.drain(..).for_each(|work| work.bench.put_back());
    let mut facts = walk.map(FactsWalk::finish);
    let changes = facts.as_mut().and_then(|facts| facts.changes.take());
    changes.iter().for_each(|changes| changes::append(changes, &digest, object.body()));
    let section = facts.as_ref().map(hint::encode).unwrap_or_default();
    let (object, _) = object.finish(digest, raw_len, &section);
    Ok(EncodedWal { object: Room::shared(object), digest, raw_len, facts })
}

/// Puts the parts into the object in their order, and returns the digest of all of them.
fn append(worked: &[Work], raw_len: u64, object: &mut NewObject) -> Sha256 {
    let mut parts: Vec<(&Part, &[u8])> = Vec::new();
    for work in worked {
        parts.extend(work.parts.iter().map(|part| (part, &work.bench.frames[part.frames.clone()])));
    }
    parts.sort_unstable_by_key(|(part, _)| part.place);
    const TRAILER_GUESS: usize = 16 << 10;
    object.body().reserve_exact(parts.iter().map(|(_, frames)| frames.len()).sum::<usize>() + TRAILER_GUESS);
    parts.iter().for_each(|(_, frames)| object.body().extend_from_slice(frames));
    if raw_len == 0 {
        frame::append_zeros(0, object.body());
    }
    digest::of_pieces(parts.iter().flat_map(|(part, _)| &part.pieces), raw_len)
}

/// Reads a file that was stored for `identity`; every byte is verified.
///
/// # Errors
/// Whatever [`Object::open`] and [`Object::contents`] find; a file longer than `limit` bytes is refused unread.
pub fn decode(stored: &[u8], identity: &str, limit: u64) -> Result<StoredWal, FormatError> {
    let object = Object::open(stored, Kind::Wal, identity)?;
    let raw = object.contents(limit)?;
    Ok(StoredWal { raw, digest: object.tail.raw, facts: hint::decode(object.section) })
}

/// A file whose stored bytes were verified, and whose contents were not read yet.
pub struct OpenedWal {
    stored: Bytes,
    front: Front,
    tail: Tail,
}

impl OpenedWal {
    /// Opens a file that was stored for `identity`; every stored byte is verified.
    ///
    /// # Errors
    /// As [`Object::open`].
    pub fn open(stored: Bytes, identity: &str) -> Result<Self, FormatError> {
        let Object { front, tail, .. } = Object::open(&stored, Kind::Wal, identity)?;
        Ok(Self { stored, front, tail })
    }

    /// Bytes of the file.
    pub fn raw_len(&self) -> u64 {
        self.tail.raw_len
    }

    /// Hands the file to `take`, as [`Object::contents_to`] does.
    ///
    /// # Errors
    /// As [`Object::contents_to`].
    pub fn contents_to<E>(
        &self,
        limit: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, FormatError> {
        let trailer_at = usize::try_from(self.tail.trailer_at).map_err(|_| FormatError::Memory)?;
        let body = &self.stored[FRONT_BYTES..trailer_at];
        let (front, tail) = (self.front.clone(), self.tail.clone());
        Object { front, tail, body, section: &[] }.contents_to(limit, take)
    }
}

/// Reads the hint from an object's last bytes, which reach back at least to the trailer, and the digest of the file that
/// the object says it holds.
///
/// # Errors
/// [`FormatError::Truncated`] if they do not reach back that far, [`FormatError::Damaged`].
pub fn decode_facts(last: &[u8], object_len: u64) -> Result<(Sha256, Option<WalFacts>), FormatError> {
    let tail = Tail::decode(last, object_len)?;
    Ok((tail.raw, hint::decode(tail.section(last, object_len)?)))
}

/// What one thread makes of the parts that it gets.
struct Work {
    bench: Bench,
    parts: Vec<Part>,
}

/// A stretch of the file.
struct Part {
    place: usize,
    /// Where its frames are among those of the thread.
    frames: Range<usize>,
    pieces: Vec<Sha256>,
}

impl Work {
    fn new(level: i32) -> Self {
        Self { bench: Bench::take(level), parts: Vec::new() }
    }

    /// Works until the file has ended.
    fn go_on(&mut self, feed: &Feed<'_>) {
        while let Some(taken) = feed.take(&mut self.bench.raw) {
            self.make(&taken);
        }
    }

    /// Digests and compresses the part that was taken.
    fn make(&mut self, taken: &Taken) {
        let Bench { raw, frames, compressor, .. } = &mut self.bench;
        let raw = &raw[..taken.len];
        let pieces = digest::pieces_of(raw, taken.zeros);
        let head = if taken.ends_in_zeros() { taken.zeros } else { raw.len() };
        let begin = frames.len();
        if head > 0 {
            compressor.append(&raw[..head], frames);
        }
        if head < raw.len() {
            frame::append_zeros(raw.len() - head, frames);
        }
        self.parts.push(Part { place: taken.place, frames: begin..frames.len(), pieces });
    }
}

#[cfg(test)]
mod tests {
    use super::feed::STEP_BYTES;
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
            let encoded = encode("7-1/x", &&raw[..], len as u64, 3, threads, None).expect("a short identity");
            let stored = decode(&encoded.object, "7-1/x", len as u64).expect("just made");
            assert_eq!(stored.raw, raw, "{len} bytes, {zeros} of them zeros at the end");
            assert_eq!((stored.digest, encoded.digest), (digest::of_contents(&raw), digest::of_contents(&raw)));
            assert_eq!(zstd::decode_all(&encoded.object[..]).expect("plain zstd"), raw);
        }
    }

    #[test]
    fn zeros_come_back_wherever_they_are_and_what_was_in_the_buffer_before_does_not() {
        const STEP: usize = STEP_BYTES;
        let stretches: [&[(usize, usize)]; 9] = [
            &[(0, STEP)],
            &[(1, 8 << 20)],
            &[(STEP, 2 * STEP)],
            &[(STEP - 1, 3 * STEP + 1)],
            &[(STEP, 4 << 20), (5 << 20, 6 << 20)],
            &[(0, 4 << 20), ((4 << 20) + 3 * STEP, 7 << 20)],
            &[((4 << 20) - 65_535, 4 << 20)],
            &[(2 << 20, 8 << 20)],
            &[(0, 3 << 20), ((3 << 20) + 1, 8 << 20)],
        ];
        let plain: Vec<u8> = (0..8 << 20).map(|n: usize| (n / 7 % 251) as u8 | 1).collect();
        let full = vec![255; 8 << 20];
        for zeros in stretches {
            for len in [8 << 20, 5 * STEP + 70_000] {
                // The benches are used again, and full of other bytes.
                encode("7-1/x", &&full[..], full.len() as u64, 1, 2, None).expect("an identity");
                let mut raw = plain[..len].to_vec();
                zeros.iter().for_each(|(from, to)| raw[(*from).min(len)..(*to).min(len)].fill(0));
                let encoded = encode("7-1/x", &&raw[..], len as u64, 1, 2, None).expect("an identity");
                assert_eq!(encoded.digest, digest::of_contents(&raw), "{zeros:?} of {len}");
                assert!(zstd::decode_all(&encoded.object[..]).expect("plain zstd") == raw, "{zeros:?} of {len}");
            }
        }
    }

    #[test]
    fn the_walk_of_a_segment_is_the_same_however_its_zeros_are_read() {
        let (name, mut raw) = segments(15, 1).remove(0);
        for zeros in [raw.len(), raw.len() / 2, 300_000, 8192, 0] {
            raw[zeros..].fill(0);
            let expected = WalFacts::of_segment(name, &raw, one_mib(), None);
            let walk = FactsWalk::new(name, one_mib(), None);
            let encoded = encode("7-1/x", &&raw[..], raw.len() as u64, 1, 1, Some(walk)).expect("an identity");
            assert_eq!(encoded.facts, Some(expected), "zeros from {zeros} on");
        }
    }

    #[test]
    fn a_file_comes_out_part_by_part_and_only_what_was_digested_is_believed() {
        let raw: Vec<u8> = (0..5 << 20).map(|n: usize| (n / 7 % 251) as u8).collect();
        let len = raw.len() as u64;
        let encoded = encode("7-1/x", &&raw[..], len, 3, 2, None).expect("a short identity");
        let opened = OpenedWal::open(encoded.object.clone(), "7-1/x").expect("just made");
        let mut out = Vec::new();
        let mut take = |part: &[u8]| {
            assert!(part.len() <= FRAME_BYTES);
            out.extend_from_slice(part);
            Ok::<(), ()>(())
        };
        assert_eq!(opened.contents_to(len, &mut take), Ok(Ok(())));
        assert!(out == raw && opened.raw_len() == len);
        assert_eq!(opened.contents_to(len, &mut |_| Err("full")), Ok(Err("full")));
        assert!(matches!(opened.contents_to(len - 1, &mut |_| Ok::<(), ()>(())), Err(FormatError::TooLarge { .. })));
        // Frames that hold other bytes, too few and too many, than whoever stored them digested.
        for other in [&raw[1..], &raw[..4 << 20], &[&raw[..], b"x"].concat()[..]] {
            let mut object = NewObject::new(Kind::Wal, "7-1/x").expect("a short identity");
            frame::append_raw(other, object.body());
            let (stored, _) = object.finish(encoded.digest, len, &[]);
            let opened = OpenedWal::open(stored.into(), "7-1/x").expect("its stored bytes are as they were");
            assert!(opened.contents_to(len, &mut |_| Ok::<(), ()>(())).is_err(), "{} bytes", other.len());
        }
    }

    #[test]
    fn a_file_longer_or_shorter_than_it_was_said_to_be_is_read_to_its_end() {
        let raw = b"0123456789".repeat(1000);
        for len in [0, 1, 9_999, 10_001, 20 << 20] {
            let encoded = encode("7-1/x", &&raw[..], len, 3, 2, None).expect("a short identity");
            assert_eq!((encoded.raw_len, encoded.digest), (10_000, digest::of_contents(&raw)));
            assert_eq!(decode(&encoded.object, "7-1/x", 10_000).expect("just made").raw, raw);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_to_its_end_is_refused() {
        struct Broken(u64);
        impl ReadAt for Broken {
            fn read_at(&self, buffer: &mut [u8], place: u64) -> io::Result<usize> {
                match self.0.saturating_sub(place) {
                    0 => Err(io::ErrorKind::PermissionDenied.into()),
                    left => Ok(buffer.len().min(left as usize)),
                }
            }
        }
        for good in [0, 9 << 20, (12 << 20) + 1] {
            let refused = encode("7-1/x", &Broken(good), 16 << 20, 3, 3, None);
            assert!(
                matches!(refused, Err(EncodeError::Read(error)) if error.kind() == io::ErrorKind::PermissionDenied)
            );
        }
    }

    #[test]
    fn what_the_walk_finds_rides_in_the_trailer() {
        let (name, raw) = segments(15, 1).remove(0);
        let facts = WalFacts::of_segment(name, &raw, one_mib(), None);
        let walk = FactsWalk::new(name, one_mib(), None);
        let len = raw.len() as u64;
        let encoded = encode("7-1/x", &&raw[..], len, 3, 1, Some(walk)).expect("a short identity");
        assert!(facts.commits > 0);
        assert_eq!(decode(&encoded.object, "7-1/x", len).expect("just made").facts.as_ref(), Some(&facts));
        let stored_len = encoded.object.len() as u64;
        assert_eq!(decode_facts(&encoded.object, stored_len), Ok((encoded.digest, Some(facts))));
    }

    #[test]
    #[should_panic(expected = "the disk is on fire")]
    fn a_panic_while_reading_ends_the_helpers_too() {
        struct OnFire;
        impl ReadAt for OnFire {
            fn read_at(&self, buffer: &mut [u8], place: u64) -> io::Result<usize> {
                assert!(place < 5 << 20, "the disk is on fire");
                Ok(buffer.len())
            }
        }
        let _ = encode("7-1/x", &OnFire, 16 << 20, 1, 3, None);
    }
}
