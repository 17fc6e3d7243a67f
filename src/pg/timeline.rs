//! Timelines: their ids, and the history files that say where each one left its parent.
//!
//! A history holds ancestors only; which timelines exist at all is for a catalogue to know.
//!
//! Source: `readTimeLineHistory`, `writeTimeLineHistory` and `tliOfPointInHistory` in
//! `src/backend/access/transam/timeline.c`.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::Lsn;

/// A timeline's number; there is no timeline 0.
///
/// Prints as a decimal, as history files and `pg_controldata` do; [`TimelineId::hex`] is the form in file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The timeline `initdb` starts.
    pub const FIRST: TimelineId = TimelineId(NonZeroU32::MIN);

    /// Makes an id; `None` for 0.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Returns the id as a number.
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// Returns the id as file names spell it: eight upper-case hex digits.
    pub const fn hex(self) -> TimelineHex {
        TimelineHex(self)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A timeline id that prints as eight upper-case hex digits.
#[derive(Clone, Copy, Debug)]
pub struct TimelineHex(TimelineId);

impl fmt::Display for TimelineHex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.0.number())
    }
}

/// What a timeline's history file tells: its ancestors, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    timeline: TimelineId,
    forks: Vec<Fork>,
}

/// One line of a history file: the log up to `at` was written on `parent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The ancestor that was left.
    pub parent: TimelineId,
    /// The first position that is not the ancestor's.
    pub at: Lsn,
    /// PostgreSQL's words for why recovery ended there; may be empty.
    pub reason: String,
}

/// The part of the log that one timeline contributes to a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The timeline whose segments hold this part.
    pub timeline: TimelineId,
    /// The first position of the part.
    pub begin: Lsn,
    /// The first position after the part; `None` for the timeline the history belongs to, which may still grow.
    pub end: Option<Lsn>,
}

/// Why a text is not the history of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A line PostgreSQL would read in pieces, or that holds a NUL byte.
    #[error("line {line} of the history of timeline {timeline} is not a line of text PostgreSQL can read")]
    Unreadable {
        /// The timeline whose history was read.
        timeline: TimelineId,
        /// Counted from 1.
        line: usize,
    },
    /// A line that does not begin with a timeline id.
    #[error("line {line} of the history of timeline {timeline} begins with {found:?} and not with a timeline id")]
    NotATimeline {
        /// The timeline whose history was read.
        timeline: TimelineId,
        /// Counted from 1.
        line: usize,
        /// The text in place of the id.
        found: String,
    },
    /// A line without a switch point.
    #[error("line {line} of the history of timeline {timeline} has {found:?} in place of a switch point")]
    NotAPosition {
        /// The timeline whose history was read.
        timeline: TimelineId,
        /// Counted from 1.
        line: usize,
        /// The text in place of the position; empty if there is none.
        found: String,
    },
    /// An id that is not larger than the one above it, or not smaller than the history's own.
    #[error("line {line} of the history of timeline {timeline} names timeline {found} out of order")]
    OutOfOrder {
        /// The timeline whose history was read.
        timeline: TimelineId,
        /// Counted from 1.
        line: usize,
        /// The id that stands there.
        found: TimelineId,
    },
    /// No line names a parent. A timeline without one has no history file.
    #[error("the history of timeline {timeline} names no parent")]
    NoParent {
        /// The timeline whose history was read.
        timeline: TimelineId,
    },
}

/// Bytes of a line beyond which PostgreSQL's reader would take the rest for another line.
const LINE_LIMIT: usize = 1022;

impl History {
    /// Makes the history of a timeline that has no parent.
    pub fn root(timeline: TimelineId) -> Self {
        Self { timeline, forks: Vec::new() }
    }

