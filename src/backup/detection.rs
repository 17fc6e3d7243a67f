//! How a backup finds out what changed since the one that it builds on.
//!
//! Reading everything and comparing block hashes needs no trust: what is equal is equal, however it came to be. The server's
//! summaries of its log spare the reading, and so does what the archived log says itself; both rest on the log having told
//! of every change, and where that can be doubted, everything is read. A scan by page LSN is not among the methods: it reads as much as the hashes do, and knows less.

use std::fmt;

use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_summary::Summary;

/// What the operator asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The cheapest that can be trusted.
    #[default]
    Cheapest,
    /// Everything is read, and compared with the backup before.
    ReadAll,
    /// A backup that builds on no other.
    Full,
}

/// How changes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// They are not: everything is stored.
    Full,
    /// Everything is read, and stored if its hash is another.
    Hashes,
    /// What the archived log names is read.
    Log,
    /// What the server's summaries of the log name is read.
    Summaries,
}

impl Method {
    /// Whether it takes pages for unchanged because no record says that they were changed.
    pub fn rests_on_the_log(self) -> bool {
        matches!(self, Method::Log | Method::Summaries)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Full => "full",
            Method::Hashes => "hashes",
            Method::Log => "log",
            Method::Summaries => "summaries",
        })
    }
}

/// What was decided, and what came of it.
#[derive(Clone, Debug)]
pub struct Basis {
    /// The backup that it builds on.
    pub parent: Option<String>,
    /// How changes were found.
    pub method: Method,
    /// Why so, and not cheaper.
    pub reason: String,
    /// Bytes that were read, and found in the parent.
    pub compared_bytes: u64,
    /// Bytes that were taken over from the parent unread.
    pub unread_bytes: u64,
    /// What the log was not believed about.
    pub doubted: Doubted,
}

/// Files that somebody made or wrote since the parent though the log does not say so; they were read whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubted {
    /// How many.
    pub files: u64,
    /// The first of them.
    pub first: Option<String>,
}

/// What is known before the decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    pub wanted: Wanted,
    pub major: u16,
    /// Of the parent: its timeline, from where to where it was taken, whether pages had checksums, and how many did not fit.
    pub parent_timeline: TimelineId,
    pub parent_start: Lsn,
    pub parent_stop: Lsn,
    pub parent_checksums: bool,
    pub parent_damaged: u64,
    /// The same of the server now.
    pub timeline: TimelineId,
    pub start: Lsn,
    pub checksums: bool,
    /// Whether another writer's log of this timeline is kept apart: undecided, or from the parent's start on.
    pub contested: bool,
    /// Whether full pages were logged when the parent began, and are now.
    pub full_page_writes: bool,
}

/// Returns both releases, if they differ. Summaries that an older minor release made stay as they are, whatever a newer one
/// mends: its release notes ask for a full backup.
pub(super) fn other_release<'a>(before: &'a str, now: &'a str) -> Option<(&'a str, &'a str)> {
    let number = |version: &'a str| version.split_whitespace().next().unwrap_or_default();
    let (before, now) = (number(before), number(now));
    (before != now).then_some((before, now))
}

/// Why summaries are not enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// They will never be.
    Settled(String),
    /// The server is not there yet; it is at this position.
    Behind(Lsn),
}

impl Situation {
    /// Decides whether the log, or what the server makes of it, could do at all.
    ///
    /// # Errors
    /// Why not.
    pub fn allows_the_log(&self) -> Result<(), String> {
        let refuse = |reason: &str| Err(reason.to_owned());
        if self.wanted == Wanted::ReadAll {
            return refuse("asked for with --read-all");
        }
        if self.timeline != self.parent_timeline {
            // The summary that touches the switch may hide changes.
            return Err(format!(
                "the timeline changed from {} to {} since the parent",
                self.parent_timeline, self.timeline
            ));
        }
        if self.start < self.parent_stop {
            return refuse("it begins before the parent ended: the server went back in time");
        }
        if self.checksums != self.parent_checksums {
            return refuse("checksums were switched on or off since the parent, which no log tells of");
        }
        if self.parent_damaged > 0 {
            return refuse("the parent has damaged pages");
        }
        if self.contested {
            return refuse("another server's log of this timeline is kept apart");
        }
        if !self.full_page_writes {
            return refuse("full_page_writes is off, or was when the parent was taken");
        }
        Ok(())
    }

    /// Whether the server could have summaries.
    pub fn has_summaries(&self) -> bool {
        self.major >= 17
    }

    /// Chooses the summaries that together tell of every change from the parent's start to this backup's.
    ///
    /// # Errors
    /// [`Doubt`] if there is a gap.
    pub fn cover(&self, summarizing: bool, available: &[Summary]) -> Result<Vec<Summary>, Doubt> {
        let settled = |reason: String| Err(Doubt::Settled(reason));
        let own: Vec<Summary> = available.iter().filter(|summary| summary.timeline == self.timeline).copied().collect();
        let mut chosen: Vec<Summary> = own
            .iter()
            .filter(|summary| summary.start < self.start && summary.end > self.parent_start)
            .copied()
            .collect();
        chosen.sort_by_key(|summary| summary.start);
        let mut reached = self.parent_start;
        for summary in &chosen {
            if summary.start > reached {
                return settled(format!("no summary of the log tells of {reached} to {}", summary.start));
            }
            reached = reached.max(summary.end);
        }
        if reached < self.start {
            return match summarizing {
                true if chosen.is_empty() && own.iter().any(|summary| summary.start > self.parent_start) => {
                    settled(format!("no summary of the log tells of {reached}"))
                }
                true => Err(Doubt::Behind(reached)),
                false => settled("summarize_wal is off".to_owned()),
            };
        }
        // The first one of a timeline that forked off touches the switch, wherever the parent began in it.
        let first = chosen.first().map_or(self.start, |summary| summary.start);
        let forked = self.timeline.number() > 1;
        if forked && !own.iter().any(|summary| summary.end <= first) {
            return settled("the first summary of a timeline touches the switch to it".to_owned());
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).expect("a timeline")
    }

