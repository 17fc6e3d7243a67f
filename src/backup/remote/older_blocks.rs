//! Blocks of the older backup that have to be read, since their frames cannot be named again: many at a time.
//!
//! A bucket answers after a while and then fast. So frames that lie close together come with one request, with what lies
//! between them, and several requests are under way at once. Of a frame only the wanted bytes are kept.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::lending::Lending;
use super::super::prior::Lent;
use super::items::lock;
use crate::format::FormatError;
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::Piece;
use crate::repo::{PackReader, RepoError};

/// Most unwanted bytes between two wanted frames that one request brings both of: 20 ms at 25 MB/s.
const GAP_BYTES: u64 = 512 << 10;
/// Requests that are under way at once.
pub(super) const REQUESTS: usize = 8;
/// Bytes that one request holds: a frame as it is stored and as it was, and what arrives meanwhile.
pub(super) const REQUEST_BYTES: u64 = 4 * FRAME_BYTES as u64;

/// The blocks that are wanted.
#[derive(Default)]
pub(super) struct OlderBlocks {
    blocks: Vec<Vec<u8>>,
    wanted: Vec<Wanted>,
}

/// Some bytes of a frame, and where in a block they belong.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    pack: u32,
    frame: u32,
    from: usize,
    len: usize,
    block: usize,
    at: usize,
}

/// Frames of one pack that come with one request.
struct Request<'a> {
    pack: PackReader,
    wanted: &'a [Wanted],
}

impl OlderBlocks {
    /// Bytes of what is wanted.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.len() as u64).sum()
    }

    /// Wants the block at `at` of a file, and returns its number here. `lent` is what the older backup has of the file from
    /// there on, and covers the block.
    pub fn want(&mut self, lent: &[Lent], at: u64, block_size: usize) -> usize {
        let number = self.blocks.len();
        let mut block = vec![0; block_size];
        let mut filled = 0;
        for lent in lent {
            if filled == block_size {
                break;
            }
            let skip = at + filled as u64 - lent.at;
            let len = (lent.len - skip).min((block_size - filled) as u64) as usize;
            let from = lent.skip + skip;
            match &lent.piece {
                Piece::Zeros { .. } => {}
                Piece::Inline(bytes) => block[filled..filled + len].copy_from_slice(&bytes[from as usize..][..len]),
                Piece::Frames { pack, frame, offset, .. } => {
                    self.want_frames((*pack, *frame), u64::from(*offset) + from, len, (number, filled));
                }
            }
            filled += len;
        }
        self.blocks.push(block);
        number
    }

    /// Wants bytes of consecutive frames, of which all but the last are whole.
    fn want_frames(
        &mut self,
        (pack, first): (u32, u32),
        mut from: u64,
        mut len: usize,
        (block, mut at): (usize, usize),
    ) {
        while len > 0 {
            let frame = first.saturating_add((from / FRAME_BYTES as u64) as u32);
            let place = (from % FRAME_BYTES as u64) as usize;
            let some = len.min(FRAME_BYTES - place);
            self.wanted.push(Wanted { pack, frame, from: place, len: some, block, at });
            from += some as u64;
            at += some;
            len -= some;
        }
    }

    /// Reads everything that is wanted, and returns the blocks by their numbers.
    pub fn read(mut self, lending: &Lending<'_>) -> Result<Vec<Vec<u8>>, RepoError> {
        self.wanted.sort_unstable_by_key(|wanted| (wanted.pack, wanted.frame, wanted.from));
        let packs: Vec<&[Wanted]> = self.wanted.chunk_by(|one, next| one.pack == next.pack).collect();
        let requests = side_by_side(&packs, |&wanted| -> Result<Vec<Request<'_>>, RepoError> {
            let pack = lending.pack(wanted[0].pack)?;
            let groups = near_each_other(&pack, wanted)?;
            Ok(groups.into_iter().map(|wanted| Request { pack: pack.clone(), wanted }).collect())
        })?;
        let requests: Vec<Request<'_>> = requests.into_iter().flatten().collect();
        let blocks = Mutex::new(self.blocks);
        side_by_side(&requests, |request| request.read(&blocks))?;
        Ok(blocks.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl Request<'_> {
    fn read(&self, blocks: &Mutex<Vec<Vec<u8>>>) -> Result<(), RepoError> {
        let (Some(first), Some(last)) = (self.wanted.first(), self.wanted.last()) else { return Ok(()) };
        let mut frames = self.pack.frames(first.frame, last.frame)?;
        let mut raw = Vec::new();
        for of_frame in self.wanted.chunk_by(|one, next| one.frame == next.frame) {
            let frame = of_frame[0].frame;
            frames.expect(frame)?;
            frames.decode(frame, &mut raw)?;
            for Wanted { from, len, block, at, .. } in of_frame.iter().copied() {
                let some = raw.get(from..from + len).ok_or_else(|| {
                    let problem = format!("frame {frame} ends before a piece does");
                    self.pack.wrong(FormatError::Nonsense { document: "frame table", problem })
                })?;
                lock(blocks)[block][at..at + len].copy_from_slice(some);
            }
        }
        Ok(())
    }
}

