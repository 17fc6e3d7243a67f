//! WAL segments: their size, their number in the log, and their file names.
//!
//! A name alone does not fix a position in the log: that also needs the cluster's [`SegmentSize`].
//!
//! Source: `XLogFileName`, `XLogFromFileName`, `XLByteToSeg` and `XLByteToPrevSeg` in
//! `src/include/access/xlog_internal.h`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::as_text::as_text;
use super::{Lsn, NameError, TimelineId};

/// Bytes in every WAL segment of a cluster: a power of two from 1 MiB to 1 GiB.
///
/// Source: `IsValidWalSegSize` in `src/include/access/xlog_internal.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SegmentSize(u32);

/// A number of bytes that no cluster's segments have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes is not a size of WAL segments: a power of two from 1 MiB to 1 GiB")]
pub struct SegmentSizeError {
    bytes: u32,
}

impl SegmentSize {
    /// 16 MiB, the size unless `initdb --wal-segsize` says otherwise.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    const SMALLEST: u32 = 1 << 20;
    const LARGEST: u32 = 1 << 30;

    /// Makes a size from a number of bytes.
    ///
    /// # Errors
    /// [`SegmentSizeError`] if PostgreSQL would not run with it.
    pub const fn new(bytes: u32) -> Result<Self, SegmentSizeError> {
        if bytes.is_power_of_two() && bytes >= Self::SMALLEST && bytes <= Self::LARGEST {
            Ok(Self(bytes))
        } else {
            Err(SegmentSizeError { bytes })
        }
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// Returns how many segments hold 4 GiB of log, the span that shares the middle digits of a name.
    pub const fn per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }

    /// Returns the segment that holds the byte at `lsn`.
    pub const fn segment_of(self, lsn: Lsn) -> SegmentNo {
        SegmentNo(lsn.bytes() / self.bytes())
    }

    /// Returns the segment that holds the last byte before `lsn`: where a record, or a backup, that ends there ends.
    pub const fn segment_ending_at(self, lsn: Lsn) -> SegmentNo {
        SegmentNo(lsn.bytes().saturating_sub(1) / self.bytes())
    }

    /// Returns the bytes between the start of the segment and `lsn`.
    pub const fn offset_of(self, lsn: Lsn) -> u64 {
        lsn.bytes() % self.bytes()
    }
}

impl Default for SegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u32> for SegmentSize {
    type Error = SegmentSizeError;
    fn try_from(bytes: u32) -> Result<Self, SegmentSizeError> {
        Self::new(bytes)
    }
}

impl From<SegmentSize> for u32 {
    fn from(size: SegmentSize) -> u32 {
        size.0
    }
}

/// A segment's place in the log, counted in segments of the cluster's size; the first one PostgreSQL writes is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNo(pub u64);

impl SegmentNo {
    /// Returns the first position in the segment.
    pub const fn start(self, size: SegmentSize) -> Lsn {
        Lsn::new(self.0.saturating_mul(size.bytes()))
    }

    /// Returns the first position after the segment.
    pub const fn end(self, size: SegmentSize) -> Lsn {
        self.next().start(size)
    }

    /// Returns the segment after this one.
    pub const fn next(self) -> SegmentNo {
        SegmentNo(self.0.saturating_add(1))
    }

    /// Returns the segment before this one; `None` before the first.
    pub const fn previous(self) -> Option<SegmentNo> {
        match self.0.checked_sub(1) {
            Some(number) => Some(SegmentNo(number)),
            None => None,
        }
    }
}

/// A segment's file name: 24 upper-case hex digits, eight each for timeline, 4 GiB span and segment in it.
///
/// Names order by timeline first, then by place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: TimelineId,
    log: u32,
    segment: u32,
}

impl SegmentName {
    /// Names the segment `number` of `timeline`; a number past the end of the 64-bit log, which no position has, gives
    /// the name of the last segment.
    pub fn from_number(timeline: TimelineId, number: SegmentNo, size: SegmentSize) -> Self {
        let number = number.0.min(u64::MAX / size.bytes());
        Self { timeline, log: (number / size.per_log()) as u32, segment: (number % size.per_log()) as u32 }
    }

    /// Returns the segment's place in the log, counted in segments of `size`.
    ///
    /// # Errors
    /// [`NameError::WrongSize`] if the name was made with smaller segments: 4 GiB of log holds
    /// `size.per_log()` of them, so a larger last field has no meaning.
    pub fn number(self, size: SegmentSize) -> Result<SegmentNo, NameError> {
        if u64::from(self.segment) >= size.per_log() {
            return Err(NameError::WrongSize { name: self, size: size.bytes() });
        }
        Ok(SegmentNo(u64::from(self.log) * size.per_log() + u64::from(self.segment)))
    }

    /// Returns the timeline in the name; the first pages of the segment may be of an ancestor.
    pub const fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// Returns the name of the same part of the log on another timeline.
    pub const fn with_timeline(self, timeline: TimelineId) -> Self {
        Self { timeline, ..self }
    }

