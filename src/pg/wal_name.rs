//! Names of the files PostgreSQL hands to `archive_command` and asks of `restore_command`.
//!
//! Parsed once, here, into [`WalFileName`]; past this module no code takes a file name apart.
//!
//! Source: `XLogFileName`, `TLHistoryFileName`, `BackupHistoryFileName` and `MAXFNAMELEN` in
//! `src/include/access/xlog_internal.h`; "Setting Up WAL Archiving" in the manual for which names a command must expect.

use std::fmt;
use std::str::FromStr;

use super::as_text::as_text;
use super::segment::upper_hex;
use super::{SegmentName, TimelineId};

/// Everything PostgreSQL may pass to `archive_command`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// `000000010000000100000004`: complete, never written again.
    Segment(SegmentName),
    /// `….partial`: the last segment of a timeline that a promotion left behind.
    Partial(SegmentName),
    /// `00000002.history`: where timeline 2 branched off.
    History(TimelineId),
    /// `….00000028.backup`: written when a base backup ends.
    BackupHistory {
        /// The segment in which the backup starts.
        start: SegmentName,
        /// The backup's start, in bytes from the start of that segment.
        offset: u32,
    },
    /// A kind of file this version does not know; kept like any other.
    Other(OtherName),
}

/// A name of 1 to 64 letters, digits and dots that does not begin with a dot and is no known kind in any letter case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OtherName(String);

/// Why a text is not the name of a WAL file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not 24 upper-case hex digits with a timeline in the first eight.
    #[error("{text:?} is not the name of a WAL segment; one looks like 000000010000000100000004")]
    NotASegment {
        /// The text that was read.
        text: String,
    },
    /// A character, a length or a first dot that PostgreSQL's names do not have.
    #[error("{text:?} is not a name PostgreSQL gives to a WAL file: at most 64 letters, digits and dots, no dot first")]
    NotAName {
        /// The text that was read, cut after 80 characters.
        text: String,
    },
    /// The name of a known kind in other letters: where file names ignore case it would stand for that very file.
    #[error("{text:?} differs from the name of a WAL file by letter case alone")]
    WrongCase {
        /// The text that was read.
        text: String,
    },
    /// A name of a known kind that names timeline 0.
    #[error("{text:?} names timeline 0, which does not exist")]
    NoTimeline {
        /// The text that was read.
        text: String,
    },
    /// A segment name whose last field is too large for segments of this size.
    #[error("{name} does not name a segment of {size} bytes")]
    WrongSize {
        /// The segment's name.
        name: SegmentName,
        /// Bytes in a segment.
        size: u64,
    },
}

/// The longest name, in bytes.
const NAME_LIMIT: usize = 64;

impl WalFileName {
    /// Returns the timeline in the name; `None` for a file of unknown kind.
    pub fn timeline(&self) -> Option<TimelineId> {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::BackupHistory { start: name, .. } => {
                Some(name.timeline())
            }
            Self::History(timeline) => Some(*timeline),
            Self::Other(_) => None,
        }
    }

    fn known(text: &str) -> Option<Self> {
        let (head, tail) = text.split_once('.').unwrap_or((text, ""));
        if tail == "history" {
            return upper_hex(head).and_then(TimelineId::new).map(Self::History);
        }
        let name = head.parse().ok()?;
        match tail.split_once('.') {
            None if text.len() == head.len() => Some(Self::Segment(name)),
            None if tail == "partial" => Some(Self::Partial(name)),
            Some((offset, "backup")) => Some(Self::BackupHistory { start: name, offset: upper_hex(offset)? }),
            _ => None,
        }
    }
}

impl FromStr for WalFileName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
        if text.is_empty() || text.len() > NAME_LIMIT || text.starts_with('.') || !plain {
            return Err(NameError::NotAName { text: text.chars().take(80).collect() });
        }
        if let Some(known) = Self::known(text) {
            return Ok(known);
        }
        let folded = canonical_case(text);
        if Self::known(&folded).is_some() {
            return Err(NameError::WrongCase { text: text.to_owned() });
        }
        // The kind is right once the first digit is: so it was timeline 0 that made it unknown.
        if folded.strip_prefix('0').is_some_and(|rest| Self::known(&format!("1{rest}")).is_some()) {
            return Err(NameError::NoTimeline { text: text.to_owned() });
        }
        Ok(Self::Other(OtherName(text.to_owned())))
    }
}

