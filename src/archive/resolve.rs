//! An operator's word on who writes a timeline, on what was kept apart, and on what is given up. Each is an object of its
//! own, and nothing that is stored is changed.

use std::collections::BTreeSet;

use crate::clock;
use crate::error::ErrorKind;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::repo::{
    Adopted, Claim, Contested, Decision, HOLE_VERSION, Hole, Lane, OWNER_VERSION, Owner, RESOLUTION_VERSION, RepoError,
    Resolution,
};
use crate::store::Created;

/// Why an operator's word was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Everybody agrees already.
    #[error("timeline {timeline} counts, and nobody else wants to write it")]
    NothingToAdopt {
        /// The timeline.
        timeline: TimelineId,
    },
    /// There is more than one.
    #[error("more than one writer wants timeline {timeline}: {}; choose one with --writer", .writers.join(", "))]
    SeveralWriters {
        /// The timeline.
        timeline: TimelineId,
        /// Their tokens.
        writers: Vec<String>,
    },
    /// Nothing of the timeline is known.
    #[error("the lane knows no timeline {timeline}")]
    NoTimeline {
        /// The timeline.
        timeline: TimelineId,
    },
    /// Somebody else's word came first.
    #[error("{what} changed meanwhile; look again")]
    Overtaken {
        /// What it was about.
        what: String,
    },
    /// Its name has other bytes, and nothing is overwritten.
    #[error("{name} is archived with other contents, and nothing is ever overwritten")]
    NameTaken {
        /// The file.
        name: WalFileName,
    },
    /// It was decided already, and otherwise.
    #[error("{id} was {} already", match .decision { Decision::Adopted => "adopted", Decision::Discarded => "discarded" })]
    Decided {
        /// The file.
        id: String,
        /// What was decided.
        decision: Decision,
    },
    /// It is archived, and no server is known to be stuck on it.
    #[error("{name} is archived, and nobody offered other bytes for it: archiving is not held up there")]
    NothingInTheWay {
        /// The segment.
        name: SegmentName,
    },
    /// The segments that would be given up are none.
    #[error("{from} to {through} are no consecutive segments of one timeline")]
    Range {
        /// The first.
        from: SegmentName,
        /// The last.
        through: SegmentName,
    },
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepoError),
}

impl ResolveError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ResolveError::NothingToAdopt { .. }
            | ResolveError::SeveralWriters { .. }
            | ResolveError::NoTimeline { .. }
            | ResolveError::NothingInTheWay { .. }
            | ResolveError::Range { .. } => ErrorKind::Invalid,
            ResolveError::Overtaken { .. } => ErrorKind::Busy,
            ResolveError::NameTaken { .. } | ResolveError::Decided { .. } => ErrorKind::Conflict,
            ResolveError::Repository(source) => source.kind(),
        }
    }
}

/// Gives a timeline to a writer, and lets it count. Without a name, that is its owner if it waits, and else the only other
/// one whose bytes were kept apart.
///
/// # Errors
/// [`ResolveError`] if it is not clear to whom, or the repository failed.
pub fn adopt_timeline(
    lane: &Lane,
    timeline: TimelineId,
    writer: Option<&str>,
    host: &str,
) -> Result<Owner, ResolveError> {
    let owners = lane.owners(timeline)?;
    let current = owners.current.as_ref().map(|record| &record.owner);
    let wanting: BTreeSet<String> = lane
        .contested()?
        .into_iter()
        .filter(|contested| !contested.resolved && contested.name.timeline() == Some(timeline))
        .map(|contested| contested.writer)
        .collect();
    let chosen = choose(timeline, current, &wanting, writer)?;
    let own = current.filter(|owner| owner.writer == chosen);
    let owner = Owner {
        version: OWNER_VERSION,
        host: own.map_or_else(|| format!("writer {chosen}"), |owner| owner.host.clone()),
        writer: chosen,
        since: format!("adopted on {host}"),
        claim: Claim::Adoption,
        waits_for: None,
    };
    match lane.record_owner(timeline, owners.next, &owner)? {
        Created::New => Ok(owner),
        Created::Existing => Err(ResolveError::Overtaken { what: format!("the owner of timeline {timeline}") }),
    }
}