    /// Reads the history file of `timeline`.
    ///
    /// # Errors
    /// [`HistoryError`] for whatever PostgreSQL would refuse, and for lines it would misread.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<Self, HistoryError> {
        let mut forks: Vec<Fork> = Vec::new();
        for (index, text) in text.lines().enumerate() {
            let line = index + 1;
            if text.len() > LINE_LIMIT || text.contains('\0') {
                return Err(HistoryError::Unreadable { timeline, line });
            }
            let Some(fork) = parse_line(timeline, line, text)? else { continue };
            let before = forks.last();
            if fork.parent >= timeline || before.is_some_and(|before| fork.parent <= before.parent) {
                return Err(HistoryError::OutOfOrder { timeline, line, found: fork.parent });
            }
            forks.push(fork);
        }
        if forks.is_empty() { Err(HistoryError::NoParent { timeline }) } else { Ok(Self { timeline, forks }) }
    }

    /// Returns the timeline the history belongs to.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Returns the ancestors, oldest first.
    pub fn forks(&self) -> &[Fork] {
        &self.forks
    }

    /// Returns the parts of the log in order: those of the ancestors, then the open one of the timeline itself.
    ///
    /// The part of an ancestor that contributes nothing is empty.
    pub fn stretches(&self) -> Vec<Stretch> {
        // Recovery along timeline 2 that stops before 2 begins writes such a history: 3 leaves 2 earlier than 2 leaves
        // 1. PostgreSQL searches from the youngest fork down, so an earlier later fork wins.
        let mut ends = Vec::with_capacity(self.forks.len());
        let mut earliest = Lsn::new(u64::MAX);
        for fork in self.forks.iter().rev() {
            earliest = earliest.min(fork.at);
            ends.push(earliest);
        }
        let mut begin = Lsn::INVALID;
        let mut stretches = Vec::with_capacity(self.forks.len() + 1);
        for (fork, end) in self.forks.iter().zip(ends.into_iter().rev()) {
            stretches.push(Stretch { timeline: fork.parent, begin, end: Some(end) });
            begin = end;
        }
        stretches.push(Stretch { timeline: self.timeline, begin, end: None });
        stretches
    }

    /// Returns the timeline on which the byte at `lsn` was written; at a switch point that is the child.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let left = self.forks.iter().rposition(|fork| fork.at <= lsn);
        let next = left.map_or(0, |left| left + 1);
        self.forks.get(next).map_or(self.timeline, |fork| fork.parent)
    }

    /// Returns where this history leaves the timeline `ancestor`: what was written there from that position on is not
    /// part of it. `None` if it is no ancestor.
    pub fn fork_of(&self, ancestor: TimelineId) -> Option<Lsn> {
        let first = self.forks.iter().position(|fork| fork.parent == ancestor)?;
        self.forks[first..].iter().map(|fork| fork.at).min()
    }
}