    fn calm() -> Situation {
        Situation {
            wanted: Wanted::Cheapest,
            major: 17,
            parent_timeline: timeline(1),
            parent_start: Lsn::new(1000),
            parent_stop: Lsn::new(1100),
            parent_checksums: true,
            parent_damaged: 0,
            timeline: timeline(1),
            start: Lsn::new(2000),
            checksums: true,
            contested: false,
            full_page_writes: true,
        }
    }

    fn summary(number: u32, start: u64, end: u64) -> Summary {
        Summary { timeline: timeline(number), start: Lsn::new(start), end: Lsn::new(end) }
    }

    #[test]
    fn summaries_of_another_release_are_not_built_on() {
        assert_eq!(other_release("17.10 (Debian 17.10-1.pgdg12+1)", "17.10 (Ubuntu 17.10-2)"), None);
        assert_eq!(other_release("17.9 (Debian 17.9-1)", "17.10"), Some(("17.9", "17.10")));
        assert_eq!(other_release("18beta1", "18.0"), Some(("18beta1", "18.0")));
    }

    #[test]
    fn whatever_is_doubtful_is_read() {
        assert_eq!(calm().allows_the_log(), Ok(()));
        assert!(calm().has_summaries() && !Situation { major: 16, ..calm() }.has_summaries());
        for (doubtful, word) in [
            (Situation { wanted: Wanted::ReadAll, ..calm() }, "--read-all"),
            (Situation { parent_timeline: timeline(1), timeline: timeline(2), ..calm() }, "timeline changed"),
            (Situation { parent_timeline: timeline(3), timeline: timeline(2), ..calm() }, "timeline changed"),
            (Situation { start: Lsn::new(1099), ..calm() }, "went back"),
            (Situation { checksums: false, ..calm() }, "checksums"),
            (Situation { parent_checksums: false, ..calm() }, "checksums"),
            (Situation { parent_damaged: 1, ..calm() }, "damaged"),
            (Situation { contested: true, ..calm() }, "kept apart"),
            (Situation { full_page_writes: false, ..calm() }, "full_page_writes"),
        ] {
            let refused = doubtful.allows_the_log().expect_err(word);
            assert!(refused.contains(word), "{refused}");
        }
    }

    #[test]
    fn summaries_have_to_tell_of_every_position() {
        let covers = |available: &[Summary]| calm().cover(true, available);
        let (before, middle, end) = (summary(1, 0, 1000), summary(1, 900, 1500), summary(1, 1500, 2000));
        assert_eq!(covers(&[end, before, middle]), Ok(vec![middle, end]));
        assert_eq!(covers(&[summary(1, 1000, 2000)]), Ok(vec![summary(1, 1000, 2000)]));
        // One that goes on past the start tells of more than is needed.
        assert_eq!(covers(&[summary(1, 500, 9000)]), Ok(vec![summary(1, 500, 9000)]));
        // Not there yet.
        assert_eq!(covers(&[middle]), Err(Doubt::Behind(Lsn::new(1500))));
        assert_eq!(covers(&[before]), Err(Doubt::Behind(Lsn::new(1000))));
        assert_eq!(covers(&[middle, summary(1, 1500, 1999)]), Err(Doubt::Behind(Lsn::new(1999))));
        // Never: a gap in the middle (the level of the log was lowered, the setting was off), the first removed, another
        // timeline's, and a server that makes none.
        for (summarizing, available) in [
            (true, vec![middle, summary(1, 1501, 2000)]),
            (true, vec![summary(1, 1001, 2000)]),
            (true, vec![end]),
            (true, vec![summary(1, 2000, 2500)]),
            (false, vec![middle]),
            (false, vec![]),
        ] {
            let found = calm().cover(summarizing, &available);
            assert!(matches!(found, Err(Doubt::Settled(_))), "{available:?}: {found:?}");
        }
        assert_eq!(covers(&[summary(2, 900, 2000)]), Err(Doubt::Behind(Lsn::new(1000))));
    }

    #[test]
    fn the_first_summary_after_a_switch_is_not_believed() {
        let switched = Situation { parent_timeline: timeline(2), timeline: timeline(2), ..calm() };
        let (first, second) = (summary(2, 800, 900), summary(2, 900, 2000));
        assert!(matches!(switched.cover(true, &[second]), Err(Doubt::Settled(_))));
        // One before it shows that it is not the first.
        assert_eq!(switched.cover(true, &[first, second]), Ok(vec![second]));
        assert_eq!(calm().cover(true, &[summary(1, 900, 2000)]), Ok(vec![summary(1, 900, 2000)]));
    }
}