/// Decides to whom a timeline goes.
fn choose(
    timeline: TimelineId,
    current: Option<&Owner>,
    wanting: &BTreeSet<String>,
    named: Option<&str>,
) -> Result<String, ResolveError> {
    let known = |writer: &str| wanting.contains(writer) || current.is_some_and(|owner| owner.writer == writer);
    match (named, current) {
        (Some(writer), _) if known(writer) => Ok(writer.to_owned()),
        (Some(_), _) => Err(ResolveError::NothingToAdopt { timeline }),
        (None, Some(owner)) if owner.waits_for.is_some() => Ok(owner.writer.clone()),
        (None, current) => {
            let others = wanting.iter().filter(|writer| current.is_none_or(|owner| owner.writer != **writer));
            match others.cloned().collect::<Vec<_>>().as_slice() {
                [only] => Ok(only.clone()),
                [] if current.is_none() => Err(ResolveError::NoTimeline { timeline }),
                [] => Err(ResolveError::NothingToAdopt { timeline }),
                several => Err(ResolveError::SeveralWriters { timeline, writers: several.to_vec() }),
            }
        }
    }
}

/// Records a decision on a file that was kept apart; one that is adopted is stored under its name first.
///
/// # Errors
/// [`ResolveError::NameTaken`] if it cannot be adopted, [`ResolveError::Decided`] if it was decided otherwise before.
pub fn decide_on(lane: &Lane, contested: &Contested, decision: Decision, host: &str) -> Result<(), ResolveError> {
    let before = lane.resolution(contested)?;
    if let Some(before) = before.filter(|before| before.decision != decision) {
        return Err(ResolveError::Decided { id: contested.id(), decision: before.decision });
    }
    // What names something is written after it.
    if decision == Decision::Adopted && lane.adopt(contested)? == Adopted::NameTaken {
        return Err(ResolveError::NameTaken { name: contested.name.clone() });
    }
    let (version, host, decided_at) = (RESOLUTION_VERSION, host.to_owned(), clock::now());
    lane.resolve(contested, &Resolution { version, decision, host, decided_at })?;
    Ok(())
}

/// Gives up the log up to and with a segment, so that archiving goes on behind it. Without a first segment, from the first
/// one on that is not archived; from that very segment on if it is: then it is another server's, or damaged.
///
/// # Errors
/// [`ResolveError::NothingInTheWay`] if no first segment is given and the last one is archived, whole and uncontested: a
/// slip of the pen must not make a hole. [`ResolveError::Range`] if these are no consecutive segments, or the repository
/// failed.
pub fn give_up(
    lane: &Lane,
    from: Option<SegmentName>,
    through: SegmentName,
    reason: &str,
    host: &str,
) -> Result<Hole, ResolveError> {
    let size = lane.segment_size();
    let from = match from {
        Some(from) => from,
        None => {
            let archived = lane.list_wal(through.timeline())?.into_iter().filter_map(|stored| match stored.name {
                WalFileName::Segment(name) if name <= through => Some(name),
                _ => None,
            });
            match archived.max() {
                Some(last) if last < through => last
                    .number(size)
                    .map(|number| SegmentName::from_number(last.timeline(), number.next(), size))
                    .unwrap_or(through),
                Some(_) if !is_in_the_way(lane, through)? => {
                    return Err(ResolveError::NothingInTheWay { name: through });
                }
                _ => through,
            }
        }
    };
    if from.timeline() != through.timeline()
        || from > through
        || from.number(size).is_err()
        || through.number(size).is_err()
    {
        return Err(ResolveError::Range { from, through });
    }
    let (reason, host) = (reason.to_owned(), host.to_owned());
    let hole = Hole { version: HOLE_VERSION, from, through, reason, host, decided_at: clock::now(), disputed: false };
    lane.record_hole(&hole)?;
    Ok(hole)
}

/// Whether an archived segment may hold up a server's archiving: other bytes were offered under its name, and not taken, or
/// it is damaged.
fn is_in_the_way(lane: &Lane, segment: SegmentName) -> Result<bool, RepoError> {
    let name = WalFileName::Segment(segment);
    let stored = match lane.read_wal(&name) {
        Ok(stored) => stored.map(|stored| stored.digest.to_string()),
        Err(RepoError::Object { .. }) => None,
        Err(error) => return Err(error),
    };
    let Some(stored) = stored else { return Ok(true) };
    let other = |contested: &Contested| contested.name == name && contested.digest != stored;
    Ok(lane.contested()?.iter().any(other))
}