/// Groups what is wanted of a pack, sorted by frames: each group is one request's.
fn near_each_other<'a>(pack: &PackReader, wanted: &'a [Wanted]) -> Result<Vec<&'a [Wanted]>, RepoError> {
    let mut groups = Vec::new();
    let mut begun = 0;
    for at in 1..wanted.len() {
        let before = pack.frame(wanted[at - 1].frame)?;
        let gap = pack.frame(wanted[at].frame)?.at.saturating_sub(before.at + u64::from(before.stored_len));
        if gap > GAP_BYTES {
            groups.push(&wanted[begun..at]);
            begun = at;
        }
    }
    groups.push(&wanted[begun..]);
    Ok(groups)
}

/// Does several jobs on a few threads, and returns what came of them in their order. After a failure none is begun.
pub(super) fn side_by_side<J: Sync, T: Send, E: Send>(
    jobs: &[J],
    work: impl Fn(&J) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    if jobs.len() < 2 {
        return jobs.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let one = || -> Result<Vec<(usize, T)>, E> {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(number) else { return Ok(done) };
            match work(job) {
                Ok(outcome) => done.push((number, outcome)),
                Err(error) => {
                    next.store(jobs.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let outcomes: Vec<Result<Vec<(usize, T)>, E>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..REQUESTS.min(jobs.len())).map(|_| scope.spawn(one)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    let mut done: Vec<(usize, T)> = Vec::with_capacity(jobs.len());
    for outcome in outcomes {
        done.extend(outcome?);
    }
    done.sort_unstable_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, outcome)| outcome).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_done_side_by_side_and_answered_in_their_order() {
        let jobs: Vec<u64> = (0..100).collect();
        assert_eq!(side_by_side(&jobs, |job| Ok::<_, ()>(job * 2)), Ok(jobs.iter().map(|job| job * 2).collect()));
        assert_eq!(side_by_side(&[] as &[u64], |job| Ok::<_, ()>(*job)), Ok(vec![]));
        let failing = |job: &u64| if *job == 7 { Err(*job) } else { Ok(*job) };
        assert_eq!(side_by_side(&jobs, failing), Err(7));
    }

    #[test]
    fn a_block_is_put_together_from_all_that_covers_it() {
        let lent = |at: u64, len: u64, skip: u64, piece: Piece| Lent { at, len, skip, piece };
        let mut blocks = OlderBlocks::default();
        let inline = Piece::Inline(vec![7, 8, 9]);
        let zeros = Piece::Zeros { len: 10 };
        let number = blocks.want(&[lent(0, 5, 0, zeros.clone()), lent(5, 2, 1, inline), lent(7, 9, 0, zeros)], 4, 8);
        assert_eq!((number, &blocks.blocks[0]), (0, &vec![0, 8, 9, 0, 0, 0, 0, 0]));
        assert!(blocks.wanted.is_empty());
        // A stretch of frames, of which all but the last are whole.
        let frames = Piece::Frames { pack: 3, frame: 5, offset: FRAME_BYTES as u32 - 2, len: 100 };
        assert_eq!(blocks.want(&[lent(96, 50, 10, frames)], 98, 8), 1);
        let frames = Piece::Frames { pack: 3, frame: 5, offset: FRAME_BYTES as u32 - 2, len: 100 };
        assert_eq!(blocks.want(&[lent(96, 50, 0, frames)], 96, 8), 2);
        let wanted: Vec<_> = blocks.wanted.iter().map(|w| (w.frame, w.from, w.len, w.block, w.at)).collect();
        assert_eq!(wanted, [(6, 10, 8, 1, 0), (5, FRAME_BYTES - 2, 2, 2, 0), (6, 0, 6, 2, 2)]);
        assert_eq!(blocks.bytes(), 24);
    }
}
