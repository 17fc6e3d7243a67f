//! What is read of a pack, and with how many requests. Pure: nothing is read here.
//!
//! A request costs money, and a round trip in which megabytes could have come. So small packs of which most is wanted are
//! read whole, and of others one request brings everything from one wanted frame to another, with what lies between them,
//! unless that is much.

use std::ops::RangeInclusive;

use crate::format::pack::FrameEntry;
use crate::format::tables::PackRef;

/// Most unwanted bytes between two wanted frames that one request brings both of: 20 ms at 25 MB/s.
const GAP_BYTES: u64 = 512 << 10;

/// A part of a file and the frames that it lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Place among the parts.
    pub part: usize,
    pub first: u32,
    pub last: u32,
}

/// Whether a pack of which `frames` are wanted is best read whole, frame table and all, with one request instead of two.
pub(super) fn is_worth_reading_whole(pack: &PackRef, frames: u32, room: u64) -> bool {
    pack.stored_bytes <= room && frames >= pack.frames.div_ceil(2)
}

/// Returns the frames that are wanted, as runs; `spans` are sorted by their first frames.
pub(super) fn runs(spans: &[Span]) -> Vec<RangeInclusive<u32>> {
    let mut runs: Vec<RangeInclusive<u32>> = Vec::new();
    for span in spans {
        match runs.last_mut() {
            Some(run) if span.first <= run.end() + 1 => *run = *run.start()..=span.last.max(*run.end()),
            _ => runs.push(span.first..=span.last),
        }
    }
    runs
}

/// Groups runs: each group is one request's.
///
/// # Errors
/// Whatever `frame` answers for a frame that is not there.
pub(super) fn requests<'a, E>(
    runs: &[RangeInclusive<u32>],
    frame: impl Fn(u32) -> Result<&'a FrameEntry, E>,
) -> Result<Vec<Vec<RangeInclusive<u32>>>, E> {
    let mut requests: Vec<Vec<RangeInclusive<u32>>> = Vec::new();
    let mut end = 0;
    for run in runs {
        let (first, last) = (frame(*run.start())?, frame(*run.end())?);
        match requests.last_mut() {
            Some(request) if first.at.saturating_sub(end) <= GAP_BYTES => request.push(run.clone()),
            _ => requests.push(vec![run.clone()]),
        }
        end = last.at + u64::from(last.stored_len);
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::FormatError;
    use crate::format::digest::Sha256;
    use crate::format::frame::Compressor;
    use crate::format::pack::{FrameTable, PackWriter};
    use crate::format::tables::PackSource;

    /// A pack of frames that do not compress, of 100,000 bytes each.
    fn table(frames: usize) -> FrameTable {
        let mut pack = PackWriter::new("7-1/packs/b/1", 8192).expect("a short identity");
        let mut noise = 1u64;
        for _ in 0..frames {
            let mut raw = Vec::with_capacity(100_000);
            while raw.len() < 100_000 {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                raw.extend_from_slice(&(noise >> 32).to_le_bytes()[..4]);
            }
            pack.append(&raw, &[], &mut Compressor::new(1)).expect("small frames");
        }
        let object = pack.finish().object;
        FrameTable::decode(&object, object.len() as u64).expect("just made")
    }

    fn span(first: u32, last: u32) -> Span {
        Span { part: 0, first, last }
    }

    fn requested(table: &FrameTable, spans: &[Span]) -> Result<Vec<Vec<RangeInclusive<u32>>>, FormatError> {
        requests(&runs(spans), |frame| table.frame(frame))
    }

    #[test]
    fn frames_that_follow_or_share_each_other_are_one_run() {
        let spans = [span(0, 2), span(1, 1), span(3, 3), span(5, 9), span(6, 7), span(20, 20)];
        assert_eq!(runs(&spans), [0..=3, 5..=9, 20..=20]);
        assert_eq!(runs(&[]), []);
    }

    #[test]
    fn one_request_passes_over_a_small_gap_and_not_over_a_large_one() {
        let table = table(40);
        let live = [span(0, 3), span(9, 9), span(15, 15), span(39, 39)];
        // Five frames are no more than the gap, 23 are.
        assert_eq!(requested(&table, &live), Ok(vec![vec![0..=3, 9..=9, 15..=15], vec![39..=39]]));
        assert_eq!(requested(&table, &[span(0, 0), span(7, 7)]), Ok(vec![vec![0..=0], vec![7..=7]]));
        let all: Vec<Span> = (0..40).map(|frame| span(frame, frame)).collect();
        assert_eq!(requested(&table, &all), Ok(vec![vec![0..=39]]));
        assert!(requested(&table, &[span(0, 40)]).is_err(), "a frame that is not there");
    }

    #[test]
    fn a_pack_is_read_whole_if_it_fits_and_half_of_it_is_wanted() {
        let source = PackSource::Lane { backup: "b".into(), number: 1 };
        let (sha256, table_sha256) = (Sha256::of(b""), Sha256::of(b""));
        let pack = PackRef { source, stored_bytes: 1000, frames: 5, sha256, table_sha256 };
        assert!(is_worth_reading_whole(&pack, 3, 1000));
        assert!(!is_worth_reading_whole(&pack, 2, 1000) && !is_worth_reading_whole(&pack, 5, 999));
    }
}