/// Returns the hole in which a file lies that could not be archived. Whose segments of a timeline are given up, its history
/// is too: it is archived before them, and could be passed by in no other way.
pub fn given_up(lane: &Lane, name: &WalFileName) -> Result<Option<Hole>, RepoError> {
    let lies_in = |hole: &Hole| match name {
        WalFileName::Segment(segment) => hole.holds(*segment),
        WalFileName::History(timeline) => hole.from.timeline() == *timeline,
        WalFileName::Partial(_) | WalFileName::BackupHistory { .. } | WalFileName::Other(_) => false,
    };
    Ok(lane.holes()?.into_iter().find(lies_in))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::format::wal;
    use crate::repo::WaitsFor;
    use crate::repo::lane_fixture::{lane_without, put};

    fn owner(writer: &str, waits: bool) -> Owner {
        let waits_for =
            waits.then(|| WaitsFor { timeline: TimelineId::FIRST, host: "db1".to_owned(), grace_seconds: 900 });
        Owner {
            version: OWNER_VERSION,
            writer: writer.to_owned(),
            host: "db2".to_owned(),
            since: "x".to_owned(),
            claim: Claim::First,
            waits_for,
        }
    }

    #[test]
    fn a_timeline_goes_to_whom_it_is_clear_it_must_and_to_nobody_else() {
        let two = TimelineId::new(2).unwrap();
        let wanting = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let chosen = |current: Option<&Owner>, names: &[&str], named: Option<&str>| {
            choose(two, current, &wanting(names), named).ok()
        };
        let (waiting, settled) = (owner("a", true), owner("a", false));
        assert_eq!(chosen(Some(&waiting), &["b"], None).as_deref(), Some("a"));
        assert_eq!(chosen(Some(&settled), &["b"], None).as_deref(), Some("b"));
        assert_eq!(chosen(Some(&settled), &["a", "b"], None).as_deref(), Some("b"));
        assert_eq!(chosen(Some(&settled), &["b", "c"], None), None);
        assert_eq!(chosen(Some(&settled), &["b", "c"], Some("c")).as_deref(), Some("c"));
        assert_eq!(chosen(Some(&settled), &["b", "c"], Some("d")), None);
        assert_eq!(chosen(Some(&settled), &[], None), None);
        assert_eq!(chosen(None, &[], None), None);
    }

    #[test]
    fn an_archived_segment_is_given_up_unasked_only_if_it_may_hold_up_a_server() {
        let lane = lane_without(&[]);
        let (eight, nine) = ("000000010000000000000008", "000000010000000000000009");
        let skip = |lane: &Lane, through: &str| give_up(lane, None, through.parse().unwrap(), "lost", "db1");
        for name in [eight, nine] {
            let refused = skip(&lane, name).unwrap_err();
            assert!(matches!(refused, ResolveError::NothingInTheWay { .. }), "{refused}");
        }
        assert_eq!(lane.holes().unwrap(), []);
        // The same bytes by somebody else hold up nobody, other ones do.
        let kept = |name: &str, raw: &[u8]| {
            let name: WalFileName = name.parse().unwrap();
            let encoded = wal::encode(&lane.wal_identity(&name), &raw, raw.len() as u64, 1, 1, None).unwrap();
            lane.keep_contested("0123456789abcdef", &name, &encoded).unwrap();
        };
        kept(eight, &lane.read_wal(&eight.parse().unwrap()).unwrap().unwrap().raw);
        assert!(skip(&lane, eight).is_err());
        kept(eight, b"other bytes");
        assert_eq!(skip(&lane, eight).unwrap().from.to_string(), eight);
        assert!(skip(&lane, nine).is_err(), "what is kept is another segment");
        // One that cannot be read.
        let without = lane_without(&[nine, "00000001000000000000000A", "00000001000000000000000B"]);
        put(&without, &format!("wal/00000001/00000000/{nine}.zst"), b"damaged");
        assert_eq!(skip(&without, nine).unwrap().from.to_string(), nine);
    }

    #[test]
    fn what_is_given_up_begins_where_the_archive_ends() {
        // Segments 7 to 11 of timeline 1.
        let lane = lane_without(&["000000010000000000000009", "00000001000000000000000A", "00000001000000000000000B"]);
        let segment = |text: &str| text.parse::<SegmentName>().unwrap();
        for (from, through, expected) in [
            (None, "00000001000000000000000A", Some("000000010000000000000009")),
            (None, "000000010000000000000008", None),
            (Some("000000010000000000000008"), "000000010000000000000008", Some("000000010000000000000008")),
            (Some("000000010000000000000007"), "000000010000000000000008", Some("000000010000000000000007")),
            (Some("000000010000000000000009"), "000000010000000000000008", None),
            (Some("000000020000000000000007"), "000000010000000000000008", None),
        ] {
            let hole = give_up(&lane, from.map(segment), segment(through), "lost", "db1");
            assert_eq!(hole.ok().map(|hole| hole.from), expected.map(segment), "{from:?} {through}");
        }
        let name = |text: &str| text.parse::<WalFileName>().unwrap();
        assert!(given_up(&lane, &name("000000010000000000000009")).unwrap().is_some());
        assert!(given_up(&lane, &name("00000001000000000000000B")).unwrap().is_none());
        assert!(given_up(&lane, &name("00000002.history")).unwrap().is_none());
        assert!(given_up(&lane, &name("00000001.history")).unwrap().is_some());
    }
}
