//! Where two segments of one name part: the first record that is not the same in both.
//!
//! Two servers that write one timeline part where each wrote its own. One server may do it too: before the minor releases of
//! November 2021 it could archive a segment, crash, and write its end again; since then what a crash cut off is declared
//! void by the page after it.
//!
//! Source: `XLP_FIRST_IS_OVERWRITE_CONTRECORD` in `src/include/access/xlog_internal.h`; release notes of 13.5 and 14.1.

use super::{FirstPage, Lsn, PageHeader, SegmentEnd, SegmentName, SegmentSize, Walker};

/// Where two segments of one name part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parting {
    /// The first record that is not the same in both; where no record can be made out, the first byte.
    pub record: Lsn,
    /// Whether each of them begins the page with declaring void what a crash cut off.
    pub voids: [bool; 2],
}

impl Parting {
    /// Finds where the records of two segments part, whose bytes are the same before `at`. `None` if the name is none of
    /// this size.
    pub fn find(name: SegmentName, size: SegmentSize, both: [&[u8]; 2], at: usize) -> Option<Self> {
        let start = name.number(size).ok()?.start(size);
        let common = both[0].get(..at).unwrap_or(both[0]);
        let end = Walker::new(None, size).segment(name, common, &mut |_| {});
        let record = match end {
            // The record in which the bytes end, or the place where the next would begin.
            SegmentEnd::Stopped { at, .. } if at > start => at,
            _ => start + at as u64,
        };
        let page = FirstPage::parse(both[0]).map_or(8192, |first| first.block_size as usize);
        let voids = both.map(|bytes| {
            let header = bytes.get(at - at % page..).and_then(PageHeader::read);
            header.is_some_and(|header| header.overwrites())
        });
        Some(Self { record, voids })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::wal_fixture::{listing, one_mib, segments};

    #[test]
    fn two_segments_part_at_the_record_that_holds_the_first_other_byte() {
        let (name, raw) = segments(17, 1).into_iter().nth(1).unwrap();
        let start = name.number(one_mib()).unwrap().start(one_mib());
        let inside = |lsn: Lsn| (start..start + (1 << 20)).contains(&lsn);
        let records: Vec<Lsn> = listing(17, 1).into_iter().map(|(lsn, ..)| lsn).filter(|lsn| inside(*lsn)).collect();
        for pair in records.windows(2).step_by(records.len() / 20 + 1) {
            let (first, next) = ((pair[0] - start) as usize, (pair[1] - start) as usize);
            // The header's first byte, its checksum, and the last byte before the next record's alignment.
            for at in [first, first + 20, next - 8] {
                let mut other = raw.clone();
                other[at] ^= 1;
                let parting = Parting::find(name, one_mib(), [&raw, &other], at).unwrap();
                assert_eq!(parting, Parting { record: pair[0], voids: [false; 2] }, "byte {at}");
            }
        }
    }

    #[test]
    fn what_is_no_log_parts_at_a_byte_and_a_void_record_is_told() {
        let (name, raw) = segments(17, 1).remove(0);
        let start = name.number(one_mib()).unwrap().start(one_mib());
        let at = |both: [&[u8]; 2], at| Parting::find(name, one_mib(), both, at).unwrap();
        let zeros = vec![0; raw.len()];
        assert_eq!(at([&zeros, &raw], 0), Parting { record: start, voids: [false; 2] });
        assert_eq!(at([&zeros, &raw], 100).record, start + 100);
        assert_eq!(at([b"", &raw], 0).record, start);
        // The flags of the third page.
        let mut voiding = raw.clone();
        voiding[2 * 8192 + 2] |= 0x8;
        assert_eq!(at([&raw, &voiding], 2 * 8192 + 2).voids, [false, true]);
    }
}