/// Reads one line; `None` for a comment or an empty line.
fn parse_line(timeline: TimelineId, line: usize, text: &str) -> Result<Option<Fork>, HistoryError> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let (id, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim_start();
    let (at, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let digits = id.bytes().all(|b| b.is_ascii_digit());
    let parent = digits.then(|| id.parse().ok()).flatten().and_then(TimelineId::new);
    let parent = parent.ok_or_else(|| HistoryError::NotATimeline { timeline, line, found: id.to_owned() })?;
    let at = at.parse().map_err(|_| HistoryError::NotAPosition { timeline, line, found: at.to_owned() })?;
    Ok(Some(Fork { parent, at, reason: reason.trim().to_owned() }))
}

impl fmt::Display for History {
    /// Writes the history file as PostgreSQL would; nothing for a timeline without a parent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.forks.iter().try_for_each(|fork| writeln!(f, "{}\t{}\t{}", fork.parent, fork.at, fork.reason))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    const THREE: &str = "1\t0/1600028\tno recovery target specified\n\n2\t0/2000000\tat restore point \"x\"\n";

    #[test]
    fn a_history_file_is_read_and_written_back() {
        let history = History::parse(timeline(3), THREE).unwrap();
        assert_eq!(history.forks()[1].reason, "at restore point \"x\"");
        assert_eq!(history.to_string(), THREE.replace("\n\n", "\n"));
        assert_eq!(History::parse(timeline(3), &history.to_string()), Ok(history));
    }

    #[test]
    fn the_switch_point_belongs_to_the_child() {
        let history = History::parse(timeline(3), THREE).unwrap();
        for (lsn, expected) in
            [(0, 1), (0x160_0027, 1), (0x160_0028, 2), (0x1FF_FFFF, 2), (0x200_0000, 3), (1 << 60, 3)]
        {
            assert_eq!(history.timeline_at(Lsn::new(lsn)), timeline(expected), "{lsn:X}");
        }
        assert_eq!(history.fork_of(timeline(2)), Some(Lsn::new(0x200_0000)));
        assert_eq!(history.fork_of(timeline(3)), None);
    }

    #[test]
    fn stretches_cover_the_log_without_a_gap() {
        let stretches = History::parse(timeline(3), THREE).unwrap().stretches();
        assert_eq!(stretches.first().unwrap().begin, Lsn::INVALID);
        assert!(stretches.windows(2).all(|pair| pair[0].end == Some(pair[1].begin)));
        assert_eq!(
            *stretches.last().unwrap(),
            Stretch { timeline: timeline(3), begin: Lsn::new(0x200_0000), end: None }
        );
        assert_eq!(History::root(TimelineId::FIRST).stretches().len(), 1);
    }

    #[test]
    fn comments_gaps_in_the_numbers_and_a_missing_last_newline_are_read() {
        let text = "# by hand\n\n   # indented\n1 0/1600028\n  7\t 1A/0\treason with spaces ";
        let history = History::parse(timeline(9), text).unwrap();
        assert_eq!(history.forks().iter().map(|fork| fork.parent.number()).collect::<Vec<_>>(), [1, 7]);
        assert_eq!(history.forks()[1].reason, "reason with spaces");
    }

    #[test]
    fn two_forks_at_one_position_leave_an_empty_stretch() {
        let history = History::parse(timeline(3), "1\t0/5000000\ta\n2\t0/5000000\tb\n").unwrap();
        assert_eq!(history.timeline_at(Lsn::new(0x500_0000)), timeline(3));
        assert_eq!(history.stretches()[1].end, Some(history.stretches()[1].begin));
    }

    /// Written by PostgreSQL 15: recovery along timeline 2 to a target before its beginning, then promotion.
    #[test]
    fn a_history_that_goes_back_leaves_the_older_timeline_at_the_earlier_position() {
        let text = "1\t0/B000A0\tno recovery target specified\n\n2\t0/8000D0\tafter LSN 0/800090\n\n\n3\t0/900000\tno target\n";
        let history = History::parse(timeline(4), text).unwrap();
        for (lsn, expected) in [(0x80_00CF, 1), (0x80_00D0, 3), (0x8F_FFFF, 3), (0x90_0000, 4), (0xB0_00A0, 4)] {
            assert_eq!(history.timeline_at(Lsn::new(lsn)), timeline(expected), "{lsn:X}");
        }
        assert_eq!(history.fork_of(timeline(1)), Some(Lsn::new(0x80_00D0)));
        assert_eq!(history.fork_of(timeline(2)), Some(Lsn::new(0x80_00D0)));
        assert_eq!(history.fork_of(timeline(3)), Some(Lsn::new(0x90_0000)));
        let stretches = history.stretches();
        assert_eq!(stretches[1].end, Some(stretches[1].begin));
    }

    proptest! {
        #[test]
        fn stretches_and_timeline_at_agree(ats in prop::collection::vec(0u64..40, 1..6), lsn in 0u64..50) {
            let text: String = ats.iter().enumerate().map(|(i, at)| format!("{}\t0/{at:X}\tx\n", i + 1)).collect();
            let history = History::parse(timeline(ats.len() as u32 + 1), &text).unwrap();
            let lsn = Lsn::new(lsn);
            let stretches = history.stretches();
            let holds = |stretch: &&Stretch| stretch.begin <= lsn && stretch.end.is_none_or(|end| lsn < end);
            let holding: Vec<_> = stretches.iter().filter(holds).collect();
            prop_assert_eq!(holding.len(), 1);
            prop_assert_eq!(holding[0].timeline, history.timeline_at(lsn));
            for stretch in &stretches {
                prop_assert_eq!(history.fork_of(stretch.timeline), stretch.end);
            }
        }
    }

    #[test]
    fn hostile_histories_are_refused() {
        let long = format!("1\t0/1600028\t{}\n", "x".repeat(2000));
        for text in [
            "",
            "# nothing\n",
            "\0",
            "1\t0/16\0\n",
            "one\t0/1600028\n",
            "0\t0/1600028\n",
            "-1\t0/1600028\n",
            "+1\t0/1600028\n",
            "0x1\t0/1600028\n",
            "4294967296\t0/1600028\n",
            "1\n",
            "1\t\n",
            "1\t0\n",
            "1\t0/1600028/3\n",
            "1\t0/123456789\n",
            "3\t0/1600028\n",
            "4\t0/1600028\n",
            "1\t0/1600028\n1\t0/1700000\n",
            "2\t0/1600028\n1\t0/1700000\n",
            &long,
        ] {
            assert!(History::parse(timeline(3), text).is_err(), "{text:?} was read as a history");
        }
    }

    #[test]
    fn ids_have_two_spellings_and_no_zero() {
        assert_eq!(timeline(26).to_string(), "26");
        assert_eq!(timeline(26).hex().to_string(), "0000001A");
        assert_eq!(TimelineId::new(0), None);
        assert_eq!(serde_json::to_string(&timeline(26)).unwrap(), "26");
        assert!(serde_json::from_str::<TimelineId>("0").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9A-F/\t\n #x]{0,200}") {
            if let Ok(history) = History::parse(timeline(1000), &text) {
                prop_assert_eq!(History::parse(timeline(1000), &history.to_string()), Ok(history));
            }
        }
    }
}