    /// Returns the middle eight digits: the 4 GiB span the segment lies in.
    pub fn middle(self) -> String {
        format!("{:08X}", self.log)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08X}{:08X}", self.timeline.hex(), self.log, self.segment)
    }
}

impl FromStr for SegmentName {
    type Err = NameError;

    /// Reads exactly 24 upper-case hex digits whose first eight are not zero.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let refused = || NameError::NotASegment { text: text.to_owned() };
        if text.len() != 24 {
            return Err(refused());
        }
        let field = |at: usize| text.get(at..at + 8).and_then(upper_hex).ok_or_else(refused);
        let timeline = TimelineId::new(field(0)?).ok_or_else(refused)?;
        Ok(Self { timeline, log: field(8)?, segment: field(16)? })
    }
}

/// Reads eight upper-case hex digits; `None` for anything else.
pub(super) fn upper_hex(digits: &str) -> Option<u32> {
    let plain = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

as_text!(SegmentName);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn any_size() -> impl Strategy<Value = SegmentSize> {
        (20u32..=30).prop_map(|shift| SegmentSize::new(1 << shift).unwrap())
    }

    proptest! {
        #[test]
        fn names_round_trip(timeline in 1u32.., lsn: u64, size in any_size()) {
            let timeline = TimelineId::new(timeline).unwrap();
            let number = size.segment_of(Lsn::new(lsn));
            let name = SegmentName::from_number(timeline, number, size);
            prop_assert_eq!(name.number(size), Ok(number));
            prop_assert_eq!(name.to_string().parse(), Ok(name));
            prop_assert_eq!(serde_json::from_str::<SegmentName>(&serde_json::to_string(&name).unwrap()).unwrap(), name);
            prop_assert_eq!(number.start(size) + size.offset_of(Lsn::new(lsn)), Lsn::new(lsn));
        }

        #[test]
        fn names_order_as_the_log_does(a: u64, b: u64, size in any_size()) {
            let (a, b) = (size.segment_of(Lsn::new(a)), size.segment_of(Lsn::new(b)));
            let name = |number| SegmentName::from_number(TimelineId::FIRST, number, size);
            prop_assert_eq!(name(a).cmp(&name(b)), a.cmp(&b));
            prop_assert_eq!(name(a).to_string().cmp(&name(b).to_string()), a.cmp(&b));
        }
    }

    #[test]
    fn the_last_field_wraps_where_the_size_says() {
        let name = |lsn, mib: u32| {
            let size = SegmentSize::new(mib << 20).unwrap();
            SegmentName::from_number(TimelineId::FIRST, size.segment_of(Lsn::new(lsn)), size).to_string()
        };
        assert_eq!(name(0xFFFF_FFFF, 16), "0000000100000000000000FF");
        assert_eq!(name(0x1_0000_0000, 16), "000000010000000100000000");
        assert_eq!(name(0xFFFF_FFFF, 1), "000000010000000000000FFF");
        assert_eq!(name(0x1_4000_0000, 1024), "000000010000000100000001");
    }

    #[test]
    fn an_end_on_a_boundary_belongs_to_the_segment_before() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(size.segment_ending_at(Lsn::new(0x300_0000)), SegmentNo(2));
        assert_eq!(size.segment_ending_at(Lsn::new(0x300_0001)), SegmentNo(3));
        assert_eq!(size.segment_of(Lsn::new(0x300_0000)), SegmentNo(3));
        assert_eq!(size.segment_ending_at(Lsn::INVALID), SegmentNo(0));
    }

    #[test]
    fn a_name_of_smaller_segments_has_no_number() {
        let name: SegmentName = "000000010000000000000100".parse().unwrap();
        assert!(matches!(name.number(SegmentSize::DEFAULT), Err(NameError::WrongSize { .. })));
        assert_eq!(name.number(SegmentSize::new(1 << 20).unwrap()), Ok(SegmentNo(256)));
    }

    #[test]
    fn sizes_postgresql_would_not_run_with_are_refused() {
        for bytes in [0, 1, 8192, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, u32::MAX] {
            assert_eq!(SegmentSize::new(bytes), Err(SegmentSizeError { bytes }));
        }
        assert!(serde_json::from_str::<SegmentSize>("12345").is_err());
    }

    #[test]
    fn other_texts_are_no_segment_names() {
        for text in [
            "",
            "00000001000000000000000",
            "0000000100000000000000001",
            "00000001000000000000000a",
            "00000001000000000000000G",
            "+0000001000000000000000A",
            "000000000000000000000001",
            " 00000001000000000000001",
            "0000000100000000000000é",
            "000000é10000000000000001",
        ] {
            assert!(text.parse::<SegmentName>().is_err(), "{text:?} was read as a segment name");
        }
    }
}