/// Writes a name as PostgreSQL would if it were of a known kind: digits upper-case, the word after the last dot lower-case.
fn canonical_case(text: &str) -> String {
    let upper = text.to_ascii_uppercase();
    match upper.rsplit_once('.') {
        Some((head, word)) => format!("{head}.{}", word.to_ascii_lowercase()),
        None => upper,
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => name.fmt(f),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::History(timeline) => write!(f, "{}.history", timeline.hex()),
            Self::BackupHistory { start, offset } => write!(f, "{start}.{offset:08X}.backup"),
            Self::Other(OtherName(text)) => f.write_str(text),
        }
    }
}

as_text!(WalFileName);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<WalFileName, NameError> {
        text.parse()
    }

    #[test]
    fn each_kind_is_told_apart_and_prints_back() {
        let segment: SegmentName = "0000000A0000000100000004".parse().unwrap();
        for (text, expected) in [
            ("0000000A0000000100000004", WalFileName::Segment(segment)),
            ("0000000A0000000100000004.partial", WalFileName::Partial(segment)),
            ("0000000A.history", WalFileName::History(segment.timeline())),
            (
                "0000000A0000000100000004.00FFFFD8.backup",
                WalFileName::BackupHistory { start: segment, offset: 0xFF_FFD8 },
            ),
        ] {
            assert_eq!(parse(text), Ok(expected.clone()));
            assert_eq!(expected.to_string(), text);
            assert_eq!(expected.timeline(), Some(segment.timeline()));
        }
    }

    #[test]
    fn unknown_kinds_are_kept_under_their_own_name() {
        for text in [
            "x",
            "archive.status",
            "0000000100000001000000040",
            "000000010000000100000004.partial.old",
            "000000010000000100000004.backup",
            "000000010000000100000004.28.backup",
            "000000010000000100000004.",
            "0000001.history",
            "00000001.history.",
            "G0000001.history",
            "a..b",
            &"A".repeat(64),
        ] {
            let name = parse(text).unwrap();
            assert!(matches!(name, WalFileName::Other(_)), "{text:?} was read as {name:?}");
            assert_eq!(name.to_string(), text);
            assert_eq!(name.timeline(), None);
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        for text in [
            "",
            ".",
            "..",
            ".history",
            "../000000010000000100000004",
            "a/b",
            "a\\b",
            "a b",
            "a\0b",
            "a\n",
            "000000010000000100000004\n",
            "é",
            "-rf",
            "%p",
            "a:b",
            "000000010000000100000004_partial",
            &"A".repeat(65),
        ] {
            assert!(matches!(parse(text), Err(NameError::NotAName { .. })), "{text:?} was read as a name");
        }
    }

    #[test]
    fn a_known_name_in_other_letters_is_refused() {
        for text in [
            "00000001000000010000000a",
            "0000000a.history",
            "00000001.HISTORY",
            "000000010000000100000004.Partial",
            "00000001000000010000000a.00000028.backup",
        ] {
            assert!(matches!(parse(text), Err(NameError::WrongCase { .. })), "{text:?}");
        }
    }

    #[test]
    fn timeline_zero_is_refused_in_every_kind() {
        for text in [
            "000000000000000100000004",
            "00000000.history",
            "000000000000000100000004.partial",
            "000000000000000100000004.00000028.backup",
        ] {
            assert!(matches!(parse(text), Err(NameError::NoTimeline { .. })), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_prints_back(text in "[0-9A-Fa-f.]{0,70}|[0-9A-F]{24}(\\.partial|\\.[0-9A-F]{8}\\.backup)?|[0-9A-F]{8}\\.history") {
            if let Ok(name) = parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
